"""Jobs over the wire: boto3 and the real Logs service, containers as real processes."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.batch_world import TIMEOUT_S, Opener, World, needs, opener


@pytest.fixture
def open_world(tmp_path: Path) -> Opener:
    return opener(tmp_path)


@pytest.fixture
def world(open_world: Opener) -> Iterator[World]:
    with open_world(min_timeout_s=1) as opened:
        opened.set_up()
        yield opened


def test_a_job_that_exits_0_succeeds_and_its_log_is_in_cloudwatch(world: World) -> None:
    job = world.run("echo one; echo two >&2; printf three")

    assert job["status"] == "SUCCEEDED"
    assert job["statusReason"] == "Essential container in task exited"
    assert job["container"]["exitCode"] == 0
    assert job["createdAt"] <= job["startedAt"] <= job["stoppedAt"]
    assert job["createdAt"] > 1_600_000_000_000
    [attempt] = job["attempts"]
    assert attempt["container"]["exitCode"] == 0
    assert attempt["container"]["logStreamName"] == job["container"]["logStreamName"]
    assert (attempt["startedAt"], attempt["stoppedAt"]) == (job["startedAt"], job["stoppedAt"])
    assert world.log(job) == ["one", "two", "three"]
    prefix, default, task = job["container"]["logStreamName"].split("/")
    assert (prefix, default) == ("jd", "default")
    assert len(task) == 32
    assert job["container"]["taskArn"].endswith(f"/{task}")


def test_the_exit_code_decides(world: World) -> None:
    job = world.run("exit 7")

    assert job["status"] == "FAILED"
    assert job["container"]["exitCode"] == 7
    assert len(job["attempts"]) == 1


def test_a_job_sees_its_variables_and_nothing_of_the_daemon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAEMONS_SECRET", "leak")
    given = {"environment": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    over = {"environment": [{"name": "B", "value": "two words"}, {"name": "C", "value": "ü"}]}

    job = world.run("env", definition={"container": given}, containerOverrides=over)

    seen = dict(line.split("=", 1) for line in world.log(job))
    assert (seen["A"], seen["B"], seen["C"]) == ("1", "two words", "ü")
    assert seen["AWS_BATCH_JOB_ID"] == job["jobId"]
    assert seen["AWS_BATCH_JOB_ATTEMPT"] == "1"
    assert (seen["AWS_BATCH_JQ_NAME"], seen["AWS_BATCH_CE_NAME"]) == ("jq", "ce")
    assert seen["AWS_REGION"] == seen["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert seen["AWS_ENDPOINT_URL"] == "http://here:1"
    assert "DAEMONS_SECRET" not in seen
    assert {v["name"] for v in job["container"]["environment"]} == {"A", "B", "C"}


def test_overrides_and_parameters_shape_the_command_and_the_resources(world: World) -> None:
    world.register(parameters={"word": "default", "kept": "yes"})

    job = world.finished(
        world.submit(
            parameters={"word": "given"},
            containerOverrides={
                "command": ["echo", "Ref::word", "<Ref::kept>", "Ref::unknown"],
                "resourceRequirements": [{"type": "VCPU", "value": "2"}],
            },
        )
    )

    assert world.log(job) == ["given <yes> Ref::unknown"]
    [spec] = world.engine.specs
    assert (spec.vcpus, spec.memory_mib) == (2, 64)
    assert job["parameters"] == {"word": "given", "kept": "yes"}


def test_the_deprecated_vcpus_and_memory_work_as_the_reference_uses_them(world: World) -> None:
    legacy = {"vcpus": 1, "memory": 128, "resourceRequirements": []}

    job = world.run("true", definition={"container": legacy}, containerOverrides={"memory": 256})

    assert (job["container"]["vcpus"], job["container"]["memory"]) == (1, 256)
    assert world.engine.specs[0].memory_mib == 256


def test_a_definition_says_where_the_log_goes(world: World) -> None:
    options = {"awslogs-group": "/aws/batch/mine", "awslogs-stream-prefix": "pre"}
    log = {"logConfiguration": {"logDriver": "awslogs", "options": options}}

    job = world.run("echo here", definition={"container": log})

    assert job["container"]["logStreamName"].startswith("pre/default/")
    assert world.log(job, "/aws/batch/mine") == ["here"]


def test_the_log_can_be_read_while_the_job_runs(world: World) -> None:
    world.register("echo first; sleep 30")
    job = world.running(world.submit())

    until = time.monotonic() + TIMEOUT_S
    while world.log(job) != ["first"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert world.job(job["jobId"])["status"] == "RUNNING"


def test_ten_thousand_lines_arrive_complete_and_in_order(world: World) -> None:
    job = world.run("seq 10000")

    paginator = world.log_client.get_paginator("filter_log_events")
    pages = paginator.paginate(
        logGroupName="/aws/batch/job", logStreamNames=[job["container"]["logStreamName"]]
    )
    lines = [event["message"] for page in pages for event in page["events"]]
    assert lines == [str(n) for n in range(1, 10_001)]


def test_a_failing_job_is_tried_as_often_as_it_says(world: World, tmp_path: Path) -> None:
    tries = shlex.quote(str(tmp_path / "tries"))
    script = f'echo $AWS_BATCH_JOB_ATTEMPT >> {tries}; test "$(wc -l < {tries})" = 3'

    job = world.run(script, retryStrategy={"attempts": 5})

    assert job["status"] == "SUCCEEDED"
    assert [a["container"]["exitCode"] for a in job["attempts"]] == [1, 1, 0]
    assert len({a["container"]["logStreamName"] for a in job["attempts"]}) == 3
    assert (tmp_path / "tries").read_text().split() == ["1", "2", "3"]


def test_retried_attempts_never_share_an_environment_of_one_vcpu(open_world: Opener) -> None:
    with open_world() as world:
        world.set_up(max_vcpus=1)
        world.register("sleep 0.01; exit 1")
        ids = [world.submit(retryStrategy={"attempts": 5}) for _ in range(4)]

        attempts = [a for job_id in ids for a in world.finished(job_id)["attempts"]]
        assert len(attempts) == 20
        attempts.sort(key=lambda attempt: attempt["startedAt"])
        for before, after in itertools.pairwise(attempts):
            assert before["stoppedAt"] <= after["startedAt"]


def test_a_retried_job_can_still_be_terminated(world: World) -> None:
    world.register('test "$AWS_BATCH_JOB_ATTEMPT" = 2 || exit 1; exec sleep 60')
    job_id = world.submit(retryStrategy={"attempts": 5})
    world.when(job_id, lambda job: job["status"] == "RUNNING" and len(job["attempts"]) == 1)

    world.client.terminate_job(jobId=job_id, reason="enough")

    assert world.finished(job_id)["statusReason"] == "enough"


def test_the_submission_decides_over_the_definition_how_often(world: World) -> None:
    job = world.run(
        "exit 1", definition={"retryStrategy": {"attempts": 9}}, retryStrategy={"attempts": 2}
    )

    assert (job["status"], len(job["attempts"])) == ("FAILED", 2)


def test_rules_end_a_job_before_its_attempts_are_used_up(world: World) -> None:
    rules = [{"onExitCode": "42", "action": "EXIT"}, {"onExitCode": "4*", "action": "RETRY"}]

    job = world.run("exit 42", retryStrategy={"attempts": 3, "evaluateOnExit": rules})

    assert (job["status"], len(job["attempts"])) == ("FAILED", 1)


def test_a_job_that_outlives_its_timeout_fails_and_is_not_retried(world: World) -> None:
    started = time.monotonic()
    job = world.run(
        "trap '' TERM; echo up; while true; do sleep 0.05; done",
        timeout={"attemptDurationSeconds": 1},
        retryStrategy={"attempts": 3},
    )

    assert job["status"] == "FAILED"
    assert job["statusReason"] == "Job attempt duration exceeded timeout"
    assert job["container"]["exitCode"] == 137
    assert len(job["attempts"]) == 1
    assert 1.4 < time.monotonic() - started < 5


def test_an_image_that_cannot_be_had_fails_the_attempt_with_the_reason(world: World) -> None:
    job = world.run("true", definition={"container": {"image": "missing:latest"}})

    assert job["status"] == "FAILED"
    assert job["statusReason"] == "Task failed to start"
    reason = "CannotPullContainerError: missing:latest is not in the registry"
    assert job["container"]["reason"] == job["attempts"][0]["container"]["reason"] == reason
    assert "startedAt" not in job
    assert "exitCode" not in job["container"]


def test_overrides_too_long_for_ecs_are_accepted_and_fail_when_the_job_starts(
    world: World,
) -> None:
    def with_value(length: int) -> dict[str, Any]:
        variable = {"name": "SCAR_EVENT", "value": "x" * length}
        return world.run("true", containerOverrides={"environment": [variable]})

    assert with_value(7_000)["status"] == "SUCCEEDED"
    job = with_value(8_000)
    assert job["status"] == "FAILED"
    assert job["statusReason"] == "Container Overrides length must be at most 8192"
    assert job["attempts"] == []


def test_two_jobs_of_one_vcpu_share_an_environment_of_one_vcpu_in_turn(
    open_world: Opener,
) -> None:
    with open_world() as world:
        world.set_up(max_vcpus=1)
        world.register("sleep 0.3")
        first, second = world.submit(), world.submit()

        world.running(first)
        assert world.job(second)["status"] == "RUNNABLE"
        one, two = world.finished(first), world.finished(second)
        assert one["stoppedAt"] <= two["startedAt"]


def test_jobs_that_fit_run_side_by_side(world: World) -> None:
    world.register("sleep 0.5")
    first, second = world.submit(), world.submit()

    one, two = world.finished(first), world.finished(second)
    assert two["startedAt"] < one["stoppedAt"]


def test_a_job_too_large_for_its_environment_waits_and_says_why_until_it_grows(
    world: World,
) -> None:
    world.register(container={"resourceRequirements": needs(vcpus=6)})
    job_id = world.submit()

    stuck = world.when(job_id, lambda job: "statusReason" in job)
    assert stuck["status"] == "RUNNABLE"
    assert stuck["statusReason"].startswith("MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE")
    world.client.update_compute_environment(
        computeEnvironment="ce", computeResources={"maxvCpus": 8}
    )
    assert world.finished(job_id)["status"] == "SUCCEEDED"  # on a host of 4: alone


def test_a_job_that_wants_a_gpu_waits_and_says_why(world: World) -> None:
    world.register(container={"resourceRequirements": needs(gpus=1)})
    job_id = world.submit()

    stuck = world.when(job_id, lambda job: "statusReason" in job)
    assert stuck["status"] == "RUNNABLE"
    assert stuck["statusReason"].startswith("MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT")
    world.client.cancel_job(jobId=job_id, reason="no GPU here")
    assert world.finished(job_id)["statusReason"] == "no GPU here"


def test_a_job_starts_after_the_jobs_it_depends_on(world: World) -> None:
    world.register("sleep 0.2")
    first = world.submit()
    second = world.submit(dependsOn=[{"jobId": first}])

    assert world.job(second)["status"] in ("SUBMITTED", "PENDING")
    one, two = world.finished(first), world.finished(second)
    assert two["status"] == "SUCCEEDED"
    assert one["stoppedAt"] <= two["startedAt"]
    late = world.submit(dependsOn=[{"jobId": first}])
    assert world.finished(late)["status"] == "SUCCEEDED"


def test_a_failed_job_fails_all_that_depend_on_it(world: World) -> None:
    world.register("sleep 0.1; exit 1")
    first = world.submit()
    second = world.submit(dependsOn=[{"jobId": first}])
    third = world.submit(dependsOn=[{"jobId": second}])

    assert world.finished(third)["statusReason"] == "Dependent Job failed"
    assert world.job(second)["status"] == "FAILED"
    assert len(world.engine.specs) == 1


def test_terminating_a_running_job_ends_it_with_the_reason_given(world: World) -> None:
    world.register("trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.02; done")
    job_id = world.submit(retryStrategy={"attempts": 3})
    job = world.running(job_id)
    while not world.log(job):
        time.sleep(0.02)

    world.client.terminate_job(jobId=job_id, reason="no longer wanted")

    job = world.finished(job_id)
    assert (job["status"], job["statusReason"]) == ("FAILED", "no longer wanted")
    assert job["isTerminated"]
    assert job["container"]["exitCode"] == 3
    assert world.log(job) == ["up", "bye"]
    assert len(job["attempts"]) == 1


def test_a_container_that_ignores_sigterm_is_killed_after_the_grace(world: World) -> None:
    world.register("trap '' TERM; echo up; while true; do sleep 0.05; done")
    job_id = world.submit()
    while not world.log(world.running(job_id)):
        time.sleep(0.02)

    world.client.terminate_job(jobId=job_id, reason="now")

    assert world.finished(job_id)["container"]["exitCode"] == 137


def test_cancelling_ends_a_waiting_job_and_leaves_a_running_one(open_world: Opener) -> None:
    with open_world() as world:
        world.set_up(max_vcpus=1)
        world.register("sleep 0.4")
        first, second, third = world.submit(), world.submit(), world.submit()
        world.running(first)

        world.client.cancel_job(jobId=first, reason="too late")
        world.client.cancel_job(jobId=second, reason="not wanted")
        world.client.terminate_job(jobId=third, reason="nor that")

        cancelled = world.job(second)
        assert (cancelled["status"], cancelled["statusReason"]) == ("FAILED", "not wanted")
        assert cancelled["isCancelled"]
        assert not cancelled["attempts"]
        assert world.job(third)["statusReason"] == "nor that"
        assert world.finished(first)["status"] == "SUCCEEDED"


def test_jobs_that_ran_when_the_process_died_are_settled_by_their_retry_strategy(
    open_world: Opener,
) -> None:
    with open_world(start=False) as crashed:
        crashed.set_up()
        crashed.register("echo up")
        once, again, ended = crashed.submit(), crashed.submit(retryStrategy={"attempts": 2}), ""
        ended = crashed.submit(retryStrategy={"attempts": 2})
        waits = crashed.submit(dependsOn=[{"jobId": again}])
        with crashed.store.write() as db:  # what a killed process leaves behind
            db.execute(
                "UPDATE batch_jobs SET status = 'RUNNING', "
                "detail = json_set(detail, '$.status', 'RUNNING', '$.startedAt', 1) "
                "WHERE id IN (?, ?, ?)",
                (once, again, ended),
            )
        crashed.client.terminate_job(jobId=ended, reason="enough")

    with open_world() as world:
        lost = world.finished(once)
        assert lost["status"] == "FAILED"
        assert lost["statusReason"].startswith("Host EC2 (instance i-")
        assert lost["statusReason"].endswith(") terminated.")
        retried = world.finished(again)
        assert retried["status"] == "SUCCEEDED"
        assert len(retried["attempts"]) == 2
        assert world.log(retried) == ["up"]
        assert world.finished(ended)["statusReason"] == "enough"
        assert world.finished(waits)["status"] == "SUCCEEDED"


def test_a_clean_stop_ends_the_containers_and_waiting_jobs_go_on_after_it(
    open_world: Opener, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    with open_world() as before:
        before.set_up(max_vcpus=1)
        before.register(f"test -e {flag} || {{ echo $$ > {flag}; exec sleep 60; }}")
        first = before.submit(retryStrategy={"attempts": 2})
        second = before.submit()
        before.running(first)
        while not (flag.exists() and flag.read_text().strip()):
            time.sleep(0.01)

    with pytest.raises(ProcessLookupError):
        os.kill(int(flag.read_text()), 0)
    with open_world() as after:
        one, two = after.finished(first), after.finished(second)
        assert (one["status"], len(one["attempts"])) == ("SUCCEEDED", 2)
        assert two["status"] == "SUCCEEDED"


def test_finished_jobs_are_forgotten_beyond_the_number_kept(open_world: Opener) -> None:
    with open_world() as before:
        before.set_up()
        before.register()
        ids = [before.submit() for _ in range(4)]
        for job_id in ids:
            before.finished(job_id)

    with open_world(keep_finished=2) as after:
        found = after.client.describe_jobs(jobs=ids)["jobs"]
        assert [job["jobId"] for job in found] == ids[2:]


def test_fifty_jobs_at_once_all_run(world: World) -> None:
    world.register("true")
    ids = [world.submit() for _ in range(50)]

    assert {world.finished(job_id)["status"] for job_id in ids} == {"SUCCEEDED"}


UNTIL_KILLED = """
import sys, threading
from pathlib import Path
from tests.doubles.batch_world import opener
with opener(Path(sys.argv[1]))() as world:
    world.set_up()
    world.register("echo $$ > pid; echo up; sleep 60")
    ids = [world.submit(), world.submit(retryStrategy={"attempts": 2})]
    for job in ids:
        world.running(job)
    print(*ids, flush=True)
    threading.Event().wait()
"""


def test_after_kill_9_no_job_is_forgotten(open_world: Opener, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = UNTIL_KILLED.replace("> pid", f">> {tmp_path}/pids")
    daemon = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    with daemon:
        assert daemon.stdout
        once, again = daemon.stdout.readline().split()
        daemon.kill()
    until = time.monotonic() + TIMEOUT_S
    while len(left := (tmp_path / "pids").read_text().split()) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    for pid in left:  # real engines see to it that their containers die with the daemon
        os.killpg(int(pid), signal.SIGKILL)

    with open_world() as world:
        lost = world.job(once)
        assert lost["status"] == "FAILED"
        assert "terminated." in lost["attempts"][0]["statusReason"]
        job = world.running(again)
        assert len(job["attempts"]) == 1
        assert world.engine.specs[0].environment["AWS_BATCH_JOB_ATTEMPT"] == "2"
