"""Many small jobs in a few threads, results in order, nothing left running."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager
from functools import partial

from scar.storage.names import Fault
from scar.storage.tally import Transfer

THREADS = 16
"""Requests to S3 at a time, over all files of a command."""

WINDOW = 1000
"""Files looked at before the first of them is done."""

PATIENCE_S = 5.0
"""How long the end of a broken-off command waits for requests that are under way."""

Job = Callable[[], None]
Result = Transfer | Fault
Task = Callable[[Future[Result]], None]
"""A job that sets the future's result, or adds the jobs that will."""


class Crew:
    """Threads that do jobs in the order of `add`. A job may add more; none may wait for another.

    What a job raises ends the whole crew: `results` raises it.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._is_stopped = False
        self._waiting: deque[Future[Result]] = deque()
        self._failure: BaseException | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether jobs should end early: nobody waits for them any more."""
        return self._is_stopped

    def add(self, *jobs: Job, first: bool = False) -> None:
        """Have `jobs` done; with `first` before all that wait."""
        with self._changed:
            if self._is_stopped:
                return
            if first:
                self._jobs.extendleft(reversed(jobs))
            else:
                self._jobs.extend(jobs)
            for _ in range(min(len(self._jobs) - self._idle, THREADS - len(self._threads))):
                # Daemons: a request that hangs must not keep an interrupted command alive.
                thread = threading.Thread(target=self._work, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify(len(jobs))

    def results(self, work: Iterable[Task | Fault]) -> Iterator[Result]:
        """What each item of `work` comes to, in its order.

        `work` is read in the caller's thread, at most 1000 items ahead.
        """
        for item in work:
            future: Future[Result] = Future()
            with self._changed:
                self._waiting.append(future)
            if isinstance(item, Fault):
                future.set_result(item)
            else:
                self.add(partial(item, future))
            while self._waiting and (self._waiting[0].done() or len(self._waiting) >= WINDOW):
                yield self._next()
            self._check()
        while self._waiting:
            yield self._next()

    def stop(self) -> None:
        """Drop what has not begun, and wait a little for what has."""
        with self._changed:
            self._is_stopped = True
            self._jobs.clear()
            self._changed.notify_all()
        end = time.monotonic() + PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _next(self) -> Result:
        future = self._waiting[0]
        self._check()
        result = future.result()
        with self._changed:
            self._waiting.popleft()
        return result

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._jobs or self._is_stopped)
                self._idle -= 1
                if self._is_stopped:
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException as exc:
                self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or exc
            self._jobs.clear()
            for future in self._waiting:
                try:
                    future.set_exception(exc)
                except InvalidStateError:
                    continue  # it is done


class Room:
    """Memory that all threads share: a taker waits until its bytes are free."""

    def __init__(self, size_bytes: int) -> None:
        self._size = self._free = size_bytes
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, size_bytes: int) -> Iterator[None]:
        """Hold `size_bytes`; more than there is means all there is."""
        size = min(size_bytes, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
