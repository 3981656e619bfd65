"""The jobs of Batch in the store: one row a job, every change of state a transaction of its own.

A row holds the job as DescribeJobs shows it (JSON) beside the columns that are searched. A child of
an array job holds only what differs from its parent. Functions take the connection of the caller's
transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scar_local import batch_changes as changes
from scar_local.scheduler import Ended, Need, Waiting, retries
from scar_local.store import Store

_TABLES = """
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
    detail TEXT NOT NULL,
    parent TEXT,
    array_index INTEGER
);
CREATE TABLE IF NOT EXISTS batch_waits (
    job TEXT NOT NULL,
    waits_for TEXT NOT NULL,
    PRIMARY KEY (job, waits_for)
) WITHOUT ROWID;
"""

_INDEXES = """
CREATE INDEX IF NOT EXISTS batch_jobs_by_queue ON batch_jobs (queue, status, number);
CREATE INDEX IF NOT EXISTS batch_jobs_by_status ON batch_jobs (status, number);
CREATE INDEX IF NOT EXISTS batch_jobs_by_parent ON batch_jobs (parent, status, number);
CREATE INDEX IF NOT EXISTS batch_waits_by_other ON batch_waits (waits_for);
"""

Job = dict[str, Any]
"""A job as DescribeJobs shows it (JobDetail)."""


@dataclass(frozen=True)
class Search:
    """A condition on batch_jobs: SQL of ours, with the values a user gave."""

    condition: str
    values: tuple[object, ...]


SUBMITTED, PENDING, RUNNABLE, STARTING, RUNNING, SUCCEEDED, FAILED = STATUSES = (
    *("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED"),
)
WAITING = (SUBMITTED, PENDING, RUNNABLE)
ACTIVE = (STARTING, RUNNING)
FINISHED = (SUCCEEDED, FAILED)

DEPENDENT_FAILED = "Dependent Job failed"
CHILD_FAILED = "Array Child Job failed"

_OWN = ("attempts", "statusReason", "startedAt", "stoppedAt", "isCancelled", "isTerminated")
"""What a child of an array does not have in common with its parent."""
_OWN_CONTAINER = ("exitCode", "reason", "taskArn", "containerInstanceArn", "logStreamName")
_JOBS = (
    "SELECT j.number, j.id, j.status, j.array_index, j.detail, p.detail AS parent_detail "
    "FROM batch_jobs j LEFT JOIN batch_jobs p ON p.id = j.parent"
)


def install(store: Store) -> None:
    """Create the tables where they are missing, or what is missing in those of an older version."""
    store.install(_TABLES)
    there = {row["name"] for row in store.read().execute("PRAGMA table_info(batch_jobs)")}
    for column in ("parent TEXT", "array_index INTEGER"):
        if column.split()[0] not in there:
            store.install(f"ALTER TABLE batch_jobs ADD COLUMN {column};")
    store.install(_INDEXES + changes.SCHEMA)


def insert(db: sqlite3.Connection, job: Job, need: Need, overrides_length: int) -> None:
    """Add a job that was just submitted, with its children and the jobs it waits for."""
    job_id = job["jobId"]
    db.execute(
        "INSERT INTO batch_jobs (id, queue, name, definition, status, vcpus, memory_mib, gpus, "
        "overrides_length, created_ms, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(job_id, job["jobQueue"], job["jobName"], job["jobDefinition"], job["status"]),
            *(need.vcpus, need.memory_mib, need.gpus),
            *(overrides_length, job["createdAt"], json.dumps(job)),
        ),
    )
    changes.note(db, job_id, job["status"])
    if is_array(job):
        _insert_children(db, job)
    plain = [one["jobId"] for one in job["dependsOn"] if one.get("type") is None]
    db.executemany(
        "INSERT OR IGNORE INTO batch_waits VALUES (?, ?)", [(job_id, other) for other in plain]
    )


def _insert_children(db: sqlite3.Connection, job: Job) -> None:
    job_id, size = job["jobId"], job["arrayProperties"]["size"]
    numbers = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?) "
    db.execute(
        f"{numbers} INSERT INTO batch_jobs (id, queue, name, definition, status, vcpus, "  # noqa: S608
        "memory_mib, gpus, overrides_length, created_ms, detail, parent, array_index) "
        "SELECT id || ':' || i, queue, name, definition, status, vcpus, memory_mib, gpus, "
        "overrides_length, created_ms, '{}', id, i FROM n, batch_jobs WHERE id = ?",
        (size, job_id),
    )
    db.execute(
        "INSERT INTO batch_changes (at_ms, job, status, reason) "
        "SELECT ?, id, status, '' FROM batch_jobs WHERE parent = ? ORDER BY number",
        (changes.now_ms(), job_id),
    )
    link = f"{numbers} INSERT OR IGNORE INTO batch_waits SELECT ? || ':' || i, "
    for dependency in job["dependsOn"]:
        if dependency.get("type") == "SEQUENTIAL":
            db.execute(f"{link} ? || ':' || (i - 1) FROM n WHERE i > 0", (size, job_id, job_id))
        elif dependency.get("type") == "N_TO_N":
            db.execute(f"{link} ? || ':' || i FROM n", (size, job_id, dependency["jobId"]))


def is_array(job: Mapping[str, Any]) -> bool:
    """Whether a job is the parent of an array."""
    properties = job.get("arrayProperties") or {}
    return "size" in properties and "index" not in properties


def load(db: sqlite3.Connection, job_id: str) -> Job | None:
    """The job, or None where there is none (or no longer)."""
    row = db.execute(f"{_JOBS} WHERE j.id = ?", (job_id,)).fetchone()
    return _job(row) if row else None


def shown(db: sqlite3.Connection, job: Job) -> Job:
    """A job as the API shows it: of an array also how many children are in which state."""
    if "arrayProperties" not in job:
        return job
    if not is_array(job):
        return {**job, "arrayProperties": {"index": job["arrayProperties"]["index"]}}
    counts = dict.fromkeys(STATUSES, 0)
    rows = db.execute(
        "SELECT status, count(*) AS jobs FROM batch_jobs WHERE parent = ? GROUP BY status",
        (job["jobId"],),
    )
    counts.update({row["status"]: row["jobs"] for row in rows})
    summary = {"statusSummary": counts, "statusSummaryLastUpdatedAt": changes.now_ms()}
    return {**job, "arrayProperties": {**job["arrayProperties"], **summary}}


def _job(row: sqlite3.Row) -> Job:
    own: Job = json.loads(row["detail"])
    if row["parent_detail"] is None:
        return {**own, "status": row["status"]}
    parent: Job = json.loads(row["parent_detail"])
    properties = {**parent["arrayProperties"], "index": row["array_index"]}
    return {
        **{key: value for key, value in parent.items() if key not in _OWN},
        **{"attempts": [], "isCancelled": False, "isTerminated": False},
        **own,
        "jobId": row["id"],
        "jobArn": f"{parent['jobArn']}:{row['array_index']}",
        "status": row["status"],
        "arrayProperties": properties,
        "container": {**parent["container"], **own.get("container", {})},
    }


def save(db: sqlite3.Connection, job: Job) -> None:
    """Write a job back, its status and `stoppedAt` into their columns too."""
    job_id = job["jobId"]
    kept = job
    if "arrayProperties" in job and not is_array(job):
        container = {k: job["container"][k] for k in _OWN_CONTAINER if k in job["container"]}
        kept = {**{key: job[key] for key in _OWN if key in job}, "container": container}
    if _status(db, job_id) != job["status"]:
        changes.note(db, job_id, job["status"], job.get("statusReason", ""))
    db.execute(
        "UPDATE batch_jobs SET status = ?, stopped_ms = ?, detail = ? WHERE id = ?",
        (job["status"], job.get("stoppedAt"), json.dumps(kept), job_id),
    )


def _status(db: sqlite3.Connection, job_id: str) -> str:
    row = db.execute("SELECT status FROM batch_jobs WHERE id = ?", (job_id,)).fetchone()
    return str(row["status"]) if row else ""


def overrides_length(db: sqlite3.Connection, job_id: str) -> int:
    """Characters of the ECS overrides that the submission made."""
    row = db.execute("SELECT overrides_length FROM batch_jobs WHERE id = ?", (job_id,)).fetchone()
    return int(row["overrides_length"])


def in_status(
    db: sqlite3.Connection, statuses: Sequence[str], parent: str | None = None
) -> list[Job]:
    """All jobs in these states, oldest first; with `parent` the children of one array."""
    of_parent = "AND j.parent = ?" if parent else ""
    rows = db.execute(
        f"{_JOBS} WHERE j.status IN ({_marks(statuses)}) {of_parent} ORDER BY j.number",
        (*statuses, *([parent] if parent else [])),
    )
    return [_job(row) for row in rows]


def unfinished(db: sqlite3.Connection, queue: str) -> list[Job]:
    """The jobs of a queue that have not ended, arrays as one, oldest first."""
    statuses = (*WAITING, *ACTIVE)
    rows = db.execute(
        f"{_JOBS} WHERE j.queue = ? AND j.parent IS NULL AND j.status IN ({_marks(statuses)}) "
        "ORDER BY j.number",
        (queue, *statuses),
    )
    return [_job(row) for row in rows]


def search(
    db: sqlite3.Connection, wanted: Search, before: int | None, limit: int
) -> list[tuple[int, Job]]:
    """(number, job) of the jobs found, newest first, that are older than number `before`."""
    rows = db.execute(
        f"{_JOBS} WHERE {wanted.condition} "
        "AND j.number < coalesce(?, j.number + 1) ORDER BY j.number DESC LIMIT ?",
        (*wanted.values, before, limit),
    )
    return [(row["number"], _job(row)) for row in rows]


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


def has(db: sqlite3.Connection, statuses: Iterable[str], parent: str | None = None) -> bool:
    """Whether any job, or any child of one array, is in one of these states."""
    of_parent, values = ("AND parent = ?", (parent,)) if parent else ("", ())
    query = f"SELECT 1 FROM batch_jobs WHERE status = ? {of_parent} LIMIT 1"  # noqa: S608
    return any(db.execute(query, (status, *values)).fetchone() for status in statuses)


def admit(db: sqlite3.Connection, now_ms: int) -> None:
    """Move every SUBMITTED job on: to PENDING where it waits for another, else to RUNNABLE.

    An array is PENDING until its last child has ended; its children are what runs.
    """
    rows = db.execute(f"{_JOBS} WHERE j.status = 'SUBMITTED' AND j.parent IS NULL").fetchall()
    for job in map(_job, rows):
        statuses = _statuses_waited_for(db, job["jobId"])
        if FAILED in statuses:
            fail(db, job, DEPENDENT_FAILED, now_ms)
            continue
        waits = bool(statuses - {SUCCEEDED})
        save(db, {**job, "status": PENDING if waits or is_array(job) else RUNNABLE})
        if is_array(job):
            if waits:
                _move_children(db, job["jobId"], PENDING, (SUBMITTED,))
            else:
                _release_children(db, job["jobId"], now_ms)


def _release_children(db: sqlite3.Connection, parent: str, now_ms: int) -> None:
    """What an array waited for has happened: its children wait for nothing but others."""
    waits = (
        "EXISTS (SELECT 1 FROM batch_waits w JOIN batch_jobs o ON o.id = w.waits_for "
        "WHERE w.job = batch_jobs.id AND o.status {})"
    )
    free = f"NOT {waits.format('!= ' + repr(SUCCEEDED))}"
    _move_children(db, parent, RUNNABLE, (SUBMITTED, PENDING), free)
    _move_children(db, parent, PENDING, (SUBMITTED,))
    lost = db.execute(
        f"SELECT id FROM batch_jobs WHERE parent = ? AND status = 'PENDING' "  # noqa: S608
        f"AND {waits.format('= ' + repr(FAILED))}",
        (parent,),
    ).fetchall()
    for child in [load(db, row["id"]) for row in lost]:
        if child and _status(db, child["jobId"]) == PENDING:
            fail(db, child, DEPENDENT_FAILED, now_ms)


def _move_children(
    db: sqlite3.Connection, parent: str, status: str, before: Sequence[str], only: str = "1"
) -> None:
    which = f"parent = ? AND status IN ({_marks(before)}) AND {only}"
    db.execute(
        "INSERT INTO batch_changes (at_ms, job, status, reason) "  # noqa: S608
        f"SELECT ?, id, ?, '' FROM batch_jobs WHERE {which} ORDER BY number",
        (changes.now_ms(), status, parent, *before),
    )
    db.execute(
        f"UPDATE batch_jobs SET status = ? WHERE {which}",  # noqa: S608
        (status, parent, *before),
    )


def _statuses_waited_for(db: sqlite3.Connection, job_id: str) -> set[str]:
    """States of what a job waits for; a child also waits for what its array does."""
    ids = (job_id, job_id.partition(":")[0])
    rows = db.execute(
        "SELECT DISTINCT j.status FROM batch_waits w JOIN batch_jobs j ON j.id = w.waits_for "
        "WHERE w.job IN (?, ?)",
        ids,
    )
    return {row["status"] for row in rows}


def fail(db: sqlite3.Connection, job: Job, status_reason: str, now_ms: int) -> None:
    """End a job as FAILED, and with it those that wait for it; of an array all that waits."""
    if is_array(job):
        _end_array(db, {**job, "statusReason": status_reason}, {}, now_ms)
    else:
        _finish(db, {**job, "status": FAILED, "statusReason": status_reason}, now_ms)


def cancel(db: sqlite3.Connection, job: Job, reason: str, now_ms: int) -> None:
    """End what has not come to STARTING; nothing happens to the rest."""
    mark = {"isCancelled": True}
    if is_array(job):
        if job["status"] not in FINISHED and has(db, WAITING, job["jobId"]):
            _end_array(db, {**job, **mark, "statusReason": reason}, mark, now_ms)
    elif job["status"] in WAITING:
        fail(db, {**job, **mark}, reason, now_ms)


def terminate(db: sqlite3.Connection, job: Job, reason: str, now_ms: int) -> None:
    """End what waits, and mark what runs: the caller must end its attempts."""
    mark = {"isTerminated": True}
    if is_array(job):
        if job["status"] not in FINISHED:
            for child in in_status(db, ACTIVE, job["jobId"]):
                terminate(db, child, reason, now_ms)
            _end_array(db, {**job, **mark, "statusReason": reason}, mark, now_ms)
    elif job["status"] in WAITING:
        fail(db, {**job, **mark}, reason, now_ms)
    elif job["status"] in ACTIVE and not job["isTerminated"]:
        save(db, {**job, **mark, "statusReason": reason})


def _end_array(db: sqlite3.Connection, job: Job, mark: Mapping[str, bool], now_ms: int) -> None:
    """Fail the children that wait, all at once; the array ends with its last child."""
    parent, reason = job["jobId"], job["statusReason"]
    save(db, job)
    which = f"parent = ? AND status IN ({_marks(WAITING)})"
    db.execute(
        "INSERT INTO batch_changes (at_ms, job, status, reason) "  # noqa: S608
        f"SELECT ?, id, 'FAILED', ? FROM batch_jobs WHERE {which} ORDER BY number",
        (now_ms, reason, parent, *WAITING),
    )
    patch = json.dumps({**mark, "statusReason": reason, "stoppedAt": now_ms})
    db.execute(
        "UPDATE batch_jobs SET status = 'FAILED', stopped_ms = ?, "  # noqa: S608
        f"detail = json_patch(detail, ?) WHERE {which}",
        (now_ms, patch, parent, *WAITING),
    )
    waiters = db.execute(
        "SELECT DISTINCT w.job FROM batch_waits w JOIN batch_jobs c ON c.id = w.waits_for "
        "JOIN batch_jobs j ON j.id = w.job "
        "WHERE c.parent = ? AND c.status = 'FAILED' AND j.status = 'PENDING'",
        (parent,),
    ).fetchall()
    for waiter in [load(db, row["job"]) for row in waiters]:
        if waiter and _status(db, waiter["jobId"]) == PENDING:
            fail(db, waiter, DEPENDENT_FAILED, now_ms)
    if ended := _ended_array(db, parent):
        _finish(db, ended, now_ms)


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
    status = SUCCEEDED if ended.succeeded else FAILED
    _finish(db, {**job, "status": status, "statusReason": ended.status_reason}, now_ms)


def _make_runnable_again(db: sqlite3.Connection, job: Job) -> None:
    container = {**job["container"]}
    for key in _OWN_CONTAINER:
        container.pop(key, None)
    job = {**job, "status": RUNNABLE, "container": container}
    job.pop("startedAt", None)
    save(db, job)


def _finish(db: sqlite3.Connection, job: Job, now_ms: int) -> None:
    ended = [job]
    while ended:  # not by recursion: a SEQUENTIAL array is a chain of 10,000
        job = ended.pop()
        if _status(db, job["jobId"]) in FINISHED:
            continue
        save(db, {**job, "stoppedAt": now_ms})
        ended += _failed_with(db, job, now_ms)
        parent = job["jobId"].partition(":")[0]
        if parent != job["jobId"] and (array := _ended_array(db, parent)):
            ended.append(array)


def _failed_with(db: sqlite3.Connection, job: Job, now_ms: int) -> list[Job]:
    """Those that fail because a job ended; what its success sets free becomes RUNNABLE."""
    rows = db.execute("SELECT job FROM batch_waits WHERE waits_for = ?", (job["jobId"],))
    failed: list[Job] = []
    for waiter in [load(db, row["job"]) for row in rows.fetchall()]:
        if waiter is None or waiter["status"] != PENDING:
            continue
        if job["status"] == FAILED:
            if is_array(waiter):
                fail(db, waiter, DEPENDENT_FAILED, now_ms)
            else:
                failed.append({**waiter, "status": FAILED, "statusReason": DEPENDENT_FAILED})
        elif _statuses_waited_for(db, waiter["jobId"]) <= {SUCCEEDED}:
            if is_array(waiter):
                _release_children(db, waiter["jobId"], now_ms)
            else:
                save(db, {**waiter, "status": RUNNABLE})
    return failed


def _ended_array(db: sqlite3.Connection, parent: str) -> Job | None:
    """The array as it ends, or None while a child of it has not."""
    if has(db, (*WAITING, *ACTIVE), parent):
        return None
    job = load(db, parent)
    if job is None:
        return None
    if not has(db, (FAILED,), parent):
        return {**job, "status": SUCCEEDED}
    return {**job, "status": FAILED, "statusReason": job.get("statusReason") or CHILD_FAILED}


def forget(db: sqlite3.Connection, before_ms: int, keep: int) -> None:
    """Remove finished jobs that are older than a time, or with `keep` newer ones before them.

    An array counts with its children and goes with them; one that has not ended keeps them all.
    """
    rows = db.execute(
        "SELECT id FROM (SELECT id, stopped_ms, sum(own) OVER (ORDER BY number DESC) - own AS newer"
        " FROM (SELECT id, number, stopped_ms, "
        "1 + coalesce(json_extract(detail, '$.arrayProperties.size'), 0) AS own FROM batch_jobs "
        "WHERE parent IS NULL AND status IN ('SUCCEEDED', 'FAILED'))) "
        "WHERE newer >= ? OR stopped_ms < ?",
        (keep, before_ms),
    ).fetchall()
    gone = [(row["id"],) for row in rows]
    db.executemany("DELETE FROM batch_jobs WHERE parent = ?", gone)
    db.executemany("DELETE FROM batch_jobs WHERE id = ?", gone)
    if gone:
        db.execute("DELETE FROM batch_waits WHERE job NOT IN (SELECT id FROM batch_jobs)")
    changes.forget(db, before_ms)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
