"""The supervisor's own log: one line an event step, on stdout beside the script's output.

Not the `logging` package: importing it takes longer than everything else at start.
"""

from __future__ import annotations

import os
import select
import time

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


class Log:
    """Writes lines `2026-01-31 12:00:00,123 - supervisor - INFO - message` to a descriptor."""

    def __init__(self, level: str = "INFO", descriptor: int = 1) -> None:
        self._threshold = LEVELS.get(level.upper(), LEVELS["INFO"])
        self._descriptor = descriptor
        self._gone = False

    def debug(self, message: str) -> None:
        """Details of a step."""
        self._line("DEBUG", message)

    def info(self, message: str) -> None:
        """One step of an event."""
        self._line("INFO", message)

    def warning(self, message: str) -> None:
        """Something that the user should know and that does not fail the event."""
        self._line("WARNING", message)

    def error(self, message: str) -> None:
        """What failed the event."""
        self._line("ERROR", message)

    def write(self, data: bytes) -> None:
        """Pass the script's output on as it is."""
        view = memoryview(data)
        while view and not self._gone:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Whoever shares our stdout may have made it non-blocking.
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                # Nobody reads the log any more; that is no reason to fail the user's script.
                self._gone = True

    def _line(self, level: str, message: str) -> None:
        if LEVELS[level] < self._threshold:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        line = f"{stamp},{int(now * 1000) % 1000:03d} - supervisor - {level} - {message}\n"
        self.write(line.encode(errors="replace"))
