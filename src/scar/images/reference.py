"""Names of images: `[registry/]repository[:tag][@digest]`, with Docker Hub's defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass

from scar.errors import ImageError

DOCKER_HUB = "registry-1.docker.io"
"""The host that answers for the name `docker.io`."""

_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """One image of one registry."""

    host: str
    """With the port, if any; `registry-1.docker.io` for Docker Hub."""
    repository: str
    tag: str
    digest: str = ""
    """`sha256:…`; wins over the tag. Empty where the tag decides."""

    @property
    def version(self) -> str:
        """What the registry is asked for."""
        return self.digest or self.tag


def parse(text: str) -> Reference:
    """The reference that `text` names, as `docker pull` reads it.

    Raises ImageError where it is none.
    """
    rest, _, digest = text.partition("@")
    first, slash, after = rest.partition("/")
    has_host = slash and ("." in first or ":" in first or first == "localhost")
    host, name = (first, after) if has_host else ("docker.io", rest)
    repository, _, tag = name.partition(":")
    if host in ("docker.io", "index.docker.io"):
        host = DOCKER_HUB
        repository = repository if "/" in repository else f"library/{repository}"
    if not _REPOSITORY.fullmatch(repository):
        raise ImageError(text, f"`{repository}` is no repository name", _HINT)
    if (":" in name and not _TAG.fullmatch(tag)) or ("@" in text and not _DIGEST.fullmatch(digest)):
        raise ImageError(text, "the tag or digest is malformed", _HINT)
    return Reference(host, repository, tag or "latest", digest)


_HINT = "for example `debian:12`, `ghcr.io/owner/name:tag` or `name@sha256:<64 hex digits>`"
