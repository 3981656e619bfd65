"""Asynchronous invocations: a durable queue, its workers, and two retries with the same request id.

An accepted invocation is in the database until it succeeded or was given up. One that was running
when the process died runs again after the next start: at least once, as on Lambda.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from scar_local.background import Background
from scar_local.environments import Stopping
from scar_local.store import Store

KEPT_HISTORY = 10_000
"""Finished invocations that stay in the table, without their payload."""

_TRIM_EVERY = 500
_AFTER_FAULT_S = 1.0
_MAX_FAULTS = 3
_log = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS lambda_invocations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    function TEXT NOT NULL,
    source TEXT NOT NULL,
    payload BLOB,
    attempt INTEGER NOT NULL DEFAULT 0,
    accepted REAL NOT NULL,
    due REAL NOT NULL,
    state TEXT NOT NULL,
    error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS lambda_invocations_by_state ON lambda_invocations (state, due, id);
"""


@dataclass(frozen=True)
class Queued:
    """One attempt of an asynchronous invocation. `attempt` counts from 1."""

    request_id: str
    function: str
    payload: bytes
    attempt: int
    accepted: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Verdict:
    """What became of an attempt: done, or wrong; `retry_in_s` None means that it is given up."""

    error: str = ""
    retry_in_s: float | None = None
    is_too_old: bool = False
    """Whether it was given up without an attempt, for its age."""
    response: bytes | None = None
    """What the function answered, where it failed."""


class GivesUp(Protocol):
    """What becomes of an event that failed for good."""

    def give_up(self, db: sqlite3.Connection, queued: Queued, verdict: Verdict) -> None:
        """Keep it, within the transaction that forgets its payload."""

    def gave_up(self) -> None:
        """That is committed."""


class Invocations:
    """The queue. `run` serves one attempt in a worker's thread and may raise Stopping."""

    def __init__(
        self, store: Store, run: Callable[[Queued], Verdict], workers: int, failed: GivesUp
    ) -> None:
        self._store, self._run, self._limit, self._failed = store, run, workers, failed
        self._counting = threading.Lock()
        self._busy = 0
        self._finished = 0
        self._claimed: queue.SimpleQueue[Queued | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._dispatcher = Background("invocations", self._dispatch)
        store.install(_SCHEMA)

    def add(self, db: sqlite3.Connection, function: str, payload: bytes, source: str) -> str:
        """Queue an invocation within the caller's transaction; gives its request id."""
        request_id = str(uuid.uuid4())
        db.execute(
            "INSERT INTO lambda_invocations"
            " (request_id, function, source, payload, accepted, due, state)"
            " VALUES (?, ?, ?, ?, ?, 0, 'queued')",
            (request_id, function, source, payload, time.time()),
        )
        return request_id

    def wake(self) -> None:
        """Look at the queue: something was committed."""
        self._dispatcher.wake()

    def counts(self) -> dict[str, int]:
        """How many invocations are in each state."""
        rows = self._store.read().execute(
            "SELECT state, count(*) AS n FROM lambda_invocations GROUP BY state"
        )
        return {row["state"]: row["n"] for row in rows}

    def start(self) -> None:
        """Queue again what was running when the last process ended, and begin to work."""
        with self._store.write() as db:
            db.execute(
                "UPDATE lambda_invocations SET state = 'queued', attempt = attempt - 1"
                " WHERE state = 'running'"
            )
        # All of them now: later there may be no thread left for what is claimed already.
        for number in range(self._limit):
            name = f"invocation-{number}"
            self._workers.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._workers[-1].start()
        self._dispatcher.start()

    def halt(self) -> None:
        """Take nothing more."""
        self._dispatcher.halt()

    def stop(self) -> None:
        """Wait for the workers. What Stopping interrupted is queued again by the next `start`."""
        self._dispatcher.stop()
        for _ in self._workers:
            self._claimed.put(None)
        for worker in self._workers:
            worker.join()

    def _dispatch(self) -> float | None:
        with self._counting:
            free = self._limit - self._busy
        if not free:
            return None
        claimed = self._claim(free)
        with self._counting:
            self._busy += len(claimed)
        for queued in claimed:
            self._claimed.put(queued)
        return 0.0 if claimed else self._until_due()

    def _until_due(self) -> float | None:
        row = (
            self._store.read()
            .execute("SELECT min(due) FROM lambda_invocations WHERE state = 'queued'")
            .fetchone()
        )
        return None if row[0] is None else max(row[0] - time.time(), 0)

    def _claim(self, limit: int) -> list[Queued]:
        # Retries first, lest a flood of new ones keeps them waiting. New ones are due at any time,
        # whatever becomes of the clock.
        query = (
            "SELECT id, request_id, function, payload, attempt, accepted FROM lambda_invocations"
            " WHERE state = 'queued' AND due > ? AND due <= ? ORDER BY due, id LIMIT ?"
        )
        db = self._store.read()
        rows = db.execute(query, (0, time.time(), limit)).fetchall()
        rows += db.execute(query, (-1, 0, limit - len(rows))).fetchall()
        if not rows:
            return []
        with self._store.write() as db:
            db.executemany(
                "UPDATE lambda_invocations SET state = 'running', attempt = attempt + 1"
                " WHERE id = ?",
                [(row["id"],) for row in rows],
            )
        return [
            Queued(r["request_id"], r["function"], r["payload"], r["attempt"] + 1, r["accepted"])
            for r in rows
        ]

    def _work(self) -> None:
        while (queued := self._claimed.get()) is not None:
            self._attempt(queued)

    def _attempt(self, queued: Queued) -> None:
        try:
            verdict = self._verdict(queued)
        except Stopping:
            return
        what = f"keeping what became of invocation {queued.request_id}"
        self._dispatcher.insist(what, lambda: self._settle(queued, verdict))
        with self._counting:
            self._busy -= 1
        self._dispatcher.wake()

    def _verdict(self, queued: Queued) -> Verdict:
        try:
            return self._run(queued)
        except Stopping:
            raise
        except Exception as exc:  # ours, not the function's; it must not come back for ever
            _log.exception("invocation %s of %s failed", queued.request_id, queued.function)
            retry_in_s = _AFTER_FAULT_S if queued.attempt < _MAX_FAULTS else None
            return Verdict(f"the local cloud failed: {exc!r}", retry_in_s)

    def _settle(self, queued: Queued, verdict: Verdict) -> None:
        with self._store.write() as db:
            if verdict.retry_in_s is not None:
                db.execute(
                    "UPDATE lambda_invocations SET state = 'queued', due = ?, error = ?"
                    " WHERE request_id = ?",
                    (time.time() + verdict.retry_in_s, verdict.error, queued.request_id),
                )
                return
            if verdict.error:
                self._failed.give_up(db, queued, verdict)
            db.execute(
                "UPDATE lambda_invocations SET state = ?, payload = NULL, due = ?, error = ?"
                " WHERE request_id = ?",
                (
                    "failed" if verdict.error else "succeeded",
                    time.time(),
                    verdict.error,
                    queued.request_id,
                ),
            )
            self._finished += 1
            if self._finished % _TRIM_EVERY == 0:
                _trim(db)
        if verdict.error:
            self._failed.gave_up()


def _trim(db: sqlite3.Connection) -> None:
    db.execute(
        "DELETE FROM lambda_invocations WHERE state IN ('succeeded', 'failed') AND id NOT IN"
        " (SELECT id FROM lambda_invocations WHERE state IN ('succeeded', 'failed')"
        "  ORDER BY due DESC LIMIT ?)",
        (KEPT_HISTORY,),
    )
