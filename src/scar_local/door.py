"""The door: every request of the one port comes in here and goes to the service it is meant for.

A signed request names its service in the signature's credential scope, in the query (presigned) S3
alone; an unsigned one is for the daemon itself (`/_scar/`), an API of API Gateway
(`/_aws/execute-api/`), the image registry (`/v2/`) or S3 (presigned with version 2, anonymous).
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote

from scar_local import callers
from scar_local.gateway_endpoint import is_for_api
from scar_local.http import Exchange
from scar_local.protocol import (
    BODY_LIMIT,
    Answer,
    ApiError,
    Call,
    error_answer,
    read_whole,
    too_large,
)

MODELS = {
    "apigateway": "apigateway",
    "batch": "batch",
    "ecr": "ecr",
    "lambda": "lambda",
    "logs": "logs",
    "sts": "sts",
    "tagging": "resourcegroupstaggingapi",
}
"""botocore's name of each own service, by the name that requests are signed for."""

_SCOPE = re.compile(r"Credential=[^/,\s]+/\d+/([^/,\s]*)/([^/,\s]+)/aws4_request")
_QUERY_SCOPE = re.compile(r"[^/]+/\d+/([^/]*)/([^/]+)/aws4_request")
_log = logging.getLogger(__name__)


class Streaming(Protocol):
    """What reads and answers the exchange by itself: S3."""

    def handle(self, exchange: Exchange, region: str) -> None:
        """Answer the exchange."""


class Handling(Protocol):
    """What reads and answers the exchange by itself: the registry, moto, API Gateway's APIs."""

    def handle(self, exchange: Exchange) -> None:
        """Answer the exchange."""


@dataclass(frozen=True)
class Control:
    """What `/_scar/` answers: a state of the daemon, and how to stop it."""

    status: Callable[[], Mapping[str, object]]
    stop: Callable[[], object]
    more: Mapping[tuple[str, str], Callable[[], Mapping[str, object]]] = field(default_factory=dict)
    """What else it answers, by method and path."""
    changes: Callable[[int, str | None], Mapping[str, object]] | None = None
    """Changes of Batch's jobs after the one of a number, of one job or of all."""


class Door:
    """Routes and answers exchanges; `services` are the own ones, by their signing names."""

    def __init__(
        self,
        services: Mapping[str, object],
        s3: Streaming,
        registry: Handling,
        others: Handling,
        control: Control,
        apis: Handling | None = None,
    ) -> None:
        self._services, self._s3, self._registry = services, s3, registry
        self._others, self._control, self._apis = others, control, apis

    def answer(self, exchange: Exchange) -> None:
        """Answer the exchange, whatever happens: a fault of ours is an InternalFailure and logged.

        Raises ConnectionError when the client is gone.
        """
        service, region = scope(exchange)
        try:
            if refusal := callers.refusal(exchange):
                raise ApiError("AccessDenied", refusal, 403)
            self._route(exchange, service, region)
        except ApiError as error:
            _reply(exchange, error_answer(_protocol(exchange, service), error))
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            _log.exception("%s %s failed", exchange.method, exchange.path)
            if exchange.answered:
                raise ConnectionError("the answer broke off") from None
            fault = ApiError("InternalFailure", "the local cloud failed; see its daemon.log", 500)
            _reply(exchange, error_answer(_protocol(exchange, service), fault))

    def _route(self, exchange: Exchange, service: str, region: str) -> None:
        if exchange.path.startswith("/_scar/"):
            self._administer(exchange)
        elif self._apis is not None and is_for_api(exchange):
            self._apis.handle(exchange)
        elif service == "s3":
            self._s3.handle(exchange, region)
        elif service and not _SCOPE.search(exchange.headers.get("Authorization") or ""):
            # A browser sends such a request for any page; a header of this name it does not.
            text = f"`{service}` takes signatures in the Authorization header, not in the query"
            raise ApiError("AccessDenied", text, 403)
        elif service in self._services:
            _reply(exchange, self._serve(exchange, service, region))
        elif service:
            self._others.handle(exchange)
        elif exchange.path == "/v2" or exchange.path.startswith("/v2/"):
            self._registry.handle(exchange)
        else:
            self._s3.handle(exchange, region)

    def _serve(self, exchange: Exchange, service: str, region: str) -> Answer:
        from scar_local.codec import codec  # 60 ms that the daemon's start does not wait for

        body = _whole_body(exchange)
        call = Call(exchange.method, exchange.path, exchange.raw_query, exchange.headers, body)
        return codec(MODELS[service]).serve(self._services[service], call, region)

    def _administer(self, exchange: Exchange) -> None:
        if "Origin" in exchange.headers:  # a web page has no business here
            raise ApiError("AccessDenied", "the daemon does not talk to web pages", 403)
        asked = (exchange.method, exchange.path)
        if asked == ("GET", "/_scar/status"):
            _reply_json(exchange, self._control.status())
        elif asked == ("POST", "/_scar/stop"):
            _reply_json(exchange, {"stopping": True})
            self._control.stop()
        elif asked == ("GET", "/_scar/batch/changes") and self._control.changes:
            after = exchange.query.get("after", "0")
            if not after.isdigit():
                raise ApiError("ValidationError", f"after `{after}` is not the number of a change")
            _reply_json(exchange, self._control.changes(int(after), exchange.query.get("job")))
        elif asked in self._control.more:
            _reply_json(exchange, self._control.more[asked]())
        else:
            known = [("GET", "/_scar/status"), ("POST", "/_scar/stop"), *self._control.more]
            there = f"{', '.join(' '.join(one) for one in known)} are there"
            raise ApiError("NotFound", f"{asked[0]} {asked[1]} is not; {there}", 404)


def scope(exchange: Exchange) -> tuple[str, str]:
    """The signing name of the service and the region; ("", "us-east-1") when nothing was signed."""
    match = _SCOPE.search(exchange.headers.get("Authorization") or "")
    if match is None:
        credential = unquote(exchange.query.get("X-Amz-Credential", ""))
        match = _QUERY_SCOPE.fullmatch(credential)
    if match is None:
        return "", "us-east-1"
    return match[2], match[1] or "us-east-1"


def _whole_body(exchange: Exchange) -> bytes:
    body = read_whole(exchange.body)
    if exchange.headers.get("Content-Encoding") != "gzip":
        return body
    unpacker = zlib.decompressobj(wbits=31)
    try:
        data = unpacker.decompress(body, BODY_LIMIT + 1)
    except zlib.error as exc:
        raise ApiError("SerializationException", f"the body is not gzip: {exc}") from exc
    if len(data) > BODY_LIMIT:
        raise too_large()
    return data


def _protocol(exchange: Exchange, service: str) -> str:
    """How this client wants to hear of an error, told by its request alone."""
    if exchange.headers.get("X-Amz-Target"):
        return "json"
    if "x-www-form-urlencoded" in (exchange.headers.get("Content-Type") or ""):
        return "ec2" if service == "ec2" else "query"
    return "rest-xml" if service in ("", "s3") else "rest-json"


def _reply(exchange: Exchange, answer: Answer) -> None:
    exchange.reply(answer.status, answer.body, answer.headers)


def _reply_json(exchange: Exchange, value: Mapping[str, object]) -> None:
    exchange.reply(200, json.dumps(value).encode(), content_type="application/json")
