"""Many objects at once, and watching what becomes of them: run --all, ps, wait, stop, explain."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Cloud, s3_path, wait_for

COPY = """\
echo "working on $STORAGE_OBJECT_KEY as job ${AWS_BATCH_JOB_ID:-none}"
case "$STORAGE_OBJECT_KEY" in *bad*) exit 7;; esac
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"
"""


def a_function(name: str, mode: str = "batch", script: str = COPY, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "execution_mode": mode,
        "script": script,
        "output": [s3_path(f"work/{name}-out")],
        **more,
    }


def fill(cloud: Cloud, *names: str, prefix: str = "in") -> None:
    """Objects in a bucket that triggers nothing."""
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="source")
    for name in names:
        s3.put_object(Bucket="source", Key=f"{prefix}/{name}", Body=name.encode())


def bulk(cloud: Cloud, *arguments: str) -> dict[str, Any]:
    result = cloud.run("run", *arguments, "--json")
    return dict(json.loads(result.out.splitlines()[0])["BulkRun"])


def test_a_bulk_run_is_one_array_job_and_its_failures_can_be_run_again(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    fdl = function(a_function("many"))
    cloud.ok("init", "-f", fdl)
    fill(cloud, "a b+ü.txt", "bad.txt", *(f"{n}.txt" for n in range(4)))

    told = bulk(cloud, "-n", "many", "-ib", "source/in", "--wait")

    assert (told["Objects"], told["Succeeded"], told["Failed"]) == (6, 5, 1)
    [array] = told["Jobs"]
    [failure] = told["Failures"]
    assert failure["Object"] == "source/in/bad.txt"
    assert failure["ExitCode"] == 7
    assert failure["Id"].startswith(f"{array}:")
    assert len(cloud.keys("work")) == 5
    assert cloud.content("work", "many-out/a b+ü.txt") == "a b+ü.txt".encode()

    cloud.ok("init", "-f", function(a_function("many", script=COPY.replace("exit 7", ":"))))
    again = bulk(cloud, "-n", "many", "--retry-failed", "--wait")

    assert (again["Objects"], again["Succeeded"]) == (1, 1)
    assert len(cloud.keys("work")) == 6
    refused = cloud.run("run", "-n", "many", "--retry-failed", "--wait")
    assert (refused.code, "nothing failed" in refused.err) == (2, True)


def test_a_bulk_run_in_mode_lambda_invokes_for_every_object(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    cloud.ok("init", "-f", function(a_function("each", "lambda", input=[s3_path("source/in")])))
    cloud.client("s3").put_bucket_notification_configuration(
        Bucket="source", NotificationConfiguration={}
    )
    fill(cloud, "bad.txt", *(f"{n}.txt" for n in range(5)))
    result = cloud.run("run", "-n", "each", "--all")
    assert (result.code, "no input bucket" in result.err) == (2, True)

    absent = cloud.run("run", "-n", "each", "-ib", "no-such-bucket")
    assert (absent.code, "does not exist" in absent.err) == (2, True)
    empty = cloud.run("run", "-n", "each", "-ib", "source/none")
    assert (empty.code, "there are no objects" in empty.err) == (2, True)

    told = bulk(cloud, "-n", "each", "-ib", "source/in", "--wait", "--concurrency", "2")

    assert (told["Succeeded"], told["Failed"]) == (5, 1)
    assert told["Failures"][0]["Object"] == "source/in/bad.txt"
    again = bulk(cloud, "-n", "each", "--retry-failed", "--wait")
    assert (again["Objects"], again["Failed"]) == (1, 1)
    listed = json.loads(cloud.ok("ps", "-n", "each", "--json"))["Work"]
    states = Counter(one["state"] for one in listed)
    assert states == {"SUCCEEDED": 5, "FAILED": 2}
    assert {one["kind"] for one in listed} == {"invocation"}


def test_an_array_is_listed_waited_for_explained_and_its_log_is_one(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    cloud.ok("init", "-f", function(a_function("many")))
    fill(cloud, "bad.txt", "good.txt")

    told = bulk(cloud, "-n", "many", "-ib", "source/in")
    [array] = told["Jobs"]
    assert not told["Waited"]
    waited = cloud.run("wait", array, "--json")
    assert waited.code == 5
    assert json.loads(waited.out.splitlines()[0])["Failed"][0]["Id"] == array

    [listed] = json.loads(cloud.ok("ps", "-n", "many", "--json"))["Work"]
    assert (listed["kind"], listed["id"], listed["state"]) == ("array", array, "FAILED")
    assert "1 SUCCEEDED, 1 FAILED" in listed["why"]
    text = cloud.ok("ps", "-n", "many")
    assert text.splitlines()[0].split() == [
        *("FUNCTION", "KIND", "ID", "STATE", "AGE", "DURATION", "EXIT", "WHY")
    ]

    explained = cloud.ok("explain", array)
    assert f"1 of its 2 children failed, such as {array}:0 (exit code 7)" in explained
    child = cloud.ok("explain", f"{array}:0")
    assert "exit code 7: the script said so" in child
    for follow in ([], ["--follow"]):
        log = cloud.ok("log", "-n", "many", "-ri", array, *follow)
        assert f"working on in/bad.txt as job {array}:0" in log
        assert f"working on in/good.txt as job {array}:1" in log
    only = cloud.ok("log", "-n", "many", "-ri", f"{array}:1")
    assert "in/good.txt" in only
    assert "in/bad.txt" not in only


def test_what_runs_and_what_waits_can_be_stopped(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    cloud.ok("init", "-f", function(a_function("slow", script="echo up; sleep 60")))
    fill(cloud, *(f"{n}.txt" for n in range(8)))
    [array] = bulk(cloud, "-n", "slow", "-ib", "source/in")["Jobs"]
    batch = cloud.client("batch")

    def counts() -> dict[str, int]:
        job = batch.describe_jobs(jobs=[array])["jobs"][0]
        return dict(job["arrayProperties"]["statusSummary"])

    wait_for("a child that runs", lambda: counts()["RUNNING"])
    late = cloud.run("wait", "-n", "slow", "--timeout", "1")
    assert (late.code, "not ended after 1 s" in late.err) == (2, True)
    assert "RUNNING" in cloud.ok("explain", array)

    cloud.ok("stop", array, "--waiting")
    assert counts()["RUNNABLE"] == 0
    assert json.loads(cloud.ok("stop", "-n", "slow", "--json"))["Stopped"] == [array]

    wait_for("its end", lambda: counts()["FAILED"] == 8)
    assert "cancelled" in cloud.ok("explain", f"{array}:7")
    assert "terminated: stopped by scar stop" in cloud.ok("explain", f"{array}:0")
    assert cloud.ok("stop", "-n", "slow") == "nothing to stop\n"


def test_explain_tells_why_a_job_never_starts_or_could_not(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    plain = a_function("plain")
    needy = a_function("needy", batch={"enable_gpu": True})
    cloud.ok("init", "-f", function(plain, needy))
    fill(cloud, "1.txt")

    [stuck] = bulk(cloud, "-n", "needy", "-ib", "source/in")["Jobs"]
    told = wait_for("a reason", lambda: cloud.ok("explain", stuck))
    assert "RUNNABLE" in told
    assert "needs 1 GPU, and there is none in the local cloud" in told
    assert "remove `batch.enable_gpu`" in told
    assert cloud.run("wait", stuck, "--timeout", "1").code == 2, "it goes on waiting"
    cloud.ok("stop", stuck)

    ecr = cloud.client("ecr")
    images = ecr.list_images(repositoryName="scar")["imageIds"]
    ecr.batch_delete_image(repositoryName="scar", imageIds=images)
    [lost] = bulk(cloud, "-n", "plain", "-ib", "source/in")["Jobs"]
    assert cloud.run("wait", lost).code == 5
    told = cloud.ok("explain", lost)
    assert "its image could not be pulled" in told
    assert "it was tried 3 times" in told

    batch = cloud.client("batch")
    queue = batch.describe_jobs(jobs=[lost])["jobs"][0]["jobQueue"]
    queue_name = queue.rpartition("/")[2]
    batch.update_compute_environment(computeEnvironment=queue_name, state="DISABLED")
    [waiting] = bulk(cloud, "-n", "plain", "-ib", "source/in")["Jobs"]
    assert "is DISABLED" in cloud.ok("explain", waiting)
    unknown = cloud.run("explain", "11111111-1111-1111-1111-111111111111")
    assert (unknown.code, "does not know job" in unknown.err) == (2, True)


def test_a_killed_cloud_finishes_its_arrays_without_loss_or_repetition(
    cloud: Cloud, function: Callable[..., Path], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    script = (
        f'sleep 0.05; echo "$STORAGE_OBJECT_KEY" >> {seen}; cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR"'
    )
    cloud.ok("init", "-f", function(a_function("kept", script=script)))
    fill(cloud, *(f"{n:03}" for n in range(60)))
    [array] = bulk(cloud, "-n", "kept", "-ib", "source/in")["Jobs"]

    def counts() -> dict[str, int]:
        job = cloud.client("batch").describe_jobs(jobs=[array])["jobs"][0]
        return dict(job["arrayProperties"]["statusSummary"])

    wait_for("some to be done", lambda: counts()["SUCCEEDED"] >= 10)
    cloud.kill()
    cloud.ok("wait", array)

    assert counts()["SUCCEEDED"] == 60
    assert len(cloud.keys("work")) == 60
    batch = cloud.client("batch")
    attempts = {}
    for n in range(60):
        [job] = batch.describe_jobs(jobs=[f"{array}:{n}"])["jobs"]
        attempts[f"in/{n:03}"] = job["attempts"]
    for attempted in attempts.values():
        codes = [one["container"].get("exitCode") for one in attempted]
        assert codes[-1] == 0
        assert codes.count(0) == 1
        assert all(one["statusReason"].startswith("Host EC2") for one in attempted[:-1])


@pytest.mark.parametrize("mode", ["batch"])
def test_large_scripts_and_many_variables_stay_under_the_limits(
    cloud: Cloud, function: Callable[..., Path], tmp_path: Path, mode: str
) -> None:
    variables = {f"VARIABLE_{n}": "x" * 100 for n in range(100)}
    image = {"image": "host", "environment": {"Variables": variables}}
    cloud.ok("init", "-f", function(a_function("large", mode, container=image)))
    fill(cloud, "1", "2")
    script = tmp_path / "large.sh"
    script.write_text("echo $VARIABLE_99 | wc -c\n" + "#" * 200_000 + "\n")

    told = bulk(cloud, "-n", "large", "-ib", "source/in", "-s", str(script), "--wait")

    assert told["Succeeded"] == 2
    [array] = told["Jobs"]
    batch = cloud.client("batch")
    [job] = batch.describe_jobs(jobs=[array])["jobs"]
    assert len(json.dumps(job["container"]["environment"])) < 1024
    definition = batch.describe_job_definitions(jobDefinitionName="large", status="ACTIVE")
    assert len(json.dumps(definition["jobDefinitions"][0])) < 4096
    assert "101" in cloud.ok("log", "-n", "large", "-ri", array)


def test_an_event_of_one_megabyte_reaches_its_job_by_reference(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    script = 'wc -c < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/size"'
    cloud.ok("init", "-f", function(a_function("big", script=script)))
    event = json.dumps({"data": "x" * 1_000_000})

    cloud.client("lambda").invoke(FunctionName="big", InvocationType="Event", Payload=event)
    wait_for("the job", lambda: "big-out/size" in cloud.keys("work"))

    assert int(cloud.content("work", "big-out/size")) == len(event)
    [listed] = [
        one
        for one in json.loads(cloud.ok("ps", "-n", "big", "--json"))["Work"]
        if one["kind"] == "job"
    ]
    [job] = cloud.client("batch").describe_jobs(jobs=[listed["id"]])["jobs"]
    assert len(json.dumps(job["container"]["environment"])) < 1024


def test_changes_of_state_can_be_read_as_eventbridge_sends_them(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    cloud.ok("init", "-f", function(a_function("told")))
    fill(cloud, "1")
    [job] = bulk(cloud, "-n", "told", "-ib", "source/in", "--wait")["Jobs"]

    url = f"{cloud.status['url']}/_scar/batch/changes?after=0&job={job}"
    with urllib.request.urlopen(url) as answer:
        told = json.load(answer)

    states = [event["detail"]["status"] for event in told["events"]]
    assert states == ["SUBMITTED", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED"]
    assert {event["detail-type"] for event in told["events"]} == {"Batch Job State Change"}


def test_a_failed_script_is_run_again_only_where_the_fdl_says_so(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    script = 'echo "attempt $AWS_BATCH_JOB_ATTEMPT"; test "$AWS_BATCH_JOB_ATTEMPT" = 2'
    once = a_function("once", script=script)
    twice = a_function("twice", script=script, batch={"retry": 1, "timeout": 60})
    cloud.ok("init", "-f", function(once, twice))
    fill(cloud, "1")

    assert bulk(cloud, "-n", "once", "-ib", "source/in", "--wait")["Failed"] == 1
    told = bulk(cloud, "-n", "twice", "-ib", "source/in", "--wait")

    assert told["Succeeded"] == 1
    log = cloud.ok("log", "-n", "twice", "-ri", told["Jobs"][0])
    assert "attempt 1" in log
    assert "attempt 2" in log


def test_a_manifest_is_never_taken_for_an_input(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    whole = {"input": [s3_path("both-in-one")], "deployment": {"bucket": "both-in-one"}}

    refused = cloud.run("init", "-f", function(a_function("loop", **whole)))

    assert refused.code == 2
    assert "the input takes in `.scar/` of bucket `both-in-one`" in refused.err
