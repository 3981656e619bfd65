"""One HTTP exchange over kept-alive connections: what the Runtime API and AWS clients stand on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

# http.client imports ssl, which takes as long as all the rest and which neither the Runtime API
# nor the local cloud needs: it is imported when the first https connection is made.
_ssl_postponed = "ssl" not in sys.modules
if _ssl_postponed:
    sys.modules["ssl"] = None  # type: ignore[assignment]
import http.client  # noqa: E402

if _ssl_postponed:
    del sys.modules["ssl"]

if TYPE_CHECKING:
    import ssl

CHUNK_BYTES = 256 * 1024

BROKEN = (OSError, http.client.HTTPException)
"""What an exchange raises when the connection fails before it is complete."""

Receive = Callable[[memoryview], None]


@dataclass(frozen=True)
class FilePart:
    """A stretch of a file as a request's body: read while it is sent, again when it is resent."""

    path: str
    offset: int
    length: int

    def chunks(self) -> Iterator[bytes]:
        """The stretch, piece by piece. Raises ValueError when the file has become shorter."""
        left, offset = self.length, self.offset
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            while left:
                chunk = os.pread(descriptor, min(left, CHUNK_BYTES), offset)
                if not chunk:
                    raise ValueError(f"{self.path} became shorter while it was sent")
                yield chunk
                left, offset = left - len(chunk), offset + len(chunk)
        finally:
            os.close(descriptor)


Body = bytes | FilePart


@dataclass(frozen=True)
class Reply:
    """An answer; header names in lower case. `body` is empty when a receiver took it."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Origin:
    """A server to ask, and idle connections to it. Safe to use from several threads."""

    def __init__(self, url: str, timeout_s: float | None = 30.0, verify: bool = True) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"`{url}` is not an http or https address")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._timeout_s, self._verify = timeout_s, verify
        self._idle: list[http.client.HTTPConnection] = []
        self.netloc = parts.netloc
        self.base_path = parts.path.rstrip("/")

    def exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body = b"",
        receiver: Callable[[Reply], Receive | None] | None = None,
    ) -> Reply:
        """Ask and read the answer.

        `receiver` sees status and headers and may give a function that takes the answer's body
        piece by piece. Raises one of BROKEN when the connection fails.
        """
        reused = self._idle.pop() if self._idle else None
        if reused is not None:
            try:
                response = _ask(reused, method, target, headers, body)
            except (ConnectionError, http.client.BadStatusLine):
                # The server closed it while it was idle, or while Lambda had us frozen.
                reused.close()
            else:
                return self._read(reused, response, receiver)
        connection = self._connection()
        try:
            response = _ask(connection, method, target, headers, body)
        except BaseException:
            connection.close()
            raise
        return self._read(connection, response, receiver)

    def _read(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        receiver: Callable[[Reply], Receive | None] | None,
    ) -> Reply:
        try:
            reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()})
            receive = receiver(reply) if receiver else None
            if receive is None:
                reply = Reply(reply.status, reply.headers, response.read())
            else:
                _pass_on(response, receive)
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return reply

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        connection = _SecureConnection(self._host, self._port or 443, timeout=self._timeout_s)
        connection.verify = self._verify
        return connection


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Body,
) -> http.client.HTTPResponse:
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    length = len(body) if isinstance(body, bytes) else body.length
    for name, value in headers.items():
        connection.putheader(name, value)
    if length or method in ("PUT", "POST"):
        connection.putheader("Content-Length", str(length))
    try:
        if isinstance(body, bytes):
            connection.endheaders(body or None)
        else:
            connection.endheaders()
            for chunk in body.chunks():
                connection.send(chunk)
    except (BrokenPipeError, ConnectionResetError) as exc:
        # The server may have refused before it read everything: its answer says why.
        try:
            return connection.getresponse()
        except BROKEN:
            raise exc from None
    return connection.getresponse()


def _pass_on(response: http.client.HTTPResponse, receive: Receive) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    expected, received = response.length, 0
    while count := response.readinto(buffer):
        received += count
        receive(buffer[:count])
    if expected is not None and received < expected:
        raise http.client.IncompleteRead(b"", expected - received)


class _SecureConnection(http.client.HTTPConnection):
    """What http.client.HTTPSConnection is, without importing ssl before it is needed."""

    default_port = 443
    verify = True

    def connect(self) -> None:
        """Connect, and check the server's certificate and name unless told otherwise."""
        super().connect()
        self.sock = _tls(self.verify).wrap_socket(self.sock, server_hostname=self.host)


@cache
def _tls(verify: bool) -> ssl.SSLContext:
    import ssl

    bundle = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    ours = os.path.join(sys.prefix, "lib", "cacert.pem")
    if not bundle and os.path.exists(ours):
        bundle = ours
    context = ssl.create_default_context(cafile=bundle)
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
