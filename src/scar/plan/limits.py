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

TAGS_LIMIT = 40
"""The user's tags of one function: Lambda allows 50, ours included."""

ECR_IMAGE = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/.+")


def check(deployment: Deployment) -> list[Diagnostic]:
    """Every limit that `deployment` would break, in the order of the FDL."""
    functions = deployment.functions.aws
    found = [d for n, function in enumerate(functions) for d in _of_function(n, function)]
    return [*found, *_overlaps(functions)]


def _of_function(n: int, function: AwsFunction) -> Iterator[Diagnostic]:
    where = f"functions.aws[{n}]"
    yield from _function(where, function)
    yield from _image(where, function)


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


def _image(where: str, function: AwsFunction) -> Iterator[Diagnostic]:
    container = function.lambda_.container
    if not container.create_image and not ECR_IMAGE.fullmatch(container.image or ""):
        yield Diagnostic(
            "with `create_image: false` the image must be in ECR, Lambda takes it from there",
            f"{where}.lambda.container.image",
            hint="name it <account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>,"
            " or remove `create_image`",
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
