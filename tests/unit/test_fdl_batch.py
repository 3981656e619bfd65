"""What the FDL says of instances and of Fargate, told before anything is created."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from scar.fdl.rules import fits_its_platform, keeps_secrets_apart
from scar.fdl.schema import AwsFunction


def faults(
    kind: str, target: Literal["aws", "local"] = "local", **batch: Any
) -> list[tuple[str, str]]:
    compute = {"type": kind, **batch.pop("compute_resources", {})}
    given = {
        "lambda": {"name": "f", "execution_mode": "batch"},
        "batch": {"compute_resources": compute, **batch},
    }
    function = AwsFunction.model_validate(given)
    return [
        (".".join(map(str, one.loc)), one.summary)
        for one in fits_its_platform(function, (), target)
    ]


@pytest.mark.parametrize(
    ("vcpus", "memory"), [(0.25, 512), (0.5, 4096), (1, 8192), (4, 30720), (16, 32768), (32, 61440)]
)
def test_pairs_that_fargate_has_are_fine(vcpus: float, memory: int) -> None:
    assert faults("FARGATE", vcpus=vcpus, memory=memory) == []


@pytest.mark.parametrize(
    ("batch", "key", "words"),
    [
        ({"vcpus": 3, "memory": 8192}, "batch.vcpus", "one of 0.25, 0.5, 1, 2, 4, 8, 16, 32"),
        ({"vcpus": 0.25, "memory": 4096}, "batch.memory", "512 or 1024 or 2048 MiB"),
        (
            {"vcpus": 2, "memory": 4097},
            "batch.memory",
            "4096 to 16384 in steps of 1024 MiB with 2 vCPUs",
        ),
        ({"memory": 2048, "enable_gpu": 1}, "batch.enable_gpu", "no GPUs on `FARGATE_SPOT`"),
        ({"memory": 2048, "shared_memory": 64}, "batch.shared_memory", "cannot be set"),
        (
            {"memory": 2048, "compute_resources": {"min_v_cpus": 1}},
            "batch.compute_resources.min_v_cpus",
            "nothing is kept running",
        ),
    ],
)
def test_what_fargate_lacks_is_told(batch: dict[str, Any], key: str, words: str) -> None:
    [(where, summary)] = faults("FARGATE_SPOT", **batch)

    assert where == key
    assert words in summary


def test_parts_of_a_vcpu_and_fargates_disk_are_not_for_instances() -> None:
    found = faults("EC2", vcpus=0.5, ephemeral_storage=30)

    assert [where for where, _ in found] == ["batch.vcpus", "batch.ephemeral_storage"]


def test_gpus_need_instances_that_have_them() -> None:
    types = {"instance_types": ["g5.xlarge"]}

    assert faults("EC2", "aws", enable_gpu=1, compute_resources=types) == []
    assert faults("EC2", "local", enable_gpu=1) == []
    [(where, _)] = faults("EC2", "aws", enable_gpu=1)
    assert where == "batch.enable_gpu"


ARN = "arn:aws:secretsmanager:us-east-1:{account_id}:secret:a/b-a1b2c3"


@pytest.mark.parametrize(
    "value_from",
    [
        *(ARN, f"{ARN}:user::", f"{ARN}::AWSPREVIOUS:", f"{ARN}:user:AWSCURRENT:v1"),
        "arn:aws-cn:ssm:cn-north-1:123456789012:parameter/a/b",
        *("name", "/a/b.c-d_e"),
    ],
)
def test_what_batch_can_take_a_secret_from(value_from: str) -> None:
    given = {"lambda": {"name": "f"}, "batch": {"secrets": {"PASSWORD": value_from}}}
    assert AwsFunction.model_validate(given).batch.secrets == {"PASSWORD": value_from}


@pytest.mark.parametrize(
    "value_from",
    [f"{ARN}:user", ARN.replace("secret:", ""), "arn:aws:s3:::b", "s3://b/k", "hunter2!", ""],
)
def test_what_it_cannot_is_told_without_the_value(value_from: str) -> None:
    given = {"lambda": {"name": "f"}, "batch": {"secrets": {"PASSWORD": value_from}}}
    with pytest.raises(ValidationError) as caught:
        AwsFunction.model_validate(given)
    [error] = caught.value.errors()
    assert "must be the ARN of a secret" in error["msg"]
    assert "hunter2" not in error["msg"]


@pytest.mark.parametrize(
    ("mode", "name", "words"),
    [
        ("lambda", "PASSWORD", "secrets are for jobs, but `execution_mode` is `lambda`"),
        ("batch", "AWS_BATCH_X", "variable `AWS_BATCH_X` is reserved: Batch sets it itself"),
        ("batch", "SCAR_EVENT", "variable `SCAR_EVENT` is reserved: SCAR sets it itself"),
        ("batch", "JOBS", "variable `JOBS` is in `batch.environment` too"),
        ("batch", "ALL", "variable `ALL` is in `lambda.container.environment` too"),
        ("lambda-batch", "PASSWORD", ""),
    ],
)
def test_secrets_are_variables_of_their_own(mode: str, name: str, words: str) -> None:
    container = {"image": "x", "environment": {"Variables": {"ALL": "1"}}}
    given = {
        "lambda": {"name": "f", "execution_mode": mode, "container": container},
        "batch": {"environment": {"Variables": {"JOBS": "1"}}, "secrets": {name: ARN}},
    }
    found = keeps_secrets_apart(AwsFunction.model_validate(given), (), "aws")
    assert [one.summary for one in found] == ([words] if words else [])
