"""Reading what others made: indexes, manifests and configs, to a `Base`. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from scar.errors import ImageError
from scar.images.derive import (
    INDEX_TYPES,
    LAYER_PACKINGS,
    MANIFEST_TYPES,
    Base,
    Blob,
    Family,
    digest_of,
)

DOCUMENT_LIMIT_BYTES = 4 << 20
"""Of a manifest or config: what registries accept."""

_DEEPEST = 4
"""Indexes within indexes."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLAIN_VARIANTS: Mapping[str, tuple[str, ...]] = {"amd64": ("", "v1"), "arm64": ("", "v8")}


class Source(Protocol):
    """Where a base image comes from: a repository, an archive, a folder, a Docker daemon."""

    def base(self, version: str, architecture: str) -> Base:
        """The image for `architecture` (OCI's word) under the tag or digest `version`."""

    def open(self, blob: Blob) -> BinaryIO:
        """The content of one of its blobs.

        Reading raises ImageError where it cannot be had: CorruptBlob where it is not what its
        digest names.
        """

    @property
    def mounts(self) -> tuple[str, str] | None:
        """Host and repository, for mounting its blobs in another repository there."""


@dataclass(frozen=True)
class Document:
    """A manifest or index as it was found."""

    body: bytes
    media_type: str = ""
    """As it was served; its own word wins."""

    @property
    def digest(self) -> str:
        """Of its bytes."""
        return digest_of(self.body)


def find(
    fetch: Callable[[str], Document], version: str, architecture: str, named: str
) -> tuple[Document, dict[str, Any]]:
    """The manifest for linux/`architecture`: indexes are followed, however they are nested.

    `fetch` gives the document of a tag or digest. Raises ImageError naming the platforms there are.
    """
    platforms: list[str] = []
    for document, manifest in _manifests(fetch, version, architecture, platforms, named):
        return document, manifest
    have = ", ".join(dict.fromkeys(platforms)) or "nothing that runs"
    raise ImageError(
        named, f"it is not there for linux/{architecture}, only for {have}",
        "set `architectures` to one of those (amd64 is x86_64), or take another image",
    )  # fmt: skip


def base_of(
    document: Document,
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    architecture: str,
    named: str,
) -> Base:
    """What deriving needs of an image, or ImageError where it cannot be derived from."""
    check_platform(config, architecture, named)
    said = manifest.get("mediaType") or document.media_type
    family: Family = "docker" if said == MANIFEST_TYPES["docker"] else "oci"
    blobs = tuple(_layer(layer, named) for layer in manifest["layers"])
    check_layers(config, len(blobs), named)
    return Base(document.digest, family, config, blobs)


def check_platform(config: Mapping[str, Any], architecture: str, named: str) -> None:
    """Raises ImageError where an image's config is not of linux/`architecture`."""
    has = f"{config.get('os') or 'linux'}/{config.get('architecture')}"
    if has != f"linux/{architecture}":
        raise ImageError(
            named, f"it is for {has}, not for linux/{architecture}",
            "set `architectures` to its own (`x86_64` or `arm64`), or take another image",
        )  # fmt: skip


def check_layers(config: Mapping[str, Any], count: int, named: str) -> list[str]:
    """The diff ids of a config, or ImageError where they are not those of `count` layers."""
    found = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(found) != count or not all(_DIGEST.fullmatch(str(one)) for one in found):
        raise ImageError(named, "its config does not list its layers", "build it again")
    return [str(one) for one in found]


def blob_of(descriptor: Mapping[str, Any], named: str) -> Blob:
    """The blob that a descriptor names, or ImageError where it names none."""
    digest, size = _digest(descriptor, named), descriptor.get("size")
    if not isinstance(size, int) or size < 0:
        raise ImageError(named, f"blob {digest} has no size")
    return Blob(digest, size)


def config_blob(manifest: Mapping[str, Any], named: str) -> Blob:
    """The blob of a manifest's config."""
    blob = blob_of(manifest["config"], named)
    if blob.size_bytes > DOCUMENT_LIMIT_BYTES:
        raise ImageError(named, f"its config has {blob.size_bytes} bytes")
    return blob


def parsed(body: bytes, what: str, named: str) -> dict[str, Any]:
    """The JSON object in `body`, or ImageError."""
    try:
        value = json.loads(body)
    except ValueError as exc:
        raise ImageError(named, f"its {what} is no JSON") from exc
    if not isinstance(value, dict):
        raise ImageError(named, f"its {what} is no JSON object")
    return value


def _manifests(
    fetch: Callable[[str], Document], version: str, architecture: str, platforms: list[str],
    named: str, depth: int = 0,
) -> Iterator[tuple[Document, dict[str, Any]]]:  # fmt: skip
    """Depth first; what was passed by is added to `platforms`."""
    document = fetch(version)
    manifest = parsed(document.body, "manifest", named)
    said = manifest.get("mediaType") or document.media_type
    if said not in INDEX_TYPES and "manifests" not in manifest:
        if not isinstance(manifest.get("config"), dict) or "layers" not in manifest:
            raise ImageError(named, f"its manifest is of type `{said}`", _type_hint(manifest))
        yield document, manifest
        return
    if depth == _DEEPEST:
        raise ImageError(named, f"it has more than {_DEEPEST} indexes within each other")
    for entry in _fitting(manifest.get("manifests") or [], architecture, platforms):
        digest = _digest(entry, named)
        yield from _manifests(fetch, digest, architecture, platforms, named, depth + 1)


def _fitting(
    entries: list[dict[str, Any]], architecture: str, platforms: list[str]
) -> list[dict[str, Any]]:
    """The entries to look at, best first: of the platform, then indexes that may hold it."""
    ours, others = [], []
    for entry in entries:
        platform = entry.get("platform") or {}
        system, processor = platform.get("os", ""), platform.get("architecture", "")
        is_attestation = "vnd.docker.reference.type" in (entry.get("annotations") or {})
        if is_attestation or system == "unknown":
            continue
        if not system:  # an index, or the only image there is: its config is checked
            others.append(entry)
        elif (system, processor) == ("linux", architecture):
            ours.append(entry)
        else:
            platforms.append(f"{system}/{processor}")
    plain = _PLAIN_VARIANTS.get(architecture, ("",))
    ours.sort(key=lambda entry: (entry["platform"].get("variant") or "") not in plain)
    return [*ours, *others]


def _digest(descriptor: Mapping[str, Any], named: str) -> str:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ImageError(named, f"`{digest}` is no sha256 digest")
    return digest


def _layer(descriptor: Mapping[str, Any], named: str) -> Blob:
    blob, said = blob_of(descriptor, named), descriptor.get("mediaType")
    if not isinstance(said, str) or said not in LAYER_PACKINGS or descriptor.get("urls"):
        raise ImageError(
            named, f"a layer is of type `{said}`, which Linux containers do not have",
            "build the image as OCI or Docker schema 2",
        )  # fmt: skip
    return Blob(blob.digest, blob.size_bytes, LAYER_PACKINGS[said])


def _type_hint(manifest: Mapping[str, Any]) -> str:
    if manifest.get("schemaVersion") == 1:
        return "it is of Docker's schema 1: pull it and push it again with a newer Docker"
    return "it is no container image"
