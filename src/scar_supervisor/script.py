"""Runs the user's script in a process group of its own and leaves no process of it behind."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from scar_supervisor import program
from scar_supervisor.faults import TAIL_LIMIT_BYTES

DRAIN_S = 0.5
"""How long output is still read after the script's end, from children that keep its pipe."""
LONGEST_LINE_BYTES = 64 * 1024
LAST_WAIT_S = 5.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@dataclass(frozen=True)
class Limits:
    """How long a script may run and how it is ended; how much of its output is kept."""

    deadline: float | None = None
    """On the monotonic clock; None: as long as it likes."""
    grace_s: float = 2.0
    """Between SIGTERM and SIGKILL at the deadline."""
    stop_grace_s: float = 20.0
    """The same when the platform asks us to end."""
    keep_bytes: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a script ended. `exit_code` is 128+n for signal n."""

    exit_code: int
    timed_out: bool
    stopped: bool
    elapsed_s: float
    head: bytes
    """The first `keep_bytes` of its output."""
    tail: bytes
    """The last 4 KiB of its output."""
    output_bytes: int
    left_behind: int = 0
    """Processes that would not end, even by SIGKILL."""


def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    limits: Limits,
    write: Callable[[bytes], None],
) -> Outcome:
    """Run a program to its end, passing its output on by lines, and end all it has started.

    A program that cannot be started ends with 127 (not found) or 126, as in a shell.
    """
    return _Run(limits, _Output(limits.keep_bytes, write)).outcome(argv, environ)


def adopt_orphans() -> None:
    """Become the parent of processes whose parent has ended, as PID 1 is."""
    if os.getpid() != 1:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Get SIGTERM when the process that forked us ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_grace_s(environ: Mapping[str, str]) -> float:
    """`Limits.stop_grace_s` as the environment wants it (SCAR_STOP_GRACE_S)."""
    try:
        return max(0.0, float(environ.get("SCAR_STOP_GRACE_S", "")))
    except ValueError:
        return Limits.stop_grace_s


def _prctl(option: int, value: int) -> None:
    import ctypes  # only here, and takes a while

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Output:
    """What the script says: passed on line by line, its beginning and end kept."""

    def __init__(self, keep_bytes: int, write: Callable[[bytes], None]) -> None:
        self._keep_bytes, self._write = keep_bytes, write
        self._line = bytearray()
        self.head, self.tail = bytearray(), b""
        self.count = 0

    def add(self, data: bytes) -> None:
        self.count += len(data)
        self.head += data[: max(0, self._keep_bytes - len(self.head))]
        self.tail = (self.tail + data)[-TAIL_LIMIT_BYTES:]
        self._line += data
        end = self._line.rfind(b"\n") + 1
        if not end and len(self._line) > LONGEST_LINE_BYTES:
            end = len(self._line)
        if end:
            self._write(bytes(self._line[:end]))
            del self._line[:end]

    def end(self) -> None:
        if self._line:
            self._write(bytes(self._line) + b"\n")
            self._line.clear()


class _Run:
    """One script from its start until nothing of it is left."""

    def __init__(self, limits: Limits, output: _Output) -> None:
        self._limits, self._output = limits, output
        self._pid = 0
        self._status: int | None = None
        self._timed_out = self._stopped = False

    def outcome(self, argv: Sequence[str], environ: Mapping[str, str]) -> Outcome:
        started = time.monotonic()
        left_behind = 0
        with _Signals(self._stop) as wake:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            try:
                exit_code = self._start(argv, environ, write_end)
                if exit_code is None:
                    try:
                        self._follow(_Inbox(read_end, wake, self._output.add))
                    finally:
                        left_behind = self._end_all()
                    exit_code = self._exit_code()
            finally:
                os.close(read_end)
        self._output.end()
        return Outcome(
            exit_code,
            self._timed_out,
            self._stopped,
            time.monotonic() - started,
            bytes(self._output.head),
            self._output.tail,
            self._output.count,
            left_behind,
        )

    def _start(self, argv: Sequence[str], environ: Mapping[str, str], write_end: int) -> int | None:
        """Start the program; the exit code where it cannot be started."""
        try:
            path = program.find(argv[0], environ)
            self._pid = spawn(path, argv, environ, (None, write_end, write_end))
        except OSError as exc:
            why = f"{argv[0]}: {exc.strerror}" if exc.strerror else str(exc)
            self._output.add(f"cannot start {why}\n".encode(errors="replace"))
            return 127 if isinstance(exc, FileNotFoundError) else 126
        finally:
            os.close(write_end)
        return None

    def _follow(self, inbox: _Inbox) -> None:
        """Pass on the output until the script has ended, its time has, or we are stopped."""
        until, ending = self._limits.deadline, False
        while self._status is None:
            inbox.wait(until)
            self._reap()
            grace_s = None
            if self._stopped and not ending:
                grace_s = self._limits.stop_grace_s
            elif until is not None and time.monotonic() >= until and self._status is None:
                if ending:
                    return
                self._timed_out, grace_s = True, self._limits.grace_s
            if grace_s is not None:
                ending, until = True, time.monotonic() + grace_s
                send_signal(-self._pid, signal.SIGTERM)
        # What the script wrote last is in the pipe; its children may keep that open for ever.
        drained = time.monotonic() + DRAIN_S
        while inbox.open and time.monotonic() < drained:
            inbox.wait(drained)

    def _stop(self) -> None:
        self._stopped = True

    def _reap(self) -> bool:
        """Take the exit of every child that has ended; False when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._status = status

    def _end_all(self) -> int:
        """Kill every descendant; how many would not go.

        We adopt orphans: as long as one descendant lives, we have a child.
        """
        limit = time.monotonic() + LAST_WAIT_S
        while self._reap():
            left = descendants()
            for pid in left if left is not None else (-self._pid,):
                send_signal(pid, signal.SIGKILL)
            if time.monotonic() > limit:
                return len(left or (self._pid,))
            time.sleep(0.002)
        return 0

    def _exit_code(self) -> int:
        if self._status is None:
            return 128 + signal.SIGKILL
        code = os.waitstatus_to_exitcode(self._status)
        return 128 - code if code < 0 else code


class _Inbox:
    """Waits for the script's output and for signals, whichever comes first."""

    def __init__(self, read_end: int, wake: int, take: Callable[[bytes], None]) -> None:
        os.set_blocking(read_end, False)
        self._read_end, self._wake, self._take = read_end, wake, take
        self._poll = select.poll()
        self._poll.register(read_end, select.POLLIN)
        self._poll.register(wake, select.POLLIN)
        self.open = True

    def wait(self, until: float | None) -> None:
        """Take what comes first; give up at `until` on the monotonic clock."""
        left_ms = None if until is None else max(0.0, (until - time.monotonic()) * 1000)
        ready = [descriptor for descriptor, _ in self._poll.poll(left_ms)]
        if self._wake in ready:
            os.read(self._wake, 4096)
        if self._read_end in ready:
            data = os.read(self._read_end, 1 << 16)
            self._take(data)
            if not data:
                self._poll.unregister(self._read_end)
                self.open = False


class _Signals:
    """While a script runs: SIGCHLD and SIGTERM wake the one who waits, and raise nothing."""

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop

    def __enter__(self) -> int:
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
        }
        return self._pipe[0]

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        for descriptor in self._pipe:
            os.close(descriptor)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._on_stop()


def spawn(
    path: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    streams: tuple[int | None, int, int],
    directory: str | None = None,
) -> int:
    """Start a program as the leader of a new session; its process id. Raises OSError.

    `streams` are its stdin (None: empty), stdout and stderr.
    """
    arguments = [os.fsencode(word) for word in argv]
    variables = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
    told, tell = os.pipe2(os.O_CLOEXEC)
    # Not posix_spawn: it uses clone3, which Docker before 20.10.10 refuses.
    pid = os.fork()
    if pid == 0:
        try:
            _prepare_child(streams, directory)
            os.execve(path, arguments, variables)  # noqa: S606
        except OSError as exc:
            os.write(tell, str(exc.errno).encode())
        finally:
            os._exit(127)
    os.close(tell)
    number = os.read(told, 16)
    os.close(told)
    if number:
        os.waitpid(pid, 0)
        raise OSError(int(number), os.strerror(int(number)))
    return pid


def _prepare_child(streams: tuple[int | None, int, int], directory: str | None) -> None:
    os.setsid()
    # Python ignores SIGPIPE and SIGXFSZ; programs expect the defaults.
    for number in ("SIGPIPE", "SIGXFSZ", "SIGCHLD", "SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, number), signal.SIG_DFL)
    os.dup2(_empty() if streams[0] is None else streams[0], 0)
    os.dup2(streams[1], 1)
    os.dup2(streams[2], 2)
    if directory is not None:
        os.chdir(directory)


def _empty() -> int:
    try:
        return os.open("/dev/null", os.O_RDONLY)
    except OSError:  # an image run without /dev
        empty, other = os.pipe()
        os.close(other)
        return empty


def descendants(of: int | None = None) -> list[int] | None:
    """All processes below one (this one); None where there is no /proc."""
    parents: dict[int, int] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return None
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command, in brackets, may hold anything; the parent is the second after.
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has ended meanwhile
    if not parents:
        return None
    found, waiting = [], [of or os.getpid()]
    while waiting:
        parent = waiting.pop()
        children = [pid for pid, its in parents.items() if its == parent]
        found += children
        waiting += children
    return found


def send_signal(pid: int, number: int) -> None:
    """As kill(2), to a process or (negative) a group; harmless where it has ended."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it has ended, or became somebody else's: the wait for it is bounded
