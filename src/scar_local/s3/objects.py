"""S3's calls on single objects: put, get, head, copy, delete, tags."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from urllib.parse import parse_qsl, unquote

from scar_local.events import CreatedObject
from scar_local.s3 import checksums
from scar_local.s3.body import (
    MAX_PUT_BYTES,
    Blob,
    copy_blob,
    digests,
    new_blob,
    read_document,
    receive,
)
from scar_local.s3.call import Call, Element, Elements, S3Error, echo, iso, malformed, parse_xml
from scar_local.s3.checksums import Algorithm, Checksum
from scar_local.s3.conditions import (
    byte_range,
    check_read_conditions,
    check_write_conditions,
    precondition_failed,
)
from scar_local.s3.state import (
    Blobs,
    StoredObject,
    delete_object,
    find_bucket,
    find_object,
    put_object,
)
from scar_local.store import Store

_KEPT = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-website-redirect-location",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-storage-class",
)
"""Request headers that come back with the object, beside x-amz-meta-*."""

_OVERRIDES = (
    "content-type",
    "content-language",
    "expires",
    "cache-control",
    "content-disposition",
    "content-encoding",
)
"""Answer headers that `response-*` query parameters replace."""

PART_NUMBERS = "Part number must be an integer between 1 and 10000, inclusive"

OnCreated = Callable[[sqlite3.Connection, CreatedObject], None]


class Writer:
    """The one way objects change: checked, committed with the event, tidied up."""

    def __init__(
        self, store: Store, on_created: OnCreated, after_commit: Callable[[], None]
    ) -> None:
        self.store, self._on_created, self._after_commit = store, on_created, after_commit

    def commit(
        self,
        call: Call,
        new: StoredObject,
        event: str,
        also: Callable[[sqlite3.Connection, Blobs], None] = lambda _db, _blobs: None,
    ) -> None:
        """Make `new` the object of its key. `also` adds to the transaction and to what it frees.

        Takes `new.blob` over: it is removed where the transaction fails, and only then. Raises
        S3Error when the bucket is gone or a condition (If-Match, If-None-Match) does not hold.
        """
        freed: Blobs = []
        try:
            with self.store.write() as db:
                find_bucket(db, new.bucket)
                old = find_object(db, new.bucket, new.key)
                check_write_conditions(call.headers, old)
                also(db, freed)
                put_object(db, new)
                if old:
                    freed.append(old.blob)
                self._on_created(db, happened(call, event, new))
        except BaseException:
            self.store.delete_blob(new.blob)
            raise
        self._after_commit()
        self.free(freed)

    def deposit(self, db: sqlite3.Connection, bucket: str, key: str, data: bytes) -> bool:
        """Make a new key an object within an open transaction; False: there is no such bucket."""
        try:
            region = find_bucket(db, bucket).region
        except S3Error:
            return False
        with new_blob(self.store) as (blob, path):
            path.write_bytes(data)
            md5, _ = digests(path, None)
            now = time.time()
            headers = {"content-type": "application/json"}
            new = StoredObject(bucket, key, blob, len(data), md5, int(now), headers)
            put_object(db, new)
            self._on_created(
                db,
                CreatedObject(
                    bucket, key, "ObjectCreated:Put", region, len(data), md5,
                    secrets.token_hex(8).upper(), "127.0.0.1", now,
                ),
            )  # fmt: skip
        return True

    def delete(self, call: Call, key: str, etag: str = "") -> None:
        """Remove an object; none there is fine, as on S3. Raises S3Error for another ETag."""
        freed: Blobs = []
        with self.store.write() as db:
            old = find_object(db, call.bucket, key)
            if etag:
                check_write_conditions({"if-match": etag}, old)
            if old:
                delete_object(db, call.bucket, key)
                freed.append(old.blob)
                self._on_created(db, happened(call, "ObjectRemoved:Delete", old))
        self._after_commit()
        self.free(freed)

    def free(self, blobs: Blobs) -> None:
        """Remove the bytes of blobs that no row names any more."""
        for blob in blobs:
            self.store.delete_blob(blob)


def happened(call: Call, event: str, of: StoredObject) -> CreatedObject:
    """An object's event."""
    return CreatedObject(
        of.bucket,
        of.key,
        event,
        call.region,
        of.size,
        of.etag,
        call.request_id,
        str(call.exchange.socket.getpeername()[0]),
        time.time(),
    )


@dataclass(frozen=True)
class ObjectCalls:
    """The calls. Each answers its exchange or raises S3Error."""

    writer: Writer

    @property
    def _store(self) -> Store:
        return self.writer.store

    def put_object(self, call: Call) -> None:
        """PutObject."""
        find_bucket(self._store.read(), call.bucket)
        check_write_conditions(call.headers, find_object(self._store.read(), call.bucket, call.key))
        headers, tags = kept_headers(call.headers), tags_of_header(call.headers)
        blob = receive(call, self._store, wanted_algorithm(call.headers))
        new = StoredObject(
            bucket=call.bucket,
            key=call.key,
            blob=blob.id,
            size=blob.size,
            etag=blob.md5,
            modified=int(time.time()),
            headers=headers,
            tags=tags,
            checksum=blob.checksum,
        )
        self.writer.commit(call, new, "ObjectCreated:Put")
        call.reply(headers={"ETag": f'"{new.etag}"', **checksum_headers(new.checksum)})

    def get_object(self, call: Call) -> None:
        """GetObject and HeadObject."""
        for _ in range(100):
            found = self._read(call)
            try:
                self._send(call, found)
            except FileNotFoundError:
                # Replaced between reading the row and opening the file: the new row has its file.
                if self._read(call).blob == found.blob:
                    raise
            else:
                return
        raise S3Error("SlowDown", "Please reduce your request rate.", 503)

    head_object = get_object

    def delete_object(self, call: Call) -> None:
        """DeleteObject."""
        find_bucket(self._store.read(), call.bucket)
        only_null_version(call.query.get("versionId", ""))
        self.writer.delete(call, call.key, call.headers.get("if-match", ""))
        call.reply(204)

    def delete_objects(self, call: Call) -> None:
        """DeleteObjects."""
        find_bucket(self._store.read(), call.bucket)
        root = parse_xml(read_document(call))
        wanted = root.findall("Object")
        if root.tag != "Delete" or not 1 <= len(wanted) <= 1000:
            raise malformed()
        quiet = root.findtext("Quiet", "").strip() == "true"
        content: list[Element] = []
        for entry in wanted:
            key, version = entry.findtext("Key", ""), entry.findtext("VersionId", "")
            try:
                only_null_version(version)
                self.writer.delete(call, key, entry.findtext("ETag", ""))
            except S3Error as exc:
                fault: Elements = [
                    ("Key", key), ("VersionId", version), ("Code", exc.code),
                    ("Message", exc.message),
                ]  # fmt: skip
                content.append(("Error", fault))
                continue
            if not quiet:
                content.append(("Deleted", [("Key", key)]))
        call.reply_xml("DeleteResult", content)

    def copy_object(self, call: Call) -> None:
        """CopyObject."""
        find_bucket(self._store.read(), call.bucket)
        source, blob = from_source(call, self._store, self._copied)
        new = StoredObject(
            bucket=call.bucket,
            key=call.key,
            blob=blob.id,
            size=blob.size,
            etag=blob.md5,
            modified=int(time.time()),
            headers=_copied_headers(call, source),
            tags=(
                tags_of_header(call.headers)
                if _directive(call, "x-amz-tagging-directive") == "REPLACE"
                else source.tags
            ),
            checksum=blob.checksum,
        )
        self.writer.commit(call, new, "ObjectCreated:Copy")
        content: list[Element] = [("ETag", f'"{new.etag}"'), ("LastModified", iso(new.modified))]
        call.reply_xml("CopyObjectResult", content + checksum_elements(new.checksum))

    def get_object_tagging(self, call: Call) -> None:
        """GetObjectTagging."""
        tags: list[Element] = [
            ("Tag", [("Key", key), ("Value", value)]) for key, value in self._read(call).tags
        ]
        call.reply_xml("Tagging", [("TagSet", tags)])

    def put_object_tagging(self, call: Call) -> None:
        """PutObjectTagging."""
        root = parse_xml(read_document(call))
        if root.tag != "Tagging":
            raise malformed()
        pairs = [(tag.findtext("Key", ""), tag.findtext("Value", "")) for tag in root.iter("Tag")]
        self._retag(call, checked_tags(pairs))
        call.reply()

    def delete_object_tagging(self, call: Call) -> None:
        """DeleteObjectTagging."""
        self._retag(call, ())
        call.reply(204)

    def get_object_attributes(self, call: Call) -> None:
        """GetObjectAttributes, without the list of parts."""
        found = self._read(call)
        wanted = {
            name.strip() for name in call.headers.get("x-amz-object-attributes", "").split(",")
        }
        every: dict[str, Element] = {
            "ETag": ("ETag", found.etag),
            "Checksum": ("Checksum", checksum_elements(found.checksum)),
            "ObjectParts": ("ObjectParts", [("TotalPartsCount", len(found.part_sizes))]),
            "StorageClass": ("StorageClass", found.storage_class),
            "ObjectSize": ("ObjectSize", found.size),
        }
        if not wanted & every.keys():
            raise S3Error("InvalidArgument", "Invalid attribute name specified.")
        absent = {"ObjectParts"} if not found.part_sizes else set()
        absent |= {"Checksum"} if not found.checksum else set()
        content = [element for name, element in every.items() if name in wanted - absent]
        call.reply_xml(
            "GetObjectAttributesResponse", content, {"Last-Modified": _http_date(found.modified)}
        )

    def _read(self, call: Call) -> StoredObject:
        only_null_version(call.query.get("versionId", ""))
        return existing_object(self._store.read(), call.bucket, call.key)

    def _send(self, call: Call, found: StoredObject) -> None:
        headers = {**call.answer_headers, **_object_headers(found)}
        held = check_read_conditions(call.headers, found)
        if held == 304:
            call.exchange.reply(304, headers={n: headers[n] for n in ("ETag", "Last-Modified")})
            return
        headers |= _overridden(call.query)
        status, first, size = _asked_bytes(call, found, headers)
        if status == 200 and call.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers |= checksum_headers(found.checksum)
        if call.exchange.method == "HEAD":
            call.exchange.reply(status, headers={**headers, "Content-Length": str(size)})
        else:
            call.exchange.reply_file(self._store.blob(found.blob), first, size, status, headers)

    def _copied(self, call: Call, source: StoredObject) -> Blob:
        """A copy of the source's bytes, with digests; they are read only when unknown."""
        _refuse_copy(call, source)
        wanted = wanted_algorithm(call.headers)
        blob = copy_blob(self._store, source.blob)
        checksum, md5 = source.checksum, source.etag
        algorithm = wanted or (checksums.named(checksum.algorithm) if checksum else None)
        known = checksum if checksum and checksum.type == "FULL_OBJECT" else None
        if algorithm and not (known and known.algorithm == algorithm.name):
            known = None
        if "-" in md5 or (algorithm and known is None):
            try:
                md5, computed = digests(self._store.blob(blob), algorithm)
            except BaseException:
                self._store.delete_blob(blob)
                raise
            known = known or computed
        return Blob(blob, source.size, md5, known)

    def _retag(self, call: Call, tags: tuple[tuple[str, str], ...]) -> None:
        with self._store.write() as db:
            put_object(db, replace(existing_object(db, call.bucket, call.key), tags=tags))


def existing_object(db: sqlite3.Connection, bucket: str, key: str) -> StoredObject:
    """The object of a key. Raises S3Error NoSuchBucket or NoSuchKey."""
    find_bucket(db, bucket)
    found = find_object(db, bucket, key)
    if found is None:
        raise S3Error("NoSuchKey", "The specified key does not exist.", 404, Key=echo(key))
    return found


def only_null_version(version: str) -> None:
    """Refuse the version ids of versioned buckets, which are not here."""
    if version not in ("", "null"):
        raise S3Error("NoSuchVersion", "The specified version does not exist.", 404)


def wanted_algorithm(headers: Mapping[str, str]) -> Algorithm | None:
    """The checksum a client asks us to compute."""
    name = headers.get("x-amz-checksum-algorithm", "")
    return checksums.named(name) if name else None


def checksum_headers(checksum: Checksum | None) -> dict[str, str]:
    """A checksum as answer headers."""
    if checksum is None:
        return {}
    name, value = checksum.header
    return {name: value, "x-amz-checksum-type": checksum.type}


def checksum_elements(checksum: Checksum | None) -> list[Element]:
    """A checksum as elements of an answer."""
    return [checksum.element, ("ChecksumType", checksum.type)] if checksum else []


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers to keep with an object. Raises S3Error for too much metadata, ACLs, SSE-C."""
    _refuse_unsupported(headers)
    kept = {name: headers[name] for name in _KEPT if headers.get(name)}
    encodings = [part.strip() for part in kept.pop("content-encoding", "").split(",")]
    encoding = ", ".join(part for part in encodings if part and part != "aws-chunked")
    if encoding:
        kept["content-encoding"] = encoding
    kept.setdefault("content-type", "binary/octet-stream")
    if kept.get("x-amz-storage-class") == "STANDARD":  # S3 tells every class but this one
        del kept["x-amz-storage-class"]
    prefix = "x-amz-meta-"
    meta = {n: " ".join(v.splitlines()) for n, v in headers.items() if n.startswith(prefix)}
    size = sum(len(name) - len(prefix) + len(value) for name, value in meta.items())
    if size > 2048:
        raise S3Error(
            "MetadataTooLarge",
            "Your metadata headers exceed the maximum allowed metadata size",
            Size=size,
            MaxSizeAllowed=2048,
        )
    return kept | meta


def _refuse_unsupported(headers: Mapping[str, str]) -> None:
    if headers.get("x-amz-acl", "private") not in ("private", "bucket-owner-full-control") or any(
        name.startswith("x-amz-grant-") for name in headers
    ):
        raise no_acls()
    if "x-amz-server-side-encryption-customer-algorithm" in headers:
        raise S3Error(
            "NotImplemented", "the local cloud does not keep objects under customer keys", 501
        )


def no_acls() -> S3Error:
    """What S3 says to ACLs on a bucket made with its defaults."""
    return S3Error("AccessControlListNotSupported", "The bucket does not allow ACLs")


def tags_of_header(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The tags of `x-amz-tagging`."""
    return checked_tags(parse_qsl(headers.get("x-amz-tagging", ""), keep_blank_values=True))


def checked_tags(pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Object tags. Raises S3Error for more than 10, doubled or overlong ones."""
    if len(pairs) > 10:
        raise S3Error("BadRequest", "Object tags cannot be greater than 10")
    if len({key for key, _ in pairs}) < len(pairs):
        raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
    for key, value in pairs:
        if not 1 <= len(key) <= 128:
            raise S3Error("InvalidTag", "The TagKey you have provided is invalid", TagKey=key)
        if len(value) > 256:
            raise S3Error("InvalidTag", "The TagValue you have provided is invalid", TagValue=value)
    return tuple(pairs)


def _http_date(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)


def _object_headers(found: StoredObject) -> dict[str, str]:
    headers = {
        "ETag": f'"{found.etag}"',
        "Last-Modified": _http_date(found.modified),
        "Accept-Ranges": "bytes",
        **found.headers,
    }
    if found.tags:
        headers["x-amz-tagging-count"] = str(len(found.tags))
    return headers


def _overridden(query: Mapping[str, str]) -> dict[str, str]:
    given = {name: query[f"response-{name}"] for name in _OVERRIDES if f"response-{name}" in query}
    for name, value in given.items():
        if not value.isprintable() or not value.isascii():
            raise S3Error(
                "InvalidArgument", f"response-{name} must be printable ASCII", ArgumentName=name
            )
    return given


def _asked_bytes(call: Call, found: StoredObject, headers: dict[str, str]) -> tuple[int, int, int]:
    """Status, first byte and number of bytes to answer; adds the headers that say so."""
    if "partNumber" in call.query:
        first, size = _part(call, found)
        if found.part_sizes:
            headers["x-amz-mp-parts-count"] = str(len(found.part_sizes))
    else:
        span = byte_range(call.headers.get("range", ""), found.size)
        if span is None:
            return 200, 0, found.size
        first, size = span
    if size:
        headers["Content-Range"] = f"bytes {first}-{first + size - 1}/{found.size}"
    return 206 if size else 200, first, size


def _part(call: Call, found: StoredObject) -> tuple[int, int]:
    sizes, text = found.part_sizes or (found.size,), call.query["partNumber"]
    if not text.isdigit() or not 1 <= int(text) <= 10000:
        raise S3Error("InvalidArgument", PART_NUMBERS, ArgumentName="partNumber")
    if int(text) > len(sizes):
        raise S3Error("InvalidPartNumber", "The requested partnumber is not satisfiable", 416)
    return sum(sizes[: int(text) - 1]), sizes[int(text) - 1]


def copy_source(call: Call, store: Store) -> StoredObject:
    """The object that `x-amz-copy-source` names. Raises S3Error when its conditions do not hold."""
    path, _, query = call.headers["x-amz-copy-source"].partition("?")
    bucket, _, key = unquote(path).removeprefix("/").partition("/")
    if not bucket or not key:
        raise S3Error(
            "InvalidArgument",
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            ArgumentName="x-amz-copy-source",
        )
    only_null_version(dict(parse_qsl(query)).get("versionId", ""))
    found = existing_object(store.read(), bucket, key)
    prefix = "x-amz-copy-source-"
    conditions = {
        name.removeprefix(prefix): value
        for name, value in call.headers.items()
        if name.startswith(prefix + "if-")
    }
    if check_read_conditions(conditions, found) == 304:
        raise precondition_failed("x-amz-copy-source-If-None-Match")
    return found


def from_source(
    call: Call, store: Store, copy: Callable[[Call, StoredObject], Blob]
) -> tuple[StoredObject, Blob]:
    """The source and what `copy` made of it; once more where it was replaced meanwhile."""
    for _ in range(100):
        source = copy_source(call, store)
        try:
            return source, copy(call, source)
        except FileNotFoundError:
            if copy_source(call, store).blob == source.blob:
                raise
    raise S3Error("SlowDown", "Please reduce your request rate.", 503)


def _directive(call: Call, header: str) -> str:
    directive = call.headers.get(header, "COPY")
    if directive not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"Unknown {header}: valid are COPY and REPLACE")
    return directive


def _refuse_copy(call: Call, source: StoredObject) -> None:
    changes = (
        _directive(call, "x-amz-metadata-directive") == "REPLACE"
        or {
            "x-amz-storage-class",
            "x-amz-website-redirect-location",
            "x-amz-server-side-encryption",
        }
        & call.headers.keys()
    )
    if source.size > MAX_PUT_BYTES:
        raise S3Error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy "
            f"source: {MAX_PUT_BYTES}",
        )
    if (source.bucket, source.key) == (call.bucket, call.key) and not changes:
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself "
            "without changing the object's metadata, storage class, website redirect location "
            "or encryption attributes.",
        )


_NOT_COPIED = (
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
)
"""Headers that CopyObject takes from the request, never from the source."""


def _copied_headers(call: Call, source: StoredObject) -> dict[str, str]:
    given = kept_headers(call.headers)
    if _directive(call, "x-amz-metadata-directive") == "REPLACE":
        return given
    copied = {name: value for name, value in source.headers.items() if name not in _NOT_COPIED}
    return copied | {name: given[name] for name in _NOT_COPIED if name in given}
