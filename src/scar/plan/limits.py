"""AWS's limits and our own rules across functions, checked before anything is touched. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from scar.errors import Diagnostic
from scar.fdl.schema import AwsFunction, Deployment
from scar.plan.desired import AccountFacts, compute_resources, object_path, role_arn

ENVIRONMENT_LIMIT_BYTES = 4096
"""Names and values of a function's variables together (Lambda quotas)."""

RETENTION_DAYS = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096),
    *(1827, 2192, 2557, 2922, 3288, 3653),
)
"""What logs.PutRetentionPolicy accepts."""

TAGS_LIMIT = 40
"""The user's tags of one function: Lambda allows 50, ours included."""

ECR_IMAGE = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/.+")
BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def check(deployment: Deployment, account: AccountFacts) -> list[Diagnostic]:
    """Every fault and warning of `deployment` in this account, in the order of the FDL."""
    functions = deployment.functions.aws
    found = [d for n, function in enumerate(functions) for d in _of_function(n, function, account)]
    return [*found, *_same_names(functions), *_loops(functions), *_overlaps(functions)]


def _of_function(n: int, function: AwsFunction, account: AccountFacts) -> Iterator[Diagnostic]:
    where = f"functions.aws[{n}]"
    yield from _function(where, function, account)
    yield from _image(where, function, account)
    yield from _storage(where, function)
    if function.lambda_.execution_mode != "lambda":
        yield from _batch(where, function, account)


def _function(where: str, function: AwsFunction, account: AccountFacts) -> Iterator[Diagnostic]:
    its = function.lambda_
    variables = its.environment.Variables
    size = sum(len(k.encode()) + len(v.encode()) for k, v in variables.items())
    if size > ENVIRONMENT_LIMIT_BYTES:
        yield Diagnostic(
            f"the function's variables take {size} bytes, Lambda allows {ENVIRONMENT_LIMIT_BYTES}",
            f"{where}.lambda.environment.Variables",
            hint="put them in `lambda.container.environment`: those travel in the image",
        )
    if len(its.tags) > TAGS_LIMIT:
        yield Diagnostic(f"at most {TAGS_LIMIT} tags, got {len(its.tags)}", f"{where}.lambda.tags")
    if function.cloudwatch.log_retention_policy_in_days not in RETENTION_DAYS:
        yield Diagnostic(
            f"logs can be kept for {', '.join(map(str, RETENTION_DAYS))} days,"
            f" not {function.cloudwatch.log_retention_policy_in_days}",
            f"{where}.cloudwatch.log_retention_policy_in_days",
        )
    if not role_arn(function, account):
        yield Diagnostic(
            "`role` is required on AWS",
            f"{where}.iam.role",
            hint="give the ARN of an execution role that Lambda and ECS tasks may assume",
        )


def _image(where: str, function: AwsFunction, account: AccountFacts) -> Iterator[Diagnostic]:
    container = function.lambda_.container
    where += ".lambda.container"
    if (container.image is None) == (container.image_file is None):
        yield Diagnostic(
            "either `image` or `image_file` is required, and not both",
            f"{where}.image",
            hint="add `image:` here",
        )
    if container.image == "host" and not account.is_local:
        yield Diagnostic(
            "the image `host` exists on the local cloud only",
            f"{where}.image",
            hint="name an image of a registry, or use `scar --local`",
        )
    if not container.create_image and not ECR_IMAGE.fullmatch(container.image or ""):
        yield Diagnostic(
            "with `create_image: false` the image must be in ECR, Lambda takes it from there",
            f"{where}.image",
            hint="name it <account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>,"
            " or remove `create_image`",
        )


def _storage(where: str, function: AwsFunction) -> Iterator[Diagnostic]:
    for key, parts in (("input", function.lambda_.input), ("output", function.lambda_.output)):
        for n, part in enumerate(parts):
            place = f"{where}.lambda.{key}[{n}]"
            if part.storage_provider != "s3":
                yield Diagnostic(
                    f"storage provider `{part.storage_provider}` is not supported yet, only `s3`",
                    f"{place}.storage_provider",
                )
            elif not BUCKET_NAME.fullmatch(object_path(part.path)[0]):
                yield Diagnostic(
                    f"`{object_path(part.path)[0]}` cannot be a bucket: 3 to 63 of a-z, 0-9, `.`"
                    " and `-`",
                    f"{place}.path",
                )
            elif key == "input" and part.prefix:
                yield Diagnostic(
                    "`prefix` filters outputs only; the path's own prefix selects the inputs",
                    f"{place}.prefix",
                )


def _batch(where: str, function: AwsFunction, account: AccountFacts) -> Iterator[Diagnostic]:
    mode, compute = function.lambda_.execution_mode, compute_resources(function, account)
    for key in ("subnets", "security_group_ids"):
        if not getattr(compute, key):
            yield Diagnostic(
                f"`execution_mode: {mode}` needs `{key}`", f"{where}.batch.compute_resources.{key}"
            )
    if function.batch.vcpus > compute.max_v_cpus:
        yield Diagnostic(
            f"a job of {function.batch.vcpus} vCPUs never fits"
            f" a compute environment of at most {compute.max_v_cpus}",
            f"{where}.batch.vcpus",
            hint="raise `batch.compute_resources.max_v_cpus`",
        )
    if compute.type.startswith("FARGATE") and function.batch.enable_gpu:
        yield Diagnostic("Fargate has no GPUs", f"{where}.batch.enable_gpu")


def _same_names(functions: Iterable[AwsFunction]) -> Iterator[Diagnostic]:
    seen: set[str] = set()
    for n, function in enumerate(functions):
        name = function.lambda_.name
        if name in seen:
            yield Diagnostic(f"two functions are named `{name}`", f"functions.aws[{n}].lambda.name")
        seen.add(name)


def _loops(functions: tuple[AwsFunction, ...]) -> Iterator[Diagnostic]:
    """A function whose output triggers it again, directly or through others, never ends."""
    inputs = [_paths(function, "input") for function in functions]
    graph: dict[int, set[int]] = {}
    for n, function in enumerate(functions):
        outputs = _paths(function, "output")
        graph[n] = {
            m for m, its in enumerate(inputs) if any(_meet(i, o) for i in its for o in outputs)
        }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        ring = [functions[n].lambda_.name for n in exc.args[1]]
        yield Diagnostic(
            "outputs trigger their own function again, without end: "
            + " -> ".join(f"`{name}`" for name in reversed(ring)),
            f"functions.aws[{exc.args[1][0]}].lambda.output",
            hint="write the output under a path that is no input of these functions",
        )


def _overlaps(functions: tuple[AwsFunction, ...]) -> Iterator[Diagnostic]:
    """S3 refuses two notifications for the same kind of event whose prefixes overlap."""
    every = [
        (n, path, part.suffix)
        for n, function in enumerate(functions)
        for path, part in zip(_paths(function, "input"), function.lambda_.input, strict=True)
    ]
    for (n, one, one_suffixes), (m, other, other_suffixes) in combinations(every, 2):
        differ = one_suffixes and other_suffixes and not _ends_meet(one_suffixes, other_suffixes)
        if (_meet(one, other) or _meet(other, one)) and not differ:
            names = functions[n].lambda_.name, functions[m].lambda_.name
            yield Diagnostic(
                f"inputs of `{names[0]}` and `{names[1]}` overlap: S3 allows one trigger a path",
                f"functions.aws[{m}].lambda.input",
                hint="give them different paths, or different suffixes",
            )


def _paths(function: AwsFunction, key: str) -> list[tuple[str, str]]:
    return [object_path(part.path) for part in getattr(function.lambda_, key)]


def _meet(at: tuple[str, str], path: tuple[str, str]) -> bool:
    """Whether an object under `path` is also under `at`."""
    return at[0] == path[0] and f"{path[1]}/".startswith(f"{at[1]}/" if at[1] else "")


def _ends_meet(some: Iterable[str], others: tuple[str, ...]) -> bool:
    return any(a.endswith(b) or b.endswith(a) for a in some for b in others)
