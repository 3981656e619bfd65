"""What SCAR asks of Batch: it reads back as it was written, and stays under AWS's limits."""

from __future__ import annotations

import dataclasses
import json
import uuid

import pytest

from scar.apply import observe
from scar.aws.errors import speaking_to
from scar.aws.handlers import handlers
from scar.errors import CloudError
from scar.fdl.schema import Deployment
from scar.plan.desired import AccountFacts, ImageFacts, desired, retry_rules
from scar.plan.diff import to_reach
from scar.plan.resources import (
    ComputeEnvironment,
    JobDefinition,
    JobQueue,
    RetryRule,
    id_of,
)
from tests.doubles.cloud import local_cloud

ROLE = "arn:aws:iam::000000000000:role/scar"
SECRETS = {
    "PASSWORD": "arn:aws:secretsmanager:eu-south-2:000000000000:secret:db-a1b2c3:password::",
    "API_KEY": "/service/key",
}


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        yield account


def a_definition(**more):
    n = uuid.uuid4().hex[:8]
    given = {
        "image_uri": "000000000000.dkr.ecr.us-east-1.amazonaws.com/scar:x",
        "job_role_arn": ROLE,
        "vcpus": 1,
        "memory_mib": 2048,
        "gpus": 0,
        "log_group": f"/aws/batch/{n}",
        "region": "us-east-1",
        **more,
    }
    return JobDefinition(f"f-{n}", **given)


def an_environment(kind, **more):
    is_fargate = kind.startswith("FARGATE")
    strategies = {"EC2": "BEST_FIT_PROGRESSIVE", "SPOT": "SPOT_PRICE_CAPACITY_OPTIMIZED"}
    given = {
        "type": kind,
        "max_vcpus": 8,
        "min_vcpus": 0,
        "desired_vcpus": 0,
        "instance_types": () if is_fargate else ("c6i.large", "optimal"),
        "instance_role": "" if is_fargate else "ecsInstanceRole",
        "subnets": ("subnet-1", "subnet-2"),
        "security_group_ids": ("sg-1",),
        "allocation_strategy": strategies.get(kind, ""),
        **more,
    }
    return ComputeEnvironment(f"scar-{uuid.uuid4().hex[:12]}", **given)


DEFINITIONS = {
    "a timeout, retries by rule and tags for its tasks": {
        "timeout_s": 3600,
        "attempts": 3,
        "retry_rules": retry_rules(2),
        "propagates_tags": True,
        "tags": {"a": "b"},
    },
    "several nodes": {
        "nodes": 4,
        "main_node": 1,
        "attempts": 3,
        "retry_rules": retry_rules(0, has_nodes=True),
        "environment": {"SCAR_MNP_SLOTS": "2"},
    },
    "secrets": {"secrets": SECRETS, "execution_role_arn": ROLE},
    "secrets of several nodes": {"secrets": SECRETS, "execution_role_arn": ROLE, "nodes": 2},
    "GPUs and shared memory": {"gpus": 2, "shared_memory_mib": 512},
    "Fargate": {
        "platform": "FARGATE",
        "vcpus": 0.25,
        "execution_role_arn": ROLE,
        "ephemeral_storage_gib": 50,
        "assigns_public_ip": True,
    },
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_job_definition_reads_back(account, kind):
    wanted = a_definition(**DEFINITIONS[kind])
    handler = handlers(account)["job definition"]

    handler.create(wanted)

    assert handler.read(wanted.name) == wanted
    assert to_reach([wanted], observe([id_of(wanted)], handlers(account))).steps == ()


@pytest.mark.parametrize("kind", ["EC2", "SPOT", "FARGATE", "FARGATE_SPOT"])
def test_every_type_of_compute_environment_reads_back_with_its_queue(account, kind):
    wanted, keepers = an_environment(kind), handlers(account)
    queue = JobQueue(wanted.name, wanted.name)
    keepers["compute environment"].create(wanted)
    keepers["job queue"].create(queue)

    assert keepers["compute environment"].read(wanted.name) == wanted
    assert keepers["job queue"].read(queue.name) == queue


def test_what_somebody_changed_in_an_environment_is_put_right_in_place(account):
    wanted = an_environment("EC2")
    handler = handlers(account)["compute environment"]
    handler.create(wanted)
    with speaking_to("batch"):
        account.client("batch").update_compute_environment(
            computeEnvironment=wanted.name, state="DISABLED", computeResources={"maxvCpus": 2}
        )
    found = handler.read(wanted.name)
    assert found == dataclasses.replace(wanted, state="DISABLED", max_vcpus=2)

    handler.update(wanted, found)

    assert handler.read(wanted.name) == wanted


def test_what_aws_would_refuse_of_fargate_is_refused_here(account):
    handler = handlers(account)["job definition"]
    for wrong in ({"execution_role_arn": ""}, {"gpus": 1}, {"shared_memory_mib": 64}):
        with pytest.raises(CloudError):
            handler.create(a_definition(**{**DEFINITIONS["Fargate"], **wrong}))


def test_rules_retry_lost_hosts_and_pulls_and_end_everything_else():
    none, some = retry_rules(0), retry_rules(1)

    assert none == (
        RetryRule("RETRY", on_status_reason="Host EC2*"),
        RetryRule("RETRY", on_reason="CannotPull*"),
        RetryRule("EXIT", on_reason="*"),
    )
    assert len(some) == 5
    assert some[-1] == RetryRule("EXIT", on_reason="*")


def test_a_definition_stays_small_whatever_its_script_and_variables(account):
    """The script (200 KB here) and 100 variables travel in the image, not in the definition."""
    variables = {f"VARIABLE_{n}": "x" * 200 for n in range(100)}
    function = {
        "lambda": {
            "name": "big",
            "init_script": "script-of-200-KB.sh",
            "execution_mode": "batch",
            "container": {"image": "host", "environment": {"Variables": variables}},
        },
        "batch": {"environment": {"Variables": variables}, "retry": 3, "timeout": 600},
    }
    deployment = Deployment.model_validate({"functions": {"aws": [function]}})
    facts = AccountFacts("0" * 12, "us-east-1", "me", is_local=True)
    image = ImageFacts("0" * 12 + ".dkr.ecr.us-east-1.amazonaws.com/scar:big", "x86_64", True, "5")
    [wanted] = [
        resource
        for resource in desired(deployment, {"big": image}, facts)
        if isinstance(resource, JobDefinition)
    ]
    sent = []
    client = account.client("batch")
    client.meta.events.register(
        "before-send.batch.RegisterJobDefinition", lambda request, **_: sent.append(request.body)
    )

    handlers(account)["job definition"].create(wanted)

    assert wanted.attempts == 4
    [body] = sent
    assert len(body) < 2048
    assert json.loads(body)["timeout"] == {"attemptDurationSeconds": 600}
