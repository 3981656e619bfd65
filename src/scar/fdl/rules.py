"""What no single key can say: rules across the keys of one function and across functions.

A rule is a plain function from a valid deployment, or one function of it, to faults.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scar.fdl.schema import AwsFunction, Batch, Deployment, ObjectPathPart
from scar.fdl.source import Loc

HOST_IMAGE = "host"
"""The image that is this machine's own file system; local cloud only."""

FARGATE_MEMORY_MIB: Mapping[float, Sequence[int]] = {
    0.25: (512, 1024, 2048),
    0.5: (1024, 2048, 3072, 4096),
    1: range(2048, 8192 + 1, 1024),
    2: range(4096, 16384 + 1, 1024),
    4: range(8192, 30720 + 1, 1024),
    8: range(16384, 61440 + 1, 4096),
    16: range(32768, 122880 + 1, 8192),
    32: (61440, *range(65536, 249856 + 1, 8192)),
}
"""MiB that Fargate has for a number of vCPUs (Batch API, ResourceRequirement; 32 vCPUs: Fargate's
table of task sizes, whose steps start at 60 GB)."""

_WITHOUT_GPUS = {"optimal", "default_x86_64", "default_arm64"}
_PROVIDERS = ("s3", "minio", "onedata", "webdav", "rucio")


@dataclass(frozen=True)
class Fault:
    """A fault that knows which value it is about, not yet where that stands."""

    loc: Loc
    summary: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"
    is_about_key: bool = False
    """Whether to point at the key rather than at its value."""


FunctionRule = Callable[[AwsFunction, Loc, Literal["aws", "local"]], Iterable[Fault]]
"""(function, its path, target) -> faults."""

DeploymentRule = Callable[[Deployment], Iterable[Fault]]


def needs_one_image(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Exactly one of `image` and `image_file`; `host` on the local cloud only."""
    container, loc = function.lambda_.container, (*at, "lambda", "container", "image")
    if container.image is None and container.image_file is None:
        yield Fault(
            loc,
            f"function `{function.lambda_.name}` has no image",
            "add `container: {image: …}` to its `lambda`",
        )
    if container.image is not None and container.image_file is not None:
        yield Fault(
            (*loc[:-1], "image_file"),
            "`image` and `image_file` exclude each other",
            "keep the one to deploy",
            is_about_key=True,
        )
    if container.image == HOST_IMAGE and target == "aws":
        yield Fault(
            loc,
            "image `host` is this machine's own file system, which AWS does not have",
            "name an image of a registry, or use the local cloud: `scar --local …`",
        )


def has_what_aws_needs(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Values that only the user's AWS account can give; the local cloud has its own."""
    if target != "aws":
        return
    if not function.iam.role:
        yield Fault(
            (*at, "iam", "role"),
            f"function `{function.lambda_.name}` needs `iam.role` on AWS",
            "give the ARN of an execution role, or use the local cloud: `scar --local …`",
        )
    if function.lambda_.execution_mode == "lambda":
        return
    for key in ("subnets", "security_group_ids"):
        if not getattr(function.batch.compute_resources, key):
            yield Fault(
                (*at, "batch", "compute_resources", key),
                f"execution mode `{function.lambda_.execution_mode}` needs "
                f"`batch.compute_resources.{key}` on AWS",
                f"add `{key}: [{'subnet' if key == 'subnets' else 'sg'}-…]`, "
                "or use the local cloud: `scar --local …`",
            )


def keeps_time_to_finish(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """`timeout_threshold` is a part of `timeout`."""
    timeout, threshold = function.lambda_.timeout, function.lambda_.container.timeout_threshold
    if threshold >= timeout:
        yield Fault(
            (*at, "lambda", "container", "timeout_threshold"),
            f"timeout_threshold must be less than the timeout of {timeout} seconds, "
            f"got {threshold}",
            "it is the part of the timeout kept back for staging out",
        )


def fits_the_compute_environment(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """vCPU counts that cannot be met together; kinds of environment that are not there yet."""
    if function.lambda_.execution_mode == "lambda":
        return
    resources, loc = function.batch.compute_resources, (*at, "batch", "compute_resources")
    for low, high in (("min_v_cpus", "max_v_cpus"), ("desired_v_cpus", "max_v_cpus")):
        if getattr(resources, low) > getattr(resources, high):
            yield Fault(
                (*loc, low),
                f"{low} must be at most {high} ({getattr(resources, high)}), "
                f"got {getattr(resources, low)}",
            )
    if function.batch.vcpus > resources.max_v_cpus:
        yield Fault(
            (*at, "batch", "vcpus"),
            f"vcpus must be at most max_v_cpus ({resources.max_v_cpus}), "
            f"got {function.batch.vcpus}",
            "no instance would ever be started for the job: raise "
            "`batch.compute_resources.max_v_cpus`",
        )


def fits_its_platform(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """What instances have and Fargate has not, and the other way round."""
    if function.lambda_.execution_mode == "lambda":
        return
    batch, loc = function.batch, (*at, "batch")
    if batch.compute_resources.type.startswith("FARGATE"):
        yield from _fits_fargate(batch, loc)
        return
    if batch.vcpus != int(batch.vcpus):
        yield Fault(
            (*loc, "vcpus"),
            f"vcpus must be a whole number on instances, got {batch.vcpus:g}",
            "parts of a vCPU are for `compute_resources.type: FARGATE`",
        )
    types = batch.compute_resources.instance_types
    if batch.enable_gpu and target == "aws" and set(types) <= _WITHOUT_GPUS:
        yield Fault(
            (*loc, "enable_gpu"),
            f"no instance of `{types[0]}` has a GPU: the job would wait for ever",
            "name some that have, such as `compute_resources: {instance_types: [g5.xlarge]}`",
        )
    if batch.ephemeral_storage is not None:
        yield Fault(
            (*loc, "ephemeral_storage"),
            "ephemeral_storage is for Fargate: a job on instances uses their disk",
            "remove it, or set `compute_resources.type: FARGATE`",
            is_about_key=True,
        )


def _fits_fargate(batch: Batch, loc: Loc) -> Iterator[Fault]:
    kind = batch.compute_resources.type
    if batch.enable_gpu:
        yield Fault(
            (*loc, "enable_gpu"),
            f"there are no GPUs on `{kind}`",
            "set `compute_resources.type: EC2`",
        )
    if batch.shared_memory is not None:
        yield Fault(
            (*loc, "shared_memory"),
            f"shared_memory cannot be set on `{kind}`",
            "remove it, or set `compute_resources.type: EC2`",
            is_about_key=True,
        )
    if batch.compute_resources.min_v_cpus or batch.compute_resources.desired_v_cpus:
        key = "min_v_cpus" if batch.compute_resources.min_v_cpus else "desired_v_cpus"
        yield Fault(
            (*loc, "compute_resources", key),
            f"{key} cannot be set on `{kind}`: nothing is kept running there",
            "remove it",
            is_about_key=True,
        )
    memory = FARGATE_MEMORY_MIB.get(float(batch.vcpus))
    if memory is None:
        counts = ", ".join(f"{count:g}" for count in FARGATE_MEMORY_MIB)
        yield Fault(
            (*loc, "vcpus"), f"vcpus must be one of {counts} on `{kind}`, got {batch.vcpus:g}"
        )
    elif batch.memory not in memory:
        yield Fault(
            (*loc, "memory"),
            f"memory must be {_told(memory)} MiB with {batch.vcpus:g} vCPUs on `{kind}`, "
            f"got {batch.memory}",
        )


def _told(values: Sequence[int]) -> str:
    if len(values) <= 4:
        return " or ".join(map(str, values))
    return f"{values[0]} to {values[-1]} in steps of {values[1] - values[0]}"


def lives_in_one_region(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """A function's job and log groups are where the function is."""
    for part in ("batch", "cloudwatch", "api_gateway"):
        region = getattr(function, part).region
        if region is not None and region != function.lambda_.region:
            yield Fault(
                (*at, part, "region"),
                f"`{part}.region` is ignored: everything of a function is in `lambda.region`",
                "set `lambda.region`",
                "warning",
                is_about_key=True,
            )


def knows_its_storage_providers(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Inputs and outputs on `s3`; the other providers are not there yet."""
    for side in ("input", "output"):
        items: tuple[ObjectPathPart, ...] = getattr(function.lambda_, side)
        for i, item in enumerate(items):
            loc: Loc = (*at, "lambda", side, i, "storage_provider")
            kind = item.storage_provider.partition(".")[0]
            if item.storage_provider == "s3":
                continue
            if kind not in _PROVIDERS:
                near = difflib.get_close_matches(kind.lower(), _PROVIDERS, n=1)
                hint = f"did you mean `{near[0]}`?" if near else "use `s3`"
                yield Fault(loc, f"unknown storage provider `{item.storage_provider}`", hint)
            elif side == "input" and kind != "s3":
                yield Fault(
                    loc,
                    f"storage provider `{item.storage_provider}` cannot be an input: "
                    "only buckets of S3 can trigger a function",
                    "use `s3`",
                )
            else:
                yield Fault(
                    loc,
                    f"storage provider `{item.storage_provider}` "
                    "is not in this version of SCAR yet",
                    "use `s3`: the buckets of the account itself",
                )


def has_distinct_names(deployment: Deployment) -> Iterator[Fault]:
    """Two functions of one name would overwrite each other."""
    seen: set[str] = set()
    for i, function in enumerate(deployment.functions.aws):
        name = function.lambda_.name
        if name in seen:
            yield Fault(
                ("functions", "aws", i, "lambda", "name"),
                f"two functions are named `{name}`",
                "give each its own name",
            )
        seen.add(name)


def is_in_one_place(deployment: Deployment) -> Iterator[Fault]:
    """One command talks to one account in one region."""
    functions = deployment.functions.aws
    for i, function in enumerate(functions[1:], 1):
        for key in ("region", "boto_profile"):
            first, here = getattr(functions[0].lambda_, key), getattr(function.lambda_, key)
            if here != first:
                yield Fault(
                    ("functions", "aws", i, "lambda", key),
                    f"{key} differs from the first function's, `{first or 'not set'}`",
                    "put the functions of each region and profile into a file of their own",
                )


def ends(deployment: Deployment) -> Iterator[Fault]:
    """No function triggers itself, directly or through others: that would never end."""
    functions = deployment.functions.aws
    edges: dict[int, dict[int, Loc]] = {}
    for a, source in enumerate(functions):
        for o, output in enumerate(source.lambda_.output):
            for b, sink in enumerate(functions):
                if any(_triggers(output, item) for item in sink.lambda_.input):
                    loc: Loc = ("functions", "aws", a, "lambda", "output", o, "path")
                    edges.setdefault(a, {}).setdefault(b, loc)
    for cycle in _cycles(edges, len(functions)):
        names = [functions[i].lambda_.name for i in (*cycle, cycle[0])]
        loc = edges[cycle[-1]][cycle[0]]
        if len(cycle) == 1:
            path = functions[cycle[0]].lambda_.output[int(loc[5])].path
            yield Fault(
                loc,
                f"function `{names[0]}` writes to `{path}`, which is under its own input: "
                "it would trigger itself without end",
                "write to a path that is not under the input",
            )
        else:
            yield Fault(
                loc,
                f"the functions trigger each other without end: {' → '.join(names)}",
                "break the circle: one of them must write elsewhere",
            )


FUNCTION_RULES: tuple[FunctionRule, ...] = (
    needs_one_image,
    has_what_aws_needs,
    keeps_time_to_finish,
    fits_the_compute_environment,
    fits_its_platform,
    lives_in_one_region,
    knows_its_storage_providers,
)
DEPLOYMENT_RULES: tuple[DeploymentRule, ...] = (has_distinct_names, is_in_one_place, ends)


def _triggers(output: ObjectPathPart, item: ObjectPathPart) -> bool:
    """Whether a file written to `output` can trigger `item`.

    Only suffixes can keep them apart: they end the file's name and the key alike. A prefix filter
    of an input applies to the path below it, which may have folders.
    """
    if not (output.storage_provider == item.storage_provider == "s3"):
        return False
    if not f"{output.path.strip('/')}/".startswith(f"{item.path.strip('/')}/"):
        return False
    if not output.suffix or not item.suffix:
        return True
    return any(a.endswith(b) or b.endswith(a) for a in output.suffix for b in item.suffix)


def _cycles(edges: dict[int, dict[int, Loc]], count: int) -> Iterator[tuple[int, ...]]:
    """Each function that can reach itself, once, by a shortest way; rotations are one cycle."""
    told: set[frozenset[int]] = set()
    for start in range(count):
        cycle = _way_back(edges, start)
        if cycle and frozenset(cycle) not in told:
            told.add(frozenset(cycle))
            yield cycle


def _way_back(edges: dict[int, dict[int, Loc]], start: int) -> tuple[int, ...]:
    ways: list[tuple[int, ...]] = [(start,)]
    seen: set[int] = set()
    for way in ways:
        for following in edges.get(way[-1], {}):
            if following == start:
                return way
            if following not in seen:
                seen.add(following)
                ways.append((*way, following))
    return ()
