"""Asking again until AWS has settled, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable

from scar.errors import CloudError


def until(done: Callable[[], bool], what: str, service: str, limit_s: float = 600) -> None:
    """Return when `done()` is true, asking ever less often.

    Raises CloudError where that takes longer than `limit_s`.
    """
    deadline, pause = time.monotonic() + limit_s, 0.05
    while not done():
        if time.monotonic() > deadline:
            raise CloudError(service, "wait", "Timeout", f"{what} took more than {limit_s:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 5)


def retrying(
    call: Callable[[], None],
    passes: Callable[[CloudError], bool],
    limit_s: float = 60,
    first_pause_s: float = 1,
) -> None:
    """Make `call` until it raises nothing that `passes`, for at most `limit_s`."""
    deadline, pause = time.monotonic() + limit_s, first_pause_s
    while True:
        try:
            return call()
        except CloudError as exc:
            if not passes(exc) or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 1.5, 8)
