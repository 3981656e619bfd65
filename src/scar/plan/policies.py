"""The roles of a function: who may take them, and what they allow, from its FDL. Pure.

A role allows what the supervisor and the services that act for the function ask for, and nothing
else. Keys of KMS are not among it: a bucket or secret that is encrypted with a key of the user's
own needs a role of the user's own, `iam.role`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from scar.fdl.schema import AwsFunction
from scar.plan.resources import REPOSITORY, Role, batch_log_group, lambda_log_group
from scar_supervisor.contract import FunctionConfig, ObjectPath
from scar_supervisor.records import STATE_PREFIX, bursts_prefix, route_key

if TYPE_CHECKING:
    from scar.plan.desired import AccountFacts

Use: TypeAlias = Literal["function", "job", "task"]
"""Whose role: the Lambda function's; its jobs'; that of the agent which starts a job's container
(Batch's `executionRoleArn`)."""

Statement: TypeAlias = dict[str, Any]

SERVICES: Mapping[Use, str] = {
    "function": "lambda.amazonaws.com",
    "job": "ecs-tasks.amazonaws.com",
    "task": "ecs-tasks.amazonaws.com",
}
"""Who takes the role. Without a condition on `aws:SourceArn`: a role can be passed to a service by
its own account only, so there is nobody to be confused by."""

NAME_LIMIT = 64
"""Characters of a role's name (IAM API, CreateRole)."""

POLICY_LIMIT = 10_240
"""Characters of all inline policies of a role, white space not counted (IAM quotas)."""

_ECR_IMAGE = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.[^/]+/([^:@]+)")

_MAKE_INTERFACES = [
    "ec2:CreateNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
]
"""What AWS's own AWSLambdaVPCAccessExecutionRole has (version 3), on all resources."""


def uses(function: AwsFunction) -> tuple[Use, ...]:
    """The roles that a function needs, made or given."""
    if function.lambda_.execution_mode == "lambda":
        return ("function",)
    batch = function.batch
    if batch.compute_resources.type.startswith("FARGATE") or batch.secrets:
        return ("function", "job", "task")
    return ("function", "job")


def role_name(function: str, use: Use, account: AccountFacts) -> str:
    """`scar-<function>-<region>-<use>`: IAM has no regions. Shortened by a hash where too long."""
    name = f"scar-{function}-{account.region}-{use}"
    if len(name) <= NAME_LIMIT:
        return name
    end = f"-{hashlib.sha256(name.encode()).hexdigest()[:12]}-{use}"
    return name[: NAME_LIMIT - len(end)] + end


def role(
    function: AwsFunction, config: FunctionConfig, use: Use, account: AccountFacts,
    tags: Mapping[str, str],
) -> Role:  # fmt: skip
    """The role that SCAR makes for one use of `function`."""
    statements = {
        "function": _of_function,
        "job": _of_job,
        "task": _of_task,
    }[use](function, config, account)
    policy = {statement["Sid"]: statement for statement in statements}
    return Role(role_name(config.name, use, account), SERVICES[use], policy, tags)


def document(statements: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A policy as IAM takes it."""
    return {"Version": "2012-10-17", "Statement": list(statements.values())}


def trust(service: str) -> dict[str, Any]:
    """The policy that lets a service take a role."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def size(policy: Mapping[str, Mapping[str, Any]]) -> int:
    """Characters of a policy as IAM counts them."""
    return len(json.dumps(document(policy), separators=(",", ":")))


def _of_function(
    function: AwsFunction, config: FunctionConfig, account: AccountFacts
) -> Iterator[Statement]:
    yield _log("Log", lambda_log_group(config.name), account)
    yield from _staging(config, account)
    if config.deployment_bucket:
        yield _failed_events(config, account)
    if config.job_queue:
        definition = account.arn("batch", f"job-definition/{config.job_definition}")
        # AWS asks for queue and definition both, and for a definition that is named without its
        # revision by its ARN without one (aws/aws-cdk#26128, aws/aws-sdk-js#4280).
        queue = account.arn("batch", f"job-queue/{config.job_queue}")
        yield _allow("Jobs", ["batch:SubmitJob"], [queue, definition, f"{definition}:*"])
        # Batch knows no permission on single jobs for these (Service Authorization Reference).
        yield _allow("JobStates", ["batch:DescribeJobs", "batch:ListJobs"], ["*"])
    yield from _network(function, account)
    yield from _file_systems(function)


def _failed_events(config: FunctionConfig, account: AccountFacts) -> Statement:
    """For Lambda itself, which keeps the events that failed; the function's code has no part in it.

    Lambda asks for s3:PutObject and s3:ListBucket (developer guide, "Capturing records of Lambda
    asynchronous invocations"; the second is in `_staging`), and it takes a destination only where
    all keys of the bucket may be written, as several who tried narrower ones report. Requests
    of code carry `lambda:SourceFunctionArn`, Lambda's own of this kind do not (developer guide,
    "Using source function ARN to control function access behavior").
    """
    return {
        **_allow("FailedEvents", ["s3:PutObject"], _keys(account, config.deployment_bucket, "*")),
        "Condition": {
            "Null": {"lambda:SourceFunctionArn": "true"},
            "StringEquals": {"s3:ResourceAccount": account.id},
        },
    }


def _of_job(
    function: AwsFunction, config: FunctionConfig, account: AccountFacts
) -> Iterator[Statement]:
    yield from _staging(config, account)
    yield _allow("JobStates", ["batch:DescribeJobs"], ["*"])


def _of_task(
    function: AwsFunction, config: FunctionConfig, account: AccountFacts
) -> Iterator[Statement]:
    yield _log("Log", batch_log_group(config.name), account)
    yield _allow("Registry", ["ecr:GetAuthorizationToken"], ["*"])
    yield _allow(
        "Image",
        ["ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"],
        [_repository(function, account)],
    )
    secrets, parameters = _secrets(function, account)
    if secrets:
        yield _allow("Secrets", ["secretsmanager:GetSecretValue"], secrets)
    if parameters:
        yield _allow("Parameters", ["ssm:GetParameters"], parameters)


def _secrets(function: AwsFunction, account: AccountFacts) -> tuple[list[str], list[str]]:
    """ARNs of the secrets, and of the SSM parameters, of `batch.secrets`; each once."""
    secrets: dict[str, None] = {}
    parameters: dict[str, None] = {}
    for value_from in function.batch.secrets.values():
        arn = value_from.replace("{account_id}", account.id)
        if not arn.startswith("arn:"):
            parameters[account.arn("ssm", f"parameter/{arn.removeprefix('/')}")] = None
        elif arn.split(":")[2] == "ssm":
            parameters[arn] = None
        else:  # without the key of its JSON, the stage and the version
            secrets[":".join(arn.split(":")[:7])] = None
    return list(secrets), list(parameters)


def _staging(config: FunctionConfig, account: AccountFacts) -> Iterator[Statement]:
    """What the supervisor does wherever it runs: S3, and secrets of other storage providers."""
    inputs = [_below(account, path) for path in config.inputs if path.provider == "s3"]
    outputs = [_below(account, path) for path in config.outputs if path.provider == "s3"]
    if inputs:
        yield _allow("Inputs", ["s3:GetObject", "s3:GetObjectVersion"], inputs)
    if outputs:
        # To read them as well: an event that comes again finds out what is there already.
        actions = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:GetObject"]
        yield _allow("Outputs", actions, outputs)
    if bucket := config.deployment_bucket:
        yield _allow("State", ["s3:GetObject", "s3:PutObject"], _state(config, account))
        bursts = _keys(account, bucket, f"{bursts_prefix(config.name)}*")
        yield _allow("Bursts", ["s3:DeleteObject"], bursts)
        # On all of the bucket: S3 answers 404 for a key that is absent only to who may list the
        # bucket, 403 to others (S3 API, GetObject, "Permissions"), and a condition on the prefix
        # is not met by a request for an object.
        yield _allow("Keys", ["s3:ListBucket"], [account.s3_arn(bucket)])
    if config.providers:
        # AWS adds a hyphen and six characters to a secret's name in its ARN (Secrets Manager user
        # guide, "Identity-based policies").
        secrets = [
            account.arn("secretsmanager", f"secret:{_literal(provider.secret)}-??????")
            for provider in config.providers.values()
        ]
        yield _allow("Secrets", ["secretsmanager:GetSecretValue"], secrets)


def _state(config: FunctionConfig, account: AccountFacts) -> list[str]:
    """The keys of the deployment bucket that are this function's."""
    kinds = ("events", "arrays", "claims", "done", "failed", "bursts")
    every = [f"{STATE_PREFIX}{kind}/{config.name}/*" for kind in kinds]
    return _keys(account, config.deployment_bucket, *every, route_key(config.name))


def _network(function: AwsFunction, account: AccountFacts) -> Iterator[Statement]:
    """Interfaces in the user's network: for Lambda itself, not for the function's code.

    Lambda developer guide, "Giving Lambda functions access to resources in an Amazon VPC".
    """
    if not function.lambda_.vpc.SubnetIds:
        return
    arn = account.arn("lambda", f"function:{function.lambda_.name}")
    yield _allow("Network", _MAKE_INTERFACES, ["*"])
    yield {
        **_allow("NoNetworkForCode", _MAKE_INTERFACES, ["*"]),
        "Effect": "Deny",
        "Condition": {"ArnEquals": {"lambda:SourceFunctionArn": arn}},
    }


def _file_systems(function: AwsFunction) -> Iterator[Statement]:
    """Mounting and writing through one access point, and no other.

    For EFS see its user guide, "Using IAM to control file system data access"; the ARN of an access
    point of S3 Files holds that of its file system.
    """
    for n, one in enumerate(function.lambda_.file_system):
        start, service, (region, account_id, resource) = _parts(one.Arn)
        actions = [f"{service}:ClientMount", f"{service}:ClientWrite"]
        if service == "elasticfilesystem" and resource.startswith("access-point/"):
            every = f"{start}:{service}:{region}:{account_id}:file-system/*"
            condition = {"StringEquals": {"elasticfilesystem:AccessPointArn": one.Arn}}
            yield {**_allow(f"Files{n}", actions, [every]), "Condition": condition}
        else:
            file_system = one.Arn.partition("/access-point/")[0]
            yield _allow(f"Files{n}", actions, list(dict.fromkeys([file_system, one.Arn])))


def _parts(arn: str) -> tuple[str, str, list[str]]:
    name, partition, service, *rest = arn.split(":", 5)
    return f"{name}:{partition}", service, rest


def _repository(function: AwsFunction, account: AccountFacts) -> str:
    """The repository that the image is pulled from: ours, or that of a prepared image."""
    container = function.lambda_.container
    prepared = _ECR_IMAGE.match(container.image or "")
    if container.create_image or prepared is None:
        return account.arn("ecr", f"repository/{REPOSITORY}")
    owner, region, name = prepared.groups()
    return f"arn:{account.partition}:ecr:{region}:{owner}:repository/{name}"


def _log(sid: str, group: str, account: AccountFacts) -> Statement:
    """To write into a group that exists: `init` makes it."""
    arn = account.arn("logs", f"log-group:{group}:*")
    return _allow(sid, ["logs:CreateLogStream", "logs:PutLogEvents"], [arn])


def _below(account: AccountFacts, path: ObjectPath) -> str:
    prefix = f"{_literal(path.prefix)}/" if path.prefix else ""
    return account.s3_arn(f"{path.bucket}/{prefix}*")


def _keys(account: AccountFacts, bucket: str, *patterns: str) -> list[str]:
    return [account.s3_arn(f"{bucket}/{pattern}") for pattern in patterns]


def _literal(text: str) -> str:
    """Text that means itself in a policy, where `*`, `?` and `$` mean more (IAM user guide, "IAM
    policy elements: Variables and tags")."""
    return "".join(f"${{{one}}}" if one in "*?$" else one for one in text)


def _allow(sid: str, actions: list[str], resources: list[str]) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
