"""The AWS CLI against the local S3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.local_s3 import LocalS3


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalS3]:
    local = LocalS3(tmp_path / "data")
    yield local
    local.close()


def aws(cloud: LocalS3, *words: str) -> str:
    program = Path(sys.executable).with_name("aws")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(cloud.directory),
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    run = subprocess.run(
        [str(program), "--endpoint-url", cloud.url, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_folder_goes_up_across_and_down(cloud: LocalS3, tmp_path: Path) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    (here / "sub dir").mkdir(parents=True)
    files = {"a.txt": b"a", "sub dir/ü+%.bin": b"b" * 100_000, "big": os.urandom(17 << 20)}
    for name, body in files.items():
        (here / name).write_bytes(body)
    aws(cloud, "s3", "mb", "s3://bucket")
    aws(cloud, "s3", "sync", "--quiet", str(here), "s3://bucket/in")
    aws(cloud, "s3", "cp", "--quiet", "--recursive", "s3://bucket/in", "s3://bucket/copy")
    aws(cloud, "s3", "sync", "--quiet", "s3://bucket/copy", str(back))
    assert {n: (back / n).read_bytes() for n in files} == files
    assert "3" in aws(cloud, "s3", "ls", "--recursive", "--summarize", "s3://bucket/copy/")
    aws(cloud, "s3", "rb", "--force", "s3://bucket")
    assert cloud.client.list_buckets()["Buckets"] == []
    assert cloud.blobs() == set()
