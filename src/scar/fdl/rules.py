"""What no single key can say: rules across the keys of one function and across functions.

A rule is a plain function from a valid deployment, or one function of it, to faults.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scar.fdl.schema import AwsFunction, Batch, ObjectPathPart
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
PROVIDERS = ("s3", "minio", "onedata", "webdav")
STAGED = ("s3", "minio", "webdav")
"""The kinds that the supervisor can copy from and to."""

LAMBDA_RESERVED = frozenset(
    """
    _HANDLER _X_AMZN_TRACE_ID AWS_ACCESS_KEY AWS_ACCESS_KEY_ID AWS_DEFAULT_REGION AWS_EXECUTION_ENV
    AWS_LAMBDA_FUNCTION_MEMORY_SIZE AWS_LAMBDA_FUNCTION_NAME AWS_LAMBDA_FUNCTION_VERSION
    AWS_LAMBDA_INITIALIZATION_TYPE AWS_LAMBDA_LOG_GROUP_NAME AWS_LAMBDA_LOG_STREAM_NAME
    AWS_LAMBDA_RUNTIME_API AWS_REGION AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN LAMBDA_RUNTIME_DIR
    LAMBDA_TASK_ROOT
    """.split()
)
"""Variables that CreateFunction refuses (Lambda developer guide, environment variables)."""


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


@dataclass(frozen=True)
class Described:
    """What is well-formed of a deployment: a fault in one function hides no other's."""

    functions: Mapping[int, AwsFunction]
    """By their place in the list."""
    providers: frozenset[str] = frozenset()
    """The defined storage providers, such as `minio.mine`."""
    target: Literal["aws", "local"] = "aws"


DescribedRule = Callable[[Described], Iterable[Fault]]


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
    if target != "aws" or function.lambda_.execution_mode == "lambda":
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
    """vCPU counts that cannot be met together."""
    if function.lambda_.execution_mode == "lambda":
        return
    resources, loc = function.batch.compute_resources, (*at, "batch", "compute_resources")
    highest = function.batch.max_v_cpus
    for low in ("min_v_cpus", "desired_v_cpus"):
        if getattr(resources, low) > highest:
            yield Fault(
                (*loc, low),
                f"{low} must be at most max_v_cpus ({highest}), got {getattr(resources, low)}",
            )
    if function.batch.vcpus > highest:
        yield Fault(
            (*at, "batch", "vcpus"),
            f"vcpus must be at most max_v_cpus ({highest}), got {function.batch.vcpus}",
            "no instance would ever be started for the job: raise "
            "`batch.compute_resources.max_v_cpus`",
        )


def fits_its_nodes(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """What Batch asks of multi-node parallel jobs (user guide, "Multi-node parallel jobs")."""
    batch, loc = function.batch, (*at, "batch", "multi_node_parallel")
    nodes, resources = batch.multi_node_parallel, batch.compute_resources
    if not nodes.enabled:
        return
    if function.lambda_.execution_mode == "lambda":
        yield Fault(
            (*loc, "enabled"),
            "multi_node_parallel is for jobs, but `execution_mode` is `lambda`",
            "set `execution_mode: batch`, or remove it",
            is_about_key=True,
        )
        return
    if nodes.main_node_index >= nodes.number_nodes:
        yield Fault(
            (*loc, "main_node_index"),
            f"main_node_index must be 0 to {nodes.number_nodes - 1}, one less than number_nodes, "
            f"got {nodes.main_node_index}",
        )
    if resources.type != "EC2":
        yield Fault(
            (*at, "batch", "compute_resources", "type"),
            f"multi-node jobs run on instances of type `EC2` only, not on `{resources.type}`",
            "remove `type`, or `multi_node_parallel`",
        )
    needed = nodes.number_nodes * batch.vcpus
    if needed > batch.max_v_cpus:
        yield Fault(
            (*loc, "number_nodes"),
            f"{nodes.number_nodes} nodes of {batch.vcpus:g} vCPUs need {needed:g}, "
            f"max_v_cpus is {batch.max_v_cpus}: the job would wait for ever",
            "raise `batch.compute_resources.max_v_cpus`, or have less nodes",
        )


def gathers_jobs(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Events become an array job only where they become jobs of one node."""
    its, loc = function.batch.coalesce, (*at, "batch", "coalesce")
    if its is None:
        return
    if function.lambda_.execution_mode != "batch":
        yield Fault(
            loc,
            "coalesce is for events that become jobs, but `execution_mode` is "
            f"`{function.lambda_.execution_mode}`",
            "set `execution_mode: batch`, or remove it",
            is_about_key=True,
        )
    elif function.batch.multi_node_parallel.enabled:
        yield Fault(
            loc,
            "coalesce makes array jobs, and their children have one node",
            "remove it, or `multi_node_parallel`",
            is_about_key=True,
        )
    elif its.window_s > function.lambda_.timeout / 2:
        yield Fault(
            (*loc, "window_s"),
            f"window_s must be at most half of the timeout of {function.lambda_.timeout} seconds, "
            f"got {its.window_s}",
            "an invocation waits so long for other events, and must then submit them: raise "
            "`lambda.timeout`",
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


def stays_out_of_reserved_names(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Variables that the platform sets itself."""
    its = function.lambda_
    every = (
        (("lambda", "environment"), its.environment.Variables, LAMBDA_RESERVED, "Lambda"),
        (("lambda", "container", "environment"), its.container.environment.Variables, (), "Batch"),
        (("batch", "environment"), function.batch.environment.Variables, (), "Batch"),
    )
    for path, variables, reserved, owner in every:
        for name in variables:
            if name in reserved or (owner == "Batch" and name.startswith("AWS_BATCH")):
                yield Fault(
                    (*at, *path, "Variables", name),
                    f"variable `{name}` is reserved: {owner} sets it itself",
                    "choose another name",
                    is_about_key=True,
                )


def keeps_secrets_apart(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Variables whose values are secrets: of jobs only, and no other variable's name."""
    batch, loc = function.batch, (*at, "batch", "secrets")
    if batch.secrets and function.lambda_.execution_mode == "lambda":
        yield Fault(
            loc,
            "secrets are for jobs, but `execution_mode` is `lambda`",
            "set `execution_mode: batch`, or remove them",
            is_about_key=True,
        )
    others = {
        "lambda.container.environment": function.lambda_.container.environment.Variables,
        "batch.environment": batch.environment.Variables,
    }
    for name in batch.secrets:
        if name.startswith(("AWS_BATCH", "SCAR_")):
            owner = "Batch" if name.startswith("AWS_BATCH") else "SCAR"
            what = f"variable `{name}` is reserved: {owner} sets it itself"
            yield Fault((*loc, name), what, "choose another name", is_about_key=True)
        for path, variables in others.items():
            if name in variables:
                what = f"variable `{name}` is in `{path}` too"
                yield Fault((*loc, name), what, "remove it there or here", is_about_key=True)


def runs_on_its_architecture(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """The machines of the compute environment can run the function's image."""
    its, resources = function.lambda_, function.batch.compute_resources
    if its.execution_mode == "lambda" or target != "aws" or its.architectures != ("arm64",):
        return
    if resources.type.startswith("FARGATE"):
        return
    for i, kind in enumerate(resources.instance_types):
        if kind in ("optimal", "default_x86_64"):
            yield Fault(
                (*at, "batch", "compute_resources", "instance_types", i),
                f"instances of `{kind}` are x86_64, the function is arm64",
                "use `instance_types: [default_arm64]`",
            )


def mounts_in_its_network(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Lambda mounts a file system only from inside its network."""
    its = function.lambda_
    for key, other in (
        ("SubnetIds", "SecurityGroupIds"),
        ("SecurityGroupIds", "SubnetIds"),
    ):
        if getattr(its.vpc, key) and not getattr(its.vpc, other):
            yield Fault(
                (*at, "lambda", "vpc"),
                f"vpc has `{key}` but no `{other}`",
                f"add `{other}: [{'sg' if other == 'SecurityGroupIds' else 'subnet'}-…]`",
                is_about_key=True,
            )
    if not its.file_system:
        return
    if not its.vpc.SubnetIds:
        yield Fault(
            (*at, "lambda", "file_system"),
            "file_system needs `lambda.vpc`: a function reaches it from inside its network",
            "add `vpc: {SubnetIds: [subnet-…], SecurityGroupIds: [sg-…]}`",
            is_about_key=True,
        )
    if target == "local":
        yield Fault(
            (*at, "lambda", "file_system"),
            "file_system is of AWS only: the local cloud has no EFS",
            "remove it to run here",
            is_about_key=True,
        )


def has_distinct_names(described: Described) -> Iterator[Fault]:
    """Two functions of one name would overwrite each other."""
    seen: set[str] = set()
    for i, function in described.functions.items():
        name = function.lambda_.name
        if name in seen:
            yield Fault(
                ("functions", "aws", i, "lambda", "name"),
                f"two functions are named `{name}`",
                "give each its own name",
            )
        seen.add(name)


def is_in_one_place(described: Described) -> Iterator[Fault]:
    """One command talks to one account in one region."""
    for i, function in list(described.functions.items())[1:]:
        for key in ("region", "boto_profile"):
            first = getattr(next(iter(described.functions.values())).lambda_, key)
            if getattr(function.lambda_, key) != first:
                yield Fault(
                    ("functions", "aws", i, "lambda", key),
                    f"{key} differs from the first function's, `{first or 'not set'}`",
                    "put the functions of each region and profile into a file of their own",
                )


def knows_its_storage_providers(described: Described) -> Iterator[Fault]:
    """Every provider that is named is defined, and one that this version can stage with."""
    for i, function in described.functions.items():
        for side in ("input", "output"):
            items: tuple[ObjectPathPart, ...] = getattr(function.lambda_, side)
            for n, item in enumerate(items):
                loc: Loc = ("functions", "aws", i, "lambda", side, n, "storage_provider")
                if fault := _provider_fault(loc, item.storage_provider, side, described.providers):
                    yield fault


def _provider_fault(loc: Loc, named: str, side: str, defined: frozenset[str]) -> Fault | None:
    kind, _, name = named.partition(".")
    full = f"{kind}.{name or 'default'}"
    if kind not in PROVIDERS:
        near = difflib.get_close_matches(kind, PROVIDERS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the kinds are {', '.join(PROVIDERS)}"
        return Fault(loc, f"unknown storage provider `{named}`", hint)
    if full == "s3.default" and full not in defined:
        return None
    if full not in defined:
        near = difflib.get_close_matches(full, defined, n=1)
        define = f"define it: `storage_providers: {{{kind}: {{{name or 'default'}: {{…}}}}}}`"
        hint = f"did you mean `{near[0]}`?" if near else define
        return Fault(loc, f"storage provider `{named}` is not defined", hint)
    if full == "s3.default":
        return Fault(
            loc,
            "storage provider `s3` is the function's own account, which needs no keys",
            "give `storage_providers.s3.default` another id than `default`, and use that here",
        )
    if kind not in STAGED:
        return Fault(
            loc,
            f"this version of SCAR cannot stage with storage provider `{named}` yet",
            f"the kinds are {', '.join(STAGED)}",
        )
    if side == "input" and kind == "webdav":
        return Fault(
            loc,
            f"storage provider `{named}` cannot be an input: nothing tells of its new files",
            "use `s3`, or `minio` with events",
        )
    return None


def hears_of_its_inputs(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Only the account's own S3 is told by SCAR to send events."""
    for n, item in enumerate(function.lambda_.input):
        kind = item.storage_provider.partition(".")[0]
        if item.storage_provider == "s3" or kind not in ("s3", "minio"):
            continue
        if kind == "minio" and function.api_gateway.name is not None:
            continue
        loc = (*at, "lambda", "input", n, "storage_provider")
        if kind == "minio":
            mend = "add `api_gateway: {name: …}`, and have MinIO send its events to that endpoint"
        else:
            mend = "have its owner's S3 send its events to the function"
        what = f"new files of `{item.storage_provider}` do not trigger the function by themselves"
        yield Fault(loc, what, mend, "warning")


def ends(described: Described) -> Iterator[Fault]:
    """No function triggers itself, directly or through others: that would never end."""
    functions = described.functions
    edges: dict[int, dict[int, Loc]] = {}
    for a, source in functions.items():
        for o, output in enumerate(source.lambda_.output):
            for b, sink in functions.items():
                if any(_triggers(output, item) for item in sink.lambda_.input):
                    loc: Loc = ("functions", "aws", a, "lambda", "output", o, "path")
                    edges.setdefault(a, {}).setdefault(b, loc)
    for cycle in _cycles(edges):
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
    fits_its_nodes,
    gathers_jobs,
    fits_its_platform,
    lives_in_one_region,
    stays_out_of_reserved_names,
    keeps_secrets_apart,
    runs_on_its_architecture,
    mounts_in_its_network,
    hears_of_its_inputs,
)
DESCRIBED_RULES: tuple[DescribedRule, ...] = (
    has_distinct_names,
    is_in_one_place,
    knows_its_storage_providers,
    ends,
)


def _triggers(output: ObjectPathPart, item: ObjectPathPart) -> bool:
    """Whether a file written to `output` can trigger `item`.

    Only suffixes can keep them apart: they end the file's name and the key alike. A prefix filter
    of an input applies to the path below it, which may have folders.
    """
    if output.storage_provider != item.storage_provider:
        return False
    if not f"{output.path.strip('/')}/".startswith(f"{item.path.strip('/')}/"):
        return False
    if not output.suffix or not item.suffix:
        return True
    return any(a.endswith(b) or b.endswith(a) for a in output.suffix for b in item.suffix)


def _cycles(edges: dict[int, dict[int, Loc]]) -> Iterator[tuple[int, ...]]:
    """Each function that can reach itself, once, by a shortest way; rotations are one cycle."""
    told: set[frozenset[int]] = set()
    for start in sorted(edges):
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
