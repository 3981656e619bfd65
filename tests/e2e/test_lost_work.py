"""The lost-work drill: faults and kills at every step, and no event is lost, done twice or by half.

A real local cloud and real supervisors, which reach it through a proxy that fails requests and
kills whoever sends them. Log service included: nobody's work depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from scar_supervisor import records
from tests.doubles.faulty_cloud import IN_SCRIPT, KILLS, Asked, Fault, FaultyCloud, Seeded
from tests.e2e.conftest import Cloud, s3_path, wait_for

SEED = int(os.environ.get("SCAR_TEST_SEED", "6"))
RATE = float(os.environ.get("SCAR_TEST_RATE", "0.12"))
"""Of faults, among all requests."""
INPUTS = 40
OUTPUTS = 3
"""Of each input."""

SCRIPT = """#!{python}
import hashlib, json, os, sys, urllib.request, uuid

key = os.environ["STORAGE_OBJECT_KEY"]
with open(os.environ["INPUT_FILE_PATH"], "rb") as file:
    data = file.read()
urllib.request.urlopen("{url}{in_script}" + key).read()
if "never" in key:
    sys.exit("this one never works")
run = uuid.uuid4().hex
for n in range({outputs}):
    content = data * (n + 1)
    about = {{"key": key, "run": run, "n": n, "sha256": hashlib.sha256(content).hexdigest()}}
    name = os.path.join(os.environ["TMP_OUTPUT_DIR"], f"{{os.path.basename(key)}}.{{n}}")
    with open(name, "wb") as file:
        file.write(json.dumps(about).encode() + b"\\n" + content)
"""


@dataclass
class Drill:
    """A function of one mode behind the proxy, and who watches its outputs."""

    cloud: Cloud
    proxy: FaultyCloud
    mode: str
    inputs: dict[str, bytes] = field(default_factory=dict)

    @property
    def s3(self) -> Any:
        return self.cloud.client("s3")

    @property
    def bucket(self) -> str:
        return "scar-000000000000-us-east-1"

    def put(self, inputs: dict[str, bytes]) -> None:
        for name, data in inputs.items():
            key = f"in/{name}"
            self.inputs[key] = data
            self.s3.put_object(Bucket="drill", Key=key, Body=data)

    def object_id(self, key: str) -> str:
        """What claims and records of an input are named by."""
        etag = hashlib.md5(self.inputs[key], usedforsecurity=False).hexdigest()
        return records.object_id("drill", key, etag)

    def wait(self) -> None:
        """Until every invocation and every job has ended."""
        wait_for("all work to end", self._is_quiet, 150)

    def _is_quiet(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.cloud.status['url']}/_scar/status") as answer:
                counts = json.load(answer)["counts"]
        except OSError:  # it is just starting again
            return False
        ended = sum(counts.get(f"invocations_{state}", 0) for state in ("succeeded", "failed"))
        active = sum(
            number
            for name, number in counts.items()
            if name in ("invocations_queued", "invocations_running")
            or (name.startswith("jobs_") and name not in ("jobs_succeeded", "jobs_failed"))
        )
        return ended >= len(self.inputs) and not active

    def runs(self) -> dict[str, list[str]]:
        """The run that made each output there is, by input."""
        found: dict[str, list[str]] = defaultdict(list)
        for key in self.cloud.keys("drilled"):
            about = check_whole(self, self.cloud.content("drilled", key))
            found[about["key"]].append(about["run"])
        return found

    def jobs(self) -> list[dict[str, Any]]:
        batch = self.cloud.client("batch")
        queues = [queue["jobQueueName"] for queue in batch.describe_job_queues()["jobQueues"]]
        ids = [
            job["jobId"]
            for queue in queues
            for state in ("SUCCEEDED", "FAILED")
            for page in batch.get_paginator("list_jobs").paginate(jobQueue=queue, jobStatus=state)
            for job in page["jobSummaryList"]
        ]
        return [
            job
            for start in range(0, len(ids), 100)
            for job in batch.describe_jobs(jobs=ids[start : start + 100])["jobs"]
        ]

    def recorded(self) -> dict[str, list[str]]:
        """Where it is known that an input failed for good."""
        found: dict[str, list[str]] = defaultdict(list)
        for prefix in (records.failed_prefix("drill"), "aws/lambda/async/drill/"):
            pages = self.s3.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    text = self.cloud.content(self.bucket, item["Key"]).decode()
                    found[_key_of(text)].append(prefix)
        for job in self.jobs():
            if job["status"] == "FAILED":
                for text in self._events_of(job):
                    found[_key_of(text)].append("job")
        return found

    def _events_of(self, job: dict[str, Any]) -> Iterator[str]:
        """What a failed job was to work on; of an array, the lines of its failed children."""
        variables = {one["name"]: one["value"] for one in job["container"]["environment"]}
        if "SCAR_ARRAY" not in variables:
            yield json.dumps(variables)
            return
        address = variables["SCAR_ARRAY"].partition("#")[0].removeprefix("s3://")
        lines = self.cloud.content(*address.split("/", 1)).decode().splitlines()
        if "arrayProperties" not in job:
            yield lines[0]
            return
        pages = self.cloud.client("batch").get_paginator("list_jobs")
        for page in pages.paginate(arrayJobId=job["jobId"], jobStatus="FAILED"):
            for child in page["jobSummaryList"]:
                yield lines[child["arrayProperties"]["index"]]

    def waiting(self) -> list[str]:
        """Events that wait to be coalesced with others."""
        prefix = records.waiting_prefix("drill")
        return [key for key in self.cloud.keys(self.bucket) if key.startswith(prefix)]

    def has_no_leader(self) -> bool:
        """Whether the next event may submit what waits."""
        key = records.lead_key("drill")
        until_ms: int = json.loads(self.cloud.content(self.bucket, key))["until_ms"]
        return until_ms < time.time() * 1000


def _key_of(text: str) -> str:
    """The input that a record of an event is about."""
    found = {key for key in text.replace("\\", "").replace("%2F", "/").split('"')
             if key.startswith("in/")}  # fmt: skip
    assert len(found) == 1, text
    return found.pop()


def check_whole(drill: Drill, data: bytes) -> dict[str, Any]:
    """What an output says of itself, which must be true."""
    head, _, content = data.partition(b"\n")
    about: dict[str, Any] = json.loads(head)
    assert content == drill.inputs[about["key"]] * (about["n"] + 1), about
    assert hashlib.sha256(content).hexdigest() == about["sha256"]
    return about


class Watch:
    """Looks at all that appears below the output path while the work goes on."""

    def __init__(self, drill: Drill) -> None:
        self._drill, self._ended = drill, threading.Event()
        self.faults: list[str] = []
        self.seen: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        s3 = self._drill.s3
        while not self._ended.wait(0.05):
            try:
                listed = s3.list_objects_v2(Bucket="drilled").get("Contents", [])
            except BotoCoreError:  # the cloud is just starting again
                continue
            for item in listed:
                version = (item["Key"], item["ETag"])
                if version in self.seen:
                    continue
                try:
                    data = s3.get_object(Bucket="drilled", Key=item["Key"], IfMatch=item["ETag"])
                    check_whole(self._drill, data["Body"].read())
                except (ClientError, BotoCoreError):  # replaced meanwhile, or starting
                    continue
                except (AssertionError, ValueError) as exc:
                    self.faults.append(f"{version}: {exc}")
                self.seen.add(version)


@pytest.fixture
def drill(
    cloud: Cloud, function: Callable[..., Path], request: pytest.FixtureRequest
) -> Iterator[Drill]:
    cloud.environment["SCAR_LOCAL_RETRY_DELAYS_S"] = "0.1,0.2"
    cloud.ok("local", "start")
    proxy = FaultyCloud(cloud.status["url"])
    text = SCRIPT.format(python=sys.executable, url=proxy.url, in_script=IN_SCRIPT, outputs=OUTPUTS)
    try:
        made = {
            "name": "drill",
            "script": text,
            "execution_mode": request.param.replace("coalesced", "batch"),
            "timeout": 30,
            "environment": {"Variables": {"AWS_ENDPOINT_URL": proxy.url}},
            "input": [s3_path("drill/in")],
            "output": [s3_path("drilled/out")],
            "batch": {"retry": 2, "compute_resources": {"max_v_cpus": 8}},
        }
        if request.param == "coalesced":
            made["batch"]["coalesce"] = {"window_s": 2, "max_events": 20}
        cloud.ok("init", "-f", function(made))
        if request.param != "lambda":
            lead_jobs_through(cloud, proxy)
        yield Drill(cloud, proxy, request.param)
    finally:
        proxy.close()


def lead_jobs_through(cloud: Cloud, proxy: FaultyCloud) -> None:
    """A revision of the job definition whose jobs ask the proxy."""
    batch = cloud.client("batch")
    [its] = batch.describe_job_definitions(jobDefinitionName="drill", status="ACTIVE")[
        "jobDefinitions"
    ]
    its["containerProperties"]["environment"].append(
        {"name": "AWS_ENDPOINT_URL", "value": proxy.url}
    )
    kept = ("type", "containerProperties", "retryStrategy", "propagateTags", "tags")
    batch.register_job_definition(
        jobDefinitionName="drill", **{name: its[name] for name in kept if name in its}
    )


@dataclass(frozen=True)
class Step:
    """A request about an input, and what becomes of whoever sends it for the first time."""

    fault: Fault
    method: str
    start: str
    """What its path starts with."""
    names: str = "{id}"
    """What stands at the end of its path, or in its body."""


CLAIM, DONE = (
    "/scar-000000000000-us-east-1/.scar/claims/",
    "/scar-000000000000-us-east-1/.scar/done/",
)
STEPS = {
    "before-the-claim": Step(Fault.KILL_BEFORE, "PUT", CLAIM),
    "after-the-claim": Step(Fault.KILL_AFTER, "PUT", CLAIM),
    "after-the-download": Step(Fault.KILL_AFTER, "GET", "/drill/", "{key}"),
    "in-the-script": Step(Fault.KILL_BEFORE, "GET", IN_SCRIPT, "{key}"),
    "before-an-upload": Step(Fault.KILL_BEFORE, "PUT", "/drilled/", "{name}.0"),
    "between-two-uploads": Step(Fault.KILL_AFTER, "PUT", "/drilled/", "{name}.1"),
    "before-the-record": Step(Fault.KILL_BEFORE, "PUT", DONE),
    "before-the-answer": Step(Fault.KILL_AFTER, "PUT", DONE),
}
OF_BATCH = {
    "before-submitting": Step(Fault.KILL_BEFORE, "POST", "/v1/submitjob", "{name}"),
    "after-submitting": Step(Fault.KILL_AFTER, "POST", "/v1/submitjob", "{name}"),
    "submitted-unheard": Step(Fault.LOST, "POST", "/v1/submitjob", "{name}"),
}


class Once:
    """Does what each step says, to the first request that it is about."""

    def __init__(self, drill: Drill, steps: Mapping[str, Step]) -> None:
        self._left = {
            key: (step, step.names.format(key=key, name=key.rpartition("/")[2], id=its_id))
            for key, step, its_id in (
                (f"in/{name}", step, drill.object_id(f"in/{name}")) for name, step in steps.items()
            )
        }
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Fault | None:
        with self._lock:
            for key, (step, names) in self._left.items():
                its = asked.path.endswith(names) or names.encode() in asked.body
                if (asked.method, its) == (step.method, True) and asked.path.startswith(step.start):
                    del self._left[key]
                    return step.fault
        return None

    @property
    def left(self) -> list[str]:
        """Inputs whose step did not come."""
        return list(self._left)


@pytest.mark.parametrize("drill", ["lambda", "batch"], indirect=True)
def test_whoever_is_killed_at_any_step_is_followed_by_one_who_ends_the_work(drill: Drill) -> None:
    steps = STEPS | (OF_BATCH if drill.mode == "batch" else {})
    for name in steps:
        drill.inputs[f"in/{name}"] = os.urandom(2000)
    plan = drill.proxy.plan = Once(drill, steps)

    with Watch(drill) as watch:
        drill.put({name: drill.inputs[f"in/{name}"] for name in steps})
        drill.wait()

    assert (watch.faults, plan.left) == ([], [])
    assert len(drill.proxy.killed) == sum(its.fault in KILLS for its in steps.values())
    for key, runs in drill.runs().items():
        assert (key, len(runs), len(set(runs))) == (key, OUTPUTS, 1)
    assert drill.runs().keys() == drill.inputs.keys()
    assert drill.recorded() == {}
    if drill.mode == "batch":
        assert [job["status"] for job in drill.jobs()] == ["SUCCEEDED"] * len(steps)


@pytest.mark.parametrize("drill", ["lambda", "batch", "coalesced"], indirect=True)
def test_at_random_faults_every_event_has_its_outputs_or_is_known_to_have_failed(
    drill: Drill,
) -> None:
    seeded = Seeded(SEED, RATE)

    def cursed(asked: Asked) -> Fault | None:
        return Fault.KILL_BEFORE if asked.path == f"{IN_SCRIPT}in/cursed" else None

    def plan(asked: Asked) -> Fault | None:
        return Fault.ERROR if asked.service == "logs" else cursed(asked) or seeded(asked)

    drill.proxy.plan = plan
    random = Random(SEED)
    inputs = {f"{n:02}": random.randbytes(3000 + n) for n in range(INPUTS)}
    inputs |= {"large": random.randbytes(9 << 20), "never": b"no", "cursed": b"no"}

    with Watch(drill) as watch:
        drill.put(inputs)
        wait_for("the work to begin", lambda: drill.cloud.keys("drilled") or drill.waiting())
        drill.cloud.kill()
        drill.cloud.ok("local", "start")
        drill.wait()
        if drill.waiting():  # who was to submit them died for good: the next event takes them along
            drill.proxy.plan = cursed
            wait_for("the lead to be free", drill.has_no_leader)
            drill.put({"next": b"next"})
            drill.wait()

    runs, recorded = drill.runs(), drill.recorded()
    assert drill.waiting() == []
    assert watch.faults == []
    complete = {key for key, its in runs.items() if len(its) == OUTPUTS and len(set(its)) == 1}
    assert drill.inputs.keys() - complete - recorded.keys() == set()
    assert {"in/never", "in/cursed"} <= recorded.keys() - runs.keys()
    assert len(complete) >= INPUTS * (1 - 2 * RATE)
    assert drill.proxy.happened.keys() >= {*KILLS, Fault.RESET, Fault.LOST, Fault.ERROR}
