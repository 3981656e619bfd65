"""The process of a node that does the work: stages in, runs the script, stages out.

The node (`nodes.py`) forks it, keeps the network and the other processes, and decides when the
script may run and whether its result counts. They talk over a pair of sockets, a line of JSON each:
`begin` (all is staged, these are the script's variables), `run` (with more variables), `done` (the
script's exit code), then `go` (stage out) or `end` (do not).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from scar_supervisor import contract, script
from scar_supervisor.agent import Loop
from scar_supervisor.faults import NodesFailed, Stopped
from scar_supervisor.mnp_environment import with_defaults
from scar_supervisor.script import Limits, Outcome
from scar_supervisor.supervise import Runner

_EXIT_STOPPED = 128 + signal.SIGTERM
_NO_LIMIT_S = 1e9


class Worker:
    """A worker as its node sees it. `exit_code` is None while it lives."""

    def __init__(
        self, loop: Loop, work: Callable[[Runner], int], on_output: Callable[[bytes], None] | None
    ) -> None:
        """Fork it; its output goes to `on_output`, or where ours goes."""
        self._loop, self._on_output = loop, on_output
        self.variables: Mapping[str, str] | None = None
        """Of its script, from the moment that all is staged."""
        self.script_code: int | None = None
        self.exit_code: int | None = None
        self._received = b""
        self._ours, theirs = socket.socketpair()
        output, output_end = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            if on_output:
                os.dup2(output_end, 1)
                os.dup2(output_end, 2)
            self._ours.close()
            _live(work, theirs)
        theirs.close()
        os.close(output_end)
        for descriptor, take in ((self._ours.fileno(), self._hear), (output, self._read)):
            os.set_blocking(descriptor, False)
            loop.watch(descriptor, select.POLLIN, take)
        self._output = output
        loop.on_exit(self.pid, self._on_exit)

    @property
    def is_staged(self) -> bool:
        """Whether its input is in place, or it ended in peace without needing any."""
        return self.variables is not None or self.exit_code == 0

    def run(self, more: Mapping[str, str], path: str) -> None:
        """Let it run the script, with more variables and directories before its PATH."""
        self._tell({"run": dict(more), "path": path})

    def release(self, stage_out: bool, code: int = 0) -> None:
        """Let it end; `code` is the job's exit code where that is not a success."""
        self._tell({"go": True} if stage_out else {"end": code})

    def stop(self) -> None:
        """Ask its script and itself to end."""
        if self.exit_code is None:
            script.send_signal(self.pid, signal.SIGTERM)

    def kill_script(self) -> None:
        """End the script and all it has started at once; the worker still cleans up."""
        if self.exit_code is None:
            for pid in script.descendants(self.pid) or ():
                script.send_signal(pid, signal.SIGKILL)

    def _tell(self, message: Mapping[str, Any]) -> None:
        try:
            self._ours.setblocking(True)
            self._ours.sendall(json.dumps(message).encode() + b"\n")
            self._ours.setblocking(False)
        except OSError:
            return  # it has ended: its exit code tells

    def _hear(self) -> None:
        try:
            data = self._ours.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.forget(self._ours.fileno())
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.variables = message.get("begin", self.variables)
            self.script_code = message.get("done", self.script_code)

    def _read(self) -> None:
        try:
            data = os.read(self._output, 1 << 16)
        except BlockingIOError:
            return
        if data and self._on_output:
            self._on_output(data)
        if not data:
            self._loop.forget(self._output)
            os.close(self._output)
            self._output = -1

    def _on_exit(self, code: int) -> None:
        poll = (
            select.poll()
        )  # select() takes no descriptor above 1023, and a node may be one of many
        if self._output >= 0:
            poll.register(self._output, select.POLLIN)
        while self._output >= 0 and poll.poll(0):
            self._read()
        self.exit_code = code


def _live(work: Callable[[Runner], int], node: socket.socket) -> NoReturn:
    """In the forked process: do the work and end with its exit code."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    code = 1
    try:
        with contextlib.suppress(OSError, ImportError):  # where it cannot be, a kill leaves more
            script.end_with_parent()
        code = work(_Gate(node).run)
    except Stopped:
        code = _EXIT_STOPPED
    except BaseException:  # a fault of ours: told, and the job fails
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped


class _Gate:
    """Runs the script when the node says so, and gives its outcome on when the node says so."""

    def __init__(self, node: socket.socket) -> None:
        self._node = node.makefile("rwb")

    def run(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        limits: Limits,
        write: Callable[[bytes], None],
    ) -> Outcome:
        """As `script.run`. Raises NodesFailed where another node failed."""
        said = self._ask({"begin": dict(environ)})
        outcome = Outcome(0, False, False, 0.0, b"", b"", 0)
        if "run" in said:
            variables = with_defaults(environ, said["run"], said["path"])
            outcome = script.run(argv, variables, limits, write)
            if outcome.exit_code or outcome.stopped:
                self._tell({"done": outcome.exit_code or _EXIT_STOPPED})
                return outcome
            said = self._ask({"done": 0})
        if "go" not in said:
            raise NodesFailed(int(said.get("end", contract.EXIT_NODE_LOST)))
        return outcome

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._tell(message)
        line = self._node.readline()
        # The node has ended: so has the job.
        said: dict[str, Any] = json.loads(line) if line else {"end": contract.EXIT_NODE_LOST}
        return said

    def _tell(self, message: Mapping[str, Any]) -> None:
        self._node.write(json.dumps(message).encode() + b"\n")
        self._node.flush()
