"""Compute environments, queues, definitions, listings and tags over the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from scar_local.protocol import ACCOUNT_ID
from tests.doubles.batch_world import World, a_container, needs, opener, order, resources

ARN = f"arn:aws:batch:eu-west-1:{ACCOUNT_ID}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opener(tmp_path)() as opened:
        yield opened


def refused(function: Any, **params: Any) -> str:
    """The message of the ClientException that a call ends in."""
    with pytest.raises(ClientError) as failure:
        function(**params)
    error = failure.value.response["Error"]
    assert error["Code"] == "ClientException"
    return str(error["Message"])


def create_environment(world: World, name: str = "ce", **more: Any) -> Any:
    params = {"type": "MANAGED", "computeResources": resources(), **more}
    return world.client.create_compute_environment(computeEnvironmentName=name, **params)


def test_a_compute_environment_is_described_as_it_was_created(world: World) -> None:
    created = create_environment(world, tags={"createdby": "scar"})

    arn = f"{ARN}:compute-environment/ce"
    assert created["computeEnvironmentArn"] == arn
    for reference in ("ce", arn):
        answer = world.client.describe_compute_environments(computeEnvironments=[reference])
        [found] = answer["computeEnvironments"]
        assert found["status"] == "VALID"
        assert found["state"] == "ENABLED"
        assert found["computeResources"] == resources()
        assert found["serviceRole"].endswith("/AWSServiceRoleForBatch")
        assert found["tags"] == {"createdby": "scar"}
    answer = world.client.describe_compute_environments(computeEnvironments=["other"])
    assert answer["computeEnvironments"] == []


def test_one_region_does_not_see_anothers_resources(world: World) -> None:
    world.set_up()
    url = world.client.meta.endpoint_url
    session = boto3.Session("local", "local", region_name="us-east-1")
    elsewhere = session.client("batch", endpoint_url=url)

    assert elsewhere.describe_job_queues()["jobQueues"] == []
    assert elsewhere.describe_compute_environments()["computeEnvironments"] == []
    assert len(world.client.describe_job_queues()["jobQueues"]) == 1


def test_the_second_of_a_name_is_refused(world: World) -> None:
    world.set_up()

    params = {"computeEnvironmentName": "ce", "type": "MANAGED", "computeResources": resources()}
    message = refused(world.client.create_compute_environment, **params)
    assert message == "Object already exists"
    queue = {"jobQueueName": "jq", "priority": 1, "computeEnvironmentOrder": [order("ce")]}
    assert refused(world.client.create_job_queue, **queue) == "Object already exists"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subnets": []}, "at least 1 subnet"),
        ({"securityGroupIds": []}, "at least 1 security group"),
        ({"instanceRole": ""}, "Instance role is required"),
        ({"minvCpus": 5}, "must not be greater than maxvCpus"),
        ({"maxvCpus": 0}, "maxvCpus 1 or more"),
        ({"desiredvCpus": 9}, "must be between"),
        ({"type": "SPOT"}, "spotIamFleetRole"),
        ({"type": "ECS_MANAGED_INSTANCES"}, "not in the local cloud yet"),
    ],
)
def test_compute_resources_that_aws_would_refuse_are_refused(
    world: World, change: dict[str, Any], words: str
) -> None:
    assert words in refused(
        world.client.create_compute_environment,
        computeEnvironmentName="ce",
        type="MANAGED",
        computeResources=resources(**change),
    )


def test_names_are_up_to_128_letters_digits_hyphens_and_underscores(world: World) -> None:
    create_environment(world, "a" * 128)
    for name in ("a" * 129, "with space", "dot.ted", "ü"):
        params = {"computeEnvironmentName": name, "type": "UNMANAGED"}
        assert "1 to 128" in refused(world.client.create_compute_environment, **params)


def test_things_are_deleted_in_aws_order(world: World) -> None:
    world.set_up()
    client = world.client
    assert "DISABLED" in refused(client.delete_job_queue, jobQueue="jq")
    assert "DISABLED" in refused(client.delete_compute_environment, computeEnvironment="ce")
    client.update_compute_environment(computeEnvironment="ce", state="DISABLED")
    message = refused(client.delete_compute_environment, computeEnvironment="ce")
    assert message == "Cannot delete, found existing JobQueue relationship"

    client.update_job_queue(jobQueue="jq", state="DISABLED")
    client.delete_job_queue(jobQueue="jq")
    client.delete_compute_environment(computeEnvironment="ce")

    assert client.describe_job_queues(jobQueues=["jq"])["jobQueues"] == []
    assert client.describe_compute_environments()["computeEnvironments"] == []
    assert "not found" in refused(client.delete_job_queue, jobQueue="jq")


def test_deleting_a_queue_ends_its_jobs(world: World) -> None:
    world.set_up(max_vcpus=1)
    world.register("sleep 60")
    running, waiting = world.submit(), world.submit()
    world.running(running)

    world.client.update_job_queue(jobQueue="jq", state="DISABLED")
    world.client.delete_job_queue(jobQueue="jq")

    assert world.finished(running)["status"] == "FAILED"
    assert world.finished(waiting)["status"] == "FAILED"


def test_a_disabled_queue_takes_no_jobs_and_finishes_those_it_has(world: World) -> None:
    world.set_up(max_vcpus=1)
    world.register("sleep 0.2")
    first, second = world.submit(), world.submit()
    world.client.update_job_queue(jobQueue="jq", state="DISABLED")

    params = {"jobName": "job", "jobQueue": "jq", "jobDefinition": "jd"}
    assert "not in state ENABLED" in refused(world.client.submit_job, **params)
    assert world.finished(first)["status"] == "SUCCEEDED"
    assert world.finished(second)["status"] == "SUCCEEDED"


def test_a_queue_moves_to_another_environment(world: World) -> None:
    world.set_up()
    create_environment(world, "other")

    world.client.update_job_queue(
        jobQueue="jq", priority=7, computeEnvironmentOrder=[order("other")]
    )

    [queue] = world.client.describe_job_queues(jobQueues=["jq"])["jobQueues"]
    assert queue["priority"] == 7
    [entry] = queue["computeEnvironmentOrder"]
    assert entry["computeEnvironment"] == f"{ARN}:compute-environment/other"
    assert "not found" in refused(
        world.client.update_job_queue, jobQueue="jq", computeEnvironmentOrder=[order("none")]
    )


def test_a_bare_name_means_the_latest_active_revision(world: World) -> None:
    world.set_up()
    first, second = world.register("echo one"), world.register("echo two")
    assert (first, second) == (f"{ARN}:job-definition/jd:1", f"{ARN}:job-definition/jd:2")

    assert world.job(world.submit("jd"))["jobDefinition"] == second
    assert world.job(world.submit("jd:1"))["jobDefinition"] == first
    assert world.job(world.submit(f"{ARN}:job-definition/jd"))["jobDefinition"] == second
    world.client.deregister_job_definition(jobDefinition="jd:2")
    assert world.job(world.submit("jd"))["jobDefinition"] == first
    params = {"jobName": "job", "jobQueue": "jq"}
    assert "INACTIVE" in refused(world.client.submit_job, jobDefinition="jd:2", **params)
    world.client.deregister_job_definition(jobDefinition=first)
    assert "INACTIVE" in refused(world.client.submit_job, jobDefinition="jd", **params)
    assert "not found" in refused(world.client.submit_job, jobDefinition="nothing", **params)
    assert world.register() == f"{ARN}:job-definition/jd:3"


def test_definitions_are_found_by_name_revision_arn_and_status(world: World) -> None:
    for name in ("jd", "jd", "jd2"):
        world.register(name=name)
    world.client.deregister_job_definition(jobDefinition="jd:1")

    def found(**params: Any) -> list[str]:
        answer = world.client.describe_job_definitions(**params)["jobDefinitions"]
        return [f"{d['jobDefinitionName']}:{d['revision']} {d['status']}" for d in answer]

    assert found() == ["jd:2 ACTIVE", "jd:1 INACTIVE", "jd2:1 ACTIVE"]
    assert found(jobDefinitionName="jd") == ["jd:2 ACTIVE", "jd:1 INACTIVE"]
    assert found(jobDefinitionName="jd", status="ACTIVE") == ["jd:2 ACTIVE"]
    assert found(jobDefinitions=["jd:1", f"{ARN}:job-definition/jd2:1"]) == [
        "jd:1 INACTIVE",
        "jd2:1 ACTIVE",
    ]
    assert found(jobDefinitionName="none") == []
    pages = world.client.get_paginator("describe_job_definitions").paginate(
        PaginationConfig={"PageSize": 1}
    )
    assert [len(page["jobDefinitions"]) for page in pages] == [1, 1, 1]


def test_a_definition_is_described_as_it_was_registered(world: World) -> None:
    log = {"logDriver": "awslogs", "options": {"awslogs-group": "/aws/batch/x"}}
    world.register(
        container={"logConfiguration": log, "jobRoleArn": "arn:aws:iam::1:role/r"},
        retryStrategy={"attempts": 3},
        timeout={"attemptDurationSeconds": 60},
        tags={"a": "b"},
    )

    [found] = world.client.describe_job_definitions(jobDefinitionName="jd")["jobDefinitions"]
    container = found["containerProperties"]
    assert container["logConfiguration"] == log
    assert container["command"] == ["sh", "-c", "true"]
    assert container["resourceRequirements"] == needs()
    assert container["environment"] == container["volumes"] == container["mountPoints"] == []
    assert found["retryStrategy"]["attempts"] == 3
    assert found["timeout"] == {"attemptDurationSeconds": 60}
    assert found["tags"] == {"a": "b"}


VARIABLE = {"name": "AWS_BATCH_MINE", "value": "x"}
LONG = {"name": "LONG", "value": "x" * 25_000}
RULE = {"action": "EXIT", "onExitCode": "1"}
SECRET, ROLE = {"name": "KEY", "valueFrom": "/key"}, {"executionRoleArn": "arn:aws:iam::0:role/r"}


@pytest.mark.parametrize(
    ("definition", "container", "words"),
    [
        ({"jobDefinitionName": "a b"}, {}, "1 to 128"),
        ({"type": "multinode"}, {}, "type multinode needs them"),
        ({}, {"image": ""}, "image is required"),
        ({}, {"resourceRequirements": needs()[:1]}, "must contain the memory"),
        ({}, {"resourceRequirements": needs()[1:]}, "must contain the vCPUs"),
        ({}, {"resourceRequirements": needs(memory_mib=3)}, "4 or more"),
        ({}, {"resourceRequirements": [{"type": "VCPU", "value": "0.5"}]}, "whole number"),
        ({}, {"environment": [VARIABLE]}, "cannot start with AWS_BATCH"),
        ({}, {"environment": [LONG]}, "less than 24 KiB"),
        ({}, {"privileged": True}, "not in the local cloud yet"),
        ({}, {"secrets": [SECRET]}, "must also specify a value for 'executionRoleArn'"),
        ({}, {"secrets": [SECRET] * 2, **ROLE}, "The secret name must be unique"),
        ({}, {"secrets": [{**SECRET, "name": "AWS_BATCH_X"}], **ROLE}, "AWS_BATCH"),
        (
            {},
            {"secrets": [SECRET], "environment": [{"name": "KEY", "value": "x"}], **ROLE},
            "shared with any new or existing environment variables set on the container",
        ),
        ({"retryStrategy": {"attempts": 11}}, {}, "between 1 and 10"),
        ({"retryStrategy": {"attempts": 0}}, {}, "between 1 and 10"),
        ({"retryStrategy": {"attempts": 2, "evaluateOnExit": [RULE] * 6}}, {}, "at most 5"),
        ({"retryStrategy": {"evaluateOnExit": [RULE]}}, {}, "attempts must be specified"),
        ({"timeout": {"attemptDurationSeconds": 59}}, {}, "at least 60 seconds"),
    ],
)
def test_definitions_that_aws_would_refuse_are_refused(
    world: World, definition: dict[str, Any], container: dict[str, Any], words: str
) -> None:
    params = {"jobDefinitionName": "jd", "type": "container", **definition}
    properties = a_container(**container)
    assert words in refused(
        world.client.register_job_definition, containerProperties=properties, **params
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"jobName": "-a"}, "begin with a letter or digit"),
        ({"jobName": "a" * 129}, "1 to 128"),
        ({"jobQueue": "none"}, "not found"),
        ({"arrayProperties": {"size": 1}}, "between 2 and 10,000"),
        ({"arrayProperties": {"size": 10_001}}, "between 2 and 10,000"),
        ({"nodeOverrides": {"numNodes": 2}}, "job definitions of type multinode"),
        ({"dependsOn": [{"jobId": "x"}] * 21}, "up to 20 jobs"),
        ({"dependsOn": [{"jobId": "x"}]}, "Job x in dependsOn not found"),
        ({"dependsOn": [{"type": "SEQUENTIAL"}]}, "array jobs"),
        ({"timeout": {"attemptDurationSeconds": 1}}, "at least 60 seconds"),
        ({"retryStrategy": {"attempts": 11}}, "between 1 and 10"),
        ({"containerOverrides": {"environment": [VARIABLE]}}, "cannot start with AWS_BATCH"),
        ({"containerOverrides": {"command": [""]}}, "empty string"),
        ({"containerOverrides": {"resourceRequirements": needs(0, 2)}}, "4 or more"),
        ({"parameters": {"p": "x" * 31_000}}, "Job size must be less than 30 KiB, got 31 KiB"),
    ],
)
def test_submissions_that_aws_would_refuse_are_refused(
    world: World, change: dict[str, Any], words: str
) -> None:
    world.set_up()
    world.register()
    params = {"jobName": "job", "jobQueue": "jq", "jobDefinition": "jd", **change}

    assert words in refused(world.client.submit_job, **params)
    assert world.engine.specs == []


def test_jobs_are_listed_by_status_and_by_filter_newest_first(world: World) -> None:
    world.set_up(max_vcpus=1)
    world.register("exit 3", name="fails")
    world.register("sleep 60", name="sleeps")
    failed = world.finished(world.submit("fails"))
    running = world.running(world.submit("sleeps"))
    last = world.client.submit_job(jobName="Last", jobQueue="jq", jobDefinition="fails:1")["jobId"]

    def listed(**params: Any) -> list[str]:
        answer = world.client.list_jobs(jobQueue="jq", **params)
        return [job["jobId"] for job in answer["jobSummaryList"]]

    def filtered(name: str, value: str) -> list[str]:
        return listed(filters=[{"name": name, "values": [value]}])

    everything = [last, running["jobId"], failed["jobId"]]
    assert listed() == [running["jobId"]]
    assert listed(jobStatus="FAILED") == [failed["jobId"]]
    assert filtered("JOB_NAME", "last") == [last]
    assert filtered("JOB_NAME", "*") == everything
    assert filtered("JOB_DEFINITION", "fails") == [last, failed["jobId"]]
    assert filtered("JOB_DEFINITION", "fail*") == [last, failed["jobId"]]
    assert filtered("JOB_DEFINITION", f"{ARN}:job-definition/sleeps:1") == [running["jobId"]]
    assert filtered("AFTER_CREATED_AT", "1") == everything
    assert filtered("BEFORE_CREATED_AT", "1") == []
    assert "must be one of" in refused(
        world.client.list_jobs, jobQueue="jq", filters=[{"name": "X", "values": ["y"]}]
    )
    [summary] = world.client.list_jobs(jobQueue="jq", jobStatus="FAILED")["jobSummaryList"]
    assert summary["container"] == {"exitCode": 3}
    assert summary["stoppedAt"] == failed["stoppedAt"]


def test_pages_of_jobs_hold_each_job_once(world: World) -> None:
    world.set_up()
    world.register()
    ids = [world.submit() for _ in range(7)]
    for job_id in ids:
        world.finished(job_id)

    pages = world.client.get_paginator("list_jobs").paginate(
        jobQueue="jq", jobStatus="SUCCEEDED", PaginationConfig={"PageSize": 3}
    )
    listed = [[job["jobId"] for job in page["jobSummaryList"]] for page in pages]
    assert [len(page) for page in listed] == [3, 3, 1]
    assert [job for page in listed for job in page] == ids[::-1]


def test_tags_are_kept_on_everything_and_known_to_the_tagging_service(world: World) -> None:
    world.set_up()
    definition = world.register()
    job_id = world.submit(tags={"from": "submission"})
    job = f"{ARN}:job/{job_id}"
    world.finished(job_id)
    others = [f"{ARN}:compute-environment/ce", f"{ARN}:job-queue/jq", definition]

    for arn in (*others, job):
        world.client.tag_resource(resourceArn=arn, tags={"a": "1", "b": "2"})
        world.client.untag_resource(resourceArn=arn, tagKeys=["a", "none"])
        tags = world.client.list_tags_for_resource(resourceArn=arn)["tags"]
        assert tags["b"] == "2"
        assert "a" not in tags
    assert dict(world.batch.tagged()) == {
        **{arn: {"b": "2"} for arn in others},
        job: {"b": "2", "from": "submission"},
    }
    many = {str(n): "" for n in range(50)}
    assert "up to 50" in refused(world.client.tag_resource, resourceArn=job, tags=many)
    assert "not found" in refused(
        world.client.list_tags_for_resource, resourceArn=f"{ARN}:job-queue/none"
    )


def test_an_unknown_job_is_left_out_of_descriptions_and_cannot_be_ended(world: World) -> None:
    assert world.client.describe_jobs(jobs=["none"])["jobs"] == []
    params = {"jobId": "none", "reason": "why"}
    assert "not found" in refused(world.client.terminate_job, **params)
    assert "not found" in refused(world.client.cancel_job, **params)


def test_there_are_at_most_fifty_queues_in_a_region(world: World) -> None:
    world.set_up()
    for n in range(49):
        world.client.create_job_queue(
            jobQueueName=f"q{n}", priority=1, computeEnvironmentOrder=[order("ce")]
        )

    params = {"jobQueueName": "more", "priority": 1, "computeEnvironmentOrder": [order("ce")]}
    assert "limit is 50" in refused(world.client.create_job_queue, **params)
