"""One call of the S3 API: what was asked, and answers and errors in S3's own XML."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeAlias
from urllib.parse import quote_plus

from scar_local.http import Body, Exchange
from scar_local.protocol import ACCOUNT_ID

OWNER_ID = "0" * (64 - len(ACCOUNT_ID)) + ACCOUNT_ID
"""The canonical user id (64 hex digits on AWS) of the one account."""

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

MAX_DOCUMENT_BYTES = 8 << 20
"""Most bytes of XML we parse; CompleteMultipartUpload with 10,000 parts and checksums is 2 MB."""

Element: TypeAlias = tuple[str, "str | int | bool | Elements"]
"""An XML element: its name, and its text or its children."""
Elements: TypeAlias = Iterable[Element]


class S3Error(Exception):
    """An error of the S3 API: code and status as S3's list of error codes says.

    `details` are further elements of the answer, such as `BucketName`.
    """

    def __init__(self, code: str, message: str, status: int = 400, **details: str | int) -> None:
        super().__init__(message)
        self.code, self.message, self.status, self.details = code, message, status, details


@dataclass(frozen=True)
class Call:
    """One S3 request. `key` is empty for calls on a bucket, `bucket` for calls on the service."""

    exchange: Exchange
    region: str
    bucket: str
    key: str
    headers: Mapping[str, str]
    """Lower-case names; `x-amz-*` of a presigned URL's query count as headers, as on S3."""
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16].upper())

    @property
    def query(self) -> Mapping[str, str]:
        """The query, decoded."""
        return self.exchange.query

    @cached_property
    def body(self) -> Body:
        """The request's body as sent (maybe aws-chunked)."""
        return self.exchange.body

    @property
    def answer_headers(self) -> dict[str, str]:
        """What every answer carries."""
        return {"x-amz-request-id": self.request_id, "x-amz-id-2": host_id(self.request_id)}

    def reply(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer without a body."""
        self.exchange.reply(status, headers={**self.answer_headers, **(headers or {})})

    def reply_xml(
        self, name: str, content: Elements, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer 200 with a document in S3's namespace."""
        self.reply_document(document(name, content, NAMESPACE), headers=headers)

    def reply_document(
        self,
        body: bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/xml",
    ) -> None:
        """Answer with a document that is ready."""
        self.exchange.reply(status, body, {**self.answer_headers, **(headers or {})}, content_type)

    def reply_error(self, error: S3Error) -> None:
        """Answer with S3's error document; HEAD has no body to put it in."""
        if self.exchange.method == "HEAD":
            self.reply(error.status)
            return
        content: list[Element] = [("Code", error.code), ("Message", echo(error.message))]
        content += [(name, echo(str(value))) for name, value in error.details.items()]
        content += [
            ("Resource", self.exchange.path),
            ("RequestId", self.request_id),
            ("HostId", host_id(self.request_id)),
        ]
        self.reply_document(document("Error", content), error.status)


def host_id(request_id: str) -> str:
    """`x-amz-id-2` of an answer: opaque to clients."""
    return f"{request_id}scarlocal="


def document(name: str, content: Elements, namespace: str = "") -> bytes:
    """An XML document."""
    attribute = f' xmlns="{namespace}"' if namespace else ""
    out = ['<?xml version="1.0" encoding="UTF-8"?>\n', f"<{name}{attribute}>"]
    _write(out, content)
    out.append(f"</{name}>")
    return "".join(out).encode()


def _write(out: list[str], content: Elements) -> None:
    for name, value in content:
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, str | int):
            text = escape(str(value))
        else:
            out.append(f"<{name}>")
            _write(out, value)
            out.append(f"</{name}>")
            continue
        out.append(f"<{name}>{text}</{name}>")


_ESCAPED = {code: f"&#x{code:X};" for code in [*range(0x20), 0xFFFE, 0xFFFF] if code not in (9, 10)}
_ESCAPED |= {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;"}


def escape(text: str) -> str:
    """Text for XML. Control characters become references that parsers refuse, as S3's do.

    Clients that list such keys ask for `encoding-type=url`.
    """
    return text.translate(_ESCAPED)


_UNWRITABLE = dict.fromkeys(
    [*(c for c in range(0x20) if c not in (9, 10, 13)), 0xFFFE, 0xFFFF], "�"
)


def echo(text: str) -> str:
    """A key repeated for information only: what XML cannot hold is replaced."""
    return text.translate(_UNWRITABLE)


def url_encoded(text: str) -> str:
    """A key as `encoding-type=url` and event records write it."""
    return quote_plus(text, safe="/")


def iso(seconds: float) -> str:
    """A time as S3's XML writes it: UTC with milliseconds."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def integer(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """A number of the query, cut to `high`. Raises S3Error for what is no number or under `low`."""
    text = query.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < low:
        raise S3Error(
            "InvalidArgument",
            f"Provided {name} not an integer or within integer range",
            ArgumentName=name,
            ArgumentValue=text,
        )
    return min(int(text), high)


def parse_xml(data: bytes) -> ET.Element:
    """A request's document with namespaces taken off. Raises S3Error MalformedXML."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise malformed()
    try:
        root = ET.fromstring(data)  # noqa: S314 - no document type, so no entities to blow up
    except (ET.ParseError, ValueError) as exc:
        raise malformed() from exc
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def malformed() -> S3Error:
    """The error for a document that does not follow S3's schema."""
    return S3Error(
        "MalformedXML",
        "The XML you provided was not well-formed or did not validate against our published schema",
    )
