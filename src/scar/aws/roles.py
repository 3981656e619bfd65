"""IAM: the roles of functions, and what Batch needs once in an account."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scar.aws.account import Account
from scar.aws.errors import is_absent, is_denied, speaking_to
from scar.errors import CloudError
from scar.plan.policies import document, trust
from scar.plan.resources import InstanceProfile, Role, ServiceLinkedRole

if TYPE_CHECKING:
    from types_boto3_iam.client import IAMClient
    from types_boto3_iam.type_defs import RoleTypeDef

POLICY_NAME = "scar"
"""Of the one inline policy."""

SPREAD_S = 15
"""Until EC2 has heard of a new instance profile; a compute environment that is made before is
invalid for ever (hashicorp/terraform#15341, Netflix/metaflow-tools#9)."""

_AWS_HOST = ".amazonaws.com"
_DESCRIPTION = "made by SCAR for a function; `scar rm` deletes it"
_INSTANCE_POLICY = "policy/service-role/AmazonEC2ContainerServiceforEC2Role"


class _Iam:
    """What speaks to IAM, from the first time that it must: its model is a large one."""

    def __init__(self, account: Account) -> None:
        self._account = account

    @property
    def _client(self) -> IAMClient:
        return self._account.client("iam")


class Roles(_Iam):
    """Handler of `Role`."""

    def read(self, name: str) -> Role | None:
        """The role as it is, or None: also where the caller may not look, who has made none."""
        try:
            with speaking_to("iam"):
                its = self._client.get_role(RoleName=name)["Role"]
        except CloudError as exc:
            if is_absent(exc) or is_denied(exc):
                return None
            raise
        tags = {tag["Key"]: tag["Value"] for tag in its.get("Tags", [])}
        return Role(name, _service(its), self._policy(name), tags)

    def create(self, wanted: Role) -> None:
        """Create the role, then its policy."""
        try:
            with speaking_to("iam"):
                self._client.create_role(
                    RoleName=wanted.name,
                    AssumeRolePolicyDocument=json.dumps(trust(wanted.service)),
                    Description=_DESCRIPTION,
                    Tags=_listed(wanted.tags),
                )
        except CloudError as exc:
            if is_denied(exc):
                exc.hint = "give a role of yours, `iam: {role: …}`; `scar iam` says what it needs"
            raise
        self._put_policy(wanted)

    def update(self, wanted: Role, found: Role) -> None:
        """Change who may take it, what it allows, and its tags."""
        if wanted.service != found.service:
            with speaking_to("iam"):
                self._client.update_assume_role_policy(
                    RoleName=wanted.name, PolicyDocument=json.dumps(trust(wanted.service))
                )
        if wanted.policy != found.policy:
            self._put_policy(wanted)
        with speaking_to("iam"):
            if gone := [key for key in found.tags if key not in wanted.tags]:
                self._client.untag_role(RoleName=wanted.name, TagKeys=gone)
            if wanted.tags != found.tags:
                self._client.tag_role(RoleName=wanted.name, Tags=_listed(wanted.tags))

    def delete(self, found: Role) -> None:
        """Delete the role and, as IAM asks first, all its policies."""
        try:
            with speaking_to("iam"):
                inline = self._client.get_paginator("list_role_policies")
                for page in inline.paginate(RoleName=found.name):
                    for policy in page["PolicyNames"]:
                        self._client.delete_role_policy(RoleName=found.name, PolicyName=policy)
                attached = self._client.get_paginator("list_attached_role_policies")
                for its in attached.paginate(RoleName=found.name):
                    for one in its["AttachedPolicies"]:
                        arn = one["PolicyArn"]
                        self._client.detach_role_policy(RoleName=found.name, PolicyArn=arn)
                self._client.delete_role(RoleName=found.name)
        except CloudError as exc:
            if not is_absent(exc):
                raise

    def _policy(self, name: str) -> dict[str, Mapping[str, Any]]:
        try:
            with speaking_to("iam"):
                answer = self._client.get_role_policy(RoleName=name, PolicyName=POLICY_NAME)
        except CloudError as exc:
            if is_absent(exc):
                return {}
            raise
        its: Any = answer["PolicyDocument"]  # botocore has parsed it
        statements = its.get("Statement", [])
        every = [statements] if isinstance(statements, dict) else statements
        return {one.get("Sid", str(n)): one for n, one in enumerate(every)}

    def _put_policy(self, wanted: Role) -> None:
        with speaking_to("iam"):
            self._client.put_role_policy(
                RoleName=wanted.name,
                PolicyName=POLICY_NAME,
                PolicyDocument=json.dumps(document(wanted.policy)),
            )


class InstanceProfiles(_Iam):
    """Handler of `InstanceProfile`."""

    def read(self, name: str) -> InstanceProfile | None:
        """The profile, or None where there is none with a role.

        Where the caller may not look it is taken to be there: Batch says when it is not.
        """
        try:
            with speaking_to("iam"):
                its = self._client.get_instance_profile(InstanceProfileName=name)
        except CloudError as exc:
            if is_absent(exc):
                return None
            if is_denied(exc):
                return InstanceProfile(name)
            raise
        return InstanceProfile(name) if its["InstanceProfile"]["Roles"] else None

    def create(self, wanted: InstanceProfile) -> None:
        """Make the profile and its role, or what is missing of them.

        Batch user guide, "Amazon ECS instance role".
        """
        name, partition = wanted.name, self._account.facts().partition
        service = "ec2.amazonaws.com" + (".cn" if partition == "aws-cn" else "")
        _unless_there(
            lambda: self._client.create_role(
                RoleName=name, AssumeRolePolicyDocument=json.dumps(trust(service))
            )
        )
        with speaking_to("iam"):
            self._client.attach_role_policy(
                RoleName=name, PolicyArn=f"arn:{partition}:iam::aws:{_INSTANCE_POLICY}"
            )
        _unless_there(lambda: self._client.create_instance_profile(InstanceProfileName=name))
        with speaking_to("iam"):
            self._client.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        if _AWS_HOST in self._client.meta.endpoint_url:
            time.sleep(SPREAD_S)

    def update(self, wanted: InstanceProfile, found: InstanceProfile) -> None:
        """Nothing: a profile is its name."""

    def delete(self, found: InstanceProfile) -> None:
        """Nothing: it is everybody's. No plan of ours does."""


class ServiceLinkedRoles(_Iam):
    """Handler of `ServiceLinkedRole`."""

    def read(self, name: str) -> ServiceLinkedRole | None:
        """The service's role, or None. Where the caller may not look it is taken to be there."""
        try:
            with speaking_to("iam"):
                answer = self._client.list_roles(PathPrefix=f"/aws-service-role/{name}/")
        except CloudError as exc:
            if is_denied(exc):
                return ServiceLinkedRole(name)
            raise
        return ServiceLinkedRole(name) if answer["Roles"] else None

    def create(self, wanted: ServiceLinkedRole) -> None:
        """Let AWS make it; that somebody else did at the same time is as good."""
        _unless_there(lambda: self._client.create_service_linked_role(AWSServiceName=wanted.name))

    def update(self, wanted: ServiceLinkedRole, found: ServiceLinkedRole) -> None:
        """Nothing: it is AWS's."""

    def delete(self, found: ServiceLinkedRole) -> None:
        """Nothing: it is AWS's. No plan of ours does."""


def _unless_there(create: Callable[[], object]) -> None:
    """Make what may be there already. For a service-linked role AWS says that with InvalidInput:
    "Service role name … has been taken in this account" (terraform-aws-hasura#17)."""
    try:
        with speaking_to("iam"):
            create()
    except CloudError as exc:
        taken = exc.code == "InvalidInput" and "has been taken" in str(exc)
        if not taken and exc.code != "EntityAlreadyExists":
            raise


def _service(its: RoleTypeDef) -> str:
    """The one service that may take the role; empty where its trust says anything else."""
    found: Any = its["AssumeRolePolicyDocument"]  # botocore has parsed it
    try:
        service = str(found["Statement"][0]["Principal"]["Service"])
    except (KeyError, IndexError, TypeError):
        return ""
    return service if found == trust(service) else ""


def _listed(tags: Mapping[str, str]) -> Any:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
