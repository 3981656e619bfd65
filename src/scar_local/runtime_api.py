"""The Lambda Runtime API (2018-06-01) of one execution environment, on its own loopback port.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html: the runtime in the container asks
for the `next` invocation, and answers it with `response` or `error`; `init/error` says that it can
never serve one.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from dataclasses import dataclass

from scar_local import callers
from scar_local.engines import Exit
from scar_local.http import READ_SIZE, Exchange, Server

MAX_RESPONSE_BYTES = 6_291_556
"""What Lambda takes from a function: 6 MB and 100 bytes, as its own error message says."""

_INVOCATION = re.compile(r"/2018-06-01/runtime/invocation/([^/]+)/(response|error)")


@dataclass(frozen=True)
class Invocation:
    """One event on its way to a runtime."""

    request_id: str
    payload: bytes
    function_arn: str
    trace_id: str
    client_context: str | None = None
    """JSON text of the caller's client context, already decoded."""


@dataclass(frozen=True)
class Answer:
    """What the runtime said. `error_type` is None when the function succeeded."""

    payload: bytes
    error_type: str | None = None


def error_answer(error_type: str, message: str) -> Answer:
    """An error as Lambda itself words it."""
    payload = {"errorType": error_type, "errorMessage": message}
    return Answer(json.dumps(payload).encode(), error_type)


class RuntimeApi:
    """One listener; serves the runtime of one environment, one invocation at a time."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._asking = False
        self._offered: tuple[Invocation, int] | None = None
        self._current: str | None = None
        self._answer: Answer | None = None
        self._failure: Answer | Exit | None = None
        self._closed = False
        self._server = Server(0, self._serve)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._accept, name="runtime-api", daemon=True).start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the runtime asks for work or has failed; False when neither happened."""
        with self._state:
            return self._state.wait_for(
                lambda: self._asking or self._failure is not None, max(timeout_s, 0)
            )

    @property
    def failure(self) -> Answer | Exit | None:
        """Why this environment can serve nothing more: its `init/error`, or how it ended."""
        return self._failure

    def call(self, invocation: Invocation, timeout_s: float) -> Answer | Exit | None:
        """Give the runtime an invocation and wait for its answer.

        An Exit when the process ended instead; None when it took longer than `timeout_s`.
        """
        deadline_ms = int((time.time() + timeout_s) * 1000)
        with self._state:
            self._answer = None
            self._offered = (invocation, deadline_ms)
            self._state.notify_all()
            self._state.wait_for(
                lambda: self._answer is not None or self._failure is not None, timeout_s
            )
            self._offered = None
            self._current = None
            return self._answer or self._failure

    def ended(self, end: Exit) -> None:
        """The container is gone: nobody will ask or answer any more."""
        with self._state:
            if self._failure is None:
                self._failure = end
            self._closed = True
            self._state.notify_all()

    def close(self) -> None:
        """Stop listening."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        try:
            # `handle_request` blocks in select; a connection is the portable way to wake it.
            socket.create_connection(("127.0.0.1", self._server.server_port), timeout=1).close()
        except OSError:
            return  # the accept loop has closed the socket already

    def _accept(self) -> None:
        while not self._closed:
            self._server.handle_request()
        self._server.server_close()

    def _serve(self, exchange: Exchange) -> None:
        if why := callers.refusal(exchange):
            _refuse(exchange, 403, "Forbidden", why)
        elif exchange.path == "/2018-06-01/runtime/invocation/next" and exchange.method == "GET":
            self._next(exchange)
        elif exchange.path == "/2018-06-01/runtime/init/error" and exchange.method == "POST":
            self._init_error(exchange)
        elif (match := _INVOCATION.fullmatch(exchange.path)) and exchange.method == "POST":
            self._answered(exchange, match[1], match[2])
        else:
            _refuse(exchange, 404, "InvalidPath", f"no such path: {exchange.path}")

    def _next(self, exchange: Exchange) -> None:
        with self._state:
            self._asking = True
            self._state.notify_all()
            self._state.wait_for(lambda: self._offered is not None or self._closed)
            self._asking = False
            offered, self._offered = self._offered, None
            if offered is not None:
                self._current = offered[0].request_id
        if offered is None:
            raise ConnectionError("the environment is closing")
        invocation, deadline_ms = offered
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.function_arn,
            "Lambda-Runtime-Trace-Id": invocation.trace_id,
        }
        if invocation.client_context is not None:
            headers["Lambda-Runtime-Client-Context"] = invocation.client_context
        exchange.reply(200, invocation.payload, headers, "application/json")

    def _answered(self, exchange: Exchange, request_id: str, kind: str) -> None:
        body = _read_at_most(exchange, MAX_RESPONSE_BYTES)
        if body is None:
            answer = error_answer(
                "Function.ResponseSizeTooLarge",
                "Response payload size exceeded maximum allowed payload size "
                f"({MAX_RESPONSE_BYTES} bytes).",
            )
        elif kind == "error":
            answer = _reported_error(exchange, body)
        else:
            answer = Answer(body)
        with self._state:
            known = self._current == request_id
            if known:
                self._answer, self._current = answer, None
                self._state.notify_all()
        if not known:
            _refuse(exchange, 400, "InvalidRequestID", f"not the current request: {request_id}")
        elif body is None:
            _refuse(exchange, 413, "RequestEntityTooLarge", "Exceeded maximum allowed payload size")
        else:
            _accepted(exchange)

    def _init_error(self, exchange: Exchange) -> None:
        body = _read_at_most(exchange, MAX_RESPONSE_BYTES) or b""
        with self._state:
            self._failure = _reported_error(exchange, body)
            self._state.notify_all()
        _accepted(exchange)


def _read_at_most(exchange: Exchange, limit: int) -> bytes | None:
    """The whole body; None when it is larger, which is read too so that the client can hear why."""
    chunks: list[bytes] = []
    size = 0
    while chunk := exchange.body.read(READ_SIZE):
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
    return b"".join(chunks) if size <= limit else None


def _reported_error(exchange: Exchange, body: bytes) -> Answer:
    named = exchange.headers.get("Lambda-Runtime-Function-Error-Type")
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return error_answer(named or "Runtime.Unknown", body.decode("utf-8", "replace"))
    return Answer(body, named or str(said.get("errorType") or "Runtime.Unknown"))


def _accepted(exchange: Exchange) -> None:
    exchange.reply(202, b'{"status":"OK"}\n', content_type="application/json")


def _refuse(exchange: Exchange, status: int, error_type: str, message: str) -> None:
    body = json.dumps({"errorMessage": message, "errorType": error_type}).encode()
    exchange.reply(status, body, content_type="application/json")
