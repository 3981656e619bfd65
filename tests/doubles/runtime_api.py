"""Lambda's Runtime API over real HTTP: events go in, answers come out."""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from scar_local.http import Exchange, Server

PREFIX = "/2018-06-01/runtime"


@dataclass(frozen=True)
class Answered:
    """What a runtime posted: `kind` is `response` or `error`."""

    kind: str
    body: dict[str, Any]
    headers: dict[str, str]
    size: int


class RuntimeApi:
    """Serves one runtime."""

    def __init__(self) -> None:
        self._events: queue.Queue[tuple[str, bytes, float] | None] = queue.Queue()
        self._answers: dict[str, Answered] = {}
        self._changed = threading.Condition()
        self._server = Server(0, self._answer)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._serving = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._serving.start()

    def push(self, event: Any, seconds: float = 30.0, request_id: str = "") -> str:
        """Hand an event (JSON data, or bytes as they are) to the runtime; its request id.

        One with a given request id is tried again.
        """
        request_id = request_id or str(uuid.uuid4())
        self._answers.pop(request_id, None)
        raw = event if isinstance(event, bytes) else json.dumps(event).encode()
        self._events.put((request_id, raw, seconds))
        return request_id

    def answer(self, request_id: str, timeout_s: float = 30.0) -> Answered:
        """What the runtime said about a request id; about `init` when it could not start."""
        with self._changed:
            assert self._changed.wait_for(lambda: request_id in self._answers, timeout_s)
            return self._answers[request_id]

    def invoke(self, event: Any, seconds: float = 30.0) -> Answered:
        return self.answer(self.push(event, seconds))

    def close(self) -> None:
        self._events.put(None)
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()

    def _answer(self, exchange: Exchange) -> None:
        path = exchange.path.removeprefix(PREFIX)
        if path == "/invocation/next":
            self._next(exchange)
            return
        body = exchange.body.read()
        _, _, request_id, kind = (
            path.split("/") if path.count("/") == 3 else ("", "", "init", "error")
        )
        headers = {name.lower(): value for name, value in exchange.headers.items()}
        with self._changed:
            self._answers[request_id] = Answered(kind, json.loads(body), headers, len(body))
            self._changed.notify_all()
        exchange.reply(202, b'{"status":"OK"}\n', content_type="application/json")

    def _next(self, exchange: Exchange) -> None:
        event = self._events.get()
        if event is None:
            raise ConnectionError("closed")
        request_id, raw, seconds = event
        headers = {
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + seconds) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:0:function:f",
            "Lambda-Runtime-Trace-Id": "Root=1-2-3",
        }
        exchange.reply(200, raw, headers, "application/json")
