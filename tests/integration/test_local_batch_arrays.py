"""Array jobs over the wire: boto3, children as real processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.doubles.batch_world import Opener, World, opener


@pytest.fixture
def open_world(tmp_path: Path) -> Opener:
    return opener(tmp_path)


@pytest.fixture
def world(open_world: Opener) -> Iterator[World]:
    with open_world(min_timeout_s=1) as opened:
        opened.set_up()
        yield opened


def array(size: int, **more: Any) -> dict[str, Any]:
    return {"arrayProperties": {"size": size}, **more}


def children(world: World, array_id: str, status: str) -> list[dict[str, Any]]:
    pages = world.client.get_paginator("list_jobs").paginate(arrayJobId=array_id, jobStatus=status)
    return [job for page in pages for job in page["jobSummaryList"]]


def test_each_child_runs_once_with_its_index(world: World) -> None:
    world.register("echo $AWS_BATCH_JOB_ARRAY_INDEX of $AWS_BATCH_JOB_ARRAY_SIZE $AWS_BATCH_JOB_ID")

    parent = world.finished(world.submit(**array(5)))

    assert parent["status"] == "SUCCEEDED"
    summary = parent["arrayProperties"]
    assert (summary["size"], summary["statusSummary"]["SUCCEEDED"]) == (5, 5)
    assert sum(summary["statusSummary"].values()) == 5
    listed = children(world, parent["jobId"], "SUCCEEDED")
    assert [job["arrayProperties"]["index"] for job in listed] == [4, 3, 2, 1, 0]
    for index in range(5):
        child = world.job(f"{parent['jobId']}:{index}")
        assert child["arrayProperties"] == {"index": index}
        assert child["jobArn"] == f"{parent['jobArn']}:{index}"
        assert world.log(child) == [f"{index} of 5 {parent['jobId']}:{index}"]


def test_an_array_fails_when_one_child_failed_and_the_others_still_run(world: World) -> None:
    world.register("exit $((AWS_BATCH_JOB_ARRAY_INDEX == 1))")

    parent = world.finished(world.submit(**array(4)))

    assert (parent["status"], parent["statusReason"]) == ("FAILED", "Array Child Job failed")
    counts = parent["arrayProperties"]["statusSummary"]
    assert (counts["SUCCEEDED"], counts["FAILED"]) == (3, 1)
    [failed] = children(world, parent["jobId"], "FAILED")
    assert failed["jobId"] == f"{parent['jobId']}:1"
    assert failed["container"]["exitCode"] == 1


def test_retries_are_each_childs_own(world: World, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    world.register(
        f"f={mark}-$AWS_BATCH_JOB_ARRAY_INDEX; test -e $f || {{ touch $f; exit 1; }}",
        retryStrategy={"attempts": 2},
    )

    parent = world.finished(world.submit(**array(3)))

    assert parent["status"] == "SUCCEEDED"
    for index in range(3):
        assert len(world.job(f"{parent['jobId']}:{index}")["attempts"]) == 2


def test_only_arrays_not_their_children_are_listed_in_a_queue(world: World) -> None:
    world.register()
    parent = world.finished(world.submit(**array(3)))

    [listed] = world.client.list_jobs(jobQueue="jq", jobStatus="SUCCEEDED")["jobSummaryList"]
    filters = [{"name": "JOB_DEFINITION", "values": ["jd"]}]
    [filtered] = world.client.list_jobs(jobQueue="jq", filters=filters)["jobSummaryList"]

    assert listed["jobId"] == filtered["jobId"] == parent["jobId"]
    assert listed["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 3


def test_a_sequential_array_runs_in_order_and_ends_with_its_first_failure(world: World) -> None:
    world.register("exit $((AWS_BATCH_JOB_ARRAY_INDEX == 2))")

    parent = world.finished(world.submit(**array(5, dependsOn=[{"type": "SEQUENTIAL"}])))

    told = [world.job(f"{parent['jobId']}:{index}") for index in range(5)]
    assert [job["status"] for job in told] == ["SUCCEEDED", "SUCCEEDED", *["FAILED"] * 3]
    assert told[0]["stoppedAt"] <= told[1]["startedAt"]
    assert {job["statusReason"] for job in told[3:]} == {"Dependent Job failed"}
    assert not any("startedAt" in job for job in told[3:])


def test_n_to_n_children_wait_for_the_child_of_their_index(world: World) -> None:
    world.register("exit $((AWS_BATCH_JOB_ARRAY_INDEX == 0))", "first")
    world.register("true", "second")
    first = world.submit("first", **array(3))
    second = world.finished(
        world.submit("second", **array(3, dependsOn=[{"jobId": first, "type": "N_TO_N"}]))
    )

    told = [world.job(f"{second['jobId']}:{index}") for index in range(3)]
    assert [job["status"] for job in told] == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
    assert told[0]["statusReason"] == "Dependent Job failed"
    assert world.job(f"{first}:1")["stoppedAt"] <= told[1]["startedAt"]


def test_an_array_waits_for_a_job_and_a_job_for_an_array(world: World) -> None:
    world.register("sleep 0.3", "slow")
    world.register()
    first = world.submit("slow")
    middle = world.submit(**array(2, dependsOn=[{"jobId": first}]))
    last = world.submit(dependsOn=[{"jobId": middle}])

    assert world.job(f"{middle}:0")["status"] in ("SUBMITTED", "PENDING")
    done = world.finished(last)

    assert done["status"] == "SUCCEEDED"
    ends = [world.job(f"{middle}:{index}")["stoppedAt"] for index in range(2)]
    assert world.job(first)["stoppedAt"] <= world.job(f"{middle}:0")["startedAt"]
    assert max(ends) <= done["startedAt"]


def test_what_waits_for_a_failed_job_fails_with_all_its_children(world: World) -> None:
    world.register("exit 1", "bad")
    world.register()
    bad = world.submit("bad")
    parent = world.finished(world.submit(**array(3, dependsOn=[{"jobId": bad}])))

    assert (parent["status"], parent["statusReason"]) == ("FAILED", "Dependent Job failed")
    assert parent["arrayProperties"]["statusSummary"]["FAILED"] == 3


def test_terminating_an_array_ends_what_runs_and_what_waits(world: World) -> None:
    world.register("sleep 60")
    array_id = world.submit(**array(50))
    world.when(array_id, lambda job: job["arrayProperties"]["statusSummary"]["RUNNING"] == 4)

    world.client.terminate_job(jobId=array_id, reason="enough")
    parent = world.finished(array_id)

    assert (parent["statusReason"], parent["isTerminated"]) == ("enough", True)
    assert parent["arrayProperties"]["statusSummary"]["FAILED"] == 50
    assert world.job(f"{array_id}:49")["statusReason"] == "enough"


def test_cancelling_an_array_lets_run_what_runs(world: World, tmp_path: Path) -> None:
    go = tmp_path / "go"
    world.register(f"until test -e {go}; do sleep 0.05; done")
    array_id = world.submit(**array(20))
    world.when(array_id, lambda job: job["arrayProperties"]["statusSummary"]["RUNNING"] == 4)

    world.client.cancel_job(jobId=array_id, reason="changed my mind")
    go.touch()
    parent = world.finished(array_id)

    counts = parent["arrayProperties"]["statusSummary"]
    assert (counts["SUCCEEDED"], counts["FAILED"]) == (4, 16)
    assert (parent["status"], parent["statusReason"]) == ("FAILED", "changed my mind")
    assert parent["isCancelled"]


def test_one_child_can_be_terminated_alone(world: World) -> None:
    world.register("test $AWS_BATCH_JOB_ARRAY_INDEX = 0 && sleep 60; true")
    array_id = world.submit(**array(3))
    world.running(f"{array_id}:0")

    world.client.terminate_job(jobId=f"{array_id}:0", reason="stuck")
    parent = world.finished(array_id)

    assert parent["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 2
    assert world.job(f"{array_id}:0")["statusReason"] == "stuck"


def test_many_jobs_are_ended_in_one_call_and_unknown_ones_are_told(world: World) -> None:
    world.register("sleep 60")
    first, second = world.submit(), world.submit()

    answer = world.client.terminate_jobs(jobs=[first, "unknown", second], reason="all of them")

    assert answer["successful"] == [first, second]
    assert [error["job"] for error in answer["errors"]] == ["unknown"]
    assert world.finished(second)["statusReason"] == "all of them"
    assert world.client.cancel_jobs(jobs=[first], reason="again")["successful"] == [first]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dependsOn": [{"type": "SEQUENTIAL"}]}, "for array jobs"),
        (array(2, dependsOn=[{"type": "SIDEWAYS", "jobId": "x"}]), "N_TO_N | SEQUENTIAL"),
        (array(2, dependsOn=[{"type": "N_TO_N", "jobId": "{single}"}]), "an array of 2"),
        (array(2, dependsOn=[{"type": "N_TO_N", "jobId": "{array}"}]), "an array of 2"),
    ],
)
def test_dependencies_that_make_no_sense_are_refused(
    world: World, more: dict[str, Any], words: str
) -> None:
    world.register()
    ids = {"{single}": world.submit(), "{array}": world.submit(**array(3))}
    for dependency in more["dependsOn"]:
        if dependency.get("jobId") in ids:
            dependency["jobId"] = ids[dependency["jobId"]]

    with pytest.raises(ClientError, match=words.replace("|", r"\|")):
        world.submit(**more)


def test_a_snapshot_shows_the_front_of_the_queue(world: World) -> None:
    world.register("sleep 60")
    array_id = world.submit(**array(6))
    world.when(array_id, lambda job: job["arrayProperties"]["statusSummary"]["RUNNING"] == 4)

    front = world.client.get_job_queue_snapshot(jobQueue="jq")["frontOfQueue"]["jobs"]

    assert [job["jobArn"].rpartition("/")[2] for job in front] == [f"{array_id}:4", f"{array_id}:5"]
    assert all(job["earliestTimeAtPosition"] > 1_600_000_000_000 for job in front)
    world.client.terminate_job(jobId=array_id, reason="done")
    world.finished(array_id)


def test_every_change_of_state_is_recorded_as_eventbridge_tells_it(world: World) -> None:
    world.register("exit 3")
    job = world.finished(world.submit())

    told = world.batch.changes(0, job["jobId"])["events"]

    assert [event["detail"]["status"] for event in told] == [
        *("SUBMITTED", "RUNNABLE", "STARTING", "RUNNING", "FAILED")
    ]
    last = told[-1]
    assert (last["source"], last["detail-type"]) == ("aws.batch", "Batch Job State Change")
    assert last["resources"] == [job["jobArn"]]
    assert last["detail"]["statusReason"] == job["statusReason"]
    assert len({event["id"] for event in told}) == 5
    assert world.batch.changes(0, None, limit=2)["last"] == 2


def test_a_long_sequential_array_falls_as_a_whole_and_keeps_nobody_waiting(world: World) -> None:
    world.register("exit 1")

    parent = world.finished(world.submit(**array(3000, dependsOn=[{"type": "SEQUENTIAL"}])))

    assert parent["arrayProperties"]["statusSummary"]["FAILED"] == 3000


def test_an_array_goes_on_after_a_restart_and_no_child_runs_twice(
    open_world: Opener, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    with open_world() as before:
        before.set_up()
        before.register(
            f"echo $AWS_BATCH_JOB_ARRAY_INDEX >> {done}; sleep 0.02",
            retryStrategy={"attempts": 3},
        )
        array_id = before.submit(**array(60))
        before.when(array_id, lambda job: job["arrayProperties"]["statusSummary"]["SUCCEEDED"] > 9)
    with open_world() as after:
        finished = {job["jobId"] for job in children(after, array_id, "SUCCEEDED")}
        parent = after.finished(array_id)
        attempts = [len(after.job(f"{array_id}:{i}")["attempts"]) for i in range(60)]

    assert parent["status"] == "SUCCEEDED"
    runs = Counter(map(int, done.read_text().split()))
    assert set(runs) == set(range(60))
    assert all(runs[i] <= attempts[i] for i in range(60))
    assert finished


def test_finished_arrays_are_forgotten_whole(open_world: Opener) -> None:
    with open_world() as before:
        before.set_up()
        before.register()
        ids = [before.submit(**array(3)) for _ in range(3)]
        for array_id in ids:
            before.finished(array_id)
    with open_world(keep_finished=5) as after:
        known = after.client.describe_jobs(jobs=[f"{i}:2" for i in ids] + ids)["jobs"]

    assert {job["jobId"] for job in known} == {f"{i}:2" for i in ids[1:]} | set(ids[1:])
