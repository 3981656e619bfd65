"""AWS's limits, checked before anything is touched. Pure.

What the language itself can tell is told by `scar.fdl`, with its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations

from scar.errors import Diagnostic
from scar.fdl.schema import AwsFunction, Deployment
from scar.plan.desired import filters, object_path

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


def check(deployment: Deployment) -> list[Diagnostic]:
    """Every limit that `deployment` would break, in the order of the FDL."""
    functions = deployment.functions.aws
    found = [d for n, function in enumerate(functions) for d in _of_function(n, function)]
    return [*found, *_overlaps(functions)]


def _of_function(n: int, function: AwsFunction) -> Iterator[Diagnostic]:
    where = f"functions.aws[{n}]"
    yield from _function(where, function)
    yield from _image(where, function)
    yield from _storage(where, function)


def _function(where: str, function: AwsFunction) -> Iterator[Diagnostic]:
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


def _image(where: str, function: AwsFunction) -> Iterator[Diagnostic]:
    container = function.lambda_.container
    if not container.create_image and not ECR_IMAGE.fullmatch(container.image or ""):
        yield Diagnostic(
            "with `create_image: false` the image must be in ECR, Lambda takes it from there",
            f"{where}.lambda.container.image",
            hint="name it <account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>,"
            " or remove `create_image`",
        )


def _storage(where: str, function: AwsFunction) -> Iterator[Diagnostic]:
    for key, parts in (("input", function.lambda_.input), ("output", function.lambda_.output)):
        for n, part in enumerate(parts):
            bucket, _ = object_path(part.path)
            if not BUCKET_NAME.fullmatch(bucket):
                yield Diagnostic(
                    f"`{bucket}` cannot be a bucket: 3 to 63 of a-z, 0-9, `.` and `-`",
                    f"{where}.lambda.{key}[{n}].path",
                )


def _overlaps(functions: tuple[AwsFunction, ...]) -> Iterator[Diagnostic]:
    """S3 refuses two notifications for the same kind of event whose filters overlap."""
    every = [
        (n, *object_path(part.path)[:1], filters(part))
        for n, function in enumerate(functions)
        for part in function.lambda_.input
    ]
    for (n, bucket, some), (m, other_bucket, others) in combinations(every, 2):
        if bucket == other_bucket and any(_meet(one, other) for one in some for other in others):
            names = " and ".join(f"`{functions[i].lambda_.name}`" for i in sorted({n, m}))
            yield Diagnostic(
                f"inputs of {names} overlap: S3 allows one trigger for an object",
                f"functions.aws[{m}].lambda.input",
                hint="give them different paths, or different suffixes",
            )


def _meet(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether a key can have both prefixes and both suffixes."""
    starts = one[0].startswith(other[0]) or other[0].startswith(one[0])
    return starts and (one[1].endswith(other[1]) or other[1].endswith(one[1]))
