"""What SCAR sets on buckets and functions to keep its state, asked of moto: another reader."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import boto3
import pytest
from moto import mock_aws

from scar.apply import observe
from scar.aws.account import Account, Target
from scar.aws.buckets import Buckets
from scar.aws.handlers import handlers
from scar.aws.objects import latest
from scar.plan.diff import to_reach
from scar.plan.resources import Bucket, BucketSetup, FailureDestination, id_of


@pytest.fixture(params=["us-east-1", "eu-west-1"])
def account(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield Account(Target("aws", None, None, request.param))


@pytest.mark.parametrize("is_default", [True, False])
def test_moto_takes_the_setup_of_a_deployment_bucket(account: Account, is_default: bool) -> None:
    name = account.facts().default_bucket if is_default else "mine"
    wanted, keepers = (Bucket(name), BucketSetup(name)), handlers(account)
    assert observe(map(id_of, wanted), keepers) == {}
    theirs = {
        "ID": "theirs",
        "Status": "Enabled",
        "Filter": {"Tag": {"Key": "a", "Value": "b"}},
        "Expiration": {"Days": 1},
    }
    keepers["bucket"].create(wanted[0])
    account.client("s3").put_bucket_lifecycle_configuration(
        Bucket=name, LifecycleConfiguration={"Rules": [theirs]}
    )
    keepers["bucket setup"].create(wanted[1])

    seen = observe(map(id_of, wanted), keepers)
    assert to_reach(wanted, seen).steps == ()
    assert seen[id_of(wanted[1])] == wanted[1]
    keepers["bucket setup"].delete(wanted[1])
    left = account.client("s3").get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    assert left == [theirs]


def test_moto_takes_a_bucket_as_a_failure_destination(account: Account) -> None:
    role = boto3.client("iam", "us-east-1").create_role(
        RoleName="f", AssumeRolePolicyDocument="{}"
    )["Role"]["Arn"]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("f.py", "")
    account.client("lambda").create_function(
        FunctionName="f", Role=role, Runtime="python3.13", Handler="f.f",
        Code={"ZipFile": archive.getvalue()},
    )  # fmt: skip
    bucket = account.facts().default_bucket
    wanted, keepers = FailureDestination("f", f"arn:aws:s3:::{bucket}"), handlers(account)
    keeper = keepers["failure destination"]
    keepers["bucket"].create(Bucket(bucket))
    assert keeper.read("f") is None
    keeper.create(wanted)
    assert keeper.read("f") == wanted
    assert keeper.read("another") is None


def test_moto_tells_of_the_latest_versions(account: Account) -> None:
    s3 = account.client("s3")
    Buckets(account).create(Bucket("versioned"))
    s3.put_object(Bucket="versioned", Key="in/before", Body=b"0")
    status: Any = {"Status": "Enabled"}
    assert [its.version_id for its in latest(account, "versioned", "in/")] == [""]
    s3.put_bucket_versioning(Bucket="versioned", VersioningConfiguration=status)
    put = [s3.put_object(Bucket="versioned", Key="in/a", Body=b"1") for _ in range(2)]
    s3.put_object(Bucket="versioned", Key="in/gone", Body=b"1")
    s3.delete_object(Bucket="versioned", Key="in/gone")
    s3.put_object(Bucket="versioned", Key="out/b", Body=b"1")

    found = list(latest(account, "versioned", "in/"))

    assert [(its.key, its.version_id) for its in found] == [
        ("in/a", put[1]["VersionId"]),
        ("in/before", ""),
    ]
