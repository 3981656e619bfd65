"""The tables of S3, and rows as values."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from scar_local.s3.call import S3Error
from scar_local.s3.checksums import Checksum

SCHEMA = """
CREATE TABLE IF NOT EXISTS s3_buckets (
    name TEXT PRIMARY KEY, region TEXT NOT NULL, created INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS s3_documents (
    bucket TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (bucket, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS s3_objects (
    bucket TEXT NOT NULL, key TEXT NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL,
    etag TEXT NOT NULL, modified INTEGER NOT NULL, headers TEXT NOT NULL, tags TEXT NOT NULL,
    checksum TEXT NOT NULL, parts TEXT NOT NULL, PRIMARY KEY (bucket, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS s3_uploads (
    id TEXT PRIMARY KEY, bucket TEXT NOT NULL, key TEXT NOT NULL, created INTEGER NOT NULL,
    headers TEXT NOT NULL, tags TEXT NOT NULL, algorithm TEXT NOT NULL, type TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS s3_parts (
    upload TEXT NOT NULL, number INTEGER NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL,
    md5 TEXT NOT NULL, checksum TEXT NOT NULL, modified INTEGER NOT NULL,
    PRIMARY KEY (upload, number)
) WITHOUT ROWID;
"""

Blobs: TypeAlias = list[str]
Tags: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StoredBucket:
    """A bucket."""

    name: str
    region: str
    created: int
    """Seconds since the epoch."""


@dataclass(frozen=True)
class StoredObject:
    """An object: its row."""

    bucket: str
    key: str
    blob: str
    size: int
    etag: str
    """Without quotes; `<hex>-<parts>` after a multipart upload."""
    modified: int
    """Seconds since the epoch."""
    headers: Mapping[str, str]
    tags: Tags = ()
    checksum: Checksum | None = None
    part_sizes: tuple[int, ...] = ()
    """Bytes of each part, where it was a multipart upload."""

    @property
    def storage_class(self) -> str:
        """STANDARD where the client named none."""
        return self.headers.get("x-amz-storage-class", "STANDARD")


def find_bucket(db: sqlite3.Connection, name: str) -> StoredBucket:
    """A bucket. Raises S3Error NoSuchBucket."""
    row = db.execute("SELECT name, region, created FROM s3_buckets WHERE name = ?", (name,))
    found = row.fetchone()
    if found is None:
        raise S3Error("NoSuchBucket", "The specified bucket does not exist", 404, BucketName=name)
    return StoredBucket(*found)


def find_object(db: sqlite3.Connection, bucket: str, key: str) -> StoredObject | None:
    """An object, or None."""
    row = db.execute(
        "SELECT * FROM s3_objects WHERE bucket = ? AND key = ?", (bucket, key)
    ).fetchone()
    return None if row is None else object_of(row)


def object_of(row: sqlite3.Row) -> StoredObject:
    """The object of a row."""
    return StoredObject(
        bucket=row["bucket"],
        key=row["key"],
        blob=row["blob"],
        size=row["size"],
        etag=row["etag"],
        modified=row["modified"],
        headers=json.loads(row["headers"]),
        tags=tags_of(row["tags"]),
        checksum=checksum_of(row["checksum"]),
        part_sizes=tuple(json.loads(row["parts"])) if row["parts"] else (),
    )


def put_object(db: sqlite3.Connection, new: StoredObject) -> None:
    """Insert or replace an object's row."""
    db.execute(
        "INSERT OR REPLACE INTO s3_objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            new.bucket,
            new.key,
            new.blob,
            new.size,
            new.etag,
            new.modified,
            json.dumps(dict(new.headers)),
            json.dumps(new.tags) if new.tags else "",
            checksum_text(new.checksum),
            json.dumps(new.part_sizes) if new.part_sizes else "",
        ),
    )


def delete_object(db: sqlite3.Connection, bucket: str, key: str) -> None:
    """Remove an object's row."""
    db.execute("DELETE FROM s3_objects WHERE bucket = ? AND key = ?", (bucket, key))


def tags_of(text: str) -> Tags:
    """Tags out of a column."""
    return tuple((key, value) for key, value in json.loads(text)) if text else ()


def checksum_of(text: str) -> Checksum | None:
    """A checksum out of a column."""
    return Checksum(*text.split(" ")) if text else None


def checksum_text(checksum: Checksum | None) -> str:
    """A checksum for a column."""
    return f"{checksum.algorithm} {checksum.value} {checksum.type}" if checksum else ""
