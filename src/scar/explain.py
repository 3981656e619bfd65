"""Why a job is in the state it is in, and what to do about it. Pure: decides on what was asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scar_supervisor.contract import (
    EXIT_CONFIG,
    EXIT_NODE_LOST,
    EXIT_NOT_JOINED,
    EXIT_SECRET,
    EXIT_STAGING,
)

OVERRIDES_LIMIT_CHARACTERS = 8192
"""ECS RunTask's limit for the overrides of a task, Batch's own variables included."""


@dataclass(frozen=True)
class Known:
    """What Batch tells of a job and of what it runs on."""

    job: Mapping[str, Any]
    queue: Mapping[str, Any] | None
    environments: Sequence[Mapping[str, Any]]
    ahead: int | None
    """Jobs before it in its queue; None where it is not among the first hundred."""
    failed_children: Sequence[tuple[str, str]] = ()
    """(id, reason) of some children of an array that failed."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and what to do."""

    what: str
    do: str = ""


def explain(known: Known) -> list[Finding]:
    """What is to be said of a job, the most important first; never nothing."""
    status = known.job["status"]
    if status == "SUCCEEDED":
        return [Finding("the job succeeded")]
    if status == "FAILED":
        return list(_failed(known))
    if (known.job.get("arrayProperties") or {}).get("statusSummary"):
        return list(_array(known))
    if status == "PENDING":
        return list(_pending(known))
    if status in ("STARTING", "RUNNING"):
        said = "is being started: its image is pulled" if status == "STARTING" else "runs"
        name = _function(known.job)
        return [Finding(f"the job {said}", f"`scar log -n {name} -ri {known.job['jobId']}`")]
    return list(_waiting(known))


def _array(known: Known) -> Iterator[Finding]:
    counts = known.job["arrayProperties"]["statusSummary"]
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    yield Finding(f"the array's children: {told}")
    if not counts.get("STARTING", 0) + counts.get("RUNNING", 0):
        yield from _pending(known) if counts.get("PENDING") else _waiting(known)


def _pending(known: Known) -> Iterator[Finding]:
    others = [one.get("jobId") for one in known.job.get("dependsOn") or () if one.get("jobId")]
    if others:
        yield Finding(
            f"it waits for {'job' if len(others) == 1 else 'jobs'} {', '.join(others)}",
            f"`scar explain {others[0]}`",
        )
    else:
        yield Finding("it waits for another job, or another child of its array")


def _waiting(known: Known) -> Iterator[Finding]:
    """SUBMITTED or RUNNABLE: what it may wait for, from what never ends to what will."""
    found = [finding for check in _STUCK for finding in check(known)]
    yield from found
    if said := known.job.get("statusReason"):
        yield Finding(f"Batch says: {said}")
    if not found:
        if known.ahead:
            plural = "s are" if known.ahead > 1 else " is"
            yield Finding(f"{known.ahead} job{plural} before it in the queue")
        else:
            yield Finding(
                "it is next: it waits for a free place in its compute environment",
                "an instance takes some minutes to start; if it waits much longer, check the limit"
                " of vCPUs of the account and that the subnets reach ECS and ECR",
            )


def _queue_is_off(known: Known) -> Iterator[Finding]:
    if known.queue is None:
        yield Finding("its job queue is gone", "`scar init` makes it again; submit the job again")
    elif known.queue["state"] != "ENABLED":
        yield Finding(
            f"job queue `{known.queue['jobQueueName']}` is {known.queue['state']}",
            "set `batch: {state: ENABLED}` and `scar init` again",
        )


def _environment_is_off(known: Known) -> Iterator[Finding]:
    for its in known.environments:
        name = its["computeEnvironmentName"]
        if its.get("status") == "INVALID":
            yield Finding(
                f"compute environment `{name}` is INVALID: {its.get('statusReason', '?')}",
                "mend what Batch names (role, subnets, security groups), then "
                "`scar rm` and `scar init`",
            )
        elif its.get("state") != "ENABLED":
            yield Finding(
                f"compute environment `{name}` is {its.get('state')}",
                "set `batch: {state: ENABLED}` and `scar init` again",
            )


def _environment_is_too_small(known: Known) -> Iterator[Finding]:
    vcpus = needs(known.job)["VCPU"]
    most = [(its.get("computeResources") or {}).get("maxvCpus") for its in known.environments]
    if most and all(limit is not None and limit < vcpus for limit in most):
        limit = max(one for one in most if one is not None)
        yield Finding(
            f"the job needs {vcpus:g} vCPUs, its compute environment has at most {limit}: "
            "it would wait for ever",
            "raise `batch.compute_resources.max_v_cpus`, or lower `batch.vcpus`; then `scar init`,"
            f" and `scar stop {known.job['jobId']}`",
        )


def _has_no_gpu(known: Known) -> Iterator[Finding]:
    gpus = needs(known.job)["GPU"]
    if not gpus or not known.environments:
        return
    local = any(":000000000000:" in its["computeEnvironmentArn"] for its in known.environments)
    types = {
        one
        for its in known.environments
        for one in (its.get("computeResources") or {}).get("instanceTypes") or ()
    }
    if local or types <= {"optimal", "default_x86_64", "default_arm64"}:
        yield Finding(
            f"the job needs {gpus:g} GPU{'s' if gpus > 1 else ''}, and there is none in "
            f"{'the local cloud' if local else 'instances of ' + ', '.join(sorted(types))}",
            "remove `batch.enable_gpu`"
            if local
            else "set `batch.compute_resources.instance_types`, such as [g5.xlarge]",
        )


def _overrides_are_long(known: Known) -> Iterator[Finding]:
    said = f"{known.job.get('statusReason', '')}"
    if "Overrides length must be at most" in said:
        yield Finding(
            f"what was submitted with the job is longer than the {OVERRIDES_LIMIT_CHARACTERS} "
            "characters that ECS takes",
            "send events through the function or `scar run`: large ones go through the bucket",
        )


_STUCK: tuple[Callable[[Known], Iterator[Finding]], ...] = (
    *(_queue_is_off, _environment_is_off, _environment_is_too_small, _has_no_gpu),
)


def _failed(known: Known) -> Iterator[Finding]:
    job = known.job
    if job.get("isTerminated") or job.get("isCancelled"):
        how = "terminated" if job.get("isTerminated") else "cancelled"
        yield Finding(f"the job was {how}: {job.get('statusReason') or 'no reason given'}")
        return
    if known.failed_children:
        size = job["arrayProperties"]["statusSummary"].get("FAILED", len(known.failed_children))
        yield Finding(
            f"{size} of its {job['arrayProperties']['size']} children failed, such as "
            + "; ".join(f"{child} ({why})" for child, why in known.failed_children),
            f"`scar explain {known.failed_children[0][0]}`; "
            f"`scar run -n {_function(job)} --retry-failed` runs what failed again",
        )
        return
    attempts = len(job.get("attempts") or ())
    found = [*_overrides_are_long(known), *_by_reason(job), *_by_exit_code(job)]
    if not found:
        found = [Finding(f"Batch says: {_said(job) or 'nothing'}")]
    yield from found
    if attempts > 1:
        yield Finding(f"it was tried {attempts} times")


def _said(job: Mapping[str, Any]) -> str:
    reasons = ((job.get("container") or {}).get("reason"), job.get("statusReason"))
    return "; ".join(dict.fromkeys(one for one in reasons if one))


def _by_reason(job: Mapping[str, Any]) -> Iterator[Finding]:
    said = _said(job)
    for pattern, what, do in _REASONS:
        if re.search(pattern, said):
            yield Finding(f"{what} ({said})", do.format(function=_function(job)))
            return


_REASONS = (
    (
        r"CannotPull",
        "its image could not be pulled",
        "`scar init` pushes it again; on AWS the instances or Fargate must reach ECR (NAT, a public"
        " address or VPC endpoints) and the role must be allowed to pull",
    ),
    (
        r"OutOfMemory",
        "it used more memory than it has",
        "raise `batch.memory`, then `scar init`",
    ),
    (
        r"Host EC2",
        "its instance was lost: reclaimed Spot capacity, or a machine that failed",
        "run it again; on SPOT that is to be expected",
    ),
    (
        r"exceeded timeout",
        "it took longer than its timeout",
        "raise `batch.timeout`, then `scar init`",
    ),
    (
        r"Dependent Job failed",
        "a job it waits for failed",
        "`scar ps -n {function}` shows which",
    ),
    (
        r"[Ff]etching secret data|unable to retrieve secret",
        "a secret of `batch.secrets` could not be read",
        "it must be there, in that region, and the execution role must be allowed"
        " secretsmanager:GetSecretValue or ssm:GetParameters",
    ),
    (
        r"ResourceInitializationError|AccessDenied|not authorized|assume",
        "a role lacks a permission",
        "its trust must name ecs-tasks.amazonaws.com; Fargate's execution role must read ECR and"
        " write the log",
    ),
)


def _by_exit_code(job: Mapping[str, Any]) -> Iterator[Finding]:
    last = job["attempts"][-1] if job.get("attempts") else {}
    # A job of several nodes has no container of its own: its attempts have the main node's.
    code = (job.get("container") or last.get("container") or {}).get("exitCode")
    if not code:
        return
    what = meaning(code)
    do = f"`scar log -n {_function(job)} -ri {job['jobId']}` shows what it said"
    if code == 137 and "OutOfMemory" not in _said(job):
        do = f"raise `batch.memory` if it needs more; {do}"
    yield Finding(f"exit code {code}: {what}", do)


def meaning(code: int) -> str:
    """What an exit code of a job says."""
    known = {
        EXIT_NOT_JOINED: "its nodes did not all come in time; the log names those that did not",
        EXIT_NODE_LOST: "a node was lost; the end of its log is in the job's",
        EXIT_SECRET: "its nodes have no secret: submit jobs of several nodes by the function",
        EXIT_STAGING: "its input or output could not be copied",
        EXIT_CONFIG: "its config or event could not be read",
        126: "the script or a command in it may not be executed",
        127: "a command of the script was not found in the image",
        137: "it was killed (SIGKILL): by a stop, or because it used up its memory",
        143: "it was asked to end (SIGTERM)",
    }
    if code in known:
        return known[code]
    if code > 128:
        return f"it ended by signal {code - 128}"
    return "the script said so"


def needs(job: Mapping[str, Any]) -> dict[str, float]:
    """The vCPUs, MiB and GPUs that a job asks for, all its nodes together."""
    container, count = job.get("container") or {}, 1
    if nodes := job.get("nodeProperties"):
        container, count = nodes["nodeRangeProperties"][0]["container"], nodes["numNodes"]
    asked = {one["type"]: float(one["value"]) for one in container.get("resourceRequirements", ())}
    return {
        "VCPU": count * (asked.get("VCPU") or float(container.get("vcpus") or 0)),
        "MEMORY": count * (asked.get("MEMORY") or float(container.get("memory") or 0)),
        "GPU": count * asked.get("GPU", 0),
    }


def _function(job: Mapping[str, Any]) -> str:
    return str(job["jobDefinition"]).rpartition("/")[2].partition(":")[0]
