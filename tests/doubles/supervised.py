"""The real supervisor as a process of its own, with S3 to stage from and a Batch that records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scar_local.http import Exchange
from scar_supervisor import contract
from scar_supervisor.contract import FunctionConfig
from tests.doubles.local_s3 import LocalS3

SOURCES = Path(contract.__file__).parent.parent
HOST_COMMAND = (
    *(sys.executable, "-I", "-S", "-B", "-c"),
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from scar_supervisor.__main__ import main; sys.exit(main())",
    str(SOURCES),
)


def _job_id(number: int) -> str:
    return f"11111111-2222-3333-4444-{number:012}"


class Cloud(LocalS3):
    """S3, and a Batch that takes every job down and runs none."""

    def __init__(self, directory: Path) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.batch_status = 200
        self.ended: set[str] = set()
        """Ids of jobs that are not running any more."""
        super().__init__(directory)

    def _answer(self, exchange: Exchange) -> None:
        if "/batch/aws4_request" not in exchange.headers.get("Authorization", ""):
            super()._answer(exchange)
            return
        body = json.loads(exchange.body.read())
        if self.batch_status != 200:
            error = {"__type": "ClientException", "message": "JobQueue q not found"}
            exchange.reply(self.batch_status, json.dumps(error).encode())
            return
        answer = {
            "/v1/submitjob": self._submit,
            "/v1/listjobs": self._list,
            "/v1/describejobs": self._describe,
        }[exchange.path](body)
        exchange.reply(200, json.dumps(answer).encode(), content_type="application/json")

    def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        self.submitted.append(body)
        return {"jobId": _job_id(len(self.submitted)), "jobName": body["jobName"]}

    def _list(self, body: dict[str, Any]) -> dict[str, Any]:
        [by_name] = body["filters"]
        assert by_name["name"] == "JOB_NAME"
        found = [
            {"jobId": _job_id(n), "createdAt": int(time.time() * 1000)}
            for n, job in enumerate(self.submitted, 1)
            if job["jobName"] in by_name["values"]
        ]
        return {"jobSummaryList": found}

    def _describe(self, body: dict[str, Any]) -> dict[str, Any]:
        found = [
            {
                "jobId": _job_id(n),
                "status": "SUCCEEDED" if _job_id(n) in self.ended else "RUNNING",
                "container": job["containerOverrides"],
            }
            for n, job in enumerate(self.submitted, 1)
            if _job_id(n) in body["jobs"]
        ]
        return {"jobs": found}

    @property
    def environment(self) -> dict[str, str]:
        """What the platform tells a container: address, region, credentials."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        }

    def start_over(self, *buckets: str) -> None:
        """As new, with these buckets, all empty."""
        self.submitted.clear()
        self.ended.clear()
        self.batch_status = 200
        for bucket in self.client.list_buckets()["Buckets"]:
            for key in self.keys(bucket["Name"]):
                self.client.delete_object(Bucket=bucket["Name"], Key=key)
            self.client.delete_bucket(Bucket=bucket["Name"])
        for name in buckets:
            self.client.create_bucket(Bucket=name)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, bucket: str, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def keys(self, bucket: str) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=bucket)
        return [item["Key"] for item in listed.get("Contents", [])]


class Supervised:
    """A supervisor process; its stdout is gathered while it runs."""

    def __init__(
        self,
        directory: Path,
        config: FunctionConfig,
        script: str | bytes | None,
        environment: Mapping[str, str],
        command: Sequence[str] = HOST_COMMAND,
    ) -> None:
        self.directory = directory
        function = directory / "function"
        function.mkdir(parents=True, exist_ok=True)
        (function / contract.CONFIG_NAME).write_text(config.dump())
        if script is not None:
            raw = script if isinstance(script, bytes) else script.encode()
            (function / contract.SCRIPT_NAME).write_bytes(raw)
        self.scratch = directory / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self._lines: list[bytes] = []
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={
                "PATH": os.environ["PATH"],
                "TMPDIR": str(self.scratch),
                contract.FUNCTION_DIR_VARIABLE: str(function),
                **environment,
            },
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    @property
    def log(self) -> str:
        return b"".join(self._lines).decode(errors="replace")

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code, when all output has been read."""
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        limit = time.monotonic() + timeout_s
        while text not in self.log:
            assert time.monotonic() < limit, f"no {text!r} in: {self.log}"
            time.sleep(0.01)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def a_config(**changes: Any) -> FunctionConfig:
    return FunctionConfig(**{"name": "f", "has_script": True, **changes})


def processes_with(marker: str) -> list[int]:
    """Processes that have `marker` in their command line or environment."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if marker.encode() in text and state != "Z":
                found.append(int(path.name))
    return found


def s3_event(
    *objects: tuple[str, str, int | None], source: str = "aws:s3", **more: str
) -> dict[str, Any]:
    """An S3 event for (bucket, key as it is, size); `more` of each object: eTag, sequencer."""
    from urllib.parse import quote_plus

    return {
        "Records": [
            {
                "eventSource": source,
                "eventTime": "2026-01-31T12:00:00.000Z",
                "eventName": "ObjectCreated:Put",
                "s3": {
                    "bucket": {"name": bucket},
                    "object": {"key": quote_plus(key, safe="/")}
                    | ({} if size is None else {"size": size})
                    | more,
                },
            }
            for bucket, key, size in objects
        ]
    }
