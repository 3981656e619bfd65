"""Threads that go on whatever happens: what fails is logged, and done again a second later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

AFTER_FAULT_S = 1.0
_log = logging.getLogger(__name__)


class Background:
    """A thread that takes a step at its start, when it is woken, and when the step asked for it."""

    def __init__(self, name: str, step: Callable[[], float | None]) -> None:
        """`step` answers after how many seconds it wants to be called unasked; None: never."""
        self._step = step
        self._changed = threading.Condition()
        self._woken = True
        self.stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Take the first step."""
        self._thread.start()

    def wake(self) -> None:
        """Take a step: something changed."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def halt(self) -> None:
        """Take no step more; does not wait for the one at hand."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Take no step more; returns when the one at hand is done."""
        self.halt()
        if self._thread.is_alive():
            self._thread.join()

    def insist(self, what: str, do: Callable[[], None]) -> bool:
        """Do something, in the caller's thread, until it succeeds; False: it did not till `halt`.

        It is tried once at least, also after `halt`.
        """
        while True:
            try:
                do()
            except Exception:
                _log.exception("%s: tried again in %g s", what, AFTER_FAULT_S)
            else:
                return True
            if self._pause():
                return False

    def _run(self) -> None:
        wait_s: float | None = 0.0
        while self._wait(wait_s):
            try:
                wait_s = self._step()
            except Exception:  # a full disk, say: what is to be done waits until it is mended
                _log.exception("%s: tried again in %g s", self._thread.name, AFTER_FAULT_S)
                self._pause()
                wait_s = 0.0

    def _wait(self, timeout_s: float | None) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self.stopping, timeout_s)
            self._woken = False
            return not self.stopping

    def _pause(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.stopping, AFTER_FAULT_S)
