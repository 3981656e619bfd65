"""Multi-node parallel jobs of the local Batch, as boto3 sees them; containers are processes."""

import json

import pytest
from botocore.exceptions import ClientError

from scar_local.scheduler import Host
from tests.doubles.batch_world import a_container, opener

TELL = "env | grep ^AWS_BATCH_JOB | grep -v ATTEMPT | sort"


@pytest.fixture
def world(tmp_path):
    with opener(tmp_path)(host=Host(8, 8000)) as world:
        world.set_up(16)
        yield world


def _register(world, script="true", count=3, main=0, ranges=None, **more):
    ranges = ranges or [{"targetNodes": "0:", "container": a_container(script)}]
    world.client.register_job_definition(
        jobDefinitionName="jd",
        type="multinode",
        nodeProperties={"numNodes": count, "mainNode": main, "nodeRangeProperties": ranges},
        **more,
    )


def _range(targets, script):
    return {"targetNodes": targets, "container": a_container(script)}


def _nodes(world, job, count=3):
    return world.client.describe_jobs(jobs=[f"{job}#{i}" for i in range(count)])["jobs"]


def _log(world, node):
    said: list[str] = world.log(node)
    return said


def test_every_node_learns_who_it_is_and_children_where_the_main_node_is(world):
    _register(world, f"{TELL}; [ $AWS_BATCH_JOB_NODE_INDEX != 1 ] || sleep 1", main=1)
    job = world.submit()
    assert world.finished(job)["status"] == "SUCCEEDED"
    main_ip = "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS=127.0.0.10"
    for index, node in enumerate(_nodes(world, job)):
        lines = _log(world, node)
        assert f"AWS_BATCH_JOB_ID={job}#{index}" in lines
        assert f"AWS_BATCH_JOB_NODE_INDEX={index}" in lines
        assert "AWS_BATCH_JOB_NUM_NODES=3" in lines
        assert "AWS_BATCH_JOB_MAIN_NODE_INDEX=1" in lines
        assert (main_ip in lines) == (index != 1)


def test_the_main_nodes_end_is_the_jobs_and_stops_the_others(world):
    _register(world, ranges=[_range("0", "sleep 0.5; exit 3"), _range("1:", "exec sleep 1000")])
    job = world.submit()
    done = world.finished(job)
    assert done["status"] == "FAILED"
    main, *children = _nodes(world, job)
    assert main["container"]["exitCode"] == 3
    assert main["nodeDetails"] == {"nodeIndex": 0, "isMainNode": True}
    assert [child["status"] for child in children] == ["FAILED", "FAILED"]


def test_a_child_that_ends_sets_nothing_off(world):
    _register(world, ranges=[_range("0", "sleep 0.7"), _range("1:2", "exit 9")])
    job = world.submit()
    assert world.finished(job)["status"] == "SUCCEEDED"
    assert [node["container"].get("exitCode") for node in _nodes(world, job)] == [0, 9, 9]


def test_only_the_main_nodes_failure_is_retried(world):
    script = "[ $AWS_BATCH_JOB_ATTEMPT = 2 ] || exit 5"
    ranges = [_range("0", script), _range("1:", "exit 1")]
    _register(world, ranges=ranges, retryStrategy={"attempts": 3})
    done = world.finished(world.submit())
    assert done["status"] == "SUCCEEDED"
    assert len(done["attempts"]) == 2


def test_a_nested_range_overrides_the_wider_one_and_a_submission_both(world):
    _register(world, ranges=[_range("0:", "echo wide; sleep 0.3"), _range("1:1", "echo narrow")])
    over = {"environment": [{"name": "A", "value": "b"}], "command": ["sh", "-c", "echo over $A"]}
    overrides = {
        "numNodes": 4,
        "nodePropertyOverrides": [{"targetNodes": "2:", "containerOverrides": over}],
    }
    job = world.submit(nodeOverrides=overrides)
    assert world.finished(job)["status"] == "SUCCEEDED"
    said = [_log(world, node) for node in _nodes(world, job, 4)]
    assert said == [["wide"], ["narrow"], ["over b"], ["over b"]]


def test_nodes_are_listed_by_their_job(world):
    _register(world, "sleep 0.3")
    job = world.submit()
    world.finished(job)
    listed = world.client.list_jobs(multiNodeJobId=job, jobStatus="SUCCEEDED")["jobSummaryList"]
    assert f"{job}#0" in [one["jobId"] for one in listed]
    assert listed[0]["nodeProperties"] == {"nodeIndex": 0, "isMainNode": True}
    top = world.client.list_jobs(jobQueue="jq", jobStatus="SUCCEEDED")["jobSummaryList"]
    assert [one["jobId"] for one in top] == [job]
    assert top[0]["nodeProperties"] == {"numNodes": 3}
    shown = world.client.describe_jobs(jobs=[job])["jobs"][0]
    assert shown["nodeProperties"]["mainNode"] == 0
    assert "container" not in shown


def test_the_nodes_of_a_job_are_placed_together_or_not_at_all(world):
    world.client.update_compute_environment(
        computeEnvironment="ce", computeResources={"maxvCpus": 2}
    )
    _register(world)
    job = world.submit()
    stuck = world.when(job, lambda job: "MAX_RESOURCE" in job.get("statusReason", ""))
    assert stuck["status"] == "RUNNABLE"


def test_a_job_is_terminated_with_all_its_nodes(world):
    _register(world, "exec sleep 1000")
    job = world.submit()
    world.when(job, lambda _: [n["status"] for n in _nodes(world, job)] == ["RUNNING"] * 3)
    world.client.terminate_job(jobId=f"{job}#1", reason="enough")
    done = world.finished(job)
    assert (done["status"], done["statusReason"]) == ("FAILED", "enough")
    assert {node["status"] for node in _nodes(world, job)} == {"FAILED"}


def test_an_engine_that_can_give_no_addresses_fails_the_job_and_says_why(world):
    container = {**a_container("true"), "image": "lonely:latest"}
    _register(world, ranges=[{"targetNodes": "0:", "container": container}])
    done = world.finished(world.submit())
    assert done["status"] == "FAILED"
    assert "no network can be made here" in json.dumps(done["attempts"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"main": 3}, "mainNode"),
        ({"count": 0}, "numNodes"),
        ({"ranges": [_range("0:1", "true")]}, "must account for all nodes"),
        ({"ranges": [_range("a:", "true")]}, "must be a range"),
        ({"ranges": [_range("0:7", "true")]}, "must be between 0 and 2"),
        ({"platformCapabilities": ["FARGATE"]}, "not supported on Fargate"),
    ],
)
def test_definitions_that_cannot_be_are_refused(world, changes, message):
    with pytest.raises(ClientError, match=message):
        _register(world, **changes)


@pytest.mark.parametrize(
    ("submission", "message"),
    [
        ({"containerOverrides": {"command": ["x"]}}, "containerOverrides cannot be used"),
        ({"arrayProperties": {"size": 2}}, "arrayProperties cannot be used"),
        ({"nodeOverrides": {"numNodes": 0}}, "must be greater than the main node's index"),
    ],
)
def test_submissions_that_do_not_fit_a_multinode_definition_are_refused(world, submission, message):
    _register(world)
    with pytest.raises(ClientError, match=message):
        world.submit(**submission)


SECRET = {
    "secrets": [{"name": "KEY", "valueFrom": "/key"}],
    "executionRoleArn": "arn:aws:iam::000000000000:role/r",
}


def test_every_node_has_its_secrets_and_nobody_is_told_them(world):
    world.secrets["/key"] = "hunter2"
    script = "[ ${#KEY} = 7 ] && echo yes; [ $AWS_BATCH_JOB_NODE_INDEX != 0 ] || sleep 1"
    _register(world, ranges=[{"targetNodes": "0:", "container": a_container(script, **SECRET)}])
    job = world.submit()
    assert world.finished(job)["status"] == "SUCCEEDED"
    nodes = _nodes(world, job)
    assert [_log(world, node) for node in nodes] == [["yes"]] * 3
    assert "hunter2" not in json.dumps([*nodes, world.job(job)])


def test_a_main_node_without_its_secret_fails_the_job_with_awss_words(world):
    _register(world, ranges=[{"targetNodes": "0:", "container": a_container(**SECRET)}])
    done = world.finished(world.submit())
    assert done["status"] == "FAILED"
    told = "Fetching secret data from SSM Parameter Store in eu-west-1: invalid parameters: /key"
    assert done["statusReason"] == told
