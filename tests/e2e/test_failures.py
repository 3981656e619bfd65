"""What goes wrong is said, stops what it must, and loses nothing."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Cloud, s3_path, wait_for

SEVEN = """#!/bin/sh
echo partial > "$TMP_OUTPUT_DIR/partial.txt"
echo "about to fail"
exit 7
"""


@pytest.mark.parametrize("mode", ["lambda", "lambda-batch", "batch"])
def test_a_script_that_exits_7_fails_the_run_and_uploads_nothing(cloud: Cloud, function, mode):
    cloud.ok(
        "init",
        "-f",
        function(
            {
                "name": "seven",
                "script": SEVEN,
                "execution_mode": mode,
                "output": [s3_path("seven/out")],
            }
        ),
    )
    done = cloud.run("run", "-n", "seven")
    assert done.code == 5, done
    assert "exit code 7" in done.err
    assert "about to fail" in done.err + done.out
    assert cloud.keys("seven") == []
    if mode == "batch":
        batch = cloud.client("batch")
        queue = batch.describe_job_queues()["jobQueues"][0]["jobQueueName"]
        [summary] = batch.list_jobs(jobQueue=queue, jobStatus="FAILED")["jobSummaryList"]
        assert summary["container"]["exitCode"] == 7
        [job] = batch.describe_jobs(jobs=[summary["jobId"]])["jobs"]
        assert job["attempts"][0]["container"]["exitCode"] == 7


def test_an_asynchronous_failure_is_tried_three_times_with_one_request_id(
    cloud: Cloud, function, tmp_path
):
    cloud.environment["SCAR_LOCAL_RETRY_DELAYS_S"] = "0.1,0.1"
    cloud.ok("init", "-f", function({"name": "f", "script": SEVEN, "input": [s3_path("data/in")]}))
    (tmp_path / "x").write_text("x")
    cloud.ok("put", "-b", "data/in", "-p", tmp_path / "x")
    log = wait_for(
        "three tries", lambda: (t := cloud.ok("log", "-n", "f")).count("END RequestId") == 3 and t
    )
    ids = {line.split("RequestId: ")[1].split()[0] for line in log.splitlines() if "START" in line}
    assert len(ids) == 1


OUTLIVES = """#!/bin/sh
sleep 300 & sleep 300 &
setsid sleep 300 &
trap '' TERM
if [ -n "$AWS_BATCH_JOB_ID" ]; then echo continued in Batch; kill $!; exit 0; fi
echo started
sleep 300
sleep 300
"""


def _sleepers() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        if words[:2] == [b"sleep", _marker()]:
            found.append(int(entry.name))
    return found


def _marker() -> bytes:
    return b"%d" % (100_000 + os.getpid() % 10_000)  # so that parallel tests see only their own


@pytest.mark.parametrize("mode", ["lambda", "lambda-batch"])
def test_a_script_that_outlives_its_deadline_leaves_no_process(cloud: Cloud, function, mode):
    cloud.ok(
        "init",
        "-f",
        function(
            {
                "name": "slow",
                "script": OUTLIVES.replace("300", _marker().decode()),
                "execution_mode": mode,
                "timeout": 4,
                "container": {"image": "host", "timeout_threshold": 2},
            }
        ),
    )
    done = cloud.run("run", "-n", "slow")
    if mode == "lambda":
        assert done.code == 5, done
        assert "ScriptTimedOut" in done.err or "time" in done.err
    else:
        assert done.code == 0, done
        assert "continued in Batch" in done.out
    wait_for("the end of every child", lambda: not _sleepers(), 10)


ODD_KEYS = [
    "in/a b.txt",
    "in/a+b.txt",
    "in/ünïcödé-文件.txt",
    "in/100%25.txt",
    "in/%2e%2e%2fescape.txt",
    "in/../../escape.txt",
    "in/..",
    "in//double//slash.txt",
    "in/quote'\"`$(touch hacked);.txt",
    "in/" + "x" * 1021,
    "in/-n",
]

COPY = """#!/bin/sh
case "$INPUT_FILE_PATH" in "$TMP_INPUT_DIR"/*) ;; *) echo "escaped: $INPUT_FILE_PATH"; exit 9;; esac
printf %s "$STORAGE_OBJECT_KEY" > "$TMP_OUTPUT_DIR/key-$(md5sum < "$INPUT_FILE_PATH" | cut -c1-32)"
"""


def test_odd_keys_arrive_intact_and_stay_inside(cloud: Cloud, function):
    cloud.ok(
        "init",
        "-f",
        function(
            {
                "name": "odd",
                "script": COPY,
                "input": [s3_path("odd/in")],
                "output": [s3_path("odd/out")],
            }
        ),
    )
    s3 = cloud.client("s3")
    for number, key in enumerate(ODD_KEYS):
        s3.put_object(Bucket="odd", Key=key, Body=f"content {number}".encode())
    outputs = wait_for(
        "all outputs",
        lambda: (
            (k := [k for k in cloud.keys("odd") if k.startswith("out/")])
            and len(k) == len(ODD_KEYS)
            and k
        ),
    )
    assert {cloud.content("odd", key).decode() for key in outputs} == set(ODD_KEYS)
    back = cloud.run("get", "-b", "odd/in", "-p", cloud.home / "back")
    root = (cloud.home / "back").resolve()
    assert all(path.resolve().is_relative_to(root) for path in root.rglob("*")), (
        "get wrote outside its folder"
    )
    assert not (cloud.home / "escape.txt").exists()
    assert back.code == 4, back  # what cannot be a file here is named, the rest is there
    assert "in/" + "x" * 1021 in back.err


def test_an_input_path_with_special_characters_triggers(cloud: Cloud, function):
    """S3 wants them URL-encoded in a notification's filter."""
    path = "in/run=1 a+b%20ü"
    fdl = function(
        {"name": "f", "script": 'cat "$INPUT_FILE_PATH"', "input": [s3_path(f"special/{path}")]}
    )
    cloud.ok("init", "-f", fdl)
    notifications = cloud.client("s3").get_bucket_notification_configuration(Bucket="special")
    [entry] = notifications["LambdaFunctionConfigurations"]
    [rule] = entry["Filter"]["Key"]["FilterRules"]
    assert rule["Value"] == "in/run%3D1+a%2Bb%2520%C3%BC/"
    cloud.client("s3").put_object(Bucket="special", Key=f"{path}/x", Body=b"seen it")
    wait_for("the function", lambda: "seen it" in cloud.ok("log", "-n", "f"))
    assert json.loads(cloud.ok("init", "-f", fdl, "--plan", "--json"))["Plan"] == []


def test_a_function_with_another_input_no_longer_runs_for_the_old_one(cloud: Cloud, function):
    """Else a moved input could close a loop that no file shows: out of the new one into the old."""
    copy = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"'
    moved = {"name": "f", "script": copy}
    before = {"input": [s3_path("first/in")], "output": [s3_path("second/out")]}
    after = {"input": [s3_path("third/in")], "output": [s3_path("first/in")]}
    cloud.ok("init", "-f", function({**moved, **before}))
    fdl = function({**moved, **after})
    plan = json.loads(cloud.ok("init", "-f", fdl, "--plan", "--json"))["Plan"]
    assert {(s["Kind"], s["Name"]) for s in plan if s["Verb"] == "delete"} >= {
        ("trigger", "first/f"),
        ("permission", "f/first"),
    }
    cloud.ok("init", "-f", fdl)
    s3 = cloud.client("s3")
    left = s3.get_bucket_notification_configuration(Bucket="first")
    assert "LambdaFunctionConfigurations" not in left
    s3.put_object(Bucket="third", Key="in/x", Body=b"x")
    wait_for("the output", lambda: cloud.keys("first") == ["in/x"])
    time.sleep(0.5)  # time for what must not happen
    assert cloud.ok("log", "-n", "f").count("START RequestId") == 1
    assert json.loads(cloud.ok("init", "-f", fdl, "--plan", "--json"))["Plan"] == []


def test_what_was_committed_before_kill_9_is_done_after_the_restart(
    cloud: Cloud, function, tmp_path
):
    slow = '#!/bin/sh\nsleep 1\ncp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"\n'
    cloud.ok(
        "init",
        "-f",
        function(
            {
                "name": "f",
                "script": slow,
                "input": [s3_path("data/in")],
                "output": [s3_path("data/out")],
            }
        ),
    )
    s3 = cloud.client("s3")
    bodies = {f"in/{n}": os.urandom(1000) for n in range(20)}
    large = os.urandom(12_000_000)
    s3.put_object(Bucket="data", Key="elsewhere/large", Body=large)
    for key, body in bodies.items():
        s3.put_object(Bucket="data", Key=key, Body=body)
    cloud.kill()
    time.sleep(0.2)
    assert {"in/0", "in/19", "elsewhere/large"} <= set(
        cloud.ok("ls", "-b", "data").split()
    )  # starts it again
    assert cloud.content("data", "elsewhere/large") == large
    wait_for(
        "every output", lambda: sum(k.startswith("out/") for k in cloud.keys("data")) == len(bodies)
    )
    for key, body in bodies.items():
        assert cloud.content("data", key) == body
        assert cloud.content("data", key.replace("in/", "out/")) == body
    (tmp_path / "s.sh").write_text("echo still here")
    assert "still here" in cloud.ok("run", "-n", "f", "-s", tmp_path / "s.sh")


def test_init_after_a_failure_continues(cloud: Cloud, function):
    cloud.ok("ls")
    # A trigger that overlaps ours and belongs to somebody else: S3 refuses our entry.
    other = function({"name": "other", "script": "echo", "input": [s3_path("taken/in")]}, name="o")
    cloud.ok("init", "-f", other)
    fdl = function(
        {"name": "f", "script": "echo fine", "input": [s3_path("taken/in")]},
        {"name": "g", "script": "echo fine", "input": [s3_path("data/in")]},
    )
    failed = cloud.run("init", "-f", fdl)
    assert failed.code == 4, failed
    assert "could not" in failed.err
    assert "again" in failed.err
    cloud.ok("rm", "-n", "other")
    cloud.ok("init", "-f", fdl)
    assert json.loads(cloud.ok("init", "-f", fdl, "--plan", "--json"))["Plan"] == []


def test_an_occupied_port_is_one_clear_error(cloud: Cloud):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cloud.environment["SCAR_LOCAL_PORT"] = str(port)
        done = cloud.run("ls")
    assert done.code != 0
    assert str(port) in done.err
    assert "Traceback" not in done.err


def test_a_function_that_does_not_exist_is_named_with_its_neighbour(cloud: Cloud, function):
    cloud.ok("init", "-f", function({"name": "counter", "script": "echo"}))
    for command in (["run", "-n", "countr"], ["log", "-n", "countr"], ["rm", "-n", "countr"]):
        done = cloud.run(*command)
        assert done.code == 2, done
        assert "`countr`" in done.err
        assert "`counter`" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_the_workflow_runs_as_an_unprivileged_user(request):
    """With a virtual environment that user may read; the demo's own words."""
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]
    python, path = sys.executable, ":".join(sys.path)
    if subprocess.run([*become, f"{python} -c pass"], capture_output=True).returncode:
        python = "/usr/bin/python3"  # the same version, with our packages on its path
    probe = f"PYTHONPATH={path} {python} -c 'import scar, pydantic_core, yaml'"
    if subprocess.run([*become, probe], capture_output=True).returncode:
        pytest.skip("no interpreter here that other users may run")
    # Not below pytest's own folder: that is closed to others.
    home = Path(tempfile.mkdtemp(prefix="scar-unprivileged-", dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(home))
    os.chown(home, 65534, 65534)
    home.chmod(0o755)
    binary = home / "scar"
    binary.write_text(f'#!/bin/sh\nexec {python} -m scar "$@"\n')
    binary.chmod(0o755)
    demo = Path(__file__).parents[2] / "examples" / "genome-gc" / "demo.sh"
    done = subprocess.run(
        [*become, f"sh {demo} {home}/results"],
        env={"HOME": str(home), "PYTHONPATH": path, "PATH": f"{home}:/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((home / "results" / "gc").glob("*.tsv"))) == 8
