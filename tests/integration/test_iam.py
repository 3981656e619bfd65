"""Roles made by the real command, on a cloud that is AWS to it: target aws, the local endpoint."""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest

from scar.__main__ import main
from scar.aws import waiting
from tests.doubles import model_check
from tests.doubles.cloud import local_cloud
from tests.doubles.iam import is_allowed
from tests.doubles.recorder import Recorder
from tests.integration.test_images_sources import a_tar, files_of, write

REGION = "eu-west-1"
OWN = "arn:aws:iam::000000000000:role/mine"
FDL = """\
functions:
  aws:
  - lambda:
      name: split
      execution_mode: batch
      container: {image_file: image.tar}
      input: [{path: video/input}]
      output: [{path: video/frames}]
    batch:
      compute_resources: {subnets: [subnet-1], security_group_ids: [sg-1]}
  - lambda:
      name: detect
      container: {image_file: image.tar}
      input: [{path: video/frames}]
      output: [{path: video/output}]
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        yield account.endpoint_url


@pytest.fixture
def iam(url):
    return boto3.client(
        "iam", endpoint_url=url, region_name=REGION,
        aws_access_key_id="test", aws_secret_access_key="test",
    )  # fmt: skip


@pytest.fixture
def scar(url, tmp_path, monkeypatch, capsys):
    """The command in a folder with an image; gives what it printed."""
    write(tmp_path / "image.tar", files_of([a_tar()], layout=False))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "SCAR_CONFIG_FOLDER": str(tmp_path / "config"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, fdl=FDL):
        (tmp_path / "video.yaml").write_text(fdl)
        capsys.readouterr()
        code = main(arguments)
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    yield run
    run("rm", "-a")


def roles(iam):
    return sorted(
        role["RoleName"]
        for page in iam.get_paginator("list_roles").paginate()
        for role in page["Roles"]
        if role["RoleName"].startswith("scar-")
    )


def verbs(printed):
    return [(step["Verb"], step["Kind"], step["Name"]) for step in json.loads(printed)["Plan"]]


def test_init_makes_the_roles_once_and_rm_leaves_none(scar, iam):
    scar("init", "-f", "video.yaml")
    assert roles(iam) == [
        "scar-detect-eu-west-1-function",
        "scar-split-eu-west-1-function",
        "scar-split-eu-west-1-job",
    ]
    assert iam.get_instance_profile(InstanceProfileName="ecsInstanceRole")
    linked = iam.list_roles(PathPrefix="/aws-service-role/batch.amazonaws.com/")["Roles"]
    assert len(linked) == 1
    assert verbs(scar("init", "-f", "video.yaml", "--plan", "-j")) == []
    scar("rm", "-f", "video.yaml")
    assert roles(iam) == []
    assert iam.get_instance_profile(InstanceProfileName="ecsInstanceRole"), "it is everybody's"


def test_function_and_job_take_the_roles_and_iam_shows_what_they_have(scar, iam, url):
    scar("init", "-f", "video.yaml")
    printed = json.loads(scar("iam", "-f", "video.yaml", "-n", "split"))
    [split] = printed["Functions"]
    assert [(one["Use"], one["Made"]) for one in split["Roles"]] == [
        ("function", True),
        ("job", True),
    ]
    for role in split["Roles"]:
        name = role["Arn"].rpartition("/")[2]
        its = iam.get_role(RoleName=name)["Role"]
        policy = iam.get_role_policy(RoleName=name, PolicyName="scar")["PolicyDocument"]
        assert (its["AssumeRolePolicyDocument"], policy) == (role["Trust"], role["Policy"])
    options = {
        "endpoint_url": url, "region_name": REGION,
        "aws_access_key_id": "test", "aws_secret_access_key": "test",
    }  # fmt: skip
    taken = boto3.client("lambda", **options).get_function_configuration(FunctionName="split")
    [definition] = boto3.client("batch", **options).describe_job_definitions(
        jobDefinitionName="split", status="ACTIVE"
    )["jobDefinitions"]
    assert [taken["Role"], definition["containerProperties"]["jobRoleArn"]] == [
        role["Arn"] for role in split["Roles"]
    ]


def test_roles_come_and_go_with_what_the_fdl_says(scar, iam):
    given = FDL + f"    iam: {{role: '{OWN}'}}\n"
    scar("init", "-f", "video.yaml", fdl=given)
    assert "scar-detect-eu-west-1-function" not in roles(iam), "a role was given"
    plan = verbs(scar("init", "-f", "video.yaml", "--plan", "-j"))
    assert plan == [
        ("create", "role", "scar-detect-eu-west-1-function"),
        ("update", "function", "detect"),
        ("create", "failure destination", "detect"),
    ]
    scar("init", "-f", "video.yaml")
    plan = verbs(scar("init", "-f", "video.yaml", "--plan", "-j", fdl=given))
    assert plan == [
        ("update", "function", "detect"),
        ("delete", "role", "scar-detect-eu-west-1-function"),
    ]
    scar("init", "-f", "video.yaml", fdl=given)
    assert "scar-detect-eu-west-1-function" not in roles(iam)


def test_a_function_without_jobs_has_no_role_for_them(scar, iam):
    scar("init", "-f", "video.yaml")
    scar("init", "-f", "video.yaml", fdl=FDL.replace("execution_mode: batch", "memory: 256"))
    assert "scar-split-eu-west-1-job" not in roles(iam)
    assert "scar-split-eu-west-1-function" in roles(iam)


def test_the_role_of_a_job_that_waits_stays_until_it_has_ended(scar, iam, url):
    batch = boto3.client(
        "batch", endpoint_url=url, region_name=REGION,
        aws_access_key_id="test", aws_secret_access_key="test",
    )  # fmt: skip
    given = FDL.replace("  - lambda:", f"  - iam: {{role: '{OWN}'}}\n    lambda:", 1)
    scar("init", "-f", "video.yaml")
    [queue] = batch.describe_job_queues()["jobQueues"]
    needs = [{"type": "GPU", "value": "1"}]  # there is none: it waits
    job = batch.submit_job(
        jobName="waits", jobQueue=queue["jobQueueName"], jobDefinition="split",
        containerOverrides={"resourceRequirements": needs},
    )["jobId"]  # fmt: skip
    scar("init", "-f", "video.yaml", fdl=given)
    assert "scar-split-eu-west-1-job" in roles(iam)
    assert "scar-split-eu-west-1-function" not in roles(iam)
    batch.terminate_job(jobId=job, reason="enough")
    waiting.until(lambda: not has_jobs(batch, queue["jobQueueName"]), "ending the job", "batch")
    scar("init", "-f", "video.yaml", fdl=given)
    assert "scar-split-eu-west-1-job" not in roles(iam)


def has_jobs(batch, queue):
    states = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
    return any(batch.list_jobs(jobQueue=queue, jobStatus=s)["jobSummaryList"] for s in states)


def test_fargate_has_a_role_that_pulls_its_image(scar, iam):
    fargate = FDL.replace("compute_resources: {", "compute_resources: {type: FARGATE, ")
    fargate = fargate.replace("batch:\n", "batch:\n      memory: 2048\n")
    scar("init", "-f", "video.yaml", fdl=fargate)
    assert "scar-split-eu-west-1-task" in roles(iam)
    assert verbs(scar("init", "-f", "video.yaml", "--plan", "-j", fdl=fargate)) == []
    scar("init", "-f", "video.yaml")
    assert "scar-split-eu-west-1-task" not in roles(iam)


def test_a_change_of_what_is_allowed_is_shown_and_made(scar, iam):
    scar("init", "-f", "video.yaml")
    other = FDL.replace("video/output", "video/result")
    [line, _] = [
        line
        for line in scar("init", "-f", "video.yaml", "--plan", fdl=other).splitlines()
        if "role" in line or "to update" in line
    ]
    assert line.startswith("update role 'scar-detect-eu-west-1-function'  (policy.Outputs {")
    scar("init", "-f", "video.yaml", fdl=other)
    name = "scar-detect-eu-west-1-function"
    policy = iam.get_role_policy(RoleName=name, PolicyName="scar")["PolicyDocument"]
    assert "video/result/*" in json.dumps(policy)
    assert "video/output" not in json.dumps(policy)


def test_a_role_that_was_made_before_a_failure_goes_with_rm(scar, iam):
    """As after an `init` that was ended between its first two steps."""
    scar("init", "-f", "video.yaml")
    scar("rm", "-n", "detect")
    iam.create_role(
        RoleName="scar-detect-eu-west-1-function",
        AssumeRolePolicyDocument="{}",
        Tags=[{"Key": "createdby", "Value": "scar"}],
    )
    scar("rm", "-n", "detect")
    assert "scar-detect-eu-west-1-function" not in roles(iam)


def test_a_role_of_that_name_that_is_not_ours_stays(scar, iam):
    name = "scar-detect-eu-west-1-job"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    scar("init", "-f", "video.yaml")
    scar("rm", "-f", "video.yaml")
    assert roles(iam) == [name]
    iam.delete_role(RoleName=name)


OTHER_NAMES = {
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:PutBucketNotificationConfiguration": "s3:PutBucketNotification",
    "s3:GetBucketNotificationConfiguration": "s3:GetBucketNotification",
    "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "s3:GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "s3:GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "tagging:GetResources": "tag:GetResources",
}
"""IAM's word for an operation where it has another (Service Authorization Reference)."""


def test_the_policy_of_the_documentation_is_enough_to_deploy(scar, url, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "iam.md").read_text()
    policy = json.loads(page.partition("```json\n")[2].partition("```")[0])
    recorder = Recorder()
    recorder.upstream = urlsplit(url).port
    api = FDL + "    api_gateway: {name: detect}\n"
    with recorder.serving(), monkeypatch.context() as through:
        through.setenv("AWS_ENDPOINT_URL", recorder.url)
        scar("init", "-f", "video.yaml", fdl=api)
        scar("init", "-f", "video.yaml", fdl=api.replace("video/output", "video/result"))
        scar("init", "-f", "video.yaml", fdl=FDL + f"    iam: {{role: '{OWN}'}}\n")
        scar("rm", "-f", "video.yaml")
    readings = [(one, model_check.read(one)) for one in recorder.requests if one.service]
    asked = {f"{request.service}:{its.operation}" for request, its in readings}
    assert len(asked) > 40, "the session is one"
    actions = {OTHER_NAMES.get(one, one) for one in asked - {"sts:GetCallerIdentity"}}
    statements = [{**one, "Resource": ["*"]} for one in policy["Statement"]]
    every = [{**policy, "Statement": statements}]
    assert {one for one in actions if not is_allowed(every, one, "*")} == set()
    for action, name in (("CreateRole", "scar-a"), ("PassRole", "scar-a"), ("PassRole", "admin")):
        resource = f"arn:aws:iam::123456789012:role/{name}"
        assert is_allowed([policy], f"iam:{action}", resource) == (name != "admin")


def test_iam_says_what_a_given_role_must_allow(scar):
    given = FDL.replace("  - lambda:", f"  - iam: {{role: '{OWN}'}}\n    lambda:", 1)
    text = scar("iam", "-f", "video.yaml", "-n", "split", fdl=given)
    compact = scar("iam", "-f", "video.yaml", "-n", "split", "--json", fdl=given)
    assert json.loads(text) == json.loads(compact)
    assert len(compact.splitlines()) == 1 < len(text.splitlines())
    [split] = json.loads(compact)["Functions"]
    assert [(one["Arn"], one["Made"]) for one in split["Roles"]] == [(OWN, False)] * 2
    assert {one["Trust"]["Statement"][0]["Principal"]["Service"] for one in split["Roles"]} == {
        "lambda.amazonaws.com",
        "ecs-tasks.amazonaws.com",
    }
