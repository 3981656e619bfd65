"""The registry's data plane: the OCI distribution API under `/v2/`, as ECR speaks it.

Any credentials will do, and none: the port is open to this machine only. Repositories are made by
CreateRepository; pushing to one that is not there is refused, as by ECR.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from scar_local.http import READ_SIZE, Body, Exchange
from scar_local.image_store import ImageFault, ImageStore, Manifest, digest_of, is_digest
from scar_local.store import is_out_of_space

MANIFEST_LIMIT_BYTES = 4 << 20
UPLOAD_IDLE_S = 3600.0
"""An upload that got no bytes for this long is forgotten."""

_NAME = r"(?P<name>.+)"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d+)-(\d+)(?:/\S+)?")


@dataclass
class _Upload:
    """A blob on its way in: its bytes so far and their hash."""

    repository: str
    blob: str
    path: Path
    size: int = 0
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    touched: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Distribution:
    """Answers `/v2/…` from an ImageStore."""

    def __init__(self, images: ImageStore, immutable: Callable[[str], bool]) -> None:
        self._images = images
        self._immutable = immutable
        self._uploads: dict[str, _Upload] = {}
        self._guard = threading.Lock()
        self._routes: tuple[tuple[re.Pattern[str], Callable[[Exchange, dict[str, str]], None]], ...]
        self._routes = (
            (re.compile(rf"/v2/{_NAME}/manifests/(?P<reference>[^/]+)"), self._manifest),
            (re.compile(rf"/v2/{_NAME}/blobs/uploads/?"), self._new_upload),
            (re.compile(rf"/v2/{_NAME}/blobs/uploads/(?P<upload>[^/]+)"), self._upload),
            (re.compile(rf"/v2/{_NAME}/blobs/(?P<digest>[^/]+)"), self._blob),
            (re.compile(rf"/v2/{_NAME}/tags/list"), self._tags),
        )

    def handle(self, exchange: Exchange) -> None:
        """Answer one request; what is wrong is answered as the specification says."""
        try:
            self._route(exchange)
        except ImageFault as fault:
            error = {"code": fault.code, "message": fault.message, "detail": fault.detail}
            body = json.dumps({"errors": [error]}).encode()
            exchange.reply(fault.status, body, _headers(), "application/json")

    def _route(self, exchange: Exchange) -> None:
        path = unquote(exchange.path)
        if path.rstrip("/") == "/v2":
            exchange.reply(200, b"{}", _headers(), "application/json")
            return
        for pattern, answer in self._routes:
            found = pattern.fullmatch(path)
            if found:
                names = found.groupdict()
                if not self._images.has_repository(names["name"]):
                    raise ImageFault(
                        "NAME_UNKNOWN",
                        f"repository `{names['name']}` is not there; make it with CreateRepository",
                        404,
                    )
                answer(exchange, names)
                return
        raise ImageFault("UNSUPPORTED", f"nothing is at `{path}`", 404)

    def _manifest(self, exchange: Exchange, names: dict[str, str]) -> None:
        name, reference = names["name"], names["reference"]
        if exchange.method in ("GET", "HEAD"):
            self._get_manifest(exchange, name, reference)
        elif exchange.method == "PUT":
            self._put_manifest(exchange, name, reference)
        elif exchange.method == "DELETE":
            self._known_manifest(name, reference)
            if is_digest(reference):
                self._images.delete_manifest(name, reference)
            else:
                self._images.delete_tag(name, reference)
            exchange.reply(202, b"", _headers())
        else:
            raise _not_allowed(exchange)

    def _get_manifest(self, exchange: Exchange, name: str, reference: str) -> None:
        manifest = self._known_manifest(name, reference)
        headers = _headers(manifest.digest, ETag=f'"{manifest.digest}"')
        headers["Content-Length"] = str(len(manifest.body))
        exchange.reply(200, manifest.body, headers, manifest.media_type)

    def _put_manifest(self, exchange: Exchange, name: str, reference: str) -> None:
        body = exchange.body.read(MANIFEST_LIMIT_BYTES + 1)
        if len(body) > MANIFEST_LIMIT_BYTES:
            raise ImageFault("MANIFEST_INVALID", "manifest is larger than 4 MiB", 413)
        if is_digest(reference):
            if digest_of(body) != reference:
                raise ImageFault("DIGEST_INVALID", "manifest does not have the digest it is put as")
        elif not _TAG.fullmatch(reference):
            raise ImageFault("TAG_INVALID", f"`{reference}` is no tag")
        tag = None if is_digest(reference) else reference
        media_type = exchange.headers.get("Content-Type", "").split(";")[0].strip()
        digest = self._images.put_manifest(name, body, media_type, tag, self._immutable(name))
        location = f"/v2/{quote(name)}/manifests/{digest}"
        exchange.reply(201, b"", _headers(digest, Location=location))

    def _known_manifest(self, name: str, reference: str) -> Manifest:
        manifest = self._images.manifest(name, reference)
        if manifest is None:
            raise ImageFault(
                "MANIFEST_UNKNOWN", f"`{reference}` is not in repository `{name}`", 404
            )
        return manifest

    def _tags(self, exchange: Exchange, names: dict[str, str]) -> None:
        if exchange.method != "GET":
            raise _not_allowed(exchange)
        after, count = exchange.query.get("last", ""), exchange.query.get("n", "1000")
        if not count.isdigit():
            raise ImageFault("PAGINATION_NUMBER_INVALID", f"`n` is no number: `{count}`")
        tags = [tag for tag, _ in self._images.tags(names["name"]) if tag > after]
        page = tags[: int(count)]
        headers = _headers()
        if page and len(page) < len(tags):
            headers["Link"] = f'<{exchange.path}?n={count}&last={quote(page[-1])}>; rel="next"'
        body = json.dumps({"name": names["name"], "tags": page}).encode()
        exchange.reply(200, body, headers, "application/json")

    def _blob(self, exchange: Exchange, names: dict[str, str]) -> None:
        name, digest = names["name"], names["digest"]
        if not _DIGEST.fullmatch(digest):
            raise ImageFault("DIGEST_INVALID", f"`{digest}` is no sha256 digest")
        found = self._images.blob(name, digest)
        if found is None:
            raise ImageFault("BLOB_UNKNOWN", f"blob {digest} is not in repository `{name}`", 404)
        if exchange.method == "DELETE":
            self._images.delete_blob(name, digest)
            exchange.reply(202, b"", _headers())
        elif exchange.method in ("GET", "HEAD"):
            _send_blob(exchange, digest, *found)
        else:
            raise _not_allowed(exchange)

    def _new_upload(self, exchange: Exchange, names: dict[str, str]) -> None:
        if exchange.method != "POST":
            raise _not_allowed(exchange)
        name, query = names["name"], exchange.query
        if "mount" in query and self._mounted(name, query["mount"], query.get("from")):
            exchange.reply(201, b"", _blob_headers(name, query["mount"]))
            return
        self._forget_idle_uploads()
        blob, path = self._images.store.new_blob()
        path.touch()
        upload = _Upload(name, blob, path)
        key = uuid.uuid4().hex
        self._uploads[key] = upload
        if "digest" in query:
            self._finish(exchange, key, upload, query["digest"])
            return
        exchange.reply(202, b"", self._progress(key, upload))

    def _mounted(self, name: str, digest: str, source: str | None) -> bool:
        return self._images.mount(name, digest, source) if source else False

    def _upload(self, exchange: Exchange, names: dict[str, str]) -> None:
        key = names["upload"]
        upload = self._uploads.get(key)
        if upload is None or upload.repository != names["name"]:
            raise ImageFault("BLOB_UPLOAD_UNKNOWN", f"upload `{key}` is not under way", 404)
        with upload.lock:
            if exchange.method == "GET":
                exchange.reply(204, b"", self._progress(key, upload))
            elif exchange.method == "PATCH":
                _check_offset(exchange, upload)
                self._receive(exchange, key, upload)
                exchange.reply(202, b"", self._progress(key, upload))
            elif exchange.method == "PUT":
                self._finish(exchange, key, upload, exchange.query.get("digest", ""))
            elif exchange.method == "DELETE":
                self._drop(key)
                exchange.reply(204, b"", _headers())
            else:
                raise _not_allowed(exchange)

    def _finish(self, exchange: Exchange, key: str, upload: _Upload, digest: str) -> None:
        if not _DIGEST.fullmatch(digest):
            raise ImageFault("DIGEST_INVALID", f"`digest={digest}` is no sha256 digest")
        _check_offset(exchange, upload)
        self._receive(exchange, key, upload)
        found = f"sha256:{upload.sha256.hexdigest()}"
        if found != digest:
            self._drop(key)
            raise ImageFault(
                "DIGEST_INVALID", f"the bytes received have digest {found}, not {digest}"
            )
        self._uploads.pop(key, None)
        self._images.add_blob(upload.repository, digest, upload.blob, upload.size)
        exchange.reply(201, b"", _blob_headers(upload.repository, digest))

    def _receive(self, exchange: Exchange, key: str, upload: _Upload) -> None:
        try:
            _receive(exchange.body, upload)
        except OSError as exc:
            if isinstance(exc, ConnectionError | TimeoutError):
                raise
            self._drop(key)  # nobody knows which of the bytes are in the file
            if not is_out_of_space(exc):
                raise
            text = "no space is left where the local cloud keeps its data; free some and push again"
            raise ImageFault("BLOB_UPLOAD_INVALID", text, 507) from exc

    def _progress(self, key: str, upload: _Upload) -> dict[str, str]:
        return {
            **_headers(),
            "Location": f"/v2/{quote(upload.repository)}/blobs/uploads/{key}",
            "Docker-Upload-UUID": key,
            "Range": f"0-{max(upload.size - 1, 0)}",
        }

    def _drop(self, key: str) -> None:
        upload = self._uploads.pop(key, None)
        if upload:
            self._images.store.delete_blob(upload.blob)

    def _forget_idle_uploads(self) -> None:
        with self._guard:
            limit = time.monotonic() - UPLOAD_IDLE_S
            for key in [k for k, upload in self._uploads.items() if upload.touched < limit]:
                self._drop(key)

    def uploads_in_use(self) -> set[str]:
        """Ids in the blob folder that are being written now."""
        return {upload.blob for upload in list(self._uploads.values())}


def _receive(body: Body, upload: _Upload) -> None:
    with upload.path.open("ab") as file:
        while data := body.read(READ_SIZE):
            file.write(data)
            upload.sha256.update(data)
            upload.size += len(data)
    if upload.path.stat().st_size != upload.size:
        raise OSError(errno.EIO, "the file does not have the size that was written")
    upload.touched = time.monotonic()


def _check_offset(exchange: Exchange, upload: _Upload) -> None:
    given = exchange.headers.get("Content-Range")
    found = _CONTENT_RANGE.fullmatch(given) if given else None
    if given and (found is None or int(found[1]) != upload.size):
        raise ImageFault(
            "BLOB_UPLOAD_INVALID", f"chunk `{given}` does not follow byte {upload.size}", 416
        )


def _send_blob(exchange: Exchange, digest: str, path: Path, size: int) -> None:
    headers = _headers(digest, ETag=f'"{digest}"')
    headers["Content-Type"] = "application/octet-stream"
    headers["Accept-Ranges"] = "bytes"
    wanted = _RANGE.fullmatch(exchange.headers.get("Range", ""))
    if wanted is None or not (wanted[1] or wanted[2]):
        exchange.reply_file(path, 0, size, 200, headers)
        return
    first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
    last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
    if first > last:
        raise ImageFault("SIZE_INVALID", f"the blob has {size} bytes", 416)
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    exchange.reply_file(path, first, last - first + 1, 206, headers)


def _headers(digest: str | None = None, **more: str) -> dict[str, str]:
    headers = {"Docker-Distribution-Api-Version": "registry/2.0", **more}
    if digest:
        headers["Docker-Content-Digest"] = digest
    return headers


def _blob_headers(name: str, digest: str) -> dict[str, str]:
    return _headers(digest, Location=f"/v2/{quote(name)}/blobs/{digest}")


def _not_allowed(exchange: Exchange) -> ImageFault:
    return ImageFault("UNSUPPORTED", f"{exchange.method} does not work here", 405)
