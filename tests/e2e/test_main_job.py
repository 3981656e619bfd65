"""A user can: describe, init, drop a file, find the results, look at the logs, remove."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from tests.e2e.conftest import Cloud, s3_path, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "genome-gc"

COUNT = """#!/bin/sh
wc -c < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH").count"
echo "counted $STORAGE_OBJECT_KEY"
"""


def test_the_demo_runs_a_workflow_across_batch_and_lambda(tmp_path):
    results = tmp_path / "results"
    command = tmp_path / "bin" / "scar"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m scar "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["sh", EXAMPLE / "demo.sh", results],
        env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tables = sorted((results / "gc").glob("*.tsv"))
    assert [table.name for table in tables] == [f"sample-00{n}.tsv" for n in range(1, 9)]
    rows = [line.split("\t") for table in tables for line in table.read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == [f"seq{n:04d}" for n in range(1, 201)]
    assert all(row[1] == "1200" for row in rows)
    assert "200 sequences in 8 parts" in done.stdout


def test_a_file_put_in_the_input_comes_out_of_the_output(cloud: Cloud, function, tmp_path):
    fdl = function(
        {
            "name": "count",
            "script": COUNT,
            "input": [s3_path("data/in")],
            "output": [s3_path("data/out")],
        }
    )
    cloud.ok("init", "-f", fdl)
    (tmp_path / "hello.txt").write_text("hello")
    cloud.ok("put", "-b", "data/in", "-p", tmp_path / "hello.txt")
    wait_for("the output", lambda: "out/hello.txt.count" in cloud.keys("data"))
    cloud.ok("get", "-b", "data/out", "-p", tmp_path / "results")
    assert (tmp_path / "results" / "hello.txt.count").read_text().strip() == "5"
    assert "counted in/hello.txt" in cloud.ok("log", "-n", "count")
    listing = cloud.ok("ls", "-b", "data")
    assert "in/hello.txt" in listing
    assert "out/hello.txt.count" in listing


def test_init_a_second_time_changes_nothing(cloud: Cloud, function):
    fdl = function(
        {"name": "one", "script": COUNT, "input": [s3_path("data/in")]},
        {"name": "two", "script": COUNT, "execution_mode": "batch"},
    )
    first = cloud.run("init", "-f", fdl, "--plan", "--json").json()
    assert {step["Verb"] for step in first["Plan"]} == {"create"}
    assert json.loads(cloud.ok("ls", "--json"))["Functions"] == []
    cloud.ok("init", "-f", fdl)
    assert json.loads(cloud.ok("init", "-f", fdl, "--plan", "--json"))["Plan"] == []
    assert json.loads(cloud.ok("init", "-f", fdl, "--json"))["Steps"] == []


def test_init_with_a_changed_script_updates_the_function_and_says_why(cloud: Cloud, function):
    cloud.ok("init", "-f", function({"name": "f", "script": "echo old"}))
    assert "old" in cloud.ok("run", "-n", "f")
    changed = function({"name": "f", "script": "echo new", "memory": 256})
    plan = json.loads(cloud.ok("init", "-f", changed, "--plan", "--json"))["Plan"]
    assert [step["Verb"] for step in plan if step["Kind"] == "function"] == ["update"]
    assert any("memory_mb 512 -> 256" in step["Why"] for step in plan)
    cloud.ok("init", "-f", changed)
    assert "new" in cloud.ok("run", "-n", "f")


def test_run_gives_the_answer_of_the_script_and_of_arguments(cloud: Cloud, function, tmp_path):
    fdl = function(
        {
            "name": "f",
            "script": 'echo "init $WORD"',
            "container": {"image": "host", "environment": {"Variables": {"WORD": "a=b c"}}},
        }
    )
    cloud.ok("init", "-f", fdl)
    assert cloud.ok("run", "-n", "f").endswith("init a=b c\n")
    (tmp_path / "other.sh").write_text("#!/bin/sh\necho other\n")
    assert cloud.ok("run", "-n", "f", "-s", tmp_path / "other.sh").endswith("other\n")
    assert cloud.ok("run", "-f", fdl, "echo", "two  words", "-n").endswith("two  words -n\n")
    answer = json.loads(cloud.ok("run", "-n", "f", "-j"))["LambdaOutput"]
    assert answer["StatusCode"] == 200
    assert answer["Payload"] == "init a=b c\n"
    assert answer["LogGroupName"] == "/aws/lambda/f"
    started = cloud.ok("run", "-n", "f", "-a")
    assert "Request Id" in started
    request_id = started.split("Request Id:")[1].split()[0]
    assert uuid.UUID(request_id)
    log = wait_for(
        "its log", lambda: "init" in (t := cloud.ok("log", "-n", "f", "-ri", request_id)) and t
    )
    assert log.count("START RequestId") == 1
    assert request_id in log


def test_a_batch_function_hands_over_and_its_job_log_is_found(cloud: Cloud, function):
    cloud.ok(
        "init",
        "-f",
        function({"name": "b", "execution_mode": "batch", "script": "echo in $AWS_BATCH_JOB_ID"}),
    )
    done = cloud.run("run", "-n", "b", "--json")
    assert done.code == 0, done
    log = cloud.ok("log", "-n", "b")
    [job] = cloud.client("batch").list_jobs(
        jobQueue=cloud.client("batch").describe_job_queues()["jobQueues"][0]["jobQueueName"],
        jobStatus="SUCCEEDED",
    )["jobSummaryList"]
    assert f"in {job['jobId']}" in log
    assert f"in {job['jobId']}" in cloud.ok("log", "-n", "b", "-ri", job["jobId"])


def test_log_follow_shows_what_comes_and_ends_on_interrupt(cloud: Cloud, function):
    cloud.ok("init", "-f", function({"name": "f", "script": "echo marked line"}))
    following = cloud.start("log", "-n", "f", "--follow")
    try:
        cloud.ok("run", "-n", "f")
        seen = ""
        while "marked line" not in seen:
            seen += following.stdout.readline()
    finally:
        following.send_signal(2)
        following.communicate(timeout=20)
    assert following.returncode == 130


def test_rm_leaves_nothing_but_the_data(cloud: Cloud, function, tmp_path):
    fdl = function(
        {"name": "l", "script": COUNT, "input": [s3_path("data/in")]},
        {"name": "b", "script": COUNT, "execution_mode": "batch", "input": [s3_path("data/b")]},
    )
    cloud.ok("init", "-f", fdl)
    (tmp_path / "kept.txt").write_text("kept")
    cloud.ok("put", "-b", "data/elsewhere", "-p", tmp_path / "kept.txt")
    assert "l" in cloud.ok("ls")
    cloud.ok("rm", "-f", fdl)
    batch = cloud.client("batch")
    assert cloud.client("lambda").list_functions()["Functions"] == []
    assert cloud.client("logs").describe_log_groups()["logGroups"] == []
    assert batch.describe_job_queues()["jobQueues"] == []
    assert batch.describe_compute_environments()["computeEnvironments"] == []
    assert batch.describe_job_definitions(status="ACTIVE")["jobDefinitions"] == []
    rest = cloud.client("s3").get_bucket_notification_configuration(Bucket="data")
    assert "LambdaFunctionConfigurations" not in rest
    assert cloud.client("ecr").list_images(repositoryName="scar")["imageIds"] == []
    assert "elsewhere/kept.txt" in cloud.keys("data")


def test_rm_by_name_keeps_a_queue_that_another_function_uses(cloud: Cloud, function):
    fdl = function(
        {"name": "one", "script": COUNT, "execution_mode": "batch"},
        {"name": "two", "script": COUNT, "execution_mode": "batch"},
    )
    cloud.ok("init", "-f", fdl)
    cloud.ok("rm", "-n", "one")
    assert "done" in cloud.ok("run", "-n", "two", "-s", _script(cloud, "echo done"))
    assert len(cloud.client("batch").describe_job_queues()["jobQueues"]) == 1
    cloud.ok("rm", "-a")
    assert cloud.client("batch").describe_job_queues()["jobQueues"] == []


def _script(cloud: Cloud, text: str) -> Path:
    path = cloud.home / "given.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    return path


def test_functions_made_by_flags_alone_work(cloud: Cloud, tmp_path):
    (tmp_path / "s.sh").write_text('echo "from flags $WORD"\n')
    cloud.ok(
        "init", "-n", "flagged", "-i", "host", "-s", tmp_path / "s.sh", "-m", 256, "-t", 20,
        "-e", "WORD=x=y", "-ib", "flag-data/in", "-ob", "flag-data/out",
    )  # fmt: skip
    assert "from flags x=y" in cloud.ok("run", "-n", "flagged")
    [listed] = json.loads(cloud.ok("ls", "-j"))["Functions"]
    assert (listed["Name"], listed["Memory"], listed["Timeout"]) == ("flagged", 256, 20)


def test_two_data_folders_are_two_clouds(cloud: Cloud, function, tmp_path):
    other = Cloud(tmp_path / "other-home")
    try:
        cloud.ok("init", "-f", function({"name": "here", "script": COUNT}))
        assert json.loads(other.ok("ls", "--json"))["Functions"] == []
        assert cloud.status["url"] != other.status["url"]
    finally:
        other.run("local", "stop")


def test_two_commands_at_once_do_not_disturb_each_other(cloud: Cloud, tmp_path):
    paths = []
    for n in range(4):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "own.sh").write_text(f"echo answer {n}")
        function = {"name": f"f{n}", "init_script": "own.sh", "container": {"image": "host"}}
        paths.append(folder / "f.yaml")
        paths[n].write_text(json.dumps({"functions": {"aws": [{"lambda": function}]}}))
    started = [cloud.start("init", "-f", str(path)) for path in paths]  # the daemon is not up yet
    for process in started:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
    asked = [cloud.start("run", "-n", f"f{n}") for n in range(4)]
    for n, process in enumerate(asked):
        out, err = process.communicate(timeout=60)
        assert out.endswith(f"answer {n}\n"), out + err


def test_the_aws_cli_works_against_the_local_cloud(cloud: Cloud, function, tmp_path):
    cloud.ok("init", "-f", function({"name": "f", "script": "cat"}))
    aws = shutil.which("aws", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert aws, "awscli is one of the development dependencies"
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [aws, "--endpoint-url", cloud.status["url"], *arguments],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b+ü%.txt").write_text("text")
    (folder / "large.bin").write_bytes(os.urandom(20_000_000))
    call("s3", "mb", "s3://made-by-aws")
    call("s3", "cp", "--recursive", str(folder), "s3://made-by-aws/x")
    assert "large.bin" in call("s3", "ls", "s3://made-by-aws/x/")
    call("s3", "sync", "s3://made-by-aws/x", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "a b+ü%.txt").read_text() == "text"
    assert (tmp_path / "back" / "large.bin").read_bytes() == (folder / "large.bin").read_bytes()
    assert json.loads(call("lambda", "list-functions"))["Functions"][0]["FunctionName"] == "f"
    groups = json.loads(call("logs", "describe-log-groups"))["logGroups"]
    assert [group["logGroupName"] for group in groups] == ["/aws/lambda/f"]
    assert json.loads(call("sts", "get-caller-identity"))["Account"] == "000000000000"
    role = json.loads(
        call("iam", "create-role", "--role-name", "r", "--assume-role-policy-document", "{}")
    )
    assert role["Role"]["Arn"] == "arn:aws:iam::000000000000:role/r"
