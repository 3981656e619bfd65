"""Asynchronous invocations: a durable queue, its workers, and two retries with the same request id.

An accepted invocation is in the database until it succeeded or was given up. One that was running
when the process died runs again after the next start: at least once, as on Lambda.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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


class Invocations:
    """The queue. `run` serves one attempt in a worker's thread and may raise Stopping."""

    def __init__(self, store: Store, run: Callable[[Queued], Verdict], workers: int) -> None:
        self._store, self._run, self._limit = store, run, workers
        self._changed = threading.Condition()
        self._woken = False
        self._busy = 0
        self._finished = 0
        self._stopping = False
        self._workers = ThreadPoolExecutor(workers, "invocation")
        self._dispatcher = threading.Thread(target=self._dispatch, name="invocations", daemon=True)
        store.install(_SCHEMA)

    def add(self, db: sqlite3.Connection, function: str, payload: bytes, source: str) -> str:
        """Queue an invocation within the caller's transaction; gives its request id."""
        request_id = str(uuid.uuid4())
        now = time.time()
        db.execute(
            "INSERT INTO lambda_invocations"
            " (request_id, function, source, payload, accepted, due, state)"
            " VALUES (?, ?, ?, ?, ?, ?, 'queued')",
            (request_id, function, source, payload, now, now),
        )
        return request_id

    def wake(self) -> None:
        """Look at the queue: something was committed."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

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
        self._dispatcher.start()

    def halt(self) -> None:
        """Take nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Wait for the workers. What Stopping interrupted is queued again by the next `start`."""
        self.halt()
        if self._dispatcher.is_alive():
            self._dispatcher.join()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _dispatch(self) -> None:
        while not self._stopping:
            try:
                self._dispatch_due()
            except sqlite3.Error:  # a full disk, say: the queue is safe, and waits with us
                _log.exception("the queue of asynchronous invocations cannot be read")
                self._wait(_AFTER_FAULT_S)

    def _dispatch_due(self) -> None:
        with self._changed:
            free = self._limit - self._busy
            self._woken = False
        claimed = self._claim(free) if free else []
        with self._changed:
            self._busy += len(claimed)
        for queued in claimed:
            self._workers.submit(self._attempt, queued)
        if not claimed:
            self._wait(self._until_due() if free else None)

    def _wait(self, timeout_s: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._stopping, timeout_s)

    def _until_due(self) -> float | None:
        row = (
            self._store.read()
            .execute("SELECT min(due) FROM lambda_invocations WHERE state = 'queued'")
            .fetchone()
        )
        return None if row[0] is None else max(row[0] - time.time(), 0)

    def _claim(self, limit: int) -> list[Queued]:
        due = (time.time(), limit)
        query = (
            "SELECT id, request_id, function, payload, attempt, accepted FROM lambda_invocations"
            " WHERE state = 'queued' AND due <= ? ORDER BY due, id LIMIT ?"
        )
        rows = self._store.read().execute(query, due).fetchall()
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

    def _attempt(self, queued: Queued) -> None:
        try:
            self._settle(queued, self._verdict(queued))
        except Stopping:
            return
        except sqlite3.Error:
            _log.exception("%s stays as running until the next start", queued.request_id)
        with self._changed:
            self._busy -= 1
            self._woken = True
            self._changed.notify_all()

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


def _trim(db: sqlite3.Connection) -> None:
    db.execute(
        "DELETE FROM lambda_invocations WHERE state IN ('succeeded', 'failed') AND id NOT IN"
        " (SELECT id FROM lambda_invocations WHERE state IN ('succeeded', 'failed')"
        "  ORDER BY due DESC LIMIT ?)",
        (KEPT_HISTORY,),
    )
