"""What policies allow, as IAM decides it; what a document has that is not known here is a fault.

After the IAM user guide, "Policy evaluation logic" and "IAM JSON policy elements reference": an
explicit deny wins, and what nothing allows is refused. Only identity-based policies; no resource
policies, boundaries or organisations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.doubles.model_check import Reading

Asked = tuple[str, str]
"""Action and resource."""

_ELEMENTS = {"Sid", "Effect", "Action", "Resource", "Condition"}
_OPERATORS = {"StringEquals", "StringLike", "ArnLike", "ArnEquals"}

FROM_CODE = {
    "lambda:SourceFunctionArn": "arn:aws:lambda:eu-west-1:123456789012:function:split",
    "s3:ResourceAccount": "123456789012",
}
"""The context of requests that a function's code makes."""

FROM_LAMBDA = {"s3:ResourceAccount": "123456789012"}
"""The context of requests that Lambda makes itself with a function's role."""


def is_allowed(
    documents: Iterable[Mapping[str, Any]],
    action: str,
    resource: str,
    context: Mapping[str, str] = FROM_CODE,
) -> bool:
    """Whether policies allow an action on a resource; `*` where the action is on no resource."""
    applying = list(_applying(documents, action, resource, context))
    effects = {statement["Effect"] for statement in applying}
    return effects == {"Allow"}


def allowing(documents: Iterable[Mapping[str, Any]], asked: Asked) -> list[str]:
    """The ids of the statements that allow what is asked."""
    return [statement["Sid"] for statement in _applying(documents, *asked, FROM_CODE)]


def asked_by(reading: Reading, account: str, region: str) -> Iterator[Asked]:
    """What a request of the supervisor needs: each must be allowed.

    Service Authorization Reference: "Actions, resources, and condition keys" of S3, Batch and
    Secrets Manager. Raises KeyError for an operation that is not known here.
    """
    its, operation = reading.params, reading.operation
    key = f"arn:aws:s3:::{its.get('Bucket')}/{its.get('Key')}"
    if operation in ("GetObject", "HeadObject"):
        yield ("s3:GetObjectVersion" if "VersionId" in its else "s3:GetObject"), key
    elif operation in _WRITES:
        yield _WRITES[operation], key
        if "IfMatch" in its:  # S3 user guide, "How to prevent object overwrites"
            yield "s3:GetObject", key
    elif operation == "DeleteObjects":
        for one in its["Delete"]["Objects"]:
            yield "s3:DeleteObject", f"arn:aws:s3:::{its['Bucket']}/{one['Key']}"
    elif operation == "ListObjectsV2":
        yield "s3:ListBucket", f"arn:aws:s3:::{its['Bucket']}"
    elif operation == "SubmitJob":
        for kind, name in (("queue", its["jobQueue"]), ("definition", its["jobDefinition"])):
            yield "batch:SubmitJob", f"arn:aws:batch:{region}:{account}:job-{kind}/{name}"
    elif operation == "GetSecretValue":
        name = f"secret:{its['SecretId']}-aB3dE6"
        yield "secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:{region}:{account}:{name}"
    else:
        yield _ON_NOTHING[operation], "*"


_WRITES = {
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
}
_ON_NOTHING = {"ListJobs": "batch:ListJobs", "DescribeJobs": "batch:DescribeJobs"}


def _applying(
    documents: Iterable[Mapping[str, Any]], action: str, resource: str, context: Mapping[str, str]
) -> Iterator[Mapping[str, Any]]:
    for document in documents:
        assert set(document) == {"Version", "Statement"}, document
        assert document["Version"] == "2012-10-17"
        for statement in document["Statement"]:
            assert set(statement) <= _ELEMENTS, statement
            assert statement["Effect"] in ("Allow", "Deny")
            if (
                any(_matches(one.lower(), action.lower()) for one in statement["Action"])
                and any(_matches(one, resource) for one in statement["Resource"])
                and _holds(statement.get("Condition", {}), context)
            ):
                yield statement


def _holds(condition: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, wanted in condition.items():
        if operator == "Null":
            if any((key not in context) != (value == "true") for key, value in wanted.items()):
                return False
            continue
        assert operator in _OPERATORS, operator
        for key, values in wanted.items():
            every = [values] if isinstance(values, str) else values
            exact = operator == "StringEquals"
            found = context.get(key)
            if found is None or not any(
                one == found if exact else _matches(one, found) for one in every
            ):
                return False
    return True


def _matches(pattern: str, text: str) -> bool:
    """`*` is anything, `?` one character; `${*}`, `${?}` and `${$}` are these characters."""
    parts = []
    for token in re.findall(r"\$\{[^}]*\}|.", pattern, re.S):
        if token.startswith("${"):
            assert token in ("${*}", "${?}", "${$}"), f"no variable `{token}` is known here"
            parts.append(re.escape(token[2]))
        else:
            parts.append({"*": ".*", "?": "."}.get(token, re.escape(token)))
    return re.fullmatch("".join(parts), text, re.S) is not None
