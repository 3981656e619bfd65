"""The kinds of thing SCAR keeps in an AWS account, as plain values.

A resource says what should exist; it holds no client and does nothing. ARNs are computed from
account, region and name, so that nearly every value is known while planning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from scar_supervisor.records import STATE_PREFIX

TAG_CREATED_BY = "createdby"
TAG_OWNER = "owner"
TAG_FUNCTION = "function"
TAG_QUEUE = "scar:queue"
"""On a function: the job queue it hands events to; how `rm` knows that a queue has no user left."""
TAG_BUCKET = "scar:deployment-bucket"
"""On a function: where its events that are too large to travel, and its bulk runs, are kept."""
TAG_MODE = "scar:execution-mode"
TAG_IMAGE = "scar:image"
"""On a function: the image as the user named it."""
TAG_KEEP_IMAGE = "scar:keep-image"
"""On a function: `rm` leaves its images (`ecr.delete_image: false`)."""
TAG_SUPERVISOR = "scar:supervisor"
"""On a function: the version of the supervisor in its image."""
TAG_VERSION = "scar:version"
"""On a function: the version of what it does, by which is known what it has done already."""
TAG_PROVIDERS = "scar:providers"
"""On a function: the storage providers it has a secret for, such as `minio.mine webdav.home`."""
TAG_FINGERPRINT = "scar:fingerprint"
"""On a secret: what its value is told by without being read."""
TAG_API = "scar:api"
"""On a function: how its REST API is called, such as `ANY scar/launch`: method, stage and path."""

CREATED_BY = "scar"
REPOSITORY = "scar"
"""The one ECR repository of an account and region; its tags name function and content."""

BATCH_SERVICE = "batch.amazonaws.com"
"""Whose service-linked role compute environments have that name no other."""


class ResourceId(NamedTuple):
    """A resource's kind and name; unique within one account and region."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'"


@dataclass(frozen=True)
class LogGroup:
    """A CloudWatch log group."""

    kind: ClassVar[str] = "log group"
    name: str
    retention_days: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bucket:
    """An S3 bucket. Made when absent, never deleted by us: it may hold the user's data."""

    kind: ClassVar[str] = "bucket"
    name: str


@dataclass(frozen=True)
class LifecycleRule:
    """What S3 removes by itself below `prefix`, after a number of days."""

    prefix: str
    expires_days: int | None = None
    """Objects of this age."""
    aborts_uploads_days: int | None = None
    """Parts of multipart uploads that were begun so long ago and not completed."""

    def __str__(self) -> str:
        if self.expires_days is not None:
            return f"expire {self.prefix} after {self.expires_days} days"
        return f"abort uploads to {self.prefix} after {self.aborts_uploads_days} days"


DESTINATION_PREFIX = "aws/lambda/async/"
"""Where Lambda keeps the events that failed for good; it takes no other.

https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
"""

STATE_RULES: Mapping[str, LifecycleRule] = {
    **{
        f"scar-state-{kind}": LifecycleRule(f"{STATE_PREFIX}{kind}/", expires_days=90)
        for kind in ("arrays", "claims", "done", "events", "retried")
    },
    "scar-state-uploads": LifecycleRule(STATE_PREFIX, aborts_uploads_days=7),
}
"""The lifecycle rules of a deployment bucket by id. What failed, who ran what, and events that
still wait to be submitted stay."""


@dataclass(frozen=True)
class BucketSetup:
    """What a deployment bucket needs: our own lifecycle rules, among everybody else's."""

    kind: ClassVar[str] = "bucket setup"
    name: str
    """The bucket's."""
    rules: Mapping[str, LifecycleRule] = field(default_factory=lambda: STATE_RULES)
    """By id."""
    is_private: bool = True
    """Whether Block Public Access is on as a whole. Access to a bucket that the user named is the
    user's matter: it counts as private."""


@dataclass(frozen=True)
class Role:
    """An IAM role of one function, with one inline policy; other policies of it are left alone."""

    kind: ClassVar[str] = "role"
    name: str
    service: str
    """Who may take it, such as `lambda.amazonaws.com`, and nobody else."""
    policy: Mapping[str, Mapping[str, Any]]
    """Statements as IAM has them, by their `Sid`."""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InstanceProfile:
    """The profile of Batch's instances that is AWS's own default. Made when absent, with a role of
    the same name; never changed and never deleted: others use it."""

    kind: ClassVar[str] = "instance profile"
    name: str


@dataclass(frozen=True)
class ServiceLinkedRole:
    """The role that a service of AWS acts with. Made when absent, never deleted."""

    kind: ClassVar[str] = "service-linked role"
    name: str
    """The service's, such as `batch.amazonaws.com`."""


@dataclass(frozen=True)
class Repository:
    """An ECR repository."""

    kind: ClassVar[str] = "repository"
    name: str
    has_lifecycle: bool = True
    """Whether images without a tag expire, or somebody else has said what does."""


@dataclass(frozen=True)
class Image:
    """One tag in the shared repository; it names the content: the same tag is the same image."""

    kind: ClassVar[str] = "image"
    name: str
    """`<repository>:<function>-<content>`."""


@dataclass(frozen=True)
class Function:
    """A Lambda function of package type Image."""

    kind: ClassVar[str] = "function"
    name: str
    image_uri: str
    role_arn: str
    memory_mb: int
    timeout_s: int
    ephemeral_storage_mb: int = 512
    architecture: str = "x86_64"
    description: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    subnets: tuple[str, ...] = ()
    """Sorted, like its security groups; none: it is in no network of the account's."""
    security_group_ids: tuple[str, ...] = ()
    file_systems: tuple[tuple[str, str], ...] = ()
    """ARN of an access point and where it is mounted."""


@dataclass(frozen=True)
class FailureDestination:
    """Where Lambda sends the events that a function failed for good, as an ARN.

    Whoever takes the function away takes it away too; other settings of asynchronous invocation
    are not ours.
    """

    kind: ClassVar[str] = "failure destination"
    name: str
    """The function's."""
    destination: str


@dataclass(frozen=True)
class Permission:
    """A statement of a function's resource policy that lets a bucket invoke it."""

    kind: ClassVar[str] = "permission"
    name: str
    """`<function>/<bucket>`."""
    function: str
    bucket: str
    account_id: str
    """Owner of the bucket: names of buckets are anybody's once they are deleted."""


@dataclass(frozen=True)
class BucketTrigger:
    """Our own entry in a bucket's notification configuration; everybody else's entries are kept."""

    kind: ClassVar[str] = "trigger"
    name: str
    """`<bucket>/<function>`."""
    bucket: str
    function: str
    function_arn: str
    paths: tuple[tuple[str, str], ...]
    """(prefix, suffix) pairs, one notification entry each."""


@dataclass(frozen=True)
class ComputeEnvironment:
    """A managed Batch compute environment, named by the hash of what it holds; shared."""

    kind: ClassVar[str] = "compute environment"
    name: str
    type: str
    max_vcpus: int
    min_vcpus: int
    desired_vcpus: int = field(compare=False)
    """What to start with; AWS moves it up and down afterwards."""
    instance_types: tuple[str, ...]
    instance_role: str
    subnets: tuple[str, ...]
    security_group_ids: tuple[str, ...]
    service_role: str = ""
    state: str = "ENABLED"
    tags: Mapping[str, str] = field(default_factory=dict)
    allocation_strategy: str = ""
    """Empty on Fargate, which has none."""

    @property
    def is_fargate(self) -> bool:
        """Whether it has no instances."""
        return self.type.startswith("FARGATE")


@dataclass(frozen=True)
class RetryRule:
    """One rule of `evaluateOnExit`: what it matches, at least one pattern, and what follows.

    A pattern may end in `*`. The first rule whose every pattern matches decides.
    """

    action: Literal["RETRY", "EXIT"]
    on_status_reason: str = ""
    on_reason: str = ""
    on_exit_code: str = ""


@dataclass(frozen=True)
class JobQueue:
    """A Batch job queue on one compute environment of the same name."""

    kind: ClassVar[str] = "job queue"
    name: str
    compute_environment: str
    priority: int = 1
    state: str = "ENABLED"
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobDefinition:
    """The latest active revision of a Batch job definition; older revisions are deregistered."""

    kind: ClassVar[str] = "job definition"
    name: str
    image_uri: str
    job_role_arn: str
    vcpus: float
    memory_mib: int
    gpus: int
    log_group: str
    region: str
    environment: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    platform: Literal["EC2", "FARGATE"] = "EC2"
    timeout_s: int | None = None
    """Of one attempt."""
    attempts: int = 1
    retry_rules: tuple[RetryRule, ...] = ()
    propagates_tags: bool = False
    """Whether the ECS tasks of its jobs get the tags: what costs are told apart by."""
    execution_role_arn: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Variables, and where Batch takes their values from (`valueFrom`)."""
    shared_memory_mib: int | None = None
    ephemeral_storage_gib: int | None = None
    assigns_public_ip: bool = False
    nodes: int = 0
    """Of a multi-node parallel job; 0 for any other."""
    main_node: int = 0


@dataclass(frozen=True)
class RestApi:
    """A REST API of API Gateway with one resource, proxied to a function, and the permission for it
    to invoke that function. AWS makes up its id; its tag `function` says whose it is."""

    kind: ClassVar[str] = "REST API"
    name: str
    """The function's."""
    api_name: str
    """Shown in AWS's console; need not be unique."""
    function_arn: str
    stage: str
    http_method: str
    path_part: str
    tags: Mapping[str, str] = field(default_factory=dict)
    is_ready: bool = True
    """Whether what it says is deployed and may invoke the function; False for a half-made one."""


@dataclass(frozen=True)
class Secret:
    """A secret of Secrets Manager with one storage provider's credentials, for one function."""

    kind: ClassVar[str] = "secret"
    name: str
    """`scar/<function>/<provider>`."""
    credentials: str = field(repr=False)
    """Their fingerprint: another one for other credentials, and no way back to them."""
    tags: Mapping[str, str] = field(default_factory=dict)
    value: str = field(default="", repr=False, compare=False)
    """What to keep, as JSON; it is never read back."""


Resource: TypeAlias = (
    LogGroup
    | Bucket
    | BucketSetup
    | Role
    | InstanceProfile
    | ServiceLinkedRole
    | Repository
    | Image
    | Function
    | FailureDestination
    | Permission
    | BucketTrigger
    | ComputeEnvironment
    | JobQueue
    | JobDefinition
    | RestApi
    | Secret
)


def id_of(resource: Resource) -> ResourceId:
    """The id a resource is observed and planned by."""
    return ResourceId(resource.kind, resource.name)


def needs(resource: Resource) -> tuple[ResourceId, ...]:
    """What must stand before `resource` is created, and be deleted after it.

    Names only what resources of a plan can be; an id that is in no plan is simply not waited for.
    """
    match resource:
        case Image():
            return (ResourceId(Repository.kind, resource.name.partition(":")[0]),)
        case Function():
            return (
                _image_id(resource.image_uri),
                ResourceId(LogGroup.kind, lambda_log_group(resource.name)),
                *secret_ids(resource),
                _role_id(resource.role_arn),
            )
        case BucketSetup():
            return (ResourceId(Bucket.kind, resource.name),)
        case FailureDestination():
            return (
                ResourceId(Function.kind, resource.name),
                ResourceId(Bucket.kind, resource.destination.rpartition(":")[2]),
            )
        case Permission():
            return (ResourceId(Function.kind, resource.function),)
        case BucketTrigger():
            return (
                ResourceId(Bucket.kind, resource.bucket),
                ResourceId(Permission.kind, f"{resource.function}/{resource.bucket}"),
                ResourceId(Function.kind, resource.function),
                ResourceId(FailureDestination.kind, resource.function),
                ResourceId(JobDefinition.kind, resource.function),
            )
        case RestApi():
            return (
                ResourceId(Function.kind, resource.name),
                ResourceId(JobDefinition.kind, resource.name),
            )
        case ComputeEnvironment() | JobQueue() | JobDefinition():
            return _needs_in_batch(resource)
        case _:
            return ()


def secret_name(function: str, provider: str) -> str:
    """The secret of a function's storage provider."""
    return f"scar/{function}/{provider}"


def secret_ids(function: Function) -> list[ResourceId]:
    """The secrets that a function says it has."""
    providers = function.tags.get(TAG_PROVIDERS, "").split()
    return [ResourceId(Secret.kind, secret_name(function.name, one)) for one in providers]


def lambda_log_group(function: str) -> str:
    """Where Lambda writes the log of `function`."""
    return f"/aws/lambda/{function}"


def batch_log_group(function: str) -> str:
    """Where the jobs of `function` write their log."""
    return f"/aws/batch/{function}"


def _needs_in_batch(
    resource: ComputeEnvironment | JobQueue | JobDefinition,
) -> tuple[ResourceId, ...]:
    match resource:
        case ComputeEnvironment():
            return (
                ResourceId(InstanceProfile.kind, resource.instance_role.rpartition("/")[2]),
                ResourceId(ServiceLinkedRole.kind, BATCH_SERVICE),
            )
        case JobQueue():
            return (ResourceId(ComputeEnvironment.kind, resource.compute_environment),)
        case JobDefinition():
            return (
                _image_id(resource.image_uri),
                ResourceId(LogGroup.kind, resource.log_group),
                ResourceId(JobQueue.kind, resource.tags.get(TAG_QUEUE, "")),
                _role_id(resource.job_role_arn),
                _role_id(resource.execution_role_arn),
            )


def _role_id(arn: str) -> ResourceId:
    return ResourceId(Role.kind, arn.rpartition("/")[2])


def _image_id(image_uri: str) -> ResourceId:
    return ResourceId(Image.kind, image_uri.partition("/")[2])
