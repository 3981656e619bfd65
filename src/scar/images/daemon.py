"""Images that only the Docker daemon of this machine has, through its API; Podman's is the same."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from scar.errors import ImageError
from scar.images.archive import Archive
from scar.images.derive import Base, Blob, digest_of
from scar.images.manifests import check_layers, check_platform
from scar.images.streams import PART_BYTES

_LIMIT_S = 600
"""For a daemon to begin with an export."""
_RUN_KEYS = ("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Labels", "ExposedPorts",
             "Volumes", "StopSignal")  # fmt: skip


class Daemon:
    """A source of one image of the local Docker daemon, exported when a layer is first wanted."""

    mounts: tuple[str, str] | None = None

    def __init__(self, name: str, work: Path, address: str) -> None:
        self._name, self._work, self._address = name, work, address
        self._saved: Archive | None = None
        self._exporting = threading.Lock()
        self._layers: dict[str, int] = {}
        self._base: Base | None = None

    def base(self, version: str, architecture: str) -> Base:
        """The image, as the daemon describes it; `version` plays no part.

        Raises ImageError where the daemon does not have it.
        """
        about = self._described()
        config: dict[str, Any] = {
            "architecture": about.get("Architecture"),
            "os": about.get("Os"),
            "config": {k: v for k in _RUN_KEYS if (v := (about.get("Config") or {}).get(k))},
            "rootfs": {"type": "layers", "diff_ids": (about.get("RootFS") or {}).get("Layers")},
        }
        check_platform(config, architecture, self._name)
        diff_ids = check_layers(config, len(config["rootfs"]["diff_ids"] or ()), self._name)
        self._layers = {diff_id: n for n, diff_id in enumerate(diff_ids)}
        self._architecture = architecture
        layers = tuple(Blob(diff_id, 0, "none") for diff_id in diff_ids)
        return Base(digest_of(json.dumps(config, sort_keys=True).encode()), "oci", config, layers)

    def open(self, blob: Blob) -> BinaryIO:
        """A layer's plain tar; its digest is its diff id, which whoever packs it checks."""
        with self._exporting:
            if self._saved is None:
                self._saved, self._base = self._exported()
        assert self._base is not None, "exported above"
        layer = self._base.layers[self._layers[blob.digest]]
        return self._saved.open_plain(layer)

    def has_it(self) -> bool:
        """Whether there is a daemon, and it has the image."""
        try:
            self._described()
        except ImageError:
            return False
        return True

    def _described(self) -> dict[str, Any]:
        with _Connection(self._address) as connection:
            about = self._asked(connection, "json").read()
        try:
            found: dict[str, Any] = json.loads(about)
        except ValueError as exc:
            raise ImageError(self._name, "the Docker daemon describes it in no JSON") from exc
        return found

    def _exported(self) -> tuple[Archive, Base]:
        path = self._work / "export.tar"
        try:
            with _Connection(self._address) as connection, path.open("wb") as file:
                answer = self._asked(connection, "get")
                while part := answer.read(PART_BYTES):
                    file.write(part)
        except (OSError, http.client.HTTPException) as exc:
            path.unlink(missing_ok=True)
            is_full = isinstance(exc, OSError) and exc.errno == errno.ENOSPC
            hint = "set TMPDIR to a folder with room" if is_full else ""
            raise ImageError(self._name, f"the Docker daemon's export ended: {exc}", hint) from exc
        saved = Archive(path, self._work)
        return saved, saved.base("", self._architecture)

    def _asked(self, connection: http.client.HTTPConnection, what: str) -> http.client.HTTPResponse:
        try:
            connection.request("GET", f"/images/{quote(self._name, safe='/:@')}/{what}")
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise ImageError(self._name, f"the Docker daemon does not answer: {exc}") from exc
        if answer.status != 200:
            raise ImageError(self._name, f"the Docker daemon says HTTP {answer.status}")
        return answer


def daemon_address(environment: Mapping[str, str] = os.environ) -> str:
    """Where the Docker daemon of this machine listens: DOCKER_HOST, else a socket that is there.

    Empty where there is none, or where it is reached by SSH or TLS.
    """
    if named := environment.get("DOCKER_HOST"):
        return named if named.startswith("unix://") or _is_plain_tcp(named, environment) else ""
    runtime, home = environment.get("XDG_RUNTIME_DIR"), environment.get("HOME")
    places = ["/var/run/docker.sock"]
    if home:
        places.append(f"{home}/.docker/run/docker.sock")
    if runtime:
        places += [f"{runtime}/docker.sock", f"{runtime}/podman/podman.sock"]
    return next((f"unix://{place}" for place in places if os.access(place, os.W_OK)), "")


def _is_plain_tcp(address: str, environment: Mapping[str, str]) -> bool:
    return address.startswith("tcp://") and not environment.get("DOCKER_TLS_VERIFY")


class _Connection(http.client.HTTPConnection):
    """HTTP over the daemon's socket."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._path = parts.path if parts.scheme == "unix" else ""
        super().__init__(parts.netloc or "localhost", timeout=_LIMIT_S)

    def connect(self) -> None:
        if not self._path:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_LIMIT_S)
        self.sock.connect(self._path)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
