"""S3's front: which call a request is, and its answer or error."""

from __future__ import annotations

import logging
import sqlite3
import time
from calendar import timegm
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import unquote_to_bytes

from scar_local.http import Exchange
from scar_local.protocol import ACCOUNT_ID
from scar_local.s3 import state
from scar_local.s3.body import READ_BYTES, owned_blobs
from scar_local.s3.buckets import ABSENT, DEFAULTS, KEPT_DOCUMENTS, BucketCalls, CanInvoke
from scar_local.s3.call import Call, S3Error
from scar_local.s3.listing import ListCalls
from scar_local.s3.multipart import MultipartCalls
from scar_local.s3.objects import ObjectCalls, OnCreated, Writer
from scar_local.store import Store, is_out_of_space

_LOG = logging.getLogger(__name__)

MAX_KEY_BYTES = 1024
DEFAULT_REGION = "us-east-1"

Answer = Callable[[Call], None]
Route = tuple[str, str, str]
"""Method, `service`, `bucket` or `object`, and sub-resource (a query parameter) or nothing."""


class S3:
    """The service.

    `on_created` runs inside the transaction that commits an object, `after_commit` after it.
    `can_invoke(bucket, function_arn)` says whether a function accepts a bucket's events.
    """

    def __init__(
        self,
        store: Store,
        on_created: OnCreated,
        after_commit: Callable[[], None] = lambda: None,
        can_invoke: CanInvoke = lambda _bucket, _function_arn: True,
    ) -> None:
        store.install(state.SCHEMA)
        self._store, self.wake = store, after_commit
        writer = self._writer = Writer(store, on_created, after_commit)
        self._routes = {
            **_bucket_routes(BucketCalls(writer, can_invoke), ListCalls(store)),
            **_object_routes(ObjectCalls(writer), MultipartCalls(writer)),
        }
        self._subresources = {name for _, _, name in self._routes} | _UNKNOWN_SUBRESOURCES

    def handle(self, exchange: Exchange, region: str = DEFAULT_REGION) -> None:
        """Answer one request."""
        call = Call(exchange, region or DEFAULT_REGION, "", "", _headers(exchange))
        try:
            bucket, key = _address(exchange)
            call = Call(exchange, call.region, bucket, key, call.headers)
            _check_request(call)
            self._route(call)(call)
        except S3Error as exc:
            self._refuse(call, exc)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as exc:
            if is_out_of_space(exc) and not exchange.answered:
                _LOG.error("%s %s: %s", exchange.method, exchange.path, exc)
                self._refuse(call, _no_space())
                return
            _LOG.exception("%s %s", exchange.method, exchange.path)
            if exchange.answered:
                raise ConnectionError("an answer broke in the middle") from exc
            self._refuse(
                call, S3Error("InternalError", f"{type(exc).__name__}: {exc}; see daemon.log", 500)
            )

    def has_bucket(self, name: str) -> bool:
        """Whether there is such a bucket."""
        db = self._store.read()
        return bool(db.execute("SELECT 1 FROM s3_buckets WHERE name = ?", (name,)).fetchone())

    def deposit(self, db: sqlite3.Connection, bucket: str, key: str, data: bytes) -> bool:
        """Put an object of another service within its transaction; False: there is no such bucket.

        Call `wake` after the commit. What is left of it where that fails, `sweep` removes.
        """
        return self._writer.deposit(db, bucket, key, data)

    def sweep(self) -> int:
        """Remove blobs that a crash left without a row; how many. Call before serving."""
        db = self._store.read()
        named = {row[0] for row in db.execute("SELECT blob FROM s3_objects")}
        named |= {row[0] for row in db.execute("SELECT blob FROM s3_parts")}
        left = [blob for blob in owned_blobs(self._store) if blob not in named]
        for blob in left:
            self._store.delete_blob(blob)
        return len(left)

    def counts(self) -> dict[str, int]:
        """Buckets and objects, for the daemon's status."""
        db = self._store.read()
        return {
            "buckets": db.execute("SELECT count(*) FROM s3_buckets").fetchone()[0],
            "objects": db.execute("SELECT count(*) FROM s3_objects").fetchone()[0],
        }

    def disk_bytes(self) -> int:
        """The size of all objects, and of the parts of unfinished uploads."""
        sums = "SELECT sum(size) AS size FROM s3_objects UNION ALL SELECT sum(size) FROM s3_parts"
        return sum(row["size"] or 0 for row in self._store.read().execute(sums))

    def _route(self, call: Call) -> Answer:
        level = "object" if call.key else "bucket" if call.bucket else "service"
        asked = [name for name in call.query if name in self._subresources]
        method = call.exchange.method
        if method == "PUT" and level == "object" and "x-amz-copy-source" in call.headers:
            asked.append("x-amz-copy-source")
        for name in _PRECEDENCE:
            if name in asked:
                asked = [name, *asked]
        if asked[:1] == ["uploadId"] and "x-amz-copy-source" in asked:
            asked = ["uploadId+x-amz-copy-source"]
        route = (method, level, asked[0] if asked else "")
        if route not in self._routes:
            raise S3Error(
                "NotImplemented",
                f"{operation_name(*route)} is not in the local cloud",
                501,
            )
        return self._routes[route]

    def _refuse(self, call: Call, error: S3Error) -> None:
        # The client reads the answer only when it has sent its whole body.
        while call.body.read(READ_BYTES):
            """Thrown away."""
        call.reply_error(error)


def _no_space() -> S3Error:
    """S3 itself has no such error. Clients try 500 and 503 again for long, 507 they report."""
    text = "No space is left where the local cloud keeps its data; free some and try again"
    return S3Error("InsufficientStorage", text, 507)


_PRECEDENCE = ("x-amz-copy-source", "uploadId")
"""Sub-resources that decide the operation beside others, weakest first."""

_UNKNOWN_SUBRESOURCES = {
    "abac", "analytics", "annotation", "intelligent-tiering", "inventory", "legal-hold",
    "metadataConfiguration", "metadataTable", "metrics", "object-lock", "policyStatus",
    "renameObject", "replication", "restore", "retention", "select", "session", "torrent",
}  # fmt: skip
"""Query parameters that name an operation we do not have: never taken for a plain get or put."""


def operation_name(method: str, level: str, subresource: str) -> str:
    """S3's name of an operation we do not have, from botocore's model."""
    from botocore.loaders import Loader  # 60 ms and some MB, only when such an error is answered

    path = {"service": "/", "bucket": "/{Bucket}", "object": "/{Bucket}/{Key+}"}[level]
    uri = f"{path}?{subresource}" if subresource else path
    operations = Loader().load_service_model("s3", "service-2")["operations"]
    for name, operation in operations.items():
        http = operation["http"]
        if http["method"] == method and http["requestUri"].partition("&")[0] == uri:
            return str(name)
    return f"{method} {uri}"


def _bucket_routes(buckets: BucketCalls, lists: ListCalls) -> dict[Route, Answer]:
    routes: dict[Route, Answer] = {
        ("GET", "service", ""): buckets.list_buckets,
        ("PUT", "bucket", ""): buckets.create_bucket,
        ("HEAD", "bucket", ""): buckets.head_bucket,
        ("DELETE", "bucket", ""): buckets.delete_bucket,
        ("GET", "bucket", "location"): buckets.get_bucket_location,
        ("GET", "bucket", "notification"): buckets.get_bucket_notification_configuration,
        ("PUT", "bucket", "notification"): buckets.put_bucket_notification_configuration,
        ("GET", "bucket", "acl"): buckets.get_acl,
        ("PUT", "bucket", "acl"): buckets.put_acl,
        ("GET", "object", "acl"): buckets.get_acl,
        ("PUT", "object", "acl"): buckets.put_acl,
        ("GET", "bucket", ""): lists.list_objects,
        ("GET", "bucket", "list-type"): lists.list_objects_v2,
        ("GET", "bucket", "versions"): lists.list_object_versions,
        ("GET", "bucket", "uploads"): lists.list_multipart_uploads,
    }
    for name in ABSENT.keys() | DEFAULTS:
        routes["GET", "bucket", name] = partial(buckets.get_document, name=name)
    for name in KEPT_DOCUMENTS:
        routes["PUT", "bucket", name] = partial(buckets.put_document, name=name)
        routes["DELETE", "bucket", name] = partial(buckets.delete_document, name=name)
    return routes


def _object_routes(objects: ObjectCalls, uploads: MultipartCalls) -> dict[Route, Answer]:
    return {
        ("POST", "bucket", "delete"): objects.delete_objects,
        ("PUT", "object", ""): objects.put_object,
        ("GET", "object", ""): objects.get_object,
        ("HEAD", "object", ""): objects.head_object,
        ("DELETE", "object", ""): objects.delete_object,
        ("PUT", "object", "x-amz-copy-source"): objects.copy_object,
        ("GET", "object", "tagging"): objects.get_object_tagging,
        ("PUT", "object", "tagging"): objects.put_object_tagging,
        ("DELETE", "object", "tagging"): objects.delete_object_tagging,
        ("GET", "object", "attributes"): objects.get_object_attributes,
        ("POST", "object", "uploads"): uploads.create_multipart_upload,
        ("PUT", "object", "uploadId"): uploads.upload_part,
        ("PUT", "object", "uploadId+x-amz-copy-source"): uploads.upload_part_copy,
        ("POST", "object", "uploadId"): uploads.complete_multipart_upload,
        ("DELETE", "object", "uploadId"): uploads.abort_multipart_upload,
        ("GET", "object", "uploadId"): uploads.list_parts,
    }


def _headers(exchange: Exchange) -> dict[str, str]:
    hoisted = {n.lower(): v for n, v in exchange.query.items() if n.lower().startswith("x-amz-")}
    return hoisted | {name.lower(): value for name, value in exchange.headers.items()}


_HOST_ENDINGS = (".localhost", ".127.0.0.1")


def _address(exchange: Exchange) -> tuple[str, str]:
    """Bucket and key, from the host (`bucket.localhost`) or the path."""
    try:
        path = unquote_to_bytes(exchange.path.encode("latin-1")).decode()
    except UnicodeDecodeError as exc:
        raise S3Error("InvalidURI", "Couldn't parse the specified URI.") from exc
    host = (exchange.headers.get("Host") or "").partition(":")[0].lower()
    for ending in _HOST_ENDINGS:
        if host.endswith(ending):
            return host.removesuffix(ending), path.removeprefix("/")
    bucket, _, key = path.removeprefix("/").partition("/")
    return bucket, key


def _check_request(call: Call) -> None:
    size = len(call.key.encode())
    if size > MAX_KEY_BYTES:
        raise S3Error(
            "KeyTooLongError", "Your key is too long", Size=size, MaxSizeAllowed=MAX_KEY_BYTES
        )
    if call.headers.get("x-amz-expected-bucket-owner", ACCOUNT_ID) != ACCOUNT_ID:
        raise S3Error("AccessDenied", "Access Denied", 403)
    _check_expiry(call.query)


def _check_expiry(query: Mapping[str, str]) -> None:
    """Presigned URLs end when they say, though nobody checks the signature."""
    now = time.time()
    if "X-Amz-Expires" in query:
        try:
            lasts, signed = int(query["X-Amz-Expires"]), _amz_date(query.get("X-Amz-Date", ""))
        except ValueError as exc:
            raise S3Error(
                "AuthorizationQueryParametersError",
                "X-Amz-Expires must be a number and X-Amz-Date a time such as 20260131T235959Z",
            ) from exc
        if not 0 <= lasts <= 604800:
            raise S3Error(
                "AuthorizationQueryParametersError",
                "X-Amz-Expires must be non-negative and less than a week (in seconds); that is, "
                "the given X-Amz-Expires must be less than 604800 seconds",
            )
        ends = signed + lasts
    elif "Expires" in query and "AWSAccessKeyId" in query and query["Expires"].isdigit():
        lasts, ends = 0, int(query["Expires"])
    else:
        return
    if now > ends:
        raise S3Error(
            "AccessDenied", "Request has expired", 403, **{"X-Amz-Expires": lasts},
            ServerTime=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            Expires=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends)),
        )  # fmt: skip


def _amz_date(text: str) -> int:
    return timegm(time.strptime(text, "%Y%m%dT%H%M%SZ"))
