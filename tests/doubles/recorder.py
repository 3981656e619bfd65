"""A proxy on loopback that keeps every request as it came over the wire, and whoever answers it."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote

from scar_local.http import Exchange, Server

_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/(\d{8})/([^/,\s]*)/([^/,\s]+)/aws4_request")
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "date"})
_ALWAYS_SENT = frozenset({"host", "content-length", "expect", "transfer-encoding"})


@dataclass(frozen=True)
class Recorded:
    """One request and the status of its answer. Header names are as sent, in their order."""

    method: str
    path: str
    """Percent-encoded, as sent."""
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    status: int

    def header(self, name: str) -> str:
        """The header's value; empty where it was not sent."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    @property
    def credential(self) -> tuple[str, str, str, str]:
        """Access key, day, region and service of the signature; empty where nothing was signed."""
        match = _CREDENTIAL.search(self.header("Authorization"))
        return (match[1], match[2], match[3], match[4]) if match else ("", "", "", "")

    @property
    def service(self) -> str:
        """The name that the request is signed for."""
        return self.credential[3]

    @property
    def is_supervisors(self) -> bool:
        """Whether a function or job sent it: botocore always names itself."""
        return not self.header("User-Agent")

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The query, decoded."""
        return parse_qsl(self.query, keep_blank_values=True)

    def __str__(self) -> str:
        who = "supervisor" if self.is_supervisors else "scar"
        target = self.header("X-Amz-Target") or f"{self.path}?{self.query}".rstrip("?")
        return f"{who}: {self.service or 'unsigned'} {self.method} {unquote(target)}"


Answer = tuple[int, bytes]
"""Status and body."""


class Recorder:
    """Keeps what passes; `upstream` is the port of 127.0.0.1 that answers.

    `instead` may answer a request itself: as an account would that upstream is not.
    """

    def __init__(self, instead: Callable[[Recorded], Answer | None] = lambda one: None) -> None:
        self.instead = instead
        self.requests: list[Recorded] = []
        self.upstream = 0
        self._lock = threading.Lock()
        self._server = Server(0, self._answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, exchange: Exchange) -> None:
        body = b"".join(iter(lambda: exchange.body.read(1 << 20), b""))
        headers = tuple(exchange.headers.items())
        asked = Recorded(exchange.method, exchange.path, exchange.raw_query, headers, body, 0)
        if answer := self.instead(asked):
            status, content = answer
            given: dict[str, str | tuple[str, ...]] = {}
        else:
            status, content, given = self._pass_on(asked)
        with self._lock:
            self.requests.append(replace(asked, status=status))
        exchange.reply(status, content, given)

    def _pass_on(self, asked: Recorded) -> tuple[int, bytes, dict[str, str | tuple[str, ...]]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream)
        target = f"{asked.path}?{asked.query}" if asked.query else asked.path
        try:
            connection.putrequest(asked.method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers:
                if name.lower() not in _ALWAYS_SENT:
                    connection.putheader(name, value)
            connection.putheader("Host", asked.header("Host"))
            connection.putheader("Content-Length", str(len(asked.body)))
            connection.endheaders(asked.body)
            answer = connection.getresponse()
            content = answer.read()
            given: dict[str, str | tuple[str, ...]] = {}
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    given[name] = (*given[name], value) if name in given else (value,)
            return answer.status, content, given
        finally:
            connection.close()

    @contextmanager
    def serving(self) -> Iterator[Recorder]:
        """Answer until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
