"""The nodes of a multi-node parallel job: they find each other, begin together, end together.

The main node listens; every child connects with the job's secret and stays connected, which is how
each knows that the other lives. When all are there and have their input, the main node runs the
script; the agent of every node (`agent.py`) runs what the script's launchers ask for. The job is a
success only when the script is and every child has said goodbye: a launcher may not notice that a
node was lost (Open MPI 5 then ends with 0), and AWS does nothing when a child dies.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scar_supervisor import contract, environment, mnp_environment, script
from scar_supervisor import mnp_protocol as protocol
from scar_supervisor.agent import Agent, Connection, Loop, connect
from scar_supervisor.faults import ConfigFault
from scar_supervisor.log import Log
from scar_supervisor.mnp_environment import Node, Place
from scar_supervisor.mnp_files import find_interface, own_ip, prepare_directory, publish
from scar_supervisor.mnp_protocol import Codec, Refused
from scar_supervisor.supervise import Part, Runner, load_function
from scar_supervisor.worker import Worker

EXIT_STOPPED = 143
CLEAN_S = 2.0
"""Between SIGTERM and SIGKILL for what the script's launchers left on a node."""
LOST_GRACE_S = 5.0
"""What the script gets to end after a node was lost: it may wait for that node."""
GOODBYE_S = 5.0
TAIL_BYTES = 4096

_TAIL_EVERY_S = 1.0
_REFUSALS_LIMIT = 3

_T = TypeVar("_T", int, float)

Work = Callable[[Mapping[str, str], Log, Part], int]
"""Does one machine's part of the job; the exit code."""


def run(environ: Mapping[str, str], log: Log, work: Work) -> int:
    """Be one node of the job; the exit code."""
    try:
        config = load_function(environ).config
        settings = parse_settings(environ, environment.for_script(environ, config, True, {}, {}))
    except ConfigFault as fault:
        log.error(f"ConfigFault: {fault}")
        return contract.EXIT_CONFIG
    secret = environ.get(contract.MNP_SECRET_VARIABLE, "")
    if settings.count > 1 and len(secret) < protocol.SECRET_LEAST_LENGTH:
        log.error(
            f"{contract.MNP_SECRET_VARIABLE} is missing or shorter than "
            f"{protocol.SECRET_LEAST_LENGTH} characters: no node may be trusted; submit the job "
            "through its function, or set it in the job's node overrides"
        )
        return contract.EXIT_SECRET
    try:
        script.adopt_orphans()
    except (OSError, ImportError) as exc:
        log.warning(f"processes that leave a command's group may survive it: {exc}")
    key = protocol.job_key(secret, settings.job_id)
    kind = _Main if settings.index == settings.main else _Child
    return kind(settings, key, _NodeLog(config.log_level), environ, work).run()


@dataclass(frozen=True)
class Settings:
    """What Batch and the user say about a job's nodes."""

    index: int
    count: int
    main: int
    job_id: str
    main_ip: str = ""
    port: int = protocol.PORT
    slots: int = 1
    runs_everywhere: bool = False
    """The script runs on every node (torchrun), not on the main node only (mpirun)."""
    stages_out_everywhere: bool = False
    outlives_nodes: bool = False
    """A lost node does not fail the job (Dask, Ray)."""
    has_shim: bool = True
    """Programs that call `ssh` get our remote shell."""
    join_s: float = 600.0
    heartbeat_s: float = 10.0
    loss_s: float = 60.0

    @property
    def scratch_name(self) -> str:
        """The same on every node of a job."""
        name = self.job_id.partition("#")[0]
        return "scar-" + "".join(c if c.isalnum() or c == "-" else "_" for c in name)


def parse_settings(environ: Mapping[str, str], variables: Mapping[str, str]) -> Settings:
    """From Batch's variables, and from the script's own for the rest.

    Raises ConfigFault where they do not describe a node.
    """
    index = _number(environ, "AWS_BATCH_JOB_NODE_INDEX", int, 0)
    count = _number(environ, contract.NODE_COUNT_VARIABLE, int, 1)
    main = _number(environ, "AWS_BATCH_JOB_MAIN_NODE_INDEX", int, 0)
    main_ip = environ.get("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS", "")
    if not 0 <= index < count or not 0 <= main < count:
        raise ConfigFault(f"node {index} and main node {main} are not both among {count} nodes")
    if index != main and not main_ip:
        raise ConfigFault("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS is not set on a child")
    return Settings(
        *(index, count, main, environ.get("AWS_BATCH_JOB_ID", ""), main_ip),
        port=_number(variables, "SCAR_MNP_PORT", int, protocol.PORT),
        slots=max(1, _number(variables, "SCAR_MNP_SLOTS", int, len(os.sched_getaffinity(0)))),
        runs_everywhere=_choice(variables, "SCAR_MNP_RUN_ON", ("main", "all")) == "all",
        stages_out_everywhere=_choice(variables, "SCAR_MNP_STAGE_OUT", ("main", "all")) == "all",
        outlives_nodes=_choice(variables, "SCAR_MNP_ON_NODE_LOSS", ("fail", "continue"))
        == "continue",
        has_shim=_choice(variables, "SCAR_MNP_SHIM", ("1", "0")) == "1",
        join_s=_number(variables, "SCAR_MNP_JOIN_S", float, Settings.join_s),
        heartbeat_s=_number(variables, "SCAR_MNP_HEARTBEAT_S", float, Settings.heartbeat_s),
        loss_s=_number(variables, "SCAR_MNP_LOSS_S", float, Settings.loss_s),
    )


def _number(variables: Mapping[str, str], name: str, kind: Callable[[str], _T], default: _T) -> _T:
    text = variables.get(name)
    if text is None:
        return default
    try:
        return kind(text)
    except ValueError as exc:
        raise ConfigFault(f"{name} is `{text}`, which is no number") from exc


def _choice(variables: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """The value, or the first choice where it is not set."""
    text = variables.get(name, choices[0])
    if text not in choices:
        raise ConfigFault(f"{name} is `{text}`; it may be {' or '.join(choices)}")
    return text


class _NodeLog(Log):
    """A log whose end is kept, and whose growth is told."""

    def __init__(self, level: str) -> None:
        super().__init__(level)
        self.tail = b""
        self.on_growth: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        super().write(data)
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        self.on_growth()


class _NodeProcess:
    """What main and child nodes have in common."""

    def __init__(
        self,
        settings: Settings,
        key: bytes,
        log: _NodeLog,
        environ: Mapping[str, str],
        work: Work,
    ) -> None:
        self._settings, self._key, self._log = settings, key, log
        self._environ, self._work = environ, work
        self._loop = Loop()
        self._agent = Agent(self._loop, key, self._base, log.warning)
        self._worker = self._fork_worker()
        self._more: dict[str, str] = {}
        self._path = ""

    def _fork_worker(self) -> Worker:
        settings = self._settings
        is_main = settings.index == settings.main

        def work(runner: Runner) -> int:
            stages_out = is_main or settings.stages_out_everywhere
            return self._work(
                self._environ, self._log, Part(runner, settings.scratch_name, stages_out, is_main)
            )

        return Worker(self._loop, work, None if is_main else self._log.write)

    def _base(self) -> Mapping[str, str]:
        """The variables of commands that other nodes ask for."""
        own = self._worker.variables or {}
        return mnp_environment.with_defaults(own, self._more, self._path)

    def _describe(self, ip: str, port: int) -> Node:
        # A job of one node may have nothing but loopback, which no launcher wants to be given.
        interface, network = ("", "") if ip.startswith("127.") else find_interface(ip)
        settings, hostname = self._settings, socket.gethostname()
        return Node(settings.index, ip, port, settings.slots, hostname, interface, network)

    def _publish(self, nodes: Sequence[Node]) -> None:
        """Write the job's files and know the variables of its programs. Raises ConfigFault."""
        directory = prepare_directory(self._environ)
        paths = publish(directory, nodes, self._key, self._settings.has_shim, self._log)
        place = Place(directory, os.geteuid() == 0, _has_infiniband())
        self._more = mnp_environment.variables(nodes, self._settings.index, place)
        self._path = ":".join(paths)

    def _clean(self, grace_s: float = CLEAN_S) -> None:
        """End what other nodes have started here."""
        self._agent.close()
        self._loop.end_children(grace_s, spare=self._worker.pid)

    def _end_worker(self, grace_s: float | None) -> None:
        """Stop the worker; its script gets `grace_s`, or what the platform leaves it."""
        worker = self._worker
        worker.stop()
        self._loop.run_until(lambda: worker.exit_code is not None, grace_s)
        limit = time.monotonic() + LOST_GRACE_S
        while worker.exit_code is None and time.monotonic() < limit:
            worker.kill_script()
            self._loop.run_until(lambda: worker.exit_code is not None, 0.1)
        if worker.exit_code is None:
            script.send_signal(worker.pid, 9)

    def _beat(self, connection: Connection) -> None:
        if not connection.is_open:
            return
        if time.monotonic() - connection.last_heard > self._settings.loss_s:
            connection.close(f"it has been silent for {self._settings.loss_s:g} s")
            return
        connection.send(protocol.PING)
        self._loop.later(self._settings.heartbeat_s, lambda: self._beat(connection))


@dataclass
class _Member:
    """A child as the main node knows it."""

    node: Node
    connection: Connection
    is_staged: bool = False
    script_code: int | None = None
    said_goodbye: bool = False
    tail: bytes = b""


class _Main(_NodeProcess):
    _failure: str | None = None
    """Why the job cannot succeed any more."""
    _ending = False
    _started = False

    def run(self) -> int:
        """The life of the main node; the job's exit code."""
        self._members: dict[int, _Member] = {}
        code = self._gathered()
        if code is None:
            code = self._worked()
        self._log.info(f"the job's {self._settings.count} nodes are done: exit code {code}")
        return code

    def _gathered(self) -> int | None:
        """Wait for all nodes and their input; an exit code where the job ends here."""
        settings, worker = self._settings, self._worker
        port = settings.port
        if settings.count > 1:
            self._agent.on_hello = self._on_hello
            try:
                port = self._agent.listen(settings.port)
            except OSError as exc:
                return self._fail(contract.EXIT_CONFIG, f"port {settings.port}: {exc.strerror}")
            self._log.info(f"waiting for {settings.count - 1} nodes on port {port}")
        if not self._loop.run_until(lambda: self._is_over or not self._missing, settings.join_s):
            names = ", ".join(map(str, self._missing))
            why = f"nodes {names} did not join in {settings.join_s:g} s"
            return self._fail(contract.EXIT_NOT_JOINED, why)
        self._loop.run_until(lambda: self._is_over or self._is_staged)
        if self._is_over:
            return self._result()
        own = self._describe(self._own_address(), port)
        try:
            self._begin([own, *(self._members[i].node for i in sorted(self._members))])
        except ConfigFault as fault:
            return self._fail(contract.EXIT_CONFIG, str(fault))
        self._log.info(f"all {settings.count} nodes are ready: the script begins")
        worker.run(self._more, self._path)
        return None

    def _begin(self, nodes: Sequence[Node]) -> None:
        self._publish(nodes)
        self._started = True
        table = protocol.packed({"nodes": [node.as_json() for node in nodes]})
        for member in self._members.values():
            member.connection.send(protocol.READY, table)

    def _worked(self) -> int:
        """See the script to its end; the job's exit code."""
        self._loop.run_until(lambda: self._is_over or self._worker.script_code is not None)
        if self._settings.runs_everywhere and self._worker.script_code == 0:
            self._loop.run_until(lambda: self._is_over or self._first_failure is not None)
        return self._result()

    def _result(self) -> int:
        """End all nodes, in good order where all went well."""
        worker, strict = self._worker, not self._settings.outlives_nodes
        if self._loop.stopped:
            self._log.warning("stopped by the platform")
            self._end_worker(None)
            self._shut_down(EXIT_STOPPED)
            return EXIT_STOPPED
        if self._failure and strict:
            return self._fail(contract.EXIT_NODE_LOST, self._failure)
        code = self._work_code
        missing = self._shut_down(code)
        if code == 0 and self._failure and strict:
            return self._fail(contract.EXIT_NODE_LOST, self._failure)
        if code == 0 and missing and strict:
            names = ", ".join(map(str, missing))
            return self._fail(contract.EXIT_NODE_LOST, f"nodes {names} did not see the job's end")
        worker.release(code == 0, code)
        self._loop.run_until(lambda: worker.exit_code is not None)
        return code or worker.exit_code or 0

    @property
    def _work_code(self) -> int:
        """The exit code of the script, on whichever node it failed first."""
        worker = self._worker
        if worker.script_code is None:
            return worker.exit_code or 0
        return worker.script_code or self._first_failure or 0

    @property
    def _first_failure(self) -> int | None:
        """Of scripts on all nodes: the first failure, 0 when all are done, None before."""
        if not self._settings.runs_everywhere:
            return 0
        codes = [member.script_code for member in self._members.values()]
        failed = [code for code in codes if code]
        return failed[0] if failed else None if None in codes else 0

    def _fail(self, code: int, why: str) -> int:
        self._log.error(why)
        self._end_worker(LOST_GRACE_S)
        ended = self._worker.script_code
        if ended is not None and code == contract.EXIT_NODE_LOST:
            self._log.info(f"the script itself ended with exit code {ended}")
        if not self._ending:
            self._shut_down(code)
        return code

    def _shut_down(self, code: int) -> list[int]:
        """Tell all children that the job is over; those that did not say goodbye."""
        self._ending = True
        self._clean()
        members = list(self._members.values())
        for member in members:
            member.connection.send(protocol.SHUTDOWN, protocol.packed({"code": code}))
        # A child that stages out takes its time; its heartbeat tells that it lives.
        limit = None if self._settings.stages_out_everywhere and code == 0 else GOODBYE_S
        self._loop.run_until(
            lambda: all(m.said_goodbye or not m.connection.is_open for m in members), limit
        )
        return [member.node.index for member in members if not member.said_goodbye]

    @property
    def _is_over(self) -> bool:
        strict = not self._settings.outlives_nodes or not self._started
        ended = self._worker.exit_code is not None and self._worker.script_code is None
        return self._loop.stopped or ended or (strict and self._failure is not None)

    @property
    def _missing(self) -> list[int]:
        settings = self._settings
        here = {*self._members, settings.main}
        return [index for index in range(settings.count) if index not in here]

    @property
    def _is_staged(self) -> bool:
        return self._worker.is_staged and all(m.is_staged for m in self._members.values())

    def _own_address(self) -> str:
        own = [member.connection.own_ip for member in self._members.values()]
        return own[0] if own else own_ip()

    def _on_hello(self, connection: Connection, payload: bytes) -> None:
        count = self._settings.count
        data = protocol.unpacked(payload, {"node": dict, "attempt": str})
        data["node"]["ip"] = connection.peer_ip
        node = mnp_environment.parse_node(data["node"], count)
        if node.index in self._members or node.index == self._settings.main:
            error = f"node {node.index} is here already"
            connection.send(protocol.FAILED, protocol.packed({"error": error}))
            connection.end()
            return
        attempt = self._environ.get("AWS_BATCH_JOB_ATTEMPT", "")
        if data["attempt"] != attempt:
            self._log.warning(
                f"node {node.index} is of attempt {data['attempt']}, this one of {attempt}"
            )
        member = _Member(node, connection)
        self._members[node.index] = member
        connection.on_frame = lambda _, kind, body: self._on_frame(member, kind, body)
        connection.on_end = lambda _, why: self._on_gone(member, why)
        self._log.info(
            f"node {node.index} joined: {node.hostname} ({node.ip}), {node.slots} slots; "
            f"{len(self._members) + 1} of {count}"
        )
        self._beat(connection)

    def _on_frame(self, member: _Member, kind: int, payload: bytes) -> None:
        if kind == protocol.STAGED:
            member.is_staged = True
        elif kind == protocol.DONE:
            member.script_code = protocol.unpacked(payload, {"code": int})["code"]
        elif kind == protocol.LOG:
            member.tail = payload[-TAIL_BYTES:]
        elif kind == protocol.BYE:
            member.said_goodbye = True
        elif kind == protocol.FAILED:
            error = protocol.unpacked(payload, {"error": str})["error"]
            member.connection.close(error[:1000])
        elif kind != protocol.PING:
            raise Refused(f"a child sent a frame of kind {kind}")

    def _on_gone(self, member: _Member, why: str) -> None:
        if member.said_goodbye or (self._ending and self._failure):
            return
        node = member.node
        failure = f"node {node.index} ({node.ip}) was lost: {why}"
        if self._failure is None:
            self._failure = failure
        if self._settings.outlives_nodes:
            self._log.warning(failure)
        self._tell_tail(member)

    def _tell_tail(self, member: _Member) -> None:
        if member.tail:
            index = member.node.index
            self._log.info(f"the end of the log of node {index}:")
            for line in member.tail.decode(errors="replace").splitlines()[-40:]:
                self._log.write(f"[{index}] {line}\n".encode())


class _Child(_NodeProcess):
    _main: Connection | None = None
    _is_ready = False
    _ended_with: int | None = None
    """The job's exit code, when the main node has said that it is over."""
    _lost: str | None = None
    _tail_is_due = False

    def run(self) -> int:
        """The life of a child node; its exit code, which decides nothing."""
        code = self._joined()
        if code is None:
            code = self._served()
        self._log.info(f"node {self._settings.index} is done: exit code {code}")
        return code

    def _open_port(self) -> int:
        try:
            return self._agent.listen(self._settings.port)
        except OSError:  # only the main node's port must be known before
            return self._agent.listen(0)

    def _joined(self) -> int | None:
        """Register with the main node; an exit code where that cannot be."""
        limit, delay_s = time.monotonic() + self._settings.join_s, 0.2
        refusals = 0
        while not self._loop.stopped:
            fault, was_refused = self._try_to_join()
            if fault is None:
                return None
            refusals += was_refused
            if refusals >= _REFUSALS_LIMIT:
                return self._leave(contract.EXIT_SECRET, f"the main node refuses us: {fault}")
            if time.monotonic() > limit:
                address = f"{self._settings.main_ip}:{self._settings.port}"
                why = f"the main node {address} cannot be joined: {fault}"
                return self._leave(contract.EXIT_NOT_JOINED, why)
            self._loop.run_until(lambda: self._loop.stopped, delay_s)
            delay_s = min(delay_s * 1.5, 5.0)
        return self._leave(EXIT_STOPPED, "stopped by the platform")

    def _try_to_join(self) -> tuple[str | None, bool]:
        """Why it did not work, and whether the main node (or a wrong one) refused us."""
        settings = self._settings
        try:
            peer = connect(self._loop, (settings.main_ip, settings.port), 5.0)
        except OSError as exc:
            return str(exc.strerror or exc), False
        codec = Codec(self._key, is_server=False)
        main = Connection(self._loop, peer, codec, self._on_frame, self._on_gone)
        self._lost = None
        self._loop.run_until(lambda: main.is_authenticated or not main.is_open, 10.0)
        if not main.is_authenticated:
            main.close("it does not answer")
            fault, self._lost = self._lost or "", None
            return fault, codec.has_spoken
        node = self._describe(main.own_ip, self._open_port())
        attempt = self._environ.get("AWS_BATCH_JOB_ATTEMPT", "")
        hello = {"node": node.as_json(), "attempt": attempt}
        main.send(protocol.HELLO, protocol.packed(hello))
        self._main = main
        self._log.on_growth = self._send_tail
        self._send_tail()
        self._beat(main)
        return None, False

    def _served(self) -> int:
        """Stage in, say so, and serve until the main node ends the job; the exit code."""
        worker, main = self._worker, self._main
        assert main is not None
        self._loop.run_until(lambda: self._is_over or worker.is_staged or self._has_failed)
        if worker.is_staged:
            main.send(protocol.STAGED)
        self._loop.run_until(lambda: self._is_over or self._is_ready or self._has_failed)
        if self._is_ready and self._settings.runs_everywhere:
            worker.run(self._more, self._path)
            self._loop.run_until(lambda: self._is_over or worker.script_code is not None)
            if worker.script_code is not None:
                main.send(protocol.DONE, protocol.packed({"code": worker.script_code}))
        self._loop.run_until(lambda: self._is_over or self._has_failed)
        return self._result(main)

    def _result(self, main: Connection) -> int:
        worker = self._worker
        if self._loop.stopped:
            return self._leave(EXIT_STOPPED, "stopped by the platform")
        if self._has_failed:
            self._fail_job(main, f"its part failed with exit code {worker.exit_code}")
            return worker.exit_code or 1
        if self._ended_with is None:
            return self._leave(contract.EXIT_MAIN_LOST, f"the main node was lost: {self._lost}")
        self._log.info(f"the main node ended the job: exit code {self._ended_with}")
        if worker.script_code is None and self._settings.runs_everywhere:
            self._end_worker(LOST_GRACE_S)
        self._clean()
        succeeded = self._ended_with == 0
        stages_out = succeeded and self._settings.stages_out_everywhere
        worker.release(stages_out or succeeded, self._ended_with)
        self._loop.run_until(lambda: worker.exit_code is not None or not main.is_open)
        if succeeded and worker.exit_code:
            self._fail_job(main, f"its part failed with exit code {worker.exit_code}")
            return worker.exit_code
        main.send(protocol.BYE)
        main.end()
        self._loop.run_until(lambda: not main.is_open, 2.0)
        self._end_worker(0.0)
        return 0

    def _fail_job(self, main: Connection, error: str) -> None:
        main.send(protocol.LOG, self._log.tail)
        main.send(protocol.FAILED, protocol.packed({"error": error}))
        main.end()
        self._loop.run_until(lambda: not main.is_open, 2.0)
        self._clean()

    def _leave(self, code: int, why: str) -> int:
        self._log.error(why)
        self._end_worker(CLEAN_S)
        self._clean()
        return code

    @property
    def _is_over(self) -> bool:
        return self._loop.stopped or self._ended_with is not None or self._lost is not None

    @property
    def _has_failed(self) -> bool:
        worker = self._worker
        return worker.script_code is None and bool(worker.exit_code)

    def _on_frame(self, connection: Connection, kind: int, payload: bytes) -> None:
        if kind == protocol.READY:
            self._on_ready(payload)
        elif kind == protocol.SHUTDOWN:
            self._ended_with = protocol.unpacked(payload, {"code": int})["code"]
        elif kind == protocol.FAILED:
            raise Refused(protocol.unpacked(payload, {"error": str})["error"])
        elif kind != protocol.PING:
            raise Refused(f"the main node sent a frame of kind {kind}")

    def _on_ready(self, payload: bytes) -> None:
        count = self._settings.count
        table = protocol.unpacked(payload, {"nodes": list})["nodes"]
        nodes = [mnp_environment.parse_node(data, count) for data in table]
        if sorted(node.index for node in nodes) != list(range(count)):
            raise Refused("the table of nodes is not complete")
        try:
            self._publish(nodes)
        except ConfigFault as fault:
            raise Refused(str(fault)) from fault
        self._is_ready = True
        self._log.info(f"all {count} nodes are ready")

    def _on_gone(self, connection: Connection, why: str) -> None:
        if self._lost is None:
            self._lost = why

    def _send_tail(self) -> None:
        """Keep the main node's copy of our log's end fresh, once a second."""
        if self._tail_is_due or self._main is None:
            return
        self._main.send(protocol.LOG, self._log.tail)
        self._tail_is_due = True
        self._loop.later(_TAIL_EVERY_S, self._send_tail_again)

    def _send_tail_again(self) -> None:
        self._tail_is_due = False
        if self._main is not None and self._main.is_open:
            self._main.send(protocol.LOG, self._log.tail)


def _has_infiniband() -> bool:
    try:
        return bool(os.listdir("/sys/class/infiniband"))
    except OSError:
        return False
