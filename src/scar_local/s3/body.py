"""Reading what a client stores: aws-chunked frames taken off, bytes to a blob, digests checked."""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Protocol

from scar_local.http import Body
from scar_local.s3 import checksums
from scar_local.s3.call import MAX_DOCUMENT_BYTES, Call, S3Error, malformed
from scar_local.s3.checksums import Algorithm, Checksum, Digest
from scar_local.store import Store

READ_BYTES = 256 << 10
MAX_PUT_BYTES = 5 << 30
"""One PutObject or part: 5 GiB. https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

_OWNER = ".s3"
"""Ends the ids of S3's blobs: other services keep blobs in the same folder."""


@dataclass(frozen=True)
class Blob:
    """Bytes in the store that no row names yet."""

    id: str
    size: int
    md5: str
    """Hex."""
    checksum: Checksum | None = None


class Source(Protocol):
    """A stream of bytes: `b""` is its end."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""


def owned_blobs(store: Store) -> Iterator[str]:
    """Every blob of S3 that has a file."""
    return (blob for blob in store.all_blobs() if blob.endswith(_OWNER))


@contextmanager
def new_blob(store: Store) -> Iterator[tuple[str, Path]]:
    """A blob to write; its file goes away again when the block raises."""
    blob = store.new_blob()[0] + _OWNER
    try:
        yield blob, store.blob(blob)
    except BaseException:
        store.delete_blob(blob)
        raise


def receive(call: Call, store: Store, wanted: Algorithm | None = None) -> Blob:
    """Stream the request's body to a new blob and check everything the client claims about it.

    `wanted` is the checksum to compute when the client sends none. Raises S3Error BadDigest,
    InvalidDigest, IncompleteBody, XAmzContentSHA256Mismatch, EntityTooLarge.
    """
    checks = _Checks(call.headers, wanted)
    with new_blob(store) as (blob, path):
        source = _decoded(call)
        with path.open("wb", buffering=0) as file:
            while data := source.read(READ_BYTES):
                _write(file, data)
                checks.update(data)
            if os.fstat(file.fileno()).st_size != checks.size:
                raise OSError(errno.EIO, "the file does not have the size that was written")
        trailers = source.trailers if isinstance(source, _AwsChunked) else {}
        return Blob(blob, checks.size, checks.md5.hexdigest(), checks.verified(trailers))


def read_document(call: Call, apart_from: str = "") -> bytes:
    """The whole body of a call whose body is XML or JSON, checked as `receive` does.

    Headers that start with `apart_from` are not about the body.
    """
    about = {
        name: value
        for name, value in call.headers.items()
        if not apart_from or not name.startswith(apart_from)
    }
    checks, source, parts = _Checks(about, None), _decoded(call), list[bytes]()
    while data := source.read(READ_BYTES):
        parts.append(data)
        checks.update(data)
        if checks.size > MAX_DOCUMENT_BYTES:
            raise malformed()
    checks.verified(source.trailers if isinstance(source, _AwsChunked) else {})
    return b"".join(parts)


def copy_blob(store: Store, blob: str) -> str:
    """A second blob with the same bytes: a hard link, as blobs never change once written."""
    with new_blob(store) as (copy, path):
        try:
            os.link(store.blob(blob), path)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links, or too many of one file
            with store.blob(blob).open("rb") as source, path.open("wb", buffering=0) as target:
                _append(source, target, 0, os.fstat(source.fileno()).st_size)
        return copy


def cut_blob(store: Store, blob: str, first: int, size: int, algorithm: Algorithm | None) -> Blob:
    """A new blob with `size` bytes of another from `first` on, and their digests."""
    with store.blob(blob).open("rb") as source, new_blob(store) as (copy, path):
        with path.open("wb", buffering=0) as target:
            _append(source, target, first, size)
        md5, checksum = digests(path, algorithm)
        return Blob(copy, size, md5, checksum)


def digests(path: Path, algorithm: Algorithm | None) -> tuple[str, Checksum | None]:
    """MD5 (hex) and one checksum of a file's bytes."""
    md5 = hashlib.md5(usedforsecurity=False)
    digest = algorithm.start() if algorithm else None
    with path.open("rb", buffering=0) as file:
        while data := file.read(READ_BYTES):
            md5.update(data)
            if digest:
                digest.update(data)
    checksum = checksums.of_bytes(algorithm.name, digest) if algorithm and digest else None
    return md5.hexdigest(), checksum


def join_blobs(store: Store, blobs: list[tuple[str, int]]) -> str:
    """A new blob with the bytes of (blob, size) after one another."""
    if len(blobs) == 1:
        return copy_blob(store, blobs[0][0])
    with new_blob(store) as (joined, path), path.open("wb", buffering=0) as target:
        for blob, size in blobs:
            with store.blob(blob).open("rb") as source:
                _append(source, target, 0, size)
        return joined


def _append(source: BinaryIO, target: FileIO, first: int, size: int) -> None:
    """Copy inside the kernel where it can, so that big objects never pass through memory."""
    if hasattr(os, "copy_file_range"):
        try:
            while size > 0:
                done = os.copy_file_range(source.fileno(), target.fileno(), size, first)
                if done == 0:
                    raise _became_shorter()
                first, size = first + done, size - done
            return
        except OSError as exc:
            if isinstance(exc, ConnectionError):
                raise
            # not on this file system: the rest goes through memory
    source.seek(first)
    while size > 0:
        data = source.read(min(size, READ_BYTES))
        if not data:
            raise _became_shorter()
        _write(target, data)
        size -= len(data)


def _write(file: FileIO, data: bytes) -> None:
    """Write all of it: a file takes a part where the disk gets full, and says so the next time."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _became_shorter() -> ConnectionError:
    return ConnectionError("a blob became shorter while it was copied")


class _Checks:
    """Digests of the bytes that pass, and the client's claims to compare them with."""

    def __init__(self, headers: Mapping[str, str], wanted: Algorithm | None) -> None:
        self.size, self.md5 = 0, hashlib.md5(usedforsecurity=False)
        self._md5_claim = _content_md5(headers)
        self._claim = checksums.in_headers(headers)
        self._trailer = checksums.in_trailer(headers.get("x-amz-trailer", ""))
        named = headers.get("x-amz-sdk-checksum-algorithm", "")
        if named and not self._claim and not self._trailer:
            raise S3Error(
                "InvalidRequest",
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* "
                "or x-amz-trailer headers were found.",
            )
        claimed = checksums.ALGORITHMS[self._claim.algorithm] if self._claim else None
        self._algorithm = claimed or self._trailer or wanted
        self._digest = self._algorithm.start() if self._algorithm else None
        sha256 = headers.get("x-amz-content-sha256", "")
        self._sha256_claim = sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else ""
        self._sha256: Digest | None = hashlib.sha256() if self._sha256_claim else None

    def update(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > MAX_PUT_BYTES:
            raise S3Error(
                "EntityTooLarge",
                "Your proposed upload exceeds the maximum allowed size",
                MaxSizeAllowed=MAX_PUT_BYTES,
            )
        self.md5.update(data)
        if self._digest:
            self._digest.update(data)
        if self._sha256:
            self._sha256.update(data)

    def verified(self, trailers: Mapping[str, str]) -> Checksum | None:
        """The checksum to keep, once every claim holds."""
        if self._sha256 and self._sha256.digest().hex() != self._sha256_claim:
            raise S3Error(
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
                ClientComputedContentSHA256=self._sha256_claim,
                S3ComputedContentSHA256=self._sha256.digest().hex(),
            )
        if self._md5_claim not in ("", self.md5.hexdigest()):
            raise S3Error(
                "BadDigest", "The Content-MD5 you specified did not match what we received."
            )
        return self._verified_checksum(trailers)

    def _verified_checksum(self, trailers: Mapping[str, str]) -> Checksum | None:
        claim = self._claim
        if self._trailer:
            claim = checksums.in_headers(trailers)
            if claim is None or claim.algorithm != self._trailer.name:
                raise S3Error(
                    "MalformedTrailerError",
                    "The request contained trailing data that was not well-formed or did not "
                    "conform to our published schema.",
                )
        if self._algorithm is None or self._digest is None:
            return claim
        computed = checksums.of_bytes(self._algorithm.name, self._digest)
        if claim and claim.raw != computed.raw:
            raise S3Error(
                "BadDigest",
                f"The {claim.algorithm} you specified did not match the calculated checksum.",
            )
        return computed


def _content_md5(headers: Mapping[str, str]) -> str:
    """Content-MD5 as hex, or nothing."""
    text = headers.get("content-md5", "")
    if not text:
        return ""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != 16:
        raise S3Error("InvalidDigest", "The Content-MD5 you specified was invalid.")
    return raw.hex()


def _decoded(call: Call) -> Source:
    headers = call.headers
    chunked = "aws-chunked" in headers.get("content-encoding", "") or headers.get(
        "x-amz-content-sha256", ""
    ).startswith("STREAMING-")
    if chunked:
        return _AwsChunked(call.body, headers.get("x-amz-decoded-content-length", ""))
    if "content-length" not in headers and "transfer-encoding" in headers:
        raise S3Error(
            "NotImplemented",
            "A header you provided implies functionality that is not implemented: send "
            "Content-Length instead of Transfer-Encoding",
            501,
            Header="Transfer-Encoding",
        )
    return call.body


class _AwsChunked:
    """Bytes out of `aws-chunked` frames; signatures in them are not looked at.

    https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
    """

    def __init__(self, body: Body, length: str) -> None:
        if not length.isdigit():
            raise S3Error(
                "MissingContentLength", "You must provide the Content-Length HTTP header.", 411
            )
        self.trailers: dict[str, str] = {}
        self._body, self._expected = body, int(length)
        self._chunk_left, self._ended = 0, False

    def read(self, size: int, /) -> bytes:
        if self._chunk_left == 0 and not self._ended:
            self._next_frame()
        if self._ended:
            return b""
        data = self._body.read(min(size, self._chunk_left))
        if not data:
            raise _incomplete()
        self._chunk_left -= len(data)
        self._expected -= len(data)
        if self._chunk_left == 0 and self._line():
            raise _incomplete()
        return data

    def _next_frame(self) -> None:
        line = self._line()
        number = line.partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", number):
            raise _incomplete()
        self._chunk_left = int(number, 16)
        if self._chunk_left == 0:
            self._ended = True
            self._read_trailers()
            if self._expected != 0:
                raise _incomplete()

    def _read_trailers(self) -> None:
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            self.trailers[name.strip().lower()] = value.strip()

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n") and len(line) < 8192 and (more := self._body.readline()):
            line += more  # with Transfer-Encoding: chunked a line may come in pieces
        return line.strip()


def _incomplete() -> S3Error:
    return S3Error(
        "IncompleteBody", "The request body terminated unexpectedly or its chunks do not fit"
    )
