"""Multipart uploads and listings of the local S3."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tests.doubles.local_s3 import LocalS3

MIB = 1 << 20
PART = os.urandom(5 * MIB)
LAST = b"the end"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalS3]:
    local = LocalS3(tmp_path)
    local.client.create_bucket(Bucket="bucket")
    yield local
    local.close()


class Upload:
    """One upload through the plain calls."""

    def __init__(self, cloud: LocalS3, key: str = "k", **arguments: Any) -> None:
        self.client, self.where = cloud.client, {"Bucket": "bucket", "Key": key}
        made = self.client.create_multipart_upload(**self.where, **arguments)
        self.where["UploadId"] = made["UploadId"]
        self.parts: list[dict[str, Any]] = []

    def put(self, number: int, body: bytes, **arguments: Any) -> None:
        answer = self.client.upload_part(**self.where, PartNumber=number, Body=body, **arguments)
        told = {name: answer[name] for name in answer if name.startswith("Checksum")}
        self.parts.append({"PartNumber": number, "ETag": answer["ETag"], **told})

    def complete(self, **arguments: Any) -> Any:
        return self.client.complete_multipart_upload(
            **self.where, MultipartUpload={"Parts": self.parts}, **arguments
        )


def refused(call: Any, *args: Any, **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call(*args, **arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def body_of(cloud: LocalS3, key: str, **arguments: Any) -> bytes:
    body: bytes = cloud.client.get_object(Bucket="bucket", Key=key, **arguments)["Body"].read()
    return body


def test_parts_become_one_object_and_leave_one_blob(cloud: LocalS3) -> None:
    upload = Upload(cloud, "k", ContentType="text/x", Metadata={"a": "1"})
    upload.put(7, LAST)
    upload.put(2, PART)
    upload.put(2, PART)
    upload.parts = [upload.parts[2], upload.parts[0]]
    answer = upload.complete()
    digests = hashlib.md5(PART).digest() + hashlib.md5(LAST).digest()
    assert answer["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-2"'
    assert body_of(cloud, "k") == PART + LAST
    found = cloud.client.head_object(Bucket="bucket", Key="k", PartNumber=2)
    assert (found["PartsCount"], found["ContentLength"]) == (2, len(LAST))
    assert (found["ContentType"], found["Metadata"]) == ("text/x", {"a": "1"})
    assert body_of(cloud, "k", PartNumber=2) == LAST
    assert len(cloud.blobs()) == 1
    assert refused(upload.complete) == ("NoSuchUpload", 404)


def test_a_faulty_completion_is_refused_and_the_upload_stays(cloud: LocalS3) -> None:
    upload = Upload(cloud)
    upload.put(1, b"too small")
    upload.put(2, LAST)
    assert refused(upload.complete) == ("EntityTooSmall", 400)
    upload.parts.reverse()
    assert refused(upload.complete) == ("InvalidPartOrder", 400)
    upload.parts = [{"PartNumber": 3, "ETag": '"e"'}]
    assert refused(upload.complete) == ("InvalidPart", 400)
    upload.parts = [{"PartNumber": 1, "ETag": '"e"'}]
    assert refused(upload.complete) == ("InvalidPart", 400)
    assert refused(upload.put, 0, b"x") == ("InvalidArgument", 400)
    assert refused(upload.put, 10001, b"x") == ("InvalidArgument", 400)
    assert len(cloud.client.list_parts(**upload.where)["Parts"]) == 2


def test_an_aborted_upload_leaves_nothing(cloud: LocalS3) -> None:
    upload = Upload(cloud)
    upload.put(1, LAST)
    cloud.client.abort_multipart_upload(**upload.where)
    assert cloud.blobs() == set()
    assert refused(upload.put, 1, LAST) == ("NoSuchUpload", 404)
    assert cloud.blobs() == set()


def test_a_conditional_completion_does_not_overwrite(cloud: LocalS3) -> None:
    upload = Upload(cloud)
    upload.put(1, LAST)
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"first")
    assert refused(upload.complete, IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert body_of(cloud, "k") == b"first"


def test_parts_are_copied_from_ranges_of_objects(cloud: LocalS3) -> None:
    cloud.client.put_object(Bucket="bucket", Key="source", Body=PART + LAST)
    upload = Upload(cloud)
    source = {"Bucket": "bucket", "Key": "source"}
    for number, span in ((1, f"bytes=0-{5 * MIB - 1}"), (2, f"bytes={5 * MIB}-{5 * MIB + 2}")):
        answer = cloud.client.upload_part_copy(
            **upload.where, PartNumber=number, CopySource=source, CopySourceRange=span
        )
        upload.parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
    assert upload.parts[0]["ETag"] == f'"{hashlib.md5(PART).hexdigest()}"'
    upload.complete()
    assert body_of(cloud, "k") == PART + LAST[:3]
    beyond = {"CopySource": source, "CopySourceRange": f"bytes=0-{6 * MIB}"}
    copy = cloud.client.upload_part_copy
    where = Upload(cloud).where
    assert refused(copy, **where, PartNumber=1, **beyond) == ("InvalidArgument", 400)


def test_crcs_of_parts_combine_to_the_objects(cloud: LocalS3) -> None:
    upload = Upload(cloud, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    upload.put(1, PART, ChecksumAlgorithm="CRC32")
    upload.put(2, LAST, ChecksumAlgorithm="CRC32")
    whole = base64.b64encode(zlib.crc32(PART + LAST).to_bytes(4, "big")).decode()
    wrong = "AAAAAA=="
    fault = refused(upload.complete, ChecksumCRC32=wrong, ChecksumType="FULL_OBJECT")
    assert fault == ("BadDigest", 400)
    answer = upload.complete(ChecksumCRC32=whole, ChecksumType="FULL_OBJECT")
    assert (answer["ChecksumCRC32"], answer["ChecksumType"]) == (whole, "FULL_OBJECT")
    found = cloud.client.get_object(Bucket="bucket", Key="k", ChecksumMode="ENABLED")
    assert found["ChecksumCRC32"] == whole
    assert found["Body"].read() == PART + LAST


def test_a_composite_upload_needs_each_parts_checksum(cloud: LocalS3) -> None:
    upload = Upload(cloud, ChecksumAlgorithm="SHA256")
    upload.put(1, LAST, ChecksumAlgorithm="SHA256")
    told = upload.parts[0].pop("ChecksumSHA256")
    assert refused(upload.complete) == ("InvalidRequest", 400)
    upload.parts[0]["ChecksumSHA256"] = told
    expected = base64.b64encode(hashlib.sha256(hashlib.sha256(LAST).digest()).digest()).decode()
    assert upload.complete()["ChecksumSHA256"] == f"{expected}-1"


def test_managed_transfers_go_there_and_back(cloud: LocalS3) -> None:
    body = os.urandom(21 * MIB + 17)
    config = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB)
    cloud.client.upload_fileobj(io.BytesIO(body), "bucket", "big", Config=config)
    cloud.client.copy({"Bucket": "bucket", "Key": "big"}, "bucket", "copy", Config=config)
    for key in ("big", "copy"):
        back = io.BytesIO()
        cloud.client.download_fileobj("bucket", key, back, Config=config)
        assert back.getvalue() == body
    assert cloud.client.head_object(Bucket="bucket", Key="copy")["ETag"].endswith('-3"')
    cloud.client.copy_object(
        Bucket="bucket", Key="one", CopySource={"Bucket": "bucket", "Key": "big"}
    )
    md5 = hashlib.md5(body).hexdigest()
    assert cloud.client.head_object(Bucket="bucket", Key="one")["ETag"] == f'"{md5}"'


def test_uploads_survive_a_restart_and_are_listed(cloud: LocalS3) -> None:
    uploads = [Upload(cloud, key) for key in ("a/1", "a/2", "b")]
    uploads[0].put(1, LAST)
    cloud.reopen()
    assert cloud.swept == 0
    listed = cloud.client.list_multipart_uploads(Bucket="bucket")["Uploads"]
    assert [(u["Key"], u["UploadId"]) for u in listed] == [
        (u.where["Key"], u.where["UploadId"]) for u in uploads
    ]
    folders = cloud.client.list_multipart_uploads(Bucket="bucket", Delimiter="/")
    assert [p["Prefix"] for p in folders["CommonPrefixes"]] == ["a/"]
    first = cloud.client.list_multipart_uploads(Bucket="bucket", MaxUploads=1)
    assert first["IsTruncated"]
    rest = cloud.client.list_multipart_uploads(
        Bucket="bucket",
        KeyMarker=first["NextKeyMarker"],
        UploadIdMarker=first["NextUploadIdMarker"],
    )
    assert [u["Key"] for u in rest["Uploads"]] == ["a/2", "b"]
    uploads[0].complete()
    assert body_of(cloud, "a/1") == LAST


@pytest.fixture
def tree(cloud: LocalS3) -> LocalS3:
    for key in ("a", "a/1", "a/2", "a/b/3", "b", "c+d e/4", "z/", "é/5"):
        cloud.client.put_object(Bucket="bucket", Key=key, Body=b"x")
    return cloud


def listed(pages: Any) -> tuple[list[str], list[str]]:
    keys, prefixes = list[str](), list[str]()
    for page in pages:
        keys += [entry["Key"] for entry in page.get("Contents", [])]
        prefixes += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
    return keys, prefixes


@pytest.mark.parametrize("operation", ["list_objects", "list_objects_v2", "list_object_versions"])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_pages_of_any_size_give_every_entry_once(tree: LocalS3, operation: str, size: int) -> None:
    paginator = tree.client.get_paginator(operation)
    pages = paginator.paginate(Bucket="bucket", Delimiter="/", PaginationConfig={"PageSize": size})
    keys, prefixes = listed(
        {**page, "Contents": page.get("Versions", page.get("Contents", []))} for page in pages
    )
    assert keys == ["a", "b"]
    assert prefixes == ["a/", "c+d e/", "z/", "é/"]


def test_prefix_delimiter_and_start_narrow_a_listing(tree: LocalS3) -> None:
    def ls(**arguments: Any) -> tuple[list[str], list[str]]:
        return listed([tree.client.list_objects_v2(Bucket="bucket", **arguments)])

    assert ls(Prefix="a/") == (["a/1", "a/2", "a/b/3"], [])
    assert ls(Prefix="a/", Delimiter="/") == (["a/1", "a/2"], ["a/b/"])
    assert ls(Prefix="a", Delimiter="b/") == (["a", "a/1", "a/2"], ["a/b/"])
    assert ls(StartAfter="b") == (["c+d e/4", "z/", "é/5"], [])
    assert ls(Prefix="c+d ") == (["c+d e/4"], [])
    assert ls(Prefix="nothing") == ([], [])
    assert ls(MaxKeys=0) == ([], [])
    v1 = tree.client.list_objects(Bucket="bucket", Marker="a/2", MaxKeys=1)
    assert ([entry["Key"] for entry in v1["Contents"]], v1["IsTruncated"]) == (["a/b/3"], True)
    bad = tree.client.list_objects_v2
    assert refused(bad, Bucket="bucket", ContinuationToken="*") == ("InvalidArgument", 400)
