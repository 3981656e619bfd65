"""What was copied, and how far a command is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

Status = Literal["done", "unchanged"]


@dataclass(frozen=True)
class Transfer:
    """One file that was copied, or was there already."""

    source: str
    target: str
    size_bytes: int
    status: Status = "done"


@dataclass(frozen=True)
class Progress:
    """How far a command is. What is unchanged counts as copied."""

    files_done: int = 0
    files_found: int = 0
    """So far: they are found while others are copied."""
    bytes_done: int = 0
    bytes_found: int = 0


class Tally:
    """Adds up what threads tell it, and tells it on, one call at a time."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress, self._lock = on_progress, threading.Lock()
        self._now = Progress()

    def found(self, size_bytes: int) -> None:
        """One more file is to be copied."""
        with self._lock:
            self._now = replace(
                self._now,
                files_found=self._now.files_found + 1,
                bytes_found=self._now.bytes_found + size_bytes,
            )
            self._on_progress(self._now)

    def copied(self, size_bytes: int, files: int = 0) -> None:
        """Some bytes arrived, and with them the last of `files` files."""
        with self._lock:
            self._now = replace(
                self._now,
                files_done=self._now.files_done + files,
                bytes_done=self._now.bytes_done + size_bytes,
            )
            self._on_progress(self._now)
