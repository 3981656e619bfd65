"""The log of a function: what its invocations wrote, and its Batch jobs."""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from scar.aws.account import Account
from scar.aws.batch import job, log_of, pause_s
from scar.aws.functions import not_deployed
from scar.aws.log_groups import StoredEvent, events, exists
from scar.plan.resources import batch_log_group, lambda_log_group

LATE_MS = 10_000
"""How much later than a newer event an older one may still turn up."""

DELEGATED = re.compile(r"delegated to Batch job ([0-9a-f-]{36})")
"""What the supervisor says when it hands an event over."""


@dataclass(frozen=True)
class LogEvent:
    """One line of a log. `stream` is the execution environment's or the job's."""

    timestamp_ms: int
    stream: str
    message: str


def read(
    account: Account, name: str, *, stream: str | None, request_id: str | None
) -> Iterator[LogEvent]:
    """The log of function `name` so far, oldest first: invocations and jobs together.

    `stream` keeps one log stream. `request_id` keeps one invocation and the job it was delegated
    to, or, given a job's id, that job. Raises NotDeployed where the function has no log.
    """
    if not exists(account, lambda_log_group(name)):
        raise not_deployed(account, name)
    if request_id is not None:
        found: Iterable[StoredEvent] = _of_request(account, name, request_id)
    else:
        found = _of_function(account, name, stream, 0)
    for event in found:
        if stream is None or event.stream == stream:
            yield _shown(event)


def follow(
    account: Account, name: str, *, stream: str | None, request_id: str | None
) -> Iterator[LogEvent]:
    """As `read`, and then what is written, as it comes.

    Ends when the invocation of `request_id` and its job have ended; without one, never.
    """
    if not exists(account, lambda_log_group(name)):
        raise not_deployed(account, name)
    seen: set[str] = set()
    newest_ms = 0
    while True:
        ended = request_id is not None and _has_ended(account, name, request_id)
        if request_id is not None:
            found: Iterable[StoredEvent] = _of_request(account, name, request_id)
        else:
            found = _of_function(account, name, stream, max(0, newest_ms - LATE_MS))
        for event in found:
            if event.id not in seen and (stream is None or event.stream == stream):
                seen.add(event.id)
                newest_ms = max(newest_ms, event.timestamp_ms)
                yield _shown(event)
        if ended:
            return
        time.sleep(pause_s(account))


def _of_function(
    account: Account, name: str, stream: str | None, since_ms: int
) -> Iterator[StoredEvent]:
    streams = (stream,) if stream else ()
    groups = (lambda_log_group(name), batch_log_group(name))
    logs = [events(account, group, streams=streams, since_ms=since_ms) for group in groups]
    return heapq.merge(*logs, key=lambda event: event.timestamp_ms)


def _of_request(account: Account, name: str, request_id: str) -> Iterator[StoredEvent]:
    delegated: list[str] = []
    is_invocation = False
    for event in _of_invocation(account, name, request_id):
        is_invocation = True
        delegated += DELEGATED.findall(event.message)
        yield event
    for job_id in delegated if is_invocation else [request_id]:
        if (its := job(account, job_id)) is not None:
            yield from log_of(account, its)


def _of_invocation(account: Account, name: str, request_id: str) -> Iterator[StoredEvent]:
    """From each START of the request to its REPORT: it has several where Lambda tried again."""
    group = lambda_log_group(name)
    starts = events(account, group, pattern=f'"START RequestId: {request_id}"')
    first = {event.stream: event.timestamp_ms for event in reversed(list(starts))}
    for stream, since_ms in sorted(first.items(), key=lambda item: item[1]):
        inside = False
        for event in events(account, group, streams=(stream,), since_ms=since_ms):
            inside = inside or event.message.startswith(f"START RequestId: {request_id}")
            if inside:
                yield event
            if event.message.startswith(f"REPORT RequestId: {request_id}"):
                inside = False


def _has_ended(account: Account, name: str, request_id: str) -> bool:
    messages = [event.message for event in _of_invocation(account, name, request_id)]
    jobs = [found for message in messages for found in DELEGATED.findall(message)]
    if not messages:
        jobs = [request_id]
    elif not any(m.startswith(f"REPORT RequestId: {request_id}") for m in messages):
        return False
    known = [its for job_id in jobs if (its := job(account, job_id)) is not None]
    return (bool(messages) or bool(known)) and all(its.has_ended for its in known)


def _shown(event: StoredEvent) -> LogEvent:
    return LogEvent(event.timestamp_ms, event.stream, event.message.rstrip("\n"))
