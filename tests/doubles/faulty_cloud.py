"""A real HTTP proxy before a cloud that does to requests what a plan says, and kills who asks.

Whoever is killed needs no hook for it: the proxy finds the process at the other end of the
connection, and the supervisor among its ancestors.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from urllib.parse import unquote, urlsplit

from scar_local.http import Exchange, Server

SLOW_S = 0.3
_SUPERVISOR = b"scar_supervisor.__main__"
_BREAK = ConnectionResetError("on purpose")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


class Fault(Enum):
    """What happens to a request."""

    ERROR = "500"
    SLOW_DOWN = "503"
    RESET = "not passed on, connection reset"
    LOST = "done, but the answer is lost"
    CUT = "half of its body passed on"
    TRUNCATED = "half of the answer"
    SLOW = "passed on late"
    KILL_BEFORE = "not passed on, whoever asked is killed"
    KILL_AFTER = "done, then whoever asked is killed"


IN_SCRIPT = "/in-script/"
"""Requests below it come from scripts, which ask for nothing but to be found; answered by us."""

KILLS = (Fault.KILL_BEFORE, Fault.KILL_AFTER)


@dataclass(frozen=True)
class Asked:
    """One request. `path` is decoded; `nth` counts from 1 the requests of its method and path."""

    service: str
    method: str
    path: str
    query: str
    nth: int
    body: bytes = field(default=b"", repr=False)


Plan = Callable[[Asked], Fault | None]


@dataclass(frozen=True)
class Seeded:
    """A share of all requests fails, the same ones for the same seed."""

    seed: int
    rate: float
    faults: tuple[Fault, ...] = tuple(Fault)

    def __call__(self, asked: Asked) -> Fault | None:
        random = Random(f"{self.seed} {asked}")
        return random.choice(self.faults) if random.random() < self.rate else None


class FaultyCloud:
    """The proxy. `plan` is asked from several threads, and may be replaced at any time."""

    def __init__(self, upstream: str, plan: Plan = lambda _: None) -> None:
        self.plan = plan
        self.happened: Counter[Fault] = Counter()
        self.asked: list[Asked] = []
        self.killed: list[int] = []
        self._upstream = urlsplit(upstream)
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._server = Server(0, self._answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._serving = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._serving.start()

    def close(self) -> None:
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()

    def _answer(self, exchange: Exchange) -> None:
        body = exchange.body.read()
        asked = self._note(exchange, body)
        fault = self._fault(asked)
        if fault in (Fault.ERROR, Fault.SLOW_DOWN):
            _refuse(exchange, asked, fault)
            return
        self._before(exchange, body, fault)
        if asked.path.startswith(IN_SCRIPT):
            status, headers, answer = 200, dict[str, str](), b""
        else:
            status, headers, answer = self._pass_on(exchange, body)
        if fault is Fault.KILL_AFTER:
            self._kill(exchange.socket)
        if fault in (Fault.LOST, Fault.KILL_AFTER):
            raise _BREAK
        if fault is Fault.TRUNCATED:
            length = {"Content-Length": str(len(answer))}
            exchange.reply(status, answer[: len(answer) // 2], {**headers, **length})
            raise _BREAK
        exchange.reply(status, b"" if asked.method == "HEAD" else answer, headers)

    def _fault(self, asked: Asked) -> Fault | None:
        """What happens to a request; a fault that it cannot have is another one like it."""
        fault = self.plan(asked)
        if fault is Fault.CUT and not asked.body:
            fault = Fault.RESET
        if fault is Fault.TRUNCATED and asked.method != "GET":
            fault = Fault.LOST
        if fault is not None:
            with self._lock:
                self.happened[fault] += 1
        return fault

    def _before(self, exchange: Exchange, body: bytes, fault: Fault | None) -> None:
        if fault is Fault.SLOW:
            time.sleep(SLOW_S)
        elif fault is Fault.CUT:
            self._pass_half_on(exchange, body)
        elif fault is Fault.KILL_BEFORE:
            self._kill(exchange.socket)
        if fault in (Fault.RESET, Fault.CUT, Fault.KILL_BEFORE):
            raise _BREAK

    def _note(self, exchange: Exchange, body: bytes) -> Asked:
        scope = (exchange.headers.get("Authorization") or "").partition("Credential=")[2].split("/")
        path = unquote(exchange.path)
        with self._lock:
            self._counts[exchange.method, path] += 1
            nth = self._counts[exchange.method, path]
            service = scope[3] if len(scope) > 3 else ""
            asked = Asked(service, exchange.method, path, exchange.raw_query, nth, body)
            self.asked.append(asked)
        return asked

    def _pass_on(self, exchange: Exchange, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = self._connection()
        try:
            self._send_head(connection, exchange, len(body))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            if exchange.method != "HEAD":
                headers.pop("Content-Length", None)
            headers.pop("Date", None)
            return answer.status, headers, data
        except http.client.HTTPException as exc:  # it broke off
            raise _BREAK from exc
        finally:
            connection.close()

    def _pass_half_on(self, exchange: Exchange, body: bytes) -> None:
        connection = self._connection()
        self._send_head(connection, exchange, len(body))
        connection.endheaders(body[: len(body) // 2])
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        assert self._upstream.hostname is not None
        return http.client.HTTPConnection(self._upstream.hostname, self._upstream.port, timeout=60)

    def _send_head(
        self, connection: http.client.HTTPConnection, exchange: Exchange, length: int
    ) -> None:
        target = exchange.path + (f"?{exchange.raw_query}" if exchange.raw_query else "")
        connection.putrequest(exchange.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in exchange.headers.items():
            if name.lower() not in (*_HOP_BY_HOP, "content-length"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(length))

    def _kill(self, connection: socket.socket) -> None:
        try:
            pid = supervisor_above(process_at(connection))
            os.kill(pid, signal.SIGKILL)
        except (LookupError, OSError):  # another of its requests has been its death already
            return
        with self._lock:
            self.killed.append(pid)


def process_at(connection: socket.socket) -> int:
    """The process at the other end of a connection from this machine."""
    theirs, ours = connection.getpeername()[1], connection.getsockname()[1]
    wanted = f":{theirs:04X} 0100007F:{ours:04X} "
    for line in Path("/proc/net/tcp").read_text().splitlines():
        if wanted in line:
            link = f"socket:[{line.split()[9]}]"
            break
    else:
        raise LookupError("the connection is gone")
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(path) == link:
                return int(path.parts[2])
        except OSError:  # a process that ended meanwhile
            continue
    raise LookupError(f"nobody has {link}")


def supervisor_above(pid: int) -> int:
    """The supervisor that is a process, or one of its ancestors."""
    at = pid
    while at > 1:
        if _SUPERVISOR in Path(f"/proc/{at}/cmdline").read_bytes():
            return at
        at = int(Path(f"/proc/{at}/stat").read_text().rpartition(")")[2].split()[1])
    raise LookupError(f"process {pid} is not of a supervisor")


def _refuse(exchange: Exchange, asked: Asked, fault: Fault | None) -> None:
    status, code = (500, "InternalError") if fault is Fault.ERROR else (503, "SlowDown")
    if asked.service in ("s3", ""):
        text = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>"
        exchange.reply(status, text.encode(), content_type="application/xml")
    else:
        exchange.reply(status, b'{"message": "on purpose"}', {"x-amzn-errortype": code})
