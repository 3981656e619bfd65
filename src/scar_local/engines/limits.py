"""Memory and CPU limits of containers, by cgroups (v1 or v2) where this user may make them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scar_local.engines import ContainerSpec

CGROUPS = Path("/sys/fs/cgroup")
OOM_REASON = "OutOfMemoryError: Container killed due to memory usage"
"""How Batch says it (DescribeJobs, the container's `reason`)."""

_PERIOD_US = 100_000
_REMOVE_TRIES = 50
_REMOVE_WAIT_S = 0.02


class Group(Protocol):
    """The limits of one container."""

    def enter(self, pid: int) -> None:
        """Put a process, and all that it starts from now on, under the limits."""

    def oom_killed(self) -> bool:
        """Whether the kernel killed a process of it because memory was used up."""

    def close(self) -> None:
        """Remove it; its processes have ended."""


class Limits(Protocol):
    """Makes groups."""

    @property
    def what(self) -> str:
        """What is enforced, for people."""

    def group(self, spec: ContainerSpec) -> Group:
        """A new group with the limits of this container. Raises OSError."""

    def sweep(self) -> None:
        """Remove the groups that an earlier run of this local cloud left."""


def find_limits(
    prefix: str, cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")
) -> Limits:
    """The limits that work for this user here, found by making a group and removing it.

    The groups' names start with `prefix`.
    """
    lines = own.read_text().splitlines() if own.exists() else []
    for found in (*_version_1(cgroups, lines, prefix), *_version_2(cgroups, lines, prefix)):
        try:
            found.group(ContainerSpec("probe", "")).close()
        except OSError:
            continue
        return found
    return NoLimits()


@dataclass(frozen=True)
class NoLimits:
    """What there is where no cgroup can be made."""

    what: str = "memory and CPU limits are not enforced: no cgroup is writable for this user"

    def group(self, spec: ContainerSpec) -> Group:
        """A group without limits."""
        return _Unlimited()

    def sweep(self) -> None:
        """Nothing: no group was ever made."""


@dataclass(frozen=True)
class CgroupLimits:
    """Groups below the given directories, one a controller (v1) or one for all (v2)."""

    what: str
    parents: Mapping[str, Path]
    version: int
    prefix: str

    def group(self, spec: ContainerSpec) -> Group:
        """A group with memory and CPU limits. Raises OSError."""
        name = self.prefix + uuid.uuid4().hex
        group = _Cgroup({key: path / name for key, path in self.parents.items()}, self.version)
        group.make(spec)
        return group

    def sweep(self) -> None:
        """Remove the groups that an earlier run of this local cloud left."""
        for parent in self.parents.values():
            for directory in parent.glob(f"{self.prefix}*"):
                _remove(directory)


class _Unlimited:
    def enter(self, pid: int) -> None:
        pass

    def oom_killed(self) -> bool:
        return False

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Cgroup:
    directories: Mapping[str, Path]
    version: int

    def make(self, spec: ContainerSpec) -> None:
        memory = spec.memory_mib << 20
        quota = max(int(spec.vcpus * _PERIOD_US), 1000)
        try:
            for directory in self.directories.values():
                directory.mkdir()
            if self.version == 1:
                self._write("memory", "memory.limit_in_bytes", str(memory))
                self._write_if_there("memory", "memory.memsw.limit_in_bytes", str(memory))
                self._write("cpu", "cpu.cfs_quota_us", str(quota))
            else:
                self._write("", "memory.max", str(memory))
                self._write_if_there("", "memory.swap.max", "0")
                self._write_if_there("", "cpu.max", f"{quota} {_PERIOD_US}")
        except OSError:
            self.close()
            raise

    def enter(self, pid: int) -> None:
        for directory in self.directories.values():
            (directory / "cgroup.procs").write_text(str(pid))

    def oom_killed(self) -> bool:
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        path = self.directories["memory" if self.version == 1 else ""] / name
        counts = (line.split() for line in path.read_text().splitlines())
        return any(key == "oom_kill" and int(count) > 0 for key, count in counts)

    def close(self) -> None:
        for directory in self.directories.values():
            _remove(directory)

    def _write(self, controller: str, name: str, value: str) -> None:
        (self.directories[controller] / name).write_text(value)

    def _write_if_there(self, controller: str, name: str, value: str) -> None:
        if (self.directories[controller] / name).exists():
            self._write(controller, name, value)


def _version_1(cgroups: Path, lines: list[str], prefix: str) -> Iterator[CgroupLimits]:
    parents = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & {"memory", "cpu"}:
            parents[controller] = cgroups / controller / path.lstrip("/")
    if len(parents) == 2:
        yield CgroupLimits("memory and CPU limits by cgroup v1", parents, 1, prefix)


def _version_2(cgroups: Path, lines: list[str], prefix: str) -> Iterator[CgroupLimits]:
    # A v2 cgroup with processes cannot have children with controllers: where we live in a leaf
    # (a scope of a systemd user session) one above it may do.
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None or not (cgroups / "cgroup.controllers").exists():
        return
    place = cgroups / own.lstrip("/")
    for parent in (place, *place.parents):
        if os.access(parent, os.W_OK) and _has_memory(parent):
            yield CgroupLimits("memory and CPU limits by cgroup v2", {"": parent}, 2, prefix)
        if parent == cgroups:
            return


def _has_memory(parent: Path) -> bool:
    control = parent / "cgroup.subtree_control"
    try:
        if "memory" not in control.read_text().split():
            control.write_text("+memory +cpu")
        return "memory" in control.read_text().split()
    except OSError:
        return False


def _remove(directory: Path) -> None:
    for _ in range(_REMOVE_TRIES):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(_REMOVE_WAIT_S)  # the kernel still counts processes that have just ended
        else:
            return
