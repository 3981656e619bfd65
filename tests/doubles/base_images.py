"""The kinds of base image there are, made of this machine's own Debian files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import missing
from tests.doubles.images import BUSYBOX, NO_BUSYBOX, Image, Item, directory, layer, symlink

CACHE = Path(__file__).parents[2] / "build" / "test-images"
MUSL_LOADER = "lib/ld-musl-x86_64.so.1"
APPLETS = ("sh", "echo", "cat", "id", "ls", "touch", "mkdir", "env", "grep", "dd", "sleep")


def glibc() -> Sequence[Item]:
    """A shell and a few programs, all linked with glibc."""
    return with_libraries("/bin/sh", "/bin/echo", "/bin/cat", "/bin/touch", "/bin/mkdir")


def musl() -> Sequence[Item]:
    """musl's loader with a program that uses it; the shell is busybox's, as in Alpine."""
    loader = Item(MUSL_LOADER, _musl_loader().read_bytes(), 0o755)
    return (directory("lib"), loader, *busybox(), _program("/usr/bin/ischroot", "bin/ischroot"))


def busybox() -> Sequence[Item]:
    """busybox is all there is."""
    links = [symlink(f"bin/{name}", "busybox") for name in APPLETS]
    return (directory("bin"), _busybox("bin/busybox"), *links)


def distroless() -> Sequence[Item]:
    """glibc and one program, no shell."""
    return with_libraries("/bin/echo")


def empty() -> Sequence[Item]:
    """One static program and nothing else."""
    return (_busybox("echo"),)


KINDS: Mapping[str, Callable[[], Sequence[Item]]] = {
    make.__name__: make for make in (glibc, musl, busybox, distroless, empty)
}


def with_libraries(*programs: str) -> Sequence[Item]:
    """Programs with the libraries and the loader that ldd names, at the places it names."""
    return _files([*programs, *_needed(programs)])


def libraries(*programs: str) -> Sequence[Item]:
    """What programs need, without themselves."""
    return _files(_needed(programs))


def save(path: Path, items: Sequence[Item], run: Mapping[str, Any]) -> Path:
    """Write an image of one layer as `docker save` does; `run` is its config's `config`."""
    tar = layer(*items, compress=False)
    config = Image([tar], run).config()
    names = [f"{hashlib.sha256(data).hexdigest()}" for data in (config, tar)]
    about = [{"Config": f"{names[0]}.json", "RepoTags": None, "Layers": [f"{names[1]}/layer.tar"]}]
    members = {
        f"{names[0]}.json": config,
        f"{names[1]}/layer.tar": tar,
        "manifest.json": json.dumps(about).encode(),
    }
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def _busybox(name: str) -> Item:
    if not BUSYBOX:
        missing("images", NO_BUSYBOX)
    return Item(name, Path(BUSYBOX).read_bytes(), 0o755)


def _program(path: str, name: str) -> Item:
    if not os.path.exists(path):
        missing("images", f"{path} is not on this machine")
    return Item(name, Path(path).resolve().read_bytes(), 0o755)


def _needed(programs: Sequence[str]) -> list[str]:
    told = [
        subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for program in programs
    ]
    return sorted(set(re.findall(r"(/\S+) \(0x", "".join(told))))


def _files(paths: Sequence[str]) -> Sequence[Item]:
    names = [path.lstrip("/") for path in paths]
    folders = {str(parent) for name in names for parent in Path(name).parents}
    return (
        *(directory(name) for name in sorted(folders - {"."})),
        *(_program(path, name) for path, name in zip(paths, names, strict=True)),
    )


def _musl_loader() -> Path:
    """From Debian's package, downloaded once and kept in build/."""
    kept = CACHE / "ld-musl-x86_64.so.1"
    if kept.exists():
        return kept
    work = CACHE / f"musl-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", "musl"],
            cwd=work, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        subprocess.run(["dpkg-deb", "-x", *work.glob("musl_*.deb"), work / "x"], check=True)
        (work / "x/lib/x86_64-linux-musl/libc.so").rename(kept)
    except (OSError, subprocess.SubprocessError) as exc:
        missing("images", f"Debian's package `musl` cannot be downloaded: {exc}")
    finally:
        shutil.rmtree(work)
    return kept
