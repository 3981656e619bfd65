"""Between HTTP and Lambda as API Gateway's proxy integration has it: requests become events, what
functions give back becomes answers. Pure.

From https://docs.aws.amazon.com/apigateway/latest/developerguide/: the formats are those of
set-up-lambda-proxy-integrations.html, binary bodies of api-gateway-payload-encodings-workflow.html,
the headers that are renamed or dropped of api-gateway-known-issues.html.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from scar_local.protocol import ACCOUNT_ID

ASYNCHRONOUS = "integration.request.header.X-Amz-Invocation-Type"
"""Where an integration says how the function is invoked."""

_NOT_HANDED_ON = ("content-length", "connection", "transfer-encoding")
_REMAPPED = frozenset(
    [
        *("authorization", "connection", "content-length", "content-md5", "date", "host"),
        *("max-forwards", "server", "user-agent", "via", "www-authenticate"),
    ]
)
_DROPPED = frozenset(
    ["expect", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade"]
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_ANSWER_KEYS = frozenset(["statusCode", "headers", "multiValueHeaders", "body", "isBase64Encoded"])


@dataclass(frozen=True)
class Place:
    """The stage of an API that a request is for."""

    api_id: str
    region: str
    stage: str
    deployment_id: str
    variables: Mapping[str, str]
    binary_media_types: Sequence[str]


@dataclass(frozen=True)
class Incoming:
    """A request to an API."""

    method: str
    path: str
    """Below the stage, percent-encoded as sent."""
    query: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    source_ip: str = "127.0.0.1"
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def header(self, name: str) -> str:
        """The last value of a header; "" where it was not sent."""
        values = [value for key, value in self.headers if key.lower() == name]
        return values[-1] if values else ""


@dataclass(frozen=True)
class Match:
    """The resource that a path belongs to."""

    resource: Mapping[str, Any]
    parameters: Mapping[str, str]
    """Values of the path's `{…}` parts, as sent."""

    def method(self, name: str) -> Mapping[str, Any] | None:
        """The method that answers, or None."""
        methods: Mapping[str, Any] = self.resource["resourceMethods"]
        return methods.get(name) or methods.get("ANY")


@dataclass(frozen=True)
class Reply:
    """An answer to the client."""

    status: int
    headers: Mapping[str, str | tuple[str, ...]]
    body: bytes


class MalformedAnswer(Exception):
    """The function answered what is no answer of a proxy integration."""


def find(resources: Iterable[Mapping[str, Any]], path: str) -> Match | None:
    """The resource with methods whose path fits best: static text, then `{part}`, then `{all+}`.

    A slash at the end of the path means nothing.
    """
    found: list[tuple[list[int], Match]] = []
    for resource in resources:
        if not resource["resourceMethods"]:
            continue
        names: list[str] = []
        pattern = "/".join(_pattern(part, names) for part in resource["path"].split("/"))
        match = re.fullmatch(pattern, path.rstrip("/") or "/", re.DOTALL)
        if match:
            values = dict(zip(names, match.groups(), strict=True))
            looseness = [_looseness(part) for part in resource["path"].split("/")]
            found.append((looseness, Match(resource, values)))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def is_asynchronous(integration: Mapping[str, Any], incoming: Incoming) -> bool:
    """Whether the integration asks Lambda to queue the event: a fixed `'Event'`, or as the client
    says in a header."""
    source = (integration.get("requestParameters") or {}).get(ASYNCHRONOUS, "")
    value = source.strip("'") if source.startswith("'") else ""
    if source.startswith("method.request.header."):
        value = incoming.header(source.removeprefix("method.request.header.").lower())
    return value == "Event"


def event(incoming: Incoming, place: Place, match: Match) -> dict[str, Any]:
    """What the function is given: the proxy event of a REST API."""
    headers = _handed_on(incoming, place)
    body, is_base64 = _body(incoming, place)
    query = parse_qsl(incoming.query, keep_blank_values=True)
    return {
        "resource": match.resource["path"],
        "path": incoming.path or "/",
        "httpMethod": incoming.method,
        "headers": dict(headers) or None,
        "multiValueHeaders": _multiple(headers),
        "queryStringParameters": dict(query) or None,
        "multiValueQueryStringParameters": _multiple(query),
        "pathParameters": dict(match.parameters) or None,
        "stageVariables": dict(place.variables) or None,
        "requestContext": _context(incoming, place, match),
        "body": body,
        "isBase64Encoded": is_base64,
    }


def reply(payload: bytes, accept: str, binary_media_types: Sequence[str]) -> Reply:
    """The function's answer as an HTTP answer. Raises MalformedAnswer.

    A base64 body is decoded only where the first media type of `accept` is one of the API's binary
    ones; all other clients get the base64 text.
    """
    try:
        said = json.loads(payload)
    except ValueError as exc:
        raise MalformedAnswer("no JSON") from exc
    if not isinstance(said, dict) or said.keys() - _ANSWER_KEYS:
        raise MalformedAnswer("not an object of statusCode, headers, body and isBase64Encoded")
    status, body = _status(said), _decoded(said, accept, binary_media_types)
    return Reply(status, _headers(said), b"" if status in (204, 304) else body)


def refusal(status: int, message: str, kind: str) -> Reply:
    """An answer of API Gateway's own; `kind` is the type that clients see in a header."""
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": kind}
    return Reply(status, headers, json.dumps({"message": message}).encode())


def is_binary(media_type: str, binary_media_types: Sequence[str]) -> bool:
    """Whether a Content-Type, or the first of an Accept, is among an API's binary media types."""
    wanted = media_type.split(",")[0].split(";")[0].strip().lower()
    kind = wanted.partition("/")[0]
    known = [name.lower() for name in binary_media_types]
    return "*/*" in known or (bool(wanted) and (wanted in known or f"{kind}/*" in known))


def _pattern(part: str, names: list[str]) -> str:
    if not part.startswith("{"):
        return re.escape(part)
    names.append(part.strip("{}").rstrip("+"))
    return "(.+)" if part.endswith("+}") else "([^/]+)"


def _looseness(part: str) -> int:
    return 2 if part.endswith("+}") else int(part.startswith("{"))


def _handed_on(incoming: Incoming, place: Place) -> list[tuple[str, str]]:
    """The client's headers that the function sees, and API Gateway's own."""
    kept = [pair for pair in incoming.headers if pair[0].lower() not in _NOT_HANDED_ON]
    trace = f"Root=1-{int(incoming.time.timestamp()):08x}-{secrets.token_hex(12)}"
    own = {
        "Host": f"{place.api_id}.execute-api.{place.region}.amazonaws.com",
        "X-Amzn-Trace-Id": trace,
        "X-Forwarded-For": incoming.source_ip,
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
    }
    replaced = {name.lower() for name in own}
    return [*(pair for pair in kept if pair[0].lower() not in replaced), *own.items()]


def _body(incoming: Incoming, place: Place) -> tuple[str | None, bool]:
    if not incoming.body:
        return None, False
    if is_binary(incoming.header("content-type"), place.binary_media_types):
        return base64.b64encode(incoming.body).decode(), True
    # Bytes that are no text are lost, as on AWS: clients send them as base64.
    return incoming.body.decode(errors="replace"), False


def _multiple(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]] | None:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found or None


def _context(incoming: Incoming, place: Place, match: Match) -> dict[str, Any]:
    nobody = (
        *("cognitoIdentityPoolId", "accountId", "cognitoIdentityId", "caller"),
        *("principalOrgId", "accessKey", "cognitoAuthenticationType"),
        *("cognitoAuthenticationProvider", "userArn", "user"),
    )
    return {
        "resourceId": match.resource["id"],
        "resourcePath": match.resource["path"],
        "httpMethod": incoming.method,
        "extendedRequestId": base64.b64encode(secrets.token_bytes(11)).decode(),
        "requestTime": incoming.time.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "requestTimeEpoch": int(incoming.time.timestamp() * 1000),
        "path": f"/{place.stage}{incoming.path}",
        "accountId": ACCOUNT_ID,
        "protocol": "HTTP/1.1",
        "stage": place.stage,
        "domainPrefix": place.api_id,
        "domainName": f"{place.api_id}.execute-api.{place.region}.amazonaws.com",
        "deploymentId": place.deployment_id,
        "requestId": incoming.request_id,
        "apiId": place.api_id,
        "identity": {
            **dict.fromkeys(nobody),
            "sourceIp": incoming.source_ip,
            "userAgent": incoming.header("user-agent") or None,
        },
    }


def _status(said: Mapping[str, Any]) -> int:
    given = said.get("statusCode")
    try:
        status = 200 if given is None else int(given)
    except (TypeError, ValueError) as exc:
        raise MalformedAnswer("statusCode is no number") from exc
    if not 200 <= status <= 599:
        raise MalformedAnswer(f"statusCode {status} is none of an answer")
    return status


def _decoded(said: Mapping[str, Any], accept: str, binary_media_types: Sequence[str]) -> bytes:
    body = said.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise MalformedAnswer("body is no text")
    if not (said.get("isBase64Encoded") is True and is_binary(accept, binary_media_types)):
        return body.encode(errors="replace")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as exc:
        raise MalformedAnswer("body is no base64") from exc


def _headers(said: Mapping[str, Any]) -> dict[str, str | tuple[str, ...]]:
    single, multiple = said.get("headers") or {}, said.get("multiValueHeaders") or {}
    if not isinstance(single, dict) or not isinstance(multiple, dict):
        raise MalformedAnswer("headers is no object")
    found: dict[str, str | tuple[str, ...]] = {"Content-Type": "application/json"}
    for name, value in {**single, **multiple}.items():
        values = value if isinstance(value, list) else [value]
        if name.lower() == "content-type":
            found.pop("Content-Type", None)
        if name.lower() not in _DROPPED:
            remapped = f"x-amzn-Remapped-{name}" if name.lower() in _REMAPPED else name
            if not _HEADER_NAME.fullmatch(name):
                raise MalformedAnswer(f"{name!r} cannot be a header's name")
            found[remapped] = tuple(_header_text(item) for item in values)
    return found


def _header_text(value: object) -> str:
    """A header's value as one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise MalformedAnswer("a header's value is no text")
    text = str(value)
    if not _HEADER_VALUE.fullmatch(text):
        raise MalformedAnswer("a header's value holds what HTTP cannot send")
    return text
