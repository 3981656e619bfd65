"""Which handler keeps which kind of resource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from scar.aws.account import Account
from scar.aws.batch import ComputeEnvironments, JobDefinitions, JobQueues
from scar.aws.buckets import Buckets, BucketSetups, BucketTriggers
from scar.aws.functions import FailureDestinations, Functions, Permissions
from scar.aws.gateway import RestApis
from scar.aws.log_groups import LogGroups
from scar.aws.repositories import Images, Push, Repositories
from scar.aws.roles import InstanceProfiles, Roles, ServiceLinkedRoles
from scar.aws.secrets import Secrets
from scar.plan import resources as kinds


class Handler(Protocol):
    """How one kind of resource is read and changed. Each call returns when AWS has settled.

    `read(create(r)) == r`: what was created reads back as it was wanted.
    """

    def read(self, name: str) -> Any | None:
        """The resource as it is, or None."""

    def create(self, wanted: Any) -> None:
        """Make what does not exist."""

    def update(self, wanted: Any, found: Any) -> None:
        """Turn `found` into `wanted`."""

    def delete(self, found: Any) -> None:
        """Remove it; that it is gone already is as good."""


def handlers(account: Account, pushes: Mapping[str, Push] | None = None) -> dict[str, Handler]:
    """One handler for each `kind`; `pushes` makes the images that may be created, by name."""
    return {
        kinds.LogGroup.kind: LogGroups(account),
        kinds.Bucket.kind: Buckets(account),
        kinds.BucketSetup.kind: BucketSetups(account),
        kinds.Role.kind: Roles(account),
        kinds.InstanceProfile.kind: InstanceProfiles(account),
        kinds.ServiceLinkedRole.kind: ServiceLinkedRoles(account),
        kinds.Repository.kind: Repositories(account),
        kinds.Image.kind: Images(account, pushes or {}),
        kinds.Function.kind: Functions(account),
        kinds.FailureDestination.kind: FailureDestinations(account),
        kinds.Permission.kind: Permissions(account),
        kinds.BucketTrigger.kind: BucketTriggers(account),
        kinds.ComputeEnvironment.kind: ComputeEnvironments(account),
        kinds.JobQueue.kind: JobQueues(account),
        kinds.JobDefinition.kind: JobDefinitions(account),
        kinds.RestApi.kind: RestApis(account),
        kinds.Secret.kind: Secrets(account),
    }
