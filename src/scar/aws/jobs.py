"""Batch: submitting jobs, looking at many of them, and ending them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from scar.aws.account import Account
from scar.aws.batch import ENDED
from scar.aws.errors import speaking_to

ARRAY_LIMIT = 10_000
"""Children of one array job (Batch service quotas)."""

DESCRIBED_AT_ONCE = 100


@dataclass(frozen=True)
class JobInfo:
    """A job, an array of jobs or a child of one, in short. Times in milliseconds."""

    id: str
    name: str
    status: str
    definition: str
    """Name of the job definition, without its revision: the function's."""
    created_ms: int
    started_ms: int | None = None
    stopped_ms: int | None = None
    exit_code: int | None = None
    reason: str = ""
    status_reason: str = ""
    size: int | None = None
    """Children of an array."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Children of an array by state."""

    @property
    def has_ended(self) -> bool:
        """Whether it is SUCCEEDED or FAILED."""
        return self.status in ENDED

    @property
    def index(self) -> int:
        """The place of a child in its array; 0 for any other job."""
        return int(self.id.partition(":")[2] or 0)

    @property
    def why(self) -> str:
        """What Batch says about its state: the container's reason, then its own."""
        return "; ".join(dict.fromkeys(one for one in (self.reason, self.status_reason) if one))


def submit(
    account: Account, name: str, queue: str, size: int, environment: Mapping[str, str]
) -> str:
    """Submit jobs of function `name`: one for size 1, else one array; the job's id."""
    array: Any = {"arrayProperties": {"size": size}} if size > 1 else {}
    variables = [{"name": key, "value": value} for key, value in environment.items()]
    with speaking_to("batch"):
        answer = account.client("batch").submit_job(
            jobName=name,
            jobQueue=queue,
            jobDefinition=name,
            containerOverrides={"environment": variables},  # type: ignore[typeddict-item]
            **array,
        )
    return answer["jobId"]


def describe(account: Account, ids: Iterable[str]) -> list[JobInfo]:
    """The jobs of these ids that Batch still knows, in the order of the ids."""
    wanted = list(ids)
    found: dict[str, JobInfo] = {}
    for start in range(0, len(wanted), DESCRIBED_AT_ONCE):
        chunk = wanted[start : start + DESCRIBED_AT_ONCE]
        with speaking_to("batch"):
            answer = account.client("batch").describe_jobs(jobs=chunk)
        found |= {its["jobId"]: _info(its) for its in answer["jobs"]}
    return [found[job_id] for job_id in wanted if job_id in found]


def detail(account: Account, job_id: str) -> dict[str, Any] | None:
    """All that Batch tells of one job; None where it does not know it."""
    with speaking_to("batch"):
        answer: Any = account.client("batch").describe_jobs(jobs=[job_id])
    return dict(answer["jobs"][0]) if answer["jobs"] else None


def jobs_of(account: Account, queue: str, function: str, limit: int) -> list[JobInfo]:
    """The newest jobs of a function in a queue, in whatever state; arrays as one."""
    wanted: Any = [{"name": "JOB_DEFINITION", "values": [function]}]
    return list(islice(_listed(account, jobQueue=queue, filters=wanted), limit))


def unfinished_jobs_of(account: Account, queue: str, function: str) -> list[JobInfo]:
    """The jobs of a function that have not ended, arrays as one, oldest first."""
    states = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
    found = {
        one.id: one
        for state in states
        for one in _listed(account, jobQueue=queue, jobStatus=state)
        if one.definition == function
    }
    return sorted(found.values(), key=lambda one: one.created_ms)


def failed_jobs_of(account: Account, queue: str, function: str) -> Iterator[JobInfo]:
    """The failed jobs of a function that Batch still knows; of a failed array its children."""
    for one in _listed(account, jobQueue=queue, jobStatus="FAILED"):
        if one.definition != function:
            continue
        if one.size:
            yield from children(account, one.id, "FAILED")
        else:
            yield one


def details(account: Account, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All that Batch tells of jobs, by id."""
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(ids), DESCRIBED_AT_ONCE):
        with speaking_to("batch"):
            answer: Any = account.client("batch").describe_jobs(
                jobs=ids[start : start + DESCRIBED_AT_ONCE]
            )
        found |= {its["jobId"]: its for its in answer["jobs"]}
    return found


def children(account: Account, array_id: str, status: str) -> Iterator[JobInfo]:
    """The children of an array in one state."""
    return _listed(account, arrayJobId=array_id, jobStatus=status)


def terminate(account: Account, ids: Sequence[str], reason: str) -> None:
    """End jobs in any state."""
    for job_id in ids:
        with speaking_to("batch"):
            account.client("batch").terminate_job(jobId=job_id, reason=reason)


def cancel(account: Account, ids: Sequence[str], reason: str) -> None:
    """End jobs that do not run yet; nothing happens to the others."""
    for job_id in ids:
        with speaking_to("batch"):
            account.client("batch").cancel_job(jobId=job_id, reason=reason)


def queue_detail(account: Account, queue: str) -> dict[str, Any] | None:
    """A job queue as Batch describes it, by name or ARN."""
    with speaking_to("batch"):
        found: Any = account.client("batch").describe_job_queues(jobQueues=[queue])["jobQueues"]
    return dict(found[0]) if found else None


def environment_details(account: Account, queue: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The compute environments of a queue, in the order that Batch tries them."""
    order = sorted(queue["computeEnvironmentOrder"], key=lambda entry: entry["order"])
    arns = [entry["computeEnvironment"] for entry in order]
    with speaking_to("batch"):
        answer: Any = account.client("batch").describe_compute_environments(
            computeEnvironments=arns
        )
    by_arn = {one["computeEnvironmentArn"]: dict(one) for one in answer["computeEnvironments"]}
    return [by_arn[arn] for arn in arns if arn in by_arn]


def front_of_queue(account: Account, queue: str) -> list[str]:
    """Ids of the first RUNNABLE jobs of a queue, in the order they will start."""
    with speaking_to("batch"):
        answer = account.client("batch").get_job_queue_snapshot(jobQueue=queue)
    front = answer.get("frontOfQueue", {}).get("jobs", [])
    return [one["jobArn"].rpartition("/")[2] for one in front]


def _listed(account: Account, **asked: Any) -> Iterator[JobInfo]:
    with speaking_to("batch"):
        pages = account.client("batch").get_paginator("list_jobs").paginate(**asked)
        for page in pages:
            for its in page["jobSummaryList"]:
                yield _info(its)


def _info(its: Mapping[str, Any]) -> JobInfo:
    container = its.get("container") or {}
    array = its.get("arrayProperties") or {}
    definition = str(its.get("jobDefinition", "")).rpartition("/")[2]
    is_parent = array.get("index") is None and array.get("size") is not None
    return JobInfo(
        id=its["jobId"],
        name=its["jobName"],
        status=its["status"],
        definition=definition.partition(":")[0],
        created_ms=its.get("createdAt", 0),
        started_ms=its.get("startedAt"),
        stopped_ms=its.get("stoppedAt"),
        exit_code=container.get("exitCode"),
        reason=container.get("reason", ""),
        status_reason=its.get("statusReason", ""),
        size=array["size"] if is_parent else None,
        counts=array.get("statusSummary") or {},
    )
