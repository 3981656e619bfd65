"""Lambda of the local cloud, driven by boto3: the functions themselves."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from scar_local.engines import EngineError
from scar_local.functions import Settings
from tests.doubles.local_lambda import IMAGE, LocalLambda


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalLambda]:
    local = LocalLambda(tmp_path, Settings(concurrency=8))
    yield local
    local.close()


def test_a_created_function_is_active_at_once_and_described_as_it_was_given(
    cloud: LocalLambda,
) -> None:
    cloud.create(
        Description="says it again",
        Timeout=7,
        MemorySize=256,
        Environment={"Variables": {"NAME": "value"}},
        Tags={"createdby": "scar"},
        ImageConfig={"Command": ["one", "two"]},
        EphemeralStorage={"Size": 1024},
    )
    began = time.monotonic()
    for waiter in ("function_exists", "function_active_v2", "function_updated_v2"):
        cloud.client.get_waiter(waiter).wait(FunctionName="echo")
    assert time.monotonic() - began < 2
    found = cloud.client.get_function(FunctionName="echo")
    configuration = found["Configuration"]
    assert configuration["FunctionArn"] == ("arn:aws:lambda:eu-west-1:000000000000:function:echo")
    assert (configuration["Timeout"], configuration["MemorySize"]) == (7, 256)
    assert configuration["EphemeralStorage"] == {"Size": 1024}
    assert configuration["ImageConfigResponse"] == {"ImageConfig": {"Command": ["one", "two"]}}
    assert configuration["Environment"] == {"Variables": {"NAME": "value"}}
    assert (configuration["State"], configuration["LastUpdateStatus"]) == ("Active", "Successful")
    assert found["Code"]["ImageUri"] == IMAGE
    assert found["Tags"] == {"createdby": "scar"}


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"PackageType": "Zip", "Code": {"ZipFile": b"x"}}, "InvalidParameterValue", "runs images"),
        ({"FunctionName": "a b"}, "Validation", "functionName"),
        ({"FunctionName": "a" * 65}, "Validation", "functionName"),
        ({"Role": "admin"}, "Validation", "role"),
        ({"MemorySize": 20_000}, "InvalidParameterValue", "10240"),
        ({"Timeout": 901}, "InvalidParameterValue", "900"),
        ({"EphemeralStorage": {"Size": 20_000}}, "InvalidParameterValue", "10240"),
        ({"Architectures": ["s390x"]}, "InvalidParameterValue", platform.machine()),
        ({"Environment": {"Variables": {"A1": "x" * 4096}}}, "InvalidParameterValue", "4KB"),
        ({"Environment": {"Variables": {"AWS_REGION": "x"}}}, "InvalidParameterValue", "reserved"),
        ({"Environment": {"Variables": {"A-B": "x"}}}, "Validation", "A-B"),
        ({"ImageConfig": {"EntryPoint": ["/bin/sh"]}}, "InvalidParameterValue", "EntryPoint"),
        ({"Layers": ["arn:aws:lambda:x"]}, "InvalidParameterValue", "Layers"),
        ({"Publish": True}, "InvalidParameterValue", "Publish"),
        (
            {"FileSystemConfigs": [{"Arn": "arn", "LocalMountPath": "/mnt/x"}]},
            "InvalidParameterValue",
            "FileSystemConfigs",
        ),
    ],
)
def test_what_lambda_or_the_local_cloud_cannot_run_is_refused_with_the_reason(
    cloud: LocalLambda, changes: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(ClientError) as caught:
        cloud.create(**{"name": changes.pop("FunctionName", "echo"), **changes})
    assert caught.value.response["Error"]["Code"] == f"{code}Exception"
    assert words in caught.value.response["Error"]["Message"]
    assert cloud.client.list_functions()["Functions"] == []


def test_an_image_that_is_not_in_the_registry_is_refused_and_a_known_one_is_pinned(
    cloud: LocalLambda,
) -> None:
    digest = "sha256:" + "ab" * 32
    images = {IMAGE: digest}

    def resolve(uri: str) -> str:
        if uri not in images:
            raise EngineError(f"no such image: {uri}")
        return images[uri]

    cloud.resolve = resolve
    cloud.restart()
    with pytest.raises(ClientError, match="does not exist"):
        cloud.create(Code={"ImageUri": IMAGE.replace("echo-", "other-")})
    assert cloud.create()["CodeSha256"] == "ab" * 32
    code = cloud.client.get_function(FunctionName="echo")["Code"]
    assert code["ResolvedImageUri"] == IMAGE.partition(":")[0] + "@" + digest
    with pytest.raises(ClientError, match="does not exist"):
        cloud.client.update_function_code(FunctionName="echo", ImageUri="x/y:z")
    assert cloud.client.get_function(FunctionName="echo")["Code"]["ImageUri"] == IMAGE


def test_a_name_is_taken_until_its_function_is_deleted(cloud: LocalLambda) -> None:
    cloud.create()
    with pytest.raises(cloud.client.exceptions.ResourceConflictException):
        cloud.create()
    cloud.client.delete_function(FunctionName="echo")
    with pytest.raises(cloud.client.exceptions.ResourceNotFoundException):
        cloud.client.get_function(FunctionName="echo")
    cloud.create()


def test_functions_are_found_by_name_partial_arn_and_arn_but_not_by_a_version(
    cloud: LocalLambda,
) -> None:
    arn = cloud.create()["FunctionArn"]
    for name in ("echo", arn, f"{arn}:$LATEST", "000000000000:function:echo", "function:echo"):
        found = cloud.client.get_function_configuration(FunctionName=name)
        assert found["FunctionName"] == "echo"
    with pytest.raises(cloud.client.exceptions.ResourceNotFoundException):
        cloud.client.get_function(FunctionName="echo", Qualifier="7")


def test_functions_are_listed_in_pages(cloud: LocalLambda) -> None:
    names = [f"f{n:02}" for n in range(53)]
    for name in names:
        cloud.create(name)
    pages = list(cloud.client.get_paginator("list_functions").paginate())
    assert [len(page["Functions"]) for page in pages] == [50, 3]
    assert [f["FunctionName"] for page in pages for f in page["Functions"]] == names


def test_an_update_changes_only_what_is_given_and_checks_the_revision(cloud: LocalLambda) -> None:
    before = cloud.create(Timeout=7, Environment={"Variables": {"NAME": "value"}})
    after = cloud.client.update_function_configuration(
        FunctionName="echo", MemorySize=512, RevisionId=before["RevisionId"]
    )
    assert (after["Timeout"], after["MemorySize"]) == (7, 512)
    assert after["Environment"] == {"Variables": {"NAME": "value"}}
    assert after["RevisionId"] != before["RevisionId"]
    with pytest.raises(cloud.client.exceptions.PreconditionFailedException):
        cloud.client.update_function_configuration(
            FunctionName="echo", Timeout=8, RevisionId=before["RevisionId"]
        )
    with pytest.raises(ClientError, match="900"):
        cloud.client.update_function_configuration(FunctionName="echo", Timeout=1000)
    assert cloud.client.get_function_configuration(FunctionName="echo")["Timeout"] == 7


def test_functions_outlive_the_process(cloud: LocalLambda) -> None:
    created = cloud.create(Tags={"a": "b"})
    cloud.restart()
    found = cloud.client.get_function(FunctionName="echo")
    assert found["Configuration"]["RevisionId"] == created["RevisionId"]
    assert found["Tags"] == {"a": "b"}


def test_a_policy_is_built_statement_by_statement(cloud: LocalLambda) -> None:
    arn = cloud.create()["FunctionArn"]
    with pytest.raises(cloud.client.exceptions.ResourceNotFoundException):
        cloud.client.get_policy(FunctionName="echo")
    permission = {
        "FunctionName": "echo",
        "StatementId": "scar-in",
        "Action": "lambda:InvokeFunction",
        "Principal": "s3.amazonaws.com",
        "SourceArn": "arn:aws:s3:::in",
        "SourceAccount": "000000000000",
    }
    answer = cloud.client.add_permission(**permission)
    statement = {
        "Sid": "scar-in",
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "lambda:InvokeFunction",
        "Resource": arn,
        "Condition": {
            "StringEquals": {"AWS:SourceAccount": "000000000000"},
            "ArnLike": {"AWS:SourceArn": "arn:aws:s3:::in"},
        },
    }
    assert json.loads(answer["Statement"]) == statement
    with pytest.raises(cloud.client.exceptions.ResourceConflictException):
        cloud.client.add_permission(**permission)
    policy = json.loads(cloud.client.get_policy(FunctionName="echo")["Policy"])
    assert policy == {"Version": "2012-10-17", "Id": "default", "Statement": [statement]}
    assert cloud.functions.can_be_invoked_by("in", arn)
    assert not cloud.functions.can_be_invoked_by("in2", arn)
    assert not cloud.functions.can_be_invoked_by("in", arn.replace("echo", "gone"))
    with pytest.raises(cloud.client.exceptions.ResourceNotFoundException, match="other"):
        cloud.client.remove_permission(FunctionName="echo", StatementId="other")
    cloud.client.remove_permission(FunctionName="echo", StatementId="scar-in")
    assert not cloud.functions.can_be_invoked_by("in", arn)


def test_s3_may_invoke_a_function_only_for_the_bucket_and_account_of_its_permission(
    cloud: LocalLambda,
) -> None:
    arn = cloud.create()["FunctionArn"]

    def allow(sid: str, **changes: str) -> None:
        statement = {"Action": "lambda:InvokeFunction", "Principal": "s3.amazonaws.com", **changes}
        cloud.client.add_permission(FunctionName="echo", StatementId=sid, **statement)

    allow("a", Principal="events.amazonaws.com")
    allow("b", Action="lambda:GetFunction")
    allow("c", SourceAccount="111111111111")
    allow("d", SourceArn="arn:aws:s3:::in-?.x")
    assert cloud.functions.can_be_invoked_by("in-1.x", arn)
    assert not cloud.functions.can_be_invoked_by("in-1yx", arn)
    assert not cloud.functions.can_be_invoked_by("in-12.x", arn)
    allow("e", SourceArn="arn:aws:s3:::in*")
    assert cloud.functions.can_be_invoked_by("in-12.x", arn)


def test_tags_are_set_listed_and_removed(cloud: LocalLambda) -> None:
    arn = cloud.create(Tags={"a": "1", "b": "2"})["FunctionArn"]
    cloud.client.tag_resource(Resource=arn, Tags={"b": "3", "c": "4"})
    cloud.client.untag_resource(Resource=arn, TagKeys=["a", "gone"])
    assert cloud.client.list_tags(Resource=arn)["Tags"] == {"b": "3", "c": "4"}
    assert list(cloud.functions.tagged()) == [(arn, {"b": "3", "c": "4"})]
    with pytest.raises(ClientError, match="50 tags"):
        cloud.client.tag_resource(Resource=arn, Tags={f"k{n}": "" for n in range(50)})


def test_an_event_invoke_config_is_put_changed_and_deleted(cloud: LocalLambda) -> None:
    cloud.create()
    with pytest.raises(cloud.client.exceptions.ResourceNotFoundException):
        cloud.client.get_function_event_invoke_config(FunctionName="echo")
    cloud.client.put_function_event_invoke_config(FunctionName="echo", MaximumRetryAttempts=1)
    cloud.client.update_function_event_invoke_config(
        FunctionName="echo", MaximumEventAgeInSeconds=60
    )
    found = cloud.client.get_function_event_invoke_config(FunctionName="echo")
    assert (found["MaximumRetryAttempts"], found["MaximumEventAgeInSeconds"]) == (1, 60)
    assert found["LastModified"].year >= 2024
    cloud.client.delete_function_event_invoke_config(FunctionName="echo")
    listed = cloud.client.list_function_event_invoke_configs(FunctionName="echo")
    assert listed["FunctionEventInvokeConfigs"] == []


def test_settings_come_from_the_environment_and_nonsense_is_named() -> None:
    read = Settings.read(
        {
            "SCAR_LOCAL_CONCURRENCY": "3",
            "SCAR_LOCAL_IDLE_S": "0.5",
            "SCAR_LOCAL_RETRY_DELAYS_S": "60,120",
        }
    )
    assert read == Settings(3, 0.5, (60.0, 120.0))
    assert Settings.read({}).concurrency >= 8
    with pytest.raises(ValueError, match="SCAR_LOCAL_IDLE_S: `soon`"):
        Settings.read({"SCAR_LOCAL_IDLE_S": "soon"})
