"""The node's side of the network: one loop, its connections, and the commands of other nodes.

One thread, nothing blocks: the supervisor forks commands, and a process of one thread may do that.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from types import FrameType

from scar_supervisor import mnp_protocol as protocol
from scar_supervisor import rsh, script
from scar_supervisor.mnp_protocol import Codec, Refused
from scar_supervisor.program import SHELL

HANDSHAKE_S = 10.0
STRANGERS_LIMIT = 128
"""Connections that have not said yet who they are."""
LAST_OUTPUT_S = 2.0
"""How long a command's pipes are read after its end, from processes that keep them open."""
CALLER_GONE_GRACE_S = 5.0

_BACKLOG_BYTES = 1 << 20
_DEAD_PEER_MS = 60_000


def connect(loop: Loop, address: tuple[str, int], timeout_s: float) -> socket.socket:
    """A connected socket, while the loop goes on. Raises OSError."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    answered: list[bool] = []
    try:
        peer.setblocking(False)
        peer.connect_ex(address)
        loop.watch(peer.fileno(), select.POLLOUT, lambda: answered.append(True))
        in_time = loop.run_until(lambda: bool(answered) or loop.stopped, timeout_s)
        loop.forget(peer.fileno())
        number = peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number or not in_time:
            number = number or errno.ETIMEDOUT
            raise OSError(number, os.strerror(number))
        if peer.getpeername() == peer.getsockname():  # TCP lets a port connect to itself
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        peer.close()
        raise
    return peer


class Timer:
    """A call that is due once."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not call."""
        self.call = None


class Loop:
    """Waits for descriptors, times, ends of child processes and signals; calls who waits for it.

    Owns every child of this process while it is open: `waitpid` must be called by nobody else.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._exits: dict[int, Callable[[int], None]] = {}
        self.stopped = False
        """The platform asked us to end."""
        wake, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.watch(wake, select.POLLIN, lambda: self._woken(wake))
        self._wake = wake
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def watch(self, descriptor: int, events: int, call: Callable[[], None]) -> None:
        """Call whenever a descriptor is ready; replaces what was watched of it before."""
        self._poll.register(descriptor, events)
        self._ready[descriptor] = call

    def forget(self, descriptor: int) -> None:
        """Watch a descriptor no more; before it is closed."""
        if self._ready.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call in `delay_s` seconds."""
        timer = Timer(call)
        due = time.monotonic() + delay_s
        heapq.heappush(self._timers, (due, next(self._numbers), timer))
        return timer

    def on_exit(self, pid: int, call: Callable[[int], None]) -> None:
        """Call with the exit code (128+n for signal n) when a child has ended."""
        self._exits[pid] = call

    def run_until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Go on until the condition holds; False when it does not in time."""
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        while not condition():
            now = time.monotonic()
            if limit is not None and now >= limit:
                return False
            due = [t for t in (limit, self._timers[0][0] if self._timers else None) if t]
            self._turn(max(0.0, min(due) - now) if due else None)
        return True

    def end_children(self, grace_s: float, spare: int) -> None:
        """SIGTERM to every descendant but `spare` and its own, SIGKILL after `grace_s`.

        Returns when none is left.
        """
        limit = time.monotonic() + grace_s
        told: set[int] = set()
        while self._reap() and time.monotonic() < limit + script.LAST_WAIT_S:
            spared = {spare, *(script.descendants(spare) or ())}
            left = [pid for pid in script.descendants() or () if pid not in spared]
            if not left:
                return
            for pid in left:
                if time.monotonic() >= limit:
                    script.send_signal(pid, signal.SIGKILL)
                elif pid not in told:
                    script.send_signal(pid, signal.SIGTERM)
                told.add(pid)
            self._turn(0.02)

    def _turn(self, timeout_s: float | None) -> None:
        ready = self._poll.poll(None if timeout_s is None else timeout_s * 1000 + 1)
        for descriptor, _ in ready:
            call = self._ready.get(descriptor)
            if call:
                call()
        while self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            if timer.call:
                timer.call()

    def _woken(self, wake: int) -> None:
        os.read(wake, 4096)
        self._reap()

    def _reap(self) -> bool:
        """Take the exits of children; False when there is no child."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            code = os.waitstatus_to_exitcode(status)
            call = self._exits.pop(pid, None)
            if call:
                call(128 - code if code < 0 else code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self.stopped = True


class Connection:
    """A connection that never blocks: frames in by a callback, frames out by `send`."""

    def __init__(
        self,
        loop: Loop,
        peer: socket.socket,
        codec: Codec,
        on_frame: Callable[[Connection, int, bytes], None],
        on_end: Callable[[Connection, str], None],
    ) -> None:
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)
        self._loop, self._socket, self._codec = loop, peer, codec
        self.on_frame, self.on_end = on_frame, on_end
        self.on_room: Callable[[], None] = lambda: None
        self._unsent = bytearray(codec.greeting())
        self._closing = False
        self.is_open = True
        self.last_heard = time.monotonic()
        self.peer_ip: str = peer.getpeername()[0]
        self.own_ip: str = peer.getsockname()[0]
        self._watch()
        self._flush()

    @property
    def is_authenticated(self) -> bool:
        """Whether the peer has proved that it knows the secret."""
        return self._codec.authenticated

    @property
    def is_full(self) -> bool:
        """Whether the peer takes less than we send; `on_room` is called when it does not."""
        return len(self._unsent) > _BACKLOG_BYTES

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame, later where it cannot go now; nothing on a closed connection."""
        if self.is_open and not self._closing:
            self._unsent += self._codec.frame(kind, payload)
            self._flush()

    def end(self) -> None:
        """Close when everything has been sent."""
        self._closing = True
        if not self._unsent:
            self.close("")

    def close(self, why: str) -> None:
        """Close now and say so."""
        if self.is_open:
            self.is_open = False
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self.on_end(self, why)

    def _watch(self) -> None:
        events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        self._loop.watch(self._socket.fileno(), events, self._on_ready)

    def _on_ready(self) -> None:
        self._flush()
        if not self.is_open:
            return
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as exc:
            self.close(str(exc.strerror or exc))
            return
        if not data:
            self.close("it closed the connection")
            return
        self.last_heard = time.monotonic()
        try:
            self._take(data)
        except Refused as exc:
            self.close(str(exc))

    def _take(self, data: bytes) -> None:
        answer, frames = self._codec.feed(data)
        self._unsent += answer
        self._flush()
        for kind, payload in frames:
            if self.is_open:
                self.on_frame(self, kind, payload)

    def _flush(self) -> None:
        was_full = self.is_full
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            self._watch()
        except OSError:
            self._unsent.clear()  # reading tells why
            self._watch()
        else:
            self._watch()
            if self._closing:
                self.close("")
        if was_full and not self.is_full:
            self.on_room()


class Agent:
    """The port of a node: others register here, or have commands run."""

    def __init__(
        self,
        loop: Loop,
        key: bytes,
        base: Callable[[], Mapping[str, str]],
        say: Callable[[str], None],
    ) -> None:
        self._loop, self._key, self._base, self._say = loop, key, base, say
        self.on_hello: Callable[[Connection, bytes], None] | None = None
        self._strangers: set[Connection] = set()
        self._listener: socket.socket | None = None

    def listen(self, port: int) -> int:
        """Open the port; its number. Raises OSError."""
        self._listener = socket.create_server(("", port), backlog=256)
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), select.POLLIN, self._accept)
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Take no more connections."""
        if self._listener:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return  # it went away before we came
        if len(self._strangers) >= STRANGERS_LIMIT:
            peer.close()
            return
        try:
            codec = Codec(self._key, is_server=True)
            connection = Connection(self._loop, peer, codec, self._on_first, self._on_end)
        except OSError:
            peer.close()
            return
        self._strangers.add(connection)
        why = f"it did not say in {HANDSHAKE_S:g} s what it wants"
        self._loop.later(HANDSHAKE_S, lambda: self._expire(connection, why))

    def _expire(self, connection: Connection, why: str) -> None:
        if connection in self._strangers:
            connection.close(why)

    def _on_end(self, connection: Connection, why: str) -> None:
        self._strangers.discard(connection)
        self._say(f"refused a connection from {connection.peer_ip}: {why}")

    def _on_first(self, connection: Connection, kind: int, payload: bytes) -> None:
        self._strangers.discard(connection)
        if kind == protocol.EXEC:
            Command(self._loop, connection, self._base()).start(payload)
        elif kind == protocol.HELLO and self.on_hello:
            self.on_hello(connection, payload)
        else:
            raise Refused(f"a connection does not begin with a frame of kind {kind}")


class Command:
    """A command that another node (or this one) asked for, from its start to its exit code."""

    def __init__(self, loop: Loop, connection: Connection, base: Mapping[str, str]) -> None:
        self._loop, self._connection, self._base = loop, connection, base
        self._pid = 0
        self._code: int | None = None
        self._input: int | None = None
        self._unwritten, self._input_ended = bytearray(), False
        self._outputs: dict[int, int] = {}

    def start(self, payload: bytes) -> None:
        """Run it. Raises Refused where it is not a command."""
        wanted = protocol.unpacked(payload, {"command": str, "variables": dict, "directory": str})
        self._connection.on_frame, self._connection.on_end = self._on_frame, self._on_end
        self._connection.on_room = self._watch_outputs
        environ = {**self._base, **rsh.forwarded(_texts(wanted["variables"]))}
        try:
            os.makedirs(wanted["directory"], exist_ok=True)
            self._spawn((SHELL, "-c", wanted["command"]), environ, wanted["directory"])
        except (OSError, ValueError) as exc:
            self._answer(126, f"cannot run the command: {exc}")
            return
        self._loop.on_exit(self._pid, self._on_exit)
        self._watch_outputs()

    def _spawn(self, argv: tuple[str, ...], environ: Mapping[str, str], directory: str) -> None:
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
        ours = (pipes[0][1], pipes[1][0], pipes[2][0])
        try:
            self._pid = script.spawn(argv[0], argv, environ, theirs, directory)
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        for descriptor in ours:
            os.set_blocking(descriptor, False)
        self._input = ours[0]
        self._outputs = {ours[1]: protocol.STDOUT, ours[2]: protocol.STDERR}

    def _on_frame(self, connection: Connection, kind: int, payload: bytes) -> None:
        if kind == protocol.STDIN:
            self._unwritten += payload
            self._input_ended = not payload
            if len(self._unwritten) > 2 * protocol.WINDOW_BYTES:
                raise Refused("more input was sent than was asked for")
            self._write_input()
        elif kind == protocol.SIGNAL:
            number = protocol.unpacked(payload, {"signal": int})["signal"]
            if number in rsh.SIGNALS and self._code is None and self._pid:
                script.send_signal(-self._pid, number)

    def _write_input(self) -> None:
        if self._input is None:
            self._took(len(self._unwritten))
            return
        try:
            while self._unwritten:
                self._took(os.write(self._input, self._unwritten))
        except BlockingIOError:
            self._loop.watch(self._input, select.POLLOUT, self._write_input)
            return
        except OSError:  # it reads no more: what comes is thrown away
            self._took(len(self._unwritten))
            self._close_input()
            return
        if self._input_ended:
            self._close_input()
        else:
            self._loop.forget(self._input)

    def _took(self, count: int) -> None:
        del self._unwritten[:count]
        if count:
            self._connection.send(protocol.STDIN_TAKEN, struct.pack("!I", count))

    def _close_input(self) -> None:
        if self._input is not None:
            self._loop.forget(self._input)
            os.close(self._input)
            self._input = None

    def _watch_outputs(self) -> None:
        for descriptor in self._outputs:
            self._loop.watch(descriptor, select.POLLIN, lambda d=descriptor: self._read(d))  # type: ignore[misc]

    def _read(self, descriptor: int) -> None:
        if self._connection.is_full:
            for output in self._outputs:
                self._loop.forget(output)
            return
        try:
            data = os.read(descriptor, protocol.CHUNK_BYTES)
        except BlockingIOError:
            return
        if data:
            self._connection.send(self._outputs[descriptor], data)
            return
        self._close_output(descriptor)
        self._finish_if_done()

    def _close_output(self, descriptor: int) -> None:
        del self._outputs[descriptor]
        self._loop.forget(descriptor)
        os.close(descriptor)

    def _on_exit(self, code: int) -> None:
        self._code = code
        if self._connection.is_open:
            self._loop.later(LAST_OUTPUT_S, self._finish)
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._code is not None and not self._outputs:
            self._finish()

    def _finish(self) -> None:
        # A caller that reads slowly still gets all that was written before the end.
        if self._connection.is_open and self._connection.is_full:
            self._loop.later(LAST_OUTPUT_S, self._finish)
            return
        self._close_all()
        self._answer(self._code or 0, "")

    def _answer(self, code: int, error: str) -> None:
        self._connection.send(protocol.EXIT, protocol.packed({"code": code, "error": error}))
        self._connection.end()

    def _on_end(self, connection: Connection, why: str) -> None:
        self._close_all()
        if self._code is None and self._pid:
            # The caller is gone: leave nothing behind.
            script.send_signal(-self._pid, signal.SIGTERM)
            self._loop.later(CALLER_GONE_GRACE_S, self._kill)

    def _kill(self) -> None:
        if self._code is None:
            script.send_signal(-self._pid, signal.SIGKILL)

    def _close_all(self) -> None:
        self._close_input()
        for descriptor in list(self._outputs):
            self._close_output(descriptor)


def _texts(variables: Mapping[object, object]) -> dict[str, str]:
    """Variables that execve takes. Raises Refused where they are not texts."""
    found = {}
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise Refused("a variable is not text")
        if name and "=" not in name and "\0" not in name + value:
            found[name] = value
    return found
