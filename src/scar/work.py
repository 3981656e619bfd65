"""What runs, what waits and what has ended: invocations and jobs of a function."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from scar.aws import jobs as batch
from scar.aws.account import Account
from scar.aws.batch import pause_s
from scar.aws.functions import Functions, not_deployed
from scar.aws.log_groups import events
from scar.errors import UserError
from scar.explain import Finding, Known, explain
from scar.plan.resources import TAG_QUEUE, lambda_log_group

RECENT_MS = 24 * 3600 * 1000
"""How far back invocations are looked for."""

JOBS = 100
"""Newest jobs of a function that are shown."""

INVOCATIONS = 100

_LINE = re.compile(r"(START|REPORT) RequestId: ([0-9a-f-]{36})(.*)", re.DOTALL)
_REPORTED_MS = re.compile(r"Duration: ([0-9.]+) ms")
_STATUS = re.compile(r"Status: (\w+)(?:\s+Error Type: (\S+))?")


@dataclass(frozen=True)
class Work:
    """One invocation or job. Times in milliseconds since the epoch."""

    function: str
    kind: str
    """`invocation`, `job` or `array`."""
    id: str
    state: str
    """Batch's words for jobs; RUNNING, SUCCEEDED and FAILED for invocations."""
    created_ms: int
    duration_ms: int | None
    exit_code: int | None = None
    why: str = ""
    """Why it waits, or failed; of an array how many children are in which state."""


@dataclass(frozen=True)
class Ended:
    """How jobs that were waited for ended."""

    succeeded: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    """(id, why)."""


def ps(account: Account, names: Sequence[str], now_ms: int) -> Iterator[Work]:
    """Invocations and jobs of functions, newest first for each. Raises NotDeployed."""
    for name in names:
        queue = queue_of(account, name)
        found = list(_invocations(account, name, now_ms))
        if queue:
            jobs = batch.jobs_of(account, queue, name, JOBS)
            found += [_work(name, its, now_ms) for its in jobs]
        yield from sorted(found, key=lambda its: -its.created_ms)


def queue_of(account: Account, name: str) -> str:
    """The job queue of a function, empty where it has none. Raises NotDeployed."""
    function = Functions(account).read(name)
    if function is None:
        raise not_deployed(account, name)
    return function.tags.get(TAG_QUEUE, "")


def unfinished(account: Account, name: str) -> list[str]:
    """Ids of the jobs of a function that have not ended, arrays as one."""
    queue = queue_of(account, name)
    return [its.id for its in batch.unfinished_jobs_of(account, queue, name)] if queue else []


def wait(
    account: Account,
    ids: Sequence[str],
    limit_s: float | None,
    on_change: Callable[[str, str], None],
) -> Ended:
    """Wait until jobs have ended; `on_change` hears (id, state) of each.

    Raises UserError for ids that Batch does not know, and when `limit_s` is over.
    """
    until = None if limit_s is None else time.monotonic() + limit_s
    told: dict[str, str] = {}
    while True:
        found = known_jobs(account, ids)
        for its in found:
            state = _state(its)
            if told.get(its.id) != state:
                told[its.id] = state
                on_change(its.id, state)
        if all(its.has_ended for its in found):
            break
        if until is not None and time.monotonic() > until:
            left = [its.id for its in found if not its.has_ended]
            raise UserError(
                f"{len(left)} of {len(found)} jobs have not ended after {limit_s:g} s",
                f"`scar explain {left[0]}`",
            )
        time.sleep(pause_s(account))
    failed = tuple((its.id, its.why or its.status) for its in found if its.status == "FAILED")
    return Ended(tuple(its.id for its in found if its.status == "SUCCEEDED"), failed)


def stop(account: Account, ids: Sequence[str], reason: str, *, only_waiting: bool) -> list[str]:
    """End jobs, or only those that do not run yet; the ids that had not ended before.

    Raises UserError for ids that Batch does not know.
    """
    live = [its.id for its in known_jobs(account, ids) if not its.has_ended]
    end = batch.cancel if only_waiting else batch.terminate
    end(account, live, reason)
    return live


def known_jobs(account: Account, ids: Sequence[str]) -> list[batch.JobInfo]:
    """The jobs of these ids. Raises UserError where Batch does not know one."""
    found = batch.describe(account, ids)
    if missing := set(ids) - {its.id for its in found}:
        raise UserError(
            f"Batch does not know job `{sorted(missing)[0]}`",
            "`scar ps -n NAME` lists them; Batch forgets a job some days after its end",
        )
    return found


def explain_job(account: Account, job_id: str) -> tuple[batch.JobInfo, list[Finding]]:
    """A job, and why it is as it is. Raises UserError where Batch does not know it."""
    [info] = known_jobs(account, [job_id])
    job = batch.detail(account, job_id) or {}
    queue = batch.queue_detail(account, job["jobQueue"])
    environments = batch.environment_details(account, queue) if queue else []
    children: list[tuple[str, str]] = []
    if info.size and info.counts.get("FAILED"):
        some = islice(batch.children(account, job_id, "FAILED"), 3)
        children = [(its.id, _exit(its)) for its in some]
    ahead = None
    if queue and info.status == "RUNNABLE":
        front = batch.front_of_queue(account, job["jobQueue"])
        ahead = front.index(job_id) if job_id in front else None
    return info, explain(Known(job, queue, environments, ahead, children))


def _exit(its: batch.JobInfo) -> str:
    return f"exit code {its.exit_code}" if its.exit_code is not None else its.why


def _state(its: batch.JobInfo) -> str:
    if not its.size or its.has_ended:
        return its.status
    done = its.counts.get("SUCCEEDED", 0) + its.counts.get("FAILED", 0)
    return f"{its.status} ({done} of {its.size} children ended)"


def _work(function: str, its: batch.JobInfo, now_ms: int) -> Work:
    why = its.why if its.status != "SUCCEEDED" else ""
    if its.size:
        told = [f"{count} {state}" for state, count in its.counts.items() if count]
        why = "; ".join(one for one in (", ".join(told), why) if one)
    ran_ms = None
    if its.started_ms is not None:
        ran_ms = (its.stopped_ms or now_ms) - its.started_ms
    elif its.size and its.stopped_ms is not None:
        ran_ms = its.stopped_ms - its.created_ms
    kind = "array" if its.size else "job"
    return Work(
        function, kind, its.id, its.status, its.created_ms, ran_ms, its.exit_code, why
    )  # fmt: skip


def _invocations(account: Account, name: str, now_ms: int) -> Iterator[Work]:
    """What the log tells of the last day's invocations: START opens one, REPORT closes it."""
    lines = events(
        account, lambda_log_group(name), pattern='?"START RequestId" ?"REPORT RequestId"',
        since_ms=now_ms - RECENT_MS,
    )  # fmt: skip
    found: dict[str, Work] = {}
    for event in lines:
        line = _LINE.match(event.message)
        if line is None:
            continue
        word, request_id, rest = line.groups()
        if word == "START":
            began_ms = event.timestamp_ms
            found[request_id] = Work(
                name, "invocation", request_id, "RUNNING", began_ms, now_ms - began_ms
            )
        elif request_id in found:
            found[request_id] = _reported(found[request_id], rest)
    yield from list(found.values())[-INVOCATIONS:]


def _reported(work: Work, report: str) -> Work:
    duration, status = _REPORTED_MS.search(report), _STATUS.search(report)
    why = " ".join(one for one in status.groups() if one) if status else ""
    return Work(
        work.function,
        work.kind,
        work.id,
        "FAILED" if status else "SUCCEEDED",
        work.created_ms,
        round(float(duration[1])) if duration else None,
        None,
        why,
    )


def names_of(found: Iterable[Work]) -> list[str]:
    """The functions that have any work."""
    return list(dict.fromkeys(its.function for its in found))
