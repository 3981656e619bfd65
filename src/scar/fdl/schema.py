"""The Functions Definition Language: every key, its unit, its bounds and its default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A mapping of the language: unknown keys are faults, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Variables(Part):
    """Environment variables."""

    Variables: dict[str, str] = Field(default_factory=dict)


class Container(Part):
    """`lambda.container`: the image and what runs in it."""

    image: str | None = None
    """Reference of the image in a registry, or `host` on the local cloud."""
    image_file: str | None = None
    """A `docker save` archive, relative to the FDL file."""
    create_image: bool = True
    """False: `image` is a prepared image in ECR and is used as it is."""
    timeout_threshold: Annotated[int, Field(ge=0, le=900)] = 10
    """Seconds kept back from the function's timeout to stage the output out or to delegate."""
    environment: Variables = Variables()


class ObjectPathPart(Part):
    """One item of `lambda.input` or `lambda.output`."""

    storage_provider: str = "s3"
    path: str
    """`bucket` or `bucket/prefix`."""
    prefix: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()


class DeploymentPart(Part):
    """`lambda.deployment`."""

    bucket: str | None = None
    """Bucket for events and payloads too large to travel inline; created on need."""


class Lambda(Part):
    """`lambda`: the function itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    boto_profile: str = "default"
    region: str | None = None
    memory: Annotated[int, Field(ge=128, le=10240)] = 512
    """MB."""
    timeout: Annotated[int, Field(ge=1, le=900)] = 300
    """Seconds."""
    ephemeral_storage: Annotated[int, Field(ge=512, le=10240)] = 512
    """MB of /tmp."""
    execution_mode: Literal["lambda", "lambda-batch", "batch"] = "lambda"
    description: str = ""
    log_level: str = "INFO"
    architectures: tuple[Literal["x86_64", "arm64"], ...] = ("x86_64",)
    environment: Variables = Variables()
    """Lambda's own environment."""
    init_script: str | None = None
    """Script of every invocation, relative to the FDL file."""
    run_script: str | None = None
    """Script of `scar run`, relative to the FDL file."""
    extra_payload: str | None = None
    """File or folder added to the image; its path is in $EXTRA_PAYLOAD."""
    preheat: bool = False
    asynchronous: bool = False
    file_stage_in: bool = False
    """True: do not download the input (the reference's meaning of the key)."""
    container: Container = Container()
    input: tuple[ObjectPathPart, ...] = ()
    output: tuple[ObjectPathPart, ...] = ()
    deployment: DeploymentPart = DeploymentPart()
    tags: dict[str, str] = Field(default_factory=dict)


class Iam(Part):
    """`iam`."""

    boto_profile: str = "default"
    role: str = ""
    """ARN of the execution role and job role. `{account_id}` is filled in."""


class Ecr(Part):
    """`ecr`."""

    delete_image: bool = True


class CloudWatch(Part):
    """`cloudwatch`."""

    boto_profile: str = "default"
    region: str | None = None
    log_retention_policy_in_days: int = 30


class ComputeResources(Part):
    """`batch.compute_resources`."""

    type: Literal["EC2", "SPOT", "FARGATE", "FARGATE_SPOT"] = "EC2"
    desired_v_cpus: Annotated[int, Field(ge=0)] = 0
    min_v_cpus: Annotated[int, Field(ge=0)] = 0
    max_v_cpus: Annotated[int, Field(ge=1)] = 2
    instance_types: tuple[str, ...] = ("optimal",)
    subnets: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    instance_role: str = "arn:aws:iam::{account_id}:instance-profile/ecsInstanceRole"


class Batch(Part):
    """`batch`: the job and the compute environment it runs on."""

    boto_profile: str = "default"
    region: str | None = None
    vcpus: Annotated[int, Field(ge=1)] = 1
    memory: Annotated[int, Field(ge=4)] = 1024
    """MiB."""
    enable_gpu: bool | int = False
    state: Literal["ENABLED", "DISABLED"] = "ENABLED"
    type: Literal["MANAGED"] = "MANAGED"
    service_role: str = ""
    environment: Variables = Variables()
    compute_resources: ComputeResources = ComputeResources()


class AwsFunction(Part):
    """One item of `functions.aws`."""

    lambda_: Lambda = Field(alias="lambda")
    iam: Iam = Iam()
    ecr: Ecr = Ecr()
    cloudwatch: CloudWatch = CloudWatch()
    batch: Batch = Batch()


class Functions(Part):
    """`functions`."""

    aws: tuple[AwsFunction, ...] = ()


class Settings(Part):
    """`scar`: settings of the command itself."""

    config_version: str = ""
    target: Literal["aws", "local"] = "aws"


class Deployment(Part):
    """All that one FDL file asks for, complete and valid."""

    functions: Functions = Functions()
    storage_providers: dict[str, Any] = Field(default_factory=dict)
    scar: Settings = Settings()
