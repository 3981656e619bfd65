"""Deploying and removing functions: decide first (`prepare…`), then do it (`carry_out`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from scar.apply import apply, observe
from scar.aws.account import Account
from scar.aws.batch import has_jobs
from scar.aws.functions import buckets_of, not_deployed, owned, using
from scar.aws.handlers import Handler, handlers
from scar.aws.repositories import tags_of
from scar.aws.secrets import secrets_of
from scar.building import Builder
from scar.errors import Diagnostic, FdlError, UserError
from scar.fdl.schema import AwsFunction, Deployment
from scar.images.push import OnProgress
from scar.plan.desired import desired
from scar.plan.diff import Plan, Step, to_reach, to_remove
from scar.plan.limits import check
from scar.plan.policies import SERVICES, role_name
from scar.plan.resources import (
    CREATED_BY,
    REPOSITORY,
    TAG_CREATED_BY,
    TAG_FUNCTION,
    TAG_KEEP_IMAGE,
    TAG_QUEUE,
    BucketTrigger,
    ComputeEnvironment,
    Function,
    Image,
    JobDefinition,
    JobQueue,
    LogGroup,
    Permission,
    Resource,
    ResourceId,
    RestApi,
    Role,
    Secret,
    batch_log_group,
    id_of,
    lambda_log_group,
    secret_ids,
)

_OF_INPUTS = (Permission.kind, BucketTrigger.kind)


@dataclass(frozen=True)
class Prepared:
    """A plan, and all that carrying it out takes."""

    plan: Plan
    warnings: tuple[Diagnostic, ...]
    handlers: Mapping[str, Handler] = field(repr=False)
    work: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)
    """Holds the layers until they are pushed; removed with this value."""


def prepare(
    deployment: Deployment, base_folder: Path, account: Account, tell: Callable[[str], None],
    on_progress: OnProgress = lambda tag, done, total: None,
) -> Prepared:  # fmt: skip
    """What must be done so that `account` holds `deployment`. Changes nothing.

    Scripts and archives are relative to `base_folder`; `on_progress` will be told of images while
    the plan is carried out. Raises FdlError, Missing, ImageError or
    CloudError.
    """
    facts = account.facts()
    diagnostics = check(deployment)
    if any(one.severity == "error" for one in diagnostics):
        raise FdlError(diagnostics)
    work = tempfile.TemporaryDirectory(prefix="scar-")
    builder = Builder(account, base_folder, Path(work.name), tell, on_progress)
    functions = deployment.functions.aws
    with ThreadPoolExecutor(4) as pool:
        build = partial(builder.build, storages=deployment.storage_providers)
        built = list(pool.map(build, functions))
    images = {f.lambda_.name: b.facts for f, b in zip(functions, built, strict=True)}
    new = {f"{REPOSITORY}:{b.tag}": b for b in built if b.push is not None}
    resources = desired(deployment, images, facts)
    keepers = handlers(account, {name: b.push for name, b in new.items() if b.push})
    with ThreadPoolExecutor(4) as pool:
        left = list(pool.map(partial(_left_behind, account), functions))
    observed = observe([*map(id_of, resources), *chain(*left)], keepers)
    wanted = {id_of(resource) for resource in resources}
    extra = {rid: its for rid, its in observed.items() if rid not in wanted and _is_ours(its)}
    apis = {rid: extra.pop(rid) for rid in list(extra) if rid.kind == RestApi.kind}
    inputs = {rid: extra.pop(rid) for rid in list(extra) if rid.kind in _OF_INPUTS}
    roles = {rid: extra.pop(rid) for rid in list(extra) if rid.kind == Role.kind}
    changes = to_reach(resources, observed).steps
    pushed = [new[s.resource.name] for s in changes if isinstance(s.resource, Image)]
    for one in pushed:
        one.check()
    updated = [f for f, b in zip(functions, built, strict=True) if b in pushed]
    steps = [
        *changes,
        *to_remove(extra, "`execution_mode: lambda` has no use for it").steps,
        *to_remove(apis, "`api_gateway.name` is not given any more").steps,
        *to_remove(inputs, "the bucket is not its input any more").steps,
        *_unused_roles(account, roles, observed).steps,
        *_unused_queues(account, keepers, observed.values(), wanted).steps,
        *_unused_secrets(keepers, observed.values(), wanted).steps,
        *_old_images(account, keepers, updated, observed, wanted).steps,
    ]
    return Prepared(Plan(tuple(steps)), tuple(diagnostics), keepers, work)


def prepare_removal(names: Sequence[str] | None, account: Account) -> Prepared:
    """What must be deleted so that nothing of these functions is left; buckets stay.

    None: every function the caller made with SCAR. Raises NotDeployed where a name stands for
    nothing at all.
    """
    keepers = handlers(account)
    mine = None if names is not None else list(owned(account))
    wanted = list(dict.fromkeys(names if names is not None else mine or []))
    tags = tags_of(account, REPOSITORY) if wanted else []
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: _all_of(account, name, tags, keepers), wanted))
    missing = [name for name, its in zip(wanted, found, strict=True) if not its]
    if missing:
        raise not_deployed(account, missing[0])
    observed = {rid: resource for its in found for rid, resource in its.items()}
    queues = {
        its[TAG_QUEUE]
        for resource in observed.values()
        if TAG_QUEUE in (its := getattr(resource, "tags", {}))
    }
    free = [q for q in sorted(queues) if not set(using(account, TAG_QUEUE, q)) - set(wanted)]
    shared = observe(_queue_ids(free), keepers)
    ours = {rid: its for rid, its in shared.items() if _is_ours(its)}
    return Prepared(to_remove({**observed, **ours}, "removed with its function"), (), keepers)


def carry_out(
    prepared: Prepared, on_step: Callable[[Step, Literal["start", "done"]], None]
) -> None:
    """Run the plan. Raises ApplyError where a step fails; preparing again gives the rest."""
    apply(prepared.plan, prepared.handlers, on_step)


def _left_behind(account: Account, function: AwsFunction) -> list[ResourceId]:
    """What a function may have kept from before: other inputs, a mode, an API, roles."""
    name = function.lambda_.name
    ids = [
        ResourceId(kind, identity)
        for bucket in buckets_of(account, name)
        for kind, identity in zip(_OF_INPUTS, (f"{name}/{bucket}", f"{bucket}/{name}"), strict=True)
    ]
    if function.api_gateway.name is None:
        ids.append(ResourceId(RestApi.kind, name))
    if function.lambda_.execution_mode == "lambda":
        ids.append(ResourceId(JobDefinition.kind, name))
    return [*ids, *_role_ids(account, name)]


def _unused_roles(
    account: Account,
    roles: Mapping[ResourceId, Resource],
    observed: Mapping[ResourceId, Resource],
) -> Plan:
    """Roles that nothing takes any more; a job that waits takes those it was submitted with."""
    jobs = (SERVICES["job"], SERVICES["task"])
    free: dict[ResourceId, Resource] = {}
    for rid, role in roles.items():
        if isinstance(role, Role) and role.service in jobs:
            function = observed.get(ResourceId(Function.kind, role.tags.get(TAG_FUNCTION, "")))
            queue = getattr(function, "tags", {}).get(TAG_QUEUE)
            if queue and has_jobs(account, queue):
                continue
        free[rid] = role
    return to_remove(free, "nothing takes it any more")


def _unused_queues(
    account: Account,
    keepers: Mapping[str, Handler],
    observed: Iterable[object],
    wanted: Iterable[ResourceId],
) -> Plan:
    """The queues that these functions leave, when nobody uses them and no job waits there."""
    names = {name for _, name in wanted}
    mine = {f.name for f in observed if isinstance(f, Function)}
    before = {f.tags.get(TAG_QUEUE, "") for f in observed if isinstance(f, Function)}
    left = [
        queue
        for queue in sorted(before - names - {""})
        if not set(using(account, TAG_QUEUE, queue)) - mine and not has_jobs(account, queue)
    ]
    return to_remove(observe(_queue_ids(left), keepers), "no function uses it any more")


def _unused_secrets(
    keepers: Mapping[str, Handler], observed: Iterable[object], wanted: Collection[ResourceId]
) -> Plan:
    """The secrets of providers that the functions name no more."""
    functions = [one for one in observed if isinstance(one, Function)]
    ids = [rid for one in functions for rid in secret_ids(one) if rid not in wanted]
    return to_remove(observe(ids, keepers), "no input or output is there any more")


def _old_images(
    account: Account,
    keepers: Mapping[str, Handler],
    updated: Sequence[AwsFunction],
    observed: Mapping[ResourceId, Resource],
    wanted: Collection[ResourceId],
) -> Plan:
    """Images of functions that get a new one: all but that and the one they have now.

    Jobs that wait keep the image they were submitted with: while there are any, all images stay.
    """
    tags = tags_of(account, REPOSITORY) if updated else []
    old: list[ResourceId] = []
    for function in updated:
        name = function.lambda_.name
        its = [observed.get(ResourceId(kind, name)) for kind in (Function.kind, JobDefinition.kind)]
        used = {str(getattr(one, "image_uri", "")).rpartition(":")[2] for one in its}
        ids = [
            rid
            for tag in tags
            if _is_of(tag, name) and tag not in used
            if (rid := ResourceId(Image.kind, f"{REPOSITORY}:{tag}")) not in wanted
        ]
        queues = {kept[TAG_QUEUE] for one in its if TAG_QUEUE in (kept := getattr(one, "tags", {}))}
        if function.ecr.delete_image and ids and not any(has_jobs(account, q) for q in queues):
            old += ids
    return to_remove(observe(old, keepers), "nothing uses it any more")


def _queue_ids(names: Iterable[str]) -> list[ResourceId]:
    kinds = (JobQueue.kind, ComputeEnvironment.kind)
    return [ResourceId(kind, name) for name in names for kind in kinds]


def _role_ids(account: Account, function: str) -> list[ResourceId]:
    """The roles that a function can have; the local cloud has none."""
    if account.is_local:
        return []
    facts = account.facts()
    return [ResourceId(Role.kind, role_name(function, use, facts)) for use in SERVICES]


def _all_of(
    account: Account, name: str, image_tags: Sequence[str], keepers: Mapping[str, Handler]
) -> dict[ResourceId, Resource]:
    """Everything that belongs to one function, found from the account alone.

    Raises UserError where the function is not SCAR's.
    """
    buckets = buckets_of(account, name)
    ids = [
        ResourceId(LogGroup.kind, lambda_log_group(name)),
        ResourceId(LogGroup.kind, batch_log_group(name)),
        ResourceId(Function.kind, name),
        ResourceId(JobDefinition.kind, name),
        ResourceId(RestApi.kind, name),
        *_role_ids(account, name),
        *(ResourceId(Permission.kind, f"{name}/{bucket}") for bucket in buckets),
        *(ResourceId(BucketTrigger.kind, f"{bucket}/{name}") for bucket in buckets),
        *(ResourceId(Image.kind, f"{REPOSITORY}:{tag}") for tag in image_tags if _is_of(tag, name)),
    ]
    found = dict(observe(ids, keepers))
    function = found.get(ResourceId(Function.kind, name))
    if function is not None and not _is_ours(function):
        hint = f"it lacks the tag `{TAG_CREATED_BY}={CREATED_BY}`; delete it as you made it"
        raise UserError(f"function `{name}` was not made by SCAR", hint)
    if isinstance(function, Function):
        found |= observe(secret_ids(function), keepers)
    else:
        names = secrets_of(account, name)
        found |= observe([ResourceId(Secret.kind, one) for one in names], keepers)
    keeps = TAG_KEEP_IMAGE in getattr(function, "tags", {})
    return {
        rid: resource
        for rid, resource in found.items()
        if _is_ours(resource) and not (keeps and isinstance(resource, Image))
    }


def _is_ours(resource: Resource) -> bool:
    """Whether SCAR made it: by its tag, or by its name where the kind has no tags."""
    tags: Mapping[str, str] | None = getattr(resource, "tags", None)
    return tags is None or tags.get(TAG_CREATED_BY) == CREATED_BY


def _is_of(tag: str, function: str) -> bool:
    """Whether an image tag is `<function>-<16 hex digits>`."""
    name, _, content = tag.rpartition("-")
    return name == function and len(content) == 16
