"""Every request of a whole session, as it was on the wire, is what AWS's models and signer expect.

The real command, its functions and its jobs reach a real local cloud through a proxy that keeps
what passes; tests/doubles/model_check.py judges it by botocore alone.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name

import scar.aws
from scar.aws.account import Account, Target, connect
from scar.aws.handlers import Handler, handlers
from scar.aws.secrets import secrets_of
from scar.plan.resources import (
    STATE_RULES,
    Bucket,
    BucketSetup,
    FailureDestination,
    InstanceProfile,
    Repository,
    Role,
    Secret,
    ServiceLinkedRole,
)
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.delegate import Batch
from scar_supervisor.faults import DelegationFailed
from scar_supervisor.storage import Storages
from scar_supervisor.storage.s3 import open_s3
from scar_supervisor.storage.secret import ProviderSecret
from tests.doubles import model_check, node_network
from tests.doubles.model_check import Reading
from tests.doubles.recorder import Recorded, Recorder
from tests.e2e.conftest import Cloud, s3_path, wait_for

SECRETS = {"local": "local", "their-id": "their+secret/key"}
BIG = 17 << 20
"""Bytes of an object that the command and the supervisor both send in parts."""

COPY = """#!/bin/sh
case "$STORAGE_OBJECT_KEY" in *bad*) exit 7;; esac
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"
"""
SLOW = """#!/bin/sh
[ -n "$AWS_BATCH_JOB_ID" ] || exec sleep 60
echo "in a job"
"""
FUNCTIONS: list[dict[str, Any]] = [
    {
        "name": "copy",
        "script": COPY,
        "environment": {"Variables": {"SHORT": "x" * 500}},
        "tags": {"project": "wire"},
        "input": [s3_path("data/in")],
        "output": [s3_path("data/out")],
        "api_gateway": {"name": "copy-api"},
    },
    {"name": "slow", "execution_mode": "lambda-batch", "timeout": 11, "script": SLOW},
    {
        "name": "many",
        "execution_mode": "batch",
        "script": COPY,
        "output": [s3_path("work/out")],
        "batch": {"memory": 256, "retry": 1, "timeout": 600},
    },
    {
        "name": "serverless",
        "execution_mode": "batch",
        "script": "echo on Fargate",
        "batch": {"vcpus": 0.25, "memory": 512, "compute_resources": {"type": "FARGATE"}},
    },
]
ABROAD = {
    "name": "abroad",
    "script": 'echo > "$TMP_OUTPUT_DIR/result"',
    "output": [{"storage_provider": "minio.mine", "path": "theirs/out"}],
}
CHANGED = {
    **FUNCTIONS[0],
    "script": f"{COPY}# changed\n",
    "memory": 256,
    "tags": {"purpose": "proof"},
    "environment": {"Variables": {}},
    "api_gateway": {"name": "cow-api", "path_part": "moo", "stage_name": "v2"},
}
NODES = {
    "name": "nodes",
    "execution_mode": "batch",
    "script": "#!/bin/sh\nscar-all hostname\n",
    "batch": {
        "memory": 256,
        "compute_resources": {"max_v_cpus": 2},
        "multi_node_parallel": {"enabled": True, "number_nodes": 2},
    },
}


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Recorded]]:
    """What one session of everything sent."""
    folder = tmp_path_factory.mktemp("wire")
    cloud = Cloud(folder / "home")
    with Recorder().serving() as recorder, behind(recorder, cloud.home / "local"):
        session(cloud, folder)
        shared(recorder.url)
        yield [one for one in recorder.requests if one.service]


@contextmanager
def behind(recorder: Recorder, data: Path) -> Iterator[None]:
    """A local cloud of its own on `data` that is reached through the recorder only."""
    command = [sys.executable, "-m", "scar_local", "--data", str(data), "--url", recorder.url]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    try:
        recorder.upstream = json.loads(daemon.stdout.readline())["port"]
        yield
    finally:
        daemon.terminate()
        daemon.wait(30)
        daemon.stdout.close()


def session(cloud: Cloud, folder: Path) -> None:
    """Every command that asks AWS, in an order that a user might have."""
    functions = [*FUNCTIONS, ABROAD, *([] if node_network.unusable() else [NODES])]
    fdl = written(folder, functions)
    cloud.ok("init", "-f", fdl, "--plan")
    cloud.ok("init", "-f", fdl)
    cloud.ok("init", "-f", written(folder, [CHANGED, *functions[1:]]))
    objects(cloud, folder)
    calls(cloud, folder)
    jobs(cloud)
    cloud.ok("ls")
    destination(connect(Target("local", cloud.status["url"], None, "us-east-1")))
    cloud.ok("rm", "-n", "slow")
    cloud.ok("rm", "-f", fdl)


def objects(cloud: Cloud, folder: Path) -> None:
    files = folder / "files"
    files.mkdir()
    for name in ("a b+ü.txt", "bad.txt", "good.txt"):
        (files / name).write_text(name)
    cloud.ok("put", "-b", "source/in", "-p", files)
    (folder / "big.bin").write_bytes(os.urandom(BIG))
    cloud.ok("put", "-b", "data/in", "-p", folder / "big.bin")
    wait_for("the copy", lambda: "out/big.bin" in cloud.keys("data"))
    cloud.ok("ls", "-b", "data/out")
    cloud.ok("trace", "data/out/big.bin")
    cloud.ok("get", "-b", "data/out", "-p", folder / "results")
    assert (folder / "results" / "big.bin").stat().st_size == BIG


def calls(cloud: Cloud, folder: Path) -> None:
    script, body = folder / "other.sh", folder / "body.bin"
    script.write_text("#!/bin/sh\necho other\n")
    body.write_bytes(b"body")
    cloud.ok("run", "-n", "copy", "-s", script)
    cloud.ok("run", "-n", "copy", "echo", "two  words")
    cloud.ok("run", "-n", "copy", "-a", "echo", "later")
    cloud.run("invoke", "-n", "copy", "-db", body)
    cloud.ok("log", "-n", "copy")
    assert "in a job" in cloud.ok("run", "-n", "slow") or "in a job" in wait_for(
        "the job's log", lambda: "in a job" in (t := cloud.ok("log", "-n", "slow")) and t
    )
    cloud.ok("run", "-n", "serverless")
    cloud.client("s3").create_bucket(Bucket="theirs")
    cloud.ok("run", "-n", "abroad")
    assert cloud.keys("theirs") == ["out/result"]
    if not node_network.unusable():
        cloud.ok("run", "-n", "nodes")


def jobs(cloud: Cloud) -> None:
    cloud.run("run", "-n", "many", "-ib", "source/in", "--wait")
    cloud.run("run", "-n", "many", "--retry-failed", "--wait")
    cloud.run("run", "-n", "copy", "-ib", "source/in", "--wait")
    cloud.ok("run", "-n", "copy", "--all", "--wait")
    listed = json.loads(cloud.ok("ps", "-n", "many", "--json"))["Work"]
    array = next(one["id"] for one in listed if one["kind"] == "array")
    cloud.ok("explain", array)
    cloud.run("wait", array)
    cloud.ok("log", "-n", "many")
    for _ in range(3):  # the environment has room for two
        cloud.ok("run", "-n", "many", "-a", "sleep", "60")
    waiting = wait_for("a job that waits for room", lambda: in_state(cloud, "RUNNABLE"))
    wait_for("running jobs", lambda: len(in_state(cloud, "RUNNING")) == 2)
    cloud.ok("explain", waiting[0])
    cloud.ok("stop", "-n", "many", "--waiting")
    cloud.ok("stop", "-n", "many")
    wait_for("their end", lambda: not in_state(cloud, "RUNNING"))
    cloud.ok("ps", "-n", "many", "--failed")


def in_state(cloud: Cloud, state: str) -> list[str]:
    listed = json.loads(cloud.ok("ps", "-n", "many", "--json"))["Work"]
    return [one["id"] for one in listed if one["state"] == state]


def destination(account: Account) -> None:
    """`rm` has no need to: it removes the function."""
    keeper = handlers(account)[FailureDestination.kind]
    found = keeper.read("slow")
    assert found is not None
    keeper.delete(found)


def shared(url: str) -> None:
    """What no command removes: somebody else may need it."""
    account = connect(Target("local", url, None, "us-east-1"))
    keepers = handlers(account)
    every = [Bucket("nobodys"), BucketSetup("nobodys", STATE_RULES), Repository("nobodys")]
    for resource in every:
        keepers[resource.kind].create(resource)
    for resource in reversed(every):
        keepers[resource.kind].delete(resource)
    roles(account, keepers)
    secrets(account, keepers)
    supervisors(account, keepers)


def roles(account: Account, keepers: Mapping[str, Handler]) -> None:
    """What the target `aws` has, and the local cloud does without."""
    allow = {"Sid": "Any", "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["*"]}
    role = Role("nobodys", "lambda.amazonaws.com", {"Any": allow}, {"owner": "nobody"})
    other = Role(
        "nobodys",
        "ecs-tasks.amazonaws.com",
        {"More": {**allow, "Sid": "More"}},
        {"createdby": "scar"},
    )
    for shared in (InstanceProfile("ecsInstanceRole"), ServiceLinkedRole("batch.amazonaws.com")):
        assert keepers[shared.kind].read(shared.name) is None
        keepers[shared.kind].create(shared)
    keepers[role.kind].create(role)
    assert keepers[role.kind].read(role.name) == role
    keepers[role.kind].update(other, role)
    policy = "arn:aws:iam::aws:policy/ReadOnlyAccess"
    account.client("iam").attach_role_policy(RoleName=role.name, PolicyArn=policy)
    keepers[role.kind].delete(other)


def secrets(account: Account, keepers: Mapping[str, Handler]) -> None:
    secret, keeper = Secret("scar/f/minio.mine", "01", {"a": "b"}, "{}"), keepers[Secret.kind]
    keeper.create(secret)
    keeper.update(replace(secret, credentials="02", tags={}), secret)
    client = account.client("secretsmanager")
    client.delete_secret(SecretId=secret.name, RecoveryWindowInDays=7)  # by somebody
    keeper.create(secret)
    assert secrets_of(account, "f") == [secret.name]
    keeper.delete(secret)


def supervisors(account: Account, keepers: Mapping[str, Handler]) -> None:
    """What a supervisor asks in cases that the session does not come to."""
    secret = Secret("scar/f/supervised", "01", {}, '{"access_key": "a", "secret_key": "b"}')
    for resource in (Bucket("nobodys"), secret):
        keepers[resource.kind].create(resource)
    environ = {
        "AWS_ENDPOINT_URL": str(account.endpoint_url),
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }
    s3 = open_s3(environ)
    etag = s3.write("nobodys", "a/ü+ b", b"1", {"If-None-Match": "*"})
    assert etag
    assert s3.write("nobodys", "a/ü+ b", b"2", {"If-Match": etag})
    assert s3.write("nobodys", "a/ü+ b", b"3", {"If-None-Match": "*"}) is None
    assert not s3.holds("nobodys", "a/ü+ b", __file__, {})
    s3.write("nobodys", ".scar/bursts/f/1", b"{}")
    names = s3.names("nobodys", ".scar/bursts/f/", 10)
    assert names == [".scar/bursts/f/1"]
    s3.remove("nobodys", [*names, "a/ü+ b"])
    assert ProviderSecret("minio.mine", "scar/f/supervised", environ).value("access_key") == "a"
    batch = Batch(environ, Storages(environ))
    config = FunctionConfig("f", "batch", job_queue="gone", job_definition="gone")
    with pytest.raises(DelegationFailed):
        batch.find(config, 0, ("A", "b"))
    assert batch.has_ended("gone")


def written(folder: Path, functions: list[dict[str, Any]]) -> Path:
    items = []
    for its in functions:
        keys = {"container": {"image": "host"}, **its}
        (folder / f"{its['name']}.sh").write_text(str(keys.pop("script")))
        keys["init_script"] = f"{its['name']}.sh"
        beside = {key: keys.pop(key) for key in ("batch", "api_gateway") if key in keys}
        items.append({"lambda": keys, **beside})
    path = folder / "wire.yaml"
    url = json.loads((folder / "home" / "local" / "cloud.json").read_text())["url"]
    keys = {"access_key": "their-id", "secret_key": SECRETS["their-id"]}
    storages = {"minio": {"mine": {"endpoint": url, **keys}}}
    path.write_text(json.dumps({"functions": {"aws": items}, "storage_providers": storages}))
    return path


@pytest.fixture(scope="module")
def readings(requests: list[Recorded]) -> list[tuple[Recorded, Reading]]:
    return [(one, model_check.read(one)) for one in requests]


def named(readings: list[tuple[Recorded, Reading]], operation: str) -> list[Any]:
    return [(request, its) for request, its in readings if its.operation == operation]


def test_no_request_has_what_awss_models_do_not_know(readings: Any) -> None:
    faults = {f"{request}: {fault}" for request, its in readings for fault in its.faults}
    assert not faults, "\n".join(sorted(faults))


def test_every_signature_is_the_one_that_botocore_makes(requests: list[Recorded]) -> None:
    faults = {
        f"{request}: {fault}"
        for request in requests
        if (fault := model_check.signature_fault(request, SECRETS))
    }
    assert not faults, "\n".join(sorted(faults))


NOT_ASKED = {
    "AbortMultipartUpload": "an upload that broke off",
    "ListObjectVersions": "a bucket with versions: the local cloud has none (test_state_moto.py)",
}
"""What the session does not come to, and when it is asked."""


def test_the_session_asks_whatever_scar_can_ask(readings: Any) -> None:
    """The proof is worth what it covers: a call that is added to scar.aws is added here."""
    asked = {its.operation for request, its in readings if not request.is_supervisors}
    assert asked & set(NOT_ASKED) == set()
    assert calls_in(Path(scar.aws.__file__).parent) - asked - set(NOT_ASKED) == set()


def calls_in(folder: Path) -> set[str]:
    """The operations whose boto3 name is an attribute, or a text for a paginator."""
    services = ("apigateway", "batch", "ecr", "iam", "lambda", "logs", "s3", "secretsmanager")
    services += ("sts", "tagging")
    known = {
        xform_name(operation): operation
        for service in services
        for operation in model_check.model_of(service).operation_names
    }
    files = [file for file in folder.glob("*.py") if file.name != "survey.py"]  # test_doctor.py
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {
        node.value for node in nodes if isinstance(node, ast.Constant) and node.value in known
    }
    return {known[name] for name in names & set(known)}


def test_the_session_asks_whatever_the_supervisor_can_ask(readings: Any) -> None:
    asked = {its.operation for request, its in readings if request.is_supervisors}
    assert asked >= BY_SUPERVISOR


BY_SUPERVISOR = {
    *("GetObject", "PutObject", "SubmitJob"),
    *("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
    *("HeadObject", "ListObjectsV2", "DeleteObjects"),
    *("ListJobs", "DescribeJobs", "GetSecretValue"),
}


LIMITS: dict[str, Callable[[Recorded, Reading], bool]] = {
    # https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html; Invoke's model
    "Invoke": lambda request, its: (
        len(request.body)
        <= (1_048_576 if its.params.get("InvocationType") == "Event" else 6_291_456)
    ),
    # https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html
    "RegisterJobDefinition": lambda request, its: len(request.body) <= 24 * 1024,
    "SubmitJob": lambda request, its: len(request.body) <= 30 * 1024 and overrides(its) <= 8192,
    "CreateFunction": lambda request, its: variables(its) <= 4096,
    "UpdateFunctionConfiguration": lambda request, its: variables(its) <= 4096,
}


def overrides(its: Reading) -> int:
    """Characters of what ECS's RunTask takes: the JSON of the overrides (ECS API, RunTask)."""
    return len(json.dumps(its.params.get("containerOverrides") or its.params.get("nodeOverrides")))


def variables(its: Reading) -> int:
    given = its.params.get("Environment", {}).get("Variables", {})
    return sum(len(name.encode()) + len(value.encode()) for name, value in given.items())


@pytest.mark.parametrize("operation", LIMITS)
def test_requests_stay_under_the_limits_of_their_service(readings: Any, operation: str) -> None:
    sent = named(readings, operation)
    assert sent
    for request, its in sent:
        assert LIMITS[operation](request, its), f"{request}: {len(request.body)} bytes"
