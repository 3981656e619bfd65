"""The store's connections: one a thread, and given back."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from scar_local.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    store.install("CREATE TABLE numbers (number INTEGER)")
    gc.disable()
    yield store
    gc.enable()


def open_files(store: Store) -> int:
    """Of the database, its log and its index."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += os.readlink(entry).startswith(str(store.directory / "cloud.db"))
    return found


def test_threads_that_end_leave_no_connections_open(store: Store) -> None:
    everybody = threading.Barrier(20)

    def work(number: int) -> None:
        with store.write() as db:
            db.execute("INSERT INTO numbers VALUES (?)", (number,))
        everybody.wait(30)

    for _ in range(10):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert store.read().execute("SELECT count(*) FROM numbers").fetchone()[0] == 200
    # SQLite itself keeps files of closed connections for the next ones: as many as were used at
    # once, and each has two.
    assert open_files(store) < 2 * 20 + 5


def test_a_thread_that_released_its_connection_reads_on(store: Store) -> None:
    for number in range(100):
        with store.write() as db:
            db.execute("INSERT INTO numbers VALUES (?)", (number,))
        store.release()
    assert store.read().execute("SELECT count(*) FROM numbers").fetchone()[0] == 100
    assert open_files(store) < 6
