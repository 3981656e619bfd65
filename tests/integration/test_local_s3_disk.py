"""The local S3 on a disk that is full or fails: what was answered is whole, the rest is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.local_s3 import LocalS3


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
