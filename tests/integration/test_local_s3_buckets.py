"""Buckets of the local S3, and what their notifications set off."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tests.doubles.local_s3 import LocalS3

FUNCTION = "arn:aws:lambda:us-east-1:000000000000:function:"
CREATED = "s3:ObjectCreated:*"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalS3]:
    local = LocalS3(tmp_path)
    yield local
    local.close()


def refused(call: Any, **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def entry(
    function: str = "f", prefix: str = "", suffix: str = "", event: str = CREATED, **more: Any
) -> dict[str, Any]:
    rules = [{"Name": n, "Value": v} for n, v in (("prefix", prefix), ("suffix", suffix)) if v]
    made: dict[str, Any] = {"LambdaFunctionArn": FUNCTION + function, "Events": [event], **more}
    return made | ({"Filter": {"Key": {"FilterRules": rules}}} if rules else {})


def notify(cloud: LocalS3, *entries: dict[str, Any], **more: Any) -> None:
    configuration = {"LambdaFunctionConfigurations": list(entries), **more}
    cloud.client.put_bucket_notification_configuration(
        Bucket="bucket", NotificationConfiguration=configuration
    )


def keys_of(cloud: LocalS3, count: int) -> list[tuple[str, str, str]]:
    """(function, event, key) of the first invocations, once there are `count`."""
    return [
        (name, record["eventName"], record["s3"]["object"]["key"])
        for name, record in cloud.functions.invocations(count)
    ]


def test_a_bucket_is_made_found_and_deleted(cloud: LocalS3) -> None:
    cloud.client.create_bucket(Bucket="bucket")
    cloud.client.create_bucket(Bucket="bucket")
    head = cloud.client.head_bucket(Bucket="bucket")
    assert head["BucketRegion"] == "us-east-1"
    assert cloud.client.get_bucket_location(Bucket="bucket")["LocationConstraint"] is None
    assert [b["Name"] for b in cloud.client.list_buckets()["Buckets"]] == ["bucket"]
    cloud.client.put_object(Bucket="bucket", Key="k", Body=b"x")
    assert refused(cloud.client.delete_bucket, Bucket="bucket") == ("BucketNotEmpty", 409)
    cloud.client.delete_object(Bucket="bucket", Key="k")
    cloud.client.delete_bucket(Bucket="bucket")
    assert refused(cloud.client.head_bucket, Bucket="bucket") == ("404", 404)
    assert refused(cloud.client.delete_bucket, Bucket="bucket") == ("NoSuchBucket", 404)


def test_a_bucket_elsewhere_is_made_once_and_with_its_region(cloud: LocalS3) -> None:
    client = cloud.client_for("eu-west-1")
    unspecified = ("IllegalLocationConstraintException", 400)
    assert refused(client.create_bucket, Bucket="bucket") == unspecified
    there = {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}
    client.create_bucket(Bucket="bucket", **there)
    again = refused(client.create_bucket, Bucket="bucket", **there)
    assert again == ("BucketAlreadyOwnedByYou", 409)
    assert client.get_bucket_location(Bucket="bucket")["LocationConstraint"] == "eu-west-1"


@pytest.mark.parametrize(
    "name", ["Bucket", "ab", "a_b", "-ab", "ab-", "a..b", "10.0.0.1", "xn--ab", "a-s3alias"]
)
def test_a_bucket_name_follows_the_rules(cloud: LocalS3, name: str) -> None:
    status, _, body = cloud.raw("PUT", f"/{name}")
    assert (status, b"<Code>InvalidBucketName</Code>" in body) == (400, True)


def test_documents_of_a_bucket_are_kept(cloud: LocalS3) -> None:
    client, where = cloud.client, {"Bucket": "bucket"}
    client.create_bucket(**where)
    assert refused(client.get_bucket_tagging, **where) == ("NoSuchTagSet", 404)
    assert refused(client.get_bucket_policy, **where) == ("NoSuchBucketPolicy", 404)
    tags = {"TagSet": [{"Key": "a", "Value": "1"}]}
    client.put_bucket_tagging(**where, Tagging=tags)
    assert client.get_bucket_tagging(**where)["TagSet"] == tags["TagSet"]
    client.delete_bucket_tagging(**where)
    assert refused(client.get_bucket_tagging, **where) == ("NoSuchTagSet", 404)
    client.put_bucket_policy(**where, Policy='{"Version": "2012-10-17", "Statement": []}')
    assert "2012-10-17" in client.get_bucket_policy(**where)["Policy"]
    block = client.get_public_access_block(**where)["PublicAccessBlockConfiguration"]
    assert set(block.values()) == {True}
    assert "Status" not in client.get_bucket_versioning(**where)
    grants = client.get_bucket_acl(**where)["Grants"]
    assert [grant["Permission"] for grant in grants] == ["FULL_CONTROL"]
    acl = refused(client.put_bucket_acl, **where, ACL="public-read")
    assert acl == ("AccessControlListNotSupported", 400)
    rules = client.get_bucket_encryption(**where)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_each_way_to_make_an_object_is_one_event(cloud: LocalS3) -> None:
    cloud.client.create_bucket(Bucket="bucket")
    notify(cloud, entry("f", "in/", Id="mine"), entry("g", event="s3:ObjectRemoved:*"))
    key = "in/a b+ü(1).txt"
    cloud.client.put_object(Bucket="bucket", Key="out/x", Body=b"x")
    cloud.client.put_object(Bucket="bucket", Key=key, Body=b"x")
    config = TransferConfig(multipart_threshold=6 << 20, multipart_chunksize=5 << 20)
    cloud.client.upload_fileobj(io.BytesIO(bytes(12 << 20)), "bucket", "in/big", Config=config)
    source = {"Bucket": "bucket", "Key": "out/x"}
    cloud.client.copy_object(Bucket="bucket", Key="in/copy", CopySource=source)
    cloud.client.delete_object(Bucket="bucket", Key="in/copy")
    cloud.client.delete_object(Bucket="bucket", Key="in/never there")
    assert keys_of(cloud, 4) == [
        ("f", "ObjectCreated:Put", "in/a+b%2B%C3%BC%281%29.txt"),
        ("f", "ObjectCreated:CompleteMultipartUpload", "in/big"),
        ("f", "ObjectCreated:Copy", "in/copy"),
        ("g", "ObjectRemoved:Delete", "in/copy"),
    ]
    record = cloud.functions.invocations(4)[0][1]
    assert record["eventVersion"] == "2.5"
    assert (record["eventSource"], record["awsRegion"]) == ("aws:s3", "us-east-1")
    assert record["s3"]["configurationId"] == "mine"
    assert record["s3"]["bucket"]["arn"] == "arn:aws:s3:::bucket"
    assert record["s3"]["object"]["size"] == 1
    assert record["requestParameters"] == {"sourceIPAddress": "127.0.0.1"}
    sequence = [r["s3"]["object"]["sequencer"] for _, r in cloud.functions.invocations(4)]
    assert sequence == sorted(set(sequence))


def test_prefixes_and_suffixes_choose_the_function(cloud: LocalS3) -> None:
    cloud.client.create_bucket(Bucket="bucket")
    notify(cloud, entry("f", "in/", ".jpg"), entry("g", "in/", ".txt"), entry("g", "my+dir/"))
    for key in ("in/a.txt", "in/b.jpg", "in/c.png", "x/in/d.jpg", "my dir/e", "my+dir/f"):
        cloud.client.put_object(Bucket="bucket", Key=key, Body=b"")
    made = "ObjectCreated:Put"
    assert keys_of(cloud, 3) == [
        ("g", made, "in/a.txt"), ("f", made, "in/b.jpg"), ("g", made, "my+dir/e")
    ]  # fmt: skip


def test_a_configuration_is_kept_as_put_and_replaced_whole(cloud: LocalS3) -> None:
    cloud.client.create_bucket(Bucket="bucket")
    get = cloud.client.get_bucket_notification_configuration
    assert "LambdaFunctionConfigurations" not in get(Bucket="bucket")
    entries = [entry("f", "a/", Id="one"), entry("g", "b/", ".x", Id="two")]
    notify(cloud, *entries)
    cloud.reopen()
    assert get(Bucket="bucket")["LambdaFunctionConfigurations"] == entries
    notify(cloud, entry("f"))
    (only,) = get(Bucket="bucket")["LambdaFunctionConfigurations"]
    assert only["Id"]
    notify(cloud)
    assert "LambdaFunctionConfigurations" not in get(Bucket="bucket")


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([entry("f"), entry("g", "in/")], "InvalidArgument"),
        ([entry("f", "in"), entry("g", "in/", event="s3:ObjectCreated:Put")], "InvalidArgument"),
        ([entry("f", "a/", ".txt"), entry("g", "a/b/", "x.txt")], "InvalidArgument"),
        ([entry("f", "a/", Id="i"), entry("g", "b/", Id="i")], "InvalidArgument"),
        ([entry("unknown")], "InvalidArgument"),
        ([entry("f", event="s3:ObjectTagging:*")], "NotImplemented"),
    ],
)
def test_a_configuration_that_s3_refuses_is_refused(
    cloud: LocalS3, entries: list[dict[str, Any]], code: str
) -> None:
    cloud.client.create_bucket(Bucket="bucket")
    notify(cloud, entry("f", "kept/"))
    with pytest.raises(ClientError) as caught:
        notify(cloud, *entries)
    assert caught.value.response["Error"]["Code"] == code
    kept = cloud.client.get_bucket_notification_configuration(Bucket="bucket")
    assert len(kept["LambdaFunctionConfigurations"]) == 1


def test_only_functions_can_be_notified(cloud: LocalS3) -> None:
    cloud.client.create_bucket(Bucket="bucket")
    queue = {"QueueArn": "arn:aws:sqs:us-east-1:000000000000:q", "Events": [CREATED]}
    with pytest.raises(ClientError, match="NotImplemented"):
        notify(cloud, QueueConfigurations=[queue])
    with pytest.raises(ClientError, match="NotImplemented"):
        notify(cloud, EventBridgeConfiguration={})


def test_the_event_of_a_deleted_function_is_dropped_and_later_ones_go_on(
    cloud: LocalS3, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.client.create_bucket(Bucket="bucket")
    notify(cloud, entry("f", "f/"), entry("g", "g/"))
    cloud.names.discard("f")
    cloud.client.put_object(Bucket="bucket", Key="f/1", Body=b"")
    cloud.client.put_object(Bucket="bucket", Key="g/2", Body=b"")
    assert keys_of(cloud, 1) == [("g", "ObjectCreated:Put", "g/2")]
    assert cloud.events.undelivered() == 0
    assert "the function f is gone" in caplog.text


def test_what_a_stopped_daemon_left_is_delivered_by_the_next(cloud: LocalS3) -> None:
    cloud.client.create_bucket(Bucket="bucket")
    notify(cloud, entry("f"))
    cloud.events.stop()
    for n in range(5):
        cloud.client.put_object(Bucket="bucket", Key=f"k{n}", Body=b"")
    assert cloud.events.undelivered() == 5
    assert cloud.functions.invocations(0) == []
    cloud.open()
    assert [key for _, _, key in keys_of(cloud, 5)] == [f"k{n}" for n in range(5)]
    time.sleep(0.05)
    assert len(cloud.functions.invocations(5)) == 5
    assert cloud.events.undelivered() == 0
