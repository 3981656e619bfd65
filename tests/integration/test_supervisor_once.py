"""One effect for each version of an object, however often its event comes."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from scar_supervisor import contract, records
from scar_supervisor.contract import Burst, ObjectPath
from scar_supervisor.records import Done, Failed, Lineage
from tests.doubles.runtime_api import RuntimeApi
from tests.doubles.supervised import Cloud, Supervised, a_config, s3_event

RUNS = 'echo run >> "$RUNS"; date +%s%N > "$TMP_OUTPUT_DIR/out"'


@pytest.fixture(scope="module")
def one_cloud(tmp_path_factory):
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    yield cloud
    cloud.close()


@pytest.fixture
def cloud(one_cloud):
    one_cloud.start_over("inbox", "out", "kept")
    one_cloud.put("inbox", "a", b"content")
    return one_cloud


class World:
    """A function in as many environments as wanted, all with one script that counts its runs."""

    def __init__(self, directory, cloud: Cloud) -> None:
        self.directory, self.cloud = directory, cloud
        self.apis: list[RuntimeApi] = []
        self.supervisors: list[Supervised] = []
        self.config = a_config(
            deployment_bucket="kept", outputs=(ObjectPath("s3", "out"),), image_digest="sha256:1"
        )

    def runtime(self, script: str = RUNS, **changes: Any) -> RuntimeApi:
        self.config = replace(self.config, **changes)
        api = RuntimeApi()
        self.apis.append(api)
        self._start(script, {"AWS_LAMBDA_RUNTIME_API": api.address})
        return api

    def job(self, event: Any, job_id: str, script: str = RUNS, **told: str) -> Supervised:
        variables = {"AWS_BATCH_JOB_ID": job_id, contract.EVENT_VARIABLE: json.dumps(event)}
        return self._start(script, variables | told)

    def _start(self, script: str, told: dict[str, str]) -> Supervised:
        environment = {**self.cloud.environment, "RUNS": str(self.directory / "runs"), **told}
        place = self.directory / str(len(self.supervisors))
        self.supervisors.append(Supervised(place, self.config, script, environment))
        return self.supervisors[-1]

    @property
    def runs(self) -> int:
        counted = self.directory / "runs"
        return len(counted.read_text().splitlines()) if counted.exists() else 0

    def wait_for_lead(self) -> None:
        limit = time.monotonic() + 20
        while not any(key.endswith("/lead.json") for key in self.cloud.keys("kept")):
            assert time.monotonic() < limit
            time.sleep(0.01)

    def done(self) -> list[Done]:
        prefix = records.done_prefix("f", self.config.version)
        return [
            Done.load(self.cloud.get("kept", key).decode())
            for key in self.cloud.keys("kept")
            if key.startswith(prefix)
        ]

    def failed(self) -> list[Failed]:
        prefix = records.failed_prefix("f")
        return [
            Failed.load(self.cloud.get("kept", key).decode())
            for key in self.cloud.keys("kept")
            if key.startswith(prefix)
        ]


@pytest.fixture
def world(tmp_path, cloud):
    made = World(tmp_path, cloud)
    yield made
    for supervisor in made.supervisors:
        supervisor.close()
    for api in made.apis:
        api.close()


def event_of(sequencer: str = "01", etag: str = "e1", key: str = "a") -> dict[str, Any]:
    more = {"eTag": etag} | ({"sequencer": sequencer} if sequencer else {})
    return s3_event(("inbox", key, 7), **more)


def text_of(answered) -> str:
    assert answered.kind == "response", answered.body
    return base64.b64decode(answered.body["body"]).decode()


def test_an_event_that_comes_again_has_no_second_effect(world: World) -> None:
    api = world.runtime()
    first = api.push(event_of())
    assert api.answer(first).kind == "response"
    made = world.cloud.get("out", "out")
    assert f"is done already, by invocation {first}" in text_of(api.invoke(event_of()))
    assert world.runs == 1
    assert world.cloud.get("out", "out") == made


def test_of_five_at_once_one_works(world: World) -> None:
    apis = [world.runtime(RUNS + "; sleep 1") for _ in range(5)]
    ids = [api.push(event_of()) for api in apis]
    said = [text_of(api.answer(its)) for api, its in zip(apis, ids, strict=True)]
    assert world.runs == 1
    assert sum("is being worked on, by invocation" in text for text in said) == 4


def test_the_same_bytes_uploaded_again_are_new_work(world: World) -> None:
    api = world.runtime()
    api.invoke(event_of("0A"))
    api.invoke(event_of("0B"))
    assert world.runs == 2
    api.invoke(event_of("0A"))  # late, and covered by what came after it
    api.invoke(event_of("0B"))
    assert world.runs == 2
    assert [its.sequencer for its in world.done()] == ["0B"]


def test_a_shorter_sequencer_is_filled_up_at_its_right(world: World) -> None:
    api = world.runtime()
    api.invoke(event_of("0055"))
    api.invoke(event_of("00551"))
    assert world.runs == 2
    api.invoke(event_of("0055100"))
    assert world.runs == 2


def test_another_version_of_the_object_is_new_work(world: World) -> None:
    api = world.runtime()
    api.invoke(event_of("", "e1"))
    api.invoke(event_of("", "e2"))
    assert world.runs == 2


def test_a_run_that_asks_for_it_repeats_what_is_done(world: World) -> None:
    api = world.runtime()
    api.invoke(event_of(""))
    assert "`scar run --force` repeats it" in text_of(api.invoke(event_of("")))
    api.invoke({**event_of(""), contract.FORCE: True})
    assert world.runs == 2


def test_another_script_is_another_work_for_a_run_and_none_for_a_late_event(world: World) -> None:
    world.runtime().invoke(event_of("01"))
    changed = world.runtime(script_sha256="other")
    changed.invoke(event_of("01"))
    assert world.runs == 1
    changed.invoke(event_of(""))
    assert world.runs == 2
    own = {**event_of(""), "script": base64.b64encode(RUNS.encode()).decode()}
    changed.invoke(own)
    changed.invoke(own)
    assert world.runs == 3


def test_a_failed_attempt_leaves_the_object_to_the_next(world: World) -> None:
    api = world.runtime('echo run >> "$RUNS"; test $(wc -l < "$RUNS") -ge 2')
    first = api.push(event_of())
    assert api.answer(first).kind == "error"
    assert api.invoke(event_of()).kind == "response"  # another invocation need not wait
    assert world.runs == 2


def test_after_the_third_attempt_the_event_is_kept_with_its_reason(world: World) -> None:
    api = world.runtime("echo why it failed; exit 7")
    event = event_of()
    first = api.push(event)
    assert api.answer(first).kind == "error"
    for _ in range(2):
        assert world.failed() == []
        api.push(event, request_id=first)
        assert api.answer(first).kind == "error"
    [record] = world.failed()
    assert (record.run_id, record.kind, record.attempts) == (first, "invocation", 3)
    assert (record.error_type, record.exit_code) == ("ScriptFailed", 7)
    assert json.loads(record.event) == event
    assert "why it failed" in record.log_tail


def test_an_attempt_that_repeats_another_sends_nothing_twice(world: World) -> None:
    fails = 'echo same > "$TMP_OUTPUT_DIR/a"; echo run >> "$RUNS"; sleep 0.0$(wc -l < "$RUNS")'
    api = world.runtime(fails, outputs=(ObjectPath("s3", "out"), ObjectPath("s3", "nowhere")))
    first = api.push(event_of())
    assert api.answer(first).kind == "error"  # the second output has no bucket
    sent = world.cloud.client.head_object(Bucket="out", Key="a")["Metadata"]
    world.cloud.client.create_bucket(Bucket="nowhere")
    api.push(event_of(), request_id=first)
    assert api.answer(first).kind == "response", world.supervisors[0].log
    assert world.cloud.get("nowhere", "a") == b"same\n"
    assert world.cloud.client.head_object(Bucket="out", Key="a")["Metadata"] == sent
    assert "s3://out/a is there already" in world.supervisors[0].log


def test_outputs_say_what_made_them(world: World) -> None:
    api = world.runtime(script_sha256="5c")
    request_id = api.push(event_of(etag="e1"))
    api.answer(request_id)
    metadata = world.cloud.client.head_object(Bucket="out", Key="out")["Metadata"]
    its = Lineage.of(metadata)
    assert its is not None
    assert (its.function, its.version, its.script) == ("f", world.config.version, "5c")
    assert (its.run, its.image) == (f"invocation:{request_id}", "sha256:1")
    assert (its.input, its.input_version) == ("s3://inbox/a", "etag:e1")
    [done] = world.done()
    assert done.lineage == its
    assert done.outputs == ("s3://out/out",)
    assert Done.load(world.cloud.get(its.bucket, its.record).decode()) == done


def test_a_key_too_long_for_metadata_is_in_the_record(world: World) -> None:
    key = "é" * 500
    world.cloud.put("inbox", key, b"content")
    world.runtime().invoke(event_of(key=key))
    its = Lineage.of(world.cloud.client.head_object(Bucket="out", Key="out")["Metadata"])
    assert its is not None
    assert its.input == ""
    assert Done.load(world.cloud.get(its.bucket, its.record).decode()).input == f"s3://inbox/{key}"


def test_where_nothing_can_be_kept_the_work_is_done_all_the_same(world: World) -> None:
    api = world.runtime(deployment_bucket="no-such-bucket")
    assert api.invoke(event_of()).kind == "response"
    assert "may have its effect twice" in world.supervisors[0].log


def test_a_job_takes_over_from_the_invocation_that_submitted_it(world: World) -> None:
    api = world.runtime(execution_mode="batch", job_queue="q", job_definition="f")
    request_id = api.push(event_of())
    api.answer(request_id)
    job_id = api.answer(request_id).body["headers"][contract.JOB_ID_HEADER]
    again = api.invoke(event_of())
    assert f"is being worked on, by job {job_id}" in text_of(again)
    assert again.body["headers"][contract.JOB_ID_HEADER] == job_id
    assert len(world.cloud.submitted) == 1
    job = world.job(event_of(), job_id)
    assert job.wait() == 0, job.log
    other = world.job(event_of(), "another")
    assert other.wait() == 0
    assert f"is done already, by job {job_id}: nothing to do" in other.log
    assert world.runs == 1


def test_the_main_node_of_a_job_takes_over_what_the_whole_job_was_given(world: World) -> None:
    api = world.runtime(execution_mode="batch", job_queue="q", job_definition="f")
    job_id = api.invoke(event_of()).body["headers"][contract.JOB_ID_HEADER]
    job = world.job(event_of(), f"{job_id}#0")
    assert job.wait() == 0, job.log
    assert world.runs == 1
    [done] = world.done()
    assert done.lineage.run == f"job:{job_id}"


def test_an_invocation_that_broke_off_after_submitting_finds_its_job(world: World) -> None:
    api = world.runtime(execution_mode="batch", job_queue="q", job_definition="f")
    request_id = api.push(event_of())
    api.answer(request_id)
    [key] = [key for key in world.cloud.keys("kept") if key.startswith(".scar/claims/")]
    claim = json.loads(world.cloud.get("kept", key))
    claim |= {"owner": request_id, "is_job": False, "until_ms": 1, "attempts": 1}
    world.cloud.put("kept", key, json.dumps(claim).encode())  # as if it had been killed then
    api.push(event_of(), request_id=request_id)
    job_id = api.answer(request_id).body["headers"][contract.JOB_ID_HEADER]
    assert len(world.cloud.submitted) == 1
    assert job_id.endswith("0001")


def test_the_work_of_a_job_that_has_ended_without_a_word_is_done_again(world: World) -> None:
    api = world.runtime(execution_mode="batch", job_queue="q", job_definition="f")
    job_id = api.invoke(event_of()).body["headers"][contract.JOB_ID_HEADER]
    world.cloud.ended.add(job_id)
    api.invoke(event_of())
    assert len(world.cloud.submitted) == 2


def test_a_failed_job_keeps_its_event_after_the_last_attempt(world: World) -> None:
    world.config = replace(world.config, job_attempts=2)
    first = world.job(event_of(), "job-1:7", "exit 3", AWS_BATCH_JOB_ATTEMPT="1")
    assert first.wait() == 3
    assert world.failed() == []
    second = world.job(event_of(), "job-1:7", "exit 3", AWS_BATCH_JOB_ATTEMPT="2")
    assert second.wait() == 3
    [record] = world.failed()
    assert (record.run_id, record.exit_code, record.attempts) == ("job-1:7", 3, 2)


def test_what_a_job_has_failed_another_may_do_before_batch_says_that_it_ended(
    world: World,
) -> None:
    api = world.runtime(execution_mode="batch", job_queue="q", job_definition="f")
    job_id = api.invoke(event_of()).body["headers"][contract.JOB_ID_HEADER]
    assert world.job(event_of(), job_id, "exit 3").wait() == 3
    assert job_id not in world.cloud.ended
    assert world.job(event_of(), "another").wait() == 0
    assert world.runs == 1


def test_an_input_as_large_as_one_that_ran_out_of_time_goes_straight_to_batch(
    world: World,
) -> None:
    mode = {"execution_mode": "lambda-batch", "job_queue": "q", "job_definition": "f"}
    script = 'echo run >> "$RUNS"; case "$STORAGE_OBJECT_KEY" in slow*) sleep 60;; esac'
    api = world.runtime(script, timeout_threshold_s=1, **mode)
    for key, size in (("slow", 100), ("small", 99), ("large", 100)):
        world.cloud.put("inbox", key, b"x" * size)
    event = s3_event(("inbox", "slow", 100), eTag="1", sequencer="1")
    assert api.answer(api.push(event, 3)).kind == "response"
    assert (world.runs, len(world.cloud.submitted)) == (1, 1)
    api.invoke(s3_event(("inbox", "small", 99), eTag="2", sequencer="1"), 3)
    assert (world.runs, len(world.cloud.submitted)) == (2, 1)
    api.answer(api.push(s3_event(("inbox", "large", 100), eTag="3", sequencer="1"), 3))
    assert (world.runs, len(world.cloud.submitted)) == (2, 2)
    world.supervisors[0].wait_for("s3://inbox/large has 100 bytes; s3://inbox/slow with 100 bytes")
    # Nothing is known for a function that has more time.
    api.answer(api.push(s3_event(("inbox", "large", 100), eTag="4", sequencer="1"), 10))
    assert (world.runs, len(world.cloud.submitted)) == (3, 2)


BATCH: dict[str, Any] = {"execution_mode": "batch", "job_queue": "q", "job_definition": "f"}


def submitted_lines(cloud: Cloud) -> list[list[dict[str, Any]]]:
    """The events of each array job."""
    found = []
    for job in cloud.submitted:
        [told] = [
            its["value"]
            for its in job["containerOverrides"]["environment"]
            if its["name"] == contract.ARRAY_VARIABLE
        ]
        key = told.removeprefix("s3://kept/").partition("#")[0]
        lines = [json.loads(line) for line in cloud.get("kept", key).splitlines()]
        assert job.get("arrayProperties", {"size": 1})["size"] == len(lines)
        found.append(lines)
    return found


def test_events_of_a_window_become_one_array_job(world: World) -> None:
    apis = [world.runtime(burst=Burst(1, 100), **BATCH) for _ in range(2)]
    lead = apis[0].push(event_of(etag="0"))
    world.wait_for_lead()
    said = []
    for n in range(1, 6):
        said.append(text_of(apis[1].invoke(event_of(etag=str(n)))))
        apis[1].invoke(event_of(etag=str(n)))  # comes twice
    assert "waits to become a job with others" in said[0]
    apis[0].answer(lead)
    [lines] = submitted_lines(world.cloud)
    etags = sorted(line["Records"][0]["s3"]["object"]["eTag"] for line in lines)
    assert etags == list("012345")
    assert [key for key in world.cloud.keys("kept") if "/waiting/" in key] == []


def test_an_event_with_a_script_of_its_own_waits_for_no_others(world: World) -> None:
    api = world.runtime(burst=Burst(60, 3), **BATCH)
    own = {**event_of(""), "script": base64.b64encode(b"true").decode()}
    api.answer(api.push(own, 300))
    [job] = world.cloud.submitted
    assert "arrayProperties" not in job


def test_a_full_window_is_submitted_at_once(world: World) -> None:
    apis = [world.runtime(burst=Burst(60, 3), **BATCH) for _ in range(2)]
    ids = [apis[0].push(event_of(etag="0"), 300)]
    world.wait_for_lead()
    for n in range(1, 3):
        apis[1].invoke(event_of(etag=str(n)))
    apis[0].answer(ids[0])
    assert [len(lines) for lines in submitted_lines(world.cloud)] == [3]


def test_a_leader_that_was_killed_is_followed_by_its_own_retry(world: World) -> None:
    api = world.runtime(burst=Burst(60, 100), **BATCH)
    request_id = api.push(event_of(etag="0"), 300)
    world.wait_for_lead()
    other = world.runtime(burst=Burst(1, 100))
    assert "waits" in text_of(other.invoke(event_of(etag="1")))
    world.supervisors[0].process.kill()
    other.push(event_of(etag="0"), request_id=request_id)
    other.answer(request_id)
    assert sorted(map(len, submitted_lines(world.cloud))) == [2]
