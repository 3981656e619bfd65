"""Bucket notifications: an object's event and the object are committed together, then delivered.

S3 calls `record` inside the transaction that commits an object. What matches the bucket's
notification configuration becomes a row of the outbox; the dispatcher's thread turns each row into
an asynchronous invocation, in one transaction with removing it. So a crash loses no event, and an
event that was handed over is never handed over again.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote_plus

from scar_local.background import AFTER_FAULT_S, Background
from scar_local.protocol import ACCOUNT_ID, ApiError
from scar_local.s3.call import OWNER_ID, host_id, iso, url_encoded
from scar_local.store import Store

_LOG = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS s3_notifications (
    bucket TEXT NOT NULL, position INTEGER NOT NULL, id TEXT NOT NULL, function_arn TEXT NOT NULL,
    events TEXT NOT NULL, rules TEXT NOT NULL, PRIMARY KEY (bucket, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS s3_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, configuration TEXT NOT NULL, function_arn TEXT NOT NULL,
    created TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class CreatedObject:
    """What happened to an object, as far as its event tells."""

    bucket: str
    key: str
    event: str
    """Without `s3:`, such as `ObjectCreated:Put`."""
    region: str
    size: int
    etag: str
    request_id: str
    source_ip: str
    time: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Notification:
    """One entry of a bucket's notification configuration."""

    id: str
    function_arn: str
    events: tuple[str, ...]
    """Patterns such as `s3:ObjectCreated:*`."""
    rules: tuple[tuple[str, str], ...] = ()
    """Filter rules as the client wrote them: (`prefix` or `suffix` in any case, value)."""

    @property
    def prefix(self) -> str:
        """What keys must start with. Filters are written URL-encoded, `+` for a space.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-how-to-filtering.html
        """
        return self._rule("prefix")

    @property
    def suffix(self) -> str:
        """What keys must end with."""
        return self._rule("suffix")

    def matches(self, event: str, key: str) -> bool:
        """Whether an event (without `s3:`) of a key is to be delivered."""
        return (
            any(_covers(pattern, f"s3:{event}") for pattern in self.events)
            and key.startswith(self.prefix)
            and key.endswith(self.suffix)
        )

    def overlaps(self, other: Notification) -> bool:
        """Whether some event could match both, which S3 refuses."""
        return (
            any(_covers(a, b) or _covers(b, a) for a in self.events for b in other.events)
            and (self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix))
            and (self.suffix.endswith(other.suffix) or other.suffix.endswith(self.suffix))
        )

    def _rule(self, wanted: str) -> str:
        values = (value for name, value in self.rules if name.lower() == wanted)
        return unquote_plus(next(values, ""))


class Functions(Protocol):
    """What delivery needs of Lambda."""

    def enqueue(
        self, db: sqlite3.Connection, name: str, payload: bytes, source: str = ..., /
    ) -> str:
        """Commit an asynchronous invocation with the open transaction; its request id.

        Raises ApiError ResourceNotFoundException when there is no such function.
        """

    def wake(self) -> None:
        """Run what was enqueued; called after the commit."""


class Events:
    """The outbox and its dispatcher."""

    def __init__(self, store: Store, functions: Functions) -> None:
        self._store, self._functions = store, functions
        store.install(_SCHEMA)
        self._dispatcher = Background("events", self._deliver_all)

    def start(self) -> None:
        """Begin to deliver, first what an earlier daemon left undelivered."""
        self._dispatcher.start()

    def stop(self) -> None:
        """End after the delivery at hand; the rest waits for the next start."""
        self._dispatcher.stop()

    def record(self, db: sqlite3.Connection, created: CreatedObject) -> None:
        """Add deliveries for an object to the open transaction."""
        for entry in notifications(db, created.bucket):
            if entry.matches(created.event, created.key):
                db.execute(
                    "INSERT INTO s3_outbox (configuration, function_arn, created) VALUES (?, ?, ?)",
                    (entry.id, entry.function_arn, json.dumps(created.__dict__)),
                )

    def wake(self) -> None:
        """Deliver what was recorded; called after the commit."""
        self._dispatcher.wake()

    def undelivered(self) -> int:
        """How many deliveries wait, for the daemon's status."""
        count: int = self._store.read().execute("SELECT count(*) FROM s3_outbox").fetchone()[0]
        return count

    def _deliver_all(self) -> float | None:
        last, again_s = 0, None
        while not self._dispatcher.stopping:
            row = (
                self._store.read()
                .execute("SELECT * FROM s3_outbox WHERE id > ? ORDER BY id LIMIT 1", (last,))
                .fetchone()
            )
            if row is None:
                break
            last = int(row["id"])
            try:
                self._deliver(row)
            except Exception:  # one that cannot be delivered now must not hold up the others
                again_s = AFTER_FAULT_S
                _LOG.exception("event %d stays in the outbox; tried again in %g s", last, again_s)
        return again_s

    def _deliver(self, row: sqlite3.Row) -> None:
        created = CreatedObject(**json.loads(row["created"]))
        payload = json.dumps({"Records": [record_of(created, row["configuration"], row["id"])]})
        function = function_name(row["function_arn"])
        with self._store.write() as db:
            db.execute("DELETE FROM s3_outbox WHERE id = ?", (row["id"],))
            try:
                self._functions.enqueue(db, function, payload.encode(), "s3")
            except ApiError as exc:
                if exc.code != "ResourceNotFoundException":
                    raise
                _LOG.warning(
                    "dropped %s of s3://%s/%s: the function %s is gone",
                    created.event, created.bucket, created.key, function,
                )  # fmt: skip
                return
        self._functions.wake()


def notifications(db: sqlite3.Connection, bucket: str) -> list[Notification]:
    """A bucket's notification configuration."""
    rows = db.execute(
        "SELECT id, function_arn, events, rules FROM s3_notifications WHERE bucket = ?"
        " ORDER BY position",
        (bucket,),
    )
    return [
        Notification(
            row[0],
            row[1],
            tuple(json.loads(row[2])),
            tuple((name, value) for name, value in json.loads(row[3])),
        )
        for row in rows
    ]


def replace_notifications(
    db: sqlite3.Connection, bucket: str, entries: Sequence[Notification]
) -> None:
    """Put a bucket's whole notification configuration."""
    db.execute("DELETE FROM s3_notifications WHERE bucket = ?", (bucket,))
    db.executemany(
        "INSERT INTO s3_notifications VALUES (?, ?, ?, ?, ?, ?)",
        [
            (bucket, n, e.id, e.function_arn, json.dumps(e.events), json.dumps(e.rules))
            for n, e in enumerate(entries)
        ],
    )


def record_of(created: CreatedObject, configuration: str, sequence: int) -> dict[str, Any]:
    """One record of an event message.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
    """
    subject: dict[str, Any] = {"key": url_encoded(created.key)}
    if created.event.startswith("ObjectCreated:"):
        subject |= {"size": created.size, "eTag": created.etag}
    return {
        "eventVersion": "2.5",
        "eventSource": "aws:s3",
        "awsRegion": created.region,
        "eventTime": iso(created.time),
        "eventName": created.event,
        "userIdentity": {"principalId": f"AWS:{ACCOUNT_ID}"},
        "requestParameters": {"sourceIPAddress": created.source_ip},
        "responseElements": {
            "x-amz-request-id": created.request_id,
            "x-amz-id-2": host_id(created.request_id),
        },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": configuration,
            "bucket": {
                "name": created.bucket,
                "ownerIdentity": {"principalId": OWNER_ID},
                "arn": f"arn:aws:s3:::{created.bucket}",
            },
            "object": {**subject, "sequencer": f"{sequence:018X}"},
        },
    }


def function_name(arn: str) -> str:
    """The name in a function's ARN, with or without a qualifier behind it."""
    return arn.split(":")[6]


def _covers(pattern: str, event: str) -> bool:
    if pattern.endswith("*"):
        return event.startswith(pattern[:-1])
    return pattern == event
