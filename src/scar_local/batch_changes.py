"""Every change of a job's state, kept as AWS would send it to EventBridge.

A change is a small row; the event around it is made when it is read, from the job as it is then:
10,000 children with five changes each must not keep 50,000 copies of one job.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS batch_changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    job TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS batch_changes_by_job ON batch_changes (job, number);
"""

KEPT = 1_000_000
"""Changes kept at most; the oldest go first."""


def now_ms() -> int:
    """Milliseconds since the epoch, Batch's time."""
    return time.time_ns() // 1_000_000


def note(db: sqlite3.Connection, job_id: str, status: str, reason: str = "") -> None:
    """A job is now in another state."""
    db.execute(
        "INSERT INTO batch_changes (at_ms, job, status, reason) VALUES (?, ?, ?, ?)",
        (now_ms(), job_id, status, reason),
    )


def event(row: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """The EventBridge event of one change (user guide, "Batch job state change events").

    `detail` is the job as it is now, with the state and reason that it changed to then.
    """
    region, account = job["jobArn"].split(":")[3:5]
    at = datetime.fromtimestamp(row["at_ms"] / 1000, UTC)
    detail = {**job, "status": row["status"]}
    detail.pop("statusReason", None)
    if row["reason"]:
        detail["statusReason"] = row["reason"]
    return {
        "version": "0",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{job['jobArn']}#{row['number']}")),
        "detail-type": "Batch Job State Change",
        "source": "aws.batch",
        "account": account,
        "time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": region,
        "resources": [job["jobArn"]],
        "detail": detail,
    }


def after(
    db: sqlite3.Connection, number: int, job_id: str | None, limit: int
) -> list[dict[str, Any]]:
    """The next changes after one, oldest first; of one job, or of all."""
    condition = "number > ? AND job = ?" if job_id else "number > ?"
    values = (number, job_id) if job_id else (number,)
    rows = db.execute(
        f"SELECT * FROM batch_changes WHERE {condition} ORDER BY number LIMIT ?",  # noqa: S608
        (*values, limit),
    )
    return [dict(row) for row in rows]


def runnable_since(db: sqlite3.Connection, job_id: str) -> int | None:
    """When a job last became RUNNABLE, milliseconds."""
    row = db.execute(
        "SELECT at_ms FROM batch_changes WHERE job = ? AND status = 'RUNNABLE' "
        "ORDER BY number DESC LIMIT 1",
        (job_id,),
    ).fetchone()
    return int(row["at_ms"]) if row else None


def forget(db: sqlite3.Connection, before_ms: int) -> None:
    """Remove changes older than a time, or beyond the newest `KEPT`."""
    db.execute(
        "DELETE FROM batch_changes WHERE at_ms < ? OR "
        "number <= (SELECT coalesce(max(number), 0) FROM batch_changes) - ?",
        (before_ms, KEPT),
    )
