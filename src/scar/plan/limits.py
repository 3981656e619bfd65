"""AWS's limits on counts and bytes, checked before anything is touched. Pure.

What a single key can break is told by the language's own bounds. Limits that cannot be met by
what a user writes are not here: scripts, variables of the container and extra payload travel in
the image (10 GB) and not in the function (4 KB of variables) or the job definition (24 KiB); an
event that is too large for a job's overrides (8,192 characters), or for an invocation, travels
through the deployment bucket: `scar_supervisor.records.to_send` decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations

from scar.errors import Diagnostic
from scar.fdl.rules import Described, DescribedRule, Fault, FunctionRule
from scar.fdl.schema import (
    AwsFunction,
    ComputeResources,
    Deployment,
    ObjectPathPart,
    StorageProviders,
)
from scar.fdl.source import Loc, dotted
from scar.plan.desired import AccountFacts, deployment_bucket, filters, object_path, roles
from scar.plan.policies import POLICY_LIMIT, size
from scar.plan.providers import named
from scar.plan.resources import (
    DESTINATION_PREFIX,
    TAG_CREATED_BY,
    TAG_FUNCTION,
    TAG_OWNER,
)
from scar_supervisor.contract import INLINE_EVENT_LIMIT_BYTES
from scar_supervisor.records import EVENTS_PREFIX, STATE_PREFIX

ENVIRONMENT_LIMIT_BYTES = 4096
"""Names and values of a function's variables together (Lambda quotas)."""

TAGS_LIMIT = 40
"""The user's tags of one function: Lambda allows 50, ours included."""

TAG_KEY_LIMIT, TAG_VALUE_LIMIT = 128, 256
"""Characters (Lambda API, Tags)."""

IMAGE_LIMIT = 255
"""Characters of an image's reference in a job definition (Batch API, ContainerProperties)."""

COMPUTE_ENVIRONMENTS_LIMIT = 50
"""Compute environments, and queues, of an account in one region (Batch quotas)."""

PAYLOAD_LIMIT_BYTES = 6 * 1024 * 1024
"""A synchronous invocation's payload (Lambda quotas)."""

ASYNCHRONOUS_LIMIT_BYTES = 1024 * 1024
"""An asynchronous invocation's payload (lambda.Invoke)."""

BODY_LIMIT_BYTES = 10 * 1024 * 1024
"""A request's body (API Gateway, REST API quotas)."""

ENVELOPE_BYTES = 16 * 1024
"""Left for what API Gateway puts around the body in the event: headers, twice, and the context."""

URL_LIMIT_BYTES = 8 * 1024
"""Request line and headers together have at most 10,240 bytes (REST API quotas)."""

ECR_IMAGE = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/.+")

DEFAULT_BUCKET = re.compile(r"scar-\d{12}-[a-z0-9-]+")
"""The deployment bucket of functions that name none, in any account and region."""

_OUR_TAGS = (TAG_CREATED_BY, TAG_OWNER, TAG_FUNCTION)


def check(deployment: Deployment) -> list[Diagnostic]:
    """Every limit that `deployment` would break, in the order of the FDL."""
    functions = deployment.functions.aws
    described = Described(dict(enumerate(functions)), target=deployment.scar.target)
    found = [
        fault
        for n, function in enumerate(functions)
        for rule in FUNCTION_RULES
        for fault in rule(function, ("functions", "aws", n), deployment.scar.target)
    ]
    found += [fault for across in DESCRIBED_RULES for fault in across(described)]
    return [Diagnostic(f.summary, dotted(f.loc), hint=f.hint, severity=f.severity) for f in found]


def how_things_travel(
    deployment: Deployment, scripts: Mapping[str, int], account: AccountFacts
) -> str:
    """What goes where, in a sentence; `scripts` are the sizes of init scripts by function."""
    functions = deployment.functions.aws
    told = ", ".join(f"{name}: {size:,} bytes" for name, size in scripts.items())
    buckets = sorted({deployment_bucket(function, account) for function in functions})
    places = " and ".join(f"s3://{bucket}/{EVENTS_PREFIX}" for bucket in buckets)
    ways = [
        f"in a call up to {PAYLOAD_LIMIT_BYTES >> 20} MiB",
        f"asynchronously up to {ASYNCHRONOUS_LIMIT_BYTES >> 20} MiB",
    ]
    if any(function.lambda_.execution_mode != "lambda" for function in functions):
        ways.append(f"in a job up to {INLINE_EVENT_LIMIT_BYTES:,} bytes")
    image = f"scripts travel in the image ({told}); " if told else ""
    return f"{image}events {', '.join(ways)}, larger ones through {places}, which is private"


def payload_limit_bytes(*, asynchronous: bool) -> int:
    """What an invocation takes; a larger event travels through the deployment bucket."""
    return ASYNCHRONOUS_LIMIT_BYTES if asynchronous else PAYLOAD_LIMIT_BYTES


def body_fits(body_bytes: int, in_event_bytes: int, *, asynchronous: bool) -> bool:
    """Whether API Gateway and Lambda take a body; `in_event_bytes` as a JSON string."""
    limit = payload_limit_bytes(asynchronous=asynchronous)
    return body_bytes <= BODY_LIMIT_BYTES and in_event_bytes + ENVELOPE_BYTES <= limit


def variables_fit(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Lambda's own variables are few; those of the container travel in the image."""
    variables = function.lambda_.environment.Variables
    size = sum(len(k.encode()) + len(v.encode()) for k, v in variables.items())
    if size > ENVIRONMENT_LIMIT_BYTES:
        yield Fault(
            (*at, "lambda", "environment", "Variables"),
            f"the function's variables take {size} bytes, Lambda allows {ENVIRONMENT_LIMIT_BYTES}",
            "put them in `lambda.container.environment`: those travel in the image",
            is_about_key=True,
        )


def tags_fit(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Lambda's limits on tags, and the tags that are SCAR's own."""
    tags, loc = function.lambda_.tags, (*at, "lambda", "tags")
    if len(tags) > TAGS_LIMIT:
        yield Fault(
            loc, f"at most {TAGS_LIMIT} tags, got {len(tags)}", "remove some", is_about_key=True
        )
    for key, value in tags.items():
        if not 1 <= len(key) <= TAG_KEY_LIMIT:
            summary = f"a tag's name has 1 to {TAG_KEY_LIMIT} characters, got {len(key)}"
            yield Fault((*loc, key), summary, is_about_key=True)
        elif key.lower().startswith("aws:"):
            summary = f"tag `{key}` is reserved: names that start with `aws:` are AWS's own"
            yield Fault((*loc, key), summary, "choose another name", is_about_key=True)
        elif key in _OUR_TAGS or key.startswith("scar:"):
            summary = f"tag `{key}` is reserved: SCAR finds its functions by it"
            yield Fault((*loc, key), summary, "choose another name", is_about_key=True)
        if len(value) > TAG_VALUE_LIMIT:
            summary = f"a tag has at most {TAG_VALUE_LIMIT} characters, `{key}` has {len(value)}"
            yield Fault((*loc, key), summary)


def names_few_providers(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """Their names are a tag of the function: `rm` finds their secrets by it."""
    names = named(function)
    if len(" ".join(names)) > TAG_VALUE_LIMIT:
        yield Fault(
            (*at, "lambda", "output"),
            f"the names of {len(names)} storage providers must have {TAG_VALUE_LIMIT} characters "
            "together",
            "give them shorter names",
            is_about_key=True,
        )


def prepared_image_is_usable(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """`create_image: false`: Lambda and Batch take the image from where it is."""
    container, loc = function.lambda_.container, (*at, "lambda", "container", "image")
    image = container.image or ""
    if container.create_image:
        return
    if not ECR_IMAGE.fullmatch(image):
        yield Fault(
            loc,
            "with `create_image: false` the image must be in ECR, Lambda takes it from there",
            "name it <account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>,"
            " or remove `create_image`",
        )
    elif function.lambda_.execution_mode != "lambda" and len(image) > IMAGE_LIMIT:
        yield Fault(
            loc,
            f"Batch allows {IMAGE_LIMIT} characters for an image's name, got {len(image)}",
            "remove `create_image`: SCAR's own copy has a short name",
        )


def role_policy_fits(function: AwsFunction, at: Loc, target: str) -> Iterator[Fault]:
    """IAM's limit on what a role's own policies say, where SCAR makes the role."""
    if target != "aws" or function.iam.role:
        return
    its = function.lambda_
    buckets = {
        side: tuple(part for part in getattr(its, side) if part.storage_provider == "s3")
        for side in ("input", "output")
    }
    alike = function.model_copy(update={"lambda_": its.model_copy(update=buckets)})
    account = AccountFacts("0" * 12, its.region or "ap-southeast-1", "", is_local=False)
    largest = max(size(one.role.policy) for one in roles(alike, account, StorageProviders()))
    if largest > POLICY_LIMIT:
        yield Fault(
            (*at, "lambda", max(buckets, key=lambda side: len(buckets[side]))),
            f"the policy of the function's role has {largest} characters, "
            f"IAM allows {POLICY_LIMIT}",
            "name fewer paths, above these, or give a role of your own: `iam: {role: …}`",
            is_about_key=True,
        )


def inputs_stay_apart(described: Described) -> Iterator[Fault]:
    """S3 refuses two notifications for the same kind of event whose filters overlap."""
    every = [
        (n, i, object_path(part.path)[0], filters(part))
        for n, function in described.functions.items()
        for i, part in enumerate(function.lambda_.input)
        if part.storage_provider == "s3"
    ]
    for (n, _, bucket, some), (m, i, other_bucket, others) in combinations(every, 2):
        if bucket == other_bucket and any(_meet(one, other) for one in some for other in others):
            names = " and ".join(
                f"`{described.functions[one].lambda_.name}`" for one in sorted({n, m})
            )
            yield Fault(
                ("functions", "aws", m, "lambda", "input", i, "path"),
                f"inputs of {names} overlap: S3 allows one trigger for an object",
                "give them different paths, or different suffixes",
            )


def state_triggers_nothing(described: Described) -> Iterator[Fault]:
    """What SCAR and Lambda keep in a deployment bucket is no input: it would run in a circle."""
    functions = described.functions
    named = {one.lambda_.deployment.bucket: one.lambda_.name for one in functions.values()}
    for n, function in functions.items():
        for i, part in enumerate(function.lambda_.input):
            bucket, _ = object_path(part.path)
            keeper = named.get(bucket)
            if keeper is None and DEFAULT_BUCKET.fullmatch(bucket):
                keeper = named.get(None)
            kept = [p for p in (STATE_PREFIX, DESTINATION_PREFIX) if _lets_in(part, p)]
            if part.storage_provider == "s3" and keeper is not None and kept:
                yield Fault(
                    ("functions", "aws", n, "lambda", "input", i, "path"),
                    f"the input takes in `{kept[0]}` of bucket `{bucket}`, where SCAR keeps what "
                    f"belongs to function `{keeper}`: the function would run in a circle",
                    f"give it a path, such as `{bucket}/input`, or another "
                    f"`lambda.deployment.bucket` to `{keeper}`",
                )


def compute_environments_fit(described: Described) -> Iterator[Fault]:
    """Functions that ask for the same hardware share a compute environment and its queue."""
    seen: set[tuple[ComputeResources, int, str]] = set()
    for n, function in described.functions.items():
        if function.lambda_.execution_mode == "lambda":
            continue
        batch = function.batch
        seen.add((batch.compute_resources, batch.max_v_cpus, batch.service_role))
        if len(seen) > COMPUTE_ENVIRONMENTS_LIMIT:
            yield Fault(
                ("functions", "aws", n, "batch", "compute_resources"),
                f"the file asks for more than {COMPUTE_ENVIRONMENTS_LIMIT} different compute "
                "environments, which is all that Batch allows in a region",
                "give functions the same `compute_resources`: they share one",
            )
            return


FUNCTION_RULES: tuple[FunctionRule, ...] = (
    variables_fit,
    tags_fit,
    names_few_providers,
    prepared_image_is_usable,
    role_policy_fits,
)
DESCRIBED_RULES: tuple[DescribedRule, ...] = (
    inputs_stay_apart,
    state_triggers_nothing,
    compute_environments_fit,
)


def _lets_in(part: ObjectPathPart, below: str) -> bool:
    """Whether a key below a prefix can trigger an input; suffixes of such keys are nobody's say."""
    return any(below.startswith(prefix) or prefix.startswith(below) for prefix, _ in filters(part))


def _meet(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether a key can have both prefixes and both suffixes."""
    starts = one[0].startswith(other[0]) or other[0].startswith(one[0])
    return starts and (one[1].endswith(other[1]) or other[1].endswith(one[1]))
