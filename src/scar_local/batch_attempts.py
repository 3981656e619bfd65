"""One attempt of a job: its container, its log while it runs, and how it ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from scar_local.batch_secrets import SecretsFailed
from scar_local.engines import ContainerSpec, Engine, EngineError, Exit, Running
from scar_local.scheduler import Ended, Need

EXITED = "Essential container in task exited"
NOT_STARTED = "Task failed to start"
TIMED_OUT = "Job attempt duration exceeded timeout"
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"

_REASON_LIMIT = 255
"""AttemptContainerDetail: `reason` has 255 characters at most."""
_FLUSH_S = 0.1
_FLUSH_LINES = 100
_BACKLOG_BYTES = 4 << 20
_LINE_BYTES = 100
"""What a line costs beside its characters."""
_log = logging.getLogger(__name__)


class LogStreams(Protocol):
    """What an attempt needs of the Logs service."""

    def ensure_stream(self, group: str, stream: str) -> None:
        """Create the group and the stream where they are missing."""

    def append(
        self, group: str, stream: str, lines: Sequence[str], timestamp_ms: int | None = None
    ) -> None:
        """Add lines to a stream."""


@dataclass(frozen=True)
class Task:
    """What one attempt runs. `environment` is the ARN of the compute environment it runs in."""

    job: str
    environment: str
    need: Need
    spec: ContainerSpec
    log_group: str
    log_stream: str
    timeout_s: float | None
    secrets: Callable[[], Mapping[str, str]] = dict
    """More variables; known when the container starts, kept nowhere. May raise SecretsFailed."""


class Attempt:
    """Runs a task once. `end` may be called from any thread, before, while or after it runs."""

    def __init__(self, task: Task, engine: Engine, logs: LogStreams, grace_s: float) -> None:
        self.task, self._engine, self._logs, self._grace_s = task, engine, logs, grace_s
        self._changing = threading.Lock()
        self._running: Running | None = None
        self._ended_by: Ended | None = None

    def run(self, on_running: Callable[[], None]) -> Ended:
        """Start the container, wait for its end, keep its log. Calls `on_running` in between."""
        task = self.task
        if self._ended_by:
            return self._ended_by
        try:
            self._logs.ensure_stream(task.log_group, task.log_stream)
        except Exception:  # the first line that can be kept makes it
            _log.exception("the log of %s cannot be made", task.spec.name)
        lines = Lines(lambda batch: self._logs.append(task.log_group, task.log_stream, batch))
        try:
            environment = {**task.spec.environment, **task.secrets()}
            running = self._engine.start(replace(task.spec, environment=environment), lines.add)
        except SecretsFailed as exc:
            return self._ended_by or Ended(None, str(exc))
        except EngineError as exc:
            return self._ended_by or Ended(None, NOT_STARTED, cannot_start(str(exc)))
        else:
            end = self._see_through(running, on_running)
        finally:
            lines.close()
        if self._ended_by is None:
            return Ended(end.code, EXITED, _reason(end))
        if not self._ended_by.final:
            return self._ended_by
        return replace(self._ended_by, exit_code=end.code, reason=_reason(end))

    def _see_through(self, running: Running, on_running: Callable[[], None]) -> Exit:
        try:
            on_running()
            return self._wait(running)
        except BaseException:
            running.stop(0)  # an attempt that is written off must not go on in secret
            raise

    def _wait(self, running: Running) -> Exit:
        with self._changing:
            self._running = running
            too_late = self._ended_by is not None
        if too_late:  # asked to end while the engine was still starting it
            running.stop(self._grace_s)
        end = running.wait(self.task.timeout_s)
        if end is None:
            if self._claim(Ended(None, TIMED_OUT, final=True))[0]:
                running.stop(self._grace_s)
            end = running.wait()
        if end is None:
            raise RuntimeError(f"the engine forgot how {self.task.spec.name} ended")
        return end

    def end(self, why: Ended) -> None:
        """End the attempt; the first `why` stays. Does not wait.

        Of a `why` that is not final nothing is completed by how the container then ends.
        """
        first, running = self._claim(why)
        if first and running:
            name = f"stop-{self.task.spec.name}"
            stop = threading.Thread(target=running.stop, args=(self._grace_s,), name=name)
            stop.daemon = True
            try:
                stop.start()
            except RuntimeError:  # no thread can be started: rather wait than let it run on
                running.stop(self._grace_s)

    def kill(self) -> None:
        """End the container now, whoever gives it a grace already."""
        self._grace_s = 0
        if self._running:
            try:
                self._running.stop(0)
            except Exception:  # the engine is gone; others are still to be ended
                _log.exception("%s cannot be ended", self.task.spec.name)

    def _claim(self, why: Ended) -> tuple[bool, Running | None]:
        with self._changing:
            first = self._ended_by is None
            self._ended_by = self._ended_by or why
            return first, self._running


class Lines:
    """Gathers lines of output and hands them over in batches, from a thread of its own.

    A batch leaves when it has 100 lines or 0.1 s after its first line. A container that prints
    faster than the log can be kept is held back, not remembered without bound. What `keep` cannot
    take is lost, and the daemon's log says so: a job's result counts more than its log.
    """

    def __init__(self, keep: Callable[[Sequence[str]], None]) -> None:
        self._keep = keep
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._bytes = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="job-log", daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """Take a line; waits while the backlog is full."""
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < _BACKLOG_BYTES)
            self._lines.append(line)
            self._bytes += len(line) + _LINE_BYTES
            if len(self._lines) == 1 or self._is_enough():
                self._changed.notify_all()

    def close(self) -> None:
        """Hand over what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._keep(batch)
            except Exception:
                _log.exception("%d lines of a job's log are lost", len(batch))

    def _next_batch(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            self._changed.wait_for(lambda: self._is_enough() or self._closed, _FLUSH_S)
            batch, self._lines, self._bytes = self._lines, [], 0
            self._changed.notify_all()
            return batch

    def _is_enough(self) -> bool:
        return len(self._lines) >= _FLUSH_LINES or self._bytes >= _BACKLOG_BYTES


def cannot_start(message: str) -> str:
    """Why a container never ran, as `reason` says it."""
    known = message.split(":", 1)[0].endswith("Error") and " " not in message.split(":", 1)[0]
    return (message if known else f"CannotPullContainerError: {message}")[:_REASON_LIMIT]


def _reason(end: Exit) -> str:
    return (OUT_OF_MEMORY if end.oom_killed else end.reason)[:_REASON_LIMIT]
