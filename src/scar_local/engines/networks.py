"""Networks of multi-node jobs: every node has an address of its own, and reaches the local cloud.

The cloud listens on loopback only. A relay of the job's own brings its nodes there: where we make
the network namespaces it listens on loopback inside each; with Docker on the gateway's address of
the job's network. It ends with the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from scar_local.engines import EngineError, NodeAddress

if TYPE_CHECKING:
    from docker import DockerClient

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SUBNET, _LINK_LOCAL = "10.77", "169.254.172"
NODES_LIMIT = 200
"""Nodes of one job here; AWS allows more."""


class JobNetwork(Protocol):
    """The network of one job."""

    @property
    def nodes(self) -> Sequence[NodeAddress]:
        """Where its nodes are."""

    @property
    def endpoint(self) -> str:
        """The URL by which they reach the local cloud."""

    def close(self) -> None:
        """Remove it, when no container is in it any more."""


class NamespaceNetworks:
    """Networks of Linux network namespaces, by `ip`; needs root."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def open(self, count: int, endpoint: str) -> JobNetwork:
        """A network for `count` nodes. Raises EngineError where none can be made."""
        if os.geteuid() != 0:
            raise EngineError(
                "multi-node jobs need an address for every node, which bubblewrap's containers get "
                "only from root: run the local cloud as root, or start Docker or Podman"
            )
        if not shutil.which("ip") or not shutil.which("nsenter"):
            raise EngineError("multi-node jobs need the programs `ip` (iproute2) and `nsenter`")
        return _NamespaceNetwork(f"{self._prefix}{uuid.uuid4().hex[:8]}", count, endpoint)

    def sweep(self) -> None:
        """Remove what an earlier run left."""
        with contextlib.suppress(OSError):
            for path in Path("/run/netns").iterdir():
                if path.name.startswith(self._prefix):
                    _forget_namespace(path.name)


class _NamespaceNetwork:
    """A bridge in a namespace of its own, with one namespace a node: nothing leaves it."""

    def __init__(self, name: str, count: int, endpoint: str) -> None:
        self.endpoint = endpoint
        self._names = [f"{name}-bridge", *(f"{name}-{index}" for index in range(count))]
        self.nodes = [
            NodeAddress(f"{name}-{index}", ip, f"ip-{ip.replace('.', '-')}")
            for index in range(count)
            for ip in [f"{_SUBNET}.0.{10 + index}"]
        ]
        self._relay = Relay(endpoint)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        bridge = self._names[0]
        _ip("netns", "add", bridge)
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        for index, node in enumerate(self.nodes):
            self._make_node(bridge, index, node)
            self._relay.listen(lambda node=node: _listener_in(node.network, self.endpoint))  # type: ignore[misc]

    def _make_node(self, bridge: str, index: int, node: NodeAddress) -> None:
        space, port = node.network, f"port{index}"
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
        peer = ("peer", "name", "eth0", "netns", space)
        _ip("-n", bridge, "link", "add", port, "type", "veth", *peer)
        _ip("-n", bridge, "link", "set", port, "master", "br0", "up")
        _ip("-n", space, "addr", "add", f"{node.ip}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        # As ECS tasks have it: an interface that reaches no other node.
        ecs = ("link", "add", "ecs-eth0", "type", "veth", "peer", "name", "ecs-peer")
        _ip("-n", space, *ecs)
        _ip("-n", space, "addr", "add", f"{_LINK_LOCAL}.{2 + index}/22", "dev", "ecs-eth0")
        for name in ("ecs-eth0", "ecs-peer"):
            _ip("-n", space, "link", "set", name, "up")

    def close(self) -> None:
        """Remove it."""
        self._relay.close()
        for name in self._names:
            _forget_namespace(name)


class DockerNetwork:
    """A bridge network of Docker's."""

    def __init__(
        self, client: DockerClient, labels: dict[str, str], count: int, endpoint: str
    ) -> None:
        """Make it. Raises EngineError."""
        import docker

        self._client = client
        self._name = f"scar-{uuid.uuid4().hex[:12]}"
        try:
            self._network, subnet, gateway = self._create(labels)
        except (docker.errors.DockerException, OSError, LookupError) as exc:
            raise EngineError(f"no network can be made for the job's nodes: {exc}") from exc
        try:
            self._relay = Relay(endpoint)
            port = self._relay.listen(lambda: socket.create_server((gateway, 0), backlog=128))
        except (EngineError, OSError) as exc:
            self._remove()
            raise EngineError(
                f"the job's nodes cannot reach the local cloud: {gateway} is no address of this "
                f"machine ({exc}); a rootless or remote engine runs no multi-node jobs"
            ) from exc
        self.endpoint = f"http://{gateway}:{port}"
        prefix = subnet.rsplit(".", 1)[0]
        self.nodes = [
            NodeAddress(self._name, ip, f"ip-{ip.replace('.', '-')}")
            for ip in (f"{prefix}.{10 + index}" for index in range(count))
        ]

    def _create(self, labels: dict[str, str]) -> tuple[str, str, str]:
        """(id, subnet's address, gateway) of a network in a free subnet, addresses ours to give."""
        import docker

        api = self._client.api
        tried = api.create_network(self._name, driver="bridge", labels=labels)["Id"]
        found = api.inspect_network(tried)["IPAM"]["Config"][0]
        api.remove_network(tried)
        pool = docker.types.IPAMPool(subnet=found["Subnet"], gateway=found["Gateway"])
        ipam = docker.types.IPAMConfig(pool_configs=[pool])
        made = api.create_network(self._name, driver="bridge", labels=labels, ipam=ipam)["Id"]
        return made, found["Subnet"].partition("/")[0], found["Gateway"].partition("/")[0]

    def close(self) -> None:
        """Remove it."""
        self._relay.close()
        self._remove()

    def _remove(self) -> None:
        import docker

        with contextlib.suppress(docker.errors.DockerException, OSError):  # swept at the next start
            self._client.api.remove_network(self._network)


@dataclass(frozen=True)
class _Target:
    host: str
    port: int


class Relay:
    """Carries connections from where a job's nodes can reach to the local cloud."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = _Target(parts.hostname or "127.0.0.1", parts.port or 80)
        self._listeners: list[socket.socket] = []

    def listen(self, make: Callable[[], socket.socket]) -> int:
        """Take connections of a listening socket; its port."""
        listener = make()
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), name="relay", daemon=True).start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        """Take no more; connections that are open end by themselves."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                node, _ = listener.accept()
            except OSError:
                return  # closed
            try:
                cloud = socket.create_connection((self._target.host, self._target.port), 10)
            except OSError:
                node.close()
                continue
            cloud.settimeout(None)
            for source, drain in ((node, cloud), (cloud, node)):
                pump = threading.Thread(target=_pump, args=(source, drain), daemon=True)
                pump.start()


def _pump(source: socket.socket, drain: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            drain.sendall(data)
    with contextlib.suppress(OSError):
        drain.shutdown(socket.SHUT_WR)
    # The other direction may still be in use: the sockets close with their last thread.


def _listener_in(namespace: str, endpoint: str) -> socket.socket:
    """A socket that listens on the endpoint's address inside a network namespace."""
    parts = urlsplit(endpoint)
    found: list[socket.socket | OSError] = []

    def work() -> None:  # only this thread goes there; the socket stays there
        try:
            descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(descriptor, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(descriptor)
            found.append(socket.create_server((parts.hostname or "", parts.port or 80)))
        except OSError as exc:
            found.append(exc)

    thread = threading.Thread(target=work, name="setns")
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise EngineError(f"no socket can be opened in {namespace}: {found[0]}") from found[0]
    return found[0]


def _ip(*words: str) -> None:
    # It makes /run/netns, which is everybody's.
    done = subprocess.run(["ip", *words], capture_output=True, text=True, umask=0o022)
    if done.returncode:
        raise EngineError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _forget_namespace(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
