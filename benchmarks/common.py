"""A throw-away local cloud to measure, and one way to print a table."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config


class Cloud:
    """A local cloud in a folder of its own, the command and clients that talk to it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "SCAR_CONFIG_FOLDER": str(home), "SCAR_TARGET": "local"}

    def scar(self, *arguments: object) -> str:
        command = [sys.executable, "-m", "scar", *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def client(self, service: str) -> Any:
        status = json.loads((self.home / "local" / "cloud.json").read_text())
        return boto3.client(
            service,
            endpoint_url=status["url"],
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(max_pool_connections=32, read_timeout=300),
        )

    def deploy(self, *functions: dict[str, Any]) -> None:
        """`init` of `host` functions; each dict holds `lambda`'s keys, `script` and `batch`."""
        items = []
        for function in functions:
            script = self.home / f"{function['name']}.sh"
            script.write_text(function.pop("script"))
            batch = function.pop("batch", {})
            keys = {"init_script": script.name, "container": {"image": "host"}, **function}
            items.append({"lambda": keys, "batch": batch})
        fdl = self.home / "fdl.yaml"
        fdl.write_text(json.dumps({"functions": {"aws": items}}))
        self.scar("init", "-f", fdl)

    def memory_mb(self, peak: bool = False) -> float:
        """Resident memory of the daemon, MB (10^6 bytes)."""
        pid = json.loads((self.home / "local" / "cloud.json").read_text())["pid"]
        field = "VmHWM:" if peak else "VmRSS:"
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1.024 / 1000


@contextmanager
def cloud() -> Iterator[Cloud]:
    home = Path(tempfile.mkdtemp(prefix="scar-bench-"))
    made = Cloud(home)
    try:
        made.scar("local", "start")
        yield made
    finally:
        made.scar("local", "stop")
        shutil.rmtree(home)


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def until(met: Callable[[], object], limit_s: float = 300) -> None:
    end = time.monotonic() + limit_s
    while not met():
        if time.monotonic() > end:
            raise SystemExit("the benchmark waited in vain")
        time.sleep(0.01)


def milliseconds(seconds: Sequence[float]) -> str:
    """`min / median / max` in ms."""
    values = (min(seconds), statistics.median(seconds), max(seconds))
    return " / ".join(f"{1000 * value:.0f}" for value in values)


def table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    print(f"\n{title}")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
