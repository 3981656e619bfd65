"""What is too large to travel goes through the deployment bucket; nobody has to make it public."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import model_check
from tests.doubles.recorder import Recorded, Recorder
from tests.e2e.conftest import Cloud, s3_path, wait_for
from tests.e2e.test_wire import LIMITS, behind

BUCKET = "scar-000000000000-us-east-1"
SIZE = 'wc -c < "$INPUT_FILE_PATH"\nsha256sum < "$INPUT_FILE_PATH"\n'
MODES = ("lambda", "lambda-batch", "batch")


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with Recorder().serving() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def cloud(recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("pointers")
    cloud = Cloud(folder / "home")
    (folder / "small.sh").write_text(SIZE)
    (folder / "large.sh").write_text(f"echo large in $0 | wc -l\n{'#' * 200_000}\n")
    container = {"image": "host"}
    functions: list[dict[str, Any]] = [
        {
            "lambda": {
                "name": mode,
                "execution_mode": mode,
                "init_script": "large.sh",
                "container": container,
            }
        }
        for mode in MODES
    ]
    functions.append(
        {
            "lambda": {"name": "api", "init_script": "small.sh", "container": container},
            "api_gateway": {"name": "api"},
        }
    )
    functions.append(
        {
            "lambda": {
                "name": "delegates",
                "execution_mode": "batch",
                "init_script": "small.sh",
                "container": container,
                "output": [s3_path("data/out")],
            }
        }
    )
    (folder / "all.yaml").write_text(json.dumps({"functions": {"aws": functions}}))
    with behind(recorder, cloud.home / "local"):
        cloud.ok("init", "-f", folder / "all.yaml")
        yield cloud
    check(recorder.requests)


@pytest.mark.parametrize("mode", MODES)
def test_a_large_init_script_runs_in_every_mode(cloud: Cloud, mode: str) -> None:
    assert "1" in cloud.ok("run", "-n", mode).split()


@pytest.mark.parametrize("mode", MODES)
def test_a_large_script_is_run_in_every_mode(cloud: Cloud, tmp_path: Path, mode: str) -> None:
    script = tmp_path / "5mb.sh"
    script.write_text(f"#!/bin/sh\necho five\nexit\n{'#' * 5_000_000}\n")

    assert "five" in cloud.ok("run", "-n", mode, "-s", script)
    later = json.loads(cloud.ok("run", "-n", mode, "-a", "-s", script, "--json"))
    request_id = later["LambdaOutput"]["RequestId"]

    assert "five" in cloud.ok("log", "-n", mode, "-ri", request_id, "--follow").split()


def test_a_large_body_reaches_the_script_of_an_endpoint(cloud: Cloud, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(os.urandom(20_000_000))

    out = cloud.ok("invoke", "-n", "api", "-db", body)

    assert out.splitlines()[-2:] == ["20000000", f"{digest(body.read_bytes())}  -"]


def test_a_large_json_body_can_be_sent_without_waiting(cloud: Cloud, tmp_path: Path) -> None:
    text = json.dumps({"data": "é" * 600_000}, ensure_ascii=False)
    fdl = tmp_path / "json.yaml"
    (tmp_path / "small.sh").write_text(SIZE)
    described = {
        "lambda": {"name": "api", "init_script": "small.sh", "container": {"image": "host"}},
        "api_gateway": {"name": "api", "json_data": text},
    }
    fdl.write_text(json.dumps({"functions": {"aws": [described]}}))

    cloud.ok("invoke", "-f", fdl, "-a")

    wait_for("it", lambda: f"{digest(text.encode())}  -" in cloud.ok("log", "-n", "api"))


def test_a_body_that_was_changed_on_its_way_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(os.urandom(8_000_000))
    cloud.ok("invoke", "-n", "api", "-db", body)
    key = f".scar/events/api/{digest(body.read_bytes())}"
    url = json.loads(cloud.ok("ls", "--json"))["Functions"][0]["Api_gateway"]
    cloud.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"other")

    header = f"scar-body-reference: s3://{BUCKET}/{key}#sha256={digest(body.read_bytes())}"
    done = subprocess.run(
        ["curl", "-sS", "-X", "POST", "-H", header, url], capture_output=True, text=True
    )
    assert "502" in done.stdout or "error" in done.stdout.lower(), done
    assert "has been changed" in cloud.ok("log", "-n", "api")


def test_an_event_of_900_kb_reaches_its_job(cloud: Cloud) -> None:
    event = json.dumps({"data": "x" * 900_000})

    cloud.client("lambda").invoke(
        FunctionName="delegates", InvocationType="Event", Payload=event.encode()
    )

    wait_for("its job", lambda: digest(event.encode()) in cloud.ok("log", "-n", "delegates"))


def test_the_plan_says_how_things_travel(cloud: Cloud, tmp_path: Path) -> None:
    script = tmp_path / "s.sh"
    script.write_text("echo 1")

    told = cloud.ok("init", "-i", "host", "-n", "new", "-s", script, "--plan")

    assert "scripts travel in the image (new: 6 bytes)" in told
    assert f"larger ones through s3://{BUCKET}/.scar/events/" in told
    as_json = cloud.ok("init", "-i", "host", "-n", "new", "-s", script, "--plan", "--json")
    assert list(json.loads(as_json)) == ["Plan"]


def check(requests: list[Recorded]) -> None:
    """Every request of these tests stayed under its limit."""
    for request in requests:
        if request.service and request.service != "s3":
            its = model_check.read(request)
            assert not its.faults, f"{request}: {its.faults}"
            if its.operation in LIMITS:
                assert LIMITS[its.operation](request, its), f"{request}: {len(request.body)} bytes"
        if "execute-api" in request.path:
            assert len(request.body) <= 10 * 1024 * 1024


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
