"""WebDAV: files appear under their name whole, by PUT to another name and MOVE (RFC 4918)."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping

from scar_supervisor import sigv4
from scar_supervisor.aws import ATTEMPTS, backoff_s
from scar_supervisor.contract import StorageProvider
from scar_supervisor.faults import Fault, StagingFailed
from scar_supervisor.storage import Guard
from scar_supervisor.storage.secret import ProviderSecret
from scar_supervisor.transport import BROKEN, Body, FilePart, Origin, Reply

TIMEOUT_S = 300.0
"""Between two signs of life: servers check and copy what they have received before they answer."""

_DONE = (200, 201, 204)
_NO_PARENT = (404, 409)
"""To a PUT: 409 by the RFC, 404 by some servers."""
_TRANSIENT = (423, 429, 500, 502, 503, 504)
_EXISTS = 405
"""To MKCOL for a collection that is there."""


class WebDav:
    """A folder of a WebDAV server; "bucket" and key together are a path below it."""

    def __init__(
        self,
        name: str,
        provider: StorageProvider,
        secret: ProviderSecret,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name, self._endpoint, self._secret = name, provider.endpoint, secret
        self._origin = Origin(provider.endpoint, TIMEOUT_S, provider.verify)
        self._pause = pause
        self._collections: set[str] = set()
        """Those that are there."""

    def fetch(self, bucket: str, key: str, path: str, guard: Guard, size: int | None = None) -> int:
        """Nothing tells of files on a WebDAV server, so none is an input."""
        raise StagingFailed(self._address(f"{bucket}/{key}"), "a WebDAV server is no input")

    def holds(self, bucket: str, key: str, path: str, about: Mapping[str, str]) -> bool:
        """False: WebDAV has no checksum to tell by."""
        return False

    def store(self, bucket: str, key: str, path: str, about: Mapping[str, str]) -> None:
        """Copy the file `path` there, with the collections above it; `about` is not kept.

        Raises StagingFailed where that is refused; what was there before then is there still.
        """
        target = f"{bucket}/{key}"
        folder, _, name = target.rpartition("/")
        start = name.encode()[:100].decode(errors="ignore")
        part = f"{folder}/.scar-{os.urandom(8).hex()}-{start}"
        try:
            try:
                self._put(part, path, folder)
                self._move(part, target, os.stat(path).st_size)
            except BaseException:
                self._remove(part)
                raise
        except StagingFailed as exc:
            raise StagingFailed(self._address(target), exc.why) from exc
        except (OSError, ValueError) as exc:
            raise StagingFailed(self._address(target), str(exc)) from exc

    def _put(self, part: str, path: str, folder: str) -> None:
        body = FilePart(path, 0, os.stat(path).st_size)
        reply = self._ask("PUT", part, body=body)
        if reply.status in _NO_PARENT:
            self._make(folder)
            reply = self._ask("PUT", part, body=body)
        _check(reply, "PUT")

    def _make(self, folder: str) -> None:
        """Make a collection, and those above it; of these a server may say no though they exist."""
        parts = folder.split("/")
        for count in range(1, len(parts) + 1):
            above = "/".join(parts[:count])
            if above in self._collections:
                continue
            reply = self._ask("MKCOL", f"{above}/")
            if reply.status in (*_DONE, _EXISTS):
                self._collections.add(above)
            elif above == folder:
                _check(reply, "MKCOL")

    def _move(self, part: str, target: str, size: int) -> None:
        headers = {"Destination": self._endpoint.rstrip("/") + _path(target), "Overwrite": "T"}
        reply = self._ask("MOVE", part, headers)
        if reply.status == 404 and self._has(target, size):
            return  # it was moved, and the answer to that was lost
        _check(reply, "MOVE")

    def _has(self, target: str, size: int) -> bool:
        reply = self._ask("HEAD", target)
        return reply.status == 200 and reply.headers.get("content-length") == str(size)

    def _remove(self, part: str) -> None:
        try:
            self._ask("DELETE", part, attempts=1)
        except (Fault, *BROKEN):
            # The first fault is what the user must see; what stays has a name that says whose.
            return

    def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        attempts: int = ATTEMPTS,
    ) -> Reply:
        """The last answer, a good one or one that would be given again."""
        renewed = False
        for attempt in range(1, attempts + 1):
            try:
                reply = self._once(method, path, headers or {}, body)
            except BROKEN as exc:
                if attempt == attempts:
                    raise StagingFailed(path, f"{exc or type(exc).__name__}") from exc
            else:
                if reply.status == 401 and not renewed and self._secret.forget():
                    renewed = True
                    continue
                if reply.status not in _TRANSIENT or attempt == attempts:
                    return reply
            self._pause(backoff_s(attempt))
        raise StagingFailed(path, "the login is refused")

    def _once(self, method: str, path: str, headers: Mapping[str, str], body: Body) -> Reply:
        login = f"{self._secret.value('login')}:{self._secret.value('password')}"
        every = {
            "Host": self._origin.netloc,
            "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
            "User-Agent": "scar-supervisor",
            **headers,
        }
        return self._origin.exchange(method, self._origin.base_path + _path(path), every, body)

    def _address(self, path: str) -> str:
        return f"{self._name}://{path}"


def _path(path: str) -> str:
    return f"/{sigv4.encode_path(path)}"


def _check(reply: Reply, method: str) -> None:
    if reply.status in _DONE:
        return
    from http.client import responses

    what = f"{method} answers {reply.status} {responses.get(reply.status, '')}".rstrip()
    if reply.status == 401:
        what = "the login is refused"
    elif reply.status in (301, 302, 307, 308):
        what += f" to `{reply.headers.get('location', '')}`: name that address"
    raise StagingFailed("", what)
