"""What is asked of AWS Batch, asked of moto: another reader of AWS's documentation than ours."""

from __future__ import annotations

import boto3
import pytest
from moto import mock_aws

from scar.aws import jobs
from scar.aws.account import Account, Target
from scar.aws.handlers import handlers
from scar.plan.desired import retry_rules
from scar.plan.resources import ComputeEnvironment, JobDefinition, JobQueue, LogGroup


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws(config={"batch": {"use_docker": False}}):
        yield Account(Target("aws", None, None, "us-east-1"))


def network() -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """A subnet, a security group and an instance profile that moto knows."""
    ec2, iam = boto3.client("ec2", "us-east-1"), boto3.client("iam", "us-east-1")
    [subnet, *_] = ec2.describe_subnets()["Subnets"]
    [group, *_] = ec2.describe_security_groups()["SecurityGroups"]
    iam.create_instance_profile(InstanceProfileName="ecs")
    profile = iam.get_instance_profile(InstanceProfileName="ecs")["InstanceProfile"]["Arn"]
    return (subnet["SubnetId"],), (group["GroupId"],), profile


@pytest.mark.parametrize("kind", ["SPOT", "FARGATE"])
def test_moto_takes_what_is_asked_and_an_array_is_submitted(account: Account, kind: str) -> None:
    subnets, groups, profile = network()
    is_fargate = kind.startswith("FARGATE")
    keepers = handlers(account)
    role = boto3.client("iam", "us-east-1").create_role(
        RoleName="jobs", AssumeRolePolicyDocument="{}"
    )["Role"]["Arn"]
    environment = ComputeEnvironment(
        "scar-0123456789ab", kind, 4, 0, 0,
        () if is_fargate else ("m5.large",), "" if is_fargate else profile,
        subnets, groups, role,
        allocation_strategy="" if is_fargate else "BEST_FIT_PROGRESSIVE",
    )  # fmt: skip
    queue = JobQueue(environment.name, environment.name)
    definition = JobDefinition(
        "split", "000000000000.dkr.ecr.us-east-1.amazonaws.com/scar:x", role,
        1, 2048, 0, "/aws/batch/split", "us-east-1",
        platform="FARGATE" if is_fargate else "EC2",
        timeout_s=600, attempts=3, retry_rules=retry_rules(1), propagates_tags=True,
        execution_role_arn=role, secrets={"API_KEY": "/service/key"},
    )  # fmt: skip

    for resource in (LogGroup("/aws/batch/split", 30), environment, queue, definition):
        keepers[resource.kind].create(resource)

    found = keepers["job definition"].read("split")
    assert (found.retry_rules, found.timeout_s) == (definition.retry_rules, 600)
    assert found.platform == definition.platform
    assert found.secrets == definition.secrets
    array = jobs.submit(account, "split", queue.name, 3, {"SCAR_ARRAY": "s3://b/k#width=9"})
    [info] = jobs.describe(account, [array])
    assert info.definition == "split"
    jobs.terminate(account, [array], "enough")


def test_moto_takes_a_definition_of_several_nodes(account: Account) -> None:
    keeper = handlers(account)["job definition"]
    wanted = JobDefinition(
        "nodes", "000000000000.dkr.ecr.us-east-1.amazonaws.com/scar:x",
        "arn:aws:iam::123456789012:role/r", 2, 2048, 0, "/aws/batch/nodes", "us-east-1",
        attempts=3, retry_rules=retry_rules(0, has_nodes=True), propagates_tags=True,
        environment={"SCAR_MNP_SLOTS": "2"}, nodes=4, main_node=1,
    )  # fmt: skip

    keeper.create(wanted)

    # moto keeps no nodeProperties; that they read back is tried on the local cloud.
    assert keeper.read("nodes").retry_rules == wanted.retry_rules
