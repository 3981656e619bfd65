"""The daemon as a process: started, killed, started again, and asked for what it cannot do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from scar import local

TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})


class Daemons:
    """Starts daemons and leaves none behind."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def spawn(
        self, data: Path, *arguments: str, files: int = 1024, **environ: str
    ) -> subprocess.Popen[str]:
        """Start a daemon that may open `files` files until it asks for more."""
        command = [sys.executable, "-P", "-m", "scar_local", "--data", str(data), *arguments]
        process = subprocess.Popen(
            ["sh", "-c", f'ulimit -S -n {files}; exec "$@"', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )
        self.processes.append(process)
        return process

    def start(self, data: Path, *arguments: str, files: int = 1024, **environ: str) -> Cloud:
        process = self.spawn(data, *arguments, files=files, **environ)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        return Cloud(process, json.loads(line))

    def refusal(self, data: Path, *arguments: str, **environ: str) -> tuple[int, str]:
        process = self.spawn(data, *arguments, **environ)
        output, errors = process.communicate(timeout=30)
        assert output == ""
        return process.returncode, errors


class Cloud:
    def __init__(self, process: subprocess.Popen[str], about: dict[str, Any]) -> None:
        self.process, self.about = process, about

    def client(self, name: str) -> Any:
        return boto3.client(  # type: ignore[call-overload]
            name,
            region_name="eu-west-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            endpoint_url=self.about["url"],
        )

    def ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self.about["url"] + path, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture
def daemons() -> Iterator[Daemons]:
    daemons = Daemons()
    yield daemons
    for process in daemons.processes:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def test_what_was_answered_is_there_after_a_kill(daemons: Daemons, tmp_path: Path) -> None:
    pytest.importorskip("moto")
    cloud = daemons.start(tmp_path)
    cloud.client("s3").create_bucket(
        Bucket="video", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    cloud.client("s3").put_object(Bucket="video", Key="input/a b.txt", Body=b"frames")
    cloud.client("logs").create_log_group(logGroupName="/aws/lambda/f", tags={"owner": "me"})
    cloud.client("ecr").create_repository(repositoryName="scar")
    role = cloud.client("iam").create_role(RoleName="r", AssumeRolePolicyDocument=TRUST)["Role"]
    cloud.process.kill()
    cloud.process.wait()
    half_written = tmp_path / "blobs" / "ab" / ("ab" * 16)
    half_written.parent.mkdir(exist_ok=True)
    half_written.write_bytes(b"an upload that the kill cut short")

    again = daemons.start(tmp_path)
    assert again.about["port"] == cloud.about["port"]
    assert not half_written.exists()
    body = again.client("s3").get_object(Bucket="video", Key="input/a b.txt")["Body"].read()
    assert body == b"frames"
    groups = again.client("logs").describe_log_groups()["logGroups"]
    assert [group["logGroupName"] for group in groups] == ["/aws/lambda/f"]
    tagged = again.client("resourcegroupstaggingapi").get_resources()["ResourceTagMappingList"]
    assert [mapping["ResourceARN"] for mapping in tagged] == [groups[0]["logGroupArn"]]
    repositories = again.client("ecr").describe_repositories()["repositories"]
    assert [repository["repositoryName"] for repository in repositories] == ["scar"]
    assert again.client("iam").get_role(RoleName="r")["Role"]["RoleId"] == role["RoleId"]
    assert again.client("sts").get_caller_identity()["Account"] == "000000000000"
    assert again.client("lambda").list_functions()["Functions"] == []
    assert again.client("batch").describe_job_queues()["jobQueues"] == []


def test_it_tells_where_it_is_and_stops_when_asked(daemons: Daemons, tmp_path: Path) -> None:
    cloud = daemons.start(tmp_path / "new" / "folder")
    data = Path(cloud.about["data"])
    assert json.loads((data / "cloud.json").read_text()) == cloud.about
    status = cloud.ask("GET", "/_scar/status")
    assert (status["pid"], status["url"]) == (cloud.process.pid, cloud.about["url"])
    assert status["data"] == str(data)
    assert status["engine"]["probes"]
    assert status["counts"]["buckets"] == 0
    assert cloud.ask("POST", "/_scar/stop") == {"stopping": True}
    assert cloud.process.wait(30) == 0
    assert "Traceback" not in (data / "daemon.log").read_text()
    assert daemons.start(data).about["port"] == cloud.about["port"]


def test_commands_ask_what_is_known_at_once(daemons: Daemons, tmp_path: Path) -> None:
    cloud = daemons.start(tmp_path)
    assert cloud.ask("GET", "/_scar/ping") == cloud.about
    running = local.status(tmp_path)
    assert running is not None
    assert (running.pid, running.url) == (cloud.process.pid, cloud.about["url"])
    assert "engine" not in running.details
    assert local.detailed(running).details["engine"]["probes"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(daemons: Daemons, tmp_path: Path, number: int) -> None:
    cloud = daemons.start(tmp_path)
    cloud.process.send_signal(number)
    assert cloud.process.wait(30) == 0


def test_a_second_daemon_on_the_same_data_steps_back(daemons: Daemons, tmp_path: Path) -> None:
    first = daemons.start(tmp_path)
    code, errors = daemons.refusal(tmp_path)
    assert (code, f"a local cloud runs on {tmp_path} already" in errors) == (75, True)
    assert json.loads((tmp_path / "cloud.json").read_text())["pid"] == first.process.pid


def test_a_taken_port_is_refused_only_when_it_was_asked_for(
    daemons: Daemons, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, errors = daemons.refusal(tmp_path, "--port", str(port))
        assert (code, f"cannot listen on 127.0.0.1:{port}" in errors) == (2, True)
        code, errors = daemons.refusal(tmp_path, SCAR_LOCAL_PORT=str(port))
        assert (code, f"127.0.0.1:{port}" in errors) == (2, True)
        (tmp_path / "cloud.json").write_text(json.dumps({"port": port}))
        assert daemons.start(tmp_path).about["port"] != port


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["--port", "70000"], {}, "0 to 65535"),
        ([], {"SCAR_LOCAL_PORT": "http"}, "0 to 65535"),
        ([], {"SCAR_LOCAL_CONCURRENCY": "lots"}, "SCAR_LOCAL_CONCURRENCY"),
    ],
)
def test_wrong_settings_are_named(
    daemons: Daemons, tmp_path: Path, arguments: list[str], environ: dict[str, str], words: str
) -> None:
    code, errors = daemons.refusal(tmp_path, *arguments, **environ)
    assert (code, words in errors, "Traceback" in errors) == (2, True, False)


def test_it_listens_on_loopback_only(daemons: Daemons, tmp_path: Path) -> None:
    port = daemons.start(tmp_path).about["port"]
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]


def test_many_writers_at_once_all_get_their_answer(daemons: Daemons, tmp_path: Path) -> None:
    cloud = daemons.start(tmp_path)
    logs, s3 = cloud.client("logs"), cloud.client("s3")
    s3.create_bucket(Bucket="many", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    faults: list[ClientError] = []

    def write(number: int) -> None:
        try:
            for turn in range(10):
                s3.put_object(Bucket="many", Key=f"{number}/{turn}", Body=b"x")
                logs.create_log_group(logGroupName=f"{number}/{turn}")
        except ClientError as exc:
            faults.append(exc)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (faults, time.monotonic() - started < 20) == ([], True)
    assert s3.list_objects_v2(Bucket="many")["KeyCount"] == 80
    pages = logs.get_paginator("describe_log_groups").paginate()
    assert sum(len(page["logGroups"]) for page in pages) == 80


def test_many_clients_leave_no_open_files(daemons: Daemons, tmp_path: Path) -> None:
    cloud = daemons.start(tmp_path)
    files = Path(f"/proc/{cloud.process.pid}/fd")
    cloud.ask("GET", "/_scar/status")
    before = len(list(files.iterdir()))
    for _ in range(300):
        assert list_buckets(HTTPConnection("127.0.0.1", cloud.about["port"], timeout=30)) == 200
    assert len(list(files.iterdir())) < before + 40


def test_clients_that_stay_connected_need_no_more_than_a_socket(
    daemons: Daemons, tmp_path: Path
) -> None:
    cloud = daemons.start(tmp_path, files=300)
    with contextlib.ExitStack() as after:
        clients = [HTTPConnection("127.0.0.1", cloud.about["port"], timeout=30) for _ in range(400)]
        for client in clients:
            after.callback(client.close)
        for _ in range(2):
            assert {list_buckets(client, close=False) for client in clients} == {200}
        assert len(list(Path(f"/proc/{cloud.process.pid}/fd").iterdir())) < 400 + 100


def list_buckets(client: HTTPConnection, close: bool = True) -> int:
    client.request("GET", "/")
    answer = client.getresponse()
    answer.read()
    if close:
        client.close()
    return answer.status


@pytest.mark.parametrize("by", ["command", "daemon"])
def test_its_data_is_nobody_elses_to_read(daemons: Daemons, tmp_path: Path, by: str) -> None:
    data = tmp_path / "local"
    before = os.umask(0o022)
    try:
        if by == "command":
            data.mkdir(mode=0o755)
            local.ensure(data)
        else:
            daemons.start(data)
    finally:
        os.umask(before)
    try:
        assert mode(data) == 0o700
        for name in ("cloud.db", "cloud.json", "blobs"):
            assert mode(data / name) & 0o077 == 0
    finally:
        local.stop(data)


def test_a_folder_with_other_things_in_it_keeps_its_mode(daemons: Daemons, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").touch()
    daemons.start(tmp_path)
    assert (mode(tmp_path), mode(tmp_path / "cloud.db")) == (0o755, 0o600)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
