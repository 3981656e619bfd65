"""What the CLI hands to the supervisor, and what the supervisor answers: one home for both ends.

The CLI writes a `FunctionConfig` into the image (`FUNCTION_DIR/config.json`, beside the script);
the supervisor reads it at start. Everything here is standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

FORMAT = 1
"""Raised when a supervisor of the old format could not read a config of the new one."""

SCAR_DIR = "/opt/scar"
"""Where the supervisor lives in a derived image; nothing of the user's image is there."""

FUNCTION_DIR = f"{SCAR_DIR}/function"
"""Where the config, the script and the extra payload of one function live in its image."""

FUNCTION_DIR_VARIABLE = "SCAR_FUNCTION_DIR"
"""Says where FUNCTION_DIR is when it is elsewhere (image `host`). Not passed on to the script."""

CONFIG_NAME = "config.json"
SCRIPT_NAME = "script"
EXTRA_PAYLOAD_NAME = "extra"

EVENT_VARIABLE = "SCAR_EVENT"
"""In a Batch job: the delegated event as JSON. Not passed on to the script."""

EVENT_REFERENCE = "scar_event_reference"
"""Key of an event that stands for another one: a `Reference` as text."""

BODY_REFERENCE_HEADER = "scar-body-reference"
"""Header of a request to a function's HTTP endpoint: where its body is (a `Reference`)."""

FORCE = "scar_force"
"""Key of an event: true repeats what was done already for its objects."""

ARRAY_VARIABLE = "SCAR_ARRAY"
"""In the jobs of a bulk run: `s3://bucket/key#width=<bytes>` of the manifest.

A manifest has one event a line, padded so that every line has `width` bytes: the child of an array
reads its own, that of AWS_BATCH_JOB_ARRAY_INDEX, and no other. What all have in common (a script, a
command) is in EVENT_VARIABLE. Not passed on to the script.
"""

INLINE_EVENT_LIMIT_BYTES = 2048
"""Events up to this size travel in the job's overrides.

ECS allows 8,192 characters for all overrides of a task, JSON included; Batch accepts a larger job
and it dies later. (ECS RunTask, `overrides`.)
"""

REQUEST_ID_VARIABLE = "AWS_LAMBDA_REQUEST_ID"
"""The request id of the invocation; a delegated job gets that of the Lambda which submitted it."""

JOB_ID_HEADER = "scar-batch-job-id"
"""In the headers of an `Answer`: the Batch job that the event was delegated to."""

PYTHON_COMMAND = (
    f"{SCAR_DIR}/lib/ld.so",
    *("--inhibit-cache", "--library-path", f"{SCAR_DIR}/lib"),
    *("--argv0", f"{SCAR_DIR}/bin/python3", f"{SCAR_DIR}/bin/python3"),
    *("-I", "-S", "-B", "-X", "utf8"),
)
"""The Python of a derived image, by its own loader: the image's libc and locale play no part."""

APP_DIR = f"{SCAR_DIR}/app"
"""What PYTHON_COMMAND runs in a derived image: the supervisor's package and its start."""

NODE_COUNT_VARIABLE = "AWS_BATCH_JOB_NUM_NODES"
"""Set by Batch on the nodes of multi-node parallel jobs."""

MNP_SECRET_VARIABLE = "SCAR_MNP_SECRET"
"""In a multi-node job's overrides: made for each job, known to its nodes only."""

EXIT_NOT_JOINED = 111
"""Exit code of a multi-node job whose nodes did not all come in time."""

EXIT_NODE_LOST = 112
"""Exit code of a multi-node job that lost a node, or whose node did not see the job's end."""

EXIT_MAIN_LOST = 113
"""Exit code of a child node whose main node went away."""

EXIT_SECRET = 114
"""Exit code of a node that has no secret, or another one than the main node."""

ASYNCHRONOUS_ATTEMPTS = 3
"""Lambda tries an asynchronous invocation again twice (Lambda developer guide, "Asynchronous
invocation"); the request id stays the same."""

EXIT_STAGING = 120
"""Exit code of a Batch job whose input or output could not be copied."""

EXIT_CONFIG = 121
"""Exit code of a Batch job whose config or event cannot be read."""

ExecutionMode = Literal["lambda", "lambda-batch", "batch"]


@dataclass(frozen=True)
class ObjectPath:
    """A bucket and a prefix in it, as an input or output of the FDL names them.

    `prefix` has no slash at either end and is empty for the whole bucket. `name_prefixes` and
    `name_suffixes` filter file names; an empty tuple lets every name pass.
    """

    provider: str
    bucket: str
    prefix: str = ""
    name_prefixes: tuple[str, ...] = ()
    name_suffixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageDefaults:
    """What the user's own image says about running it; the derived image's entrypoint is ours.

    `environment` holds the image's variables that would change our own loader and interpreter
    (LD_*, PYTHON*, …): the derived image does not set them, the supervisor gives them to the
    script.
    """

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StorageProvider:
    """A storage that is not the account's own S3: where it is, and whose credentials open it."""

    secret: str
    """Name in Secrets Manager; its value is a JSON object with the keys of the FDL."""
    endpoint: str = ""
    """Address of the server; empty: AWS's own."""
    region: str = ""
    """Empty: the function's, or us-east-1 where `endpoint` is given."""
    verify: bool = True
    """Whether the server's certificate is checked."""


@dataclass(frozen=True)
class Burst:
    """`batch.coalesce`: events that come within `window_s` become one array job."""

    window_s: int
    max_events: int
    """At so many it is submitted before the window ends."""


@dataclass(frozen=True)
class FunctionConfig:
    """All that the supervisor needs to know about one function."""

    name: str
    execution_mode: ExecutionMode = "lambda"
    timeout_threshold_s: int = 10
    """Seconds kept back from the invocation's time for staging out or delegating."""
    log_level: str = "INFO"
    has_script: bool = False
    """Whether FUNCTION_DIR/script exists."""
    has_extra_payload: bool = False
    """Whether FUNCTION_DIR/extra exists; its path is given to the script as EXTRA_PAYLOAD."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """`container.environment.Variables`: for the script, in every mode."""
    batch_environment: Mapping[str, str] = field(default_factory=dict)
    """`batch.environment.Variables`: for the script in Batch jobs; `environment` wins."""
    inputs: tuple[ObjectPath, ...] = ()
    outputs: tuple[ObjectPath, ...] = ()
    stages_in: bool = True
    """False: the input object is not downloaded (the reference's `file_stage_in: true`)."""
    job_queue: str = ""
    """Name of the queue for delegated events; empty in mode `lambda`."""
    job_definition: str = ""
    """Name (no revision: the latest active one) for delegated events; empty in mode `lambda`."""
    job_attempts: int = 1
    """How often Batch tries a job whose script fails."""
    burst: Burst | None = None
    """How events become one array job; None: each is a job of its own."""
    deployment_bucket: str = ""
    """Bucket for what SCAR itself keeps: records.py."""
    is_multi_node: bool = False
    """Whether its jobs have several nodes: they need a secret of their own."""
    image: ImageDefaults = field(default_factory=ImageDefaults)
    providers: Mapping[str, StorageProvider] = field(default_factory=dict)
    """By the names that inputs and outputs have for them, such as `minio.mine`."""
    image_digest: str = ""
    """Digest of the image that the function's own was derived from."""
    script_sha256: str = ""
    """Of the script; empty where there is none."""
    payload_sha256: str = ""
    """Of the extra payload's names and contents; empty where there is none."""

    @cached_property
    def version(self) -> str:
        """Names what the function does: another script, image or config is another version."""
        import hashlib  # OpenSSL's library takes time to load, and many events need none of it

        return hashlib.sha256(self.dump().encode()).hexdigest()[:16]

    def dump(self) -> str:
        """The config as JSON text, the same text for the same config."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, indent=1) + "\n"


def load_config(text: str) -> FunctionConfig:
    """The config that `dump` wrote.

    Raises ValueError where the text is not a config of this format.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        if data.pop("format") != FORMAT:
            raise ValueError(f"function config has another format than {FORMAT}")
        for key in ("inputs", "outputs"):
            data[key] = tuple(_object_path(path) for path in data[key])
        image = data["image"]
        data["image"] = ImageDefaults(
            tuple(image["entrypoint"]), tuple(image["command"]), image["environment"]
        )
        data["providers"] = {n: StorageProvider(**its) for n, its in data["providers"].items()}
        if data["burst"] is not None:
            data["burst"] = Burst(**data["burst"])
        return FunctionConfig(**data)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"not a function config: {exc!r}") from exc


def _object_path(data: dict[str, Any]) -> ObjectPath:
    lists = {k: tuple(v) for k, v in data.items() if isinstance(v, list)}
    return ObjectPath(**{**data, **lists})
