"""GPUs in an FDL are `resourceRequirements` in what Batch is asked; botocore's model checks it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.stub import Stubber

from scar.aws import jobs
from scar.aws.account import Account, Target, connect
from scar.aws.batch import JobDefinitions
from scar.cli.arguments import parse
from scar.fdl.load import Rules, load
from scar.fdl.source import Sources, from_flags, read_yaml
from scar.plan import limits
from scar.plan.desired import AccountFacts, ImageFacts, desired
from scar.plan.resources import JobDefinition

RULES = Rules(
    (*Rules().of_function, *limits.FUNCTION_RULES), (*Rules().across, *limits.DESCRIBED_RULES)
)
COMPUTE = {"max_v_cpus": 64, "instance_types": ["g5.xlarge"], "subnets": ["subnet-1"]}
FACTS = AccountFacts("1" * 12, "eu-west-1", "me", is_local=False)
IMAGE = ImageFacts("1" * 12 + ".dkr.ecr.eu-west-1.amazonaws.com/scar:x", "x86_64", True, "1")


@pytest.fixture
def account() -> Account:
    return connect(Target("local", "http://127.0.0.1:9", None, "eu-west-1"))


def wanted(line: str = "", **batch: Any) -> JobDefinition:
    """What an FDL with these keys and an `init` with these flags want of Batch."""
    function = {
        "lambda": {"name": "train", "execution_mode": "batch", "container": {"image": "cuda"}},
        "iam": {"role": "arn:aws:iam::111111111111:role/scar"},
        "batch": {
            "vcpus": 4,
            "memory": 8192,
            "compute_resources": {**COMPUTE, "security_group_ids": ["sg-1"]},
            **batch,
        },
    }
    options = parse(["init", "-f", "train.yaml", *line.split()])
    text = json.dumps({"functions": {"aws": [function]}})  # JSON is YAML
    sources = Sources(
        fdl=read_yaml(text, "train.yaml"), flags=from_flags(options.settings, options.flags)
    )
    found = desired(load(sources, RULES).deployment, {"train": IMAGE}, FACTS)
    [definition] = [one for one in found if isinstance(one, JobDefinition)]
    return definition


def asked(account: Account, definition: JobDefinition) -> dict[str, Any]:
    """RegisterJobDefinition's parameters, taken by the client's own validation."""
    client = account.client("batch")
    requests: list[dict[str, Any]] = []
    client.meta.events.register(
        "provide-client-params.batch.*", lambda params, **_: requests.append(params)
    )
    answer = {"jobDefinitionName": "train", "jobDefinitionArn": "a", "revision": 1}
    with Stubber(client) as stubber:
        stubber.add_response("register_job_definition", answer)
        JobDefinitions(account).create(definition)
    [request] = requests
    return request


def needs(gpus: str | None) -> list[dict[str, str]]:
    every = [{"type": "VCPU", "value": "4"}, {"type": "MEMORY", "value": "8192"}]
    return [*every, {"type": "GPU", "value": gpus}] if gpus else every


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({"enable_gpu": True}, "1"),
        ({"enable_gpu": 4}, "4"),
        ({"enable_gpu": False}, None),
        ({}, None),
    ],
)
def test_gpus_are_required_beside_vcpus_and_memory(
    account: Account, given: dict[str, Any], gpus: str | None
) -> None:
    request = asked(account, wanted(**given))

    container = request["containerProperties"]
    assert container["resourceRequirements"] == needs(gpus)
    assert not {"vcpus", "memory"} & set(container), "the old way to ask, deprecated"
    assert request["platformCapabilities"] == ["EC2"]
    shape: Any = account.client("batch").meta.service_model.shape_for("ResourceType")
    assert {one["type"] for one in container["resourceRequirements"]} <= set(shape.enum)


def test_the_flag_asks_for_one_gpu(account: Account) -> None:
    container = asked(account, wanted("--enable-gpu"))["containerProperties"]
    assert container["resourceRequirements"] == needs("1")


def test_every_node_of_a_job_has_its_gpus_and_as_many_processes(account: Account) -> None:
    nodes = {"enabled": True, "number_nodes": 3}
    request = asked(account, wanted(enable_gpu=2, multi_node_parallel=nodes))

    assert "containerProperties" not in request
    [every] = request["nodeProperties"]["nodeRangeProperties"]
    assert every["targetNodes"] == "0:"
    assert every["container"]["resourceRequirements"] == needs("2")
    assert {"name": "SCAR_MNP_SLOTS", "value": "2"} in every["container"]["environment"]


def test_what_is_submitted_leaves_the_requirements_to_the_definition(account: Account) -> None:
    """Only variables are overridden: a list of requirements would have to name the GPUs again."""
    client = account.client("batch")
    with Stubber(client) as stubber:
        overrides = {"environment": [{"name": "A", "value": "b"}]}
        expected = {"jobName": "train", "jobQueue": "q", "jobDefinition": "train"}
        stubber.add_response(
            "submit_job",
            {"jobId": "1", "jobName": "train"},
            {**expected, "containerOverrides": overrides},
        )
        assert jobs.submit(account, "train", "q", 1, {"A": "b"}) == "1"
