"""Engines: what really starts a container for a function's environment or a job's attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from scar_local.engines.networks import JobNetwork


@dataclass(frozen=True)
class NodeAddress:
    """Where one node of a multi-node job is: a network of the engine's, address, host name."""

    network: str
    ip: str
    hostname: str


@dataclass(frozen=True)
class ContainerSpec:
    """One container to start. `environment` is complete: nothing of the daemon's own leaks in."""

    name: str
    """For people and for cleaning up: `function-<name>-<n>`, `job-<id>-<attempt>`."""
    image: str
    """Image URI as CreateFunction or RegisterJobDefinition gave it (a tag or digest in our ECR)."""
    environment: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()
    """Replaces the image's command; the image's entrypoint is always kept, as on Batch."""
    memory_mib: int = 512
    vcpus: float = 1.0
    read_only_root: bool = True
    """Lambda: read-only root, writable /tmp. Batch: everything is writable (and thrown away)."""
    address: NodeAddress | None = None
    """On a network of its own, instead of the host's."""


@dataclass(frozen=True)
class Exit:
    """How a container ended. `code` is 128+n for a signal; `reason` is for people, often empty."""

    code: int
    oom_killed: bool = False
    reason: str = ""


class Running(Protocol):
    """A started container."""

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """The container's end, or None when it still runs after `timeout_s`."""

    def stop(self, grace_s: float = 0.0) -> None:
        """SIGTERM to the container's first process, after `grace_s` SIGKILL to all in it.

        Returns when the container is gone. Harmless when it is gone already.
        """


class EngineError(Exception):
    """The container never ran: no such image, no engine for it, the engine refused.

    The message is what DescribeJobs shows as `reason` (AWS: `CannotPullContainerError: …`).
    """


class Engine(Protocol):
    """Starts containers. Containers share the host's network and reach 127.0.0.1."""

    name: str

    def start(self, spec: ContainerSpec, on_output: Callable[[str], None]) -> Running:
        """Start a container; `on_output` gets each line of stdout and stderr, from a thread.

        Every line has been passed on before `Running.wait` answers.
        Raises EngineError when it could not start.
        """

    def open_network(self, image: str, count: int, endpoint: str) -> JobNetwork:
        """A network for `count` nodes of an image, from which `endpoint` can be reached.

        Raises EngineError where none can be made here.
        """
