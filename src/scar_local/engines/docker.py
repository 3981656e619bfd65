"""Containers by a Docker-compatible API: Docker, or Podman's socket.

Images are pulled from this local cloud's own registry: daemons allow plain HTTP to 127.0.0.0/8.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scar_local.engines import ContainerSpec, EngineError, Exit, Running
from scar_local.engines.limits import OOM_REASON
from scar_local.engines.networks import DockerNetwork, JobNetwork
from scar_local.engines.runner import Probe, clear_away
from scar_local.engines.settings import check_words
from scar_local.engines.spawn import Lines
from scar_local.image_store import StoredImage

if TYPE_CHECKING:
    from docker import DockerClient

LABEL = "scar.cloud"
"""Label of every container here; its value is the data directory of the local cloud."""

IMAGE_LABEL = "scar.supervisor"
"""Label of every image that `scar init` derived."""

_CONNECT_S = 15
"""A daemon on a busy machine takes seconds to say what it is."""

_TMP = "/tmp"  # noqa: S108 (the container's own)


class Docker:
    """Runs real images; the image `host` never."""

    name = "docker"

    def __init__(self, data: Path, address: Callable[[], str]) -> None:
        self._data = data
        self._address = address
        self._client: DockerClient | None = None
        self._cpus = 1.0

    def probe(self) -> Probe:
        """Ask the daemon of each socket there is; the first container proves the rest."""
        try:
            import docker
        except ImportError:
            return Probe(self.name, False, "the Python package `docker` is not installed")
        faults = []
        for url in sockets():
            try:
                client = docker.DockerClient(base_url=url, timeout=_CONNECT_S)
                info = client.info()
                client.close()
                fault = _unusable(info)
                if not fault:
                    self._client = docker.DockerClient(base_url=url, max_pool_size=64)
                    self._cpus = float(info.get("NCPU") or 1)
                    return Probe(self.name, True, f"{url} answers: {_product(info)}")
            except (docker.errors.DockerException, OSError) as exc:
                fault = _short(exc)
            faults.append(f"{url}: {fault}")
        return Probe(self.name, False, "; ".join(faults) or "no socket of Docker or Podman is here")

    def run(
        self, spec: ContainerSpec, image: StoredImage, on_output: Callable[[str], None]
    ) -> Running:
        """Start a container. Raises EngineError."""
        import docker

        check_words(spec.command, spec.environment)
        client = self._connected()
        try:
            name = self._pull(client, image)
            created = client.api.create_container(
                name,
                command=list(spec.command) or None,
                environment=dict(spec.environment),
                labels={LABEL: str(self._data), "scar.name": spec.name},
                host_config=self._host_config(client, spec, image),
                **_placed(client, spec),
            )
        except (docker.errors.DockerException, OSError) as exc:
            raise EngineError(f"CannotPullContainerError: {_short(exc)}") from exc
        container = _Container(client, created["Id"])
        try:
            container.begin(spec.name, on_output)
        except (docker.errors.DockerException, OSError, RuntimeError) as exc:
            clear_away(container.remove)
            raise EngineError(f"CannotStartContainerError: {_short(exc)}") from exc
        return container

    def open_network(self, count: int, endpoint: str) -> JobNetwork:
        """A bridge network. Raises EngineError."""
        return DockerNetwork(self._connected(), {LABEL: str(self._data)}, count, endpoint)

    def sweep(self) -> None:
        """Remove the containers and networks that an earlier run of this local cloud left."""
        import docker

        client = self._connected()
        try:
            for item in client.api.containers(
                all=True, quiet=True, filters={"label": f"{LABEL}={self._data}"}
            ):
                _remove(client, item["Id"])
            mine = {"label": f"{LABEL}={self._data}"}
            for network in client.api.networks(filters=mine):
                client.api.remove_network(network["Id"])
        except (docker.errors.DockerException, OSError) as exc:
            raise EngineError(f"containers of an earlier run stay: {_short(exc)}") from exc

    def remove_images(self, keep: Collection[str], abandoned: bool = False) -> int:
        """Remove what was pulled from here before and is not to be kept (digests); how many.

        With `abandoned`, also what local clouds left that do not answer any more. Images that a
        container uses stay.
        """
        import docker

        client = self._connected()
        removed = 0
        with contextlib.suppress(docker.errors.DockerException, OSError):  # it only costs space
            for image in client.api.images():
                ours = abandoned and IMAGE_LABEL in (image.get("Labels") or {})
                for name in image.get("RepoDigests") or ():
                    host, _, rest = name.partition("/")
                    if host == self._address():
                        unused = rest.partition("@")[2] not in keep
                    else:
                        unused = ours and not _answers(host)
                    removed += unused and _forget(client, name)
        return removed

    def disk_bytes(self) -> int:
        """What all images take on Docker's disk; 0 where it does not say."""
        import docker

        try:
            return int(self._connected().df().get("LayersSize") or 0)
        except (docker.errors.DockerException, OSError):
            return 0

    def _connected(self) -> DockerClient:
        if self._client is None:
            raise EngineError("no Docker-compatible daemon answers")
        return self._client

    def _pull(self, client: DockerClient, image: StoredImage) -> str:
        import docker

        repository = f"{self._address()}/{image.repository}"
        name = f"{repository}@{image.manifest_digest}"
        try:
            client.images.get(name)
        except docker.errors.ImageNotFound:
            for message in client.api.pull(
                repository, tag=image.manifest_digest, stream=True, decode=True
            ):
                if "error" in message:
                    raise EngineError(f"CannotPullContainerError: {message['error']}") from None
        return name

    def _host_config(
        self, client: DockerClient, spec: ContainerSpec, image: StoredImage
    ) -> dict[str, Any]:
        memory = spec.memory_mib << 20
        config: dict[str, Any] = client.api.create_host_config(
            network_mode=spec.address.network if spec.address else "host",
            mem_limit=memory,
            memswap_limit=memory,
            nano_cpus=int(min(spec.vcpus, self._cpus) * 1e9),
            read_only=spec.read_only_root,
            init=False,
            **_tmp(spec, image),
        )
        return config


def sockets() -> Iterable[str]:
    """Where a Docker-compatible daemon may answer; only files that are there."""
    chosen = os.environ.get("DOCKER_HOST")
    if chosen:
        yield chosen
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    for path in (
        "/var/run/docker.sock",
        f"{runtime}/docker.sock",
        f"{runtime}/podman/podman.sock",
        "/run/podman/podman.sock",
    ):
        if os.path.exists(path):
            yield f"unix://{path}"


class _Container:
    """One container of the daemon's."""

    def __init__(self, client: DockerClient, identifier: str) -> None:
        self._client = client
        self._id = identifier
        self._exit = Exit(0)
        self._done = threading.Event()

    def begin(self, name: str, on_output: Callable[[str], None]) -> None:
        """Attach, start, and follow it to its end. Raises DockerException."""
        # Its streams are attached before the daemon answers (moby, daemon/attach.go), so nothing is
        # missed; with `logs` what is written before it reads those would come twice.
        output = self._client.api.attach(self._id, stream=True, logs=False, demux=True)
        self._client.api.start(self._id)
        threading.Thread(
            target=self._follow, args=(output, on_output), name=name, daemon=True
        ).start()

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """The container's end, or None when it still runs after `timeout_s`."""
        return self._exit if self._done.wait(timeout_s) else None

    def stop(self, grace_s: float = 0.0) -> None:
        """SIGTERM to the first process, after `grace_s` SIGKILL; returns when all is gone."""
        if grace_s > 0 and not self._done.is_set():
            self._kill("SIGTERM")
            self._done.wait(grace_s)
        if not self._done.is_set():
            self._kill("SIGKILL")
        self._done.wait()

    def remove(self) -> None:
        """Remove it, running or not, with its volumes."""
        _remove(self._client, self._id)

    def _kill(self, name: str) -> None:
        import docker

        try:
            self._client.api.kill(self._id, name)
        except docker.errors.APIError as exc:
            if exc.status_code not in (404, 409):  # gone, or not running any more
                raise

    def _follow(
        self,
        output: Iterable[tuple[bytes | None, bytes | None]],
        on_output: Callable[[str], None],
    ) -> None:
        streams = (Lines(on_output), Lines(on_output))
        try:
            for parts in output:
                for stream, data in zip(streams, parts, strict=True):
                    if data:
                        stream.feed(data)
            for stream in streams:
                stream.end()
        finally:
            self._end()

    def _end(self) -> None:
        import docker

        try:
            code = int(self._client.api.wait(self._id)["StatusCode"])
            state = self._client.api.inspect_container(self._id)["State"]
            oom = bool(state.get("OOMKilled")) and code != 0
            self._exit = Exit(code, oom, OOM_REASON if oom else state.get("Error") or "")
        except (docker.errors.DockerException, OSError) as exc:
            self._exit = Exit(137, reason=f"the container engine lost it: {_short(exc)}")
        finally:
            clear_away(self.remove)
            self._done.set()


def _placed(client: DockerClient, spec: ContainerSpec) -> dict[str, Any]:
    """Where a node of a multi-node job is on its network."""
    if spec.address is None:
        return {}
    endpoint = client.api.create_endpoint_config(ipv4_address=spec.address.ip)
    networking = {"EndpointsConfig": {spec.address.network: endpoint}}
    return {"hostname": spec.address.hostname, "networking_config": networking}


def _tmp(spec: ContainerSpec, image: StoredImage) -> dict[str, Any]:
    """A writable /tmp under a read-only root.

    A volume, because a tmpfs counts as the container's memory; but a volume belongs to root where
    the image has no /tmp, so an image with another user gets a tmpfs.
    """
    if not spec.read_only_root:
        return {}
    user = str((image.config.get("config") or {}).get("User") or "0").partition(":")[0]
    if user in ("0", "root"):
        return {"mounts": [{"Type": "volume", "Target": _TMP}]}
    return {"tmpfs": {_TMP: "rw,exec,nosuid,mode=1777"}}


def _unusable(info: dict[str, Any]) -> str:
    if info.get("OperatingSystem") == "Docker Desktop":
        return "Docker Desktop's containers cannot reach a port of this machine's loopback"
    return "it runs no Linux containers" if info.get("OSType") != "linux" else ""


def _product(info: dict[str, Any]) -> str:
    return f"{info.get('OperatingSystem', 'an engine')}, version {info.get('ServerVersion', '?')}"


def _remove(client: DockerClient, identifier: str) -> None:
    import docker

    try:
        client.api.remove_container(identifier, v=True, force=True)
    except docker.errors.APIError as exc:
        if exc.status_code not in (404, 409):  # gone, or being removed
            raise


def _forget(client: DockerClient, name: str) -> bool:
    """Remove a name of an image, with the image when it was the last one."""
    import docker

    try:
        client.images.remove(name)
    except docker.errors.APIError as exc:
        if exc.status_code not in (404, 409):  # gone, or a container uses it
            raise
        return False
    return True


def _answers(host: str) -> bool:
    """Whether somebody listens there; True for what is not on this machine's loopback."""
    address, _, port = host.rpartition(":")
    if address != "127.0.0.1" or not port.isdecimal():
        return True
    try:
        socket.create_connection((address, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _short(exc: BaseException) -> str:
    return str(getattr(exc, "explanation", None) or exc).strip().splitlines()[0][:300]
