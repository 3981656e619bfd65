"""The deployment bucket of a function: what is too large to travel, and what is remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scar.aws.account import Account
from scar.aws.errors import is_absent
from scar.aws.functions import Functions, not_deployed
from scar.aws.objects import ObjectInfo, Objects, objects
from scar.errors import CloudError, UserError
from scar.plan.limits import payload_limit_bytes
from scar.plan.resources import TAG_BUCKET, TAG_MODE, TAG_QUEUE, TAG_VERSION
from scar_supervisor.records import to_send


@dataclass(frozen=True)
class Target:
    """A deployed function, and where its state is."""

    name: str
    mode: str
    queue: str
    """Its job queue; empty in mode `lambda`."""
    bucket: str
    """Deployment bucket."""
    version: str
    """Of what it does; empty where an image that SCAR did not make runs."""


def target_of(account: Account, name: str) -> Target:
    """The deployed function of that name. Raises NotDeployed."""
    function = Functions(account).read(name)
    if function is None:
        raise not_deployed(account, name)
    return Target(
        name=name,
        mode=function.tags.get(TAG_MODE, "lambda"),
        queue=function.tags.get(TAG_QUEUE, ""),
        bucket=function.tags.get(TAG_BUCKET) or account.facts().default_bucket,
        version=function.tags.get(TAG_VERSION, ""),
    )


@contextmanager
def in_bucket_of(target: Target) -> Iterator[None]:
    """Raise UserError where the deployment bucket turns out not to be there."""
    try:
        yield
    except CloudError as exc:
        if exc.code != "NoSuchBucket":
            raise
        raise UserError(
            f"the deployment bucket `{target.bucket}` of function `{target.name}` does not exist",
            "deploy the function again: `scar init` makes it",
        ) from exc


def store(account: Account, target: Target, key: str, data: bytes) -> None:
    """Keep an object in the deployment bucket. Raises UserError where that does not exist."""
    with in_bucket_of(target):
        Objects(account, target.bucket).store(key, data)


def load(account: Account, target: Target, key: str) -> bytes | None:
    """An object of the deployment bucket; None where it is not there."""
    try:
        return Objects(account, target.bucket).load(key)
    except CloudError as exc:
        if not is_absent(exc):
            raise
        return None


def keys(account: Account, target: Target, prefix: str) -> list[str]:
    """The keys that begin so; none where there is no deployment bucket."""
    return [its.key for its in infos(account, target, prefix)]


def infos(account: Account, target: Target, prefix: str) -> list[ObjectInfo]:
    """As `keys`, with what the list tells of each object."""
    try:
        return list(objects(account, target.bucket, prefix))
    except CloudError as exc:
        if not is_absent(exc):
            raise
        return []


def fitting(account: Account, target: Target, event: bytes, limit_bytes: int) -> bytes:
    """The event, or what stands for it where it is larger: then it is kept, privately."""
    sent, reference = to_send(event, limit_bytes, target.bucket, target.name)
    if reference is not None:
        store(account, target, reference.key, event)
    return sent


def payload(account: Account, name: str, event: bytes, *, asynchronous: bool) -> bytes:
    """What function `name` is invoked with for an event of any size.

    Raises NotDeployed, and UserError where a large one cannot be kept.
    """
    limit = payload_limit_bytes(asynchronous=asynchronous)
    if len(event) <= limit:
        return event
    return fitting(account, target_of(account, name), event, limit)
