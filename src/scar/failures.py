"""Events that failed for good: what a function's supervisor, Lambda and Batch know of them.

The supervisor keeps a record in the deployment bucket, Lambda's on-failure destination another.
Of a job whose supervisor was killed only Batch knows, for some days: its record is made here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote, unquote, unquote_plus

from scar import state
from scar.aws import jobs as batch
from scar.aws.account import Account
from scar.aws.log_groups import tail
from scar.aws.objects import Objects
from scar.errors import UserError
from scar.plan.resources import DESTINATION_PREFIX, batch_log_group
from scar.state import Target
from scar_supervisor.contract import ARRAY_VARIABLE, EVENT_REFERENCE, EVENT_VARIABLE
from scar_supervisor.records import (
    Failed,
    Reference,
    failed_prefix,
    instant,
    lead_key,
    retried_prefix,
    waiting_prefix,
)

THREADS = 16
_BURST_JOINS = timedelta(seconds=5)
"""An event that has waited for less may just be joining a burst."""

LOG_TAIL_LINES = 30

_T = TypeVar("_T")
_ARRAY = re.compile(r"s3://([^/]+)/(.+)#width=(\d+)")


@dataclass(frozen=True)
class Failure:
    """A failed event, and where it is kept in the deployment bucket."""

    record: Failed
    event: Any
    """What JSON says in `record.event`, or where that only leads to it, there."""
    keys: tuple[str, ...]

    @property
    def objects(self) -> tuple[str, ...]:
        """`bucket/key` of the objects that the event tells of."""
        return objects_of(self.event)


def failures(account: Account, target: Target) -> list[Failure]:
    """What failed for good, newest first. Makes the records that are missing.

    Raises UserError where a record cannot be read, CloudError.
    """
    found = _kept(account, target)
    if target.queue:
        for record, key in _made(account, target, set(found)):
            found[record.run_id] = (record, (key,))
        found |= _left_waiting(account, target)
    events = _each(lambda one: _event(account, target, one[0].event), found.values())
    every = [Failure(record, e, k) for (record, k), e in zip(found.values(), events, strict=True)]
    return sorted(every, key=lambda one: one.record.time, reverse=True)


def keep(account: Account, target: Target, record: Failed) -> None:
    """Keep a record."""
    state.store(account, target, record.key, record.dump().encode())


def forget(account: Account, target: Target, found: Sequence[Failure]) -> None:
    """Remove the records of events that were accepted again."""
    if not found:
        return
    jobs = [one.record.run_id for one in found if one.record.kind == "job"]
    prefix = retried_prefix(target.name)
    _each(lambda run: state.store(account, target, prefix + quote(run, safe=""), b""), jobs)
    Objects(account, target.bucket).remove([key for one in found for key in one.keys])


def objects_of(event: Any) -> tuple[str, ...]:
    """`bucket/key` of the objects that an event of a storage tells of; none of any other event."""
    try:
        its = [record["s3"] for record in event["Records"]]
        return tuple(f"{one['bucket']['name']}/{unquote_plus(one['object']['key'])}" for one in its)
    except (KeyError, TypeError):
        return ()


def exit_code_in(message: str) -> int | None:
    """The exit code that a supervisor's answer tells of, if it does."""
    code = re.search(r"exit code (\d+)$", message)
    return int(code[1]) if code else None


def _kept(account: Account, target: Target) -> dict[str, tuple[Failed, tuple[str, ...]]]:
    """By run: the supervisor's records, and Lambda's where there is none of the supervisor."""
    found: dict[str, tuple[Failed, tuple[str, ...]]] = {}
    places: list[tuple[str, Callable[[str, str], Failed]]] = [
        (failed_prefix(target.name), lambda name, text: Failed.load(text)),
        (f"{DESTINATION_PREFIX}{target.name}/", _of_lambda),
    ]
    for prefix, read in places:
        keys = state.keys(account, target, prefix)
        bodies = _each(lambda key: state.load(account, target, key), keys)
        for key, body in zip(keys, bodies, strict=True):
            if body is None:  # somebody else has just run it again
                continue
            record = _read(read, target, key, body)
            record, known = found.get(record.run_id, (record, ()))
            found[record.run_id] = record, (*known, key)
    return found


def _read(read: Callable[[str, str], Failed], target: Target, key: str, body: bytes) -> Failed:
    try:
        return read(target.name, body.decode())
    except ValueError as exc:
        raise UserError(
            f"s3://{target.bucket}/{key} is no record of a failed event: {exc}",
            "remove it, or put it where SCAR keeps nothing",
        ) from exc


def _of_lambda(name: str, text: str) -> Failed:
    """The record that Lambda sends to an on-failure destination.

    https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
    """
    try:
        its = json.loads(text)
        context = its["requestContext"]
        said = its.get("responsePayload")
        said = said if isinstance(said, dict) else {"errorMessage": said}
        message = str(said.get("errorMessage") or context["condition"])
        what, _, last = message.partition("\n")
        return Failed(
            function=name,
            kind="invocation",
            run_id=context["requestId"],
            event=json.dumps(its["requestPayload"]),
            error_type=str(said.get("errorType") or context["condition"]),
            reason=what,
            exit_code=exit_code_in(what),
            log_tail=last.strip("\n"),
            attempts=int(context["approximateInvokeCount"]),
            time=f"{its['timestamp'][:19]}Z",
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"{exc!r} is not in it") from exc


def _made(account: Account, target: Target, known: set[str]) -> Iterator[tuple[Failed, str]]:
    """The records of failed jobs whose supervisors left none, kept from now on."""
    prefix = retried_prefix(target.name)
    known = known | set(_runs(state.keys(account, target, prefix), prefix))
    main = {run.partition("#")[0] for run in known}
    lost = [
        one
        for one in batch.failed_jobs_of(account, target.queue, target.name)
        if one.id not in known and one.id not in main
    ]
    about = _with_main_nodes(account, batch.details(account, [one.id for one in lost]))
    arrays = batch.details(account, sorted({i.partition(":")[0] for i in about if ":" in i}))
    lines = _Lines(account, target)

    def make(info: batch.JobInfo) -> tuple[Failed, str]:
        parent = arrays.get(info.id.partition(":")[0], {})
        its = about.get(info.id, {})
        variables = {**_variables(parent), **_variables(its)}
        record = _of_batch(account, target, info, its, lines.event(info, variables))
        keep(account, target, record)
        return record, record.key

    yield from _each(make, lost)


def _with_main_nodes(
    account: Account, about: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What a multi-node job was to do, and how that ended, its main node tells."""
    mains = {
        job_id: f"{job_id}#{its['nodeProperties']['mainNode']}"
        for job_id, its in about.items()
        if its.get("nodeProperties")
    }
    nodes = batch.details(account, list(mains.values()))
    containers = {
        job_id: {"container": nodes[main]["container"]}
        for job_id, main in mains.items()
        if "container" in nodes.get(main, {})
    }
    return {job_id: {**its, **containers.get(job_id, {})} for job_id, its in about.items()}


def _left_waiting(account: Account, target: Target) -> Mapping[str, tuple[Failed, tuple[str, ...]]]:
    """Events that wait for a burst which nobody gathers: who did was killed, its retries too."""
    now = datetime.now(UTC)
    prefix = waiting_prefix(target.name)
    waiting = [
        its for its in state.infos(account, target, prefix) if now - its.modified > _BURST_JOINS
    ]
    if not waiting:
        return {}
    lead = json.loads(state.load(account, target, lead_key(target.name)) or b"{}")
    if lead.get("until_ms", 0) > now.timestamp() * 1000:
        return {}
    bodies = _each(lambda its: state.load(account, target, its.key), waiting)
    found: dict[str, tuple[Failed, tuple[str, ...]]] = {}
    for its, body in zip(waiting, bodies, strict=True):
        if body is not None:  # submitted meanwhile
            run_id = its.key.removeprefix(prefix)
            record = Failed(
                *(target.name, "invocation", run_id, body.decode(), "BurstAbandoned"),
                reason=f"invocation {lead.get('owner', '')} was to submit it with others, and died",
                exit_code=None,
                log_tail="",
                attempts=0,
                time=instant(its.modified.timestamp()),
            )
            found[run_id] = record, (its.key,)
    return found


def _runs(keys: Iterable[str], prefix: str) -> Iterator[str]:
    return (unquote(key.removeprefix(prefix)) for key in keys)


def _of_batch(
    account: Account, target: Target, info: batch.JobInfo, its: Mapping[str, Any], event: str
) -> Failed:
    container = its.get("container") or {}
    stream = container.get("logStreamName", "")
    options = (container.get("logConfiguration") or {}).get("options") or {}
    group = options.get("awslogs-group", batch_log_group(target.name))
    return Failed(
        function=target.name,
        kind="job",
        run_id=info.id,
        event=event,
        error_type="JobFailed",
        reason=info.why or "Batch gives no reason",
        exit_code=container.get("exitCode"),
        log_tail=tail(account, group, stream, LOG_TAIL_LINES) if stream else "",
        attempts=len(its.get("attempts") or ()),
        time=instant((info.stopped_ms or info.created_ms) / 1000),
    )


class _Lines:
    """The events of jobs, each manifest read once."""

    def __init__(self, account: Account, target: Target) -> None:
        self._account, self._target = account, target
        self._manifests: dict[str, bytes | None] = {}

    def event(self, info: batch.JobInfo, variables: Mapping[str, str]) -> str:
        """What a job was to work on, whole, so that it outlives what it is made of."""
        common = _event(self._account, self._target, variables.get(EVENT_VARIABLE, "{}"))
        found = _ARRAY.fullmatch(variables.get(ARRAY_VARIABLE, ""))
        if found is None:
            return json.dumps(common)
        key, width = found[2], int(found[3])
        if key not in self._manifests:
            self._manifests[key] = state.load(self._account, self._target, key)
        manifest = self._manifests[key] or b""
        try:
            line = json.loads(manifest[info.index * width : (info.index + 1) * width])
            return json.dumps({**common, **line})
        except (ValueError, TypeError):  # the manifest has expired
            return json.dumps(common)


def _variables(its: Mapping[str, Any]) -> dict[str, str]:
    container = its.get("container") or {}
    return {one["name"]: one["value"] for one in container.get("environment") or ()}


def _event(account: Account, target: Target, text: str) -> Any:
    """What an event says; where it stands for another, what that says while it is there."""
    try:
        event = json.loads(text)
        if not isinstance(event, dict) or set(event) != {EVENT_REFERENCE}:
            return event
        reference = Reference.parse(str(event[EVENT_REFERENCE]), target.bucket, target.name)
        data = state.load(account, target, reference.key)
        if data is None or hashlib.sha256(data).hexdigest() != reference.sha256:
            return event
        return json.loads(data)
    except ValueError:
        return text


def _each(work: Callable[[Any], _T], items: Iterable[Any]) -> list[_T]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))
