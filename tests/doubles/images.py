"""Tiny real images, made in memory of busybox, pushed over the wire."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

from scar_local.http import Server
from scar_local.protocol import ACCOUNT_ID, Request
from scar_local.registry import Registry
from scar_local.store import Store

BUSYBOX = next((p for p in ("/bin/busybox", shutil.which("busybox")) if p and Path(p).exists()), "")
NO_BUSYBOX = "busybox is not installed (Debian: busybox-static)"
REGION = "us-east-1"
APPLETS = tuple("sh echo cat id sleep env pwd ls touch mkdir dd kill seq grep wget setsid".split())
OCI = "application/vnd.oci.image."


@dataclass(frozen=True)
class Item:
    """One member of a layer."""

    name: str
    content: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    target: str = ""


def directory(name: str, mode: int = 0o755) -> Item:
    return Item(name, mode=mode, kind=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Item:
    return Item(name, kind=tarfile.SYMTYPE, target=target, mode=0o777)


def hard_link(name: str, target: str) -> Item:
    return Item(name, kind=tarfile.LNKTYPE, target=target)


def layer(*items: Item, compress: bool = True) -> bytes:
    """A layer: these members in this order, the same bytes each time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item in items:
            member = tarfile.TarInfo(item.name)
            member.type, member.mode, member.linkname = item.kind, item.mode, item.target
            member.size = len(item.content) if item.kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(item.content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0) if compress else buffer.getvalue()


@cache
def busybox_layer() -> bytes:
    """`/bin` with busybox and the applets that the tests use."""
    program = Item("bin/busybox", Path(BUSYBOX).read_bytes(), 0o755)
    links = [symlink(f"bin/{name}", "busybox") for name in APPLETS]
    return layer(directory("bin"), program, *links)


@dataclass(frozen=True)
class Image:
    """An image to push."""

    layers: Sequence[bytes]
    run: Mapping[str, Any] = field(default_factory=dict)
    """The config's `config`: Entrypoint, Cmd, Env, User, WorkingDir, Labels."""

    def config(self) -> bytes:
        diffs = [gzip.decompress(x) if x[:2] == b"\x1f\x8b" else x for x in self.layers]
        return json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": self.run,
                "rootfs": {"type": "layers", "diff_ids": [digest(x) for x in diffs]},
            }
        ).encode()

    def manifest(self) -> bytes:
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{OCI}manifest.v1+json",
                "config": _descriptor(self.config(), f"{OCI}config.v1+json"),
                "layers": [_descriptor(x, f"{OCI}layer.v1.tar+gzip") for x in self.layers],
            }
        ).encode()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """The few requests of a pushing client, on one connection a request."""

    def __init__(self, address: str) -> None:
        self.address = address

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        connection = HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def push_blob(self, repository: str, data: bytes) -> str:
        begun = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        assert begun.status == 202, begun
        place = f"{begun.headers['Location']}?digest={digest(data)}"
        done = self.request("PUT", place, data)
        assert done.status == 201, done
        return digest(data)

    def push(self, repository: str, tag: str, image: Image) -> str:
        """Push the whole image; answers the image URI."""
        for blob in (*image.layers, image.config()):
            self.push_blob(repository, blob)
        done = self.request(
            "PUT",
            f"/v2/{repository}/manifests/{tag}",
            image.manifest(),
            {"Content-Type": f"{OCI}manifest.v1+json"},
        )
        assert done.status == 201, done
        return f"{ACCOUNT_ID}.dkr.ecr.{REGION}.amazonaws.com/{repository}:{tag}"


@contextmanager
def served_registry(data: Path) -> Iterator[tuple[Registry, Client]]:
    """A registry on a real port, its data in `data`."""
    address: list[str] = []
    data.mkdir(parents=True, exist_ok=True)
    registry = Registry(Store(data), lambda: f"http://{address[0]}")
    server = Server(0, registry.handle)
    address.append(f"127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield registry, Client(address[0])
    finally:
        server.shutdown()
        server.server_close()


def pulled(address: str) -> list[str]:
    """The images that Docker has pulled from the registry at this host and port, by digest."""
    import docker

    client = docker.from_env()
    names = [name for image in client.api.images() for name in image.get("RepoDigests") or ()]
    client.close()
    return [name for name in names if name.startswith(f"{address}/")]


def forget_pulled(address: str) -> None:
    """Remove what Docker has pulled from the registry at this host and port."""
    import docker

    client = docker.from_env()
    for name in pulled(address):
        with suppress(docker.errors.NotFound):  # another test's prune was here
            client.images.remove(name)
    client.close()


def ecr(registry: Registry, operation: str, **params: Any) -> dict[str, Any]:
    """Call one ECR operation as the door does."""
    answer: dict[str, Any] = getattr(registry, operation)(Request(operation, REGION, params))
    return answer


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}
