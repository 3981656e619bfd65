"""Execution environments of functions: containers that are started, reused warm, and retired.

A caller's thread carries its invocation from start to end. An idle environment of the same function
(and the same code and configuration) is reused, the last used one first; else a new one starts;
at the limit callers wait in the order in which they came.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from scar_local.background import Background
from scar_local.engines import ContainerSpec, Engine, EngineError, Exit, Running
from scar_local.runtime_api import Answer, Invocation, RuntimeApi, error_answer

INIT_LIMIT_S = 10.0
"""Time that Lambda gives a runtime to ask for its first invocation; a longer timeout counts more.

https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html
"""

LOG_TAIL_BYTES = 4096
"""What `LogType=Tail` gives (Invoke, X-Amz-Log-Result)."""

_LOG_FLUSH_S = 0.2
_LOG_GROUP_MS = 20
"""Lines that came within this time share a timestamp, and so one write."""
_PENDING_BYTES = 4 << 20
_LINE_BYTES = 100
"""What a line costs beside its characters."""
_ASKS_AGAIN_S = 0.1
_QUIET_S = 0.003
_QUIET_LIMIT_S = 2.0
_log = logging.getLogger(__name__)


class LogSink(Protocol):
    """What environments need of CloudWatch Logs."""

    def ensure_stream(self, group: str, stream: str) -> None:
        """Create the group and the stream where they are missing."""

    def append(
        self,
        group: str,
        stream: str,
        lines: list[str],
        timestamp_ms: int | None = None,
        create: bool = True,
    ) -> None:
        """Add lines, all with one timestamp; `create`: also where the group is not there."""


@dataclass(frozen=True)
class Target:
    """All that running a function needs to know about it."""

    name: str
    arn: str
    image: str
    generation: str
    """Changes whenever code or configuration changes; environments of an older one are retired."""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_mb: int = 128
    timeout_s: int = 3
    log_group: str = ""


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended. `error_type` is None when the function succeeded."""

    payload: bytes
    error_type: str | None
    log_tail: bytes
    """The last 4 KB of this invocation's log."""


class Stopping(Exception):
    """The local cloud is stopping: the invocation has no outcome and may be run again."""


class Environments:
    """The pool of all functions' environments."""

    def __init__(
        self,
        engine: Engine,
        logs: LogSink,
        endpoint: Callable[[], str],
        limit: int,
        idle_s: float,
    ) -> None:
        self._engine, self._endpoint = engine, endpoint
        self._limit, self._idle_s = limit, idle_s
        self._journal = _Journal(logs)
        self._lock = threading.Lock()
        self._all: set[_Environment] = set()
        self._idle: list[_Environment] = []
        self._waiting: deque[threading.Event] = deque()
        self._generations: dict[str, str] = {}
        self._stopping = False
        self._expiry = Background("environments", self._expire)
        self._expiry.start()

    def invoke(self, target: Target, invocation: Invocation) -> Outcome:
        """Run one invocation to its end. Raises Stopping when `stop` came in between."""
        environment = self._acquire(target)
        try:
            outcome = environment.run(invocation)
        except BaseException:
            environment.alive = False  # nobody knows what its runtime is doing
            raise
        finally:
            self._release(environment)
        if self._stopping and outcome.error_type is not None:
            raise Stopping
        return outcome

    def retire(self, name: str, generation: str | None) -> None:
        """End a function's environments of other generations, busy ones after their invocation.

        `generation` is the one that stays; None when the function is gone.
        """
        with self._lock:
            self._generations[name] = generation or ""
            ended = [e for e in self._idle if e.target.name == name and not self._is_current(e)]
            self._forget(ended)
            if generation is None:
                for environment in self._all:
                    environment.orphan(name)
        for environment in ended:
            environment.stop()

    def counts(self) -> dict[str, int]:
        """How many environments exist, and how many of them are idle."""
        with self._lock:
            return {"environments": len(self._all), "idle": len(self._idle)}

    def stop(self) -> None:
        """End every environment; invocations under way raise Stopping."""
        with self._lock:
            self._stopping = True
            environments = list(self._all)
            self._idle.clear()
            for ticket in self._waiting:
                ticket.set()
        self._expiry.halt()
        with ThreadPoolExecutor(16) as stopping:
            stopping.map(_Environment.stop, environments)
        self._journal.stop()

    def _acquire(self, target: Target) -> _Environment:
        ticket = threading.Event()
        with self._lock:
            self._waiting.append(ticket)
        while True:
            with self._lock:
                if self._stopping:
                    raise Stopping
                found, evicted = self._take(target) if self._waiting[0] is ticket else (None, None)
                ticket.clear()
                if found is not None:
                    self._waiting.popleft()
                    self._call_next()
                    break
            ticket.wait()
        if evicted is not None:
            evicted.stop()
        return found

    def _take(self, target: Target) -> tuple[_Environment | None, _Environment | None]:
        """An environment for the first caller in line, and one that must end to make room."""
        for environment in reversed(self._idle):
            if environment.target.generation == target.generation:
                self._idle.remove(environment)
                return environment, None
        evicted = None
        if len(self._all) >= self._limit:
            if not self._idle:
                return None, None
            evicted = self._idle[0]
            self._forget([evicted])
        environment = _Environment(
            target, self._engine, self._journal, self._endpoint(), self._lost
        )
        if self._generations.get(target.name) == "":  # deleted while this caller stood in line
            environment.orphan(target.name)
        self._all.add(environment)
        return environment, evicted

    def _release(self, environment: _Environment) -> None:
        with self._lock:
            reusable = environment.alive and self._is_current(environment) and not self._stopping
            if reusable:
                environment.idle_since = time.monotonic()
                self._idle.append(environment)
                self._expiry.wake()
            else:
                self._forget([environment])
            self._call_next()
        if not reusable:
            environment.stop()

    def _lost(self, environment: _Environment) -> None:
        """A container ended by itself; a busy one's caller finds out on its own."""
        with self._lock:
            idle = environment in self._idle
            if idle:
                self._forget([environment])
        if idle:
            environment.stop()

    def _is_current(self, environment: _Environment) -> bool:
        target = environment.target
        return self._generations.get(target.name, target.generation) == target.generation

    def _forget(self, environments: list[_Environment]) -> None:
        for environment in environments:
            self._all.discard(environment)
            if environment in self._idle:
                self._idle.remove(environment)
        self._call_next()

    def _call_next(self) -> None:
        if self._waiting:
            self._waiting[0].set()

    def _expire(self) -> float | None:
        with self._lock:
            now = time.monotonic()
            ended = [e for e in self._idle if e.idle_since + self._idle_s <= now]
            self._forget(ended)
            left_s = self._idle[0].idle_since + self._idle_s - now if self._idle else None
        for environment in ended:
            environment.stop()
        return left_s


class _Environment:
    """One container with its Runtime API and its log stream."""

    def __init__(
        self,
        target: Target,
        engine: Engine,
        journal: _Journal,
        endpoint: str,
        lost: Callable[[_Environment], None],
    ) -> None:
        self.target = target
        self.idle_since = 0.0
        self.alive = True
        self._engine, self._endpoint, self._lost = engine, endpoint, lost
        self._id = uuid.uuid4().hex
        day = datetime.now(UTC).strftime("%Y/%m/%d")
        self._log = _Log(journal, target.log_group, f"{day}/[$LATEST]{self._id}")
        self._api: RuntimeApi | None = None
        self._running: Running | None = None
        self._stopping = threading.Lock()

    def run(self, invocation: Invocation) -> Outcome:
        """Serve one invocation, starting the container first where it does not run yet."""
        init_s = 0.0
        failure: Answer | None = None
        if self._api is None:
            began = time.monotonic()
            failure = self._start(invocation.request_id)
            init_s = time.monotonic() - began
        self._log.begin(f"START RequestId: {invocation.request_id} Version: $LATEST")
        began = time.monotonic()
        answer = failure or self._serve(invocation)
        elapsed_s = time.monotonic() - began
        self._settle()
        return self._close(invocation.request_id, answer, elapsed_s, init_s)

    def stop(self) -> None:
        """End the container; harmless when it has ended.

        An engine's fault is logged, not raised: the caller has an outcome to hand on, or others
        to stop.
        """
        self.alive = False
        with self._stopping:  # the one that comes second finds it gone
            try:
                if self._running is not None:
                    self._running.stop()
            except Exception:
                _log.exception("a container of %s cannot be stopped", self.target.name)
            if self._api is not None:
                self._api.close()
        self._log.flush()

    def orphan(self, name: str) -> None:
        """The function `name` is gone: if it is this one's, its log group is not made again."""
        if name == self.target.name:
            self._log.creates = False

    def _start(self, request_id: str) -> Answer | None:
        """Start the container and wait for its first `next`; what went wrong, or None."""
        self._log.open()
        self._api = api = RuntimeApi()
        try:
            running = self._engine.start(self._spec(api.address), self._log.write)
        except EngineError as exc:
            self.alive = False
            self._log.write(str(exc))
            return error_answer("EngineError", f"RequestId: {request_id} Error: {exc}")
        with self._stopping:
            self._running = running
            stopped = not self.alive
        if stopped:  # while the engine was at it
            self.stop()
            return error_answer("Sandbox.Stopped", f"RequestId: {request_id} Error: stopped")
        threading.Thread(
            target=self._watch, args=(running, api), name="environment", daemon=True
        ).start()
        limit_s = max(INIT_LIMIT_S, self.target.timeout_s)
        if not api.wait_ready(limit_s):
            return self._timed_out(request_id, limit_s)
        return self._failed(request_id, api.failure) if api.failure else None

    def _spec(self, runtime_api: str) -> ContainerSpec:
        target = self.target
        return ContainerSpec(
            name=f"function-{target.name}-{self._id[:12]}",
            image=target.image,
            environment=_variables(target, runtime_api, self._log.stream, self._endpoint),
            command=target.command,
            memory_mib=target.memory_mb,
            vcpus=max(target.memory_mb / 1769, 0.1),  # Lambda: 1,769 MB have one vCPU's worth
            read_only_root=True,
        )

    def _watch(self, running: Running, api: RuntimeApi) -> None:
        end = running.wait()
        if end is not None:
            self.alive = False
            api.ended(end)
            self._lost(self)

    def _serve(self, invocation: Invocation) -> Answer:
        assert self._api is not None
        said = self._api.call(invocation, self.target.timeout_s)
        if said is None:
            return self._timed_out(invocation.request_id, self.target.timeout_s)
        if isinstance(said, Exit):
            return self._failed(invocation.request_id, said)
        return said

    def _timed_out(self, request_id: str, limit_s: float) -> Answer:
        self.stop()
        what = f"Task timed out after {limit_s:.2f} seconds"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        self._log.write(f"{now}Z {request_id} {what}")
        return error_answer("Sandbox.Timedout", f"RequestId: {request_id} Error: {what}")

    def _failed(self, request_id: str, failure: Answer | Exit) -> Answer:
        self.alive = False
        if isinstance(failure, Answer):
            return failure
        error_type = "Runtime.OutOfMemory" if failure.oom_killed else "Runtime.ExitError"
        message = f"RequestId: {request_id} Error: {_describe(failure)}"
        self._log.write(message)
        self._log.write(error_type)
        return error_answer(error_type, message)

    def _settle(self) -> None:
        """Let the last lines arrive: they travel through a pipe, the answer through a socket."""
        if self._api is not None and self.alive:
            self._api.wait_ready(_ASKS_AGAIN_S)
        self._log.wait_quiet()

    def _close(self, request_id: str, answer: Answer, elapsed_s: float, init_s: float) -> Outcome:
        report = (
            f"REPORT RequestId: {request_id}\tDuration: {elapsed_s * 1000:.2f} ms\t"
            f"Billed Duration: {math.ceil((elapsed_s + init_s) * 1000)} ms\t"
            f"Memory Size: {self.target.memory_mb} MB"
        )
        if init_s:
            report += f"\tInit Duration: {init_s * 1000:.2f} ms"
        if answer.error_type == "Sandbox.Timedout":
            report += "\tStatus: timeout"
        elif answer.error_type is not None:
            report += f"\tStatus: error\tError Type: {answer.error_type}"
        tail = self._log.end(f"END RequestId: {request_id}", report)
        return Outcome(answer.payload, answer.error_type, tail)


class _Log:
    """One stream: lines are kept a moment and written together."""

    def __init__(self, journal: _Journal, group: str, stream: str) -> None:
        self.group, self.stream = group, stream
        self._journal = journal
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self.creates = True
        """Whether the group is made where it is missing."""
        self._pending: list[tuple[int, str]] = []
        self._pending_bytes = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._count = 0
        self._behind = False

    def open(self) -> None:
        """Make the stream exist."""
        if self.creates:
            self._journal.logs.ensure_stream(self.group, self.stream)

    def write(self, line: str) -> None:
        """Add one line; it reaches CloudWatch Logs soon."""
        self._add(line.rstrip("\r\n"))
        if self._pending_bytes < _PENDING_BYTES:
            self._journal.dirty(self)
        else:  # in the engine's thread: a function that writes too fast has to wait
            self._behind = True
            self.flush()
            self._behind = False

    def begin(self, line: str) -> None:
        """The first line of an invocation."""
        with self._lock:
            self._tail.clear()
            self._tail_size = 0
        self._add(line)

    def end(self, *lines: str) -> bytes:
        """The last lines of an invocation; gives the last 4 KB since `begin`."""
        for line in lines:
            self._add(line)
        self.flush()
        with self._lock:
            return "".join(f"{line}\n" for line in self._tail).encode()[-LOG_TAIL_BYTES:]

    def wait_quiet(self) -> None:
        """Wait until no line has come for a moment, a bounded time."""
        end = time.monotonic() + _QUIET_LIMIT_S
        seen = -1
        while (self._behind or seen != self._count) and time.monotonic() < end:
            seen = self._count
            time.sleep(_QUIET_S)

    def flush(self) -> None:
        """Write what is pending, oldest first."""
        with self._flushing:
            with self._lock:
                pending, self._pending, self._pending_bytes = self._pending, [], 0
            while pending:
                began = pending[0][0]
                same = [line for at, line in pending if at < began + _LOG_GROUP_MS]
                self._append(same, began)
                pending = pending[len(same) :]

    def _append(self, lines: list[str], timestamp_ms: int) -> None:
        try:
            logs = self._journal.logs
            logs.append(self.group, self.stream, lines, timestamp_ms, self.creates)
        except Exception:  # a full disk, say: the function's answer counts more than its log
            _log.exception("%d lines of %s are lost", len(lines), self.group)

    def _add(self, line: str) -> None:
        with self._lock:
            now = time.time_ns() // 1_000_000
            if self._pending and now < self._pending[-1][0]:
                now = self._pending[-1][0]  # the clock was set back; a stream's order stays
            self._pending.append((now, line))
            self._pending_bytes += len(line) + _LINE_BYTES
            self._count += 1
            self._tail.append(line)
            self._tail_size += len(line) + 1
            while self._tail_size - len(self._tail[0]) - 1 >= LOG_TAIL_BYTES:
                self._tail_size -= len(self._tail.popleft()) + 1


class _Journal:
    """Writes the lines of invocations under way every moment, in one thread for all streams."""

    def __init__(self, logs: LogSink) -> None:
        self.logs = logs
        self._dirty: set[_Log] = set()
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._ending = threading.Event()
        threading.Thread(target=self._write, name="function-logs", daemon=True).start()

    def dirty(self, log: _Log) -> None:
        """Have a stream flushed soon."""
        with self._lock:
            self._dirty.add(log)
        if not self._wanted.is_set():
            self._wanted.set()

    def stop(self) -> None:
        """Write what is left and end."""
        self._ending.set()
        self._wanted.set()

    def _write(self) -> None:
        while not self._ending.is_set():
            self._wanted.wait()
            self._ending.wait(_LOG_FLUSH_S)
            self._wanted.clear()
            with self._lock:
                logs, self._dirty = self._dirty, set()
            for log in logs:
                log.flush()


def _variables(target: Target, runtime_api: str, stream: str, endpoint: str) -> dict[str, str]:
    """The environment of a function's container.

    https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html; PATH and LANG are the
    image's own, as on Lambda. The function's variables may replace the endpoint and TZ, never what
    Lambda reserves.
    """
    region = target.arn.split(":")[3]
    return {
        "TZ": ":UTC",
        "AWS_ENDPOINT_URL": endpoint,
        **target.environment,
        "AWS_LAMBDA_RUNTIME_API": runtime_api,
        "AWS_LAMBDA_FUNCTION_NAME": target.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(target.memory_mb),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": target.log_group,
        "AWS_LAMBDA_LOG_STREAM_NAME": stream,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SESSION_TOKEN": "local",
    }


def _describe(end: Exit) -> str:
    """How Lambda words the end of a runtime."""
    if end.oom_killed:
        return "Runtime exited with error: signal: killed"
    if end.code == 0:
        return "Runtime exited without providing a reason"
    name = signal.strsignal(end.code - 128) if 128 < end.code < 128 + signal.NSIG else None
    how = f"signal: {name.lower()}" if name else f"exit status {end.code}"
    return f"Runtime exited with error: {how}"
