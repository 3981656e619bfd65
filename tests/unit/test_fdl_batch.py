"""What the FDL says of instances and of Fargate, told before anything is created."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from scar.fdl.rules import fits_its_platform
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
