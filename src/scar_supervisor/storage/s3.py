"""S3: ranged parallel GETs, multipart PUTs, never a whole object in memory, checksums."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from scar_supervisor import sigv4
from scar_supervisor.aws import (
    Client,
    Request,
    ServiceError,
    Unreachable,
    regional_host,
    xml_value,
)
from scar_supervisor.contract import StorageProvider
from scar_supervisor.credentials import Credentials, KeySource
from scar_supervisor.faults import Fault, StagingFailed
from scar_supervisor.parallel import for_each
from scar_supervisor.storage import Guard
from scar_supervisor.transport import Body, FilePart, Receive, Reply

PART_BYTES = 8 * 1024 * 1024
SINGLE_PUT_LIMIT_BYTES = 2 * PART_BYTES
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
MOST_PARTS = 10_000
"""S3 takes no more parts in one upload."""


def open_s3(environ: Mapping[str, str]) -> S3:
    """S3 as the environment describes it: endpoint, region, credentials."""
    return S3(Client("s3", environ, Credentials(environ)))


def open_provider(
    name: str, provider: StorageProvider, credentials: KeySource, environ: Mapping[str, str]
) -> S3:
    """A storage provider that speaks S3: another account, or a MinIO server."""
    return S3(Client("s3", environ, credentials, provider=provider), name)


@dataclass(frozen=True)
class Found:
    """A small object: its bytes, and the ETag to replace it by."""

    data: bytes
    etag: str


class S3:
    """A storage provider that speaks S3; `name` is for messages."""

    def __init__(self, client: Client, name: str = "s3") -> None:
        self._client, self._name = client, name
        self._regions: dict[str, str] = {}

    def fetch(self, bucket: str, key: str, path: str, guard: Guard, size: int | None = None) -> int:
        """Copy an object into the new file `path`; its size in bytes. `size`: what it may have.

        Raises StagingFailed where it cannot be read, has no room, or changes while it is read.
        """
        with _Told(self._name, bucket, key):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                return _Download(self._at(bucket, key), descriptor, guard).run(size)
            finally:
                os.close(descriptor)

    def read(self, bucket: str, key: str, start: int, length: int) -> bytes:
        """Some bytes of an object. Raises StagingFailed where they cannot be read."""
        with _Told(self._name, bucket, key):
            headers = {"Range": f"bytes={start}-{start + length - 1}"}
            return self._at(bucket, key).ask("GET", headers=headers).body

    def store(self, bucket: str, key: str, path: str, about: Mapping[str, str]) -> None:
        """Copy the file `path` into an object with `about` as its user metadata.

        Raises StagingFailed where that is refused.
        """
        with _Told(self._name, bucket, key):
            size = os.stat(path).st_size
            if size <= SINGLE_PUT_LIMIT_BYTES:
                self._put(bucket, key, FilePart(path, 0, size), _metadata(about))
            else:
                self._put_in_parts(bucket, key, path, about)

    def holds(self, bucket: str, key: str, path: str, known_by: Mapping[str, str]) -> bool:
        """Whether it is surely there already: the same bytes, with `known_by` in its metadata.

        False too where the object cannot be looked at, or is encrypted so that its ETag is no MD5.
        """
        try:
            headers = self._at(bucket, key).ask("HEAD").headers
        except (ServiceError, Unreachable):
            return False
        told = all(headers.get(f"x-amz-meta-{name}") == value for name, value in known_by.items())
        return told and headers.get("etag", "").strip('"') == _etag(path)

    def load_whole(self, bucket: str, key: str) -> bytes:
        """A small object. Raises StagingFailed where it cannot be read."""
        with _Told(self._name, bucket, key):
            return self._at(bucket, key).ask("GET").body

    def load(self, bucket: str, key: str) -> Found | None:
        """A small object, or None. Raises ServiceError or Unreachable."""
        try:
            reply = self._at(bucket, key).ask("GET")
        except ServiceError as error:
            if error.code == "NoSuchKey":
                return None
            raise
        return Found(reply.body, reply.headers.get("etag", ""))

    def write(
        self, bucket: str, key: str, data: bytes, condition: Mapping[str, str] | None = None
    ) -> str | None:
        """Make an object of `data`, its ETag; None where `condition` (If-Match, …) does not hold.

        Raises ServiceError or Unreachable.
        """
        try:
            return self._put(bucket, key, data, condition or {})
        except ServiceError as error:
            # If-Match on what is not there is answered 404 (S3 user guide, "Conditional writes").
            if error.status == 412 or (condition and error.code == "NoSuchKey"):
                return None
            raise

    def names(self, bucket: str, prefix: str, most: int) -> list[str]:
        """The first keys of ours that start with `prefix`: none has a character to be escaped.

        Raises ServiceError or Unreachable.
        """
        found: list[str] = []
        after = ""
        while len(found) < most:
            query = [("list-type", "2"), ("prefix", prefix)]
            query += [("start-after", after)] if after else []
            text = self._at(bucket, "").ask("GET", tuple(query)).body.decode()
            page = re.findall("<Key>(.*?)</Key>", text)
            found += page
            if xml_value(text, "IsTruncated") != "true" or not page:
                break
            after = page[-1]
        return found[:most]

    def remove(self, bucket: str, keys: Sequence[str]) -> None:
        """Delete objects of ours; that they are gone already is as good.

        Raises ServiceError or Unreachable.
        """
        for start in range(0, len(keys), 1000):  # DeleteObjects takes no more
            some = keys[start : start + 1000]
            listed = "".join(f"<Object><Key>{key}</Key></Object>" for key in some)
            body = f'<Delete xmlns="{_NAMESPACE}"><Quiet>true</Quiet>{listed}</Delete>'.encode()
            headers = {"x-amz-checksum-crc32": _crc32(body)}
            self._at(bucket, "").ask("POST", (("delete", ""),), headers, body)

    def _put(self, bucket: str, key: str, body: Body, headers: Mapping[str, str]) -> str:
        told = {"x-amz-checksum-crc32": _crc32(body), **headers}
        return self._at(bucket, key).ask("PUT", headers=told, body=body).headers.get("etag", "")

    def _put_in_parts(self, bucket: str, key: str, path: str, about: Mapping[str, str]) -> None:
        target = self._at(bucket, key)
        told = {"x-amz-checksum-algorithm": "CRC32", **_metadata(about)}
        created = target.ask("POST", (("uploads", ""),), told)
        upload_id = xml_value(created.body.decode(), "UploadId")
        try:
            self._put_parts(target, upload_id, path)
        except ServiceError as error:
            # Completed, but the answer was lost: the upload is over when it is asked for again.
            if error.code != "NoSuchUpload" or not self.holds(bucket, key, path, about):
                self._abort(target, upload_id)
                raise
        except BaseException:
            self._abort(target, upload_id)
            raise

    def _put_parts(self, target: _Target, upload_id: str, path: str) -> None:
        parts = _parts(path, os.stat(path).st_size)
        sent: dict[int, tuple[str, str]] = {}

        def put(number: int) -> None:
            part = parts[number - 1]
            crc32 = _crc32(part)
            query = (("partNumber", str(number)), ("uploadId", upload_id))
            reply = target.ask("PUT", query, {"x-amz-checksum-crc32": crc32}, part)
            sent[number] = (reply.headers.get("etag", ""), crc32)

        for_each(range(1, len(parts) + 1), put).check()
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>"
            f"<ChecksumCRC32>{crc32}</ChecksumCRC32></Part>"
            for number, (etag, crc32) in sorted(sent.items())
        )
        body = (
            f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{listed}</CompleteMultipartUpload>'
        ).encode()
        reply = target.ask("POST", (("uploadId", upload_id),), body=body)
        # S3 begins its answer before the parts are joined: 200 may still carry an error.
        if b"<Error>" in reply.body:
            raise ServiceError(reply)

    def _abort(self, target: _Target, upload_id: str) -> None:
        try:
            target.ask("DELETE", (("uploadId", upload_id),))
        except (ServiceError, Unreachable):
            # The first fault is what the user must see; a lifecycle rule removes such parts.
            return

    def _at(self, bucket: str, key: str) -> _Target:
        return _Target(self._client, self._regions, bucket, key)


@dataclass(frozen=True)
class _Target:
    """One object, and how to ask its bucket about it."""

    client: Client
    regions: dict[str, str]
    bucket: str
    key: str

    def ask(
        self,
        method: str,
        query: tuple[tuple[str, str], ...] = (),
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
    ) -> Reply:
        """The answer to one request about this object."""
        request = Request(method, "", query, headers or {}, body)
        return self.ask_each_time(lambda: request)

    def ask_each_time(
        self,
        make_request: Callable[[], Request],
        receiver: Callable[[Reply], Receive | None] | None = None,
    ) -> Reply:
        """As `ask`, for a request that is another one when it is sent again."""
        try:
            return self._ask(make_request, receiver)
        except ServiceError as error:
            region = error.headers.get("x-amz-bucket-region")
            if not region or region == self._region or self.client.endpoint:
                raise
            self.regions[self.bucket] = region
            return self._ask(make_request, receiver)

    def _ask(
        self,
        make_request: Callable[[], Request],
        receiver: Callable[[Reply], Receive | None] | None,
    ) -> Reply:
        base_url, path = self._address()
        return self.client.call(
            lambda: replace(make_request(), path=path), base_url, self._region, receiver
        )

    @property
    def _region(self) -> str:
        return self.regions.get(self.bucket) or self.client.region

    def _address(self) -> tuple[str, str]:
        key = sigv4.encode_path(self.key)
        if self.client.endpoint:
            return self.client.endpoint, f"/{self.bucket}/{key}" if key else f"/{self.bucket}"
        host = regional_host("s3", self._region)
        if "." in self.bucket:  # the certificate's wildcard covers one label
            return f"https://{host}", f"/{self.bucket}/{key}"
        return f"https://{self.bucket}.{host}", f"/{key}"


class _Download:
    """Reads one object into an open file."""

    def __init__(self, target: _Target, descriptor: int, guard: Guard) -> None:
        self._target, self._descriptor, self._guard = target, descriptor, guard
        self._etag = ""
        self._first: Reply | None = None

    def run(self, expected: int | None) -> int:
        """Read it all; its size in bytes."""
        # S3 sends checksums with whole answers only, so a small object is not asked for by range.
        small = expected is not None and expected <= PART_BYTES
        try:
            received = self._range(0, None if small else PART_BYTES)
        except ServiceError as error:
            if error.status != 416:
                raise
            return 0  # an empty object has no range
        size = _total_size(self._first, received)
        if size > received:
            starts = range(received, size, PART_BYTES)

            def read(start: int) -> None:
                want = min(PART_BYTES, size - start)
                if self._range(start, want) != want:
                    raise StagingFailed("", "a part of it is shorter than S3 said")

            for_each(starts, read).check()
        return size

    def _range(self, start: int, length: int | None) -> int:
        """Read `length` bytes from `start`; a broken answer is continued where it broke."""
        end = "" if length is None else str(start + length - 1)
        reached = start
        checksum = _Checksum()

        def request() -> Request:
            headers = {"Range": f"bytes={reached}-{end}"} if reached or end else {}
            if self._etag:
                headers["If-Match"] = self._etag
            if reached == 0:
                headers["x-amz-checksum-mode"] = "ENABLED"
            return Request("GET", "", (), headers)

        def receiver(reply: Reply) -> Receive:
            nonlocal reached
            if reply.status == 200:  # the server does not know ranges
                reached = 0
            if reached == 0:
                self._first, self._etag = reply, reply.headers.get("etag", "")
                self._guard.room(_total_size(reply, int(reply.headers.get("content-length", 0))))
            checksum.begin(reply, reached)
            return receive

        def receive(chunk: memoryview) -> None:
            nonlocal reached
            self._guard.time()
            checksum.add(chunk)
            try:
                written = 0
                while written < len(chunk):
                    written += os.pwrite(self._descriptor, chunk[written:], reached + written)
            except OSError as exc:
                raise StagingFailed("", f"cannot write it: {exc.strerror}") from exc
            reached += len(chunk)

        self._target.ask_each_time(request, receiver)
        checksum.check()
        return reached - start


class _Checksum:
    """Checks the whole object's checksum where S3 gives one with the bytes."""

    def __init__(self) -> None:
        self._expected: str | None = None
        self._sha256 = False
        self._crc32 = 0
        self._digest = hashlib.sha256()

    def begin(self, reply: Reply, reached: int) -> None:
        """A new answer starts at byte `reached`; S3 sends checksums with whole objects only."""
        if reached:
            return
        self._crc32, self._digest = 0, hashlib.sha256()
        sha256 = reply.headers.get("x-amz-checksum-sha256")
        expected = sha256 or reply.headers.get("x-amz-checksum-crc32")
        whole = _total_size(reply, -1) in (-1, int(reply.headers.get("content-length", -1)))
        # `-3` at the end: a checksum of three parts' checksums, not of the bytes.
        usable = expected is not None and whole and "-" not in expected
        self._expected = expected if usable else None
        self._sha256 = sha256 is not None

    def add(self, chunk: memoryview) -> None:
        """Count in the next bytes."""
        if self._expected is None:
            return
        if self._sha256:
            self._digest.update(chunk)
        else:
            self._crc32 = binascii.crc32(chunk, self._crc32)

    def check(self) -> None:
        """Raise StagingFailed where the bytes are not those that were stored."""
        if self._expected is None:
            return
        raw = self._digest.digest() if self._sha256 else self._crc32.to_bytes(4, "big")
        if base64.b64encode(raw).decode() != self._expected:
            raise StagingFailed("", "its bytes do not have the checksum that S3 keeps for them")


def _metadata(about: Mapping[str, str]) -> dict[str, str]:
    return {f"x-amz-meta-{name}": value for name, value in about.items()}


def _total_size(reply: Reply | None, otherwise: int) -> int:
    total = reply.headers.get("content-range", "").rpartition("/")[2] if reply else ""
    return int(total) if total.isdigit() else otherwise


def _parts(path: str, size: int) -> list[FilePart]:
    part_size = max(PART_BYTES, -(-size // MOST_PARTS))
    return [
        FilePart(path, offset, min(part_size, size - offset))
        for offset in range(0, size, part_size)
    ]


def _etag(path: str) -> str:
    """The ETag that a file sent by `store` has: of parts, the MD5 of their MD5s."""
    size = os.stat(path).st_size
    if size <= SINGLE_PUT_LIMIT_BYTES:
        return _md5(FilePart(path, 0, size)).hexdigest()
    parts = _parts(path, size)
    both = hashlib.md5(b"".join(_md5(part).digest() for part in parts), usedforsecurity=False)
    return f"{both.hexdigest()}-{len(parts)}"


def _md5(part: FilePart) -> hashlib._Hash:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in part.chunks():
        digest.update(chunk)
    return digest


def _crc32(body: Body) -> str:
    crc = 0
    for chunk in (body,) if isinstance(body, bytes) else body.chunks():
        crc = binascii.crc32(chunk, crc)
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


class _Told:
    """Turns what S3 and the network say into StagingFailed for one object."""

    def __init__(self, provider: str, bucket: str, key: str) -> None:
        self._name = f"{provider}://{bucket}/{key}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, StagingFailed) and not exc.path:
            raise StagingFailed(self._name, exc.why) from exc
        if isinstance(exc, ServiceError):
            if exc.status == 412:
                raise StagingFailed(self._name, "it changed while it was read") from exc
            raise StagingFailed(self._name, str(exc)) from exc
        if isinstance(exc, (Unreachable, OSError, ValueError)) and not isinstance(exc, Fault):
            raise StagingFailed(self._name, str(exc)) from exc
