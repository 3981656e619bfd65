"""Run a function for many events: one array job, or many invocations.

The events of an array are a manifest in the deployment bucket (`.scar/arrays/<function>/`), one a
line. What its version of the function has done already is left out.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from urllib.parse import quote_plus

from scar import failures, state
from scar.aws import jobs as batch
from scar.aws.account import Account
from scar.aws.batch import JobDefinitions, pause_s
from scar.aws.buckets import BucketTriggers
from scar.aws.errors import is_absent
from scar.aws.functions import buckets_of, invoke
from scar.aws.objects import ObjectInfo, latest
from scar.aws.waiting import retrying
from scar.errors import CloudError, FunctionFailed, Missing, UserError
from scar.invoke import event_of, result_of
from scar.plan.desired import object_path
from scar.plan.limits import payload_limit_bytes
from scar.state import Target, target_of
from scar_supervisor.contract import (
    ARRAY_VARIABLE,
    EVENT_VARIABLE,
    FORCE,
    INLINE_EVENT_LIMIT_BYTES,
)
from scar_supervisor.records import (
    STATE_PREFIX,
    Failed,
    done_prefix,
    instant,
    manifest,
    manifest_key,
    object_id,
    work_version,
)

CONCURRENCY = 32
"""Invocations at a time, unless the user says otherwise."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One run of the function."""

    own: Any
    """Its event, without what it has in common with others."""
    common: Mapping[str, Any]
    """A script or a command, and whether what was done is done again."""
    failed: tuple[failures.Failure, ...] = ()
    """What is forgotten once the event is accepted."""

    @property
    def event(self) -> Any:
        """What the function gets."""
        return {**self.common, **self.own} if self.common else self.own

    @property
    def name(self) -> str:
        """`bucket/key` of its object."""
        return " ".join(failures.objects_of(self.own)) or "(no object)"


@dataclass(frozen=True)
class Failure:
    """One object whose run failed."""

    key: str
    """`bucket/key` of the object."""
    id: str
    """Of the job, or the invocation."""
    exit_code: int | None
    reason: str


@dataclass(frozen=True)
class Progress:
    """How far a bulk run is."""

    succeeded: int
    failed: int
    total: int


@dataclass(frozen=True)
class Outcome:
    """A bulk run: started, or with `failures` where it was waited for."""

    id: str
    function: str
    mode: str
    total: int
    job_ids: tuple[str, ...]
    waited: bool
    failures: tuple[Failure, ...] = ()
    already_done: int = 0
    """Objects that were left out."""

    @property
    def succeeded(self) -> int:
        """Objects that were worked on to a good end; 0 where nobody waited for it."""
        return self.total - len(self.failures) if self.waited else 0


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    path: str | None = None
    """`bucket[/prefix]`; None: the function's own input."""
    script: bytes | None = None
    arguments: Sequence[str] = ()
    retries_failed: bool = False
    forces: bool = False
    """Whether what was done already is done again."""
    waits: bool = False
    concurrency: int = CONCURRENCY


def run(
    account: Account,
    name: str,
    wanted: Wanted,
    tell: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    """Run function `name` for every object asked for, or for every event that failed.

    Raises NotDeployed, UserError where there is nothing to do, CloudError.
    """
    target = target_of(account, name)
    has_nodes = _has_nodes(account, target)
    already_done = 0
    if wanted.retries_failed:
        items = _failed(account, target, wanted.forces)
    elif has_nodes:
        raise UserError(
            f"function `{name}` is a multi-node parallel job, which cannot be run for many "
            "objects at once",
            "`scar put` each object into its input, or `scar run` it without `--all` and `-ib`",
        )
    else:
        asked = list(_asked(account, target, wanted))
        items = asked if wanted.forces else _left(account, target, asked)
        already_done = len(asked) - len(items)
    if already_done:
        tell(f"{already_done} of {len(asked)} objects are done already (--force repeats them)")
    run_id = uuid.uuid4().hex[:12]
    # The children of an array have one container each, and their events are JSON objects.
    is_array = target.mode == "batch" and not has_nodes
    in_array = [item for item in items if is_array and isinstance(item.own, dict)]
    single = [item for item in items if not (is_array and isinstance(item.own, dict))]
    jobs: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    if in_array:
        jobs, failed = _run_jobs(account, target, in_array, wanted.waits, on_progress)
    if single:
        more_jobs, more = _Invocations(account, target, wanted, on_progress).run(single)
        jobs, failed = jobs + more_jobs, failed + more
    return Outcome(
        run_id, name, target.mode, len(items), jobs, wanted.waits, failed, already_done
    )  # fmt: skip


def _has_nodes(account: Account, target: Target) -> bool:
    definition = JobDefinitions(account).read(target.name) if target.mode == "batch" else None
    return bool(definition and definition.nodes)


# What is to be run


def _asked(account: Account, target: Target, wanted: Wanted) -> Iterator[Item]:
    """One for each object below a path, or for each that would trigger the function."""
    common: dict[str, Any] = dict(event_of(wanted.script, wanted.arguments))
    if wanted.forces:
        common[FORCE] = True
    count = 0
    for bucket, prefix, suffix in _places(account, target, wanted.path):
        for its in _objects(account, bucket, prefix):
            is_marker = its.key.endswith("/") and not its.size_bytes
            if is_marker or its.key.startswith(STATE_PREFIX) or not its.key.endswith(suffix):
                continue
            count += 1
            yield Item(_event(account.region, bucket, its), common)
    if not count:
        where = f"`{wanted.path}`" if wanted.path else f"the input of function `{target.name}`"
        raise UserError(f"there are no objects in {where}", "`scar put` some first")


def _left(account: Account, target: Target, items: list[Item]) -> list[Item]:
    """Without the objects that this version of the function has done."""
    if not target.version:
        return items
    prefix = done_prefix(target.name, work_version(target.version, items[0].common))
    done = {key.removeprefix(prefix) for key in state.keys(account, target, prefix)}
    return [item for item in items if _object_id(item) not in done]


def _object_id(item: Item) -> str:
    its = item.own["Records"][0]["s3"]["object"]
    bucket, _, key = item.name.partition("/")
    return object_id(bucket, key, its.get("versionId") or its["eTag"])


def _failed(account: Account, target: Target, forces: bool) -> list[Item]:
    """One for each event that failed, of several for the same object the last."""
    found: dict[str, Item] = {}
    for one in failures.failures(account, target):
        own, common = one.event, dict[str, Any]()
        if isinstance(own, dict):
            own = {name: value for name, value in own.items() if name not in _COMMON}
            common = {name: value for name, value in one.event.items() if name in _COMMON}
        if forces and isinstance(own, dict):
            common[FORCE] = True
        about = json.dumps(_identity(one), sort_keys=True)
        newer = found.get(about)
        found[about] = Item(
            newer.own if newer else own,
            newer.common if newer else common,
            (*(newer.failed if newer else ()), one),
        )
    if not found:
        raise UserError(
            f"nothing failed for good of function `{target.name}`",
            f"`scar ps -n {target.name}` shows what runs",
        )
    return list(found.values())


def _identity(one: failures.Failure) -> Any:
    """What makes two failures the same work: their objects. Without any, each is its own."""
    if not one.objects:
        return one.record.run_id
    sources = [record.get("eventSource") for record in one.event["Records"]]
    return list(zip(sources, one.objects, strict=True))


_COMMON = ("script", "cmd_args", FORCE)


def _places(account: Account, target: Target, path: str | None) -> list[tuple[str, str, str]]:
    """(bucket, prefix, suffix) of the objects asked for."""
    if path is not None:
        bucket, prefix = object_path(path)
        return [(bucket, f"{prefix}/" if prefix else "", "")]
    triggers = BucketTriggers(account)
    found = [triggers.read(f"{one}/{target.name}") for one in buckets_of(account, target.name)]
    places = [(one.bucket, *pair) for one in found if one for pair in one.paths]
    if not places:
        raise UserError(
            f"function `{target.name}` has no input bucket", "name one: `-ib BUCKET[/PREFIX]`"
        )
    return places


def _objects(account: Account, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    try:
        yield from latest(account, bucket, prefix)
    except CloudError as exc:
        if is_absent(exc):
            raise Missing(f"bucket `{bucket}` does not exist in this account") from exc
        raise


def _event(region: str, bucket: str, its: ObjectInfo) -> Event:
    """The event that S3 would send for an object, with what a supervisor reads of it."""
    about = {"key": quote_plus(its.key, safe="/"), "size": its.size_bytes, "eTag": its.etag}
    if its.version_id:
        about["versionId"] = its.version_id
    record = {
        "eventSource": "aws:s3",
        "awsRegion": region,
        "eventTime": its.modified.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": about},
    }
    return {"Records": [record]}


# In mode `batch`: array jobs


def _run_jobs(
    account: Account,
    target: Target,
    items: list[Item],
    waits: bool,
    on_progress: Callable[[Progress], None],
) -> tuple[tuple[str, ...], tuple[Failure, ...]]:
    """The jobs of these items, and where they are waited for what failed."""
    parts: dict[str, list[Item]] = {}
    for group in _groups(items):
        variables = _shared(account, target, group[0].common)
        for start in range(0, len(group), batch.ARRAY_LIMIT):
            part = group[start : start + batch.ARRAY_LIMIT]
            data, width = manifest([item.own for item in part])
            key = manifest_key(data, target.name)
            state.store(account, target, key, data)
            variables[ARRAY_VARIABLE] = f"s3://{target.bucket}/{key}#width={width}"
            job = batch.submit(account, target.name, target.queue, len(part), variables)
            parts[job] = part
            failures.forget(account, target, [one for item in part for one in item.failed])
    if not waits:
        return tuple(parts), ()
    _wait(account, list(parts), len(items), on_progress)
    failed = tuple(
        Failure(part[its.index].name, its.id, its.exit_code, its.why)
        for job, part in parts.items()
        for its in failed_jobs(account, job)
    )
    return tuple(parts), failed


def _groups(items: list[Item]) -> Iterable[list[Item]]:
    """Those that have the same in common: that is sent once."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(json.dumps(item.common, sort_keys=True), []).append(item)
    return groups.values()


def _shared(account: Account, target: Target, common: Mapping[str, Any]) -> dict[str, str]:
    """The variable that brings every job what they have in common, if there is any."""
    if not common:
        return {}
    event = json.dumps(common).encode()
    sent = state.fitting(account, target, event, INLINE_EVENT_LIMIT_BYTES)
    return {EVENT_VARIABLE: sent.decode()}


def _wait(
    account: Account, ids: Sequence[str], total: int, on_progress: Callable[[Progress], None]
) -> None:
    while True:
        found = batch.describe(account, ids)
        on_progress(_progress(found, total))
        if all(its.has_ended for its in found):
            return
        time.sleep(pause_s(account))


def _progress(found: Iterable[batch.JobInfo], total: int) -> Progress:
    done = {"SUCCEEDED": 0, "FAILED": 0}
    for its in found:
        for status in done:
            done[status] += its.counts.get(status, 0) if its.size else its.status == status
    return Progress(done["SUCCEEDED"], done["FAILED"], total)


def failed_jobs(account: Account, job_id: str) -> list[batch.JobInfo]:
    """A failed job, or the failed children of an array, by index."""
    found = batch.describe(account, [job_id])
    if not found or not found[0].size:
        return [its for its in found if its.status == "FAILED"]
    return sorted(batch.children(account, job_id, "FAILED"), key=lambda its: its.index)


# In the other modes: invocations


class _Invocations:
    """Invokes a function once for each item, some at a time."""

    def __init__(
        self,
        account: Account,
        target: Target,
        wanted: Wanted,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._account, self._target = account, target
        self._waits, self._concurrency = wanted.waits, wanted.concurrency
        self._on_progress, self._lock = on_progress, threading.Lock()
        self._done = {True: 0, False: 0}
        self._total = 0

    def run(self, items: list[Item]) -> tuple[tuple[str, ...], tuple[Failure, ...]]:
        """All of them: the jobs they were handed over to, and what failed.

        Waited for, an invocation is a synchronous call: its answer tells all.
        """
        self._total = len(items)
        with ThreadPoolExecutor(min(self._concurrency, len(items))) as pool:
            ends = list(pool.map(self._one, items))
        failed = {n: its for n, its in enumerate(ends) if isinstance(its, Failure)}
        jobs = {its: n for n, its in enumerate(ends) if isinstance(its, str)}
        if jobs:
            _wait(self._account, list(jobs), self._total, lambda now: None)
            for its in batch.describe(self._account, jobs):
                if its.status == "FAILED":
                    n = jobs[its.id]
                    failed[n] = Failure(items[n].name, its.id, its.exit_code, its.why)
        return tuple(jobs), tuple(failed[n] for n in sorted(failed))

    def _one(self, item: Item) -> Failure | str | None:
        """What went wrong, or the job that the event was handed over to, or None."""
        event = json.dumps(item.event).encode()
        limit = payload_limit_bytes(asynchronous=not self._waits)
        payload = state.fitting(self._account, self._target, event, limit)
        jobs: list[str | None] = []

        def call() -> None:
            invoked = invoke(
                self._account, self._target.name, payload, asynchronous=not self._waits
            )
            jobs.append(result_of(self._target.name, invoked, not self._waits).job_id)

        failure = None
        try:
            retrying(call, _is_busy, 900)
        except (CloudError, FunctionFailed) as exc:
            failure = self._failed(item, exc)
        else:
            failures.forget(self._account, self._target, item.failed)
        with self._lock:
            self._done[failure is None] += 1
            self._on_progress(Progress(self._done[True], self._done[False], self._total))
        return failure or jobs[0]

    def _failed(self, item: Item, exc: CloudError | FunctionFailed) -> Failure:
        """Lambda keeps no record of a synchronous call, nor of one that it did not take."""
        run_id = getattr(exc, "request_id", "") or str(uuid.uuid4())
        if not item.failed:
            record = Failed(
                function=self._target.name,
                kind="invocation",
                run_id=run_id,
                event=self._kept(item),
                error_type=exc.code if isinstance(exc, CloudError) else "FunctionFailed",
                reason=str(exc),
                exit_code=failures.exit_code_in(str(exc)),
                log_tail=getattr(exc, "log_tail", ""),
                attempts=1,
                time=instant(time.time()),
            )
            failures.keep(self._account, self._target, record)
        return Failure(item.name, run_id, failures.exit_code_in(str(exc)), str(exc))

    def _kept(self, item: Item) -> str:
        """The event, or where it is when it is large: many may have the same script."""
        event = json.dumps(item.event).encode()
        limit = payload_limit_bytes(asynchronous=True)
        return state.fitting(self._account, self._target, event, limit).decode()


def _is_busy(error: CloudError) -> bool:
    return error.code in ("TooManyRequestsException", "ThrottlingException")
