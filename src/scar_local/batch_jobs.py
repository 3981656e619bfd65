"""The jobs of Batch in the store: one row a job, every change of state a transaction of its own.

A row holds the job as DescribeJobs shows it (JSON) beside the columns that are searched. Functions
take the connection of the caller's transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scar_local.scheduler import Ended, Need, Waiting, retries

SCHEMA = """
CREATE TABLE IF NOT EXISTS batch_jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    definition TEXT NOT NULL,
    status TEXT NOT NULL,
    vcpus REAL NOT NULL,
    memory_mib INTEGER NOT NULL,
    gpus INTEGER NOT NULL,
    overrides_length INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    stopped_ms INTEGER,
    detail TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS batch_jobs_by_queue ON batch_jobs (queue, status, number);
CREATE INDEX IF NOT EXISTS batch_jobs_by_status ON batch_jobs (status, number);
CREATE TABLE IF NOT EXISTS batch_waits (
    job TEXT NOT NULL,
    waits_for TEXT NOT NULL,
    PRIMARY KEY (job, waits_for)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batch_waits_by_other ON batch_waits (waits_for);
"""

Job = dict[str, Any]
"""A job as DescribeJobs shows it (JobDetail)."""


@dataclass(frozen=True)
class Search:
    """A condition on batch_jobs: SQL of ours, with the values a user gave."""

    condition: str
    values: tuple[object, ...]


WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
ACTIVE = ("STARTING", "RUNNING")
FINISHED = ("SUCCEEDED", "FAILED")


def insert(db: sqlite3.Connection, job: Job, need: Need, overrides_length: int) -> None:
    """Add a job that was just submitted, with the jobs it waits for."""
    db.execute(
        "INSERT INTO batch_jobs (id, queue, name, definition, status, vcpus, memory_mib, gpus, "
        "overrides_length, created_ms, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(job["jobId"], job["jobQueue"], job["jobName"], job["jobDefinition"], job["status"]),
            *(need.vcpus, need.memory_mib, need.gpus),
            *(overrides_length, job["createdAt"], json.dumps(job)),
        ),
    )
    db.executemany(
        "INSERT OR IGNORE INTO batch_waits VALUES (?, ?)",
        [(job["jobId"], dependency["jobId"]) for dependency in job["dependsOn"]],
    )


def load(db: sqlite3.Connection, job_id: str) -> Job | None:
    """The job, or None where there is none (or no longer)."""
    row = db.execute("SELECT detail FROM batch_jobs WHERE id = ?", (job_id,)).fetchone()
    return json.loads(row["detail"]) if row else None


def save(db: sqlite3.Connection, job: Job) -> None:
    """Write a job back, its status and `stoppedAt` into their columns too."""
    db.execute(
        "UPDATE batch_jobs SET status = ?, stopped_ms = ?, detail = ? WHERE id = ?",
        (job["status"], job.get("stoppedAt"), json.dumps(job), job["jobId"]),
    )


def overrides_length(db: sqlite3.Connection, job_id: str) -> int:
    """Characters of the ECS overrides that the submission made."""
    row = db.execute("SELECT overrides_length FROM batch_jobs WHERE id = ?", (job_id,)).fetchone()
    return int(row["overrides_length"])


def in_status(
    db: sqlite3.Connection, statuses: Sequence[str], queue: str | None = None
) -> list[Job]:
    """All jobs in these states, oldest first; of one queue (ARN) or of all."""
    marks = ", ".join("?" * len(statuses))
    rows = db.execute(
        f"SELECT detail FROM batch_jobs WHERE status IN ({marks}) "  # noqa: S608 - only marks
        "AND queue = coalesce(?, queue) ORDER BY number",
        (*statuses, queue),
    )
    return [json.loads(row["detail"]) for row in rows]


def search(
    db: sqlite3.Connection, queue: str, wanted: Search, before: int | None, limit: int
) -> list[tuple[int, Job]]:
    """(number, job) of a queue's jobs, newest first, that are older than number `before`."""
    rows = db.execute(
        f"SELECT number, detail FROM batch_jobs WHERE queue = ? AND {wanted.condition} "  # noqa: S608
        "AND number < coalesce(?, number + 1) ORDER BY number DESC LIMIT ?",
        (queue, *wanted.values, before, limit),
    )
    return [(row["number"], json.loads(row["detail"])) for row in rows]


def heads(db: sqlite3.Connection, queue: str, limit: int) -> list[Waiting]:
    """The first RUNNABLE jobs of a queue."""
    rows = db.execute(
        "SELECT id, number, vcpus, memory_mib, gpus FROM batch_jobs "
        "WHERE queue = ? AND status = 'RUNNABLE' ORDER BY number LIMIT ?",
        (queue, limit),
    )
    return [
        Waiting(row["id"], row["number"], Need(row["vcpus"], row["memory_mib"], row["gpus"]))
        for row in rows
    ]


def has(db: sqlite3.Connection, statuses: Iterable[str]) -> bool:
    """Whether any job is in one of these states."""
    return any(
        db.execute("SELECT 1 FROM batch_jobs WHERE status = ? LIMIT 1", (status,)).fetchone()
        for status in statuses
    )


def admit(db: sqlite3.Connection, now_ms: int) -> None:
    """Move every SUBMITTED job on: to PENDING where it waits for another, else to RUNNABLE."""
    for job in in_status(db, ("SUBMITTED",)):
        statuses = _statuses_waited_for(db, job["jobId"])
        if "FAILED" in statuses:
            fail(db, job, "Dependent Job failed", now_ms)
        elif statuses - {"SUCCEEDED"}:
            save(db, {**job, "status": "PENDING"})
        else:
            save(db, {**job, "status": "RUNNABLE"})


def _statuses_waited_for(db: sqlite3.Connection, job_id: str) -> set[str]:
    rows = db.execute(
        "SELECT j.status FROM batch_waits w JOIN batch_jobs j ON j.id = w.waits_for "
        "WHERE w.job = ?",
        (job_id,),
    )
    return {row["status"] for row in rows}


def fail(db: sqlite3.Connection, job: Job, status_reason: str, now_ms: int) -> None:
    """End a job as FAILED, and with it those that wait for it."""
    _finish(db, {**job, "status": "FAILED", "statusReason": status_reason}, now_ms)


def settle(db: sqlite3.Connection, job: Job, ended: Ended, now_ms: int) -> None:
    """Note the end of a STARTING or RUNNING job's attempt: the job ends or becomes RUNNABLE."""
    container = {**job["container"]}
    if ended.exit_code is not None:
        container["exitCode"] = ended.exit_code
    if ended.reason:
        container["reason"] = ended.reason
    shown = ("containerInstanceArn", "taskArn", "exitCode", "reason", "logStreamName")
    attempt = {
        "container": {
            **{key: container[key] for key in shown if key in container},
            "networkInterfaces": [],
        },
        "stoppedAt": now_ms,
        "statusReason": ended.status_reason,
    }
    if "startedAt" in job:
        attempt["startedAt"] = job["startedAt"]
    job = {**job, "attempts": [*job["attempts"], attempt], "container": container}
    if not ended.succeeded and retries(job["retryStrategy"], len(job["attempts"]), ended):
        _make_runnable_again(db, job)
        return
    status = "SUCCEEDED" if ended.succeeded else "FAILED"
    _finish(db, {**job, "status": status, "statusReason": ended.status_reason}, now_ms)


def _make_runnable_again(db: sqlite3.Connection, job: Job) -> None:
    container = {**job["container"]}
    for key in ("exitCode", "reason", "taskArn", "containerInstanceArn", "logStreamName"):
        container.pop(key, None)
    job = {**job, "status": "RUNNABLE", "container": container}
    job.pop("startedAt", None)
    save(db, job)


def _finish(db: sqlite3.Connection, job: Job, now_ms: int) -> None:
    save(db, {**job, "stoppedAt": now_ms})
    rows = db.execute("SELECT job FROM batch_waits WHERE waits_for = ?", (job["jobId"],))
    for waiter in [load(db, row["job"]) for row in rows.fetchall()]:
        if waiter is None or waiter["status"] != "PENDING":
            continue
        if job["status"] == "FAILED":
            fail(db, waiter, "Dependent Job failed", now_ms)
        elif _statuses_waited_for(db, waiter["jobId"]) <= {"SUCCEEDED"}:
            save(db, {**waiter, "status": "RUNNABLE"})


def forget(db: sqlite3.Connection, before_ms: int, keep: int) -> None:
    """Remove finished jobs that are older than a time, or beyond the newest `keep`."""
    rows = db.execute(
        "SELECT number FROM batch_jobs WHERE status IN ('SUCCEEDED', 'FAILED') "
        "ORDER BY number DESC LIMIT 1 OFFSET ?",
        (keep,),
    ).fetchone()
    newest_forgotten = rows["number"] if rows else 0
    db.execute(
        "DELETE FROM batch_jobs WHERE status IN ('SUCCEEDED', 'FAILED') "
        "AND (number <= ? OR stopped_ms < ?)",
        (newest_forgotten, before_ms),
    )
    db.execute("DELETE FROM batch_waits WHERE job NOT IN (SELECT id FROM batch_jobs)")
