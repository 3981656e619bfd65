"""The real command against a real local cloud of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

LIMIT_S = 60


@dataclass
class Result:
    """What one run of the command said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Cloud:
    """One local cloud with its own configuration folder, and the command that talks to it."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `scar --local …` without waiting for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "scar", "--local", *map(str, arguments)],
            env={**os.environ, **self.environment, "SCAR_CONFIG_FOLDER": str(self.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *arguments: object, **options: Any) -> Result:
        """Run `scar --local …` to its end."""
        process = self.start(*map(str, arguments), **options)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"scar {arguments} took more than {LIMIT_S} s\n{out}\n{err}")
        return Result(process.returncode, out, err)

    def ok(self, *arguments: object, **options: Any) -> str:
        """Run it, insist on exit code 0, and give its stdout."""
        result = self.run(*arguments, **options)
        assert result.code == 0, f"scar {arguments}: {result}"
        return result.out

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.home / "local" / "cloud.json").read_text())

    def client(self, service: str) -> Any:
        """A plain boto3 client of this cloud."""
        return boto3.client(
            service,
            endpoint_url=self.status["url"],
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )

    def keys(self, bucket: str) -> list[str]:
        pages = self.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def content(self, bucket: str, key: str) -> bytes:
        return self.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()

    def kill(self) -> None:
        """`kill -9` of the daemon, as a crash would."""
        os.kill(self.status["pid"], signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path / "scar-home")
    yield made
    if (made.home / "local" / "cloud.json").exists():
        made.run("local", "stop")


@pytest.fixture
def function(tmp_path: Path) -> Callable[..., Path]:
    """Write an FDL file with one or more `host` functions and their scripts; give its path."""

    def write(*functions: Mapping[str, Any], name: str = "functions.yaml") -> Path:
        items = []
        for number, wanted in enumerate(functions):
            keys = dict(wanted)
            script = keys.pop("script", None)
            beside = {key: keys.pop(key) for key in ("batch", "api_gateway") if key in keys}
            keys.setdefault("container", {"image": "host"})
            if script is not None:
                keys["init_script"] = f"script-{number}.sh"
                (tmp_path / keys["init_script"]).write_text(script)
            items.append({"lambda": keys, **beside})
        path = tmp_path / name
        path.write_text(json.dumps({"functions": {"aws": items}}))  # JSON is YAML
        return path

    return write


def wait_for(what: str, met: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """Wait until `met()` gives something true, and give that."""
    end = time.monotonic() + limit_s
    while not (value := met()):
        assert time.monotonic() < end, f"waited {limit_s} s in vain for {what}"
        time.sleep(0.05)
    return value


def s3_path(path: str, **filters: Any) -> dict[str, Any]:
    return {"storage_provider": "s3", "path": path, **filters}


def need_program(name: str) -> None:
    from tests.conftest import missing

    if shutil.which(name) is None:
        missing("images", f"{name} is not installed")
