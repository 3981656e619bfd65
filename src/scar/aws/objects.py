"""S3: the objects of a bucket, each call safe in many threads at once."""

from __future__ import annotations

import base64
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from scar.aws.account import Account
from scar.aws.errors import is_absent, speaking_to
from scar.errors import CloudError

PAGE = 1000
"""The most objects in one answer of ListObjectsV2."""

_READ_BYTES = 1 << 20
_ATTEMPTS = 5
"""To read one body; botocore itself tries again only until the body begins."""

_BROKEN_BODY = frozenset(
    {
        "ConnectionClosedError",
        "FlexibleChecksumError",
        "IncompleteReadError",
        "ReadTimeoutError",
        "ResponseStreamingError",
    }
)
_WAITS_FOR_CONSENT_BYTES = 1 << 20
"""From here on a body waits for `100 Continue`: below, the wait costs more than the body."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object."""

    key: str
    size_bytes: int
    modified: datetime
    etag: str
    """Without its quotes."""
    version_id: str = ""
    """Empty in a bucket without versions, and of an object from before it had them."""


@dataclass(frozen=True)
class Part:
    """One uploaded part."""

    number: int
    """From 1."""
    etag: str
    crc32: str
    """Base64; S3 has computed the same."""


def objects(account: Account, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    """Every object whose key starts with `prefix`, in the order of S3: of the keys' UTF-8 bytes.

    Asks for a page when it is needed. Raises CloudError; the code is NoSuchBucket where there is
    no such bucket.
    """
    its, after = Objects(account, bucket), ""
    while True:
        found, more = its.page(prefix, after)
        yield from found
        if not more:
            return
        after = found[-1].key


def latest(account: Account, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    """As `objects`, with the version of each where the bucket has versions.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/list-obj-version-enabled-bucket.html
    """
    client = account.client("s3")
    with speaking_to("s3"):
        status = client.get_bucket_versioning(Bucket=bucket).get("Status")
    if status != "Enabled":
        yield from objects(account, bucket, prefix)
        return
    with speaking_to("s3"):
        pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Versions", []):
                if item["IsLatest"]:
                    version_id = item["VersionId"] if item["VersionId"] != "null" else ""
                    yield replace(_info(item), version_id=version_id)


def _info(item: Any) -> ObjectInfo:
    return ObjectInfo(item["Key"], item["Size"], item["LastModified"], item["ETag"].strip('"'))


class Objects:
    """The objects of one bucket. Every method raises CloudError where S3 says no."""

    def __init__(self, account: Account, bucket: str) -> None:
        self._client, self._bucket = account.client("s3"), bucket
        self._lock = threading.Lock()
        self._open: dict[str, str] = {}
        for operation in ("PutObject", "UploadPart"):
            self._client.meta.events.register_last(
                f"before-sign.s3.{operation}", _as_bytes, unique_id=f"scar-{operation}"
            )

    def page(self, prefix: str, after: str, most: int = PAGE) -> tuple[list[ObjectInfo], bool]:
        """Objects whose key starts with `prefix` and sorts after `after`, and whether more follow.

        At most `most`, and 1000.
        """
        start: Any = {"StartAfter": after} if after else {}
        with speaking_to("s3"):
            page = self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, MaxKeys=most, **start
            )
        return [_info(item) for item in page.get("Contents", [])], page["IsTruncated"]

    def head(self, key: str, version_id: str = "") -> tuple[ObjectInfo, Mapping[str, str]] | None:
        """An object, or one version of it, and its metadata; None where it is not there."""
        version: Any = {"VersionId": version_id} if version_id else {}
        try:
            with speaking_to("s3"):
                its = self._client.head_object(Bucket=self._bucket, Key=key, **version)
        except CloudError as exc:
            if not is_absent(exc):
                raise
            return None
        found = _info({**its, "Key": key, "Size": its["ContentLength"]})
        its_id = its.get("VersionId", "")
        return replace(found, version_id=its_id if its_id != "null" else ""), its["Metadata"]

    def load(self, key: str) -> bytes:
        """A small object, whole. The code of CloudError is NoSuchKey where it is not there."""
        data = bytearray()

        def write(piece: bytes, offset: int) -> None:
            data[offset:] = piece

        self.fetch(key, write)
        return bytes(data)

    def remove(self, keys: Sequence[str]) -> None:
        """Delete objects; that one is gone already is as good."""
        for start in range(0, len(keys), PAGE):
            wanted: Any = [{"Key": key} for key in keys[start : start + PAGE]]
            with speaking_to("s3"):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": wanted, "Quiet": True}
                )
            for fault in answer.get("Errors", []):
                raise CloudError(
                    "s3", "DeleteObjects", fault["Code"], f"{fault['Key']}: {fault['Message']}"
                )

    def store(self, key: str, content: bytes) -> None:
        """Make an object of `content`, at most 5 GiB."""
        with speaking_to("s3"):
            self._client.put_object(
                Bucket=self._bucket, Key=key, Body=content, ChecksumCRC32=_crc32(content)
            )

    def begin(self, key: str) -> str:
        """Begin an object that comes in parts; gives its upload id. End it, or abort it."""
        with speaking_to("s3"):
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=key, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
            )
        with self._lock:
            self._open[answer["UploadId"]] = key
        return answer["UploadId"]

    def store_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
        """Upload part `number`, from 1."""
        crc32 = _crc32(content)
        with speaking_to("s3"):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload,
                PartNumber=number,
                Body=content,
                ChecksumCRC32=crc32,
            )
        return Part(number, answer["ETag"], crc32)

    def end(self, key: str, upload: str, parts: list[Part], size_bytes: int) -> None:
        """Make the object of its parts; S3 compares the size and the parts' checksums."""
        told: Any = [
            {"PartNumber": part.number, "ETag": part.etag, "ChecksumCRC32": part.crc32}
            for part in parts
        ]
        with speaking_to("s3"):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": told},
                ChecksumType="FULL_OBJECT",
                MpuObjectSize=size_bytes,
            )
        with self._lock:
            self._open.pop(upload)

    def abort(self, upload: str) -> None:
        """Give up an upload and its parts. That it is gone already is as good."""
        with self._lock:
            key = self._open.pop(upload, None)
        if key is None:
            return
        try:
            with speaking_to("s3"):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except CloudError as exc:
            if exc.code != "NoSuchUpload":
                raise

    def abort_all(self) -> None:
        """Give up every upload that has begun and not ended."""
        with self._lock:
            left = list(self._open)
        for upload in left:
            self.abort(upload)

    def fetch(self, key: str, write: Callable[[bytes, int], None]) -> int:
        """Hand the whole object to `write(data, offset)`, from the start again after a break.

        Gives its size in bytes.
        """
        return self._fetch({"Key": key}, 0, write)

    def fetch_range(
        self, info: ObjectInfo, first: int, size: int, write: Callable[[bytes, int], None]
    ) -> int:
        """Hand `size` bytes from `first` on to `write(data, offset)`.

        The code of CloudError is PreconditionFailed where the object is another one by now.
        """
        asked = {
            "Key": info.key,
            "Range": f"bytes={first}-{first + size - 1}",
            "IfMatch": f'"{info.etag}"',
        }
        return self._fetch(asked, first, write)

    def _fetch(self, asked: Any, first: int, write: Callable[[bytes, int], None]) -> int:
        for attempt in range(1, _ATTEMPTS + 1):
            offset = first
            try:
                with speaking_to("s3"):
                    body = self._client.get_object(Bucket=self._bucket, **asked)["Body"]
                    while data := body.read(_READ_BYTES):
                        write(data, offset)
                        offset += len(data)
            except CloudError as exc:
                if exc.code not in _BROKEN_BODY or attempt == _ATTEMPTS:
                    raise
            else:
                break
        return offset - first


def _crc32(content: bytes) -> str:
    """As S3 writes it. Where botocore computes it, the body goes through `aws-chunked`, slowly."""
    return base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()


def _as_bytes(request: Any, **_: Any) -> None:
    """Send a body whole: botocore has made a file of it, which travels 16 KiB at a time."""
    body = request.data
    if hasattr(body, "getvalue"):
        request.data = content = body.getvalue()
        if len(content) < _WAITS_FOR_CONSENT_BYTES:
            del request.headers["Expect"]
