"""The local S3 on a disk that is full or fails: what was answered is whole, the rest is gone."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from scar_local.store import Store
from tests.doubles.images import ecr, served_registry
from tests.doubles.local_s3 import LocalS3

ROOM = (1 << 20) - 1000
"""Bytes that a file may have on a disk that is full."""


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalS3]:
    local = LocalS3(tmp_path)
    local.client.create_bucket(Bucket="bucket")
    yield local
    local.close()


def body_of(cloud: LocalS3, key: str) -> bytes:
    body: bytes = cloud.client.get_object(Bucket="bucket", Key=key)["Body"].read()
    return body


def make_irremovable(cloud: LocalS3, blob: str) -> None:
    """`unlink` fails on a directory, whoever asks."""
    path = cloud.store.blob(blob)
    path.unlink()
    path.mkdir()


def upload(cloud: LocalS3, key: str, body: bytes) -> Any:
    names: dict[str, Any] = {"Bucket": "bucket", "Key": key}
    names["UploadId"] = cloud.client.create_multipart_upload(**names)["UploadId"]
    tag = cloud.client.upload_part(**names, PartNumber=1, Body=body)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
    return cloud.client.complete_multipart_upload(**names, MultipartUpload=parts)


@pytest.mark.parametrize("how", ["put", "copy", "upload"])
def test_a_new_object_stays_when_the_bytes_of_the_old_one_cannot_be_removed(
    cloud: LocalS3, how: str
) -> None:
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"old")
    (old,) = cloud.blobs()
    cloud.client.put_object(Bucket="bucket", Key="other", Body=b"new")
    make_irremovable(cloud, old)
    if how == "put":
        done = cloud.client.put_object(Bucket="bucket", Key="k", Body=b"new")
    elif how == "copy":
        done = cloud.client.copy_object(Bucket="bucket", Key="k", CopySource="bucket/other")
    else:
        done = upload(cloud, "k", b"new")
    assert done["ResponseMetadata"]["RetryAttempts"] == 0
    assert body_of(cloud, "k") == b"new"


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file grows further: a write over the limit is short, the next one fails, as at the end of
    a disk. The database stays well below."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [ROOM + 1, ROOM + 100_000, 3 * ROOM])
def test_what_does_not_fit_on_the_disk_is_refused_and_leaves_nothing(
    cloud: LocalS3, size: int
) -> None:
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"old")
    before = cloud.blobs()
    with full_disk(ROOM), pytest.raises(ClientError) as caught:
        cloud.client.put_object(Bucket="bucket", Key="k", Body=bytes(size))
    answer = caught.value.response
    assert answer["Error"]["Code"] == "InsufficientStorage"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 507
    assert answer["ResponseMetadata"]["RetryAttempts"] == 0
    assert (cloud.blobs(), body_of(cloud, "k")) == (before, b"old")


@pytest.mark.parametrize("in_kernel", [True, False])
def test_parts_that_do_not_fit_on_the_disk_are_not_joined(
    cloud: LocalS3, monkeypatch: pytest.MonkeyPatch, in_kernel: bool
) -> None:
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    names: dict[str, Any] = {"Bucket": "bucket", "Key": "k"}
    names["UploadId"] = cloud.client.create_multipart_upload(**names)["UploadId"]
    body = os.urandom(5 << 20)
    tags = [cloud.client.upload_part(**names, PartNumber=n, Body=body)["ETag"] for n in (1, 2)]
    parts = {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, start=1)]}
    with full_disk(8 << 20), pytest.raises(ClientError, match="InsufficientStorage"):
        cloud.client.complete_multipart_upload(**names, MultipartUpload=parts)
    assert len(cloud.blobs()) == 2
    cloud.client.complete_multipart_upload(**names, MultipartUpload=parts)
    assert body_of(cloud, "k") == body * 2


def test_a_layer_that_does_not_fit_on_the_disk_is_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with served_registry(tmp_path) as (registry, client):
        ecr(registry, "create_repository", repositoryName="scar")
        place = client.request("POST", "/v2/scar/blobs/uploads/").headers["Location"]
        with full_disk(ROOM):
            assert client.request("PATCH", place, bytes(ROOM + 1)).status == 507
        assert client.request("PATCH", place, b"more").status == 404
        assert registry.disk_bytes() == 0
        assert list(Store(tmp_path).all_blobs()) == []
