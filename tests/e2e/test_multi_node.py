"""Jobs of several nodes, through the real command: addresses of their own, one result, one log."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scar_supervisor.contract import REQUEST_ID_VARIABLE, FunctionConfig
from scar_supervisor.delegate import Batch
from scar_supervisor.storage import Storages
from tests.conftest import missing
from tests.doubles import mpi, node_network
from tests.e2e.conftest import Cloud, s3_path, wait_for
from tests.e2e.test_real_images import CACHE, _debian_mirror

EXAMPLE = Path(__file__).parents[2] / "examples" / "mpi-pi"
NODES = {
    "compute_resources": {"max_v_cpus": 3},
    "memory": 256,
    "multi_node_parallel": {"enabled": True, "number_nodes": 3},
}
PI = b"3.1415926536\n"


@pytest.fixture(autouse=True)
def _addresses():
    if why := node_network.unusable():
        missing("namespaces", why)


def test_nodes_have_addresses_of_their_own_and_only_the_main_node_uploads(cloud: Cloud, function):
    script = (
        "#!/bin/sh\nscar-all sh -c 'hostname; echo x > $TMP_OUTPUT_DIR/node-$SCAR_NODE_INDEX'\n"
        'wc -l < "$SCAR_HOSTFILE"\n'
    )
    fdl = function(
        {
            "name": "hello",
            "execution_mode": "batch",
            "script": script,
            "output": [s3_path("results/out")],
            "batch": NODES,
        }
    )
    cloud.ok("init", "-f", fdl)
    out = cloud.ok("run", "-n", "hello")
    for index in range(3):
        assert f"[{index}] ip-10-77-0-1{index}" in out
    assert "\n3\n" in out
    assert cloud.keys("results") == ["out/node-0"]


def test_a_script_that_fails_fails_the_job_with_its_code(cloud: Cloud, function):
    script = "#!/bin/sh\nscar-rsh node2 'exit 9'\n"
    fdl = function({"name": "no", "execution_mode": "batch", "script": script, "batch": NODES})
    cloud.ok("init", "-f", fdl)
    result = cloud.run("run", "-n", "no")
    assert result.code == 5
    assert "exit code 9" in result.err + result.out
    jobs = cloud.client("batch")
    queue = jobs.describe_job_queues()["jobQueues"][0]["jobQueueName"]
    [job] = jobs.list_jobs(jobQueue=queue, jobStatus="FAILED")["jobSummaryList"]
    nodes = jobs.describe_jobs(jobs=[f"{job['jobId']}#{i}" for i in range(3)])["jobs"]
    assert [node["container"]["exitCode"] for node in nodes] == [9, 0, 0]


def test_a_bulk_run_is_refused_before_anything_is_made(cloud: Cloud, function):
    wanted = {"name": "no", "execution_mode": "batch", "script": "true", "batch": NODES}
    cloud.ok("init", "-f", function({**wanted, "input": [s3_path("data/in")]}))
    result = cloud.run("run", "-n", "no", "--all", "--wait")
    assert result.code == 2
    assert "error: function `no` is a multi-node parallel job" in result.err
    assert "`scar --local run` it without `--all` and `-ib`" in result.err
    assert len(result.err.splitlines()) == 2
    buckets = [one["Name"] for one in cloud.client("s3").list_buckets()["Buckets"]]
    assert [cloud.keys(bucket) for bucket in buckets] == [[], []]
    assert cloud.ok("stop", "-n", "no") == "nothing to stop\n"


def _deployed(cloud: Cloud, folder: Path, text: str) -> None:
    shutil.copytree(EXAMPLE, folder)
    (folder / "mpi-pi.yaml").write_text(text)
    cloud.ok("init", "-f", folder / "mpi-pi.yaml")


def _result(cloud: Cloud, where: str, steps: Path) -> bytes:
    """Drop the file that triggers a function and fetch what it makes."""
    for attempt in range(2):  # Open MPI 5's launcher may hang at its end (open-mpi/ompi#12064)
        steps.write_text(f"{200_000 + attempt}\n")
        cloud.ok("put", "-b", f"mpi-pi/{where}", "-p", steps)
        try:
            wait_for(
                f"pi of {where}",
                lambda: f"from-{where}/pi.txt" in cloud.keys("mpi-pi"),
                30 + 30 * attempt,
            )
        except AssertionError:
            if attempt:
                raise
        else:
            break
    return cloud.content("mpi-pi", f"from-{where}/pi.txt")


def _check(cloud: Cloud, tmp_path: Path) -> None:
    for where in ("nodes", "batch", "lambda"):
        assert _result(cloud, where, tmp_path / "steps") == PI
    assert "6 ranks on 3 hosts: pi is 3.1415926536" in cloud.ok("log", "-n", "pi-nodes")
    assert "2 ranks on 1 hosts" in cloud.ok("log", "-n", "pi-batch")
    assert "2 ranks on 1 hosts" in cloud.ok("log", "-n", "pi-lambda")


def test_the_mpi_example_runs_on_nodes_on_one_machine_and_on_lambda(cloud: Cloud, tmp_path):
    """With the MPI of a wheel and the machine's own files, which takes seconds."""
    try:
        place = mpi.installed(mpi.ALWAYS[0])
    except RuntimeError as exc:
        missing("mpi", str(exc))
    variables = f"environment: {{Variables: {{PATH: '{place}/bin:{os.environ['PATH']}'}}}}"
    text = (EXAMPLE / "mpi-pi.yaml").read_text()
    image = "image_file: mpi.tar # made by make-image.sh"
    assert image in text
    text = text.replace(image, f"image: host\n          {variables}")
    _deployed(cloud, tmp_path / "mpi-pi", text)
    _check(cloud, tmp_path)


@pytest.mark.images
@pytest.mark.skipif(not mpi.everything(), reason="SCAR_TEST_MPI=all tries this")
@pytest.mark.parametrize("engine", ["bubblewrap", "docker"])
def test_the_mpi_example_runs_in_its_image(cloud: Cloud, tmp_path, engine):
    if engine == "docker" and subprocess.run(["docker", "info"], capture_output=True).returncode:
        missing("docker", "no Docker daemon answers")
    image = CACHE / "mpi.tar"
    if not image.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = CACHE / f"mpi-{os.getpid()}.tar"
        command = ["sh", EXAMPLE / "make-image.sh", made, *_debian_mirror()]
        subprocess.run(command, check=True, timeout=600)
        made.rename(image)
    cloud.environment["SCAR_LOCAL_ENGINE"] = engine
    text = (EXAMPLE / "mpi-pi.yaml").read_text().replace("mpi.tar #", f"{image} #")
    _deployed(cloud, tmp_path / "mpi-pi", text)
    _check(cloud, tmp_path)


def test_failed_events_of_multi_node_jobs_are_kept_and_run_again_one_by_one(cloud: Cloud, function):
    its = {"name": "no", "execution_mode": "batch", "batch": {**NODES, "retry": 0}}
    cloud.ok("init", "-f", function({**its, "script": "exit 9"}))
    assert cloud.run("run", "-n", "no").code == 5
    cloud.ok("run", "-n", "no", "-a", "sh", "-c", 'test -n "$MENDED" || sleep 60')

    def running() -> list[str]:
        listed = json.loads(cloud.ok("ps", "-n", "no", "--json"))["Work"]
        return [one["id"] for one in listed if one["state"] == "RUNNING" and one["kind"] == "job"]

    [job] = wait_for("it to run", running)
    cloud.ok("stop", job, "--reason", "the test says so")
    cloud.run("wait", job)

    def failed() -> dict[int | None, dict]:
        kept = json.loads(cloud.ok("ps", "-n", "no", "--failed", "--json"))["Failed"]
        return {one["ExitCode"]: one["Event"] for one in kept}

    kept = failed()
    assert (len(kept), kept[9]) == (2, {})
    [stopped] = [event for code, event in kept.items() if code != 9]
    assert "sleep 60" in stopped["cmd_args"]
    container = {"image": "host", "environment": {"Variables": {"MENDED": "yes"}}}
    cloud.ok("init", "-f", function({**its, "script": "exit 0", "container": container}))
    again = json.loads(cloud.ok("run", "-n", "no", "--retry-failed", "--wait", "--json"))
    assert (again["BulkRun"]["Objects"], again["BulkRun"]["Succeeded"]) == (2, 2)
    assert failed() == {}


def test_a_job_of_nodes_is_found_by_the_invocation_that_submitted_it(cloud: Cloud, function):
    """Who was killed after SubmitJob looks whether it had come so far."""
    fdl = function({"name": "yes", "execution_mode": "batch", "script": "true", "batch": NODES})
    cloud.ok("init", "-f", fdl)
    ran = json.loads(cloud.ok("run", "-n", "yes", "--json").splitlines()[0])["LambdaOutput"]
    queue = cloud.client("batch").describe_job_queues()["jobQueues"][0]["jobQueueName"]
    environ = {
        "AWS_ENDPOINT_URL": cloud.status["url"],
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }
    config = FunctionConfig("yes", job_queue=queue)
    batch = Batch(environ, Storages(environ))

    known = [(REQUEST_ID_VARIABLE, ran["RequestId"]), (REQUEST_ID_VARIABLE, "another")]
    assert [batch.find(config, 0, one) for one in known] == [ran["JobId"], None]
