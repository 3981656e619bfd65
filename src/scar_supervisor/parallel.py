"""Does one thing for many items in a few threads, and says what was done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

THREADS = 4

T = TypeVar("T")


@dataclass
class Tally(Generic[T]):
    """What became of each item; `left` were not tried after the first failure."""

    done: list[T] = field(default_factory=list)
    failed: list[tuple[T, Exception]] = field(default_factory=list)
    left: list[T] = field(default_factory=list)

    def check(self) -> None:
        """Raise the first failure, if there is one."""
        if self.failed:
            raise self.failed[0][1]


def for_each(items: Sequence[T], work: Callable[[T], None], threads: int = THREADS) -> Tally[T]:
    """Call `work` with each item, in order, in up to `threads` threads; stop at a failure."""
    tally: Tally[T] = Tally(left=list(reversed(items)))
    lock = threading.Lock()

    def take() -> None:
        while True:
            with lock:
                if tally.failed or not tally.left:
                    return
                item = tally.left.pop()
            try:
                work(item)
            except Exception as exc:
                with lock:
                    tally.failed.append((item, exc))
            else:
                with lock:
                    tally.done.append(item)

    helpers = []
    for _ in range(min(threads, len(items)) - 1):
        helper = threading.Thread(target=take, daemon=True)
        try:
            helper.start()
        except RuntimeError:
            # Docker before 20.10.10 refuses clone3: do all of it here, one after the other.
            break
        helpers.append(helper)
    take()
    for helper in helpers:
        helper.join()
    tally.left.reverse()
    return tally
