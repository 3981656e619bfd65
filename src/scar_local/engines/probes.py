"""What an engine offers inside: a probe, and running an image that has been found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from scar_local.engines import ContainerSpec, Running
from scar_local.image_store import StoredImage


@dataclass(frozen=True)
class Probe:
    """Whether an engine works on this machine, and why (not)."""

    engine: str
    ok: bool
    why: str


class Runner(Protocol):
    """One way to run containers."""

    name: str

    def probe(self) -> Probe:
        """Try whether it works here. Called once, before `run`."""

    def run(
        self, spec: ContainerSpec, image: StoredImage, on_output: Callable[[str], None]
    ) -> Running:
        """Start a container. Raises EngineError."""
