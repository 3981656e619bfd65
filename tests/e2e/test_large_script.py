"""A script larger than a job definition may be reaches its jobs, and nobody else."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.e2e.conftest import Cloud, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "scar-plants"
DEFINITION_LIMIT_BYTES = 24 * 1024
OVERRIDES_LIMIT_CHARACTERS = 8192
MAKE_PUBLIC = {
    *("PutBucketAcl", "PutBucketPolicy", "PutObjectAcl"),
    *("DeletePublicAccessBlock", "SetRepositoryPolicy", "CreateFunctionUrlConfig"),
}
COLUMNS = "leaf,length_mm,width_mm,stalk_mm,widest_at,teeth"


def leaves(seed: int, each: int) -> list[list[str]]:
    """Leaves of known species: each a row of species and measures."""
    command = ["sh", EXAMPLE / "make-leaves.sh", str(seed), str(each)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line.split(",") for line in done.stdout.splitlines()]


def test_plants_are_told_by_a_large_script_that_nothing_makes_public(
    cloud: Cloud, tmp_path: Path
) -> None:
    script = (EXAMPLE / "classify.sh").read_bytes()
    assert len(script) > DEFINITION_LIMIT_BYTES
    assert "\n".join(map(",".join, leaves(2026, 60))).encode() in script, "as its README says"
    known = leaves(7, 4)
    rows = [f"{n},{','.join(leaf[1:])}" for n, leaf in enumerate(known)]
    garden, results = tmp_path / "garden.csv", tmp_path / "results"
    garden.write_text("\n".join([COLUMNS, *rows, ""]))

    deployed = answers(cloud, "init", "-f", EXAMPLE / "scar-plants.yaml")
    cloud.ok("put", "-b", "plants/leaves", "-p", garden)
    wait_for("the species", lambda: "species/garden.species.csv" in cloud.keys("plants"))
    cloud.ok("get", "-b", "plants/species", "-p", results)

    [heads, *found] = (results / "garden.species.csv").read_text().splitlines()
    assert heads == "leaf,species,votes,distance"
    told = [line.split(",") for line in found]
    assert [leaf[0] for leaf in told] == [str(n) for n in range(len(known))]
    right = sum(leaf[1] == species for leaf, (species, *_) in zip(told, known, strict=True))
    assert right >= 0.9 * len(known)
    assert f"garden: {len(known)} leaves" in cloud.ok("log", "-n", "scar-plants")

    asked = {one["Operation"] for one in deployed}
    assert {"CreateFunction", "RegisterJobDefinition"} <= asked
    assert not asked & MAKE_PUBLIC
    [statement] = json.loads(
        cloud.client("lambda").get_policy(FunctionName="scar-plants")["Policy"]
    )["Statement"]
    assert statement["Principal"] == {"Service": "s3.amazonaws.com"}
    check_that_buckets_are_private(cloud, script)
    check_sizes(cloud)


def answers(cloud: Cloud, *arguments: Any) -> list[dict[str, Any]]:
    """What AWS answered to a command, by operation."""
    told = json.loads(cloud.ok(*arguments, "-v").splitlines()[-1])["Answers"]
    return list(told)


def check_that_buckets_are_private(cloud: Cloud, script: bytes) -> None:
    """Nor is the script in any of them."""
    s3 = cloud.client("s3")
    names = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    assert len(names) == 2, "its own, and the deployment bucket"
    part = script[-400:]
    for name in names:
        with pytest.raises(ClientError, match="NoSuchBucketPolicy"):
            s3.get_bucket_policy(Bucket=name)
        block = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
        assert all(block.values())
        grants = s3.get_bucket_acl(Bucket=name)["Grants"]
        assert [grant["Grantee"]["Type"] for grant in grants] == ["CanonicalUser"]
        for key in cloud.keys(name):
            content = cloud.content(name, key)
            assert part not in content
            assert base64.b64encode(script)[:400] not in content


def check_sizes(cloud: Cloud) -> None:
    """Of what was registered and what was submitted, as Batch tells of them."""
    batch = cloud.client("batch")
    [definition] = batch.describe_job_definitions(status="ACTIVE")["jobDefinitions"]
    assert len(json.dumps(definition["containerProperties"])) < DEFINITION_LIMIT_BYTES / 10
    [queue] = batch.describe_job_queues()["jobQueues"]
    listed = batch.list_jobs(jobQueue=queue["jobQueueName"], jobStatus="SUCCEEDED")
    [job] = batch.describe_jobs(jobs=[one["jobId"] for one in listed["jobSummaryList"]])["jobs"]
    environment = {one["name"]: one["value"] for one in job["container"]["environment"]}
    assert "SCAR_EVENT" in environment
    assert sum(len(k) + len(v) for k, v in environment.items()) < OVERRIDES_LIMIT_CHARACTERS / 2
