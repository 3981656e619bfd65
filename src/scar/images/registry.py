"""The OCI distribution protocol, as far as deriving needs it: pull, mount, push. On urllib3.

Blobs are streamed, never held; every digest is checked while it passes. One monolithic PUT an
upload: ECR drops the second PATCH of a chunked one.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from scar.errors import ImageError
from scar.images.derive import (
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    Base,
    Blob,
    Derived,
    Family,
    Layer,
    digest_of,
)

ACCEPT = ", ".join([*MANIFEST_TYPES.values(), *INDEX_TYPES])
ATTEMPTS = 3
"""Tries of one blob when its stream breaks or is corrupt."""
PARALLEL_BLOBS = 4
MANIFEST_LIMIT_BYTES = 4 << 20
"""What registries accept as a manifest."""


class Source(Protocol):
    """Where a base image comes from: a repository of a registry, or an archive."""

    def base(self, version: str, architecture: str) -> Base:
        """The image for `architecture` (OCI's word) under the tag or digest `version`."""

    def open(self, blob: Blob) -> BinaryIO:
        """The content of one of its blobs."""

    @property
    def mounts(self) -> tuple[str, str] | None:
        """Host and repository, for mounting its blobs in another repository there."""


@dataclass(frozen=True)
class Login:
    """User and password for a registry."""

    user: str
    password: str


class Repository:
    """One repository of one registry.

    `named` is the image as the user wrote it, for errors. `plain`: HTTP, for loopback only.
    """

    def __init__(
        self, host: str, name: str, named: str, login: Login | None = None, plain: bool = False
    ) -> None:
        self._url = f"{'http' if plain else 'https'}://{host}"
        self._host, self._name, self._named, self._login = host, name, named, login
        self._retries = urllib3.Retry(
            4, redirect=0, status_forcelist=(429, 502, 503), backoff_factor=0.5,
            raise_on_status=False, raise_on_redirect=False, allowed_methods=None,
        )  # fmt: skip
        self._http = _pool(self._url)
        self._authorization = ""
        self._logging_in = threading.Lock()

    @property
    def mounts(self) -> tuple[str, str] | None:
        """Host and repository, for mounting its blobs in another repository there."""
        return self._host, self._name

    def base(self, version: str, architecture: str) -> Base:
        """The image for `architecture` (OCI's word) under the tag or digest `version`.

        Raises ImageError where there is none, or its layers are not gzip.
        """
        body, manifest, media_type = self._manifest(version)
        if media_type in INDEX_TYPES:
            version = pick(manifest, architecture, self._named)
            body, manifest, media_type = self._manifest(version)
        if "config" not in manifest:
            raise ImageError(self._named, f"its manifest is of unknown type `{media_type}`")
        blob = Blob(manifest["config"]["digest"], manifest["config"]["size"])
        with self.open(blob) as stream:
            config = json.loads(_read_whole(stream, blob, self._named))
        return base_of(manifest, media_type, config, digest_of(body), architecture, self._named)

    def open(self, blob: Blob) -> BinaryIO:
        """The content of a blob, unchecked: see `Checked`."""
        response = self._ask("GET", f"blobs/{blob.digest}", preload_content=False)
        return cast(BinaryIO, response)

    def has(self, blob: Blob) -> bool:
        """Whether the repository holds `blob`."""
        return self._ask("HEAD", f"blobs/{blob.digest}", ok=(200, 404)).status == 200

    def put(self, blob: Blob, opened: Callable[[], BinaryIO], mount_from: str = "") -> None:
        """Store a blob unless it is there; `mount_from` names a repository here that has it."""
        if self.has(blob):
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._upload(blob, opened, mount_from)
                return
            except (urllib3.exceptions.HTTPError, ConnectionError, CorruptBlob) as exc:
                if attempt == ATTEMPTS:
                    raise ImageError(self._named, f"blob {blob.digest}: {exc}") from exc

    def put_manifest(self, tag: str, body: bytes, media_type: str) -> None:
        """Store the manifest under `tag`; its blobs must be there."""
        headers = {"Content-Type": media_type}
        self._ask("PUT", f"manifests/{tag}", headers, ok=(201, 200), body=body)

    def _upload(self, blob: Blob, opened: Callable[[], BinaryIO], mount_from: str) -> None:
        query = f"?{urlencode({'mount': blob.digest, 'from': mount_from})}" if mount_from else ""
        answer = self._ask("POST", f"blobs/uploads/{query}", {"Content-Length": "0"}, (201, 202))
        if answer.status == 201:
            return  # mounted
        location = urljoin(self._url, answer.headers["Location"])
        location += ("&" if "?" in location else "?") + urlencode({"digest": blob.digest})
        headers = {
            "Content-Length": str(blob.size_bytes),
            "Content-Type": "application/octet-stream",
        }
        with opened() as stream:
            checked = Checked(stream, blob)
            # No retry inside: the stream is consumed. Authorization is fresh: POST just had it.
            self._ask("PUT", location, headers, (201, 204), body=checked, retries=False)

    def _manifest(self, version: str) -> tuple[bytes, dict[str, Any], str]:
        answer = self._ask("GET", f"manifests/{version}", {"Accept": ACCEPT})
        body = answer.data
        if len(body) > MANIFEST_LIMIT_BYTES:
            raise ImageError(self._named, f"its manifest has {len(body)} bytes")
        if version.startswith("sha256:") and digest_of(body) != version:
            raise ImageError(self._named, f"the manifest is not {version}")
        try:
            manifest: dict[str, Any] = json.loads(body)
        except ValueError as exc:
            raise ImageError(self._named, "its manifest is no JSON") from exc
        said = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        return body, manifest, manifest.get("mediaType") or said

    def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        ok: Sequence[int] = (200,),
        **more: Any,
    ) -> urllib3.BaseHTTPResponse:
        url = urljoin(f"{self._url}/v2/{self._name}/", path)
        used = self._authorization
        answer = self._send(method, url, headers, more)
        if answer.status == 401 and not hasattr(more.get("body"), "read"):
            self._log_in(used, answer.headers.get("WWW-Authenticate", ""))
            answer.drain_conn()
            answer = self._send(method, url, headers, more)
        if answer.status not in ok:
            raise ImageError(self._named, *_refusal(method, url, answer))
        return answer

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None, more: Mapping[str, Any]
    ) -> urllib3.BaseHTTPResponse:
        """One request, redirects followed; only our registry gets the credentials."""
        options = {"retries": self._retries, **more}
        for _ in range(5):
            sent = dict(headers or {})
            if self._authorization and _same_host(url, self._url):
                sent["Authorization"] = self._authorization
            try:
                answer = self._http.request(method, url, headers=sent, redirect=False, **options)
            except urllib3.exceptions.MaxRetryError as exc:
                why = f"`{urlsplit(url).netloc}` does not answer: {exc.reason}"
                raise ImageError(self._named, why) from exc
            if method not in ("GET", "HEAD") or answer.status not in (301, 302, 303, 307, 308):
                return answer
            answer.drain_conn()
            url = urljoin(url, answer.headers["Location"])
        raise ImageError(self._named, f"more than 5 redirects, the last to {urlsplit(url).netloc}")

    def _log_in(self, used: str, challenge: str) -> None:
        with self._logging_in:
            if self._authorization != used:
                return  # another thread just did
            basic = ""
            if self._login:
                pair = f"{self._login.user}:{self._login.password}".encode()
                basic = f"Basic {base64.b64encode(pair).decode()}"
            if challenge.lower().startswith("basic"):
                if not basic:
                    hint = "log in with `docker login`"
                    raise ImageError(self._named, f"`{self._host}` wants a login", hint)
                self._authorization = basic
            else:
                self._authorization = f"Bearer {self._token(challenge, basic)}"

    def _token(self, challenge: str, basic: str) -> str:
        said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if "realm" not in said:
            raise ImageError(self._named, f"`{self._host}` asks for unknown login `{challenge}`")
        scope = said.get("scope") or f"repository:{self._name}:pull"
        query = urlencode({"service": said.get("service", ""), "scope": scope})
        answer = self._http.request(
            "GET",
            f"{said['realm']}{'&' if '?' in said['realm'] else '?'}{query}",
            headers={"Authorization": basic} if basic else {},
            retries=self._retries,
        )
        if answer.status != 200:
            raise ImageError(self._named, f"`{self._host}` gives no token: HTTP {answer.status}")
        token = json.loads(answer.data)
        return str(token.get("token") or token["access_token"])


class CorruptBlob(Exception):
    """A blob's bytes are not those its digest names."""


class Checked(io.RawIOBase):
    """A stream that raises CorruptBlob at its end where size or digest are not the blob's."""

    def __init__(self, stream: BinaryIO, blob: Blob) -> None:
        self._stream, self._blob, self._left = stream, blob, blob.size_bytes
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; b"" at the end."""
        data = self._stream.read(size)
        self._hash.update(data)
        self._left -= len(data)
        # At the last byte, not at the end of the stream: the receiver stops at Content-Length.
        if self._left <= 0 and f"sha256:{self._hash.hexdigest()}" != self._blob.digest:
            raise CorruptBlob("its content is not what its digest names")
        if not data and self._left:
            raise CorruptBlob(f"{self._left} bytes are missing")
        return data


def push(
    derived: Derived,
    source: Source | None,
    base: Base,
    layers: Sequence[Layer],
    to: Repository,
    tag: str,
) -> None:
    """Store `derived` under `tag`: blobs that are there stay, others are mounted or streamed.

    `source` holds the blobs of `base`; None for a base without layers.
    """
    to.put(derived.config_blob, lambda: io.BytesIO(derived.config))  # alone: it logs in
    with ThreadPoolExecutor(PARALLEL_BLOBS) as pool:
        waiting = [pool.submit(to.put, one.blob, partial(_opened, one.path)) for one in layers]
        if source is not None:
            mount = _mountable_from(source, to)
            for blob in {blob.digest: blob for blob in base.layers}.values():
                waiting.append(pool.submit(to.put, blob, partial(source.open, blob), mount))
        for one in waiting:
            one.result()
    to.put_manifest(tag, derived.manifest, derived.media_type)


def base_of(
    manifest: Mapping[str, Any],
    media_type: str,
    config: Mapping[str, Any],
    digest: str,
    architecture: str,
    named: str,
) -> Base:
    """What deriving needs of an image, or ImageError where it cannot be derived from."""
    has = config.get("architecture")
    if has != architecture:
        raise ImageError(named, f"it is for {has}, not for {architecture}")
    family: Family = "docker" if media_type == MANIFEST_TYPES["docker"] else "oci"
    for layer in manifest["layers"]:
        said = layer["mediaType"]
        if said not in LAYER_TYPES.values():
            raise ImageError(
                named, f"a layer is of type {said}; Lambda takes gzip layers only",
                "build or push the image with gzip compression",
            )  # fmt: skip
    blobs = tuple(Blob(layer["digest"], layer["size"]) for layer in manifest["layers"])
    return Base(digest, family, config, blobs)


def pick(index: Mapping[str, Any], architecture: str, named: str) -> str:
    """Digest of the manifest for linux/`architecture` in an index.

    Raises ImageError naming the platforms there are.
    """
    have = []
    for entry in index["manifests"]:
        platform = entry.get("platform") or {}
        if platform.get("os") == "linux" and platform.get("architecture") == architecture:
            return str(entry["digest"])
        if platform.get("os", "unknown") != "unknown":
            have.append(f"{platform['os']}/{platform.get('architecture')}")
    raise ImageError(
        named, f"it is not there for linux/{architecture}, only for {', '.join(have) or 'nothing'}",
        "set `architectures` to one of those, or take another image",
    )  # fmt: skip


def docker_login(host: str, environment: Mapping[str, str] = os.environ) -> Login | None:
    """The login that `docker login` left for `host`, if it did (`auths`; no helpers)."""
    folder = environment.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    try:
        auths = json.loads(path.read_text()).get("auths", {})
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ImageError(host, f"cannot read {path}: {exc}") from exc
    names = [host, f"https://{host}"]
    if host == "registry-1.docker.io":
        names = ["https://index.docker.io/v1/", "docker.io", *names]
    for name in names:
        if coded := auths.get(name, {}).get("auth"):
            user, _, password = base64.b64decode(coded).decode().partition(":")
            return Login(user, password)
    return None


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _mountable_from(source: Source, to: Repository) -> str:
    """The repository of `source`, where it is another one of the same registry."""
    here, there = source.mounts, to.mounts
    return here[1] if here and there and here[0] == there[0] and here != there else ""


def _pool(url: str) -> urllib3.PoolManager:
    """Connections to `url`, through the proxy that the environment names for it."""
    options: dict[str, Any] = {
        "maxsize": PARALLEL_BLOBS,
        "blocksize": 1 << 18,
        "timeout": urllib3.Timeout(connect=10, read=120),
    }
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not _is_loopback(parts.hostname) and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _is_loopback(host: str | None) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")


def _refusal(method: str, url: str, answer: urllib3.BaseHTTPResponse) -> tuple[str, str]:
    """Why, and what to do about it."""
    try:
        errors = json.loads(answer.data or b"{}").get("errors") or []
        said = "; ".join(f"{e.get('code')}: {e.get('message')}" for e in errors)
    except (ValueError, AttributeError):
        said = ""
    parts = urlsplit(url)
    why = f"{method} {parts.netloc}{parts.path}: HTTP {answer.status}"
    hint = ""
    if answer.status in (401, 403):
        hint = "the image does not exist or is private; log in with `docker login`"
    elif answer.status == 404:
        hint = "check its name and tag"
    return f"{why} {said}".rstrip(), hint


def _same_host(url: str, other: str) -> bool:
    return urlsplit(url)[:2] == urlsplit(other)[:2]


def _read_whole(stream: BinaryIO, blob: Blob, named: str) -> bytes:
    checked = Checked(stream, blob)
    try:
        return b"".join(iter(lambda: checked.read(1 << 16), b""))
    except CorruptBlob as exc:
        raise ImageError(named, f"blob {blob.digest}: {exc}") from exc
