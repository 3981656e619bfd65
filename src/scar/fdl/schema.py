"""The Functions Definition Language: every key, its unit, its bounds and its default.

Keys of the reference implementation that are ignored or not there yet are in `load.py`; what no
single key can say (a rule across keys) is in `rules.py`.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_RETENTION_DAYS = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731),
    *(1096, 1827, 2192, 2557, 2922, 3288, 3653),
)
"""What CloudWatch Logs accepts (PutRetentionPolicy, `retentionInDays`)."""


def _not_a_bool(value: Any) -> Any:
    # `yes` and `on` are booleans in YAML, and Python would count them as 1.
    if isinstance(value, bool):
        raise ValueError("must be a whole number, got a yes-or-no value")
    return value


def _bool_as_count(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _retention(value: int) -> int:
    if value not in _RETENTION_DAYS:
        days = ", ".join(map(str, _RETENTION_DAYS))
        raise ValueError(f"must be one of {days} days, got {value}")
    return value


def _role(value: str) -> str:
    if value and not re.fullmatch(
        r"arn:aws[a-z-]*:iam::(\d{12}|\{account_id\}):role/[\w+=,.@/-]+", value
    ):
        raise ValueError(
            f"must be an ARN such as `arn:aws:iam::123456789012:role/x`, got `{value}`"
        )
    return value


def _region(value: str) -> str:
    if not re.fullmatch(r"[a-z]{2,5}(-[a-z]+)+-\d{1,2}", value):
        raise ValueError(f"must be a region such as `us-east-1`, got `{value}`")
    return value


def _bucket(value: str) -> str:
    if why := bucket_fault(value):
        raise ValueError(why)
    return value


def _object_path(value: str) -> str:
    if "://" in value:
        raise ValueError(f"must be `bucket/prefix` without `{value.split('://')[0]}://`")
    bucket, _, prefix = value.partition("/")
    if why := bucket_fault(bucket):
        raise ValueError(why)
    parts = prefix.strip("/").split("/") if prefix.strip("/") else []
    if "" in parts or prefix.startswith("/"):
        raise ValueError(f"must not hold an empty part (`//`), got `{value}`")
    if len("/".join(parts).encode()) > 900:
        raise ValueError("must leave room for file names: a key has at most 1,024 bytes")
    return value


def bucket_fault(name: str) -> str:
    """Why `name` is no bucket name (S3 user guide, bucket naming rules), or an empty text."""
    if not name:
        return "must start with a bucket, as in `bucket/prefix`"
    if not 3 <= len(name) <= 63:
        return f"must name a bucket of 3 to 63 characters, got `{name}`"
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*[a-z0-9]", name) or ".." in name:
        return (
            "must name a bucket of lower-case letters, digits, `-` and single `.`, "
            f"first and last a letter or digit, got `{name}`"
        )
    if re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name):
        return f"must name a bucket, got the IP address `{name}`"
    return ""


def _image(value: str) -> str:
    if not re.fullmatch(r"[^\s\x00-\x1f]{1,1024}", value):
        raise ValueError("must be an image such as `alpine:3.20` or `ghcr.io/owner/name@sha256:…`")
    repository = value.split("@")[0].rpartition("/")[2].split(":")[0]
    if repository != repository.lower():
        raise ValueError(f"must have a lower-case repository, got `{value}`")
    return value


def _api_name(value: str) -> str:
    if not 1 <= len(value) <= 1024:
        raise ValueError(f"must have 1 to 1,024 characters, got {len(value)}")
    return value


def _stage_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", value):
        raise ValueError(f"must be at most 128 letters, digits, `_` and `-`, got `{value}`")
    return value


def _path_part(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,255}|\{[A-Za-z0-9._:-]{1,255}\+?\}", value):
        raise ValueError(
            f"must be one part of a path, such as `cow`, or `{{proxy+}}` for all, got `{value}`"
        )
    return value


def _query_text(value: Any) -> Any:
    if isinstance(value, dict | list) or value is None:
        raise ValueError("must be text or a number")
    return value if isinstance(value, str) else json.dumps(value)


def _json_text(value: Any) -> Any:
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError as exc:
        raise ValueError(f"must be JSON: {str(exc).lower()}") from exc
    return value


Whole = Annotated[int, BeforeValidator(_not_a_bool)]
Region = Annotated[str, AfterValidator(_region)]


def _unit(unit: str) -> dict[str, Any]:
    return {"unit": unit}


class Part(BaseModel):
    """A mapping of the language: unknown keys are faults, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Variables(Part):
    """Environment variables. Values are text as written."""

    Variables: dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], str] = Field(
        default_factory=dict
    )


class LambdaVariables(Part):
    """Environment variables of the Lambda function itself; Lambda restricts their names."""

    Variables: dict[Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_]+$")], str] = Field(
        default_factory=dict
    )


class Container(Part):
    """`lambda.container`: the image and what runs in it."""

    image: Annotated[str, AfterValidator(_image)] | None = None
    """Reference of the image in a registry, or `host` on the local cloud."""
    image_file: str | None = None
    """A `docker save` archive, relative to the FDL file."""
    create_image: bool = True
    """False: `image` is a prepared image in ECR and is used as it is."""
    timeout_threshold: Annotated[Whole, Field(ge=0, le=900, json_schema_extra=_unit("seconds"))] = (
        10
    )
    """Seconds kept back from the function's timeout to stage the output out or to delegate."""
    environment: Variables = Variables()


class ObjectPathPart(Part):
    """One item of `lambda.input` or `lambda.output`."""

    storage_provider: str = "s3"
    path: Annotated[str, AfterValidator(_object_path)]
    """`bucket` or `bucket/prefix`."""
    prefix: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()


class DeploymentPart(Part):
    """`lambda.deployment`."""

    bucket: Annotated[str, AfterValidator(_bucket)] | None = None
    """Bucket for events and payloads too large to travel inline; created on need."""


class Lambda(Part):
    """`lambda`: the function itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    boto_profile: str = "default"
    region: Region | None = None
    memory: Annotated[Whole, Field(ge=128, le=10240, json_schema_extra=_unit("MB"))] = 512
    """MB."""
    timeout: Annotated[Whole, Field(ge=1, le=900, json_schema_extra=_unit("seconds"))] = 300
    """Seconds."""
    ephemeral_storage: Annotated[Whole, Field(ge=512, le=10240, json_schema_extra=_unit("MB"))] = (
        512
    )
    """MB of /tmp."""
    execution_mode: Literal["lambda", "lambda-batch", "batch"] = "lambda"
    description: Annotated[str, Field(max_length=256)] = ""
    log_level: Annotated[
        Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"], BeforeValidator(_upper)
    ] = "INFO"
    architectures: Annotated[
        tuple[Literal["x86_64", "arm64"], ...], Field(min_length=1, max_length=1)
    ] = ("x86_64",)
    environment: LambdaVariables = LambdaVariables()
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
    role: Annotated[str, AfterValidator(_role)] = ""
    """ARN of the execution role and job role. `{account_id}` is filled in."""


class Ecr(Part):
    """`ecr`."""

    delete_image: bool = True


class CloudWatch(Part):
    """`cloudwatch`."""

    boto_profile: str = "default"
    region: Region | None = None
    log_retention_policy_in_days: Annotated[Whole, AfterValidator(_retention)] = 30


class ApiMethod(Part):
    """`api_gateway.method`."""

    authorizationType: Literal["NONE"] = "NONE"
    """Who may call: anybody who knows the URL."""
    requestParameters: dict[str, bool] = Field(default_factory=dict)
    """Accepted; the header that `scar invoke -a` needs is always handed on."""


class ApiIntegration(Part):
    """`api_gateway.integration`: accepted as the documentation has it."""

    type: Literal["AWS_PROXY"] = "AWS_PROXY"
    integrationHttpMethod: Literal["POST"] = "POST"
    uri: str = ""
    """Accepted; it is always the function's."""
    requestParameters: dict[str, str] = Field(default_factory=dict)


class ApiGateway(Part):
    """`api_gateway`: an HTTP endpoint for the function, open to anybody who knows the URL."""

    name: Annotated[str, AfterValidator(_api_name)] | None = None
    """Name of the REST API; there is one where this is given."""
    boto_profile: str = "default"
    region: Region | None = None
    stage_name: Annotated[str, AfterValidator(_stage_name)] = "scar"
    http_method: Annotated[
        Literal["ANY", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"],
        BeforeValidator(_upper),
    ] = "ANY"
    path_part: Annotated[str, AfterValidator(_path_part)] = "{proxy+}"
    """One part of a path, such as `cow`, or `{proxy+}` for every path."""
    method: ApiMethod = ApiMethod()
    integration: ApiIntegration = ApiIntegration()
    parameters: dict[str, Annotated[str, BeforeValidator(_query_text)]] = Field(
        default_factory=dict
    )
    """Query parameters of `scar invoke -f`."""
    data_binary: str | None = None
    """File that `scar invoke -f` sends, relative to the FDL file."""
    json_data: Annotated[str, BeforeValidator(_json_text)] | None = None
    """JSON that `scar invoke -f` sends."""


class ComputeResources(Part):
    """`batch.compute_resources`."""

    type: Literal["EC2", "SPOT", "FARGATE", "FARGATE_SPOT"] = "EC2"
    desired_v_cpus: Annotated[Whole, Field(ge=0)] = 0
    min_v_cpus: Annotated[Whole, Field(ge=0)] = 0
    max_v_cpus: Annotated[Whole, Field(ge=1)] = 2
    instance_types: Annotated[tuple[str, ...], Field(min_length=1)] = ("optimal",)
    subnets: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    instance_role: str = "arn:aws:iam::{account_id}:instance-profile/ecsInstanceRole"


class Batch(Part):
    """`batch`: the job and the compute environment it runs on."""

    boto_profile: str = "default"
    region: Region | None = None
    vcpus: Annotated[int | float, BeforeValidator(_not_a_bool), Field(ge=0.25)] = 1
    """A whole number; on Fargate also 0.25 and 0.5."""
    memory: Annotated[Whole, Field(ge=4, json_schema_extra=_unit("MiB"))] = 1024
    """MiB."""
    timeout: Annotated[Whole, Field(ge=60, json_schema_extra=_unit("seconds"))] | None = None
    """Seconds that one attempt of a job may take; a job that is out of time is not retried."""
    retry: Annotated[Whole, Field(ge=0, le=9)] = 0
    """How often a job is run again after its script failed."""
    shared_memory: Annotated[Whole, Field(ge=1, json_schema_extra=_unit("MiB"))] | None = None
    """MiB of /dev/shm; not on Fargate."""
    ephemeral_storage: (
        Annotated[Whole, Field(ge=21, le=200, json_schema_extra=_unit("GiB"))] | None
    ) = None
    """GiB of disk, on Fargate only."""
    execution_role: Annotated[str, AfterValidator(_role)] = ""
    """ARN of the role that pulls the image and writes the log on Fargate; `iam.role` by default."""
    assign_public_ip: bool = False
    """On Fargate: a public address, which a subnet without NAT needs to pull the image."""
    enable_gpu: Annotated[int, BeforeValidator(_bool_as_count), Field(ge=0)] = 0
    """Number of GPUs; true is one."""
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
    api_gateway: ApiGateway = ApiGateway()
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
