"""Processes that are containers here: started from one thread, their output passed on by line."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

LINE_LIMIT_BYTES = 256 * 1024
"""A longer line is passed on in pieces (an event of CloudWatch Logs holds 256 KiB)."""

_READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Start:
    """One process to start. Its stdout and stderr are one pipe; it inherits nothing else."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: str | None = None
    descriptors: Sequence[int] = field(default_factory=tuple)
    """Kept open in it, with the same numbers."""


class Spawner:
    """Starts every process from one thread that lives as long as the local cloud does.

    bubblewrap's --die-with-parent is PR_SET_PDEATHSIG, and Linux sends that signal when the
    *thread* that forked ends: a container must not depend on the thread of some request.
    """

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[Start, Future[subprocess.Popen[bytes]]]]
        self._wanted = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._running = False

    def spawn(self, start: Start) -> subprocess.Popen[bytes]:
        """Start a process, as the leader of its own session. Raises OSError."""
        with self._guard:
            if not self._running:
                threading.Thread(target=self._serve, name="spawner", daemon=True).start()
                self._running = True
        future: Future[subprocess.Popen[bytes]] = Future()
        self._wanted.put((start, future))
        return future.result()

    def _serve(self) -> None:
        while True:
            start, future = self._wanted.get()
            try:
                future.set_result(_popen(start))
            except (OSError, ValueError) as exc:
                future.set_exception(exc)


def pass_lines(descriptor: int, on_line: Callable[[str], None]) -> None:
    """Read a pipe to its end and pass each line on, without its line end; closes the pipe."""
    lines = Lines(on_line)
    try:
        while data := os.read(descriptor, _READ_BYTES):
            lines.feed(data)
        lines.end()
    finally:
        os.close(descriptor)


class Lines:
    """Bytes in pieces, passed on as lines of text."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take some bytes; whole lines are passed on now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(_text(line))
        while len(self._rest) > LINE_LIMIT_BYTES:
            self._on_line(_text(self._rest[:LINE_LIMIT_BYTES]))
            self._rest = self._rest[LINE_LIMIT_BYTES:]

    def end(self) -> None:
        """Pass on a last line that has no line end."""
        if self._rest:
            self._on_line(_text(self._rest))
            self._rest = b""


def exit_code(returncode: int) -> int:
    """A Popen's return code as a shell says it: 128+n for signal n."""
    return 128 - returncode if returncode < 0 else returncode


def _popen(start: Start) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        start.argv,
        env=dict(start.environment),
        cwd=start.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        pass_fds=tuple(start.descriptors),
        start_new_session=True,
        umask=0o022,  # as on Lambda and in Docker; ours is stricter
    )


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")
