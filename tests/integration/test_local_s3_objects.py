"""Objects of the local S3, as boto3 sees them."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.doubles.local_s3 import LocalS3

ODD_KEYS = [
    "a",
    "a/b",
    "a/",
    "/a",
    "//a",
    "a//b",
    "../up",
    "a/../b",
    "./a",
    ".meta.json",
    "with space",
    "plus+plus",
    "100%",
    "%2F",
    "%41",
    "q?x=1&y=2",
    "hash#tag",
    "semi;colon",
    "ünï/çødé 漢字 😀",
    "control\x01\x1f\x7f",
    "tab\tnew\nline\rreturn",
    "nul\x00byte",
    "a&b<c>\"'",
    "\\back\\slash",
    "~tilde*star",
    "\ufffe\uffff",
    "\U0010ffff",
    "x" * 1024,
    "ü" * 512,
]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalS3]:
    local = LocalS3(tmp_path)
    local.client.create_bucket(Bucket="bucket")
    yield local
    local.close()


def refused(call: Any, **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def body_of(cloud: LocalS3, key: str, **arguments: Any) -> bytes:
    body: bytes = cloud.client.get_object(Bucket="bucket", Key=key, **arguments)["Body"].read()
    return body


def test_keys_are_data_and_come_back_as_they_were(cloud: LocalS3) -> None:
    for n, key in enumerate(ODD_KEYS):
        cloud.client.put_object(Bucket="bucket", Key=key, Body=str(n).encode())
    for n, key in enumerate(ODD_KEYS):
        assert body_of(cloud, key) == str(n).encode()
    pages = cloud.client.get_paginator("list_objects_v2").paginate(
        Bucket="bucket", PaginationConfig={"PageSize": 4}
    )
    listed = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert listed == sorted(ODD_KEYS, key=str.encode)
    for key in ODD_KEYS:
        cloud.client.delete_object(Bucket="bucket", Key=key)
    assert cloud.client.list_objects_v2(Bucket="bucket")["KeyCount"] == 0
    assert cloud.blobs() == set()


def test_a_key_of_1025_bytes_is_too_long(cloud: LocalS3) -> None:
    put = cloud.client.put_object
    assert refused(put, Bucket="bucket", Key="x" * 1025, Body=b"") == ("KeyTooLongError", 400)


def test_what_is_put_with_an_object_is_told_with_it(cloud: LocalS3) -> None:
    cloud.client.put_object(
        Bucket="bucket",
        Key="k",
        Body=b"body",
        ContentType="text/plain; charset=utf-8",
        ContentEncoding="gzip",
        ContentDisposition='attachment; filename="a b"',
        ContentLanguage="ca",
        CacheControl="no-cache",
        Metadata={"owner": "ana", "note": "two words"},
        StorageClass="STANDARD_IA",
        Tagging="a=1&b=two%20words",
    )
    for read in (cloud.client.get_object, cloud.client.head_object):
        found = read(Bucket="bucket", Key="k")
        assert found["ContentType"] == "text/plain; charset=utf-8"
        assert found["ContentEncoding"] == "gzip"
        assert found["ContentDisposition"] == 'attachment; filename="a b"'
        assert (found["ContentLanguage"], found["CacheControl"]) == ("ca", "no-cache")
        assert found["Metadata"] == {"owner": "ana", "note": "two words"}
        assert (found["ContentLength"], found["StorageClass"]) == (4, "STANDARD_IA")
        assert found["ETag"] == f'"{hashlib.md5(b"body").hexdigest()}"'
    tags = cloud.client.get_object_tagging(Bucket="bucket", Key="k")["TagSet"]
    assert tags == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "two words"}]
    told = cloud.client.get_object(Bucket="bucket", Key="k", ResponseContentType="image/png")
    assert told["ContentType"] == "image/png"


def test_an_answer_header_cannot_be_split_by_an_override(cloud: LocalS3) -> None:
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"")
    status, headers, _ = cloud.raw("GET", "/bucket/k?response-content-type=a%0d%0ax-evil:%201")
    assert status == 400
    assert "x-evil" not in headers


@pytest.mark.parametrize(
    ("asked", "expected", "span"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ],
)
def test_a_range_is_a_part_of_the_object(
    cloud: LocalS3, asked: str, expected: bytes, span: str
) -> None:
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"0123456789")
    found = cloud.client.get_object(Bucket="bucket", Key="k", Range=asked)
    assert found["Body"].read() == expected
    assert found["ContentRange"] == span
    assert found["ResponseMetadata"]["HTTPStatusCode"] == 206


def test_a_range_beyond_the_end_is_refused_and_a_broken_one_ignored(cloud: LocalS3) -> None:
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"0123456789")
    get = cloud.client.get_object
    assert refused(get, Bucket="bucket", Key="k", Range="bytes=10-") == ("InvalidRange", 416)
    assert refused(get, Bucket="bucket", Key="k", Range="bytes=-0") == ("InvalidRange", 416)
    assert body_of(cloud, "k", Range="bytes=5-2") == b"0123456789"
    assert body_of(cloud, "k", Range="bytes=0-1,3-4") == b"0123456789"


def test_reads_obey_their_conditions(cloud: LocalS3) -> None:
    etag = cloud.client.put_object(Bucket="bucket", Key="k", Body=b"x")["ETag"]
    changed = cloud.client.head_object(Bucket="bucket", Key="k")["LastModified"]
    day = timedelta(days=1)
    get = cloud.client.get_object
    failed, same = ("PreconditionFailed", 412), ("304", 304)
    assert refused(get, Bucket="bucket", Key="k", IfMatch='"other"') == failed
    assert refused(get, Bucket="bucket", Key="k", IfUnmodifiedSince=changed - day) == failed
    assert refused(get, Bucket="bucket", Key="k", IfNoneMatch=etag) == same
    assert refused(get, Bucket="bucket", Key="k", IfModifiedSince=changed) == same
    assert body_of(cloud, "k", IfMatch=etag, IfUnmodifiedSince=changed - day) == b"x"
    assert body_of(cloud, "k", IfNoneMatch='"other"', IfModifiedSince=changed) == b"x"


def test_writes_obey_their_conditions(cloud: LocalS3) -> None:
    put = cloud.client.put_object
    assert refused(put, Bucket="bucket", Key="k", IfMatch='"e"', Body=b"") == ("NoSuchKey", 404)
    etag = put(Bucket="bucket", Key="k", IfNoneMatch="*", Body=b"1")["ETag"]
    failed = ("PreconditionFailed", 412)
    assert refused(put, Bucket="bucket", Key="k", IfNoneMatch="*", Body=b"2") == failed
    assert refused(put, Bucket="bucket", Key="k", IfMatch='"other"', Body=b"2") == failed
    put(Bucket="bucket", Key="k", IfMatch=etag, Body=b"3")
    assert body_of(cloud, "k") == b"3"
    assert len(cloud.blobs()) == 1


def test_of_16_conditional_writers_one_wins(cloud: LocalS3) -> None:
    def claim(n: int) -> int:
        headers = {"If-None-Match": "*"}
        return cloud.raw("PUT", "/bucket/lock", str(n).encode(), headers)[0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(claim, range(16)))
    assert sorted(answers) == [200] + [412] * 15
    assert body_of(cloud, "lock") == str(answers.index(200)).encode()
    assert len(cloud.blobs()) == 1


def test_a_copy_keeps_or_replaces_metadata(cloud: LocalS3) -> None:
    cloud.client.put_object(
        Bucket="bucket", Key="från här+?", Body=b"x", Metadata={"a": "1"}, ContentType="text/x"
    )
    source = {"Bucket": "bucket", "Key": "från här+?"}
    copied = cloud.client.copy_object(Bucket="bucket", Key="copy", CopySource=source)
    assert copied["CopyObjectResult"]["ETag"] == f'"{hashlib.md5(b"x").hexdigest()}"'
    assert cloud.client.head_object(Bucket="bucket", Key="copy")["Metadata"] == {"a": "1"}
    cloud.client.copy_object(
        Bucket="bucket", Key="copy", CopySource=source,
        MetadataDirective="REPLACE", Metadata={"b": "2"}, TaggingDirective="REPLACE", Tagging="t=1",
    )  # fmt: skip
    found = cloud.client.head_object(Bucket="bucket", Key="copy")
    assert (found["Metadata"], found["ContentType"]) == ({"b": "2"}, "binary/octet-stream")
    cloud.client.delete_object(**source)
    assert body_of(cloud, "copy") == b"x"


def test_a_copy_onto_itself_must_change_something(cloud: LocalS3) -> None:
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"x")
    copy, same = cloud.client.copy_object, {"Bucket": "bucket", "Key": "k"}
    assert refused(copy, **same, CopySource=same) == ("InvalidRequest", 400)
    copy(**same, CopySource=same, MetadataDirective="REPLACE", Metadata={"b": "2"})
    assert cloud.client.head_object(**same)["Metadata"] == {"b": "2"}
    assert body_of(cloud, "k") == b"x"
    assert len(cloud.blobs()) == 1


def test_a_copy_obeys_the_conditions_on_its_source(cloud: LocalS3) -> None:
    etag = cloud.client.put_object(Bucket="bucket", Key="k", Body=b"x")["ETag"]
    copy, source = cloud.client.copy_object, {"Bucket": "bucket", "Key": "k"}
    failed = ("PreconditionFailed", 412)
    arguments = {"Bucket": "bucket", "Key": "copy", "CopySource": source}
    assert refused(copy, **arguments, CopySourceIfMatch='"other"') == failed
    assert refused(copy, **arguments, CopySourceIfNoneMatch=etag) == failed
    copy(**arguments, CopySourceIfMatch=etag)


def test_many_keys_are_deleted_in_one_call(cloud: LocalS3) -> None:
    keys = ["a", "b c", "d&<e>", "not there"]
    for key in keys[:3]:
        cloud.client.put_object(Bucket="bucket", Key=key, Body=b"x")
    answer = cloud.client.delete_objects(
        Bucket="bucket", Delete={"Objects": [{"Key": key} for key in keys]}
    )
    assert [entry["Key"] for entry in answer["Deleted"]] == keys
    assert cloud.client.list_objects_v2(Bucket="bucket")["KeyCount"] == 0
    assert cloud.blobs() == set()


def test_tags_are_put_read_and_deleted(cloud: LocalS3) -> None:
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"x")
    tags = [{"Key": "a", "Value": "1"}]
    where = {"Bucket": "bucket", "Key": "k"}
    cloud.client.put_object_tagging(**where, Tagging={"TagSet": tags})
    assert cloud.client.get_object_tagging(**where)["TagSet"] == tags
    cloud.client.delete_object_tagging(**where)
    assert cloud.client.get_object_tagging(**where)["TagSet"] == []


def test_what_is_not_there_says_so(cloud: LocalS3) -> None:
    get, head = cloud.client.get_object, cloud.client.head_object
    assert refused(get, Bucket="bucket", Key="no") == ("NoSuchKey", 404)
    assert refused(head, Bucket="bucket", Key="no") == ("404", 404)
    assert refused(get, Bucket="other", Key="no") == ("NoSuchBucket", 404)
    put = cloud.client.put_object
    body = os.urandom(3 << 20)
    assert refused(put, Bucket="other", Key="no", Body=body) == ("NoSuchBucket", 404)
    assert refused(get, Bucket="bucket", Key="no", VersionId="abc") == ("NoSuchVersion", 404)
    assert cloud.blobs() == set()


def test_an_unknown_operation_is_named(cloud: LocalS3) -> None:
    with pytest.raises(ClientError, match="GetObjectTorrent is not in the local cloud"):
        cloud.client.get_object_torrent(Bucket="bucket", Key="k")
    with pytest.raises(ClientError, match="PutBucketVersioning is not in the local cloud"):
        cloud.client.put_bucket_versioning(
            Bucket="bucket", VersioningConfiguration={"Status": "Enabled"}
        )


def test_presigned_urls_work_until_they_expire(cloud: LocalS3) -> None:
    where = {"Bucket": "bucket", "Key": "a b+c"}
    put_url = cloud.client.generate_presigned_url("put_object", Params=where, ExpiresIn=60)
    request = urllib.request.Request(put_url, data=b"signed", method="PUT")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    get_url = cloud.client.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
    with urllib.request.urlopen(get_url) as answer:
        assert answer.read() == b"signed"
    v2 = cloud.client_for("us-east-1", signature_version="s3")
    old = v2.generate_presigned_url("get_object", Params=where, ExpiresIn=-1)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(old)
    assert caught.value.code == 403


def test_an_expired_url_is_access_denied(cloud: LocalS3) -> None:
    status, _, body = cloud.raw("GET", "/bucket/k?X-Amz-Date=20200101T000000Z&X-Amz-Expires=60")
    assert status == 403
    assert b"<Code>AccessDenied</Code><Message>Request has expired</Message>" in body


def test_a_reader_gets_the_whole_old_object_while_it_is_overwritten(cloud: LocalS3) -> None:
    old, new = b"o" * (24 << 20), b"n" * (24 << 20)
    cloud.client.put_object(Bucket="bucket", Key="k", Body=old)
    body = cloud.client.get_object(Bucket="bucket", Key="k")["Body"]
    first = body.read(1000)
    cloud.client.put_object(Bucket="bucket", Key="k", Body=new)
    assert first + body.read() == old
    assert body_of(cloud, "k") == new
    assert len(cloud.blobs()) == 1


def test_readers_and_writers_of_one_key_never_see_a_mixture(cloud: LocalS3) -> None:
    bodies = {bytes([n]) * 5000 for n in range(1, 9)}
    cloud.client.put_object(Bucket="bucket", Key="k", Body=min(bodies))
    ended = threading.Event()

    def write(body: bytes) -> None:
        for _ in range(15):
            cloud.client.put_object(Bucket="bucket", Key="k", Body=body)

    def read(_: int) -> int:
        count = 0
        while not ended.is_set():
            assert body_of(cloud, "k") in bodies
            count += 1
        return count

    with ThreadPoolExecutor(12) as pool:
        readers = [pool.submit(read, n) for n in range(4)]
        writers = [pool.submit(write, body) for body in bodies]
        for writer in writers:
            writer.result()
        ended.set()
        assert all(reader.result() > 0 for reader in readers)
    assert len(cloud.blobs()) == 1


def test_16_threads_put_and_nothing_is_lost(cloud: LocalS3) -> None:
    def put(n: int) -> None:
        cloud.client.put_object(Bucket="bucket", Key=f"k{n:03}", Body=str(n).encode())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(200)))
    listed = cloud.client.list_objects_v2(Bucket="bucket")
    assert [entry["Key"] for entry in listed["Contents"]] == [f"k{n:03}" for n in range(200)]
    assert len(cloud.blobs()) == 200


def test_all_is_there_when_the_store_is_opened_again(cloud: LocalS3) -> None:
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"kept", Metadata={"a": "1"})
    cloud.store.new_blob()[1].write_bytes(b"another service's")
    stray = cloud.directory / "blobs" / "ab" / "abandoned.s3"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"left by a crash")
    cloud.reopen()
    assert cloud.swept == 1
    assert body_of(cloud, "k") == b"kept"
    assert cloud.client.head_object(Bucket="bucket", Key="k")["Metadata"] == {"a": "1"}
    assert len(cloud.blobs()) == 2


def test_buckets_can_be_part_of_the_host_name(cloud: LocalS3) -> None:
    cloud.client.put_object(Bucket="bucket", Key="a/b", Body=b"hosted")
    status, _, body = cloud.raw("GET", "/a/b", headers={"Host": f"bucket.localhost:{cloud.port}"})
    assert (status, body) == (200, b"hosted")
