"""The Functions Definition Language: every key, its unit, its bounds and its default.

Keys of the reference implementation that are ignored or not there yet are in `load.py`; what no
single key can say (a rule across keys) is in `rules.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic.fields import FieldInfo

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


def _plain_number(value: float) -> float:
    return int(value) if value == int(value) else value


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


def _object_path(value: str, info: ValidationInfo) -> str:
    if str(info.data.get("storage_provider")).partition(".")[0] == "webdav":
        return _folder(value)
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


def _folder(value: str) -> str:
    parts = value.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\\]", value):
        raise ValueError(f"must be a folder such as `results/today`, got `{value}`")
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


_ACCOUNT = r"(\d{12}|\{account_id\})"
_SECRET_ARN = re.compile(
    rf"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:{_ACCOUNT}:secret:[\w/+=.@!-]+(:[^:]*:[^:]*:[^:]*)?"
)
_PARAMETER_ARN = re.compile(rf"arn:aws[a-z-]*:ssm:[a-z0-9-]+:{_ACCOUNT}:parameter/[\w./-]+")


def _value_from(value: str) -> str:
    """What Batch's `valueFrom` may be (Batch user guide, "Specifying sensitive data")."""
    is_name = re.fullmatch(r"[\w./-]{1,2048}", value)
    if not (is_name or _SECRET_ARN.fullmatch(value) or _PARAMETER_ARN.fullmatch(value)):
        # What stands here by mistake may be the secret itself.
        raise ValueError(
            "must be the ARN of a secret, `arn:aws:secretsmanager:…:secret:name-a1b2c3`, the same "
            "with `:json-key:stage:id` after it, or the ARN or name of an SSM parameter"
        )
    return value


def _endpoint(value: str) -> str:
    # It travels in the image: what stands before an `@` is a password. Nor is it shown.
    if not re.fullmatch(r"(https?://)?[^\s/?#@:]+(:\d+)?(/[^\s?#@]*)?", value):
        raise ValueError(
            "must be an address such as `https://minio.example.org`, without a name and password"
        )
    return value


def _webdav_host(value: str) -> str:
    address = _endpoint(value)
    if re.match(r"http://(?!(localhost|127\.0\.0\.1)[:/]|(localhost|127\.0\.0\.1)$)", address):
        raise ValueError("must be https: the password would travel for anybody to read")
    return address


Whole = Annotated[int, BeforeValidator(_not_a_bool)]
Region = Annotated[str, AfterValidator(_region)]


def _unit(unit: str, above: str = "") -> dict[str, Any]:
    """`above`: what to do where more is needed."""
    return {"unit": unit, "above": above} if above else {"unit": unit}


def _means(words: str) -> dict[str, Any]:
    """What a value that must match a pattern is, for people."""
    return {"means": words}


def _provider(value: str) -> str:
    kind, dot, name = value.partition(".")
    kind = kind.lower()
    return kind if name == "default" else f"{kind}{dot}{name}"


class Part(BaseModel):
    """A mapping of the language: unknown keys are faults, values never change after loading."""

    # Built once, for the whole deployment: a validator for each part takes most of a start.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)


class Variables(Part):
    """Environment variables. Values are text as written."""

    Variables: dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], str] = Field(
        default_factory=dict, json_schema_extra=_means("a variable's name, without `=`")
    )


class LambdaVariables(Part):
    """Environment variables of the Lambda function itself; Lambda restricts their names."""

    Variables: dict[Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_]+$")], str] = Field(
        default_factory=dict,
        json_schema_extra=_means(
            "named with letters, digits and `_`, a letter first and at least two"
        ),
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
    environment: Variables = Variables.model_construct()
    """Variables of the script, wherever it runs."""


class ObjectPathPart(Part):
    """One item of `lambda.input` or `lambda.output`."""

    storage_provider: Annotated[str, AfterValidator(_provider)] = "s3"
    """`s3`: the account's own buckets; or a kind and id of `storage_providers`: `minio.mine`."""
    path: Annotated[str, AfterValidator(_object_path)]
    """`bucket` or `bucket/prefix`; of a WebDAV server a folder."""
    prefix: tuple[str, ...] = ()
    """Only files whose name starts with one of these."""
    suffix: tuple[str, ...] = ()
    """Only files whose name ends with one of these."""


class DeploymentPart(Part):
    """`lambda.deployment`."""

    bucket: Annotated[str, AfterValidator(_bucket)] | None = None
    """Bucket for what does not travel inline and what is kept of the work; `init` creates it. By
    default `scar-<account>-<region>`."""


class Vpc(Part):
    """`lambda.vpc`: the network the function is in."""

    SubnetIds: Annotated[
        tuple[Annotated[str, Field(pattern=r"^subnet-[0-9a-z]+$")], ...],
        Field(max_length=16, json_schema_extra=_means("an id such as `subnet-0a1b2c3d`")),
    ] = ()
    SecurityGroupIds: Annotated[
        tuple[Annotated[str, Field(pattern=r"^sg-[0-9a-zA-Z]+$")], ...],
        Field(max_length=5, json_schema_extra=_means("an id such as `sg-0a1b2c3d`")),
    ] = ()


class FileSystem(Part):
    """One item of `lambda.file_system`: an EFS access point and where the script sees it."""

    Arn: Annotated[
        str,
        Field(
            pattern=r"^arn:aws[a-zA-Z-]*:(elasticfilesystem|s3files):[a-z0-9-]+:\d{12}:"
            r"(access-point|file-system)/\S+$",
            max_length=256,
            json_schema_extra=_means("the ARN of an access point of EFS"),
        ),
    ]
    LocalMountPath: Annotated[
        str,
        Field(
            pattern=r"^/mnt/[a-zA-Z0-9._-]+$",
            max_length=160,
            json_schema_extra=_means("a folder right below `/mnt/`, such as `/mnt/data`"),
        ),
    ]


class Lambda(Part):
    """`lambda`: the function itself."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,64}$",
            json_schema_extra=_means("1 to 64 letters, digits, `-` or `_`"),
        ),
    ]
    """Name of the function; in an account and region no two functions share it."""
    boto_profile: str = "default"
    """Profile of the AWS credentials. `default` means AWS's own order: `AWS_PROFILE` first."""
    region: Region | None = None
    """Where the function and all that belongs to it is; not set: AWS's own order."""
    memory: Annotated[
        Whole,
        Field(
            ge=128,
            le=10240,
            json_schema_extra=_unit(
                "MB", "a job may have more: `execution_mode: batch` and `batch.memory`"
            ),
        ),
    ] = 512
    """MB; the share of CPU grows with it."""
    timeout: Annotated[
        Whole,
        Field(
            ge=1,
            le=900,
            json_schema_extra=_unit("seconds", "a job may take longer: `execution_mode: batch`"),
        ),
    ] = 300
    """Seconds that one invocation may take."""
    ephemeral_storage: Annotated[
        Whole,
        Field(
            ge=512,
            le=10240,
            json_schema_extra=_unit("MB", "a job has its machine's disk: `execution_mode: batch`"),
        ),
    ] = 512
    """MB of /tmp."""
    execution_mode: Literal["lambda", "lambda-batch", "batch"] = "lambda"
    """Where the script runs: in the function; there, then in a job if time runs out; in a job."""
    description: Annotated[
        str, Field(max_length=256, json_schema_extra=_means("shorter: at most 256 characters"))
    ] = ""
    """What the function does, for people."""
    log_level: Annotated[
        Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"], BeforeValidator(_upper)
    ] = "INFO"
    """How much the supervisor writes to the log."""
    architectures: Annotated[
        tuple[Literal["x86_64", "arm64"], ...], Field(min_length=1, max_length=1)
    ] = ("x86_64",)
    """The processor the image is for."""
    environment: LambdaVariables = LambdaVariables.model_construct()
    """Lambda's own environment, at most 4 KB; `container.environment` has no limit."""
    init_script: str | None = None
    """Script of every invocation, relative to the FDL file."""
    run_script: str | None = None
    """Script of `scar run -f`, relative to the FDL file."""
    extra_payload: str | None = None
    """File or folder added to the image; its path is in $EXTRA_PAYLOAD."""
    preheat: bool = False
    """Invoke the function once after deploying, so that the next start is a warm one."""
    asynchronous: bool = False
    """`scar run -f` does not wait for the output."""
    file_stage_in: bool = False
    """True: do not download the input (the reference implementation's meaning of the key)."""
    container: Container = Container.model_construct()
    input: tuple[ObjectPathPart, ...] = ()
    """Where new objects trigger the function."""
    output: tuple[ObjectPathPart, ...] = ()
    """Where the files that the script leaves in $TMP_OUTPUT_DIR go."""
    deployment: DeploymentPart = DeploymentPart.model_construct()
    vpc: Vpc = Vpc.model_construct()
    """On AWS; the local cloud keeps it without effect."""
    file_system: Annotated[tuple[FileSystem, ...], Field(max_length=1)] = ()
    """A file system of EFS for the function, on AWS; needs `vpc`."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of the function, beside those that SCAR sets; at most 40."""


class Iam(Part):
    """`iam`."""

    boto_profile: str = "default"
    """Accepted; the credentials are those of `lambda.boto_profile`."""
    role: Annotated[str, AfterValidator(_role)] = ""
    """ARN of a role of yours for the function and its jobs; `{account_id}` is filled in. Empty:
    SCAR makes roles that allow what the function needs, and nothing else."""


class Ecr(Part):
    """`ecr`."""

    delete_image: bool = True
    """`scar rm` deletes the function's images too."""


class CloudWatch(Part):
    """`cloudwatch`."""

    boto_profile: str = "default"
    """Accepted; the credentials are those of `lambda.boto_profile`."""
    region: Region | None = None
    """Accepted; all that belongs to a function is in `lambda.region`."""
    log_retention_policy_in_days: Annotated[
        Whole,
        AfterValidator(_retention),
        Field(json_schema_extra=_means("a number of days that CloudWatch Logs knows")),
    ] = 30
    """Days that the logs of the function and its jobs are kept, 1 to 3653."""


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
    """Accepted; the credentials are those of `lambda.boto_profile`."""
    region: Region | None = None
    """Accepted; all that belongs to a function is in `lambda.region`."""
    stage_name: Annotated[str, AfterValidator(_stage_name)] = "scar"
    http_method: Annotated[
        Literal["ANY", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"],
        BeforeValidator(_upper),
    ] = "ANY"
    path_part: Annotated[str, AfterValidator(_path_part)] = "{proxy+}"
    """One part of a path, such as `cow`, or `{proxy+}` for every path."""
    method: ApiMethod = ApiMethod.model_construct()
    integration: ApiIntegration = ApiIntegration.model_construct()
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
    """What the jobs run on."""
    desired_v_cpus: Annotated[Whole, Field(ge=0)] = 0
    """vCPUs to start with."""
    min_v_cpus: Annotated[Whole, Field(ge=0)] = 0
    """vCPUs kept running, and paid, when there is no job."""
    max_v_cpus: Annotated[Whole, Field(ge=1)] | None = None
    """vCPUs at most, of all jobs together; not set: 2, or what one job needs where that is more."""
    instance_types: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")], ...],
        Field(
            min_length=1,
            json_schema_extra=_means(
                "a type such as `c7i.large`, a family such as `c7i`, `optimal`"
            ),
        ),
    ] = ("optimal",)
    """What instances may be started; `optimal` is Batch's choice for x86_64."""
    subnets: Annotated[
        tuple[Annotated[str, Field(pattern=r"^subnet-[0-9A-Za-z-]+$")], ...],
        Field(json_schema_extra=_means("an id such as `subnet-0a1b2c3d`")),
    ] = ()
    """Needed on AWS in the modes `batch` and `lambda-batch`."""
    security_group_ids: Annotated[
        tuple[Annotated[str, Field(pattern=r"^sg-[0-9A-Za-z-]+$")], ...],
        Field(json_schema_extra=_means("an id such as `sg-0a1b2c3d`")),
    ] = ()
    """Needed on AWS in the modes `batch` and `lambda-batch`."""
    instance_role: str = "arn:aws:iam::{account_id}:instance-profile/ecsInstanceRole"
    """Instance profile of the instances. `{account_id}` is filled in."""


class MultiNodeParallel(Part):
    """`batch.multi_node_parallel`: a job on several instances at once, for MPI and its like."""

    enabled: bool = False
    """Also written `enable`."""
    number_nodes: Annotated[Whole, Field(ge=1, le=1000)] = 10
    """Nodes of a job, each with `batch.vcpus` and `batch.memory`."""
    main_node_index: Annotated[Whole, Field(ge=0)] = 0
    """The node that runs the script; its end is the job's."""


class Coalesce(Part):
    """`batch.coalesce`: many uploads in a short time become one array job."""

    window_s: Annotated[Whole, Field(ge=1, le=600, json_schema_extra=_unit("seconds"))] = 10
    """Seconds to wait for more events after the first."""
    max_events: Annotated[Whole, Field(ge=2, le=10000)] = 10000
    """At so many the job is submitted at once; an array has at most 10,000 children."""


class Batch(Part):
    """`batch`: the job and the compute environment it runs on."""

    boto_profile: str = "default"
    """Accepted; the credentials are those of `lambda.boto_profile`."""
    region: Region | None = None
    """Accepted; all that belongs to a function is in `lambda.region`."""
    vcpus: Annotated[
        float,
        BeforeValidator(_not_a_bool),
        Field(ge=0.25, allow_inf_nan=False),
        AfterValidator(_plain_number),
    ] = 1
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
    """ARN of the role that pulls the image and writes the log on Fargate, and that reads `secrets`;
    else as `iam.role`."""
    assign_public_ip: bool = False
    """On Fargate: a public address, which a subnet without NAT needs to pull the image."""
    enable_gpu: Annotated[int, BeforeValidator(_bool_as_count), Field(ge=0)] = 0
    """Number of GPUs; true is one."""
    state: Literal["ENABLED", "DISABLED"] = "ENABLED"
    """Of compute environment and queue; `DISABLED` takes no new jobs."""
    type: Literal["MANAGED"] = "MANAGED"
    """Who starts the machines: Batch."""
    service_role: str = ""
    """ARN of the role that Batch acts with; empty is best: Batch's service-linked role."""
    environment: Variables = Variables.model_construct()
    """Variables of jobs only; `container.environment` wins where both have one."""
    secrets: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")],
        Annotated[str, AfterValidator(_value_from)],
    ] = Field(default_factory=dict, json_schema_extra=_means("named with letters, digits and `_`"))
    """Variables of jobs whose values are secrets: ARNs of Secrets Manager, or SSM parameters."""
    compute_resources: ComputeResources = ComputeResources.model_construct()
    multi_node_parallel: MultiNodeParallel = MultiNodeParallel.model_construct()
    coalesce: Coalesce | None = None
    """Not set: every upload is a job of its own."""

    @property
    def max_v_cpus(self) -> int:
        """vCPUs of all jobs together: as given, else enough for one job."""
        its, nodes = self.compute_resources, self.multi_node_parallel
        if its.max_v_cpus is not None:
            return its.max_v_cpus
        one_job = self.vcpus * (nodes.number_nodes if nodes.enabled else 1)
        return max(2, math.ceil(one_job), its.min_v_cpus, its.desired_v_cpus)


class AwsFunction(Part):
    """One item of `functions.aws`."""

    lambda_: Lambda = Field(alias="lambda")
    iam: Iam = Iam.model_construct()
    ecr: Ecr = Ecr.model_construct()
    cloudwatch: CloudWatch = CloudWatch.model_construct()
    api_gateway: ApiGateway = ApiGateway.model_construct()
    batch: Batch = Batch.model_construct()


class Functions(Part):
    """`functions`."""

    aws: tuple[AwsFunction, ...] = ()


class Settings(Part):
    """`scar`: settings of the command itself."""

    config_version: str = ""
    """Of scar.cfg."""
    target: Literal["aws", "local"] = "aws"
    """Where commands go; `--local` and `SCAR_TARGET` say it too."""


ProviderId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@+=-]{1,64}$")]
"""A part of a secret's name (Secrets Manager API, CreateSecret)."""

_LOGIN = _means("not empty, and without `:`")
_ID = _means("named with at most 64 letters, digits and `_.@+=-`")


class S3Provider(Part):
    """`storage_providers.s3.<id>`: buckets of another account."""

    access_key: Annotated[str, Field(min_length=1, json_schema_extra=_means("not empty"))]
    secret_key: Annotated[str, Field(min_length=1, json_schema_extra=_means("not empty"))]
    region: Region | None = None


class MinioProvider(Part):
    """`storage_providers.minio.<id>`: a MinIO server, or another one that speaks S3."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] = "http://minio-service.minio:9000"
    """Address of the server; without `http://` it is https."""
    verify: bool = True
    """Check the server's certificate."""
    region: str | None = None
    access_key: Annotated[str, Field(min_length=1, json_schema_extra=_means("not empty"))]
    secret_key: Annotated[str, Field(min_length=1, json_schema_extra=_means("not empty"))]


class OnedataProvider(Part):
    """`storage_providers.onedata.<id>`: a space of Onedata."""

    oneprovider_host: str
    token: str
    space: str


class WebdavProvider(Part):
    """`storage_providers.webdav.<id>`: a folder of a WebDAV server."""

    hostname: Annotated[str, AfterValidator(_webdav_host)]
    """Address of the server or of a folder of it: `dav.example.org/files/me`; https."""
    login: Annotated[str, Field(pattern=r"^[^:\x00-\x1f]+$", json_schema_extra=_LOGIN)]
    password: Annotated[str, Field(min_length=1, json_schema_extra=_means("not empty"))]


class StorageProviders(Part):
    """`storage_providers`: where files may be besides the account's own buckets, by kind and id.

    Their credentials go to AWS Secrets Manager, and nowhere else.
    """

    s3: dict[ProviderId, S3Provider] = Field(default_factory=dict, json_schema_extra=_ID)
    minio: dict[ProviderId, MinioProvider] = Field(default_factory=dict, json_schema_extra=_ID)
    onedata: dict[ProviderId, OnedataProvider] = Field(default_factory=dict, json_schema_extra=_ID)
    webdav: dict[ProviderId, WebdavProvider] = Field(default_factory=dict, json_schema_extra=_ID)

    def of(self, name: str) -> S3Provider | MinioProvider | OnedataProvider | WebdavProvider:
        """The provider that an input or output calls `name`; `minio` is `minio.default`."""
        kind, _, its_id = name.partition(".")
        by_id: Mapping[str, Any] = getattr(self, kind)
        found: S3Provider | MinioProvider | OnedataProvider | WebdavProvider
        found = by_id[its_id or "default"]
        return found

    def defined(self) -> frozenset[str]:
        """Every provider as an input or output names it: `minio.mine`."""
        return self.names(dict(self))

    @staticmethod
    def names(kinds: Mapping[str, Any]) -> frozenset[str]:
        """The same of plain data, whether it is well-formed or not."""
        return frozenset(
            f"{kind}.{name}" for kind, ids in kinds.items() if isinstance(ids, dict) for name in ids
        )


class Deployment(Part):
    """All that one FDL file asks for, complete and valid."""

    functions: Functions = Functions.model_construct()
    storage_providers: StorageProviders = StorageProviders.model_construct()
    scar: Settings = Settings.model_construct()


def bounded(field: FieldInfo) -> FieldInfo:
    """What says the bounds: of `Annotated[int, Field(…)] | None` the annotated part."""
    for part in get_args(field.annotation):
        for data in getattr(part, "__metadata__", ()):
            if isinstance(data, FieldInfo) and not field.json_schema_extra:
                return FieldInfo.from_annotation(part)
    return field
