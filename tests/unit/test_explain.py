"""What `scar explain` says of a job, decided on what Batch tells of it."""

from __future__ import annotations

from typing import Any

import pytest

from scar.explain import Known, explain, meaning

QUEUE = {"jobQueueName": "q", "state": "ENABLED", "computeEnvironmentOrder": []}
PREFIX = "arn:aws:batch:eu-west-1:123456789012"


def a_job(status: str = "RUNNABLE", **more: Any) -> dict[str, Any]:
    needs = {"VCPU": "2", "MEMORY": "1024", **more.pop("needs", {})}
    container = {
        "resourceRequirements": [{"type": kind, "value": value} for kind, value in needs.items()],
        **more.pop("container", {}),
    }
    definition = f"{PREFIX}:job-definition/split:3"
    job = {"jobId": "1f0c", "status": status, "jobDefinition": definition, "attempts": [{}]}
    return {**job, "container": container, **more}


def an_environment(**more: Any) -> dict[str, Any]:
    return {
        "computeEnvironmentName": "ce",
        "computeEnvironmentArn": f"{PREFIX}:compute-environment/ce",
        "state": "ENABLED",
        "status": "VALID",
        "computeResources": {"maxvCpus": 4, "instanceTypes": ["optimal"]},
        **more,
    }


def told(job: dict[str, Any], *environments: dict[str, Any], **more: Any) -> str:
    known = {"queue": QUEUE, "ahead": None, **more}
    environments = environments or (an_environment(),)
    findings = explain(Known(job=job, environments=environments, **known))
    return "\n".join(f"{one.what} | {one.do}" for one in findings)


@pytest.mark.parametrize(
    ("job", "environment", "words", "remedy"),
    [
        ({}, {"computeResources": {"maxvCpus": 1}}, "needs 2 vCPUs", "max_v_cpus"),
        ({}, {"state": "DISABLED"}, "`ce` is DISABLED", "batch: {state: ENABLED}"),
        (
            {},
            {"status": "INVALID", "statusReason": "CLIENT_ERROR - no such role"},
            "is INVALID: CLIENT_ERROR - no such role",
            "role, subnets",
        ),
        ({"needs": {"GPU": "1"}}, {}, "needs 1 GPU", "instance_types"),
        ({"statusReason": "MISCONFIGURATION:X - y"}, {}, "Batch says: MISCONFIGURATION:X", ""),
    ],
)
def test_a_job_that_never_starts_says_why_and_what_to_do(
    job: dict[str, Any], environment: dict[str, Any], words: str, remedy: str
) -> None:
    said = told(a_job(**job), an_environment(**environment))

    assert words in said
    assert remedy in said


def test_the_nodes_of_a_job_need_their_gpus_all_together() -> None:
    container = {"resourceRequirements": [{"type": "GPU", "value": "2"}]}
    nodes = {"numNodes": 3, "nodeRangeProperties": [{"container": container}]}
    here = an_environment(computeEnvironmentArn="arn:aws:batch:eu-west-1:000000000000:ce/ce")

    said = told({**a_job(), "container": None, "nodeProperties": nodes}, here)

    assert "needs 6 GPUs, and there is none in the local cloud" in said
    assert "remove `batch.enable_gpu`" in said


def test_one_environment_that_is_large_enough_is_enough() -> None:
    small = an_environment(computeResources={"maxvCpus": 1})

    assert "needs 2 vCPUs" not in told(a_job(), small, an_environment())


def test_a_queue_that_is_off_or_gone_is_told() -> None:
    assert "job queue `q` is DISABLED" in told(a_job(), queue={**QUEUE, "state": "DISABLED"})
    assert "its job queue is gone" in told(a_job(), queue=None)


def test_a_job_in_a_healthy_queue_says_how_many_are_before_it() -> None:
    assert "12 jobs are before it" in told(a_job(), ahead=12)
    assert "it is next" in told(a_job(), ahead=0)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"container": {"reason": "CannotPullContainerError: x"}}, "could not be pulled"),
        ({"container": {"reason": "OutOfMemoryError: y", "exitCode": 137}}, "`batch.memory`"),
        ({"statusReason": "Host EC2 (instance i-1) terminated."}, "its instance was lost"),
        ({"statusReason": "Job attempt duration exceeded timeout"}, "`batch.timeout`"),
        ({"statusReason": "Dependent Job failed"}, "`scar ps -n split`"),
        (
            {"statusReason": "Container Overrides length must be at most 8192"},
            "longer than the 8192 characters",
        ),
        ({"statusReason": "enough", "isTerminated": True}, "terminated: enough"),
        ({"statusReason": "changed", "isCancelled": True}, "cancelled: changed"),
        ({"container": {"exitCode": 120}}, "input or output could not be copied"),
        ({"container": {"exitCode": 121}}, "config or event could not be read"),
        ({"container": {"exitCode": 137}}, "killed (SIGKILL)"),
        ({"container": {"exitCode": 7}}, "`scar log -n split -ri 1f0c`"),
        ({"attempts": [{}, {}, {}], "container": {"exitCode": 7}}, "it was tried 3 times"),
        ({}, "Batch says: nothing"),
    ],
)
def test_a_failed_job_says_why_and_what_to_do(job: dict[str, Any], words: str) -> None:
    assert words in told(a_job("FAILED", **job))


def test_a_job_that_waits_for_another_names_it() -> None:
    said = told(a_job("PENDING", dependsOn=[{"jobId": "other"}]))

    assert "it waits for job other" in said
    assert "`scar explain other`" in said


def test_an_array_counts_its_children_and_says_why_none_runs() -> None:
    array = {"size": 3, "statusSummary": {"RUNNABLE": 3, "RUNNING": 0}}
    small = an_environment(computeResources={"maxvCpus": 1})

    said = told(a_job("PENDING", arrayProperties=array), small)

    assert "3 RUNNABLE" in said
    assert "needs 2 vCPUs" in said


def test_exit_codes_above_128_are_signals() -> None:
    assert meaning(139) == "it ended by signal 11"
    assert meaning(1) == "the script said so"


@pytest.mark.parametrize(("code", "words"), [(111, "did not all come"), (112, "a node was lost")])
def test_a_job_of_several_nodes_is_explained_by_its_main_nodes_exit_code(
    code: int, words: str
) -> None:
    job = a_job("FAILED", attempts=[{"container": {"exitCode": code}}])
    del job["container"]
    assert words in told(job)


def test_a_job_of_several_nodes_needs_what_they_need_together() -> None:
    job = a_job()
    container = job.pop("container")
    ranges = [{"targetNodes": "0:", "container": container}]
    job["nodeProperties"] = {"numNodes": 4, "mainNode": 0, "nodeRangeProperties": ranges}
    found = told(job, an_environment(computeResources={"maxvCpus": 7}))
    assert "needs 8 vCPUs" in found
