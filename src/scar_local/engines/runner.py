"""What every engine offers inside: a probe, and running an image that was found."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scar_local.engines import ContainerSpec, Running
from scar_local.engines.limits import Limits
from scar_local.engines.networks import JobNetwork, NamespaceNetworks
from scar_local.engines.rootfs import RootFileSystems
from scar_local.engines.spawn import Spawner
from scar_local.image_store import StoredImage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """Whether an engine works on this machine, and why (not)."""

    engine: str
    ok: bool
    why: str


@dataclass(frozen=True)
class Shared:
    """What the engines of one local cloud have in common."""

    scratch: Path
    """Holds one directory a container while it runs."""
    roots: RootFileSystems
    limits: Callable[[], Limits]
    package_parent: Callable[[], Path]
    """The directory of the supervisor's package, for the image `host`. Raises EngineError."""
    spawner: Spawner
    networks: NamespaceNetworks


class Runner(Protocol):
    """One way to run containers."""

    name: str

    def probe(self) -> Probe:
        """Try whether it works here. Called once, before `run`."""

    def run(
        self, spec: ContainerSpec, image: StoredImage, on_output: Callable[[str], None]
    ) -> Running:
        """Start a container. Raises EngineError."""

    def open_network(self, count: int, endpoint: str) -> JobNetwork:
        """A network for a multi-node job. Raises EngineError."""


def clear_away(*steps: Callable[[], None]) -> None:
    """Take each step whatever becomes of the others; what fails is logged, and left to a sweep."""
    for step in steps:
        try:
            step()
        except Exception:
            _log.exception("something could not be cleared away")
