"""Listings: objects (v1, v2, versions), uploads; in the order of the keys' UTF-8 bytes."""

from __future__ import annotations

import base64
import binascii
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from scar_local.s3.call import OWNER_ID, Call, Element, S3Error, integer, iso, url_encoded
from scar_local.s3.state import StoredObject, find_bucket, object_of
from scar_local.store import Store

Entry: TypeAlias = "StoredObject | str"
"""An object, or a common prefix."""

OWNER: Element = ("Owner", [("ID", OWNER_ID), ("DisplayName", "local")])


@dataclass(frozen=True)
class _Page:
    """What one listing request asks for, and how to write it."""

    prefix: str
    delimiter: str
    most: int
    write: Callable[[str], str]
    encoding: list[Element]

    @classmethod
    def of(cls, query: Mapping[str, str], most: str) -> _Page:
        encoding = query.get("encoding-type", "")
        if encoding not in ("", "url"):
            raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request")
        return cls(
            query.get("prefix", ""),
            query.get("delimiter", ""),
            integer(query, most, 1000, 0, 1000),
            url_encoded if encoding else str,
            [("EncodingType", encoding)] if encoding else [],
        )

    def entries(self, db: sqlite3.Connection, bucket: str, start: str) -> tuple[list[Entry], bool]:
        """One page of entries, and whether more follow."""
        if self.most == 0:
            return [], False
        found = list(islice(entries(db, bucket, self.prefix, self.delimiter, start), self.most + 1))
        return found[: self.most], len(found) > self.most

    def common_prefixes(self, found: list[Entry]) -> list[Element]:
        return [
            ("CommonPrefixes", [("Prefix", self.write(entry))])
            for entry in found
            if isinstance(entry, str)
        ]

    def head(self, bucket: str) -> list[Element]:
        content: list[Element] = [("Name", bucket), ("Prefix", self.write(self.prefix))]
        if self.delimiter:
            content.append(("Delimiter", self.write(self.delimiter)))
        return [*content, ("MaxKeys", self.most), *self.encoding]


@dataclass(frozen=True)
class ListCalls:
    """The calls. Each answers its exchange or raises S3Error."""

    store: Store

    def list_objects(self, call: Call) -> None:
        """ListObjects (version 1)."""
        db, page = self._open(call, "max-keys")
        marker = call.query.get("marker", "")
        found, more = page.entries(
            db, call.bucket, start_after(marker, page.prefix, page.delimiter)
        )
        content = [*page.head(call.bucket), ("Marker", page.write(marker)), ("IsTruncated", more)]
        if more and page.delimiter:
            last = found[-1]
            name = last if isinstance(last, str) else last.key
            content.append(("NextMarker", page.write(name)))
        content += [
            ("Contents", [*_object_elements(entry, page.write), OWNER])
            for entry in found
            if isinstance(entry, StoredObject)
        ]
        call.reply_xml("ListBucketResult", content + page.common_prefixes(found))

    def list_objects_v2(self, call: Call) -> None:
        """ListObjectsV2."""
        db, page = self._open(call, "max-keys")
        token, after = call.query.get("continuation-token"), call.query.get("start-after", "")
        start = start_after(after, page.prefix, page.delimiter) if token is None else _start(token)
        found, more = page.entries(db, call.bucket, start)
        content = [*page.head(call.bucket), ("KeyCount", len(found)), ("IsTruncated", more)]
        if token is not None:
            content.append(("ContinuationToken", token))
        if more:
            content.append(("NextContinuationToken", _token(following(found[-1]))))
        if after:
            content.append(("StartAfter", page.write(after)))
        owner = [OWNER] if call.query.get("fetch-owner") == "true" else []
        content += [
            ("Contents", [*_object_elements(entry, page.write), *owner])
            for entry in found
            if isinstance(entry, StoredObject)
        ]
        call.reply_xml("ListBucketResult", content + page.common_prefixes(found))

    def list_object_versions(self, call: Call) -> None:
        """ListObjectVersions: each object has the one version `null`."""
        db, page = self._open(call, "max-keys")
        marker = call.query.get("key-marker", "")
        found, more = page.entries(
            db, call.bucket, start_after(marker, page.prefix, page.delimiter)
        )
        content = [
            *page.head(call.bucket),
            ("KeyMarker", page.write(marker)),
            ("IsTruncated", more),
        ]
        if more:
            last = found[-1]
            name = last if isinstance(last, str) else last.key
            content += [("NextKeyMarker", page.write(name)), ("NextVersionIdMarker", "null")]
        content += [
            ("Version", [("VersionId", "null"), ("IsLatest", True),
                         *_object_elements(entry, page.write), OWNER])
            for entry in found
            if isinstance(entry, StoredObject)
        ]  # fmt: skip
        call.reply_xml("ListVersionsResult", content + page.common_prefixes(found))

    def list_multipart_uploads(self, call: Call) -> None:
        """ListMultipartUploads."""
        db, page = self._open(call, "max-uploads")
        key_marker = call.query.get("key-marker", "")
        id_marker = call.query.get("upload-id-marker", "") if key_marker else ""
        rows = db.execute(
            "SELECT key, id, created FROM s3_uploads WHERE bucket = ? ORDER BY key, created, id",
            (call.bucket,),
        ).fetchall()
        found = list(islice(_uploads(rows, page, key_marker, id_marker), page.most + 1))
        shown, more = found[: page.most], len(found) > page.most
        content: list[Element] = [
            ("Bucket", call.bucket),
            ("KeyMarker", page.write(key_marker)),
            ("UploadIdMarker", id_marker),
            ("Prefix", page.write(page.prefix)),
            ("MaxUploads", page.most),
            ("IsTruncated", more),
            *page.encoding,
        ]
        if page.delimiter:
            content.append(("Delimiter", page.write(page.delimiter)))
        if more and shown:
            last = shown[-1]
            name, upload = (last, "") if isinstance(last, str) else (last["key"], last["id"])
            content += [("NextKeyMarker", page.write(name)), ("NextUploadIdMarker", upload)]
        initiator: Element = ("Initiator", [("ID", OWNER_ID), ("DisplayName", "local")])
        content += [
            ("Upload", [("Key", page.write(row["key"])), ("UploadId", row["id"]), initiator, OWNER,
                        ("StorageClass", "STANDARD"), ("Initiated", iso(row["created"]))])
            for row in shown
            if not isinstance(row, str)
        ]  # fmt: skip
        content += [
            ("CommonPrefixes", [("Prefix", page.write(name))])
            for name in shown
            if isinstance(name, str)
        ]
        call.reply_xml("ListMultipartUploadsResult", content)

    def _open(self, call: Call, most: str) -> tuple[sqlite3.Connection, _Page]:
        db = self.store.read()
        find_bucket(db, call.bucket)
        return db, _Page.of(call.query, most)


def entries(
    db: sqlite3.Connection, bucket: str, prefix: str, delimiter: str, start: str
) -> Iterator[Entry]:
    """Objects and common prefixes from `start` on, `start` included.

    A common prefix costs one look-up, however many keys are under it.
    """
    start, end = max(start, prefix), successor(prefix)
    query = "SELECT * FROM s3_objects WHERE bucket = ? AND key >= ?"
    query += " AND key < ? ORDER BY key" if end else " ORDER BY key"
    while True:
        rows = db.execute(query, (bucket, start, end) if end else (bucket, start))
        for row in rows:
            rolled = _common_prefix(row["key"], prefix, delimiter)
            if rolled:
                rows.close()
                yield rolled
                break
            yield object_of(row)
        else:
            return
        start = successor(rolled)
        if not start:
            return


def successor(prefix: str) -> str:
    """The first string after all that start with `prefix`; "" when there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return ""
    last = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if last == 0xD800 else last)


def start_after(marker: str, prefix: str, delimiter: str) -> str:
    """Where a listing starts that goes on after `marker`, which may be a common prefix."""
    if not marker:
        return ""
    if _common_prefix(marker, prefix, delimiter) == marker:
        return successor(marker)
    return marker + "\0"


def following(entry: Entry) -> str:
    """Where a listing goes on after `entry`."""
    return successor(entry) if isinstance(entry, str) else entry.key + "\0"


def _common_prefix(key: str, prefix: str, delimiter: str) -> str:
    """What `key` is rolled up to, or nothing."""
    if not delimiter or not key.startswith(prefix):
        return ""
    at = key.find(delimiter, len(prefix))
    return key[: at + len(delimiter)] if at >= 0 else ""


def _token(start: str) -> str:
    return base64.urlsafe_b64encode(start.encode()).decode()


def _start(token: str) -> str:
    try:
        return base64.b64decode(token, b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as exc:
        raise S3Error(
            "InvalidArgument",
            "The continuation token provided is incorrect",
            ArgumentName="continuation-token",
        ) from exc


def _object_elements(found: StoredObject, write: Callable[[str], str]) -> list[Element]:
    content: list[Element] = [
        ("Key", write(found.key)),
        ("LastModified", iso(found.modified)),
        ("ETag", f'"{found.etag}"'),
        ("Size", found.size),
        ("StorageClass", found.storage_class),
    ]
    if found.checksum:
        content += [
            ("ChecksumAlgorithm", found.checksum.algorithm),
            ("ChecksumType", found.checksum.type),
        ]
    return content


def _uploads(
    rows: list[sqlite3.Row], page: _Page, key_marker: str, id_marker: str
) -> Iterator[sqlite3.Row | str]:
    """Uploads and common prefixes after the markers."""
    start, past_marker, rolled = start_after(key_marker, page.prefix, page.delimiter), False, ""
    for row in rows:
        key = row["key"]
        if id_marker and key == key_marker:
            if past_marker and key.startswith(page.prefix):
                yield row
            past_marker = past_marker or row["id"] == id_marker
            continue
        if key < start or not key.startswith(page.prefix):
            continue
        common = _common_prefix(key, page.prefix, page.delimiter)
        if not common:
            yield row
        elif common != rolled:
            rolled = common
            yield common
