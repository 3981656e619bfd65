"""The OCI distribution protocol, as far as deriving needs it: pull, mount, push. On urllib3.

Blobs are streamed, never held; every digest is checked while it passes. One monolithic PUT an
upload: ECR drops the second PATCH of a chunked one.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, cast
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from scar.errors import ImageError
from scar.images.connect import RegistryError, is_loopback, pool, speaks_tls
from scar.images.derive import INDEX_TYPES, MANIFEST_TYPES, Base, Blob
from scar.images.login import Login
from scar.images.manifests import (
    DOCUMENT_LIMIT_BYTES,
    Document,
    base_of,
    config_blob,
    find,
    parsed,
)
from scar.images.streams import Checked, CorruptBlob, Reading
from scar.images.tokens import Authorization, Challenged

ACCEPT = ", ".join([*MANIFEST_TYPES.values(), *INDEX_TYPES])
ATTEMPTS = 3
"""Uploads of one blob before we give up."""
RESUMES = 5
"""Times that one download may break; it goes on from the byte where it broke."""
PAUSE_S = 0.3
"""Before the first repetition; then twice as long each time."""

Sent = Callable[[int], None]
"""Told how many bytes of a blob are there by now."""


class _Stale(RegistryError):
    """The login ran out while a body was sent; there is a new one."""


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    stream: urllib3.BaseHTTPResponse


class Repository:
    """One repository of one registry.

    `named` is the image as the user wrote it, for errors; `login` is asked once the registry wants
    one. `plain`: HTTP; None: on loopback what answers there, anywhere else HTTPS. `pause_s` goes by
    before something is tried again.
    """

    def __init__(
        self, host: str, name: str, named: str,
        login: Callable[[], Login | None] = lambda: None, plain: bool | None = None,
        pause_s: float = PAUSE_S,
    ) -> None:  # fmt: skip
        self._host, self._name, self._named = host, name, named
        self._plain, self._pause_s = plain, pause_s
        # Refusals of TLS and of names come again; a registry that is asked too much wants time.
        self._retries = urllib3.Retry(
            4, connect=2, other=0, redirect=0, status_forcelist=(429, 502, 503, 504),
            backoff_factor=pause_s, raise_on_status=False, raise_on_redirect=False,
            allowed_methods=None, retry_after_max=20,
        )  # fmt: skip
        self._authorization = Authorization(host, name, named, login)
        self._logging_in = threading.Lock()

    @property
    def mounts(self) -> tuple[str, str] | None:
        """Host and repository, for mounting its blobs in another repository there."""
        return self._host, self._name

    def base(self, version: str, architecture: str) -> Base:
        """The image for `architecture` (OCI's word) under the tag or digest `version`.

        Raises ImageError where there is none.
        """
        document, manifest = find(self.manifest, version, architecture, self._named)
        blob = config_blob(manifest, self._named)
        with self.open(blob) as stream:
            body = b"".join(iter(lambda: stream.read(1 << 16), b""))
        config = parsed(body, "config", self._named)
        return base_of(document, manifest, config, architecture, self._named)

    def manifest(self, version: str) -> Document:
        """The manifest or index under a tag or digest."""
        answer = self._ask("GET", f"manifests/{version}", {"Accept": ACCEPT})
        if len(answer.body) > DOCUMENT_LIMIT_BYTES:
            raise ImageError(self._named, "its manifest has more than 4 MiB")
        said = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        document = Document(answer.body, said)
        if version.startswith("sha256:") and document.digest != version:
            raise CorruptBlob(self._named, f"the manifest is not {version}")
        return document

    def open(self, blob: Blob) -> BinaryIO:
        """The content of a blob, checked; it goes on from where it broke."""
        resuming = _Resuming(blob, self._download, self._named, self._pause_s)
        return cast(
            BinaryIO,
            Checked(cast(BinaryIO, resuming), blob.digest, blob.size_bytes, self._named),
        )

    def has(self, blob: Blob) -> bool:
        """Whether the repository holds `blob`."""
        return self._ask("HEAD", f"blobs/{blob.digest}", ok=(200, 404)).status == 200

    def put(
        self, blob: Blob, opened: Callable[[], BinaryIO], mount_from: str = "",
        sent: Sent = lambda count: None,
    ) -> None:  # fmt: skip
        """Store a blob unless it is there; `mount_from` names a repository here that has it."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s * 2**attempt)
            if self.has(blob):
                break
            try:
                self._upload(blob, opened, mount_from, sent)
                break
            except ImageError as exc:
                if attempt + 1 == ATTEMPTS or not _may_pass(exc):
                    raise
        sent(blob.size_bytes)

    def put_manifest(self, tag: str, body: bytes, media_type: str) -> None:
        """Store the manifest under `tag`; its blobs must be there."""
        headers = {"Content-Type": media_type}
        self._ask("PUT", f"manifests/{tag}", headers, ok=(201, 200), body=body)

    def _upload(
        self, blob: Blob, opened: Callable[[], BinaryIO], mount_from: str, sent: Sent
    ) -> None:
        answer = self._begin(blob, mount_from)
        if answer.status == 201:
            return  # mounted
        location = urljoin(self._url, answer.headers.get("Location", ""))
        location += ("&" if "?" in location else "?") + urlencode({"digest": blob.digest})
        headers = {
            "Content-Length": str(blob.size_bytes),
            "Content-Type": "application/octet-stream",
        }
        with opened() as stream:
            body = _Counted(stream, sent)
            # No retry inside: the stream is consumed.
            self._ask("PUT", location, headers, (201, 204), body=body, retries=False)

    def _begin(self, blob: Blob, mount_from: str) -> _Answer:
        """A new upload, or 201 where the blob was mounted instead."""
        headers = {"Content-Length": "0"}
        if mount_from:
            query = urlencode({"mount": blob.digest, "from": mount_from})
            try:
                return self._ask("POST", f"blobs/uploads/?{query}", headers, (201, 202))
            except RegistryError as exc:
                if exc.is_passing:
                    raise
                # Whoever may not read there, or may not mount, may still upload here.
        return self._ask("POST", "blobs/uploads/", headers, (201, 202))

    def _download(self, blob: Blob, start: int) -> urllib3.BaseHTTPResponse:
        """A blob's bytes from `start` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self._ask("GET", f"blobs/{blob.digest}", headers, (200, 206), streams=True)
        left = start if answer.status == 200 else 0  # it knows no ranges
        while left and (skipped := answer.stream.read(min(left, 1 << 18))):
            left -= len(skipped)
        return answer.stream

    @cached_property
    def _url(self) -> str:
        plain = self._plain
        if plain is None:
            plain = is_loopback(self._host) and not speaks_tls(self._host)
        return f"{'http' if plain else 'https'}://{self._host}"

    @cached_property
    def _http(self) -> urllib3.PoolManager:
        return pool(self._url)

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None,
        ok: Sequence[int] = (200,), streams: bool = False, **more: Any,
    ) -> _Answer:  # fmt: skip
        url = urljoin(f"{self._url}/v2/{self._name}/", path)
        used = self._authorization.header
        answer = self._send(method, url, headers, streams, more)
        if answer.status == 401:
            self._log_in(used, answer.headers.get("WWW-Authenticate", ""))
            if hasattr(more.get("body"), "read"):
                raise _Stale(self._named, "the login ran out", status=401)
            answer = self._send(method, url, headers, streams, more)
        if answer.status not in ok:
            raise self._refusal(method, url, answer)
        return answer

    def _log_in(self, used: str, challenge: str) -> None:
        with self._logging_in:
            if self._authorization.header == used:  # else another thread just did
                try:
                    self._authorization.renew(
                        Challenged(challenge, self._url), self._http, self._retries
                    )
                except HTTPError as exc:
                    raise self._silence(self._url, exc) from exc

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None, streams: bool,
        more: Mapping[str, Any],
    ) -> _Answer:  # fmt: skip
        """One request, redirects followed; only our registry gets the credentials."""
        for _ in range(6):
            sent = dict(headers or {})
            if self._authorization.header and urlsplit(url)[:2] == urlsplit(self._url)[:2]:
                sent["Authorization"] = self._authorization.header
            answer = self._exchange(method, url, sent, streams, more)
            if method not in ("GET", "HEAD") or answer.status not in (301, 302, 303, 307, 308):
                return answer
            url = urljoin(url, answer.headers.get("Location", ""))
        raise RegistryError(
            self._named, f"more than 5 redirects, the last to {urlsplit(url).netloc}", status=310
        )

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], streams: bool,
        more: Mapping[str, Any],
    ) -> _Answer:  # fmt: skip
        options = {"retries": self._retries, **more}
        try:
            response = self._http.request(
                method, url, headers=headers, redirect=False, preload_content=False,
                decode_content=False, **options,
            )  # fmt: skip
            body = b""
            if not (streams and response.status in (200, 206)):
                body = response.read(DOCUMENT_LIMIT_BYTES + 1)
                response.release_conn()
        except (HTTPError, OSError) as exc:
            raise self._silence(url, exc) from exc
        return _Answer(response.status, response.headers, body, response)

    def _silence(self, url: str, exc: Exception) -> RegistryError:
        """No answer: nobody there, a connection that broke, a certificate nobody vouches for."""
        reason = exc.reason if isinstance(exc, MaxRetryError) and exc.reason else exc
        cause = reason.args[0] if reason.args else reason
        hint = "check the registry's name and the network"
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = "name the file of its certificate authority in SSL_CERT_FILE"
        return RegistryError(
            self._named, f"`{urlsplit(url).netloc}` does not answer: {_reason(reason)}", hint
        )

    def _refusal(self, method: str, url: str, answer: _Answer) -> RegistryError:
        parts = urlsplit(url)
        why = f"{method} {parts.netloc}{parts.path}: HTTP {answer.status} {_said(answer.body)}"
        hint = ""
        if answer.status in (401, 403):
            hint = self._authorization.hint()
        elif answer.status == 404:
            hint = "check its name and tag"
        elif answer.status == 429:
            hint = "it limits how often one may ask; log in with `docker login`, or wait"
        return RegistryError(self._named, why.rstrip(), hint, answer.status)


class _Resuming(Reading):
    """A blob's bytes, asked for again from where they broke off."""

    def __init__(
        self, blob: Blob, download: Callable[[Blob, int], urllib3.BaseHTTPResponse], named: str,
        pause_s: float,
    ) -> None:  # fmt: skip
        self._blob, self._download, self._named = blob, download, named
        self._pause_s = pause_s
        self._at = self._broke = 0
        self._response: urllib3.BaseHTTPResponse | None = None

    def read(self, size: int = -1) -> bytes:
        while True:
            try:
                if self._response is None:
                    self._response = self._download(self._blob, self._at)
                data = self._response.read(size if size >= 0 else None)
                if not data and self._at < self._blob.size_bytes:
                    raise urllib3.exceptions.IncompleteRead(
                        self._at, self._blob.size_bytes - self._at
                    )
            except (HTTPError, OSError) as exc:
                self._again(exc)
                continue
            except RegistryError as exc:
                if self._at == 0 or not exc.is_passing:
                    raise
                self._again(exc)
                continue
            self._at += len(data)
            return data

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        super().close()

    def _again(self, exc: Exception) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        self._broke += 1
        if self._broke > RESUMES:
            raise ImageError(
                self._named,
                f"blob {self._blob.digest} broke off {self._broke} times, "
                f"at byte {self._at} of {self._blob.size_bytes}: {exc}",
            ) from exc
        time.sleep(self._pause_s * 2 ** (self._broke - 1))


class _Counted:
    """A body to send that tells how far it is."""

    def __init__(self, stream: BinaryIO, sent: Sent) -> None:
        self._stream, self._sent, self._count = stream, sent, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        self._sent(self._count)
        return data


def _may_pass(exc: ImageError) -> bool:
    return isinstance(exc, CorruptBlob | _Stale) or (
        isinstance(exc, RegistryError) and exc.is_passing
    )


def _said(body: bytes) -> str:
    """The registry's own words."""
    try:
        errors = parsed(body, "answer", "").get("errors") or []
        return "; ".join(f"{e.get('code')}: {e.get('message')}" for e in errors)
    except (ImageError, AttributeError, TypeError):
        return ""


def _reason(exc: BaseException) -> str:
    """urllib3 begins with the connection's address in memory."""
    text = str(exc)
    return text.partition(">: ")[2] or text.partition("): ")[2] or text
