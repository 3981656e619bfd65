"""What deriving and pushing an image costs, beside `docker build && docker push` of the same.

Into Debian's docker-registry on loopback with TLS: one with Basic auth (as ECR) and one with a
token server (as Docker Hub). The base, 200 MB in three layers that do not compress, lies in
another such registry. A relay before the target counts the bytes that were sent to it.

    python benchmarks/bench_images.py [rounds]
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import table
from tests.doubles.debian_registry import (
    PASSWORD,
    USER,
    Kind,
    Running,
    debian_registry,
    docker_config,
    is_installed,
)

from scar.bundle import function_layer
from scar.images.cache import LayerCache
from scar.images.derive import Blob, Layer, derive
from scar.images.login import Login
from scar.images.push import push
from scar.images.registry import Repository
from scar.images.streams import pack
from scar_supervisor.contract import FunctionConfig

LAYERS_MB = (49, 63, 99)
SUPERVISOR_MB = 10
LARGE_BYTES = 1 << 30
STEPS = (("cold", "f-1"), ("second function", "f-2"), ("unchanged", "f-2"))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    if not is_installed():
        raise SystemExit("docker-registry is not installed (Debian: docker-registry)")
    with tempfile.TemporaryDirectory(prefix="scar-bench-") as name:
        work = Path(name)
        with debian_registry(work / "source", "basic") as source:
            _trust(source)
            _make_base(source, work, "base", [mb * 1_000_000 for mb in LAYERS_MB])
            supervisor = _layer(work / "supervisor", os.urandom(SUPERVISOR_MB * 1_000_000))
            for kind in ("basic", "token"):
                rows = _ours(source, work, supervisor, kind, rounds)
                if kind == "basic" and shutil.which("docker"):
                    rows += _dockers(source, work, supervisor, rounds)
                title = f"200 MB base to a registry with {kind} auth over TLS"
                table(f"{title}: s min / median, MB sent, peak MB of the client", rows)
            _make_base(source, work, "large", [LARGE_BYTES])
            table(
                "one layer of 1 GiB: s, MB sent, peak MB of the client",
                _ours(source, work, supervisor, "basic", 1, "large")[:1],
            )
    _archives()


def client(
    source: str, base_name: str, target: str, function: str, supervisor: str, cache: str
) -> None:
    """What `init` does of an image, in a process of its own; tells its peak memory."""
    folder = Path(supervisor)
    said = json.loads((folder / "layer.json").read_text())
    runtime = Layer(Blob(said["digest"], said["size"]), said["diff_id"], folder / "layer.tar.gz")

    def repository(host: str, name: str) -> Repository:
        return Repository(host, name, name, lambda: Login(USER, PASSWORD))

    its = repository(source, base_name)
    base = its.base("1", "amd64")
    with tempfile.TemporaryDirectory() as work:
        script = Path(work) / "script"
        script.write_text(f"echo {function}\n")
        config = FunctionConfig(function, has_script=True)
        layers = [runtime, function_layer(config, script, None, Path(work) / "function")]
        packed_source, packed = LayerCache(Path(cache)).gzipped(its, base, base_name)
        derived = derive(packed, layers, "5.0")
        push(derived, packed_source, repository(target, "scar"), function)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    print(int(found[1]) * 1.024 / 1000)


def _ours(
    source: Running, work: Path, supervisor: Path, kind: Kind, rounds: int, base: str = "base"
) -> list[tuple[str, str]]:
    figures: dict[str, list[tuple[float, float, float]]] = {}
    for n in range(rounds):
        folder = work / f"target-{kind}-{base}-{n}"
        with debian_registry(folder, kind) as target, _relay(target) as (host, sent):
            _trust(source, target)
            for what, function in STEPS:
                before, begin = sent[0], time.perf_counter()
                done = subprocess.run(
                    [sys.executable, __file__, "--client", source.host, base, host, function,
                     supervisor, work / "cache"],
                    check=True, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                took = time.perf_counter() - begin
                row = took, (sent[0] - before) / 1e6, float(done.stdout)
                figures.setdefault(f"scar, {what}", []).append(row)
        shutil.rmtree(folder)
    return [(name, _told(rows)) for name, rows in figures.items()]


def _dockers(source: Running, work: Path, supervisor: Path, rounds: int) -> list[tuple[str, str]]:
    """The same image by Docker, which has nothing of it; its daemon's memory is not counted."""
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        return [("docker build && docker push", "no daemon answers")]
    context = work / "context"
    (context / "opt").mkdir(parents=True)
    shutil.copy(supervisor / "content", context / "opt" / "content")
    (context / "Dockerfile").write_text(
        f"FROM {source.host}/base:1\nCOPY opt /opt/scar\nCOPY script /opt/scar/script\n"
        'ENTRYPOINT ["/opt/scar/content"]\nCMD []\n'
    )
    figures: dict[str, list[tuple[float, float, float]]] = {}
    for n in range(rounds):
        folder = work / f"target-docker-{n}"
        with debian_registry(folder, "basic") as target, _relay(target) as (host, sent):
            login = docker_config(work / "docker", source.host, host)
            environment = {**os.environ, "DOCKER_CONFIG": str(login), "DOCKER_BUILDKIT": "0"}
            base = f"{source.host}/base:1"
            _docker(["rmi", "-f", base], environment, check=False)
            made = []
            for what, function in STEPS:
                (context / "script").write_text(f"echo {function}\n")
                name = f"{host}/scar:{function}"
                made.append(name)
                before, begin = sent[0], time.perf_counter()
                _docker(["build", "--quiet", "--tag", name, str(context)], environment)
                _docker(["push", "--quiet", name], environment)
                took = time.perf_counter() - begin
                row = took, (sent[0] - before) / 1e6, 0.0
                figures.setdefault(f"docker build && push, {what}", []).append(row)
            _docker(["rmi", "-f", *dict.fromkeys(made), base], environment, check=False)
        shutil.rmtree(folder)
    return [(name, _told(rows)) for name, rows in figures.items()]


def _docker(arguments: list[str], environment: dict[str, str], check: bool = True) -> None:
    done = subprocess.run(["docker", *arguments], env=environment, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"docker {arguments}: {done.stderr}")


def _archives() -> None:
    """Packing what `docker save` writes: a layer of 150 MB of this machine's own files."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for path in sorted(Path("/usr/lib").rglob("*")):
            if path.is_file() and not path.is_symlink():
                tar.add(path)
            if plain.tell() > 150_000_000:
                break
    content = plain.getvalue()
    with tempfile.TemporaryDirectory() as name:
        rows = [("150 MB of files, ISA-L level 1", _packed(content, Path(name) / "x"))]
        for level in (1, 6):
            rows.append((f"the same, zlib level {level}", _zipped(content, level)))
    table("packing a plain layer: s, MB after", rows)


def _packed(content: bytes, path: Path) -> str:
    begin = time.perf_counter()
    _, _, size = pack(io.BytesIO(content), path)
    return f"{time.perf_counter() - begin:.2f}  {size / 1e6:.0f}"


def _zipped(content: bytes, level: int) -> str:
    import gzip

    begin = time.perf_counter()
    size = len(gzip.compress(content, level, mtime=0))
    return f"{time.perf_counter() - begin:.2f}  {size / 1e6:.0f}"


def _told(rows: list[tuple[float, float, float]]) -> str:
    times, sent, memory = zip(*rows, strict=True)
    peak = f"{max(memory):6.0f}" if max(memory) else "     -"
    return f"{min(times):6.2f} / {statistics.median(times):6.2f}  {max(sent):8.2f}  {peak}"


def _trust(*registries: Running) -> None:
    bundle = registries[0].certificate.parent / "authorities.pem"
    bundle.write_bytes(b"".join(one.certificate.read_bytes() for one in registries))
    os.environ["SSL_CERT_FILE"] = str(bundle)


def _make_base(source: Running, work: Path, name: str, sizes: list[int]) -> None:
    repository = Repository(source.host, name, name, lambda: Login(USER, PASSWORD))
    layers = []
    for n, size in enumerate(sizes):
        path = work / f"{name}-{n}.tar.gz"
        content = os.urandom(1 << 20) * (size >> 20)
        made = _layer(path, content)
        said = json.loads((made / "layer.json").read_text())
        blob = Blob(said["digest"], said["size"])
        repository.put(blob, lambda made=made: (made / "layer.tar.gz").open("rb"))
        layers.append((blob, said["diff_id"]))
        shutil.rmtree(made)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
         "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}}
    ).encode()  # fmt: skip
    digest = "sha256:" + hashlib.sha256(config).hexdigest()
    repository.put(Blob(digest, len(config)), lambda: io.BytesIO(config))
    start = "application/vnd.docker."
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{start}distribution.manifest.v2+json",
        "config": {"mediaType": f"{start}container.image.v1+json", "digest": digest,
                   "size": len(config)},
        "layers": [
            {"mediaType": f"{start}image.rootfs.diff.tar.gzip", "digest": blob.digest,
             "size": blob.size_bytes}
            for blob, _ in layers
        ],
    }  # fmt: skip
    repository.put_manifest("1", json.dumps(manifest).encode(), str(manifest["mediaType"]))


def _layer(folder: Path, content: bytes) -> Path:
    """A layer of one file, as `layer.tar.gz` with its digests; `content` as it is."""
    folder.mkdir()
    (folder / "content").write_bytes(content)
    tar_path = folder / "plain.tar"
    with tarfile.open(tar_path, "w") as tar:
        above = tarfile.TarInfo("opt")
        above.type, above.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(above)
        tar.add(folder / "content", "opt/content")
    with tar_path.open("rb") as plain:
        diff_id, digest, size = pack(plain, folder / "layer.tar.gz")
    tar_path.unlink()
    (folder / "layer.json").write_text(
        json.dumps({"digest": digest, "size": size, "diff_id": diff_id})
    )
    return folder


@contextmanager
def _relay(to: Running) -> Iterator[tuple[str, list[int]]]:
    """An address that leads to `to`, and how many bytes went there."""
    sent = [0]
    host, _, port = to.host.partition(":")
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((host, int(port)))
            for one, other, counts in ((client, server, True), (server, client, False)):
                threading.Thread(target=_copy, args=(one, other, sent, counts), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", sent
    finally:
        listener.close()


def _copy(one: socket.socket, other: socket.socket, sent: list[int], counts: bool) -> None:
    buffer = memoryview(bytearray(1 << 18))
    try:
        while count := one.recv_into(buffer):
            other.sendall(buffer[:count])
            if counts:
                sent[0] += count
    except OSError:
        pass  # either side may go away at any time
    for half in (one, other):
        shut(half)


def shut(half: socket.socket) -> None:
    """End a connection, if it has not ended."""
    run: Callable[[int], None] = half.shutdown
    try:
        run(socket.SHUT_RDWR)
    except OSError:
        half.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(*sys.argv[2:])
    else:
        main()
