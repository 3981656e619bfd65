"""Run a function for every object of its input: one array job, or many invocations.

What is to be done is a manifest in the deployment bucket (`.scar/arrays/<function>/`), one event a
line; what became of it is remembered beside (`.scar/runs/<function>.json`), for `--retry-failed`.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus, unquote_plus

from scar import state
from scar.aws import jobs as batch
from scar.aws.account import Account
from scar.aws.batch import JobDefinitions, pause_s
from scar.aws.buckets import BucketTriggers
from scar.aws.errors import is_absent, speaking_to
from scar.aws.functions import buckets_of, invoke
from scar.aws.objects import ObjectInfo, objects
from scar.aws.waiting import retrying
from scar.errors import CloudError, FunctionFailed, Missing, UserError
from scar.invoke import RunResult, event_of, result_of
from scar.plan.desired import object_path
from scar.plan.limits import payload_limit_bytes
from scar.state import Target, target_of
from scar_supervisor.contract import ARRAY_VARIABLE, EVENT_VARIABLE, INLINE_EVENT_LIMIT_BYTES
from scar_supervisor.records import STATE_PREFIX, manifest, manifest_key

CONCURRENCY = 32
"""Invocations at a time, unless the user says otherwise."""

Line = dict[str, Any]
"""One event of a manifest: `{"Records": […]}` with one object."""


@dataclass(frozen=True)
class Failure:
    """One object whose run failed."""

    key: str
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
    waits: bool = False
    concurrency: int = CONCURRENCY


@dataclass(frozen=True)
class _Part:
    """Up to 10,000 objects: the manifest, and in mode `batch` the job that works on it."""

    manifest: str
    width: int
    size: int
    job: str = ""


@dataclass(frozen=True)
class _Record:
    """What is remembered of a bulk run. `failed` numbers its objects; None: not known."""

    id: str
    mode: str
    parts: tuple[_Part, ...]
    failed: tuple[int, ...] | None
    common: Mapping[str, str]


def run(
    account: Account, name: str, wanted: Wanted, on_progress: Callable[[Progress], None]
) -> Outcome:
    """Run function `name` for every object asked for.

    Raises NotDeployed, UserError where there is nothing to do, CloudError.
    """
    target = target_of(account, name)
    _check_nodes(account, target)
    if wanted.retries_failed:
        lines, common = _failed_before(account, target)
    else:
        lines = list(_lines(account, target, wanted.path))
        common = event_of(wanted.script, wanted.arguments)
    if target.mode == "batch":
        return _run_jobs(account, target, lines, common, wanted.waits, on_progress)
    return _Invocations(account, target, common, wanted, on_progress).run(lines)


def _check_nodes(account: Account, target: Target) -> None:
    """An array has children of one container each, and a job of several nodes its own secret."""
    if target.mode != "batch":
        return
    definition = JobDefinitions(account).read(target.name)
    if definition and definition.nodes:
        raise UserError(
            f"function `{target.name}` is a multi-node parallel job, which cannot be run for many "
            "objects at once",
            "`scar put` each object into its input, or `scar run` it without `--all` and `-ib`",
        )


def _lines(account: Account, target: Target, path: str | None) -> Iterator[Line]:
    """One event for each object below a path, or for each that would trigger the function."""
    count = 0
    for bucket, prefix, suffix in _places(account, target, path):
        for its in _objects(account, bucket, prefix):
            is_marker = its.key.endswith("/") and not its.size_bytes
            if is_marker or its.key.startswith(STATE_PREFIX) or not its.key.endswith(suffix):
                continue
            count += 1
            yield _event(account.region, bucket, its)
    if not count:
        where = f"`{path}`" if path else f"the input of function `{target.name}`"
        raise UserError(f"there are no objects in {where}", "`scar put` some first")


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
        yield from objects(account, bucket, prefix)
    except CloudError as exc:
        if is_absent(exc):
            raise Missing(f"bucket `{bucket}` does not exist in this account") from exc
        raise


def _event(region: str, bucket: str, its: ObjectInfo) -> Line:
    """The event that S3 would send for an object, with what a supervisor reads of it."""
    record = {
        "eventSource": "aws:s3",
        "awsRegion": region,
        "eventTime": its.modified.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "eventName": "ObjectCreated:Put",
        "s3": {
            "bucket": {"name": bucket},
            "object": {
                "key": quote_plus(its.key, safe="/"),
                "size": its.size_bytes,
                "eTag": its.etag,
            },
        },
    }
    return {"Records": [record]}


def _key(line: Line) -> str:
    """`bucket/key` of a line's object."""
    its = line["Records"][0]["s3"]
    return f"{its['bucket']['name']}/{unquote_plus(its['object']['key'])}"


# In mode `batch`: array jobs


def _run_jobs(
    account: Account,
    target: Target,
    lines: list[Line],
    common: Mapping[str, str],
    waits: bool,
    on_progress: Callable[[Progress], None],
) -> Outcome:
    environment, parts = _shared(account, target, common), _store(account, target, lines)
    record = _Record(uuid.uuid4().hex[:12], target.mode, (), None, common)
    for part in parts:
        reference = f"s3://{target.bucket}/{part.manifest}#width={part.width}"
        variables = {**environment, ARRAY_VARIABLE: reference}
        job = batch.submit(account, target.name, target.queue, part.size, variables)
        record = replace(record, parts=(*record.parts, replace(part, job=job)))
        _remember(account, target, record)
    ids = tuple(part.job for part in record.parts)
    if not waits:
        return Outcome(record.id, target.name, target.mode, len(lines), ids, waited=False)
    _wait(account, ids, len(lines), on_progress)
    failures = tuple(
        Failure(_key(lines[start + its.index]), its.id, its.exit_code, its.why)
        for start, part in _starts(record.parts)
        for its in failed_jobs(account, part.job)
    )
    return Outcome(record.id, target.name, target.mode, len(lines), ids, True, failures)


def _shared(account: Account, target: Target, common: Mapping[str, str]) -> dict[str, str]:
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
    """Invokes a function once for each line, some at a time."""

    def __init__(
        self,
        account: Account,
        target: Target,
        common: Mapping[str, str],
        wanted: Wanted,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._account, self._target, self._common = account, target, common
        self._waits, self._concurrency = wanted.waits, wanted.concurrency
        self._on_progress, self._lock = on_progress, threading.Lock()
        self._done = {True: 0, False: 0}
        self._total = 0

    def run(self, lines: list[Line]) -> Outcome:
        """All of them. Waited for, an invocation is a synchronous call: its answer tells all."""
        self._total = len(lines)
        parts = _store(self._account, self._target, lines)
        with ThreadPoolExecutor(min(self._concurrency, len(lines))) as pool:
            ends = list(pool.map(self._one, lines))
        failed = {n: its for n, its in enumerate(ends) if isinstance(its, Failure)}
        jobs = {its: n for n, its in enumerate(ends) if isinstance(its, str)}
        if jobs:
            _wait(self._account, list(jobs), self._total, lambda now: None)
            for its in batch.describe(self._account, jobs):
                if its.status == "FAILED":
                    n = jobs[its.id]
                    failed[n] = Failure(_key(lines[n]), its.id, its.exit_code, its.why)
        known = tuple(sorted(failed)) if self._waits else None
        run_id = uuid.uuid4().hex[:12]
        record = _Record(run_id, self._target.mode, tuple(parts), known, self._common)
        _remember(self._account, self._target, record)
        return Outcome(
            record.id, self._target.name, self._target.mode, self._total, tuple(jobs),
            self._waits, tuple(failed[n] for n in sorted(failed)),
        )  # fmt: skip

    def _one(self, line: Line) -> Failure | str | None:
        """What went wrong, or the job that the event was handed over to, or None."""
        event = json.dumps({**self._common, **line}).encode()
        limit = payload_limit_bytes(asynchronous=not self._waits)
        payload = state.fitting(self._account, self._target, event, limit)
        answer: list[RunResult] = []

        def call() -> None:
            invoked = invoke(
                self._account, self._target.name, payload, asynchronous=not self._waits
            )
            answer.append(result_of(self._target.name, invoked, not self._waits))

        failure = None
        try:
            retrying(call, _is_busy, 900)
        except (CloudError, FunctionFailed) as exc:
            failure = Failure(_key(line), getattr(exc, "request_id", ""), None, str(exc))
        with self._lock:
            self._done[failure is None] += 1
            self._on_progress(Progress(self._done[True], self._done[False], self._total))
        return failure or answer[0].job_id


def _is_busy(error: CloudError) -> bool:
    return error.code in ("TooManyRequestsException", "ThrottlingException")


# What is remembered


def _store(account: Account, target: Target, lines: Sequence[Line]) -> list[_Part]:
    """Keep the manifests, of up to 10,000 lines each."""
    parts = []
    for start in range(0, len(lines), batch.ARRAY_LIMIT):
        chunk = lines[start : start + batch.ARRAY_LIMIT]
        data, width = manifest(chunk)
        key = manifest_key(data, target.name)
        state.store(account, target, key, data)
        parts.append(_Part(key, width, len(chunk)))
    return parts


def _starts(parts: Iterable[_Part]) -> Iterator[tuple[int, _Part]]:
    start = 0
    for part in parts:
        yield start, part
        start += part.size


def _remember(account: Account, target: Target, record: _Record) -> None:
    data = {**asdict(record), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    state.store(account, target, _record_key(target), json.dumps(data, indent=1).encode())


def _failed_before(account: Account, target: Target) -> tuple[list[Line], Mapping[str, str]]:
    """The lines that failed in the last bulk run, and what its events had in common."""
    record = _last_run(account, target)
    failed = record.failed
    if failed is None and record.mode != "batch":
        raise UserError(
            f"what became of the last bulk run of function `{target.name}` is not known",
            "run it with `--wait`",
        )
    if failed is None:
        failed = tuple(_failed_numbers(account, record))
    if not failed:
        raise UserError(f"nothing failed in the last bulk run of function `{target.name}`")
    lines = [
        json.loads(row)
        for part in record.parts
        for row in _get(account, target.bucket, part.manifest).splitlines()
    ]
    return [lines[n] for n in failed], record.common


def _failed_numbers(account: Account, record: _Record) -> Iterator[int]:
    known = {its.id: its for its in batch.describe(account, [p.job for p in record.parts])}
    for start, part in _starts(record.parts):
        its = known.get(part.job)
        if its is None:
            raise UserError(
                f"Batch has forgotten job {part.job} of the last bulk run",
                "it keeps ended jobs for some days: run it again for all",
            )
        if not its.has_ended:
            raise UserError(f"job {part.job} has not ended", f"`scar wait {part.job}`")
        yield from (start + child.index for child in failed_jobs(account, part.job))


def _last_run(account: Account, target: Target) -> _Record:
    try:
        data = json.loads(_get(account, target.bucket, _record_key(target)))
    except CloudError as exc:
        if is_absent(exc) or exc.code in ("NoSuchKey", "NoSuchBucket"):
            raise UserError(
                f"there was no bulk run of function `{target.name}`", "start one with `--all`"
            ) from exc
        raise
    failed = data["failed"]
    return _Record(
        data["id"],
        data["mode"],
        tuple(_Part(**part) for part in data["parts"]),
        None if failed is None else tuple(failed),
        data["common"],
    )


def _record_key(target: Target) -> str:
    return f"{STATE_PREFIX}runs/{target.name}.json"


def _get(account: Account, bucket: str, key: str) -> bytes:
    with speaking_to("s3"):
        return account.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
