"""Output on its way to the log: nothing lost, in order, held back where the log is slow."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from scar_local.batch_attempts import Lines


def test_every_line_is_handed_over_in_order_and_in_batches() -> None:
    batches: list[Sequence[str]] = []
    lines = Lines(batches.append)

    for n in range(5_000):
        lines.add(str(n))
    lines.close()

    assert [line for batch in batches for line in batch] == [str(n) for n in range(5_000)]
    assert len(batches) < 500


def test_a_single_line_does_not_wait_for_more() -> None:
    arrived = threading.Event()
    lines = Lines(lambda batch: arrived.set())

    lines.add("alone")

    assert arrived.wait(2)
    lines.close()


def test_output_is_held_back_while_the_log_cannot_be_kept() -> None:
    may_go, all_added = threading.Event(), threading.Event()
    kept: list[str] = []

    def slow(batch: Sequence[str]) -> None:
        may_go.wait()
        kept.extend(batch)

    lines = Lines(slow)
    printed = [f"{n} {'x' * 1000}" for n in range(12_000)]  # 12 MB

    def print_much() -> None:
        for line in printed:
            lines.add(line)
        all_added.set()

    threading.Thread(target=print_much, daemon=True).start()
    assert not all_added.wait(0.3)
    may_go.set()
    assert all_added.wait(5)
    lines.close()
    assert kept == printed


def test_a_log_that_fails_neither_blocks_the_container_nor_fails_its_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(batch: Sequence[str]) -> None:
        raise OSError("disk full")

    lines = Lines(broken)
    for n in range(25_000):
        lines.add(str(n))
    lines.close()
    assert "lines of a job's log are lost" in caplog.text
    assert "disk full" in caplog.text
