"""Base image + layers -> image, as bytes of a config and a manifest. Pure: nothing is fetched.

The base's layers stay as they are, digests and all; ours come on top, and the entrypoint becomes
the supervisor's. What the base said about running it is remembered for the supervisor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scar.errors import ImageError
from scar.images.streams import Packing
from scar_supervisor.contract import APP_DIR, PYTHON_COMMAND, ImageDefaults

ENTRYPOINT = (*PYTHON_COMMAND, APP_DIR)
"""The supervisor's own loader and Python: the image's libc and locale play no part."""

HOST_LABEL = "scar.host"
"""On images of the local cloud that run on this machine's own file system."""

SUPERVISOR_LABEL = "scar.supervisor"

OCI_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
"""Lambda's words to OCI's."""

Family = Literal["oci", "docker"]

_OCI, _DOCKER = "application/vnd.oci.image.", "application/vnd.docker."
MANIFEST_TYPES: Mapping[Family, str] = {
    "oci": f"{_OCI}manifest.v1+json",
    "docker": f"{_DOCKER}distribution.manifest.v2+json",
}
CONFIG_TYPES: Mapping[Family, str] = {
    "oci": f"{_OCI}config.v1+json",
    "docker": f"{_DOCKER}container.image.v1+json",
}
LAYER_TYPES: Mapping[Family, str] = {
    "oci": f"{_OCI}layer.v1.tar+gzip",
    "docker": f"{_DOCKER}image.rootfs.diff.tar.gzip",
}
INDEX_TYPES = (f"{_OCI}index.v1+json", f"{_DOCKER}distribution.manifest.list.v2+json")
LAYER_PACKINGS: Mapping[str, Packing] = {
    LAYER_TYPES["oci"]: "gzip",
    LAYER_TYPES["docker"]: "gzip",
    f"{_OCI}layer.v1.tar+zstd": "zstd",
    f"{_DOCKER}image.rootfs.diff.tar.zstd": "zstd",
    f"{_OCI}layer.v1.tar": "none",
    f"{_DOCKER}image.rootfs.diff.tar": "none",
}
"""What layers may be where they come from."""

_LOADER_PREFIXES = ("LD_", "PYTHON")
_LOADER_NAMES = ("GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH")


@dataclass(frozen=True)
class Blob:
    """A blob of a registry, by content."""

    digest: str
    size_bytes: int
    packing: Packing = "gzip"
    """How a layer is compressed where it comes from; what we push is gzip."""


@dataclass(frozen=True)
class Base:
    """The user's image, as far as deriving needs it."""

    digest: str
    """Of its manifest: changes when anything in the image does."""
    family: Family
    config: Mapping[str, Any]
    layers: tuple[Blob, ...]


@dataclass(frozen=True)
class Layer:
    """A layer of ours: a gzip tar in a file."""

    blob: Blob
    diff_id: str
    """Digest of the tar before compression."""
    path: Path


@dataclass(frozen=True)
class Derived:
    """An image ready to be pushed."""

    config: bytes
    manifest: bytes
    media_type: str
    """Of the manifest."""
    base_blobs: tuple[Blob, ...]
    layers: tuple[Layer, ...]
    """Ours."""

    @property
    def config_blob(self) -> Blob:
        """The config as a blob."""
        return Blob(digest_of(self.config), len(self.config))


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def host_base(architecture: str) -> Base:
    """The empty base of the image `host`."""
    config = {
        "architecture": OCI_ARCHITECTURES[architecture],
        "os": "linux",
        "config": {"Labels": {HOST_LABEL: "true"}},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return Base(digest_of(json.dumps(config, sort_keys=True).encode()), "oci", config, ())


def is_host(base: Base) -> bool:
    """Whether `base` is that of the image `host`, which gets no supervisor of its own."""
    return HOST_LABEL in _labels(base)


def is_derived(base: Base) -> bool:
    """Whether `base` was made by deriving: its entrypoint is the supervisor."""
    return SUPERVISOR_LABEL in _labels(base)


def defaults(base: Base) -> ImageDefaults:
    """What `base` says about running it, for the supervisor."""
    config = base.config.get("config") or {}
    return ImageDefaults(
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        environment={
            name: value
            for name, _, value in (item.partition("=") for item in config.get("Env") or ())
            if _steers_the_loader(name)
        },
    )


def content_tag(function: str, base: Base, layers: Sequence[Layer]) -> str:
    """The tag of `function`'s image: another content, another tag.

    Of the layers as they are unpacked: how they are compressed differs between machines.
    """
    parts = [base.digest, *(layer.diff_id for layer in layers)]
    return f"{function}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"


def derive(base: Base, layers: Sequence[Layer], supervisor: str) -> Derived:
    """`base` with `layers` on top, run by the supervisor of version `supervisor`.

    The same arguments give the same bytes. Raises ImageError where the base's config does not
    describe its layers. What Lambda wants holds: one manifest, media types of one family, gzip.
    """
    family: Family = base.family
    assert all(blob.packing == "gzip" for blob in base.layers), "layers are repacked before"
    config = _config(base, layers, supervisor)
    body = json.dumps(config, sort_keys=True).encode()
    blobs = [*base.layers, *(layer.blob for layer in layers)]
    if len(config["rootfs"]["diff_ids"]) != len(blobs):
        raise ImageError(base.digest, "its config does not list its layers")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES[family],
        "config": _descriptor(Blob(digest_of(body), len(body)), CONFIG_TYPES[family]),
        "layers": [_descriptor(blob, LAYER_TYPES[family]) for blob in blobs],
    }
    packed = json.dumps(manifest).encode()
    return Derived(body, packed, MANIFEST_TYPES[family], base.layers, tuple(layers))


def _labels(base: Base) -> Mapping[str, str]:
    return (base.config.get("config") or {}).get("Labels") or {}


def _config(base: Base, layers: Sequence[Layer], supervisor: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(base.config))
    config["rootfs"]["diff_ids"] += [layer.diff_id for layer in layers]
    if "history" in config:
        entry = {"created": "1970-01-01T00:00:00Z", "created_by": "scar"}
        config["history"] += [entry for _ in layers]
    if not is_host(base):
        config["config"] = _run_config(config.get("config") or {}, supervisor)
    return config


def _run_config(run: dict[str, Any], supervisor: str) -> dict[str, Any]:
    kept = [item for item in run.get("Env") or () if not _steers_the_loader(item.partition("=")[0])]
    ours = {
        "Entrypoint": list(ENTRYPOINT),
        "Cmd": [],
        "Env": kept,
        "Labels": {**(run.get("Labels") or {}), SUPERVISOR_LABEL: supervisor},
    }
    return {**run, **ours}


def _steers_the_loader(name: str) -> bool:
    return name.startswith(_LOADER_PREFIXES) or name in _LOADER_NAMES


def _descriptor(blob: Blob, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size_bytes}
