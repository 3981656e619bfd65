"""The HTTP server under every service: one exchange is one request and its one answer.

Threads, because the Runtime API's `next` and large transfers block; the standard library's server,
because it streams both ways and gives us the socket for sendfile.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import BinaryIO, cast
from urllib.parse import parse_qsl

READ_SIZE = 1 << 20
DRAIN_LIMIT = 64 << 20
"""Bytes of an unread request that are thrown away after an early answer, so that the client, which
may still be sending, reads the answer instead of a connection reset."""


class Body:
    """The request's body as a stream: `read(n)` gives at most n bytes, b"" at the end."""

    def __init__(self, source: BinaryIO, length: int) -> None:
        self._source, self.left = source, length

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all that is left. Raises ConnectionError: the client is gone."""
        want = self.left if size < 0 else min(size, self.left)
        data = self._source.read(want) if want else b""
        if len(data) < want:
            raise ConnectionError(f"the client closed {self.left - len(data)} bytes early")
        self.left -= len(data)
        return data

    def readline(self, limit: int = 8192) -> bytes:
        """One line with its line end (aws-chunked frames)."""
        line = self._source.readline(min(limit, self.left))
        self.left -= len(line)
        return line


class ChunkedBody(Body):
    """A body sent with `Transfer-Encoding: chunked`, as `docker push` does.

    `left` is what is left of the current chunk, and never 0 before the end.
    """

    def __init__(self, source: BinaryIO) -> None:
        super().__init__(source, 0)
        self._next_chunk()

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all that is left. Raises ConnectionError: the client is gone."""
        parts: list[bytes] = []
        while self.left and size != 0:
            data = super().read(size if size > 0 else self.left)
            parts.append(data)
            size -= len(data) if size > 0 else 0
            self._chunk_read()
        return b"".join(parts)

    def readline(self, limit: int = 8192) -> bytes:
        """One line; a line does not reach over the end of a chunk."""
        line = super().readline(limit)
        self._chunk_read()
        return line

    def _chunk_read(self) -> None:
        if self.left == 0:
            self._source.readline(8)
            self._next_chunk()

    def _next_chunk(self) -> None:
        line = self._source.readline(8192)
        try:
            self.left = int(line.partition(b";")[0], 16)
        except ValueError:
            raise ConnectionError(f"the client sent a broken chunk size {line[:20]!r}") from None
        if self.left < 0:
            raise ConnectionError(f"the client sent a negative chunk size {self.left}")
        while self.left == 0 and line.strip():  # trailers, which mean nothing to us
            line = self._source.readline(8192)


class Exchange:
    """One request, and the means to answer it once."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.method: str = handler.command
        self.path, _, self.raw_query = handler.path.partition("?")
        """The path is as sent: percent-encoded, never normalised (keys may hold `..` and `//`)."""
        self.query: dict[str, str] = dict(parse_qsl(self.raw_query, keep_blank_values=True))
        self.headers: HTTPMessage = cast(HTTPMessage, handler.headers)
        self.body = _body(cast(BinaryIO, handler.rfile), self.headers)
        self.answered = False

    @property
    def socket(self) -> socket.socket:
        """The connection, for those who must know when the client goes away."""
        return cast(socket.socket, self._handler.connection)

    def reply(
        self,
        status: int = 200,
        body: bytes = b"",
        headers: Mapping[str, str | tuple[str, ...]] | None = None,
        content_type: str | None = None,
    ) -> None:
        """Answer. To HEAD, give the headers (with Content-Length) and leave `body` empty.

        A tuple is a header that is sent once for each of its values.
        """
        self._start(status, {**(headers or {})}, len(body), content_type)
        if body and self.method != "HEAD":
            self._handler.wfile.write(body)
        self._handler.wfile.flush()

    def reply_file(
        self,
        path: Path,
        offset: int,
        length: int,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with a part of a file, without reading it into memory."""
        with path.open("rb") as file:
            self._start(status, {**(headers or {})}, length, None)
            self._handler.wfile.flush()
            if self.method == "HEAD":
                return
            while length > 0:
                sent = os.sendfile(self.socket.fileno(), file.fileno(), offset, length)
                if sent == 0:
                    raise ConnectionError(f"{path} became shorter while it was sent")
                offset, length = offset + sent, length - sent

    def drain(self) -> None:
        """Read away what the client still sends, up to DRAIN_LIMIT."""
        read = 0
        while self.body.left and read < DRAIN_LIMIT:
            read += len(self.body.read(READ_SIZE))

    def _start(
        self,
        status: int,
        headers: Mapping[str, str | tuple[str, ...]],
        length: int,
        content_type: str | None,
    ) -> None:
        handler = self._handler
        self.answered = True
        handler.send_response_only(status)
        handler.send_header("Date", formatdate(usegmt=True))
        if content_type:
            handler.send_header("Content-Type", content_type)
        if status not in (204, 304) and "Content-Length" not in headers:
            handler.send_header("Content-Length", str(length))
        for name, value in headers.items():
            for text in (value,) if isinstance(value, str) else value:
                handler.send_header(name, text)
        if self.body.left:  # an answer before the whole request was read: do not parse the rest
            handler.close_connection = True
            handler.send_header("Connection", "close")
        handler.end_headers()


def _body(source: BinaryIO, headers: HTTPMessage) -> Body:
    if "chunked" in (headers.get("Transfer-Encoding") or "").lower():
        return ChunkedBody(source)
    length = headers.get("Content-Length") or "0"
    if not length.isdecimal():
        raise ConnectionError(f"the client sent a broken Content-Length {length!r}")
    return Body(source, int(length))


class Handler(BaseHTTPRequestHandler):
    """Turns http.server's callbacks into one call of `Server.answer`."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True  # a boto3 get takes 44 ms otherwise
    server: Server

    def handle_expect_100(self) -> bool:
        """Say 100 Continue at once: boto3 waits 1 s for it before it sends a body."""
        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.wfile.flush()
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: requests are not logged."""

    def _answer(self) -> None:
        try:
            exchange = Exchange(self)
            self.server.answer(exchange)
            exchange.drain()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = _answer


class Server(ThreadingHTTPServer):
    """A loopback server that gives every request to `answer` in a thread of its connection.

    Raises OSError (EADDRINUSE) when the port is taken; port 0 takes any free one.
    """

    daemon_threads = True
    allow_reuse_port = False
    request_queue_size = 1024

    def __init__(self, port: int, answer: Callable[[Exchange], None]) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer = answer

    def server_bind(self) -> None:
        """Bind without HTTPServer's reverse name look-up, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass on what escaped; a client that went away is no news."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            sys.excepthook(type(error), error, error.__traceback__)
