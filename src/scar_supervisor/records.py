"""What SCAR keeps in a deployment bucket: keys and formats, for the CLI and the supervisor.

Bodies too large to travel, who works on an object and what was done for it, events that failed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import quote, unquote

from scar_supervisor.contract import EVENT_REFERENCE

STATE_PREFIX = ".scar/"
"""Keys of ours in the deployment bucket: never an input."""

EVENTS_PREFIX = f"{STATE_PREFIX}events/"


@dataclass(frozen=True)
class Reference:
    """Where something lies that is too large to travel; its key names function and content."""

    bucket: str
    key: str
    sha256: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}#sha256={self.sha256}"

    @classmethod
    def to(cls, data: bytes, bucket: str, function: str) -> Reference:
        """Where `data` for a function is kept in its deployment bucket, once it is stored."""
        return cls.of(hashlib.sha256(data).hexdigest(), bucket, function)

    @classmethod
    def of(cls, sha256: str, bucket: str, function: str) -> Reference:
        """The same, by the content's hash."""
        return cls(bucket, f"{EVENTS_PREFIX}{function}/{sha256}", sha256)

    @classmethod
    def parse(cls, text: str, bucket: str, function: str) -> Reference:
        """The reference that `str(reference)` wrote.

        Raises ValueError where it is none, or leads anywhere but to what `to` names.
        """
        sha256 = text.rpartition("#sha256=")[2]
        reference = cls.of(sha256, bucket, function)
        if len(sha256) != 64 or not sha256.isalnum() or str(reference) != text:
            place = f"s3://{bucket}/{EVENTS_PREFIX}{function}"
            raise ValueError(f"`{text}` is not {place}/<hex>#sha256=<hex>")
        return reference


def to_send(
    event: bytes, limit_bytes: int, bucket: str, function: str
) -> tuple[bytes, Reference | None]:
    """What is sent of an event: itself where it fits, else a reference, and what that is.

    The one place where it is decided; who sends must store the event at the reference first.
    """
    if len(event) <= limit_bytes:
        return event, None
    reference = Reference.to(event, bucket, function)
    return json.dumps({EVENT_REFERENCE: str(reference)}).encode(), reference


def manifest(events: Sequence[Any]) -> tuple[bytes, int]:
    """Events as lines of one width, and that: every child of an array finds its own."""
    rows = [json.dumps(event, separators=(",", ":")).encode() for event in events]
    width = max(map(len, rows)) + 1
    return b"".join(row.ljust(width - 1) + b"\n" for row in rows), width


def manifest_key(data: bytes, function: str) -> str:
    """Where a manifest is kept; contract.ARRAY_VARIABLE leads to it."""
    return f"{STATE_PREFIX}arrays/{function}/{hashlib.sha256(data).hexdigest()}.jsonl"


def object_id(bucket: str, key: str, version: str) -> str:
    """Names one version of an object; `version` is its version id, else its ETag unquoted."""
    return hashlib.sha256(f"{bucket}\0{key}\0{version}".encode()).hexdigest()[:32]


def work_version(function_version: str, event: Mapping[str, Any]) -> str:
    """Names what is done for an event: a script or command of its own is another work."""
    own = [event.get("script"), event.get("cmd_args")]
    if own == [None, None]:
        return function_version
    return hashlib.sha256(json.dumps([function_version, *own]).encode()).hexdigest()[:16]


def claim_key(function: str, object_id: str) -> str:
    """Who works on an object's version, or did: a JSON object, written conditionally."""
    return f"{STATE_PREFIX}claims/{function}/{object_id}"


def done_prefix(function: str, version: str) -> str:
    """Where what a version of a function has done is kept: one `Done` an object, by its id."""
    return f"{STATE_PREFIX}done/{function}/{version}/"


def failed_prefix(function: str) -> str:
    """Where events of a function that failed for good are kept: one `Failed` each, by its run."""
    return f"{STATE_PREFIX}failed/{function}/"


def retried_prefix(function: str) -> str:
    """Jobs whose events were accepted again: Batch tells of them as failed for some days yet."""
    return f"{STATE_PREFIX}retried/{function}/"


def route_key(function: str) -> str:
    """The smallest input of a function that ran out of time on Lambda."""
    return f"{STATE_PREFIX}routes/{function}.json"


def bursts_prefix(function: str) -> str:
    """Events that wait to become an array job, and who will submit it."""
    return f"{STATE_PREFIX}bursts/{function}/"


def waiting_prefix(function: str) -> str:
    """The events that wait, one object each."""
    return f"{bursts_prefix(function)}waiting/"


def lead_key(function: str) -> str:
    """Who will submit them; a JSON object with `owner` and `until_ms`."""
    return f"{bursts_prefix(function)}lead.json"


@dataclass(frozen=True)
class Failed:
    """An event that failed for good, and why."""

    function: str
    kind: Literal["invocation", "job"]
    run_id: str
    """The request id, or the job's (`job:index` of an array's child)."""
    event: str
    """As it arrived."""
    error_type: str
    reason: str
    exit_code: int | None
    log_tail: str
    attempts: int
    time: str
    """UTC, ISO 8601."""

    @property
    def key(self) -> str:
        """Where it is kept in the deployment bucket."""
        return f"{failed_prefix(self.function)}{quote(self.run_id, safe='')}.json"

    def dump(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, text: str) -> Failed:
        """What `dump` wrote. Raises ValueError where it is not that."""
        try:
            return cls(**json.loads(text))
        except (TypeError, KeyError) as exc:
            raise ValueError(f"not a failed event: {exc}") from exc


RECORD = "scar-record"
"""Metadata that names function, its version, and the object and version that an output is of."""


def instant(epoch_s: float) -> str:
    """How records write a time: UTC, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_s))


LINEAGE_LIMIT_BYTES = 2048
"""Of an object's user metadata, names and values together (S3 user guide, "Object metadata")."""


@dataclass(frozen=True)
class Lineage:
    """What an output was made by, and of; kept as the object's metadata."""

    function: str
    version: str
    run: str
    """`invocation:<request id>` or `job:<job id>`."""
    duration_ms: int
    image: str = ""
    """Digest of the user's image."""
    script: str = ""
    """sha256 of the script that ran; empty where it was the image's own program."""
    record: str = ""
    """Key of the `Done` in the deployment bucket; empty where the event had no object."""
    bucket: str = ""
    """Deployment bucket, where there is a record."""
    input: str = ""
    """`s3://bucket/key`; empty without an object, or where it is too long (the record has it)."""
    input_version: str = ""
    """`version:<id>` or `etag:<etag>`."""

    def metadata(self) -> dict[str, str]:
        """Names without `x-amz-meta-`, and values, in ASCII and within S3's limit."""
        given = {
            f"scar-{name.replace('_', '-')}": quote(str(value), safe="/:")
            for name, value in asdict(self).items()
            if value != ""
        }
        if sum(len(name) + len(value) for name, value in given.items()) > LINEAGE_LIMIT_BYTES:
            del given["scar-input"]
        return given

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Lineage | None:
        """What an object's metadata says; None for an object that no function made."""
        names = ((f"scar-{name.replace('_', '-')}", name) for name in cls.__annotations__)
        found: dict[str, Any] = {n: unquote(metadata[k]) for k, n in names if k in metadata}
        try:
            found["duration_ms"] = int(found.get("duration_ms", ""))
            return cls(**found)
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Done:
    """What a function has done for one version of an object."""

    lineage: Lineage
    input: str
    size: int | None
    sequencer: str
    outputs: tuple[str, ...]
    """`s3://bucket/key` of each, the first OUTPUTS_LISTED of them."""
    outputs_count: int
    time: str
    """UTC, ISO 8601."""

    def dump(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, text: str) -> Done:
        """What `dump` wrote. Raises ValueError where it is not that."""
        try:
            data = json.loads(text)
            lineage = Lineage(**data.pop("lineage"))
            return cls(lineage=lineage, outputs=tuple(data.pop("outputs")), **data)
        except (TypeError, KeyError, AttributeError) as exc:
            raise ValueError(f"not a record of what was done: {exc}") from exc


OUTPUTS_LISTED = 1000
"""Outputs that a `Done` names."""
