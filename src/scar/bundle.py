"""The bytes we ship: a function's own layer, and the runtime layer with the supervisor.

Both are tars of fixed dates and owners, so that the same content is the same digest. Lambda wants
parent directories listed before their children, and no hard links.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from scar.errors import Missing, UserError
from scar.images.derive import Blob, Layer
from scar.images.streams import Hashing
from scar_supervisor.contract import (
    CONFIG_NAME,
    EXTRA_PAYLOAD_NAME,
    FUNCTION_DIR,
    SCRIPT_NAME,
    FunctionConfig,
)

RUNTIME_DIR = Path(__file__).parent / "supervisor"
"""`<architecture>.tar.gz` and `<architecture>.json`, put there by `make supervisor`."""


@dataclass(frozen=True)
class _Entry:
    """One member of a tar: a folder, a file on disk, bytes, or a link."""

    name: str
    mode: int = 0o755
    content: bytes | Path | None = None
    link: str = ""


def function_layer(
    config: FunctionConfig, script: Path | None, extra: Path | None, path: Path
) -> Layer:
    """Write the layer of one function to `path`: its config, script and extra payload.

    Raises Missing where script or extra payload are not there, UserError where they cannot be
    shipped.
    """
    entries = [*_parents(FUNCTION_DIR), _Entry(f"{FUNCTION_DIR}/{CONFIG_NAME}", 0o644,
                                               config.dump().encode())]  # fmt: skip
    if script is not None:
        entries.append(_Entry(f"{FUNCTION_DIR}/{SCRIPT_NAME}", 0o755, _script(script)))
    if extra is not None:
        entries += _payload(extra, f"{FUNCTION_DIR}/{EXTRA_PAYLOAD_NAME}")
    return _write(entries, path)


def runtime_layer(architecture: str, folder: Path = RUNTIME_DIR) -> Layer:
    """The layer with Python and the supervisor, as `make supervisor` built it.

    Raises UserError where it is not built, or was built from another supervisor than ours.
    """
    path, about = folder / f"{architecture}.tar.gz", folder / f"{architecture}.json"
    hint = "run `make supervisor`; only the image `host` does without"
    try:
        said = json.loads(about.read_text())
        size = path.stat().st_size
    except FileNotFoundError as exc:
        raise UserError(f"the supervisor for {architecture} is not built", hint) from exc
    if said["sources_sha256"] != sources_sha256():
        raise UserError(f"the supervisor for {architecture} is older than its sources", hint)
    if said["size"] != size:
        raise UserError(f"{path} is damaged: {size} bytes instead of {said['size']}", hint)
    return Layer(Blob(said["digest"], size), said["diff_id"], path)


def payload_sha256(path: Path) -> str:
    """One hash over a script, or over an extra payload: its names, modes and contents.

    Raises Missing where it is not there, UserError where it cannot be shipped.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for entry in _payload(path, ""):
        digest.update(f"{entry.name}\0{entry.mode:o}\0{entry.link}\0".encode(errors="replace"))
        if isinstance(entry.content, Path):
            with entry.content.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def sources_sha256() -> str:
    """One hash over all sources of the installed supervisor.

    sha256 over the lines `path\\0<sha256 of the content>\\n` of every .py file, sorted by path.
    """
    spec = importlib.util.find_spec("scar_supervisor")
    if spec is None or not spec.origin:
        raise UserError("the package `scar_supervisor` is not installed", "install scar again")
    root = Path(spec.origin).parent
    digest = hashlib.sha256()
    files = {file.relative_to(root).as_posix(): file for file in root.rglob("*.py")}
    for name in sorted(files):
        content = hashlib.sha256(files[name].read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def _script(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        hint = "paths of scripts are relative to the FDL file"
        raise Missing(f"script `{path}` does not exist", hint) from exc
    except OSError as exc:
        raise UserError(f"script `{path}` cannot be read: {exc.strerror}") from exc


def _payload(path: Path, name: str) -> Iterator[_Entry]:
    """A file, as the only file of a folder, or a folder with all that is in it."""
    if not path.exists():
        hint = "paths of extra payloads are relative to the FDL file"
        raise Missing(f"extra payload `{path}` does not exist", hint)
    yield _Entry(name)
    if not path.is_dir():
        yield _file(path, f"{name}/{path.name}")
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        here = Path(folder)
        inside = f"{name}/{here.relative_to(path).as_posix()}".removesuffix("/.")
        for item in sorted([*folders, *files]):
            yield _file(here / item, f"{inside}/{item}")


def _file(path: Path, name: str) -> _Entry:
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode):
        return _Entry(name, 0o777, link=os.readlink(path))
    # Lambda runs as a user who is nobody in particular: everything must be readable.
    mode = 0o755 if about.st_mode & 0o111 else 0o644
    if stat.S_ISDIR(about.st_mode):
        return _Entry(name, 0o755)
    if stat.S_ISREG(about.st_mode):
        return _Entry(name, mode, path)
    raise UserError(f"extra payload `{path}` is neither file, folder nor link")


def _parents(name: str) -> list[_Entry]:
    parts = name.strip("/").split("/")
    return [_Entry("/".join(parts[: n + 1])) for n in range(len(parts))]


def _write(entries: list[_Entry], path: Path) -> Layer:
    with path.open("wb") as file:
        packed = Hashing(file)
        with gzip.GzipFile("", "wb", 6, cast(BinaryIO, packed), 0) as zipped:
            plain = Hashing(zipped)
            with tarfile.open(
                fileobj=cast(BinaryIO, plain), mode="w|", format=tarfile.PAX_FORMAT
            ) as tar:
                for entry in _parents_first(entries):
                    _add(tar, entry)
    return Layer(Blob(packed.digest, path.stat().st_size), plain.digest, path)


def _parents_first(entries: list[_Entry]) -> list[_Entry]:
    """In an order that Lambda takes: it refuses a layer that names a child before its folder."""
    ordered = sorted(entries, key=lambda one: one.name.strip("/").split("/"))
    seen = {""}
    for entry in ordered:
        name = entry.name.strip("/")
        assert name.rpartition("/")[0] in seen, f"{name} has no parent"
        seen.add(name)
    return ordered


def _add(tar: tarfile.TarFile, entry: _Entry) -> None:
    info = tarfile.TarInfo(entry.name.strip("/"))
    info.mode = entry.mode
    if entry.link:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
        tar.addfile(info)
    elif entry.content is None:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif isinstance(entry.content, bytes):
        info.size = len(entry.content)
        tar.addfile(info, io.BytesIO(entry.content))
    else:
        with entry.content.open("rb") as source:
            info.size = os.fstat(source.fileno()).st_size
            tar.addfile(info, source)
