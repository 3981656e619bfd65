"""Where clients call the APIs of API Gateway: one HTTP request is one invocation of a function.

`https://API.execute-api.REGION.amazonaws.com/STAGE/PATH` cannot be resolved here, so an API answers
at `/_aws/execute-api/API/STAGE/PATH` of the local cloud, and to that name in the Host header.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from scar_local import gateway_proxy as proxy
from scar_local.gateway import Deployed, Gateway, function_of
from scar_local.gateway_proxy import Incoming, Reply
from scar_local.http import READ_SIZE, Exchange
from scar_local.protocol import ApiError, Request

PREFIX = "/_aws/execute-api/"
BODY_LIMIT = 10_485_760
"""Bytes of a request's body (REST API quotas)."""

_HOST = ".execute-api."
_log = logging.getLogger(__name__)


class Invoking(Protocol):
    """The service `lambda`."""

    def invoke(self, request: Request) -> dict[str, Any]:
        """Invoke."""


class Endpoint:
    """Answers calls of APIs. `limit_s` is how long a call may take at most, as on AWS 29 s."""

    def __init__(self, gateway: Gateway, functions: Invoking, limit_s: float = 29.0) -> None:
        self._gateway, self._functions, self._limit_s = gateway, functions, limit_s

    def handle(self, exchange: Exchange) -> None:
        """Answer the exchange."""
        api_id, stage, path = _address(exchange)
        incoming = Incoming(
            method=exchange.method,
            path=path,
            query=exchange.raw_query,
            headers=exchange.headers.items(),
            body=b"",
        )
        reply = self._reply(exchange, self._gateway.deployed(api_id, stage), incoming)
        headers = {"x-amzn-RequestId": incoming.request_id, **reply.headers}
        exchange.reply(reply.status, reply.body, headers)

    def _reply(self, exchange: Exchange, deployed: Deployed | None, incoming: Incoming) -> Reply:
        if deployed is None:
            return proxy.refusal(403, "Forbidden", "ForbiddenException")
        match = proxy.find(deployed.resources, incoming.path)
        method = match.method(incoming.method) if match else None
        if match is None or method is None:
            text = "Missing Authentication Token"
            return proxy.refusal(403, text, "MissingAuthenticationTokenException")
        body = _body(exchange)
        if body is None:
            return _too_large()
        integration = method["methodIntegration"]
        whole = replace(incoming, body=body)
        event = json.dumps(proxy.event(whole, deployed.place, match)).encode()
        request = Request(
            "Invoke",
            deployed.place.region,
            {
                "FunctionName": function_of(integration),
                "InvocationType": (
                    "Event" if proxy.is_asynchronous(integration, whole) else "RequestResponse"
                ),
                "Payload": event,
            },
        )
        limit_s = min(self._limit_s, integration["timeoutInMillis"] / 1000)
        return self._invoked(request, limit_s, whole, deployed)

    def _invoked(
        self, request: Request, limit_s: float, incoming: Incoming, deployed: Deployed
    ) -> Reply:
        try:
            said = _within(limit_s, lambda: self._functions.invoke(request))
        except TimeoutError:
            return proxy.refusal(504, "Endpoint request timed out", "InternalServerErrorException")
        except ApiError as error:
            if error.status == 413:
                return _too_large()
            _log.warning("%s: %s", request.params["FunctionName"], error.message)
            return _failed(500)
        if said.get("FunctionError"):
            return _failed(502)
        # What Lambda says to a queued event is empty, which is no answer of a proxy integration:
        # AWS answers 502 although the function runs.
        binary = deployed.place.binary_media_types
        try:
            return proxy.reply(said.get("Payload", b""), incoming.header("accept"), binary)
        except proxy.MalformedAnswer as exc:
            if said["StatusCode"] != 202:
                _log.warning("%s: malformed proxy answer: %s", request.params["FunctionName"], exc)
            return _failed(502)


def is_for_api(exchange: Exchange) -> bool:
    """Whether the exchange is a call of an API."""
    return exchange.path.startswith(PREFIX) or _HOST in (exchange.headers.get("Host") or "")


def _address(exchange: Exchange) -> tuple[str, str, str]:
    """The API's id, the stage, and the path below it, which begins with `/` or is empty."""
    if exchange.path.startswith(PREFIX):
        api_id, _, rest = exchange.path.removeprefix(PREFIX).partition("/")
    else:
        api_id = (exchange.headers.get("Host") or "").partition(_HOST)[0]
        rest = exchange.path.removeprefix("/")
    stage, slash, path = rest.partition("/")
    return api_id, stage, f"{slash}{path}"


def _body(exchange: Exchange) -> bytes | None:
    """The whole body; None where it is too large."""
    parts: list[bytes] = []
    size = 0
    while data := exchange.body.read(READ_SIZE):
        size += len(data)
        if size > BODY_LIMIT:
            return None
        parts.append(data)
    return b"".join(parts)


def _too_large() -> Reply:
    text = f"HTTP content length exceeded {BODY_LIMIT} bytes."
    return proxy.refusal(413, text, "RequestTooLargeException")


def _failed(status: int) -> Reply:
    return proxy.refusal(status, "Internal server error", "InternalServerErrorException")


def _within(limit_s: float, call: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What `call` gives. Raises TimeoutError after the limit; the call goes on without us."""
    outcome: Future[Mapping[str, Any]] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=run, name="api-call", daemon=True).start()
    return outcome.result(limit_s)
