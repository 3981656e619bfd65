"""Batch: compute environments, job queues, job definitions, jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scar.aws.account import Account
from scar.aws.errors import is_denied, speaking_to
from scar.aws.log_groups import StoredEvent, events
from scar.aws.waiting import retrying, until
from scar.errors import CloudError
from scar.plan.resources import (
    ComputeEnvironment,
    JobDefinition,
    JobQueue,
    RetryRule,
    batch_log_group,
)

if TYPE_CHECKING:
    from types_boto3_batch.type_defs import JobDetailTypeDef

DEFINITION_LIMIT_BYTES = 24 * 1024
"""RegisterJobDefinition (Batch service quotas)."""

PAUSE_S = 1.0
"""Between two looks at what is followed: AWS lets an account look a few times a second."""

LOCAL_PAUSE_S = 0.2

NEW_ROLE_LIMIT_S = 15
"""How long a role may be unknown to those who check it; a caller who may not pass it waits too."""

_STREAMS = 100
"""Jobs of one DescribeJobs, streams of one FilterLogEvents."""

ENDED = ("SUCCEEDED", "FAILED")


@dataclass(frozen=True)
class Job:
    """A job as Batch tells of it."""

    id: str
    name: str
    status: str
    exit_code: int | None
    reason: str
    log_streams: tuple[str, ...]
    """One an attempt that has started, oldest first."""
    log_group: str
    size: int | None = None
    """Children of an array; None for any other job."""

    @property
    def has_ended(self) -> bool:
        """Whether it is SUCCEEDED or FAILED."""
        return self.status in ENDED


class ComputeEnvironments:
    """Handler of `ComputeEnvironment`."""

    def __init__(self, account: Account) -> None:
        self._client = account.client("batch")

    def read(self, name: str) -> ComputeEnvironment | None:
        """The compute environment as it is, or None."""
        its = self._describe(name)
        if its is None:
            return None
        compute = its.get("computeResources", {})
        return ComputeEnvironment(
            name=name,
            type=compute.get("type", ""),
            max_vcpus=compute.get("maxvCpus", 0),
            min_vcpus=compute.get("minvCpus", 0),
            desired_vcpus=compute.get("desiredvCpus", 0),
            instance_types=tuple(compute.get("instanceTypes", ())),
            instance_role=compute.get("instanceRole", ""),
            subnets=tuple(compute.get("subnets", ())),
            security_group_ids=tuple(compute.get("securityGroupIds", ())),
            service_role=_own_role(its.get("serviceRole", "")),
            state=its.get("state", "ENABLED"),
            tags=dict(its.get("tags", {})),
            allocation_strategy=compute.get("allocationStrategy", ""),
        )

    def create(self, wanted: ComputeEnvironment) -> None:
        """Create the environment; returns when it is VALID.

        Raises CloudError with Batch's own reason where it becomes INVALID.
        """
        role: Any = {"serviceRole": wanted.service_role} if wanted.service_role else {}
        with _made_by_somebody_else(), speaking_to("batch"):
            self._client.create_compute_environment(
                computeEnvironmentName=wanted.name,
                type="MANAGED",
                state=_state(wanted.state),
                computeResources=_compute(wanted),
                tags=wanted.tags,
                **role,
            )
        self._settle(wanted.name)

    def update(self, wanted: ComputeEnvironment, found: ComputeEnvironment) -> None:
        """Change in place what somebody has changed; returns when it is VALID.

        What we want is in the name, so only state and tags change by our own doing.
        """
        changes = _changes(wanted, found)
        if changes:
            with speaking_to("batch"):
                self._client.update_compute_environment(computeEnvironment=wanted.name, **changes)
            self._settle(wanted.name)
        _tag(self._client, self._describe(wanted.name), "computeEnvironmentArn", wanted, found)

    def delete(self, found: ComputeEnvironment) -> None:
        """Disable and delete the environment; returns when it is gone."""
        if self._describe(found.name) is None:
            return
        with speaking_to("batch"):
            self._client.update_compute_environment(computeEnvironment=found.name, state="DISABLED")
        self._settle(found.name)

        def delete() -> None:
            with speaking_to("batch"):
                self._client.delete_compute_environment(computeEnvironment=found.name)

        # Batch frees it of its queue some seconds after the queue is gone.
        retrying(delete, _is_in_use, 120)
        until(
            lambda: self._describe(found.name) is None,
            f"deleting compute environment '{found.name}'", "batch",
        )  # fmt: skip

    def _describe(self, name: str) -> Any:
        with speaking_to("batch"):
            answer = self._client.describe_compute_environments(computeEnvironments=[name])
        return _living(answer["computeEnvironments"])

    def _settle(self, name: str) -> None:
        _settle(lambda: self._describe(name), f"compute environment '{name}'")


class JobQueues:
    """Handler of `JobQueue`."""

    def __init__(self, account: Account) -> None:
        self._account, self._client = account, account.client("batch")

    def read(self, name: str) -> JobQueue | None:
        """The job queue as it is, or None."""
        its = self._describe(name)
        if its is None:
            return None
        order = sorted(its["computeEnvironmentOrder"], key=lambda entry: entry["order"])
        arn = order[0]["computeEnvironment"] if order else ""
        return JobQueue(
            name=name,
            compute_environment=arn.rpartition("/")[2],
            priority=its["priority"],
            state=its["state"],
            tags=dict(its.get("tags", {})),
        )

    def create(self, wanted: JobQueue) -> None:
        """Create the queue; returns when it is VALID."""
        with _made_by_somebody_else(), speaking_to("batch"):
            self._client.create_job_queue(
                jobQueueName=wanted.name, tags=wanted.tags, **self._asked(wanted)
            )
        self._settle(wanted.name)

    def update(self, wanted: JobQueue, found: JobQueue) -> None:
        """Change the queue; returns when it is VALID again."""
        if self._asked(wanted) != self._asked(found):
            with speaking_to("batch"):
                self._client.update_job_queue(jobQueue=wanted.name, **self._asked(wanted))
            self._settle(wanted.name)
        _tag(self._client, self._describe(wanted.name), "jobQueueArn", wanted, found)

    def delete(self, found: JobQueue) -> None:
        """Disable and delete the queue; Batch ends the jobs in it. Returns when it is gone."""
        if self._describe(found.name) is None:
            return
        with speaking_to("batch"):
            self._client.update_job_queue(jobQueue=found.name, state="DISABLED")
        self._settle(found.name)
        with speaking_to("batch"):
            self._client.delete_job_queue(jobQueue=found.name)
        until(
            lambda: self._describe(found.name) is None,
            f"deleting job queue '{found.name}'", "batch",
        )  # fmt: skip

    def _asked(self, queue: JobQueue) -> dict[str, Any]:
        # The documentation says ARN; that names are taken too is told, not written.
        name = f"compute-environment/{queue.compute_environment}"
        arn = self._account.facts().arn("batch", name)
        return {
            "state": queue.state,
            "priority": queue.priority,
            "computeEnvironmentOrder": [{"order": 1, "computeEnvironment": arn}],
        }

    def _describe(self, name: str) -> Any:
        with speaking_to("batch"):
            answer = self._client.describe_job_queues(jobQueues=[name])
        return _living(answer["jobQueues"])

    def _settle(self, name: str) -> None:
        _settle(lambda: self._describe(name), f"job queue '{name}'")


class JobDefinitions:
    """Handler of `JobDefinition`: the latest active revision counts, the others are removed."""

    def __init__(self, account: Account) -> None:
        self._client = account.client("batch")

    def read(self, name: str) -> JobDefinition | None:
        """The latest active revision, or None."""
        its = max(self._active(name), key=lambda one: one["revision"], default=None)
        if its is None:
            return None
        nodes = its.get("nodeProperties")
        ranges = nodes.get("nodeRangeProperties", []) if nodes else []
        container = ranges[0].get("container", {}) if ranges else its.get("containerProperties", {})
        needs = {one["type"]: one["value"] for one in container.get("resourceRequirements", ())}
        options = container.get("logConfiguration", {}).get("options", {})
        return JobDefinition(
            name=name,
            image_uri=container.get("image", ""),
            job_role_arn=container.get("jobRoleArn", ""),
            vcpus=float(needs.get("VCPU", 0)),
            memory_mib=int(needs.get("MEMORY", 0)),
            gpus=int(needs.get("GPU", 0)),
            log_group=options.get("awslogs-group", ""),
            region=options.get("awslogs-region", ""),
            environment={one["name"]: one["value"] for one in container.get("environment", ())},
            secrets={one["name"]: one["valueFrom"] for one in container.get("secrets", ())},
            tags=dict(its.get("tags", {})),
            **_of_platform(its, container),
            **_of_attempts(its),
            nodes=nodes["numNodes"] if nodes else 0,
            main_node=nodes["mainNode"] if nodes else 0,
        )

    def create(self, wanted: JobDefinition) -> None:
        """Register a revision.

        Raises CloudError where it would be larger than Batch takes.
        """
        properties = _what_runs(wanted)
        timeout: Any = {}
        if wanted.timeout_s is not None:
            timeout = {"timeout": {"attemptDurationSeconds": wanted.timeout_s}}
        size = len(json.dumps(properties))
        if size > DEFINITION_LIMIT_BYTES:
            raise CloudError(
                "batch", "RegisterJobDefinition", "TooLarge",
                f"job definition '{wanted.name}' has {size} bytes, {DEFINITION_LIMIT_BYTES} fit",
            )  # fmt: skip

        def register() -> None:
            with speaking_to("batch"):
                self._client.register_job_definition(
                    jobDefinitionName=wanted.name,
                    **properties,
                    propagateTags=wanted.propagates_tags,
                    retryStrategy=_retry_strategy(wanted),
                    tags=wanted.tags,
                    **timeout,
                )

        retrying(register, _role_is_too_new, NEW_ROLE_LIMIT_S)

    def update(self, wanted: JobDefinition, found: JobDefinition) -> None:
        """Register a revision, then deregister those before it: jobs submitted keep theirs."""
        before = [one["jobDefinitionArn"] for one in self._active(wanted.name)]
        self.create(wanted)
        self._deregister(before)

    def delete(self, found: JobDefinition) -> None:
        """Deregister every revision."""
        self._deregister([one["jobDefinitionArn"] for one in self._active(found.name)])

    def _active(self, name: str) -> list[Any]:
        with speaking_to("batch"):
            pages = self._client.get_paginator("describe_job_definitions").paginate(
                jobDefinitionName=name, status="ACTIVE"
            )
            return [one for page in pages for one in page["jobDefinitions"]]

    def _deregister(self, arns: list[str]) -> None:
        for arn in arns:
            with speaking_to("batch"):
                self._client.deregister_job_definition(jobDefinition=arn)


def job(account: Account, job_id: str) -> Job | None:
    """A job by its id, or None: Batch forgets jobs some days after they ended."""
    with speaking_to("batch"):
        jobs = account.client("batch").describe_jobs(jobs=[job_id])["jobs"]
        if jobs and (nodes := jobs[0].get("nodeProperties")):
            # The log and exit code of a multi-node job are its main node's.
            main = f"{job_id}#{nodes['mainNode']}"
            node = account.client("batch").describe_jobs(jobs=[main])["jobs"]
            container = node[0].get("container", {}) if node else {}
            return _job({**jobs[0], "container": container})
    return _job(jobs[0]) if jobs else None


def follow_job(account: Account, job_id: str, on_log: Callable[[str], None]) -> Job | None:
    """Wait for a job, giving every line of its log to `on_log`; the job as it ended.

    None where Batch does not know the job.
    """
    seen: set[str] = set()
    has_ended = False
    while True:
        its = job(account, job_id)
        if its is None:
            return None
        for event in log_of(account, its):
            if event.id not in seen:
                seen.add(event.id)
                on_log(event.message.rstrip("\n"))
        # On AWS the last lines arrive a moment after the job has ended: look once more.
        if its.has_ended and (has_ended or account.is_local):
            return its
        has_ended = its.has_ended
        time.sleep(pause_s(account))


def log_of(account: Account, its: Job) -> Iterator[StoredEvent]:
    """What a job has written so far, all attempts, oldest first; of an array all children."""
    if its.size:
        ids = [f"{its.id}:{index}" for index in range(its.size)]
        for start in range(0, len(ids), _STREAMS):
            with speaking_to("batch"):
                answer = account.client("batch").describe_jobs(jobs=ids[start : start + _STREAMS])
            children = [_job(one) for one in answer["jobs"]]
            streams = [stream for child in children for stream in child.log_streams]
            group = its.log_group or batch_log_group(its.name)
            for first in range(0, len(streams), _STREAMS):
                yield from events(account, group, streams=streams[first : first + _STREAMS])
    elif its.log_streams:
        group = its.log_group or batch_log_group(its.name)
        yield from events(account, group, streams=its.log_streams)


def pause_s(account: Account) -> float:
    """How long to wait between two looks at a job or a log."""
    return LOCAL_PAUSE_S if account.is_local else PAUSE_S


def has_jobs(account: Account, queue: str) -> bool:
    """Whether any job of `queue` has not ended yet."""
    states: Any = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
    for state in states:
        with speaking_to("batch"):
            answer = account.client("batch").list_jobs(jobQueue=queue, jobStatus=state)
        if answer["jobSummaryList"]:
            return True
    return False


def _job(its: JobDetailTypeDef) -> Job:
    container, array = its.get("container", {}), its.get("arrayProperties", {})
    attempts = [one.get("container", {}) for one in its.get("attempts", [])]
    streams = [one.get("logStreamName", "") for one in [*attempts, container]]
    reasons = (container.get("reason"), its.get("statusReason"))
    options = container.get("logConfiguration", {}).get("options", {})
    return Job(
        id=its["jobId"],
        name=its["jobName"],
        status=its["status"],
        exit_code=container.get("exitCode"),
        reason="; ".join(dict.fromkeys(one for one in reasons if one)),
        log_streams=tuple(dict.fromkeys(one for one in streams if one)),
        log_group=options.get("awslogs-group", ""),
        size=None if "index" in array else array.get("size"),
    )


def _compute(wanted: ComputeEnvironment) -> Any:
    network = {"subnets": wanted.subnets, "securityGroupIds": wanted.security_group_ids}
    if wanted.is_fargate:  # where the rest of it "isn't applicable: don't specify it"
        return {"type": wanted.type, "maxvCpus": wanted.max_vcpus, **network}
    strategy = wanted.allocation_strategy
    return {
        "type": wanted.type,
        **({"allocationStrategy": strategy} if strategy else {}),
        "minvCpus": wanted.min_vcpus,
        "maxvCpus": wanted.max_vcpus,
        "desiredvCpus": wanted.desired_vcpus,
        "instanceTypes": wanted.instance_types,
        "instanceRole": wanted.instance_role,
        **network,
    }


def _changes(wanted: ComputeEnvironment, found: ComputeEnvironment) -> dict[str, Any]:
    """What UpdateComputeEnvironment must change; AWS answers what it cannot."""
    changes: dict[str, Any] = {}
    if wanted.state != found.state:
        changes["state"] = wanted.state
    before, after = _compute(found), _compute(wanted)
    moved = {k: v for k, v in after.items() if v != before.get(k) and k != "desiredvCpus"}
    if moved:
        changes["computeResources"] = moved
    return changes


def _what_runs(wanted: JobDefinition) -> Any:
    """The kind of job, and its container; of a multi-node job the same on every node."""
    if not wanted.nodes:
        return {
            "type": "container",
            "containerProperties": _container(wanted),
            "platformCapabilities": [wanted.platform],
        }
    every = {"targetNodes": "0:", "container": _container(wanted)}
    nodes = {
        "numNodes": wanted.nodes,
        "mainNode": wanted.main_node,
        "nodeRangeProperties": [every],
    }
    return {"type": "multinode", "nodeProperties": nodes}


def _container(wanted: JobDefinition) -> Any:
    vcpus = f"{wanted.vcpus:g}"
    needs = {"VCPU": vcpus, "MEMORY": wanted.memory_mib, "GPU": wanted.gpus}
    properties: dict[str, Any] = {
        "image": wanted.image_uri,
        "command": [],
        "jobRoleArn": wanted.job_role_arn,
        "resourceRequirements": [{"type": k, "value": str(v)} for k, v in needs.items() if v],
        "environment": [{"name": k, "value": v} for k, v in sorted(wanted.environment.items())],
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {"awslogs-group": wanted.log_group, "awslogs-region": wanted.region},
        },
    }
    if wanted.secrets:
        named = sorted(wanted.secrets.items())
        properties["secrets"] = [{"name": name, "valueFrom": value} for name, value in named]
    if wanted.execution_role_arn:
        properties["executionRoleArn"] = wanted.execution_role_arn
    if wanted.shared_memory_mib is not None:
        properties["linuxParameters"] = {"sharedMemorySize": wanted.shared_memory_mib}
    if wanted.ephemeral_storage_gib is not None:
        properties["ephemeralStorage"] = {"sizeInGiB": wanted.ephemeral_storage_gib}
    if wanted.platform == "FARGATE":
        public = "ENABLED" if wanted.assigns_public_ip else "DISABLED"
        properties["networkConfiguration"] = {"assignPublicIp": public}
        properties["fargatePlatformConfiguration"] = {"platformVersion": "LATEST"}
    return properties


def _of_platform(its: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """What of a job definition depends on where its jobs run."""
    network = container.get("networkConfiguration") or {}
    is_fargate = "FARGATE" in (its.get("platformCapabilities") or ())
    return {
        "platform": "FARGATE" if is_fargate else "EC2",
        "execution_role_arn": container.get("executionRoleArn", ""),
        "shared_memory_mib": (container.get("linuxParameters") or {}).get("sharedMemorySize"),
        "ephemeral_storage_gib": (container.get("ephemeralStorage") or {}).get("sizeInGiB"),
        "assigns_public_ip": network.get("assignPublicIp") == "ENABLED",
    }


def _of_attempts(its: Mapping[str, Any]) -> dict[str, Any]:
    """What of a job definition is about its jobs' attempts, and their tags."""
    strategy = its.get("retryStrategy") or {}
    rules = tuple(
        RetryRule(
            # AWS takes either case, and gives some definitions back in lower case.
            action="RETRY" if rule["action"].upper() == "RETRY" else "EXIT",
            **{field: rule[key] for field, key in _PATTERNS.items() if key in rule},
        )
        for rule in strategy.get("evaluateOnExit") or ()
    )
    return {
        "timeout_s": (its.get("timeout") or {}).get("attemptDurationSeconds"),
        "attempts": strategy.get("attempts", 1),
        "retry_rules": rules,
        "propagates_tags": bool(its.get("propagateTags")),
    }


def _retry_strategy(wanted: JobDefinition) -> Any:
    rules = [
        {"action": rule.action}
        | {key: getattr(rule, field) for field, key in _PATTERNS.items() if getattr(rule, field)}
        for rule in wanted.retry_rules
    ]
    strategy: dict[str, Any] = {"attempts": wanted.attempts}
    return strategy | ({"evaluateOnExit": rules} if rules else {})


def _tag(client: Any, its: Mapping[str, Any] | None, arn: str, wanted: Any, found: Any) -> None:
    if its is None or wanted.tags == found.tags:
        return
    with speaking_to("batch"):
        if gone := [key for key in found.tags if key not in wanted.tags]:
            client.untag_resource(resourceArn=its[arn], tagKeys=gone)
        if wanted.tags:
            client.tag_resource(resourceArn=its[arn], tags=wanted.tags)


def _settle(describe: Callable[[], Any], what: str) -> None:
    def is_valid() -> bool:
        its = describe()
        if its is None:
            return False
        if its["status"] == "INVALID":
            raise CloudError("batch", "wait", "INVALID", f"{what}: {its.get('statusReason', '?')}")
        return bool(its["status"] == "VALID")

    until(is_valid, what, "batch")


@contextmanager
def _made_by_somebody_else() -> Iterator[None]:
    """What functions share may be made by two commands at once: the name says it is the same."""
    try:
        yield
    except CloudError as exc:
        if not (exc.code == "ClientException" and "already exists" in str(exc)):
            raise


def _living(found: Any) -> Any:
    """The one described, unless Batch is only still forgetting it."""
    return next((one for one in found if one.get("status") != "DELETED"), None)


def _own_role(arn: str) -> str:
    """The service role we gave; not the service-linked one that AWS fills in."""
    return "" if ":role/aws-service-role/" in arn else arn


_PATTERNS = {
    "on_status_reason": "onStatusReason",
    "on_reason": "onReason",
    "on_exit_code": "onExitCode",
}


def _state(state: str) -> Any:
    return state


def _role_is_too_new(error: CloudError) -> bool:
    """A role made a moment ago is not there yet for who checks that the caller may pass it
    (terraform-aws-modules/terraform-aws-ecs#415)."""
    return is_denied(error) and "iam:PassRole" in str(error)


def _is_in_use(error: CloudError) -> bool:
    return error.code == "ClientException" and "relationship" in str(error)
