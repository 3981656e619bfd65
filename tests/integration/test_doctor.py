"""`scar doctor` of accounts that are set up well and badly: the real command, asking moto."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.doubles import model_check
from tests.doubles.recorder import Answer, Recorded, Recorder

REGION = "eu-west-1"
BATCH_TRUST = ("lambda.amazonaws.com", "ecs-tasks.amazonaws.com")
QUOTAS = {"L-1216C47A": 32, "L-34B43A08": 32, "L-3032A538": 6, "L-DB2E81BA": 0}


class World:
    """An account that moto plays, and the command that examines it."""

    def __init__(self, recorder: Recorder, folder: Path) -> None:
        self.recorder, self._folder = recorder, folder
        self.settings = {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 900}
        self.quotas: dict[str, float] = dict(QUOTAS)
        self.refused: set[str] = set()
        recorder.instead = self._instead
        self.ec2, self.iam = self.client("ec2"), self.client("iam")

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=f"http://127.0.0.1:{self.recorder.upstream}",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def _instead(self, request: Recorded) -> Answer | None:
        """What moto cannot play: missing rights, Lambda's settings, quotas."""
        if not request.service:
            return None
        its = model_check.read(request)
        if its.operation in self.refused:
            if request.service == "ec2":
                text = "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no"
                return 403, f"{text}</Message></Error></Errors></Response>".encode()
            return 403, b'{"__type": "AccessDeniedException", "message": "no"}'
        if its.operation == "GetAccountSettings":
            return 200, json.dumps({"AccountLimit": self.settings}).encode()
        if its.operation == "GetServiceQuota":
            value = self.quotas[its.params["QuotaCode"]]
            return 200, json.dumps({"Quota": {"Value": value}}).encode()
        return None

    def vpc(self, way_out: str = "nat-1") -> tuple[str, str]:
        """A subnet of a VPC of its own, and the VPC's security group."""
        vpc = self.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = self.ec2.create_subnet(
            VpcId=vpc, CidrBlock="10.0.0.0/24", AvailabilityZone=f"{REGION}a"
        )["Subnet"]["SubnetId"]
        table = self.ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
        self.ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
        if way_out == "endpoint":
            self.ec2.create_vpc_endpoint(
                VpcId=vpc, ServiceName=f"com.amazonaws.{REGION}.s3", RouteTableIds=[table]
            )
        elif way_out == "igw":
            gateway = self.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
            self.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
            self.ec2.create_route(
                RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway
            )
        elif way_out:
            nat = self.ec2.create_nat_gateway(SubnetId=subnet)["NatGateway"]["NatGatewayId"]
            self.ec2.create_route(
                RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat
            )
        [group] = self.ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}])[
            "SecurityGroups"
        ]
        return subnet, group["GroupId"]

    def role(self, name: str, *services: str) -> str:
        trust = {
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": list(services)},
                    "Action": "sts:AssumeRole",
                }
            ]
        }
        made = self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        return str(made["Role"]["Arn"])

    def fdl(self, role: str = "", **compute: Any) -> Path:
        batch = {"compute_resources": compute}
        nodes = compute.pop("nodes", 0)
        if nodes:
            batch["multi_node_parallel"] = {"enabled": True, "number_nodes": nodes}
        (self._folder / "s.sh").write_text("true\n")
        path = self._folder / "f.yaml"
        function = {
            "lambda": {
                "name": "f",
                "execution_mode": "batch",
                "container": {"image": "busybox"},
                "init_script": "s.sh",
            },
            "iam": {"role": role},
            "batch": batch,
        }
        path.write_text(json.dumps({"functions": {"aws": [function]}}))
        return path

    def doctor(self, *arguments: object, **environment: str) -> tuple[int, dict[str, Any]]:
        """Exit code, and by name the worst state with all that was told."""
        done = self.run(*arguments, "--json", **environment)
        checks: dict[str, tuple[str, str]] = {}
        told = json.loads(done.stdout.splitlines()[0])
        assert "Checks" in told, done
        for one in told["Checks"]:
            state, before = checks.get(one["Name"], ("ok", ""))
            worst = max(state, one["State"], key=["ok", "warning", "problem"].index)
            checks[one["Name"]] = (worst, f"{before}{one['What']}; {one['Do']}\n")
        return done.returncode, checks

    def run(self, *arguments: object, **environment: str) -> Any:
        given = {
            "AWS_ENDPOINT_URL": self.recorder.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_CONFIG_FILE": str(self._folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self._folder / "none"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "SCAR_CONFIG_FOLDER": str(self._folder / "home"),
            **environment,
        }
        return subprocess.run(
            [sys.executable, "-m", "scar", "doctor", *map(str, arguments)],
            env={**os.environ, **{k: v for k, v in given.items() if v}},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        with Recorder().serving() as recorder:
            recorder.upstream = moto.get_host_and_port()[1]
            yield recorder
    finally:
        moto.stop()


@pytest.fixture
def world(recorder: Recorder, tmp_path: Path) -> Iterator[World]:
    made = World(recorder, tmp_path)
    recorder.requests.clear()
    yield made
    asked = [one for one in recorder.requests if one.service]
    faults = [f"{one}: {fault}" for one in asked for fault in model_check.read(one).faults]
    signs = [model_check.signature_fault(one, {"testing": "testing"}) for one in asked]
    assert (faults, [one for one in signs if one]) == ([], [])


def test_an_account_that_has_all_is_usable(world: World) -> None:
    subnet, group = world.vpc()
    role = world.role("good", *BATCH_TRUST)
    fdl = world.fdl(role, subnets=[subnet], security_group_ids=[group], max_v_cpus=32)

    code, checks = world.doctor("-f", fdl)

    assert code == 0
    assert {name for name, (state, _) in checks.items() if state == "problem"} == set()
    for name in (
        *("credentials", "clock", "description", "region", "lambda", "batch", "ecr", "buckets"),
        *("role", "subnets", "security groups", "instance types", "vCPU quota"),
    ):
        assert checks[name][0] == "ok", checks[name]
    assert "900 of 1000 invocations" in checks["lambda"][1]
    # What Batch needs once is made by the first init.
    assert checks["batch role"][0] == "warning"
    assert "iam:CreateServiceLinkedRole" in checks["batch role"][1]


def test_without_a_file_only_the_account_is_examined(world: World) -> None:
    done = world.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"ok       region: {REGION} is enabled\n" in done.stdout
    assert "subnets" not in done.stdout


def change_nothing(world: World) -> dict[str, Any]:
    subnet, group = world.vpc()
    return {"subnets": [subnet], "security_group_ids": [group]}


def of_another_vpc(world: World) -> dict[str, Any]:
    return {"subnets": [world.vpc()[0]], "security_group_ids": [world.vpc()[1]]}


def in_two_vpcs(world: World) -> dict[str, Any]:
    (one, group), (other, _) = world.vpc(), world.vpc()
    return {"subnets": [one, other], "security_group_ids": [group]}


def reaching(way_out: str, **more: Any) -> Callable[[World], dict[str, Any]]:
    def made(world: World) -> dict[str, Any]:
        subnet, group = world.vpc(way_out)
        return {"subnets": [subnet], "security_group_ids": [group], **more}

    return made


def open_to_nodes(world: World) -> dict[str, Any]:
    subnet, group = world.vpc()
    own = [{"GroupId": group}]
    world.ec2.authorize_security_group_ingress(
        GroupId=group, IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": own}]
    )
    return {"subnets": [subnet], "security_group_ids": [group], "nodes": 2}


def closed_to_nodes(world: World) -> dict[str, Any]:
    subnet, group = world.vpc()
    [its] = world.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    world.ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=its["IpPermissions"])
    return {"subnets": [subnet], "security_group_ids": [group], "nodes": 2}


BROKEN: list[tuple[Callable[[World], dict[str, Any]], str, str, str]] = [
    (lambda w: {"subnets": ["subnet-0"]}, "subnets", "problem", "no subnet `subnet-0` in eu-west"),
    (lambda w: {}, "subnets", "problem", "Batch needs subnets, and none are given"),
    (reaching(""), "subnets", "problem", "has no way out"),
    (reaching("endpoint"), "subnets", "warning", "needs endpoints of ECR"),
    (reaching("igw"), "subnets", "problem", "but gives no address; set MapPublicIpOnLaunch"),
    (reaching("igw", nodes=2), "subnets", "problem", "nodes of multi-node jobs get no public"),
    (in_two_vpcs, "subnets", "problem", "they are in several VPCs"),
    (
        lambda w: {**change_nothing(w), "security_group_ids": ["sg-0"]},
        *("security groups", "problem", "no security group `sg-0` in eu-west-1"),
    ),
    (of_another_vpc, "security groups", "problem", "take a security group of the subnets' VPC"),
    (closed_to_nodes, "security groups", "problem", "do not let the nodes of a job reach each"),
    (open_to_nodes, "security groups", "ok", "exist in the subnets' VPC"),
    (
        reaching("nat", instance_types=["zz9.large"]),
        *("instance types", "problem", "`zz9.large` is not offered in eu-west-1a"),
    ),
    (
        reaching("nat", instance_types=["g5.xlarge"]),
        *("vCPU quota", "problem", "0 vCPUs of On-Demand G instances may run at a time: a job"),
    ),
    (reaching("nat", max_v_cpus=64), "vCPU quota", "warning", "`max_v_cpus` is 64; ask for more"),
    (
        reaching("nat", type="FARGATE", max_v_cpus=64),
        *("vCPU quota", "warning", "6 vCPUs of On-Demand Fargate"),
    ),
    (
        reaching("nat", instance_role="arn:aws:iam::123456789012:instance-profile/mine"),
        *("instance profile", "problem", "there is no instance profile `mine`"),
    ),
]


@pytest.mark.parametrize(
    ("make", "name", "state", "told"),
    BROKEN,
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_wrong_is_named_with_its_remedy(
    world: World, make: Callable[[World], dict[str, Any]], name: str, state: str, told: str
) -> None:
    code, checks = world.doctor("-f", world.fdl(**make(world)))
    found, text = checks[name]
    assert (found, told in text) == (state, True), checks
    if state == "problem":
        assert code == 3


def test_what_functions_share_is_told_once_and_anything_else_with_its_function(
    world: World,
) -> None:
    fdl = world.fdl(**change_nothing(world))
    described = json.loads(fdl.read_text())
    [first] = described["functions"]["aws"]
    second = json.loads(json.dumps(first))
    second["lambda"]["name"] = "g"
    second["batch"]["compute_resources"]["subnets"] = ["subnet-0"]
    described["functions"]["aws"].append(second)
    fdl.write_text(json.dumps(described))

    lines = world.run("-f", fdl).stdout.splitlines()

    assert sum("role: none is given" in line for line in lines) == 1
    assert sum(line.startswith("ok       subnets of f: subnet ") for line in lines) == 1
    [problem] = [line for line in lines if line.startswith("problem")]
    assert problem == "problem  subnets of g: there is no subnet `subnet-0` in eu-west-1"


@pytest.mark.parametrize(
    ("services", "told"),
    [
        (None, "there is no role"),
        (("lambda.amazonaws.com",), "does not trust ecs-tasks.amazonaws.com"),
        (("ec2.amazonaws.com",), "does not trust ecs-tasks.amazonaws.com and lambda.amazonaws.com"),
    ],
)
def test_a_given_role_must_exist_and_trust_lambda_and_tasks(
    world: World, services: tuple[str, ...] | None, told: str
) -> None:
    role = "arn:aws:iam::123456789012:role/none"
    if services:
        role = world.role(f"trusts-{len(services)}-{services[0][:3]}", *services)
    code, checks = world.doctor("-f", world.fdl(role, **change_nothing(world)))
    assert (code, checks["role"][0], told in checks["role"][1]) == (3, "problem", True), checks


def test_what_may_not_be_asked_is_a_warning_and_the_rest_goes_on(world: World) -> None:
    world.refused = {"GetServiceQuota", "GetAccountSettings", "DescribeInstanceTypeOfferings"}
    code, checks = world.doctor("-f", world.fdl(**change_nothing(world)))
    assert code == 0
    for name, right in (
        ("vCPU quota", "servicequotas:GetServiceQuota"),
        ("lambda", "lambda:GetAccountSettings"),
        ("instance types", "ec2:DescribeInstanceTypeOfferings"),
    ):
        assert checks[name] == ("warning", f"cannot tell: may not {right}; allow {right} to know\n")
    assert checks["subnets"][0] == "ok"


def test_new_accounts_are_told_how_few_invocations_they_have(world: World) -> None:
    world.settings = {"ConcurrentExecutions": 10, "UnreservedConcurrentExecutions": 10}
    code, checks = world.doctor()
    assert (code, checks["lambda"][0]) == (0, "warning")
    world.settings = {"ConcurrentExecutions": 10, "UnreservedConcurrentExecutions": 0}
    code, checks = world.doctor()
    assert (code, checks["lambda"][0]) == (3, "problem")


@pytest.mark.parametrize(
    ("environment", "name", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials", "aws configure"),
        ({"AWS_PROFILE": "nobody"}, "credentials", "list-profiles"),
        ({"AWS_REGION": "eu-nowhere-7"}, "region", "no region `eu-nowhere-7` is known here"),
        ({"AWS_REGION": "ap-east-1"}, "region", "is not enabled for this account"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "credentials", "does not answer"),
    ],
    ids=str,
)
def test_who_asks_and_where_is_looked_at_first(
    world: World, environment: dict[str, str], name: str, told: str
) -> None:
    code, checks = world.doctor(**environment)
    assert (code, checks[name][0], told in checks[name][1]) == (3, "problem", True), checks


def test_a_bucket_of_somebody_else_is_a_problem(world: World) -> None:
    def refuse(request: Recorded) -> Answer | None:
        if request.service == "s3":
            return 403, b""
        return world._instead(request)

    world.recorder.instead = refuse
    code, checks = world.doctor()
    assert (code, checks["buckets"][0]) == (3, "problem")
    assert "`scar-123456789012-eu-west-1` is somebody else's" in checks["buckets"][1]


class LateSts(BaseHTTPRequestHandler):
    """AWS as a machine sees it whose clock is years ahead."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"<R><GetCallerIdentityResult><Account>1</Account><Arn>a</Arn>"
        body += b"</GetCallerIdentityResult></R>"
        self.send_response_only(200)
        self.send_header("Date", "Sun, 22 Nov 2020 10:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_POST


def test_a_clock_that_is_wrong_is_a_problem(world: World) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), LateSts) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        code, checks = world.doctor(AWS_ENDPOINT_URL=url)
        server.shutdown()
    assert (code, checks["clock"][0]) == (3, "problem")
    assert "s ahead of AWS" in checks["clock"][1]


def test_faults_of_the_file_are_problems_beside_the_others(world: World) -> None:
    fdl = world.fdl(**change_nothing(world))
    fdl.write_text(fdl.read_text().replace('"f"', '"f", "memroy": 1'))
    code, checks = world.doctor("-f", fdl)
    assert (code, checks["description"][0]) == (3, "problem")
    assert "did you mean `memory`?" in checks["description"][1]


def test_the_local_cloud_and_its_engines_are_examined(tmp_path: Path) -> None:
    def scar(*arguments: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "scar", "--local", *arguments],
            env={**os.environ, "SCAR_CONFIG_FOLDER": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    try:
        done = scar("doctor", "--json")
    finally:
        scar("local", "stop")
    told = json.loads(done.stdout.splitlines()[0])["Checks"]
    checks = {one["Name"]: one for one in told}
    assert checks["local cloud"]["State"] == "ok"
    assert "GB free" in checks["disk"]["What"]
    assert {"engine bubblewrap", "engine docker", "images"} <= set(checks)
    assert done.returncode == (3 if "problem" in {one["State"] for one in told} else 0)
