"""Which functions made an object, back to what no function made."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Cloud, s3_path, wait_for

BUCKET = "scar-000000000000-us-east-1"
GENOME = Path(__file__).parents[2] / "examples" / "genome-gc"
COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"'


def traced(cloud: Cloud, where: str) -> list[dict[str, Any]]:
    return list(json.loads(cloud.ok("trace", where, "--json"))["Trace"])


def test_the_workflow_of_the_example_is_traced_to_its_genome(cloud: Cloud, tmp_path: Path) -> None:
    genome = tmp_path / "sample one.fasta"
    made = subprocess.run(["sh", GENOME / "make-genome.sh", "30"], capture_output=True, check=True)
    genome.write_bytes(made.stdout)
    cloud.ok("init", "-f", GENOME / "genome-gc.yaml")
    cloud.ok("put", "-b", "genome/input", "-p", genome)
    tables = wait_for(
        "the tables", lambda: [key for key in cloud.keys("genome") if key.startswith("gc/")]
    )

    steps = traced(cloud, f"s3://genome/{tables[0]}")

    count, split, nothing = steps
    assert [its["State"] for its in steps] == ["made", "made", "made by nobody"]
    assert count["MadeBy"]["Function"] == "gc-count"
    assert count["MadeBy"]["Run"].startswith("invocation:")
    assert split["MadeBy"]["Function"] == "gc-split"
    assert split["MadeBy"]["Run"].startswith("job:")
    assert split["Object"].startswith("s3://genome/parts/")
    assert nothing["Object"] == "s3://genome/input/sample one.fasta"
    assert nothing["MadeBy"] is None
    text = cloud.ok("trace", f"genome/{tables[0]}")
    assert f"└─ {split['Object']}" in text
    assert "no function made it" in text
    [command] = [line for line in text.splitlines() if "log: scar" in line and "gc-split" in line]
    words = command.split("log: scar ")[1].split()
    assert words[0] == "--local"
    assert "staged out" in cloud.ok(*words[1:])


@pytest.mark.parametrize("size", [10, 20_000_000])
def test_what_became_of_the_input_since_is_told(
    cloud: Cloud, function: Callable[..., Path], size: int
) -> None:
    """Large outputs go in parts, whose metadata is given when they begin."""
    its = {"name": "copy", "script": COPY}
    paths = {"input": [s3_path("data/in")], "output": [s3_path("data/out")]}
    cloud.ok("init", "-f", function({**its, **paths}))
    s3 = cloud.client("s3")
    s3.put_object(Bucket="data", Key="in/x", Body=os.urandom(size))
    wait_for("the copy", lambda: "out/x" in cloud.keys("data"))
    [made, nothing] = traced(cloud, "data/out/x")
    assert made["MadeBy"]["Record"].startswith(f"s3://{BUCKET}/.scar/done/copy/")
    assert (made["Size"], nothing["State"]) == (size, "made by nobody")

    s3.put_object(Bucket="data", Key="elsewhere", Body=b"other")
    s3.copy_object(Bucket="data", Key="in/x", CopySource="data/elsewhere")
    wait_for("the other copy", lambda: cloud.content("data", "out/x") == b"other")
    s3.delete_object(Bucket="data", Key="in/x")
    assert [its["State"] for its in traced(cloud, "data/out/x")] == ["made", "gone"]
    assert "is not there any more" in cloud.ok("trace", "data/out/x")
    cloud.ok("rm", "-n", "copy")
    s3.put_object(Bucket="data", Key="in/x", Body=b"a third")
    assert [its["State"] for its in traced(cloud, "data/out/x")] == ["made", "replaced"]
    assert "has been replaced since" in cloud.ok("trace", "data/out/x")


def test_an_input_too_long_for_metadata_is_known_by_the_record(
    cloud: Cloud, function: Callable[..., Path]
) -> None:
    its = {"name": "copy", "script": 'echo 1 > "$TMP_OUTPUT_DIR/short"'}
    paths = {"input": [s3_path("data/in")], "output": [s3_path("data/out")]}
    cloud.ok("init", "-f", function({**its, **paths}))
    s3, key = cloud.client("s3"), "in/" + "/".join(["ü" * 100] * 4)
    s3.put_object(Bucket="data", Key=key, Body=b"1")
    wait_for("the output", lambda: "out/short" in cloud.keys("data"))
    assert "scar-input" not in s3.head_object(Bucket="data", Key="out/short")["Metadata"]
    record = wait_for(
        "its record", lambda: [k for k in cloud.keys(BUCKET) if k.startswith(".scar/done/")]
    )

    assert [its["Object"] for its in traced(cloud, "data/out/short")][1] == f"s3://data/{key}"

    s3.delete_object(Bucket=BUCKET, Key=record[0])
    assert [its["State"] for its in traced(cloud, "data/out/short")] == ["made", "unknown"]


def test_an_output_of_no_object_ends_the_way(cloud: Cloud, function: Callable[..., Path]) -> None:
    its = {"name": "make", "script": 'echo 1 > "$TMP_OUTPUT_DIR/made"'}
    cloud.ok("init", "-f", function({**its, "output": [s3_path("data/out")]}))
    cloud.ok("run", "-n", "make")

    assert "of no object" in cloud.ok("trace", "data/out/made")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("s3://data/none", "there is no object `s3://data/none`"),
        ("nowhere/none", "there is no object `s3://nowhere/none`"),
        ("data", "names a bucket, not an object in it"),
        ("s3://data/", "names a bucket, not an object in it"),
        ("https://data/x", "must be in S3, not at `https://`"),
        ("UPPER/x", "must name a bucket of lower-case letters"),
        ("/x", "must start with a bucket"),
    ],
)
def test_what_is_no_object_is_told(cloud: Cloud, given: str, why: str) -> None:
    cloud.run("local", "start")
    cloud.client("s3").create_bucket(Bucket="data")
    for as_json in ([], ["--json"]):
        done = cloud.run("trace", given, *as_json)
        assert (done.code, why in done.err) == (2, True), done
