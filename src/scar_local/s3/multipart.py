"""S3's multipart uploads."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scar_local.s3 import checksums
from scar_local.s3.body import Blob, cut_blob, join_blobs, read_document, receive
from scar_local.s3.call import Call, Element, S3Error, echo, integer, iso, malformed, parse_xml
from scar_local.s3.checksums import ALGORITHMS, Checksum
from scar_local.s3.conditions import byte_range, check_write_conditions
from scar_local.s3.objects import (
    PART_NUMBERS,
    Writer,
    checksum_elements,
    checksum_headers,
    from_source,
    kept_headers,
    tags_of_header,
)
from scar_local.s3.state import (
    Blobs,
    StoredObject,
    Tags,
    checksum_of,
    checksum_text,
    find_bucket,
    find_object,
    tags_of,
)
from scar_local.store import Store

MIN_PART_BYTES = 5 << 20
"""Every part but the last. https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""


@dataclass(frozen=True)
class Upload:
    """A multipart upload in progress."""

    id: str
    bucket: str
    key: str
    headers: Mapping[str, str]
    tags: Tags
    algorithm: str
    """Checksum algorithm, or empty."""
    type: str
    """COMPOSITE or FULL_OBJECT, or empty."""


@dataclass(frozen=True)
class Part:
    """One uploaded part."""

    number: int
    blob: str
    size: int
    md5: str
    checksum: Checksum | None
    modified: int


@dataclass(frozen=True)
class MultipartCalls:
    """The calls. Each answers its exchange or raises S3Error."""

    writer: Writer

    @property
    def _store(self) -> Store:
        return self.writer.store

    def create_multipart_upload(self, call: Call) -> None:
        """CreateMultipartUpload."""
        algorithm, kind = _checksum_choice(call.headers)
        upload = uuid.uuid4().hex
        headers, tags = kept_headers(call.headers), tags_of_header(call.headers)
        with self._store.write() as db:
            find_bucket(db, call.bucket)
            db.execute(
                "INSERT INTO s3_uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (upload, call.bucket, call.key, int(time.time()),
                 json.dumps(headers), json.dumps(tags), algorithm, kind),
            )  # fmt: skip
        chosen = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind}
        call.reply_xml(
            "InitiateMultipartUploadResult",
            [("Bucket", call.bucket), ("Key", echo(call.key)), ("UploadId", upload)],
            chosen if algorithm else {},
        )

    def upload_part(self, call: Call) -> None:
        """UploadPart."""
        number, upload = _part_number(call), find_upload(self._store.read(), call)
        algorithm = ALGORITHMS.get(upload.algorithm)
        blob = receive(call, self._store, algorithm)
        if upload.algorithm and blob.checksum and blob.checksum.algorithm != upload.algorithm:
            self._store.delete_blob(blob.id)
            raise S3Error(
                "InvalidRequest",
                "Checksum Type mismatch occurred, expected checksum Type: "
                f"{upload.algorithm.lower()}, actual checksum Type: "
                f"{blob.checksum.algorithm.lower()}",
            )
        self._keep_part(call, number, blob)
        headers = checksum_headers(blob.checksum)
        headers.pop("x-amz-checksum-type", None)
        call.reply(headers={"ETag": f'"{blob.md5}"', **headers})

    def upload_part_copy(self, call: Call) -> None:
        """UploadPartCopy."""
        number, upload = _part_number(call), find_upload(self._store.read(), call)
        algorithm = ALGORITHMS.get(upload.algorithm)

        def cut(call: Call, source: StoredObject) -> Blob:
            first, size = _copied_bytes(call, source)
            return cut_blob(self._store, source.blob, first, size, algorithm)

        _, blob = from_source(call, self._store, cut)
        self._keep_part(call, number, blob)
        content: list[Element] = [
            ("ETag", f'"{blob.md5}"'),
            ("LastModified", iso(int(time.time()))),
        ]
        call.reply_xml("CopyPartResult", content + checksum_elements(blob.checksum)[:1])

    def complete_multipart_upload(self, call: Call) -> None:
        """CompleteMultipartUpload."""
        document = parse_xml(read_document(call, apart_from=checksums.PREFIX))
        upload = find_upload(self._store.read(), call)
        check_write_conditions(call.headers, find_object(self._store.read(), call.bucket, call.key))
        parts = _chosen_parts(document, _parts(self._store.read(), upload.id), upload)
        checksum = _whole_checksum(call.headers, upload, parts)
        try:
            blob = join_blobs(self._store, [(part.blob, part.size) for part in parts])
        except FileNotFoundError as exc:
            raise S3Error(
                "OperationAborted",
                "A conflicting conditional operation is currently in progress against this "
                "resource. Try again.",
                409,
            ) from exc
        new = _completed(upload, blob, parts, checksum)
        self.writer.commit(
            call,
            new,
            "ObjectCreated:CompleteMultipartUpload",
            lambda db, freed: _forget(db, call, upload.id, freed),
        )
        content: list[Element] = [
            ("Location", f"http://{call.headers.get('host', '')}{call.exchange.path}"),
            ("Bucket", call.bucket),
            ("Key", echo(call.key)),
            ("ETag", f'"{new.etag}"'),
        ]
        call.reply_xml("CompleteMultipartUploadResult", content + checksum_elements(checksum))

    def abort_multipart_upload(self, call: Call) -> None:
        """AbortMultipartUpload."""
        freed: Blobs = []
        with self._store.write() as db:
            _forget(db, call, find_upload(db, call).id, freed)
        self.writer.free(freed)
        call.reply(204)

    def list_parts(self, call: Call) -> None:
        """ListParts."""
        upload = find_upload(self._store.read(), call)
        most = integer(call.query, "max-parts", 1000, 0, 1000)
        marker = integer(call.query, "part-number-marker", 0, 0, 1 << 31)
        after = [part for part in _parts(self._store.read(), upload.id) if part.number > marker]
        shown = after[:most]
        content: list[Element] = [
            ("Bucket", call.bucket),
            ("Key", echo(call.key)),
            ("UploadId", upload.id),
            ("PartNumberMarker", marker),
            ("NextPartNumberMarker", shown[-1].number if shown else 0),
            ("MaxParts", most),
            ("IsTruncated", len(after) > len(shown)),
            ("StorageClass", upload.headers.get("x-amz-storage-class", "STANDARD")),
        ]
        if upload.algorithm:
            content += [("ChecksumAlgorithm", upload.algorithm), ("ChecksumType", upload.type)]
        content += [("Part", _part_elements(part)) for part in shown]
        call.reply_xml("ListPartsResult", content)

    def _keep_part(self, call: Call, number: int, blob: Blob) -> None:
        try:
            with self._store.write() as db:
                upload = find_upload(db, call)
                old = db.execute(
                    "SELECT blob FROM s3_parts WHERE upload = ? AND number = ?", (upload.id, number)
                ).fetchone()
                db.execute(
                    "INSERT OR REPLACE INTO s3_parts VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (upload.id, number, blob.id, blob.size, blob.md5,
                     checksum_text(blob.checksum), int(time.time())),
                )  # fmt: skip
        except BaseException:
            self._store.delete_blob(blob.id)
            raise
        self.writer.free([old["blob"]] if old else [])


def find_upload(db: sqlite3.Connection, call: Call) -> Upload:
    """The upload of `uploadId`, bucket and key. Raises S3Error NoSuchUpload."""
    find_bucket(db, call.bucket)
    row = db.execute(
        "SELECT * FROM s3_uploads WHERE id = ? AND bucket = ? AND key = ?",
        (call.query["uploadId"], call.bucket, call.key),
    ).fetchone()
    if row is None:
        raise S3Error(
            "NoSuchUpload",
            "The specified upload does not exist. The upload ID may be invalid, or the upload may "
            "have been aborted or completed.",
            404,
            UploadId=call.query["uploadId"],
        )
    return Upload(
        row["id"],
        row["bucket"],
        row["key"],
        json.loads(row["headers"]),
        tags_of(row["tags"]),
        row["algorithm"],
        row["type"],
    )


def forget_uploads(db: sqlite3.Connection, bucket: str, freed: Blobs) -> None:
    """Drop the uploads in progress of a bucket that goes away."""
    uploads = [
        row[0] for row in db.execute("SELECT id FROM s3_uploads WHERE bucket = ?", (bucket,))
    ]
    for upload in uploads:
        _drop(db, upload, freed)


def _forget(db: sqlite3.Connection, call: Call, upload: str, freed: Blobs) -> None:
    find_upload(db, call)  # somebody may have completed or aborted it meanwhile
    _drop(db, upload, freed)


def _drop(db: sqlite3.Connection, upload: str, freed: Blobs) -> None:
    freed += [row[0] for row in db.execute("SELECT blob FROM s3_parts WHERE upload = ?", (upload,))]
    db.execute("DELETE FROM s3_parts WHERE upload = ?", (upload,))
    db.execute("DELETE FROM s3_uploads WHERE id = ?", (upload,))


def _checksum_choice(headers: Mapping[str, str]) -> tuple[str, str]:
    name, kind = headers.get("x-amz-checksum-algorithm", ""), headers.get("x-amz-checksum-type", "")
    if not name:
        if kind:
            raise S3Error(
                "InvalidRequest",
                "The x-amz-checksum-type header can only be used with the "
                "x-amz-checksum-algorithm header.",
            )
        return "", ""
    algorithm = checksums.named(name)
    kind = kind or algorithm.default_type
    refused = (
        kind not in ("COMPOSITE", "FULL_OBJECT")
        or (kind == "FULL_OBJECT" and not algorithm.polynomial)
        or (kind == "COMPOSITE" and algorithm.default_type == "FULL_OBJECT")
    )
    if refused:
        raise S3Error(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {algorithm.name.lower()} "
            "checksum algorithm.",
        )
    return algorithm.name, kind


def _part_number(call: Call) -> int:
    text = call.query.get("partNumber", "")
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10000):
        raise S3Error(
            "InvalidArgument", PART_NUMBERS, ArgumentName="partNumber", ArgumentValue=text
        )
    return int(text)


def _copied_bytes(call: Call, source: StoredObject) -> tuple[int, int]:
    header = call.headers.get("x-amz-copy-source-range", "")
    if not header:
        return 0, source.size
    span = byte_range(header, source.size)
    if span is None or header.startswith("bytes=-") or header.endswith("-"):
        raise S3Error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first "
            "and last are the zero-based offsets of the first and last bytes to copy",
        )
    if int(header.rpartition("-")[2]) >= source.size:
        raise S3Error(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {source.size}",
        )
    return span


def _parts(db: sqlite3.Connection, upload: str) -> list[Part]:
    rows = db.execute("SELECT * FROM s3_parts WHERE upload = ? ORDER BY number", (upload,))
    return [
        Part(
            row["number"],
            row["blob"],
            row["size"],
            row["md5"],
            checksum_of(row["checksum"]),
            row["modified"],
        )
        for row in rows
    ]


def _chosen_parts(document: ET.Element, uploaded: Sequence[Part], upload: Upload) -> list[Part]:
    """The parts the client names, checked as S3 does."""
    named = document.findall("Part")
    if document.tag != "CompleteMultipartUpload" or not named:
        raise malformed()
    by_number = {part.number: part for part in uploaded}
    chosen: list[Part] = []
    for element in named:
        part = _checked_part(element, by_number, upload)
        if chosen and part.number <= chosen[-1].number:
            raise S3Error(
                "InvalidPartOrder",
                "The list of parts was not in ascending order. "
                "Parts must be ordered by part number.",
            )
        chosen.append(part)
    for part in chosen[:-1]:
        if part.size < MIN_PART_BYTES:
            raise S3Error(
                "EntityTooSmall",
                "Your proposed upload is smaller than the minimum allowed size",
                ETag=part.md5,
                MinSizeAllowed=MIN_PART_BYTES,
                PartNumber=part.number,
                ProposedSize=part.size,
            )
    return chosen


def _checked_part(element: ET.Element, uploaded: Mapping[int, Part], upload: Upload) -> Part:
    number, etag = element.findtext("PartNumber", ""), element.findtext("ETag", "").strip()
    if not number.strip().isdigit() or not etag:
        raise malformed()
    part = uploaded.get(int(number))
    claimed = element.findtext(f"Checksum{upload.algorithm}") if upload.algorithm else None
    wrong_checksum = claimed and part and part.checksum and claimed != part.checksum.value
    if part is None or part.md5 != etag.strip('"') or wrong_checksum:
        raise S3Error(
            "InvalidPart",
            "One or more of the specified parts could not be found. The part may not have been "
            "uploaded, or the specified entity tag may not match the part's entity tag.",
            UploadId=upload.id,
            PartNumber=number,
            ETag=etag,
        )
    if upload.type == "COMPOSITE" and not claimed:
        raise S3Error(
            "InvalidRequest",
            f"The upload was created using a {upload.algorithm.lower()} checksum. The complete "
            f"request must include the checksum for each part. It was missing for part {number} "
            "in the request.",
        )
    return part


def _whole_checksum(
    headers: Mapping[str, str], upload: Upload, parts: Sequence[Part]
) -> Checksum | None:
    size = headers.get("x-amz-mp-object-size", "")
    if size and size != str(sum(part.size for part in parts)):
        raise S3Error(
            "InvalidRequest",
            "The provided 'x-amz-mp-object-size' header does not match what was computed.",
        )
    known = [part.checksum for part in parts if part.checksum]
    if not upload.algorithm or len(known) < len(parts):
        return None
    if upload.type == "COMPOSITE":
        computed = checksums.composite(known)
    else:
        pairs = [(part.checksum, part.size) for part in parts if part.checksum]
        computed = checksums.combined(ALGORITHMS[upload.algorithm], pairs)
    claim = headers.get(f"x-amz-checksum-{upload.algorithm.lower()}", "").partition("-")[0]
    if claim and computed and claim != computed.value.partition("-")[0]:
        raise S3Error(
            "BadDigest",
            f"The {upload.algorithm.lower()} you specified did not match the calculated checksum.",
        )
    return computed


def _completed(
    upload: Upload, blob: str, parts: Sequence[Part], checksum: Checksum | None
) -> StoredObject:
    md5s = hashlib.md5(b"".join(bytes.fromhex(p.md5) for p in parts), usedforsecurity=False)
    return StoredObject(
        bucket=upload.bucket,
        key=upload.key,
        blob=blob,
        size=sum(part.size for part in parts),
        etag=f"{md5s.hexdigest()}-{len(parts)}",
        modified=int(time.time()),
        headers=upload.headers,
        tags=upload.tags,
        checksum=checksum,
        part_sizes=tuple(part.size for part in parts),
    )


def _part_elements(part: Part) -> list[Element]:
    content: list[Element] = [
        ("PartNumber", part.number),
        ("LastModified", iso(part.modified)),
        ("ETag", f'"{part.md5}"'),
        ("Size", part.size),
    ]
    return content + checksum_elements(part.checksum)[:1]
