"""AWS Signature Version 4 for one request: pure, equal to botocore's."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
"""S3 takes this instead of the body's digest; a checksum header then guards the body."""

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

_NEVER_SIGNED = frozenset(
    ("authorization", "expect", "transfer-encoding", "user-agent", "x-amzn-trace-id")
)


@dataclass(frozen=True)
class Keys:
    """Credentials at one moment; `token` is None for long-lived ones."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        return f"Keys({self.access_key!r}, …)"


@dataclass(frozen=True)
class Scope:
    """What a signature is good for: `timestamp` as `20260131T120000Z`."""

    service: str
    region: str
    timestamp: str

    @property
    def text(self) -> str:
        """The credential scope."""
        return f"{self.timestamp[:8]}/{self.region}/{self.service}/aws4_request"


@dataclass(frozen=True)
class Unsigned:
    """A request as it goes over the wire: `path` and `query` are percent-encoded already."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    """Includes Host; names in any case."""
    payload_sha256: str


def encode_path(path: str) -> str:
    """An S3 object path for the wire: `..`, `//` and a trailing `/` are part of the key."""
    return quote(path, safe="/-_.~")


def encode_query(pairs: Iterable[tuple[str, str]]) -> str:
    """A query string for the wire."""
    return "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in pairs)


def signed_headers(request: Unsigned, keys: Keys, scope: Scope) -> dict[str, str]:
    """All headers to send: the request's and those that prove who sends it."""
    headers = {**request.headers, "X-Amz-Date": scope.timestamp}
    if keys.token:
        headers["X-Amz-Security-Token"] = keys.token
    if scope.service == "s3":
        headers["X-Amz-Content-SHA256"] = request.payload_sha256
    names, canonical = _canonical_headers(headers)
    text = "\n".join(
        (
            request.method,
            request.path if scope.service == "s3" else _normalised(request.path),
            _canonical_query(request.query),
            canonical,
            names,
            request.payload_sha256,
        )
    )
    to_sign = "\n".join(
        ("AWS4-HMAC-SHA256", scope.timestamp, scope.text, hashlib.sha256(text.encode()).hexdigest())
    )
    signature = hmac.new(_signing_key(keys, scope), to_sign.encode(), "sha256").hexdigest()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope.text}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return headers


def _canonical_headers(headers: Mapping[str, str]) -> tuple[str, str]:
    lines = {
        name.lower().strip(): " ".join(value.split())
        for name, value in headers.items()
        if name.lower() not in _NEVER_SIGNED
    }
    names = sorted(lines)
    return ";".join(names), "".join(f"{name}:{lines[name]}\n" for name in names)


def _normalised(path: str) -> str:
    """Every service but S3 signs the path without dot segments, and encoded once more."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    slash = "/" if parts and path.endswith("/") else ""
    return quote("/" + "/".join(parts) + slash, safe="/~")


def _canonical_query(query: str) -> str:
    pairs = (pair.partition("=") for pair in query.split("&")) if query else ()
    return "&".join(f"{name}={value}" for name, value in sorted((k, v) for k, _, v in pairs))


def _signing_key(keys: Keys, scope: Scope) -> bytes:
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.text.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return key
