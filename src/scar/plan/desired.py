"""From the FDL to the resources an account should hold. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scar.fdl.schema import (
    AwsFunction,
    ComputeResources,
    Deployment,
    ObjectPathPart,
    StorageProviders,
)
from scar.plan import policies, providers
from scar.plan.resources import (
    BATCH_SERVICE,
    CREATED_BY,
    REPOSITORY,
    TAG_API,
    TAG_BUCKET,
    TAG_CREATED_BY,
    TAG_FUNCTION,
    TAG_IMAGE,
    TAG_KEEP_IMAGE,
    TAG_MODE,
    TAG_OWNER,
    TAG_PROVIDERS,
    TAG_QUEUE,
    TAG_SUPERVISOR,
    TAG_VERSION,
    Bucket,
    BucketSetup,
    BucketTrigger,
    ComputeEnvironment,
    FailureDestination,
    Function,
    Image,
    InstanceProfile,
    JobDefinition,
    JobQueue,
    LogGroup,
    Permission,
    Repository,
    Resource,
    RestApi,
    RetryRule,
    Role,
    ServiceLinkedRole,
    batch_log_group,
    id_of,
    lambda_log_group,
)
from scar_supervisor.contract import (
    EXIT_CONFIG,
    EXIT_NODE_LOST,
    EXIT_NOT_JOINED,
    Burst,
    FunctionConfig,
    ImageDefaults,
    ObjectPath,
)

ALLOCATION_STRATEGIES = {
    "EC2": "BEST_FIT_PROGRESSIVE",
    "SPOT": "SPOT_PRICE_CAPACITY_OPTIMIZED",
}
"""AWS's default, BEST_FIT, waits for one instance type and can never be updated."""

INSTANCE_PROFILE = "ecsInstanceRole"
"""What AWS's own guides and consoles call the profile of Batch's instances."""

ATTEMPTS = 3
"""Of a job whose host was lost or whose image could not be pulled."""


@dataclass(frozen=True)
class AccountFacts:
    """What planning must know of the account."""

    id: str
    region: str
    owner: str
    is_local: bool

    @property
    def registry_host(self) -> str:
        """Host of the account's ECR registry."""
        suffix = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        return f"{self.id}.dkr.ecr.{self.region}.{suffix}"

    @property
    def default_bucket(self) -> str:
        """The deployment bucket of functions whose FDL names none."""
        return f"scar-{self.id}-{self.region}"

    @property
    def partition(self) -> str:
        """AWS's word for its separate worlds: the second part of every ARN."""
        if self.region.startswith("cn-"):
            return "aws-cn"
        return "aws-us-gov" if self.region.startswith("us-gov-") else "aws"

    def arn(self, service: str, resource: str, region: str | None = None) -> str:
        """The ARN of a resource in this account."""
        place = self.region if region is None else region
        return f"arn:{self.partition}:{service}:{place}:{self.id}:{resource}"

    def s3_arn(self, resource: str) -> str:
        """The ARN of a bucket, or of keys in it: these have neither region nor account."""
        return f"arn:{self.partition}:s3:::{resource}"


@dataclass(frozen=True)
class ImageFacts:
    """What planning must know of a function's image."""

    uri: str
    """Where Lambda and Batch take it from."""
    architecture: str
    """Lambda's word: `x86_64` or `arm64`."""
    is_ours: bool
    """False: a prepared image, used as it is; it is neither pushed nor deleted."""
    supervisor: str
    """Version of the supervisor in the image; empty where we do not know."""
    version: str = ""
    """Of the function's config in the image (FunctionConfig.version)."""


def desired(
    deployment: Deployment, images: Mapping[str, ImageFacts], account: AccountFacts
) -> list[Resource]:
    """All that `deployment` asks for; `images` by function name. Each resource once."""
    every: dict[object, Resource] = {}
    for function in deployment.functions.aws:
        for resource in _of_function(function, images[function.lambda_.name], account):
            every.setdefault(id_of(resource), resource)
        for needed in roles(function, account, deployment.storage_providers):
            if needed.is_made:
                every[id_of(needed.role)] = needed.role
        for secret in providers.secrets(
            function, deployment.storage_providers, _tags(function, account)
        ):
            every[id_of(secret)] = secret
    return list(every.values())


def function_config(
    function: AwsFunction,
    account: AccountFacts,
    image: ImageDefaults,
    storages: StorageProviders,
) -> FunctionConfig:
    """What the supervisor is told about `function`; `storages` are those of the whole FDL."""
    its = function.lambda_
    in_batch = its.execution_mode != "lambda"
    return FunctionConfig(
        name=its.name,
        execution_mode=its.execution_mode,
        timeout_threshold_s=its.container.timeout_threshold,
        log_level=its.log_level.upper(),
        has_script=its.init_script is not None,
        has_extra_payload=its.extra_payload is not None,
        environment=its.container.environment.Variables,
        batch_environment=function.batch.environment.Variables if in_batch else {},
        inputs=tuple(map(_object_path, its.input)),
        outputs=tuple(map(_object_path, its.output)),
        stages_in=not its.file_stage_in,
        job_queue=queue_name(function, account) if in_batch else "",
        job_definition=its.name if in_batch else "",
        job_attempts=1 + function.batch.retry,
        burst=_burst(function) if in_batch else None,
        deployment_bucket=deployment_bucket(function, account),
        is_multi_node=in_batch and function.batch.multi_node_parallel.enabled,
        image=image,
        providers=providers.places(function, storages),
    )


def _burst(function: AwsFunction) -> Burst | None:
    its = function.batch.coalesce
    return Burst(its.window_s, its.max_events) if its is not None else None


def deployment_bucket(function: AwsFunction, account: AccountFacts) -> str:
    """Where SCAR keeps what belongs to the function and is not in its image."""
    return function.lambda_.deployment.bucket or account.default_bucket


def queue_name(function: AwsFunction, account: AccountFacts) -> str:
    """Name of the queue and of its compute environment: the hash of what it is made of.

    Functions that ask for the same hardware share one: AWS allows 50 of each in a region.
    """
    compute = compute_resources(function, account)
    content = compute.model_dump(mode="json", exclude={"desired_v_cpus"})
    content["service_role"] = _filled(function.batch.service_role, account)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"scar-{digest[:12]}"


def compute_resources(function: AwsFunction, account: AccountFacts) -> ComputeResources:
    """`batch.compute_resources` with what only an account can give filled in."""
    compute = function.batch.compute_resources
    given: dict[str, object] = {
        "instance_role": _filled(compute.instance_role, account),
        "max_v_cpus": function.batch.max_v_cpus,
    }
    if account.is_local:
        given["subnets"] = compute.subnets or ("subnet-local",)
        given["security_group_ids"] = compute.security_group_ids or ("sg-local",)
    return compute.model_copy(update=given)


@dataclass(frozen=True)
class NeededRole:
    """A role that a function takes."""

    use: policies.Use
    arn: str
    is_made: bool
    """By SCAR; else it is the user's, or the local cloud's, which asks nobody what he may do."""
    role: Role
    """As SCAR makes it: what a given one must allow as well."""


def roles(
    function: AwsFunction, account: AccountFacts, storages: StorageProviders
) -> list[NeededRole]:
    """The roles of `function`, made or given; `storages` are those of the whole FDL."""
    config = function_config(function, account, ImageDefaults(), storages)
    found: list[NeededRole] = []
    for use in policies.uses(function):
        given = _given_role(function, use, account)
        role = policies.role(function, config, use, account, _tags(function, account))
        arn = given or account.arn("iam", f"role/{role.name}", region="")
        found.append(NeededRole(use, arn, not given, role))
    return found


def role_arn(function: AwsFunction, use: policies.Use, account: AccountFacts) -> str:
    """The role that the function, its jobs or their agent take."""
    name = policies.role_name(function.lambda_.name, use, account)
    made = account.arn("iam", f"role/{name}", region="")
    return _given_role(function, use, account) or made


def object_path(path: str) -> tuple[str, str]:
    """`bucket/some/prefix/` as bucket and prefix; the prefix has no slash at either end."""
    bucket, _, prefix = path.removeprefix("s3://").strip("/").partition("/")
    return bucket, prefix.strip("/")


def filters(part: ObjectPathPart) -> list[tuple[str, str]]:
    """The (prefix, suffix) pairs of keys that an input selects."""
    _, folder = object_path(part.path)
    start = f"{folder}/" if folder else ""
    return [
        (start + prefix, suffix)
        for prefix in part.prefix or ("",)
        for suffix in part.suffix or ("",)
    ]


def _of_function(
    function: AwsFunction, image: ImageFacts, account: AccountFacts
) -> Iterable[Resource]:
    its = function.lambda_
    retention = function.cloudwatch.log_retention_policy_in_days
    tags = _tags(function, account)
    yield LogGroup(lambda_log_group(its.name), retention, tags)
    bucket = deployment_bucket(function, account)
    yield Bucket(bucket)
    yield BucketSetup(bucket)
    if image.is_ours:
        yield Repository(REPOSITORY)
        yield Image(image.uri.partition("/")[2])
    if its.execution_mode != "lambda":
        tags |= {TAG_QUEUE: queue_name(function, account)}
        yield from _batch(function, image, account, tags)
    yield Function(
        name=its.name,
        image_uri=image.uri,
        role_arn=role_arn(function, "function", account),
        memory_mb=its.memory,
        timeout_s=its.timeout,
        ephemeral_storage_mb=its.ephemeral_storage,
        architecture=image.architecture,
        description=its.description,
        environment=its.environment.Variables,
        tags={**its.tags, **tags, **_labels(function, image)},
        subnets=tuple(sorted(its.vpc.SubnetIds)),
        security_group_ids=tuple(sorted(its.vpc.SecurityGroupIds)),
        file_systems=tuple((one.Arn, one.LocalMountPath) for one in its.file_system),
    )
    if account.is_local or not function.iam.role:
        # A role of the user's may not allow it, and Lambda would refuse the destination.
        yield FailureDestination(its.name, account.s3_arn(bucket))
    yield from _storage(function, account)
    yield from _api(function, account, tags)


def _tags(function: AwsFunction, account: AccountFacts) -> dict[str, str]:
    """What says whose a resource is."""
    return {
        TAG_CREATED_BY: CREATED_BY,
        TAG_OWNER: account.owner,
        TAG_FUNCTION: function.lambda_.name,
    }


def _labels(function: AwsFunction, image: ImageFacts) -> dict[str, str]:
    """What `ls` shows, kept in tags so that one call lists it."""
    container = function.lambda_.container
    name = container.image or container.image_file or ""
    labels = {
        TAG_API: _call(function),
        TAG_MODE: function.lambda_.execution_mode,
        TAG_BUCKET: function.lambda_.deployment.bucket or "",
        TAG_IMAGE: re.sub(r"[^\w\s.:/=+@-]", "_", name)[:256],
        TAG_SUPERVISOR: image.supervisor,
        TAG_VERSION: image.version,
        TAG_KEEP_IMAGE: "" if function.ecr.delete_image else "true",
        TAG_PROVIDERS: " ".join(providers.named(function)),
    }
    return {key: value for key, value in labels.items() if value}


def _batch(
    function: AwsFunction, image: ImageFacts, account: AccountFacts, tags: Mapping[str, str]
) -> Iterable[Resource]:
    batch, name = function.batch, function.lambda_.name
    compute, queue = compute_resources(function, account), queue_name(function, account)
    shared = {TAG_CREATED_BY: CREATED_BY}
    is_fargate = compute.type.startswith("FARGATE")
    nodes = batch.multi_node_parallel
    yield LogGroup(
        batch_log_group(name),
        function.cloudwatch.log_retention_policy_in_days,
        {key: value for key, value in tags.items() if key != TAG_QUEUE},
    )
    yield from _roles_of_batch(function, account)
    yield ComputeEnvironment(
        name=queue,
        type=compute.type,
        max_vcpus=batch.max_v_cpus,
        min_vcpus=compute.min_v_cpus,
        desired_vcpus=compute.desired_v_cpus,
        instance_types=() if is_fargate else compute.instance_types,
        instance_role="" if is_fargate else compute.instance_role,
        subnets=compute.subnets,
        security_group_ids=compute.security_group_ids,
        service_role=_filled(batch.service_role, account),
        state=batch.state,
        tags=shared,
        allocation_strategy=ALLOCATION_STRATEGIES.get(compute.type, ""),
    )
    yield JobQueue(name=queue, compute_environment=queue, state=batch.state, tags=shared)
    yield JobDefinition(
        name=name,
        image_uri=image.uri,
        job_role_arn=role_arn(function, "job", account),
        vcpus=batch.vcpus,
        memory_mib=batch.memory,
        gpus=int(batch.enable_gpu),
        log_group=batch_log_group(name),
        region=account.region,
        tags=tags,
        platform="FARGATE" if is_fargate else "EC2",
        timeout_s=batch.timeout,
        attempts=1 + batch.retry if batch.retry else ATTEMPTS,
        retry_rules=retry_rules(batch.retry, nodes.enabled),
        propagates_tags=True,
        execution_role_arn=role_arn(function, "task", account)
        if "task" in policies.uses(function)
        else "",
        secrets={name: _filled(value, account) for name, value in batch.secrets.items()},
        shared_memory_mib=batch.shared_memory,
        ephemeral_storage_gib=batch.ephemeral_storage,
        assigns_public_ip=batch.assign_public_ip and is_fargate,
        environment=_node_environment(function),
        nodes=nodes.number_nodes if nodes.enabled else 0,
        main_node=nodes.main_node_index if nodes.enabled else 0,
    )


def retry_rules(retry: int, has_nodes: bool = False) -> tuple[RetryRule, ...]:
    """When a job is tried again; `retry`: whether also after a failure of its script.

    With `has_nodes` also when a node did not come, or was lost.

    A job that no rule matches is retried, so the last one ends it. A config that cannot be read
    will not become readable. Source: user guide, "Automated job retries".
    """
    script = (
        RetryRule("EXIT", on_exit_code=str(EXIT_CONFIG)),
        RetryRule("RETRY", on_status_reason="Essential container*"),
    )
    nodes = [
        RetryRule("RETRY", on_exit_code=str(code)) for code in (EXIT_NOT_JOINED, EXIT_NODE_LOST)
    ]
    return (
        RetryRule("RETRY", on_status_reason="Host EC2*"),
        RetryRule("RETRY", on_reason="CannotPull*"),
        *(script if retry else nodes if has_nodes else ()),
        RetryRule("EXIT", on_reason="*"),
    )


def _node_environment(function: AwsFunction) -> dict[str, str]:
    """How many processes a node is for: a node sees all of its instance, not its job's share."""
    batch = function.batch
    if not batch.multi_node_parallel.enabled:
        return {}
    return {"SCAR_MNP_SLOTS": str(batch.enable_gpu or max(1, int(batch.vcpus)))}


def _roles_of_batch(function: AwsFunction, account: AccountFacts) -> Iterable[Resource]:
    """What an account that never used Batch lacks, where the defaults are meant."""
    compute = compute_resources(function, account)
    default = account.arn("iam", f"instance-profile/{INSTANCE_PROFILE}", region="")
    if account.is_local:
        return
    if not compute.type.startswith("FARGATE") and compute.instance_role == default:
        yield InstanceProfile(INSTANCE_PROFILE)
    if not function.batch.service_role:
        yield ServiceLinkedRole(BATCH_SERVICE)


def _given_role(function: AwsFunction, use: policies.Use, account: AccountFacts) -> str:
    """The role that the FDL names, or the local cloud's one; empty where SCAR makes it."""
    own = function.batch.execution_role if use == "task" else ""
    default = account.arn("iam", "role/scar-local", region="") if account.is_local else ""
    return _filled(own or function.iam.role, account) or default


def _storage(function: AwsFunction, account: AccountFacts) -> Iterable[Resource]:
    its = function.lambda_
    for part in (*its.input, *its.output):
        if part.storage_provider == "s3":
            yield Bucket(object_path(part.path)[0])
    inputs: dict[str, list[tuple[str, str]]] = {}
    for part in its.input:
        if part.storage_provider == "s3":
            bucket, _ = object_path(part.path)
            pairs = inputs.setdefault(bucket, [])
            pairs += filters(part)
    for bucket, pairs in inputs.items():
        yield Permission(f"{its.name}/{bucket}", its.name, bucket, account.id)
        yield BucketTrigger(
            name=f"{bucket}/{its.name}",
            bucket=bucket,
            function=its.name,
            function_arn=account.arn("lambda", f"function:{its.name}"),
            paths=tuple(dict.fromkeys(pairs)),
        )


def _api(
    function: AwsFunction, account: AccountFacts, tags: Mapping[str, str]
) -> Iterable[Resource]:
    api, name = function.api_gateway, function.lambda_.name
    if api.name is None:
        return
    yield RestApi(
        name=name,
        api_name=api.name,
        function_arn=account.arn("lambda", f"function:{name}"),
        stage=api.stage_name,
        http_method=api.http_method,
        path_part=api.path_part,
        tags={key: value for key, value in tags.items() if key != TAG_QUEUE},
    )


def _call(function: AwsFunction) -> str:
    """How the function's REST API is called: method, stage and path; empty where it has none.

    `launch` stands for any path, as in the reference implementation.
    """
    api = function.api_gateway
    path = "launch" if api.path_part.startswith("{") else api.path_part
    return f"{api.http_method} {api.stage_name}/{path}" if api.name is not None else ""


def _object_path(part: ObjectPathPart) -> ObjectPath:
    bucket, prefix = object_path(part.path)
    return ObjectPath(part.storage_provider, bucket, prefix, part.prefix, part.suffix)


def _filled(text: str, account: AccountFacts) -> str:
    return text.replace("{account_id}", account.id)
