"""The remote shell of multi-node jobs: `scar-rsh HOST COMMAND…`, and on all `scar-all COMMAND…`.

MPI launchers start it once for each node, so it imports little: a call is mostly Python's start.
The command runs in the caller's directory with the caller's environment, without what belongs to
one node or one process. Ends with the command's exit code, 128+n for signal n, 255 for own faults.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import stat
import struct
import sys

from scar_supervisor import mnp_protocol as protocol
from scar_supervisor.mnp_protocol import Codec, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

OWN_FAULT = 255
DIRECTORY_VARIABLE = "SCAR_MNP_DIR"
PRELOAD_VARIABLE = "SCAR_RSH_LD_PRELOAD"
"""Where the wrapper hides the caller's LD_PRELOAD from our own loader."""

_CONNECT_S = 15.0
_DEAD_PEER_MS = 60_000
_OPTIONS_WITH_VALUE = frozenset("bcDEeFIiJLlmOopQRSWw")
_SIGNALS_TEXT = "SIGTERM SIGINT SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGCONT SIGTSTP"
SIGNALS = tuple(getattr(signal, name) for name in _SIGNALS_TEXT.split())
"""What is passed on to the remote command."""

_ONE_NODE_ONLY_TEXT = """
    SCAR_MNP_SECRET SCAR_NODE_INDEX SCAR_NODE_IP SCAR_RSH_LD_PRELOAD
    HOSTNAME PWD OLDPWD SHLVL _ TERM SSH_CONNECTION SSH_CLIENT SSH_TTY
    NODE_RANK PET_NODE_RANK PET_NPROC_PER_NODE GROUP_RANK JAX_PROCESS_ID HYDI_CONTROL_FD
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_EXECUTION_ENV
"""
_ONE_NODE_ONLY = frozenset(_ONE_NODE_ONLY_TEXT.split())
_ONE_NODE_ONLY_PREFIXES_TEXT = """
    AWS_BATCH_JOB_NODE_INDEX AWS_BATCH_JOB_MAIN_NODE_PRIV AWS_CONTAINER_ ECS_
    OMPI_COMM_ OMPI_MCA_ess_ OMPI_MCA_orte_ess PRTE_MCA_ess PMIX_RANK PMIX_NAMESPACE PMIX_SERVER
    PMI_
"""
_ONE_NODE_ONLY_PREFIXES = tuple(_ONE_NODE_ONLY_PREFIXES_TEXT.split())


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that go with a command to another node, whose own credentials stay its own."""
    return {
        name: value
        for name, value in environ.items()
        if name not in _ONE_NODE_ONLY and not name.startswith(_ONE_NODE_ONLY_PREFIXES)
    }


def parse_ssh(words: Sequence[str]) -> tuple[str, str, bool]:
    """(host, command, whether it may read our input) of an ssh-like command line.

    Options of ssh are skipped. Raises ValueError where there is no host or no command.
    """
    position, reads = 0, True
    while position < len(words) and words[position].startswith("-") and words[position] != "-":
        word = words[position]
        position += 1
        if word == "--":
            break
        if word == "-n":
            reads = False
        if len(word) == 2 and word[1] in _OPTIONS_WITH_VALUE:
            position += 1
    if len(words) - position < 2:
        raise ValueError("a host and a command are needed: scar-rsh HOST COMMAND…")
    return words[position].rpartition("@")[2], " ".join(words[position + 1 :]), reads


def find_node(nodes: Sequence[Mapping[str, Any]], host: str) -> Mapping[str, Any]:
    """The node that a host name, address, index or `node<index>` means. Raises LookupError."""
    for node in nodes:
        name, index = node["hostname"], node["index"]
        if host in (node["ip"], name, name.partition(".")[0], f"node{index}", str(index)):
            return node
    raise LookupError(f"`{host}` is no node of this job")


class Call:
    """A command on one node: a connection that never blocks."""

    def __init__(self, node: Mapping[str, Any], key: bytes) -> None:
        """Connect and shake hands. Raises OSError or Refused."""
        self.node = node
        self._socket = socket.create_connection((node["ip"], node["port"]), _CONNECT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            self._socket.setsockopt(socket.IPPROTO_TCP, option, 15)
        self._codec = Codec(key, is_server=False)
        self._waiting: list[tuple[int, bytes]] = []
        while not self._codec.authenticated:
            data = self._socket.recv(4096)
            if not data:
                raise Refused("it closed the connection: another job's node, or a busy one")
            answer, self._waiting = self._codec.feed(data)
            self._socket.sendall(answer)
        self._socket.setblocking(False)
        self._unsent = bytearray()
        self._broken = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def unsent_bytes(self) -> int:
        """What the network has not taken yet."""
        return len(self._unsent)

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Queue a frame and send what goes."""
        if not self._broken:
            self._unsent += self._codec.frame(kind, payload)
            self.flush()

    def flush(self) -> None:
        """Send what goes without blocking."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            # The answer may have arrived already.
            self._broken = True
            self._unsent.clear()

    def receive(self) -> list[tuple[int, bytes]]:
        """Frames that have arrived. Raises OSError or Refused."""
        found, self._waiting = self._waiting, []
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return found
        if not data:
            raise ConnectionError("the connection was lost")
        return found + self._codec.feed(data)[1]


class Output:
    """A descriptor that is never written to when that would block."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        mode = os.fstat(descriptor).st_mode
        # A pipe that is ready takes 4 KiB for sure; files are always ready.
        self._most = 1 << 20 if stat.S_ISREG(mode) else 4096
        self.pending = bytearray()

    def write_some(self) -> None:
        """Write what goes without blocking. Raises BrokenPipeError."""
        try:
            del self.pending[: os.write(self.descriptor, self.pending[: self._most])]
        except BlockingIOError:
            return


class Shell:
    """One or more calls, side by side, until all have ended."""

    def __init__(self, calls: Sequence[Call], prefixed: bool, reads: bool) -> None:
        self._calls = {call.fileno(): call for call in calls}
        self._prefixed = prefixed
        self._lines: dict[tuple[int, int], bytes] = {}
        self._outputs = {protocol.STDOUT: Output(1), protocol.STDERR: Output(2)}
        self._reads, self._credit = reads, protocol.WINDOW_BYTES
        self._codes: list[int] = []
        self._wake, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self, command: Mapping[str, Any]) -> int:
        """Run the command on all; the largest exit code."""
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        for call in self._calls.values():
            call.send(protocol.EXEC, protocol.packed(command))
            if not self._reads:
                call.send(protocol.STDIN)
        for call in list(self._calls.values()):
            self._take(call)  # frames that came with the handshake
        try:
            while self._calls or any(o.pending for o in self._outputs.values()):
                self._step()
        except BrokenPipeError:
            # As a local command would die of SIGPIPE; our end kills the remote one.
            return 128 + signal.SIGPIPE
        return max(self._codes)

    def _step(self) -> None:
        actions: dict[int, Callable[[], None]] = {self._wake: self._pass_signals}
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        full = any(len(o.pending) > protocol.WINDOW_BYTES for o in self._outputs.values())
        for descriptor, call in self._calls.items():
            wanted = (0 if full else select.POLLIN) | (select.POLLOUT if call.unsent_bytes else 0)
            if wanted:
                poll.register(descriptor, wanted)
            actions[descriptor] = lambda call=call: self._take(call)  # type: ignore[misc]
        for output in self._outputs.values():
            if output.pending:
                poll.register(output.descriptor, select.POLLOUT)
                actions[output.descriptor] = output.write_some
        if self._reads and self._credit > 0 and self._calls:
            poll.register(0, select.POLLIN)
            actions[0] = self._read_input
        for descriptor, _ in poll.poll():
            actions[descriptor]()

    def _pass_signals(self) -> None:
        for number in os.read(self._wake, 64):
            for call in self._calls.values():
                call.send(protocol.SIGNAL, protocol.packed({"signal": number}))

    def _read_input(self) -> None:
        try:
            data = os.read(0, min(protocol.CHUNK_BYTES, self._credit))
        except BlockingIOError:
            return
        except OSError:  # a terminal in the background, a closed descriptor
            data = b""
        self._credit -= len(data)
        self._reads = bool(data)
        for call in self._calls.values():
            call.send(protocol.STDIN, data)

    def _take(self, call: Call) -> None:
        try:
            call.flush()
            for kind, payload in call.receive():
                self._on_frame(call, kind, payload)
        except (OSError, Refused) as exc:
            _say(call.node["ip"], exc)
            self._end(call, OWN_FAULT)

    def _on_frame(self, call: Call, kind: int, payload: bytes) -> None:
        if kind in self._outputs:
            self._outputs[kind].pending += self._labelled(call, kind, payload)
        elif kind == protocol.STDIN_TAKEN and len(payload) == 4:
            self._credit += struct.unpack("!I", payload)[0]
        elif kind == protocol.EXIT:
            ended = protocol.unpacked(payload, {"code": int, "error": str})
            if ended["error"]:
                _say(call.node["ip"], ended["error"])
            self._end(call, ended["code"])

    def _labelled(self, call: Call, kind: int, data: bytes) -> bytes:
        if not self._prefixed:
            return data
        index = call.node["index"]
        *lines, rest = (self._lines.pop((index, kind), b"") + data).split(b"\n")
        if rest:
            self._lines[index, kind] = rest
        return b"".join(b"[%d] %s\n" % (index, line) for line in lines)

    def _end(self, call: Call, code: int) -> None:
        if self._calls.pop(call.fileno(), None) is None:
            return
        self._codes.append(code)
        for kind, output in self._outputs.items():
            if rest := self._lines.pop((call.node["index"], kind), b""):
                output.pending += b"[%d] %s\n" % (call.node["index"], rest)


def remote_shell(words: Sequence[str]) -> int:
    """`scar-rsh`: the exit code."""
    try:
        host, command, reads = parse_ssh(words)
    except ValueError as exc:
        _say("scar-rsh", exc)
        return OWN_FAULT
    try:
        nodes, key = _job()
        call = Call(find_node(nodes, host), key)
    except (OSError, LookupError, ValueError, Refused) as exc:
        _say(host, exc)
        return OWN_FAULT
    return Shell([call], prefixed=False, reads=reads).run(_request(command))


def on_all_nodes(words: Sequence[str]) -> int:
    """`scar-all`: the largest exit code. Lines of output begin with `[node index] `."""
    if not words:
        _say("scar-all", "a command is needed: scar-all COMMAND…")
        return OWN_FAULT
    try:
        nodes, key = _job()
        calls = [Call(node, key) for node in nodes]
    except (OSError, ValueError, Refused) as exc:
        _say("scar-all", exc)
        return OWN_FAULT
    return Shell(calls, prefixed=True, reads=False).run(_request(shlex.join(words)))


def main(words: Sequence[str]) -> int:
    """`scar-rsh …` or `scar-all …`: the exit code."""
    _occupy_standard_streams()
    return on_all_nodes(words[1:]) if words[0] == "scar-all" else remote_shell(words[1:])


def _occupy_standard_streams() -> None:
    """Where stdin is closed, a socket would become descriptor 0."""
    while (descriptor := os.open("/dev/null", os.O_RDWR)) < 3:
        continue
    os.close(descriptor)


def _job() -> tuple[Sequence[Mapping[str, Any]], bytes]:
    directory = os.environ.get(DIRECTORY_VARIABLE) or os.path.dirname(os.path.dirname(sys.argv[0]))
    with open(os.path.join(directory, "nodes.json"), encoding="utf-8") as file:
        nodes = json.load(file)["nodes"]
    with open(os.path.join(directory, "key"), encoding="ascii") as file:
        return nodes, bytes.fromhex(file.read())


def _request(command: str) -> dict[str, Any]:
    environ = dict(os.environ)
    if preload := environ.get(PRELOAD_VARIABLE):
        environ["LD_PRELOAD"] = preload
    carried = {} if environ.get("SCAR_RSH_ENV") == "none" else forwarded(environ)
    return {"command": command, "variables": carried, "directory": os.getcwd()}


def _say(what: str, why: object) -> None:
    os.write(2, f"scar-rsh: {what}: {why}\n".encode(errors="replace"))
