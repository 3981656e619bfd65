"""Three clouds that speak AWS's APIs, by three different authors: ours, moto and ministack."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from scar.aws.account import Account, Target, connect

MINISTACK = "1.5.33"
"""MIT licence; an independent emulator (https://github.com/ministackorg/ministack)."""

REGION = "us-east-1"
CACHE = Path(__file__).parents[2] / ".cache" / "oracles"
_SERVICES = "apigateway batch ec2 ecr iam lambda logs s3 secretsmanager sts tagging".split()
_START_LIMIT_S = 60


class Unavailable(Exception):
    """An oracle cannot be had here; says why."""


@dataclass(frozen=True)
class Oracle:
    """A cloud to ask."""

    name: str
    url: str

    def account(self) -> Account:
        """As SCAR sees it."""
        return connect(Target("local", self.url, None, REGION))

    def client(self, service: str) -> Any:
        """As any program sees it: nothing is sent twice."""
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
                read_timeout=20,
            ),
        )

    def environ(self) -> dict[str, str]:
        """What a supervisor would be given."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        }


@contextmanager
def moto() -> Iterator[Oracle]:
    """moto's own server, in this process; no job and no function of its runs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        asked = urllib.request.Request(
            f"{url}/moto-api/config",
            b'{"batch": {"use_docker": false}, "lambda": {"use_docker": false}}',
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(asked, timeout=20).close()
        yield Oracle("moto", url)
    finally:
        server.stop()


@contextmanager
def ministack(data: Path) -> Iterator[Oracle]:
    """ministack in a process of its own, on loopback only. Raises Unavailable."""
    program = _installed()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": ",".join(_SERVICES),
        "HOME": str(data),
        "TMPDIR": str(data),
        "LAMBDA_EXECUTOR": "local",
        "LOG_LEVEL": "WARNING",
    }
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    with (data / "ministack.log").open("wb") as log:
        process = subprocess.Popen([program], env={**kept, **own}, cwd=data, stdout=log, stderr=log)
    try:
        _wait(process, f"http://127.0.0.1:{port}/_ministack/health", data)
        yield Oracle("ministack", f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _installed() -> Path:
    """ministack's program, in a virtual environment that is made once. Raises Unavailable."""
    CACHE.mkdir(parents=True, exist_ok=True)
    home = CACHE / f"ministack-{MINISTACK}"
    program = home / "bin" / "ministack"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(home)],
                [str(home / "bin" / "pip"), "install", "--quiet", f"ministack=={MINISTACK}"],
            ):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise Unavailable(f"ministack cannot be installed: {done.stderr[-300:]}")
    return program


def _wait(process: subprocess.Popen[bytes], url: str, data: Path) -> None:
    end = time.monotonic() + _START_LIMIT_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.1)
    raise Unavailable(f"ministack does not start: {(data / 'ministack.log').read_text()[-300:]}")
