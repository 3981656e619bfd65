"""What the nodes of one job say to each other: handshake, frames, and the checks of both.

Sans-IO: bytes in, bytes and frames out. Imports little, for the remote shell starts with it.

    server  "SCARMNP1" nonce[32]
    client  nonce[32] HMAC(key, "client", both nonces)
    server  HMAC(key, "server", both nonces)
    both    length u32 | kind u8 | payload | HMAC(direction's key, sequence u64, kind, payload)[:16]

Whoever has not the job's secret gets no frame in or out; frames cannot be changed, dropped,
repeated, reordered or sent back. They can be read: nothing in them is secret but the environment
of commands, from which credentials are left out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAGIC = b"SCARMNP1"
PORT = 7470
SECRET_LEAST_LENGTH = 32

HELLO, STAGED, READY, PING, SHUTDOWN = 1, 2, 3, 4, 5
DONE, BYE, FAILED, LOG = 6, 7, 8, 9
EXEC, STDIN, STDIN_TAKEN, STDOUT, STDERR = 10, 11, 12, 13, 14
SIGNAL, EXIT = 15, 16
"""Kinds of frames.

child to main: HELLO{node} STAGED LOG[bytes] DONE{code} BYE FAILED{error}; main to child:
READY{nodes} SHUTDOWN{code} FAILED{error}; both: PING; of a remote command: EXEC{command, variables,
directory} STDIN[bytes; none is the end] SIGNAL{signal} there, STDIN_TAKEN[u32] STDOUT STDERR
EXIT{code, error} back.
"""

LONGEST_PAYLOAD_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16
WINDOW_BYTES = 1 << 18
"""Of a command's input a client sends at most so much ahead of STDIN_TAKEN."""

_NONCE_BYTES, _PROOF_BYTES, _TAG_BYTES = 32, 32, 16
_HEAD = struct.Struct("!IB")
_SEQUENCE = struct.Struct("!QB")
_LONGEST_HANDSHAKE_BYTES = 4096


class Refused(Exception):
    """The peer does not hold the secret, or does not speak as a node of this job would."""


def job_key(secret: str, job_id: str) -> bytes:
    """The key of all nodes of a job; `job_id` with or without the node's `#n`."""
    return _mac(secret.encode(), b"scar-mnp-v1", job_id.partition("#")[0].encode())


def packed(payload: Mapping[str, Any]) -> bytes:
    """A payload as JSON."""
    return json.dumps(payload).encode()


def unpacked(payload: bytes, fields: Mapping[str, type]) -> dict[str, Any]:
    """A JSON payload that has these fields, of these types; others are left out.

    Raises Refused where it has not.
    """
    try:
        data = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise Refused(f"a payload is not JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise Refused("a payload is no JSON object")
    for name, kind in fields.items():
        value = data.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise Refused(f"a payload's `{name}` is not of type {kind.__name__}")
    return {name: data[name] for name in fields}


class Codec:
    """One end of a connection. Raises Refused for what a node of this job would not send."""

    def __init__(self, key: bytes, is_server: bool) -> None:
        self._key, self._is_server = key, is_server
        self._received = bytearray()
        self._nonce = os.urandom(_NONCE_BYTES)
        self._step = self._client_spoke if is_server else self._server_greeted
        self._sent_count = self._received_count = 0
        self.authenticated = False

    @property
    def has_spoken(self) -> bool:
        """Whether this client has shown what it knows: a close after that is a refusal."""
        return self._step == self._server_proved

    def greeting(self) -> bytes:
        """What to send at once."""
        return MAGIC + self._nonce if self._is_server else b""

    def feed(self, data: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Take bytes of the peer: what to send back, and the (kind, payload) of whole frames."""
        self._received += data
        answer = b""
        while not self.authenticated:
            if len(self._received) > _LONGEST_HANDSHAKE_BYTES:
                raise Refused("more was sent than a handshake has")
            said = self._step()
            if said is None:
                return answer, []
            answer += said
        return answer, self._frames()

    def frame(self, kind: int, payload: bytes = b"") -> bytes:
        """A frame to send; only after the handshake."""
        tag = _tag(self._sending, self._sent_count, kind, payload)
        self._sent_count += 1
        return b"".join((_HEAD.pack(len(payload), kind), payload, tag))

    def _frames(self) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        received = self._received
        while len(received) >= _HEAD.size:
            length, kind = _HEAD.unpack_from(received)
            if length > LONGEST_PAYLOAD_BYTES:
                raise Refused(f"a frame of {length:,} bytes is too long")
            end = _HEAD.size + length
            if len(received) < end + _TAG_BYTES:
                break
            payload, tag = bytes(received[_HEAD.size : end]), received[end : end + _TAG_BYTES]
            expected = _tag(self._receiving, self._received_count, kind, payload)
            if not hmac.compare_digest(bytes(tag), expected):
                raise Refused("a frame was changed on its way")
            del received[: end + _TAG_BYTES]
            self._received_count += 1
            found.append((kind, payload))
        return found

    def _take(self, count: int) -> bytes | None:
        if len(self._received) < count:
            return None
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _client_spoke(self) -> bytes | None:
        said = self._take(_NONCE_BYTES + _PROOF_BYTES)
        if said is None:
            return None
        client, server = self._agree(self._nonce, said[:_NONCE_BYTES])
        if not hmac.compare_digest(client, said[_NONCE_BYTES:]):
            raise Refused("the peer does not know the job's secret")
        self.authenticated = True
        return server

    def _server_greeted(self) -> bytes | None:
        if not MAGIC.startswith(self._received[: len(MAGIC)]):
            raise Refused("what answers is no node of a SCAR job")
        said = self._take(len(MAGIC) + _NONCE_BYTES)
        if said is None:
            return None
        client, self._expected = self._agree(said[len(MAGIC) :], self._nonce)
        self._step = self._server_proved
        return self._nonce + client

    def _server_proved(self) -> bytes | None:
        said = self._take(_PROOF_BYTES)
        if said is None:
            return None
        if not hmac.compare_digest(self._expected, said):
            raise Refused("the peer does not know the job's secret")
        self.authenticated = True
        return b""

    def _agree(self, server_nonce: bytes, client_nonce: bytes) -> tuple[bytes, bytes]:
        """Set the keys of both directions; the proofs of client and server."""
        nonces = (server_nonce, client_nonce)
        keys = _mac(self._key, b"s2c", *nonces), _mac(self._key, b"c2s", *nonces)
        self._sending, self._receiving = keys if self._is_server else keys[::-1]
        return _mac(self._key, b"client", *nonces), _mac(self._key, b"server", *nonces)


def _mac(key: bytes, *parts: bytes) -> bytes:
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        mac.update(struct.pack("!I", len(part)) + part)
    return mac.digest()


def _tag(key: bytes, number: int, kind: int, payload: bytes) -> bytes:
    mac = hmac.new(key, _SEQUENCE.pack(number, kind), hashlib.sha256)
    mac.update(payload)
    return mac.digest()[:_TAG_BYTES]
