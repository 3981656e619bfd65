"""However often an event comes, and whatever dies meanwhile, its effect is there once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote_plus

import pytest

from tests.e2e.conftest import Cloud, s3_path, wait_for

UNIQUE = """#!/bin/sh
echo working >&2
sleep 1
date +%s%N > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH").out"
"""


def record_of(bucket: str, key: str, etag: str, sequencer: str = "0A1B") -> dict[str, Any]:
    """One record of an event as S3 sends it."""
    subject = {"key": quote_plus(key, safe="/"), "size": 1, "eTag": etag, "sequencer": sequencer}
    about = {"bucket": {"name": bucket}, "object": subject}
    return {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": about}


def jobs_of(cloud: Cloud) -> list[dict[str, Any]]:
    batch = cloud.client("batch")
    return [
        job
        for queue in batch.describe_job_queues()["jobQueues"]
        for job in batch.list_jobs(
            jobQueue=queue["jobQueueName"],
            filters=[{"name": "JOB_NAME", "values": ["*"]}],
        )["jobSummaryList"]
    ]


@pytest.mark.parametrize("mode", ["lambda", "batch"])
def test_an_event_delivered_five_times_across_a_crash_has_one_effect(
    cloud: Cloud, function: Any, mode: str
) -> None:
    file = function(
        {
            "name": "f",
            "script": UNIQUE,
            "execution_mode": mode,
            "timeout": 20,
            "output": [s3_path("once/out")],
        }
    )
    cloud.ok("init", "-f", file)
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="data")
    etag = s3.put_object(Bucket="data", Key="in/a b", Body=b"x")["ETag"].strip('"')
    event = json.dumps({"Records": [record_of("data", "in/a b", etag)]}).encode()
    client = cloud.client("lambda")

    def deliver(_: int) -> None:
        client.invoke(FunctionName="f", InvocationType="Event", Payload=event)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(deliver, range(5)))
    wait_for("the script", lambda: "working" in cloud.run("log", "-n", "f").out)
    cloud.kill()
    cloud.ok("ls")
    wait_for("the output", lambda: cloud.keys("once"))
    made = cloud.content("once", "out/a b.out")
    wait_for(
        "every delivery's end",
        lambda: cloud.ok("log", "-n", "f").count("REPORT RequestId") >= 5,
    )
    assert cloud.keys("once") == ["out/a b.out"]
    assert cloud.content("once", "out/a b.out") == made
    assert len(jobs_of(cloud)) == (1 if mode == "batch" else 0)
    deliver(6)
    wait_for("the sixth", lambda: "is done already" in cloud.ok("log", "-n", "f"))
    assert cloud.content("once", "out/a b.out") == made


def test_a_burst_of_uploads_becomes_one_array_job(
    cloud: Cloud, function: Any, tmp_path: Any
) -> None:
    file = function(
        {
            "name": "gather",
            "script": 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR"',
            "execution_mode": "batch",
            "timeout": 30,
            "input": [s3_path("burst/in")],
            "output": [s3_path("burst/out")],
            "batch": {"coalesce": {"window_s": 3, "max_events": 1000}},
        }
    )
    cloud.ok("init", "-f", file)
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(40):
        (folder / f"{n:02}").write_text(str(n))
    cloud.ok("put", "-b", "burst/in", "-p", folder)
    wait_for(
        "the outputs",
        lambda: len([key for key in cloud.keys("burst") if key.startswith("out/")]) == 40,
    )
    assert {cloud.content("burst", f"out/{n:02}") for n in range(40)} == {
        str(n).encode() for n in range(40)
    }
    [job] = jobs_of(cloud)
    assert job["arrayProperties"]["size"] == 40
    bucket = next(name for name in _buckets(cloud) if name.startswith("scar-"))
    assert [key for key in cloud.keys(bucket) if "/waiting/" in key] == []


def _buckets(cloud: Cloud) -> list[str]:
    return [its["Name"] for its in cloud.client("s3").list_buckets()["Buckets"]]
