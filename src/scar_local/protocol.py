"""What the services and the wire have in common: requests, answers and errors of AWS's APIs.

A service is any object with one method an operation, named as boto3 names it:
`def create_function(self, request: Request) -> dict`. `request.params` and the answer have exactly
the shapes that boto3 users see (blobs are bytes, timestamps are datetime or epoch seconds); an
answer may hold `ResponseMetadata: {"RequestId": …}` where the request id means something.
`codec` translates.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Protocol

ACCOUNT_ID = "000000000000"
"""The one account of every local cloud."""

BODY_LIMIT = 32 << 20
"""Bytes of a request that is read whole; above every limit of the APIs that we answer so."""


@dataclass(frozen=True)
class Request:
    """One parsed call of an AWS API."""

    operation: str
    region: str
    params: dict[str, Any]


class ApiError(Exception):
    """An error of an AWS API: `code` and `status` as the service's model and documentation say.

    Where `status` is 400 and the model gives `code` another status, the model's is sent.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


class Source(Protocol):
    """What a body is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end."""


def read_whole(source: Source) -> bytes:
    """The whole body. Raises ApiError (413) beyond BODY_LIMIT."""
    parts: list[bytes] = []
    left = BODY_LIMIT + 1
    while left and (data := source.read(min(left, 1 << 20))):
        parts.append(data)
        left -= len(data)
    if not left:
        raise too_large()
    return b"".join(parts)


def too_large() -> ApiError:
    """The error that refuses a body beyond BODY_LIMIT."""
    return ApiError("RequestEntityTooLarge", f"requests end at {BODY_LIMIT} bytes", 413)


class Headers(Protocol):
    """A request's headers: a mapping, or http.client's message, which ignores the case of names."""

    def get(self, name: str, /) -> str | None:
        """The header's value."""

    def items(self) -> Iterable[tuple[str, str]]:
        """All headers."""


@dataclass(frozen=True)
class Call:
    """A request as it came over the wire."""

    method: str
    path: str
    """Percent-encoded, as sent."""
    query: str
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Answer:
    """An answer as it goes over the wire."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def error_answer(
    protocol: str,
    error: ApiError,
    status: int | None = None,
    fields: Mapping[str, str] | None = None,
) -> Answer:
    """An error in the words of any AWS protocol but CBOR. Needs no model."""
    request_id = str(uuid.uuid4())
    status = error.status if status is None else status
    headers = {"x-amzn-RequestId": request_id}
    if protocol in _ERRORS:
        kind = "Sender" if status < 500 else "Receiver"
        words = {"type": kind, "code": escape(error.code), "message": escape(error.message)}
        text = _ERRORS[protocol].format(request_id=request_id, **words)
        return Answer(status, {**headers, "Content-Type": "text/xml"}, text.encode())
    body: dict[str, str] = {"message": error.message, **(fields or {})}
    if protocol == "rest-json":
        headers |= {"x-amzn-ErrorType": error.code, "Content-Type": "application/json"}
    else:
        body["__type"] = error.code
        headers["Content-Type"] = "application/x-amz-json-1.1"
    return Answer(status, headers, json.dumps(body).encode())


_ERROR = "<Code>{code}</Code><Message>{message}</Message>"
_ID = "<RequestId>{request_id}</RequestId>"
_ERRORS = {
    "query": f"<ErrorResponse><Error><Type>{{type}}</Type>{_ERROR}</Error>{_ID}</ErrorResponse>",
    "ec2": f"<Response><Errors><Error>{_ERROR}</Error></Errors>{_ID}</Response>",
    "rest-xml": f"<Error>{_ERROR}{_ID}</Error>",
}
