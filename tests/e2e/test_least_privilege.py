"""Everything that functions and jobs send is allowed by the roles that SCAR would make for them.

Real workflows run on a real local cloud; the requests of each function pass a proxy of its own,
those of its jobs another one. `scar iam` gives the policies, tests/doubles/iam.py judges by them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.doubles import model_check
from tests.doubles.iam import Asked, allowing, asked_by
from tests.doubles.recorder import Recorder
from tests.e2e.conftest import Cloud, s3_path, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
ACCOUNT, REGION = "000000000000", "us-east-1"

COPY = """#!/bin/sh
case "$STORAGE_OBJECT_KEY" in *bad*) exit 7;; esac
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"
"""
SLOW = """#!/bin/sh
[ -n "$AWS_BATCH_JOB_ID" ] || exec sleep 60
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"
"""


@dataclass
class Session:
    """A cloud, and what was sent to it: by `<function>/function` and `jobs`."""

    cloud: Cloud
    folder: Path
    recorders: dict[str, Recorder]
    fdl: Path
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By function and use."""

    def deploy(self) -> None:
        """`init`, and the policies of the roles that it would make on AWS."""
        self.cloud.ok("init", "-f", self.fdl)
        for function in json.loads(self.cloud.ok("iam", "-f", self.fdl))["Functions"]:
            uses = {role["Use"]: role["Policy"] for role in function["Roles"]}
            self.policies[function["Name"]] = uses

    def put(self, name: str, content: bytes, bucket: str) -> None:
        """Upload a file."""
        (self.folder / name).write_bytes(content)
        self.cloud.ok("put", "-b", bucket, "-p", self.folder / name)

    def sent(self, who: str) -> set[Asked]:
        """What the supervisors behind one proxy needed; answered well or not."""
        return {
            asked
            for request in self.recorders[who].requests
            if request.service and request.is_supervisors
            for asked in asked_by(model_check.read(request), ACCOUNT, REGION)
        }

    def check(self) -> set[tuple[str, str]]:
        """Every request is allowed by its sender's role; (use, statement) of those that allow."""
        used: set[tuple[str, str]] = set()
        refused: list[str] = []
        for name, uses in self.policies.items():
            for use, who in (("function", f"{name}/function"), ("job", f"{name}/job")):
                if who not in self.recorders:
                    continue
                for asked in self.sent(who):
                    ids = allowing([uses[use]], asked)
                    used |= {(use, one) for one in ids}
                    refused += [] if ids else [f"{who}: {asked[0]} on {asked[1]}"]
        assert not refused, "\n".join(sorted(refused))
        return used


@contextmanager
def session(folder: Path, functions: Sequence[Mapping[str, Any]]) -> Iterator[Session]:
    """A cloud of its own for `functions`; at most one of them has jobs."""
    home = folder / "home"
    recorders = {f"{its['lambda']['name']}/function": Recorder() for its in functions}
    with_jobs = [its["lambda"]["name"] for its in functions if "execution_mode" in its["lambda"]]
    assert len(with_jobs) <= 1
    jobs = recorders.setdefault(f"{(with_jobs or ['no'])[0]}/job", Recorder())
    told = []
    for its in functions:
        url = recorders[f"{its['lambda']['name']}/function"].url
        variables = {"Variables": {"AWS_ENDPOINT_URL": url}}
        told.append({**its, "lambda": {**its["lambda"], "environment": variables}})
    fdl = folder / "functions.yaml"
    fdl.write_text(json.dumps({"functions": {"aws": told}}))
    command = [sys.executable, "-m", "scar_local", "--data", str(home / "local")]
    with ExitStack() as stack:
        for recorder in recorders.values():
            stack.enter_context(recorder.serving())
        daemon = subprocess.Popen([*command, "--url", jobs.url], stdout=subprocess.PIPE, text=True)
        stack.enter_context(daemon)
        stack.callback(daemon.terminate)
        assert daemon.stdout is not None
        port = json.loads(daemon.stdout.readline())["port"]
        for recorder in recorders.values():
            recorder.upstream = port
        yield Session(Cloud(home), folder, recorders, fdl)


def example(name: str, folder: Path) -> list[dict[str, Any]]:
    """The functions of an example, with their files copied into `folder`."""
    for file in (EXAMPLES / name).glob("*.sh"):
        (folder / file.name).write_bytes(file.read_bytes())
    fdl = yaml.safe_load((EXAMPLES / name / f"{name}.yaml").read_text())
    functions: list[dict[str, Any]] = fdl["functions"]["aws"]
    return functions


def test_a_workflow_of_a_job_and_of_invocations(tmp_path: Path) -> None:
    with session(tmp_path, example("genome-gc", tmp_path)) as its:
        its.deploy()
        maker = ["sh", EXAMPLES / "genome-gc" / "make-genome.sh", "50"]
        genome = subprocess.run(maker, check=True, capture_output=True).stdout
        its.put("sample.fasta", genome, "genome/input")
        wait_for("the tables", lambda: len(_below(its, "genome", "gc/")) == 2)
        used = its.check()
    assert {("function", "Jobs"), ("job", "Inputs"), ("job", "Outputs")} <= used
    assert {("function", "Inputs"), ("function", "Outputs"), ("job", "State")} <= used


def test_a_job_with_a_large_script(tmp_path: Path) -> None:
    with session(tmp_path, example("scar-plants", tmp_path)) as its:
        its.deploy()
        maker = ["sh", EXAMPLES / "scar-plants" / "make-leaves.sh", "7", "4"]
        rows = subprocess.run(maker, check=True, capture_output=True).stdout
        leaves = [f"{n},{row.split(',', 1)[1]}" for n, row in enumerate(rows.decode().splitlines())]
        heads = "leaf,length_mm,width_mm,stalk_mm,widest_at,teeth"
        its.put("garden.csv", "\n".join([heads, *leaves, ""]).encode(), "plants/leaves")
        wait_for("the species", lambda: _below(its, "plants", "species/"))
        its.check()


def test_large_bodies_large_files_and_failures(tmp_path: Path) -> None:
    (tmp_path / "copy.sh").write_text(COPY)
    copy = {
        "name": "copy",
        "init_script": "copy.sh",
        "container": {"image": "host"},
        "input": [s3_path("data/in")],
        "output": [s3_path("data/out")],
    }
    with session(tmp_path, [{"lambda": copy}]) as its:
        its.deploy()
        its.put("big.bin", bytes(17 << 20), "data/in")
        its.put("bad.txt", b"bad", "data/in")
        script = tmp_path / "other.sh"
        script.write_text("#!/bin/sh\necho other\n" + "# much\n" * 1_200_000)
        assert "other" in its.cloud.ok("run", "-n", "copy", "-s", script)
        wait_for("the copy", lambda: "out/big.bin" in its.cloud.keys("data"))
        its.cloud.run("run", "-n", "copy", "--all", "--wait")
        used = its.check()
    assert {("function", "State"), ("function", "Inputs"), ("function", "Outputs")} <= used


def test_events_that_run_out_of_time_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "slow.sh").write_text(SLOW)
    slow = {
        "name": "slow",
        "execution_mode": "lambda-batch",
        "timeout": 11,
        "init_script": "slow.sh",
        "container": {"image": "host"},
        "input": [s3_path("slow/in")],
        "output": [s3_path("slow/out")],
    }
    with session(tmp_path, [{"lambda": slow}]) as its:
        its.deploy()
        its.put("one.txt", b"one", "slow/in")
        wait_for("the first output", lambda: "out/one.txt" in its.cloud.keys("slow"))
        its.put("two.txt", b"larger", "slow/in")
        wait_for("the second output", lambda: "out/two.txt" in its.cloud.keys("slow"))
        used = its.check()
    assert {("function", "Jobs"), ("function", "State"), ("job", "Outputs")} <= used


def test_a_burst_that_becomes_an_array(tmp_path: Path) -> None:
    (tmp_path / "copy.sh").write_text(COPY)
    many = {
        "name": "many",
        "execution_mode": "batch",
        "init_script": "copy.sh",
        "container": {"image": "host"},
        "input": [s3_path("many/in")],
        "output": [s3_path("many/out")],
    }
    batch = {"memory": 64, "coalesce": {"window_s": 1, "max_events": 10}}
    with session(tmp_path, [{"lambda": many, "batch": batch}]) as its:
        its.deploy()
        files = tmp_path / "files"
        files.mkdir()
        for n in range(5):
            (files / f"{n}.txt").write_text(str(n))
        (files / "bad.txt").write_text("bad")
        its.cloud.ok("put", "-b", "many/in", "-p", files)
        wait_for("the outputs", lambda: len(_below(its, "many", "out/")) == 5)
        wait_for("the failure", lambda: _failed(its, "many"))
        used = its.check()
    expected = {("function", one) for one in ("Jobs", "State", "Bursts", "Keys")}
    assert expected | {("job", "Inputs"), ("job", "Outputs"), ("job", "State")} <= used


def _below(its: Session, bucket: str, prefix: str) -> list[str]:
    return [key for key in its.cloud.keys(bucket) if key.startswith(prefix)]


def _failed(its: Session, function: str) -> list[str]:
    return _below(its, f"scar-{ACCOUNT}-{REGION}", f".scar/failed/{function}/")
