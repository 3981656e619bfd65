"""A real WebDAV server (WsgiDAV) on a folder, with faults on request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cheroot.wsgi import Server
from wsgidav.wsgidav_app import WsgiDAVApp


class WebDavServer:
    """Serves `folder` under /dav to one login, by Basic authentication."""

    def __init__(self, folder: Path, login: str, password: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.users = {login: {"password": password}}
        self.asked: list[tuple[str, str]] = []
        self.before: Callable[[str], str | None] = lambda method: None
        """Told of a request; what it gives is the answer's status instead."""
        self.after: Callable[[str], str | None] = lambda method: None
        """The same, when the request has been carried out."""
        logging.getLogger("wsgidav").setLevel(logging.CRITICAL)
        self._app = WsgiDAVApp(
            {
                "provider_mapping": {"/dav": str(folder)},
                "simple_dc": {"user_mapping": {"*": self.users}},
                "http_authenticator": {
                    "accept_basic": True,
                    "accept_digest": False,
                    "default_to_digest": False,
                },
                "logging": {"enable": False},
                "verbose": 0,
            }
        )
        self._server = Server(("127.0.0.1", 0), self._answer, numthreads=8)
        self._server.prepare()
        self.url = f"http://127.0.0.1:{self._server.bind_addr[1]}/dav"
        self._serving = threading.Thread(target=self._server.serve, daemon=True)
        self._serving.start()

    def close(self) -> None:
        self._server.stop()
        self._serving.join()

    def files(self) -> dict[str, bytes]:
        """What is there, by path."""
        found = filter(Path.is_file, self.folder.rglob("*"))
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        self.asked.append((method, environ["PATH_INFO"]))
        if status := self.before(method):
            start(status, [("Content-Length", "0")])
            return [b""]
        body = b"".join(self._app(environ, start))
        if status := self.after(method):
            start(status, [("Content-Length", "0")], (None, None, None))
            return [b""]
        return [body]
