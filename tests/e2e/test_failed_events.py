"""What is done is not done again, and what failed for good is kept, shown and run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scar_supervisor import records
from tests.e2e.conftest import Cloud, s3_path, wait_for
from tests.e2e.test_batch_work import a_function, bulk, fill

BUCKET = "scar-000000000000-us-east-1"
SCRIPT = """\
case "$STORAGE_OBJECT_KEY" in *bad*) test -n "$MENDED" || { echo "not mended"; exit 7; };; esac
echo "working on ${STORAGE_OBJECT_KEY:-nothing}"
echo done > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH")"
"""
MENDED = {"container": {"image": "host", "environment": {"Variables": {"MENDED": "yes"}}}}


def failed(cloud: Cloud, *arguments: str) -> list[dict[str, Any]]:
    return list(json.loads(cloud.ok("ps", "--failed", "--json", *arguments))["Failed"])


@pytest.mark.parametrize("mode", ["lambda", "batch"])
def test_what_is_done_is_left_out_unless_it_is_forced(
    cloud: Cloud, function: Callable[..., Path], mode: str
) -> None:
    fdl = function(a_function("f", mode))
    cloud.ok("init", "-f", fdl)
    fill(cloud, "bad.txt", "1.txt", "2.txt")
    first = bulk(cloud, "-n", "f", "-ib", "source/in", "--wait")
    assert (first["Objects"], first["AlreadyDone"], first["Failed"]) == (3, 0, 1)
    cloud.client("s3").put_object(Bucket="source", Key="in/1.txt", Body=b"changed")

    again = cloud.run("run", "-n", "f", "-ib", "source/in", "--wait", "--json")

    told = json.loads(again.out.splitlines()[0])["BulkRun"]
    assert (told["Objects"], told["AlreadyDone"], told["Failed"]) == (2, 1, 1)
    assert "1 of 3 objects are done already (--force repeats them)" in again.err
    assert cloud.content("work", "f-out/1.txt") == b"changed"
    forced = bulk(cloud, "-n", "f", "-ib", "source/in", "--wait", "--force")
    assert (forced["Objects"], forced["Succeeded"], forced["AlreadyDone"]) == (3, 2, 0)
    cloud.client("s3").delete_object(Bucket="source", Key="in/bad.txt")
    nothing = cloud.run("run", "-n", "f", "-ib", "source/in")
    assert (nothing.code, nothing.out) == (0, "nothing is left to do\n")
    assert "2 of 2 objects are done already" in nothing.err
    cloud.ok("init", "-f", function(a_function("f", mode, script="exit 0")))
    assert bulk(cloud, "-n", "f", "-ib", "source/in", "--wait")["Objects"] == 2, "it is another now"


def test_failed_jobs_are_kept_and_run_again_until_they_succeed(
    cloud: Cloud, function: Callable[..., Path], tmp_path: Path
) -> None:
    cloud.ok("init", "-f", function(a_function("f", script=SCRIPT)))
    assert failed(cloud, "-n", "f") == []
    fill(cloud, "bad 1.txt", "bad2.txt", "good.txt")
    [array] = bulk(cloud, "-n", "f", "-ib", "source/in", "--wait")["Jobs"]
    script = tmp_path / "bad.sh"
    script.write_text('test -n "$MENDED" && echo {} > $TMP_OUTPUT_DIR/run'.format("x" * 3000))
    assert cloud.run("run", "-n", "f", "-s", script).code == 5

    kept = failed(cloud, "-a")

    by_id = {one["Id"]: one for one in kept}
    one = by_id[f"{array}:0"]
    assert one["Objects"] == ["source/in/bad 1.txt"]
    assert (one["Kind"], one["ExitCode"], one["Function"]) == ("job", 7, "f")
    assert "not mended" in one["LogTail"]
    assert len(kept) == 3
    assert sorted(len(its["Objects"]) for its in kept) == [0, 1, 1]
    text = cloud.ok("ps", "-n", "f", "--failed")
    assert "source/in/bad 1.txt" in text
    assert text.splitlines()[0].startswith("FUNCTION")

    still = bulk(cloud, "-n", "f", "--retry-failed", "--wait")
    assert (still["Objects"], still["Failed"]) == (3, 3)
    kept = failed(cloud, "-n", "f")
    assert len(kept) == 3, "the same events, of other jobs"
    assert not {its["Id"] for its in kept} & set(by_id)
    cloud.ok("init", "-f", function(a_function("f", script=SCRIPT, **MENDED)))
    done = bulk(cloud, "-n", "f", "--retry-failed", "--wait")
    assert (done["Objects"], done["Succeeded"]) == (3, 3)
    assert len(done["Jobs"]) == 2, "those with a script of their own are another array"
    assert sorted(cloud.keys("work")) == [
        f"f-out/{name}" for name in ("bad 1.txt", "bad2.txt", "good.txt", "run")
    ]
    assert failed(cloud, "-n", "f") == []
    nothing = cloud.run("run", "-n", "f", "--retry-failed")
    assert (nothing.code, "nothing failed for good" in nothing.err) == (2, True)


def test_a_job_whose_supervisor_was_ended_is_kept_too(
    cloud: Cloud, function: Callable[..., Path], tmp_path: Path
) -> None:
    script = 'echo started; test -n "$MENDED" || sleep 60; echo done > $TMP_OUTPUT_DIR/out'
    cloud.ok("init", "-f", function(a_function("f", script=script)))
    fill(cloud, "1", "2")
    [array] = bulk(cloud, "-n", "f", "-ib", "source/in")["Jobs"]
    single = tmp_path / "single.sh"
    single.write_text(f"# {'x' * 3000}\n{script}")
    request = json.loads(cloud.ok("run", "-n", "f", "-a", "-s", single, "--json"))
    assert request["LambdaOutput"]["StatusCode"] == 202
    batch = cloud.client("batch")
    wait_for("it to run", lambda: "started" in cloud.ok("log", "-n", "f", "-ri", array))
    listed = wait_for(
        "both jobs",
        lambda: (
            (jobs := json.loads(cloud.ok("ps", "-n", "f", "--json"))["Work"])
            and len([one for one in jobs if one["kind"] in ("array", "job")]) == 2
            and jobs
        ),
    )
    ids = [one["id"] for one in listed if one["kind"] in ("array", "job")]
    cloud.ok("stop", *ids, "--reason", "the test says so")
    cloud.run("wait", *ids)
    assert cloud.keys(BUCKET) == [key for key in cloud.keys(BUCKET) if "/failed/" not in key]

    kept = failed(cloud, "-n", "f")

    assert {its["Id"] for its in kept} == {f"{array}:0", f"{array}:1", *ids} - {array}
    assert {" ".join(its["Objects"]) for its in kept} == {"source/in/1", "source/in/2", ""}
    assert all("the test says so" in its["Reason"] for its in kept)
    assert any("started" in its["LogTail"] for its in kept)
    records = [key for key in cloud.keys(BUCKET) if key.startswith(".scar/failed/f/")]
    assert len(records) == 3, "they outlive what Batch remembers"
    cloud.ok("init", "-f", function(a_function("f", script=script, **MENDED)))
    assert bulk(cloud, "-n", "f", "--retry-failed", "--wait")["Succeeded"] == 3
    assert failed(cloud, "-n", "f") == []
    states = [its["status"] for its in batch.describe_jobs(jobs=ids)["jobs"]]
    assert states == ["FAILED"] * 2, "Batch still tells of them, we do not"


def test_failed_invocations_are_kept_and_run_again(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    cloud.environment["SCAR_LOCAL_RETRY_DELAYS_S"] = "0.1,0.1"
    its = a_function("f", "lambda", script=SCRIPT, input=[s3_path("data/in")])
    cloud.ok("init", "-f", function(its))
    cloud.client("s3").put_object(Bucket="data", Key="in/bad", Body=b"x")
    fill(cloud, "bad3")
    assert bulk(cloud, "-n", "f", "-ib", "source/in", "--wait")["Failed"] == 1
    cloud.ok("run", "-n", "f", "-a", "sh", "-c", 'test -n "$MENDED"')
    kept = wait_for("what failed", lambda: len(its := failed(cloud, "-n", "f")) == 3 and its)

    by_object = {" ".join(its["Objects"]): its for its in kept}
    assert set(by_object) == {"data/in/bad", "source/in/bad3", ""}
    assert [its["ExitCode"] for _, its in sorted(by_object.items())] == [1, 7, 7]
    assert by_object["data/in/bad"]["Attempts"] == 3
    assert len(by_object["data/in/bad"]["Records"]) == 2, "Lambda's and the supervisor's are one"
    assert by_object[""]["Event"]["cmd_args"] == json.dumps(["sh", "-c", 'test -n "$MENDED"'])

    assert bulk(cloud, "-n", "f", "--retry-failed", "--wait")["Failed"] == 3
    assert len(failed(cloud, "-n", "f")) == 3, "nothing is forgotten before it has succeeded"
    cloud.ok("init", "-f", function(its | MENDED))
    cloud.ok("run", "-n", "f", "--retry-failed")
    wait_for("the outputs", lambda: {"f-out/bad", "f-out/bad3"} <= set(cloud.keys("work")))
    assert failed(cloud, "-n", "f") == []


def test_wrong_questions_about_failures_are_answered(cloud: Cloud) -> None:
    unknown = cloud.run("ps", "-n", "nobody", "--failed")
    assert (unknown.code, "`nobody` does not exist" in unknown.err) == (2, True)
    alone = cloud.run("run", "-n", "f", "--force")
    assert (alone.code, "`--force` is for runs over many objects" in alone.err) == (2, True)


def test_events_whose_burst_nobody_gathers_any_more_are_shown_and_run_again(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    burst = {"batch": {"coalesce": {"window_s": 1, "max_events": 10}}}
    cloud.ok("init", "-f", function(a_function("f", script=SCRIPT, **burst)))
    fill(cloud, "1.txt", "2.txt")
    s3 = cloud.client("s3")
    lead = {"owner": "a-dead-invocation", "until_ms": 1, "began_ms": 1}
    s3.put_object(Bucket=BUCKET, Key=records.lead_key("f"), Body=json.dumps(lead))
    for name in ("1.txt", "2.txt"):
        its = {"bucket": {"name": "source"}, "object": {"key": f"in/{name}", "size": 1}}
        event = {"Records": [{"eventSource": "aws:s3", "s3": its}]}
        key = records.waiting_prefix("f") + name
        s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(event))
    assert failed(cloud, "-n", "f") == [], "they may just be joining"

    left = wait_for("them to be given up", lambda: failed(cloud, "-n", "f"))

    assert sorted(one["Objects"][0] for one in left) == ["source/in/1.txt", "source/in/2.txt"]
    assert "a-dead-invocation" in left[0]["Reason"]
    again = bulk(cloud, "-n", "f", "--retry-failed", "--wait")
    assert (again["Objects"], again["Succeeded"]) == (2, 2)
    assert [key for key in cloud.keys(BUCKET) if "/waiting/" in key] == []
