"""What an account has and allows, as `scar doctor` asks it. It only reads, and may be refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from scar.aws.account import Account
from scar.aws.errors import is_absent, speaking_to
from scar.errors import CloudError

S3_ENDPOINT = "com.amazonaws.{region}.s3"
_SERVICE_LINKED = "AWSServiceRoleForBatch"


@dataclass(frozen=True)
class Caller:
    """Who asks, and how far this machine's clock is ahead of AWS's."""

    account_id: str
    arn: str
    ahead_s: float


@dataclass(frozen=True)
class Concurrency:
    """Invocations of Lambda at a time: all of the region, and those no function has reserved."""

    limit: int
    unreserved: int


@dataclass(frozen=True)
class Subnet:
    """A subnet and its ways out."""

    id: str
    vpc: str
    zone: str
    cidr: str
    gives_public_addresses: bool
    default_route: str
    """Where 0.0.0.0/0 goes: an id such as `igw-1` or `nat-1`; empty: nowhere."""
    reaches_s3: bool
    """By an endpoint of S3."""


@dataclass(frozen=True)
class SecurityGroup:
    """A security group; `inward` and `outward` are EC2's own rules."""

    id: str
    vpc: str
    inward: Sequence[Mapping[str, Any]]
    outward: Sequence[Mapping[str, Any]]


def caller(account: Account) -> Caller:
    """Who asks. Raises UserError where there are no credentials, CloudError where they are bad."""
    with speaking_to("sts"):
        answer = account.client("sts").get_caller_identity()
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    ahead_s = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() if date else 0.0
    return Caller(answer["Account"], answer["Arn"], ahead_s)


def is_known_region(account: Account) -> bool:
    """Whether botocore knows the region: of one that it does not know it finds no address."""
    from botocore.session import Session

    with speaking_to("sts"):  # a profile that is not there
        session = Session()
        every = [
            session.get_available_regions("lambda", one)
            for one in session.get_available_partitions()
        ]
    return any(account.region in regions for regions in every)


def region_state(account: Account) -> str:
    """EC2's word for the region: `opted-in`, `opt-in-not-required`, `not-opted-in`; empty: none."""
    with speaking_to("ec2"):
        answer = account.client("ec2").describe_regions(AllRegions=True)
    every = {one["RegionName"]: str(one["OptInStatus"]) for one in answer["Regions"]}
    return every.get(account.region, "")


def concurrency(account: Account) -> Concurrency:
    """Lambda's limits."""
    with speaking_to("lambda"):
        limits = account.client("lambda").get_account_settings()["AccountLimit"]
    return Concurrency(limits["ConcurrentExecutions"], limits["UnreservedConcurrentExecutions"])


def compute_environments(account: Account) -> list[Mapping[str, Any]]:
    """Batch's compute environments, as Batch tells of them."""
    with speaking_to("batch"):
        pages = account.client("batch").get_paginator("describe_compute_environments").paginate()
        return [one for page in pages for one in page["computeEnvironments"]]


def count_queues(account: Account) -> int:
    """How many job queues there are."""
    with speaking_to("batch"):
        pages = account.client("batch").get_paginator("describe_job_queues").paginate()
        return sum(len(page["jobQueues"]) for page in pages)


def has_repositories(account: Account) -> bool:
    """Whether ECR has any repository: asked to see whether it answers."""
    with speaking_to("ecr"):
        return bool(account.client("ecr").describe_repositories(maxResults=1)["repositories"])


def has_batch_role(account: Account) -> bool:
    """Whether Batch's service-linked role is there."""
    return _trust(account, _SERVICE_LINKED) is not None


def trusted(account: Account, role: str) -> set[str] | None:
    """The services that may take a role, by its name; None where there is no such role."""
    document = _trust(account, role)
    if document is None:
        return None
    found: set[str] = set()
    for statement in _many(document.get("Statement", [])):
        actions = _many(statement.get("Action", []))
        principal = statement.get("Principal", {})
        if statement.get("Effect") == "Allow" and {"sts:AssumeRole", "sts:*", "*"} & {*actions}:
            services = principal.get("Service", []) if isinstance(principal, dict) else principal
            found |= {*_many(services)}
    return found


def profile_roles(account: Account, name: str) -> list[str] | None:
    """The roles in an instance profile; None where there is no such profile."""
    try:
        with speaking_to("iam"):
            answer = account.client("iam").get_instance_profile(InstanceProfileName=name)
    except CloudError as exc:
        if is_absent(exc):
            return None
        raise
    return [role["RoleName"] for role in answer["InstanceProfile"]["Roles"]]


def subnets(account: Account, ids: Iterable[str]) -> list[Subnet]:
    """Those of the subnets that are there."""
    ec2 = account.client("ec2")
    with speaking_to("ec2"):
        found = ec2.describe_subnets(Filters=[_filter("subnet-id", ids)])["Subnets"]
    vpcs = sorted({one["VpcId"] for one in found})
    if not vpcs:
        return []
    with speaking_to("ec2"):
        tables = ec2.describe_route_tables(Filters=[_filter("vpc-id", vpcs)])["RouteTables"]
    with speaking_to("ec2"):
        name = S3_ENDPOINT.format(region=account.region)
        filters = [_filter("vpc-id", vpcs), _filter("service-name", [name])]
        endpoints = ec2.describe_vpc_endpoints(Filters=filters)["VpcEndpoints"]
    return [_subnet(one, tables, endpoints) for one in found]


def security_groups(account: Account, ids: Iterable[str]) -> list[SecurityGroup]:
    """Those of the security groups that are there."""
    with speaking_to("ec2"):
        answer = account.client("ec2").describe_security_groups(Filters=[_filter("group-id", ids)])
    return [
        SecurityGroup(
            one["GroupId"], one["VpcId"], one["IpPermissions"], one["IpPermissionsEgress"]
        )
        for one in answer["SecurityGroups"]
    ]


def offered(account: Account, zones: Iterable[str]) -> set[str]:
    """The instance types that are offered in any of these zones."""
    with speaking_to("ec2"):
        pages = (
            account.client("ec2")
            .get_paginator("describe_instance_type_offerings")
            .paginate(LocationType="availability-zone", Filters=[_filter("location", zones)])
        )
        return {one["InstanceType"] for page in pages for one in page["InstanceTypeOfferings"]}


def quota(account: Account, service: str, code: str) -> float:
    """The value of a quota."""
    with speaking_to("service-quotas"):
        answer = account.client("service-quotas").get_service_quota(
            ServiceCode=service, QuotaCode=code
        )
    return float(answer["Quota"]["Value"])


def bucket_state(account: Account, name: str) -> str:
    """`ours`, `free`, or `taken`: somebody else's, or not ours to see."""
    try:
        with speaking_to("s3"):
            account.client("s3").head_bucket(Bucket=name)
    except CloudError as exc:
        if is_absent(exc):
            return "free"
        if exc.code in ("403", "Forbidden"):
            return "taken"
        if exc.code in ("301", "400"):  # ours, or not, in another region
            return "elsewhere"
        raise
    return "ours"


def _trust(account: Account, role: str) -> dict[str, Any] | None:
    try:
        with speaking_to("iam"):
            its = account.client("iam").get_role(RoleName=role)["Role"]
    except CloudError as exc:
        if is_absent(exc):
            return None
        raise
    document: Any = its["AssumeRolePolicyDocument"]
    return json.loads(document) if isinstance(document, str) else dict(document)


def _subnet(its: Any, tables: Sequence[Any], endpoints: Sequence[Any]) -> Subnet:
    table = _table(its, tables)
    routes = [one for one in table.get("Routes", []) if one.get("State") != "blackhole"]
    return Subnet(
        its["SubnetId"],
        its["VpcId"],
        its["AvailabilityZone"],
        its["CidrBlock"],
        bool(its.get("MapPublicIpOnLaunch")),
        next(
            (_target(one) for one in routes if one.get("DestinationCidrBlock") == "0.0.0.0/0"), ""
        ),
        any(
            one["VpcId"] == its["VpcId"]
            # An endpoint of kind Interface is reached by every subnet of its network.
            and (one.get("VpcEndpointType") == "Interface" or _is_in(table, one))
            for one in endpoints
        ),
    )


def _table(subnet: Any, tables: Sequence[Any]) -> Mapping[str, Any]:
    """The subnet's own route table, else its network's main one."""
    own = [
        (one, link)
        for one in tables
        if one["VpcId"] == subnet["VpcId"]
        for link in one["Associations"]
    ]
    for table, link in own:
        if link.get("SubnetId") == subnet["SubnetId"]:
            return dict(table)
    return next((dict(table) for table, link in own if link.get("Main")), {})


def _is_in(table: Mapping[str, Any], endpoint: Mapping[str, Any]) -> bool:
    return table.get("RouteTableId") in (endpoint.get("RouteTableIds") or ())


def _target(route: Mapping[str, Any]) -> str:
    keys = ("NatGatewayId", "GatewayId", "TransitGatewayId", "InstanceId", "NetworkInterfaceId")
    return next((str(route[key]) for key in keys if route.get(key)), "somewhere")


def _filter(name: str, values: Iterable[str]) -> dict[str, Any]:
    return {"Name": name, "Values": sorted(set(values))}


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
