"""CloudWatch Logs: groups, streams and events, kept in the store and read back by time.

Sources: the CloudWatch Logs API reference (constraints of PutLogEvents, tokens of GetLogEvents and
FilterLogEvents) and its "Filter pattern syntax" page (unstructured terms).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scar_local.protocol import ACCOUNT_ID, ApiError, Request
from scar_local.store import Store

_YEARS = [365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653]
RETENTION_DAYS = frozenset([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, *_YEARS])
PAGE_BYTES = 1 << 20
PAGE_EVENTS = 10_000
EVENT_OVERHEAD = 26
DAY_MS = 86_400_000
OLDEST_MS, NEWEST_MS = 14 * DAY_MS, 2 * 3_600_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS logs_groups (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, region TEXT NOT NULL,
    created INTEGER NOT NULL, retention_days INTEGER, stored_bytes INTEGER NOT NULL DEFAULT 0,
    class TEXT NOT NULL DEFAULT 'STANDARD', tags TEXT NOT NULL DEFAULT '{}');
CREATE TABLE IF NOT EXISTS logs_streams (
    id INTEGER PRIMARY KEY, group_id INTEGER NOT NULL, name TEXT NOT NULL,
    created INTEGER NOT NULL, first_event INTEGER, last_event INTEGER, last_ingestion INTEGER,
    UNIQUE (group_id, name));
CREATE TABLE IF NOT EXISTS logs_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, group_id INTEGER NOT NULL, stream_id INTEGER NOT NULL,
    timestamp INTEGER NOT NULL, ingested INTEGER NOT NULL, message TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS logs_events_by_stream ON logs_events (stream_id, timestamp);
CREATE INDEX IF NOT EXISTS logs_events_by_group ON logs_events (group_id, timestamp);
"""


class Logs:
    """The service, and the way in for the daemon's own services. `clock` gives epoch seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        store.install(_SCHEMA)

    # For functions and jobs

    def ensure_stream(self, group: str, stream: str) -> None:
        """Create the group and the stream where they are missing."""
        with self._store.write() as db:
            self._stream_ids(db, group, stream)

    def append(
        self,
        group: str,
        stream: str,
        lines: Sequence[str],
        timestamp_ms: int | None = None,
        create: bool = True,
    ) -> None:
        """Add one event a line, in one transaction; group and stream are created when missing.

        All lines get `timestamp_ms` (epoch milliseconds; now when None) and keep their order.
        Without `create` they are dropped where there is no such group.
        """
        if not lines:
            return
        at = self._now() if timestamp_ms is None else timestamp_ms
        with self._store.write() as db:
            known = "SELECT 1 FROM logs_groups WHERE name = ?"
            if create or db.execute(known, (group,)).fetchone():
                ids = self._stream_ids(db, group, stream)
                self._insert(db, ids, [(at, _storable(line)) for line in lines])

    def sweep(self) -> int:
        """Delete the events that are older than their group's retention; answers how many."""
        swept = 0
        rows = self._store.read().execute(
            "SELECT id, retention_days FROM logs_groups WHERE retention_days IS NOT NULL"
        )
        for group_id, days in rows.fetchall():
            with self._store.write() as db:
                gone = db.execute(
                    "DELETE FROM logs_events WHERE group_id = ? AND timestamp < ?"
                    " RETURNING length(CAST(message AS BLOB))",
                    (group_id, self._now() - days * DAY_MS),
                ).fetchall()
                freed = sum(row[0] for row in gone)
                db.execute(
                    "UPDATE logs_groups SET stored_bytes = stored_bytes - ? WHERE id = ?",
                    (freed, group_id),
                )
                swept += len(gone)
        return swept

    def tagged(self) -> Iterable[tuple[str, dict[str, str]]]:
        """Every log group's ARN and tags, for the tagging API."""
        rows = self._store.read().execute(
            "SELECT name, region, tags FROM logs_groups ORDER BY name"
        )
        return [(_group_arn(row["region"], row["name"]), json.loads(row["tags"])) for row in rows]

    # Log groups

    def create_log_group(self, request: Request) -> dict[str, Any]:
        """CreateLogGroup."""
        params = request.params
        name = params["logGroupName"]
        _check_group_name(name)
        for key in ("kmsKeyId", "deletionProtectionEnabled"):
            if params.get(key):
                raise _invalid(f"{key} is not in the local cloud")
        try:
            with self._store.write() as db:
                db.execute(
                    "INSERT INTO logs_groups (name, region, created, class, tags)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (
                        name,
                        request.region,
                        self._now(),
                        params.get("logGroupClass", "STANDARD"),
                        json.dumps(params.get("tags", {})),
                    ),
                )
        except sqlite3.IntegrityError:
            raise _exists("group") from None
        return {}

    def delete_log_group(self, request: Request) -> dict[str, Any]:
        """DeleteLogGroup: with its streams and events."""
        with self._store.write() as db:
            group_id = _group(db, request.params)["id"]
            db.execute("DELETE FROM logs_events WHERE group_id = ?", (group_id,))
            db.execute("DELETE FROM logs_streams WHERE group_id = ?", (group_id,))
            db.execute("DELETE FROM logs_groups WHERE id = ?", (group_id,))
        return {}

    def describe_log_groups(self, request: Request) -> dict[str, Any]:
        """DescribeLogGroups, sorted by name; `logGroupNamePattern` is a substring."""
        params = request.params
        prefix, part = params.get("logGroupNamePrefix"), params.get("logGroupNamePattern")
        if prefix is not None and part is not None:
            raise _invalid("logGroupNamePrefix and logGroupNamePattern exclude each other.")
        names = {_named(text) for text in params.get("logGroupIdentifiers", ())}
        limit = _limit(params, 50, 50)
        rows = self._store.read().execute(
            "SELECT * FROM logs_groups WHERE name > ? AND substr(name, 1, length(?)) = ?"
            " AND (? = '' OR instr(name, ?)) ORDER BY name",
            (_read_token(params), prefix or "", prefix or "", part or "", part or ""),
        )
        wanted = params.get("logGroupClass")
        found = (
            row
            for row in rows
            if (not names or row["name"] in names) and wanted in (None, row["class"])
        )
        page, more = _page(found, limit)
        groups = [_describe_group(row, request.region) for row in page]
        answer: dict[str, Any] = {"logGroups": groups}
        return answer | ({"nextToken": _token(page[-1]["name"])} if more else {})

    def put_retention_policy(self, request: Request) -> dict[str, Any]:
        """PutRetentionPolicy."""
        days = request.params["retentionInDays"]
        if days not in RETENTION_DAYS:
            raise _invalid(f"retentionInDays {days} must be one of {sorted(RETENTION_DAYS)}")
        self._set_retention(request, days)
        self.sweep()
        return {}

    def delete_retention_policy(self, request: Request) -> dict[str, Any]:
        """DeleteRetentionPolicy: events never expire again."""
        self._set_retention(request, None)
        return {}

    def _set_retention(self, request: Request, days: int | None) -> None:
        with self._store.write() as db:
            group_id = _group(db, request.params)["id"]
            db.execute("UPDATE logs_groups SET retention_days = ? WHERE id = ?", (days, group_id))

    # Tags

    def tag_resource(self, request: Request) -> dict[str, Any]:
        """TagResource on a log group's ARN."""
        return self._retag(_arn(request), lambda tags: tags | request.params["tags"])

    def untag_resource(self, request: Request) -> dict[str, Any]:
        """UntagResource on a log group's ARN."""
        gone = request.params["tagKeys"]
        return self._retag(_arn(request), lambda tags: _without(tags, gone))

    def list_tags_for_resource(self, request: Request) -> dict[str, Any]:
        """ListTagsForResource on a log group's ARN."""
        return {"tags": json.loads(_group(self._store.read(), _arn(request))["tags"])}

    def tag_log_group(self, request: Request) -> dict[str, Any]:
        """TagLogGroup."""
        return self._retag(request.params, lambda tags: tags | request.params["tags"])

    def untag_log_group(self, request: Request) -> dict[str, Any]:
        """UntagLogGroup."""
        return self._retag(request.params, lambda tags: _without(tags, request.params["tags"]))

    def list_tags_log_group(self, request: Request) -> dict[str, Any]:
        """ListTagsLogGroup."""
        return {"tags": json.loads(_group(self._store.read(), request.params)["tags"])}

    def _retag(
        self, params: Mapping[str, Any], change: Callable[[dict[str, str]], dict[str, str]]
    ) -> dict[str, Any]:
        with self._store.write() as db:
            row = _group(db, params)
            tags = change(json.loads(row["tags"]))
            if len(tags) > 50:
                text = f"{row['name']} would have {len(tags)} tags; 50 are allowed"
                raise ApiError("TooManyTagsException", text)
            db.execute(
                "UPDATE logs_groups SET tags = ? WHERE id = ?", (json.dumps(tags), row["id"])
            )
        return {}

    # Log streams

    def create_log_stream(self, request: Request) -> dict[str, Any]:
        """CreateLogStream."""
        name = request.params["logStreamName"]
        if not 0 < len(name) <= 512 or re.search(r"[:*]", name):
            raise _invalid(f"log stream name {name!r}: 1 to 512 characters without `:` and `*`")
        try:
            with self._store.write() as db:
                group = _group(db, request.params)
                self._add_stream(db, group["id"], name)
        except sqlite3.IntegrityError:
            raise _exists("stream") from None
        return {}

    def delete_log_stream(self, request: Request) -> dict[str, Any]:
        """DeleteLogStream: with its events."""
        with self._store.write() as db:
            group = _group(db, request.params)
            stream = _stream(db, group["id"], request.params["logStreamName"])
            freed = db.execute(
                "SELECT coalesce(sum(length(CAST(message AS BLOB))), 0) FROM logs_events"
                " WHERE stream_id = ?",
                (stream["id"],),
            ).fetchone()[0]
            db.execute("DELETE FROM logs_events WHERE stream_id = ?", (stream["id"],))
            db.execute("DELETE FROM logs_streams WHERE id = ?", (stream["id"],))
            db.execute(
                "UPDATE logs_groups SET stored_bytes = stored_bytes - ? WHERE id = ?",
                (freed, group["id"]),
            )
        return {}

    def describe_log_streams(self, request: Request) -> dict[str, Any]:
        """DescribeLogStreams, by name or by the time of the last event."""
        params = request.params
        prefix = params.get("logStreamNamePrefix")
        by_time = params.get("orderBy") == "LastEventTime"
        if by_time and prefix is not None:
            raise _invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
        db = self._store.read()
        group = _group(db, params)
        key = "coalesce(last_event, 0)" if by_time else "''"
        descending = params.get("descending", False)
        beyond, position = _beyond(params, key, descending, by_time)
        order = "DESC" if descending else "ASC"
        rows = db.execute(
            "SELECT * FROM logs_streams WHERE group_id = ? AND substr(name, 1, length(?)) = ?"  # noqa: S608
            f" {beyond} ORDER BY {key} {order}, name {order}",
            (group["id"], prefix or "", prefix or "", *position),
        )
        page, more = _page(rows, _limit(params, 50, 50))
        arn = _group_arn(request.region, group["name"])
        answer: dict[str, Any] = {"logStreams": [_describe_stream(row, arn) for row in page]}
        if more:
            last = [page[-1]["last_event"] or 0 if by_time else "", page[-1]["name"]]
            answer["nextToken"] = _token(json.dumps(last))
        return answer

    # Events

    def put_log_events(self, request: Request) -> dict[str, Any]:
        """PutLogEvents: what is too old, too new or expired is refused by its index."""
        events = request.params["logEvents"]
        _check_batch(events)
        with self._store.write() as db:
            group = _group(db, request.params)
            stream = _stream(db, group["id"], request.params["logStreamName"])
            days = group["retention_days"]
            rejected, kept = _sort_out(events, self._now(), days)
            if kept and kept[-1]["timestamp"] - kept[0]["timestamp"] > DAY_MS:
                raise _invalid("A PutLogEvents request cannot span more than 24 hours.")
            rows = [(event["timestamp"], event["message"]) for event in kept]
            self._insert(db, (group["id"], stream["id"]), rows)
        return {
            "nextSequenceToken": "0",
            **({"rejectedLogEventsInfo": rejected} if rejected else {}),
        }

    def get_log_events(self, request: Request) -> dict[str, Any]:
        """GetLogEvents: one stream, in both directions."""
        params = request.params
        db = self._store.read()
        group = _group(db, params)
        stream = _stream(db, group["id"], params["logStreamName"])
        reading = _reading(params, ("f", "b"), params.get("startFromHead", False))
        clauses = _Clauses().add("stream_id = ?", stream["id"]).retained(group, self._now())
        if (start := params.get("startTime")) is not None:
            clauses.add("timestamp >= ?", start)
        if (end := params.get("endTime")) is not None:
            clauses.add("timestamp < ?", end)
        page, _ = _read_events(db, clauses, reading)
        if not reading.forward:
            page.reverse()
        first, last = _ends(page, reading.start)
        return {
            "events": [_output_event(row) for row in page],
            "nextForwardToken": f"f/{last}",
            "nextBackwardToken": f"b/{first}",
        }

    def filter_log_events(self, request: Request) -> dict[str, Any]:
        """FilterLogEvents: all streams of a group, or some, by time, then ingestion."""
        params = request.params
        db = self._store.read()
        group = _group(db, params)
        matches = pattern(params.get("filterPattern", ""))
        reading = _reading(params, ("a", "d"), params.get("startFromHead", True))
        clauses = _Clauses().retained(group, self._now())
        _choose_streams(db, clauses, group["id"], params)
        if (start := params.get("startTime")) is not None:
            clauses.add("timestamp >= ?", start)
        if (end := params.get("endTime")) is not None:
            clauses.add("timestamp <= ?", end)
        page, more = _read_events(db, clauses, reading, matches)
        answer: dict[str, Any] = {
            "events": [_filtered_event(row) for row in page],
            "searchedLogStreams": [],
        }
        if more:
            answer["nextToken"] = f"{'a' if reading.forward else 'd'}/{_position(page[-1])}"
        return answer

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _stream_ids(self, db: sqlite3.Connection, group: str, stream: str) -> tuple[int, int]:
        found = db.execute(
            "SELECT logs_groups.id, logs_streams.id FROM logs_groups JOIN logs_streams"
            " ON group_id = logs_groups.id WHERE logs_groups.name = ? AND logs_streams.name = ?",
            (group, stream),
        ).fetchone()
        if found:
            return found[0], found[1]
        db.execute(
            "INSERT INTO logs_groups (name, region, created) VALUES (?, 'us-east-1', ?)"
            " ON CONFLICT DO NOTHING",
            (group, self._now()),
        )
        group_id: int = _group(db, {"logGroupName": group})["id"]
        return group_id, self._add_stream(db, group_id, stream)

    def _add_stream(self, db: sqlite3.Connection, group_id: int, name: str) -> int:
        row = db.execute(
            "INSERT INTO logs_streams (group_id, name, created) VALUES (?, ?, ?)",
            (group_id, name, self._now()),
        )
        return int(row.lastrowid or 0)

    def _insert(
        self, db: sqlite3.Connection, ids: tuple[int, int], events: Sequence[tuple[int, str]]
    ) -> None:
        if not events:
            return
        now = self._now()
        db.executemany(
            "INSERT INTO logs_events (group_id, stream_id, timestamp, ingested, message)"
            " VALUES (?, ?, ?, ?, ?)",
            [(*ids, at, now, message) for at, message in events],
        )
        size = sum(len(message.encode()) for _, message in events)
        db.execute(
            "UPDATE logs_groups SET stored_bytes = stored_bytes + ? WHERE id = ?", (size, ids[0])
        )
        times = [at for at, _ in events]
        db.execute(
            "UPDATE logs_streams SET first_event = min(coalesce(first_event, ?1), ?1),"
            " last_event = max(coalesce(last_event, ?2), ?2), last_ingestion = ?3 WHERE id = ?4",
            (min(times), max(times), now, ids[1]),
        )


def pattern(text: str) -> Callable[[str], bool]:
    """A filter pattern of plain terms as a predicate on messages.

    `A B` asks for both, `?A ?B` for one of them, `-A` excludes, `"a b"` is one term; case counts.
    JSON, space-delimited and regular expression patterns are refused with ApiError.
    """
    text = text.strip()
    if text[:1] in ("{", "[") or "%" in text:
        raise _invalid(
            f"filterPattern {text!r}: the local cloud matches plain terms only"
            ' (A B, ?A ?B, -A, "a b")'
        )
    terms = _terms(text)
    either = [term for sign, term in terms if sign == "?"]
    if either and len(either) < len(terms):
        raise _invalid(f"filterPattern {text!r}: ?terms cannot be combined with other terms")
    every = [term for sign, term in terms if sign == ""]
    none = [term for sign, term in terms if sign == "-"]
    return lambda message: (
        (not either or any(term in message for term in either))
        and all(term in message for term in every)
        and not any(term in message for term in none)
    )


_TERM = re.compile(r'\s*([?-]?)(?:"((?:[^"\\]|\\.)*)"|(\w+))(?=\s|$)')


def _terms(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None:
            raise _invalid(
                f"filterPattern {text!r}: put terms with other characters than letters, digits and"
                f" `_` in double quotes: {text[at:].strip()!r}"
            )
        sign, quoted, word = match.groups()
        found.append((sign, word if quoted is None else re.sub(r"\\(.)", r"\1", quoted)))
        at = match.end()
    return found


@dataclass(frozen=True)
class _Position:
    """A place between two events, as a page token names it."""

    kind: str
    timestamp: int
    id: int


@dataclass(frozen=True)
class _Reading:
    """Which way to read events, from where, and how many."""

    forward: bool
    start: _Position | None
    limit: int


class _Clauses:
    """The growing WHERE clause of a search for events."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.values: list[Any] = []

    @property
    def text(self) -> str:
        return " AND ".join(self._texts) or "1"

    def add(self, text: str, *values: Any) -> _Clauses:
        self._texts.append(text)
        self.values += values
        return self

    def retained(self, group: sqlite3.Row, now: int) -> _Clauses:
        if (days := group["retention_days"]) is not None:
            self.add("timestamp >= ?", now - days * DAY_MS)
        return self


def _storable(line: str) -> str:
    """The line without lone surrogates, which UTF-8 and so SQLite cannot hold."""
    return line.encode(errors="replace").decode()


def _invalid(text: str) -> ApiError:
    return ApiError("InvalidParameterException", text)


def _exists(kind: str) -> ApiError:
    text = f"The specified log {kind} already exists"
    return ApiError("ResourceAlreadyExistsException", text)


def _check_group_name(name: str) -> None:
    if len(name) > 512 or not re.fullmatch(r"[.\-_/#A-Za-z0-9]+", name) or name.startswith("aws/"):
        raise _invalid(
            f"log group name {name!r}: 1 to 512 of a-z A-Z 0-9 _ - / . #, not starting with aws/"
        )


def _group_arn(region: str, name: str) -> str:
    return f"arn:aws:logs:{region}:{ACCOUNT_ID}:log-group:{name}"


def _arn(request: Request) -> dict[str, Any]:
    return {"logGroupIdentifier": request.params["resourceArn"]}


def _named(identifier: str) -> str:
    """The group's name in a name or an ARN."""
    if not identifier.startswith("arn:"):
        return identifier
    return identifier.partition(":log-group:")[2].removesuffix(":*")


def _group(db: sqlite3.Connection, params: Mapping[str, Any]) -> sqlite3.Row:
    name, identifier = params.get("logGroupName"), params.get("logGroupIdentifier")
    if (name is None) == (identifier is None):
        raise _invalid("give either logGroupName or logGroupIdentifier, and not both")
    name = name if name is not None else _named(str(identifier))
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM logs_groups WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        raise ApiError("ResourceNotFoundException", "The specified log group does not exist.")
    return row


def _stream(db: sqlite3.Connection, group_id: int, name: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM logs_streams WHERE group_id = ? AND name = ?", (group_id, name)
    ).fetchone()
    if row is None:
        raise ApiError("ResourceNotFoundException", "The specified log stream does not exist.")
    return row


def _without(tags: dict[str, str], gone: Iterable[str]) -> dict[str, str]:
    names = set(gone)
    return {key: value for key, value in tags.items() if key not in names}


def _limit(params: Mapping[str, Any], usual: int, most: int) -> int:
    limit: int = params.get("limit", usual)
    if not 1 <= limit <= most:
        raise _invalid(f"limit {limit} must be between 1 and {most}")
    return limit


def _page(
    rows: Iterable[sqlite3.Row], limit: int, max_bytes: int | None = None
) -> tuple[list[sqlite3.Row], bool]:
    """The first rows, at least one, and whether there are more."""
    page: list[sqlite3.Row] = []
    size = 0
    for row in rows:
        size += len(row["message"].encode()) + EVENT_OVERHEAD if max_bytes else 0
        if len(page) == limit or (page and max_bytes and size > max_bytes):
            return page, True
        page.append(row)
    return page, False


def _beyond(
    params: Mapping[str, Any], key: str, descending: bool, by_time: bool
) -> tuple[str, list[Any]]:
    """The condition that continues a listing of streams after its token, and its values."""
    text = _read_token(params)
    if not text:
        return "", []
    try:
        at, name = json.loads(text)
        position = [int(at) if by_time else "", str(name)]
    except ValueError:
        raise _invalid("The specified nextToken is invalid.") from None
    return f"AND ({key}, name) {'<' if descending else '>'} (?, ?)", position


def _token(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_token(params: Mapping[str, Any]) -> str:
    try:
        return base64.urlsafe_b64decode(params.get("nextToken", "")).decode()
    except (binascii.Error, ValueError):
        raise _invalid("The specified nextToken is invalid.") from None


def _position(row: sqlite3.Row) -> str:
    return f"{row['timestamp']}.{row['id']}"


def _reading(params: Mapping[str, Any], kinds: tuple[str, str], forward: bool) -> _Reading:
    """`kinds` are the tokens' letters for forward and backward; a token decides the direction."""
    limit = _limit(params, PAGE_EVENTS, PAGE_EVENTS)
    token = params.get("nextToken")
    if token is None:
        return _Reading(forward, None, limit)
    match = re.fullmatch(r"([a-z])/(-?\d+)\.(\d+)", token)
    if match is None or match[1] not in kinds:
        raise _invalid("The specified nextToken is invalid.")
    start = _Position(match[1], int(match[2]), int(match[3]))
    return _Reading(start.kind == kinds[0], start, limit)


def _read_events(
    db: sqlite3.Connection,
    clauses: _Clauses,
    reading: _Reading,
    matches: Callable[[str], bool] = lambda _: True,
) -> tuple[list[sqlite3.Row], bool]:
    """One page of events in reading order, and whether there are more."""
    if reading.start:
        sign = ">" if reading.forward else "<"
        position = (reading.start.timestamp, reading.start.id)
        clauses.add(f"(timestamp, logs_events.id) {sign} (?, ?)", *position)
    order = "ASC" if reading.forward else "DESC"
    rows = db.execute(
        "SELECT logs_events.*, logs_streams.name AS stream FROM logs_events"  # noqa: S608
        " JOIN logs_streams ON logs_streams.id = stream_id"
        f" WHERE {clauses.text} ORDER BY timestamp {order}, logs_events.id {order}",
        clauses.values,
    )
    found = (row for row in rows if matches(row["message"]))
    return _page(found, reading.limit, PAGE_BYTES)


def _ends(page: Sequence[sqlite3.Row], given: _Position | None) -> tuple[str, str]:
    """Where to go on backward and forward. At an end it is where the caller stood already."""
    if page:
        return _position(page[0]), _position(page[-1])
    if given is None:
        return "0.0", "0.0"
    same = f"{given.timestamp}.{given.id}"
    if given.kind == "f":  # the way back must show the event just before this end again
        return f"{given.timestamp}.{given.id + 1}", same
    return same, f"{given.timestamp}.{max(given.id - 1, 0)}"


def _describe_group(row: sqlite3.Row, region: str) -> dict[str, Any]:
    arn = _group_arn(region, row["name"])
    return {
        "logGroupName": row["name"],
        "creationTime": row["created"],
        "retentionInDays": row["retention_days"],
        "metricFilterCount": 0,
        "arn": f"{arn}:*",
        "logGroupArn": arn,
        "storedBytes": row["stored_bytes"],
        "logGroupClass": row["class"],
    }


def _describe_stream(row: sqlite3.Row, group_arn: str) -> dict[str, Any]:
    return {
        "logStreamName": row["name"],
        "creationTime": row["created"],
        "firstEventTimestamp": row["first_event"],
        "lastEventTimestamp": row["last_event"],
        "lastIngestionTime": row["last_ingestion"],
        "arn": f"{group_arn}:log-stream:{row['name']}",
        "storedBytes": 0,
    }


def _check_batch(events: Sequence[Mapping[str, Any]]) -> None:
    if not 0 < len(events) <= PAGE_EVENTS:
        raise _invalid(f"logEvents: 1 to {PAGE_EVENTS} events, not {len(events)}")
    size = sum(len(event["message"].encode()) + EVENT_OVERHEAD for event in events)
    if size > PAGE_BYTES:
        raise _invalid(f"Upload too large: {size} bytes exceeds limit of {PAGE_BYTES}")
    times = [event["timestamp"] for event in events]
    if times != sorted(times):
        raise _invalid(
            "Log events in a single PutLogEvents request must be in chronological order."
        )


def _sort_out(
    events: Sequence[Mapping[str, Any]], now: int, retention_days: int | None
) -> tuple[dict[str, int], list[Mapping[str, Any]]]:
    """What is refused, as RejectedLogEventsInfo says it, and the events that are kept."""
    times = [event["timestamp"] for event in events]
    too_old = sum(at < now - OLDEST_MS for at in times)
    too_new = sum(at > now + NEWEST_MS for at in times)
    expired = sum(at < now - (retention_days or 1 << 20) * DAY_MS for at in times)
    rejected = {"tooOldLogEventEndIndex": too_old, "expiredLogEventEndIndex": expired}
    rejected = {key: count for key, count in rejected.items() if count}
    if too_new:
        rejected["tooNewLogEventStartIndex"] = len(events) - too_new
    return rejected, list(events[max(too_old, expired) : len(events) - too_new])


def _choose_streams(
    db: sqlite3.Connection, clauses: _Clauses, group_id: int, params: Mapping[str, Any]
) -> None:
    names, prefix = params.get("logStreamNames"), params.get("logStreamNamePrefix")
    if names is not None and prefix is not None:
        raise _invalid("give either logStreamNames or logStreamNamePrefix, and not both")
    if names is not None:
        ids = [_stream(db, group_id, name)["id"] for name in names]
        clauses.add(f"stream_id IN ({', '.join('?' * len(ids))})", *ids)
        return
    clauses.add("logs_events.group_id = ?", group_id)
    if prefix is not None:
        clauses.add("substr(logs_streams.name, 1, length(?)) = ?", prefix, prefix)


def _output_event(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "timestamp": row["timestamp"],
        "message": row["message"],
        "ingestionTime": row["ingested"],
    }


def _filtered_event(row: sqlite3.Row) -> dict[str, Any]:
    event_id = f"{row['timestamp']:013d}{row['id']:043d}"
    return _output_event(row) | {"logStreamName": row["stream"], "eventId": event_id}
