"""One at a time, by name: what two threads would otherwise both do."""

from __future__ import annotations

import threading


class Turns:
    """Hands out one lock a name."""

    def __init__(self) -> None:
        self._locks: dict[object, threading.Lock] = {}
        self._lock = threading.Lock()

    def of(self, name: object) -> threading.Lock:
        """The lock of `name`."""
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())
