"""The services that moto answers, through the door, and what a restart brings back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from scar_local.door import Control, Door
from scar_local.http import Exchange, Server
from scar_local.others import Moto

pytest.importorskip("moto")

ROOT = Path(__file__).parents[2]

PROCESS = """
import json, sys
from pathlib import Path
from botocore.exceptions import ClientError
from tests.integration.test_local_moto import moto_in, seen
TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})
with moto_in(Path(sys.argv[1])) as client:
    iam, ec2 = client("iam"), client("ec2")
"""


def process(directory: Path, *lines: str) -> Any:
    """What a process of its own prints: moto's state belongs to the process, not to a server."""
    script = PROCESS + "".join(f"    {line}\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Nobody:
    def handle(self, exchange: Exchange, region: str = "") -> None:
        raise AssertionError("not for this service")


@contextmanager
def moto_in(directory: Path) -> Iterator[Any]:
    """A door with moto behind it: gives a maker of clients."""
    nobody = Nobody()
    door = Door({}, nobody, nobody, Moto(directory), Control(dict, lambda: None))
    with Server(0, door.answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def client(name: str, region: str = "eu-west-1") -> Any:
            return boto3.client(  # type: ignore[call-overload]
                name,
                region_name=region,
                aws_access_key_id="local",
                aws_secret_access_key="local",
                endpoint_url=f"http://127.0.0.1:{server.server_port}",
            )

        yield client
        server.shutdown()


def seen(client: Any) -> dict[str, Any]:
    """All the identifiers that moto made up."""
    ec2 = client("ec2")
    return {
        "subnets": sorted(s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]),
        "roles": [(r["RoleName"], r["RoleId"]) for r in client("iam").list_roles()["Roles"]],
        "templates": [
            t["LaunchTemplateId"] for t in ec2.describe_launch_templates()["LaunchTemplates"]
        ],
        "rules": [r["Arn"] for r in client("events").list_rules()["Rules"]],
    }


def test_a_new_process_has_the_same_roles_subnets_and_templates(tmp_path: Path) -> None:
    before = process(
        tmp_path,
        "ec2.describe_subnets()  # a read makes the default VPC, and its identifiers",
        "role = iam.create_role(RoleName='r', AssumeRolePolicyDocument=TRUST)['Role']",
        "assert role['Arn'] == 'arn:aws:iam::000000000000:role/r', role",
        "iam.create_role(RoleName='gone', AssumeRolePolicyDocument=TRUST)",
        "iam.delete_role(RoleName='gone')",
        "data = {'InstanceType': 'c5.large'}",
        "ec2.create_launch_template(LaunchTemplateName='t', LaunchTemplateData=data)",
        "client('events').put_rule(Name='nightly', ScheduleExpression='rate(1 day)')",
        "print(json.dumps(seen(client)))",
    )
    assert (len(before["roles"]), len(before["templates"]), len(before["rules"])) == (1, 1, 1)
    with (tmp_path / "moto.jsonl").open("a") as journal:
        journal.write('{"method": "POST", "ur')  # as after a kill in the middle of a line
    after = process(
        tmp_path,
        "print(json.dumps(seen(client)))",
        "iam.create_role(RoleName='later', AssumeRolePolicyDocument=TRUST)",
    )
    assert after == before
    names = process(tmp_path, "print(json.dumps([name for name, _ in seen(client)['roles']]))")
    assert sorted(names) == ["later", "r"]


def test_reads_are_not_journalled_but_for_the_first(tmp_path: Path) -> None:
    with moto_in(tmp_path) as client:
        for _ in range(3):
            client("iam").list_roles()
        client("sqs").list_queues()
        client("sqs").create_queue(QueueName="q")
        with pytest.raises(ClientError):
            client("iam").delete_role(RoleName="none")
    lines = (tmp_path / "moto.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3
    assert lines[0].startswith('{"moto": "5.')


def test_what_moto_does_not_have_is_said_plainly(tmp_path: Path) -> None:
    path = "o-123456789012/r-1234/ou-1234"
    with moto_in(tmp_path) as client, pytest.raises(ClientError) as caught:
        client("iam").generate_organizations_access_report(EntityPath=path)
    error = caught.value.response
    assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == (
        "NotImplemented",
        501,
    )


def test_without_the_extra_the_answer_says_what_to_install(tmp_path: Path) -> None:
    said = process(
        tmp_path,
        "sys.modules['moto.moto_server'] = None",
        "try: iam.list_roles()",
        "except ClientError as error: print(json.dumps(error.response))",
    )
    assert said["ResponseMetadata"]["HTTPStatusCode"] == 501
    assert "pip install 'scar[local]'" in said["Error"]["Message"]
