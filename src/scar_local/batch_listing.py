"""What ListJobs shows of a job, and which jobs it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scar_local.batch_jobs import Job, Search
from scar_local.batch_limits import refuse


def summary(job: Job) -> dict[str, Any]:
    """A job as ListJobs shows it."""
    keys = (
        *("jobArn", "jobId", "jobName", "createdAt", "status", "statusReason"),
        *("startedAt", "stoppedAt", "jobDefinition", "arrayProperties"),
    )
    summary = {key: job[key] for key in keys if key in job}
    own = {} if "nodeProperties" in job else job["container"]
    container = {k: own[k] for k in ("exitCode", "reason") if k in own}
    if container:
        summary["container"] = container
    if "nodeProperties" in job:
        summary["nodeProperties"] = {"numNodes": job["nodeProperties"]["numNodes"]}
    if "nodeDetails" in job:
        summary["nodeProperties"] = job["nodeDetails"]
    return summary | {key: True for key in ("isCancelled", "isTerminated") if job[key]}


def top_level(queue: str, wanted: Search | None, status: str | None) -> Search:
    """The jobs of a queue, arrays as one: what is wanted, or those in one state, else RUNNING."""
    wanted = wanted or Search("j.status = ?", (status or "RUNNING",))
    condition = f"j.queue = ? AND j.parent IS NULL AND {wanted.condition}"
    return Search(condition, (queue, *wanted.values))


def children(array: str, status: str | None) -> Search:
    """The children of an array in one state: RUNNING unless another is given."""
    return Search("j.parent = ? AND j.status = ?", (array, status or "RUNNING"))


def parse_filter(filters: Sequence[Mapping[str, Any]]) -> Search:
    """The jobs, in whatever state, that ListJobs's one filter lets through."""
    if len(filters) != 1 or len(filters[0].get("values") or ()) != 1:
        refuse("filters: one filter with one value can be used at a time")
    name, value = filters[0].get("name"), str(filters[0]["values"][0])
    if name == "JOB_NAME":
        return _text_filter("lower(j.name)", value.lower())
    if name == "JOB_DEFINITION":
        if value.startswith("arn:"):
            return Search("j.definition = ?", (value,))
        family = "substr(j.definition, instr(j.definition, '/') + 1)"
        return _text_filter(f"substr({family}, 1, instr({family}, ':') - 1)", value)
    if name in ("BEFORE_CREATED_AT", "AFTER_CREATED_AT") and value.isdigit():
        relation = "<" if name == "BEFORE_CREATED_AT" else ">"
        return Search(f"j.created_ms {relation} ?", (int(value),))
    refuse(
        f"filter {name} `{value}` must be one of JOB_NAME | JOB_DEFINITION | BEFORE_CREATED_AT | "
        "AFTER_CREATED_AT (milliseconds)"
    )


def _text_filter(expression: str, value: str) -> Search:
    if value.endswith("*"):
        return Search(f"substr({expression}, 1, ?) = ?", (len(value) - 1, value[:-1]))
    return Search(f"{expression} = ?", (value,))
