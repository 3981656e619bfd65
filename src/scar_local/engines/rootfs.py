"""Images' layers as directories: unpacked once per chain of layers, shared by all who run them.

Everything belongs to the user who runs the local cloud: bubblewrap maps one user into a container,
so the owners that layers name could not be kept for a process inside anyway. Devices are left out
(a container gets its own /dev), extended attributes and capabilities are not kept.

A layer comes from anyone: names are resolved inside the root as the container would see them, so
neither `..`, nor absolute names, nor symbolic links lead outside.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from scar_local.engines import EngineError

MOUNT_POINTS = ("proc", "dev", "sys", "tmp", "var/tmp", "etc", "run")
MOUNT_FILES = ("etc/resolv.conf", "etc/hosts")
_COPY_BYTES = 1 << 20
_SYMLINK_LIMIT = 40
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ZSTD = b"\x28\xb5\x2f\xfd"

_BROKEN = (
    *(tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError),
    RecursionError,
)
"""What a layer that is no good raises; the last where directories are a thousand deep."""


class RootFileSystems:
    """The cache `<data>/rootfs`: one directory per chain of layers, files shared by hard links.

    What is in it is never written to: containers mount it read-only or under an overlay.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)  # images hold setuid programs
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._needed: Counter[str] = Counter()
        self._leaving: set[str] = set()

    def tree(self, layers: Sequence[Path], digests: Sequence[str]) -> Path:
        """The root file system of these layers, base first; unpacked when it is not there yet.

        Functions of one image differ in their last layer only: the layers before it are unpacked
        once and linked into each. Raises EngineError where a layer cannot be unpacked.
        """
        final = self._directory / chain_id(digests)
        with self._lock(final.name):
            if final.is_dir():
                return final
            with self._building() as root:
                if len(layers) > 1:
                    with self._needing(_base_id(digests[:-1])):
                        link_tree(self._base(layers[:-1], digests[:-1]), root)
                unpack(layers[-1:], root)
                add_mount_points(root)
                root.rename(final)
        return final

    def borrow(self, layers: Sequence[Path], digests: Sequence[str]) -> Path:
        """`tree`, which nobody takes away until it is given back. Raises EngineError."""
        name = chain_id(digests)
        with self._guard:
            self._needed[name] += 1
        try:
            return self.tree(layers, digests)
        except BaseException:
            self._release(name)
            raise

    def give_back(self, root: Path) -> None:
        """A container on a borrowed root is gone."""
        self._release(root.name)

    def take_unused(self, keep: Collection[tuple[str, ...]]) -> list[Path]:
        """Set aside what belongs to none of the given chains (digests of the layers, base first).

        What is borrowed or just being unpacked stays. Remove the directories it answers.
        """
        wanted = {chain_id(chain) for chain in keep} | {_base_id(chain[:-1]) for chain in keep}
        unused = []
        with self._guard:
            for path in list(self._directory.iterdir()):
                if path.name not in wanted | self._needed.keys() | self._leaving:
                    unused.append(path.rename(self._directory / f"old-{uuid.uuid4().hex}"))
            self._leaving |= {path.name for path in unused}
        return unused

    def disk_bytes(self) -> int:
        """What all of it takes on the disk."""
        return disk_bytes(self._directory)

    def _base(self, layers: Sequence[Path], digests: Sequence[str]) -> Path:
        final = self._directory / _base_id(digests)
        with self._lock(final.name):
            if not final.is_dir():
                with self._building() as root:
                    unpack(layers, root)
                    root.rename(final)
        return final

    @contextmanager
    def _building(self) -> Iterator[Path]:
        root = self._directory / f"new-{uuid.uuid4().hex}"
        try:
            with self._needing(root.name):
                _make_open(str(root))
                yield root
        except _BROKEN as exc:
            raise EngineError(f"CannotPullContainerError: layer cannot be unpacked: {exc}") from exc
        finally:
            if root.exists():
                remove_tree(root)

    def _lock(self, name: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())

    @contextmanager
    def _needing(self, name: str) -> Iterator[None]:
        with self._guard:
            self._needed[name] += 1
        try:
            yield
        finally:
            self._release(name)

    def _release(self, name: str) -> None:
        with self._guard:
            self._needed[name] -= 1
            if not self._needed[name]:
                del self._needed[name]


def chain_id(digests: Sequence[str]) -> str:
    """The name of a chain of layers: equal chains, equal names."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def unpack(layers: Sequence[Path], root: Path) -> None:
    """Apply layers (tar, plain or gzip), base first, to the directory `root`.

    Raises ValueError for a compression that is not supported, OSError and tarfile.TarError for a
    broken layer.
    """
    modes: dict[str, int] = {}
    for layer in layers:
        with layer.open("rb") as file, _decompressed(file) as plain:
            _Layer(str(root), modes).apply(plain)
    for path, mode in sorted(modes.items(), reverse=True):
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, mode | stat.S_IRWXU)  # else we could neither read nor remove it


def add_mount_points(root: Path) -> None:
    """Make the places a container mounts over, in images that have them not (or as links)."""
    for name in MOUNT_POINTS:
        real, _ = locate(str(root), f"{name}/.")
        if "/" not in name and (root / name).is_symlink():
            _make_mountable(root, name, real)
    for name in MOUNT_FILES:
        directory, last = locate(str(root), name)
        path = os.path.join(directory, last)
        if os.path.islink(path) or not os.path.isfile(path):
            remove_tree(Path(path))
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            os.chmod(path, 0o644)


def _make_mountable(root: Path, name: str, real: str) -> None:
    """bubblewrap follows links when the root is not yet the root: absolute ones lead astray."""
    path = root / name
    path.unlink()
    if name in ("proc", "dev", "sys") or real == str(root):
        _make_open(str(path))
    else:
        path.symlink_to(os.path.relpath(real, root))


def make_directory(root: Path, name: str) -> None:
    """Make a directory inside `root`, its parents too; one that is there is left as it is."""
    locate(str(root), name.rstrip("/") + "/.")


def read_inside(root: Path, name: str) -> str:
    """The text of a file as the container would open it; empty where it is not there."""
    path = follow(root, name)
    return path.read_text("utf-8", "replace") if path and path.is_file() else ""


def is_executable(root: Path, name: str) -> bool:
    """Whether a container could start the program of this path."""
    path = follow(root, name)
    return path is not None and path.is_file() and os.access(path, os.X_OK)


def follow(root: Path, name: str) -> Path | None:
    """What `name` is inside `root`, links followed as in the container; it need not be there.

    None where links go in circles.
    """
    for _ in range(_SYMLINK_LIMIT):
        directory, last = locate(str(root), name, create=False)
        path = os.path.join(directory, last)
        if not last or not os.path.islink(path):
            return Path(path)
        target = os.readlink(path)
        name = target if target.startswith("/") else f"{directory[len(str(root)) :]}/{target}"
    return None


def link_tree(source: Path, target: Path) -> None:
    """Make `target` (an empty directory) equal to `source`, files being hard links to it."""
    with os.scandir(source) as entries:
        for entry in entries:
            path = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                path.mkdir()
                link_tree(Path(entry.path), path)
            else:
                os.link(entry.path, path, follow_symlinks=False)
    shutil.copystat(source, target)


def remove_tree(path: Path) -> None:
    """Remove a file or a directory with all in it, whatever its modes; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    path.chmod(stat.S_IRWXU)
    try:
        _empty(path)
    except OSError as exc:
        if exc.errno != errno.EXDEV:  # directories of an overlay's lower layer cannot be moved
            raise
        shutil.rmtree(path)
    else:
        path.rmdir()


def _empty(path: Path) -> None:
    top = os.open(path, _DIRECTORY)
    try:
        todo = _flatten(top, top)
        while todo:
            name = todo.pop()
            below = os.open(name, _DIRECTORY, dir_fd=top)
            try:
                todo += _flatten(below, top)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def _flatten(directory: int, top: int) -> list[str]:
    """Empty a directory: its files go, its directories move to `top`; their new names.

    So no depth is too deep: not for a path, not for recursion, not for open files.
    """
    moved = []
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=directory)
                continue
            os.chmod(entry.name, stat.S_IRWXU, dir_fd=directory)  # else it cannot be moved
            moved.append(uuid.uuid4().hex)
            os.rename(entry.name, moved[-1], src_dir_fd=directory, dst_dir_fd=top)
    return moved


def disk_bytes(directory: Path) -> int:
    """What a directory takes on the disk; a file of many names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, names, files in os.walk(directory):
        for name in (".", *(n for n in names if os.path.islink(os.path.join(folder, n))), *files):
            with suppress(FileNotFoundError):  # it may go while we look
                about = os.lstat(os.path.join(folder, name))
                inode = (about.st_dev, about.st_ino)
                if about.st_nlink == 1 or stat.S_ISDIR(about.st_mode) or inode not in seen:
                    total += about.st_blocks * 512
                    seen.add(inode)
    return total


def locate(root: str, name: str, create: bool = True) -> tuple[str, str]:
    """The real directory that holds `name` inside `root`, and the last part of the name.

    Links in the way are followed as in the container; missing directories are made (and what is
    no directory is replaced by one) when `create`. The last part is never followed; it is empty
    where the name is the root itself. Raises ValueError where links go in circles.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.endswith("/."):
        parts.append(".")
    if ".." in parts[-1:]:
        parts.append(".")
    todo, current, links = parts[:-1], root, 0
    while todo:
        part = todo.pop(0)
        if part == "..":
            current = root if current == root else os.path.dirname(current)
            continue
        path = os.path.join(current, part)
        if os.path.islink(path):
            links += 1
            if links > _SYMLINK_LIMIT:
                raise ValueError(f"too many symbolic links in `{name}`")
            target = os.readlink(path)
            current = root if target.startswith("/") else current
            todo = [part for part in target.split("/") if part not in ("", ".")] + todo
            continue
        if create and not os.path.isdir(path):
            if os.path.lexists(path):
                os.unlink(path)
            _make_open(path)
        current = path
    last = parts[-1] if parts else ""
    return current, "" if last == "." else last


def _make_open(path: str) -> None:
    """A directory that no layer gives a mode, as images have them; our umask has no say in it."""
    os.mkdir(path)
    Path(path).chmod(0o755)


class _Layer:
    """One layer being applied to a root that may hold the layers before it."""

    def __init__(self, root: str, modes: dict[str, int]) -> None:
        self._root = root
        self._modes = modes
        self._written: set[str] = set()

    def apply(self, plain: IO[bytes]) -> None:
        with tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                self._member(tar, member)

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        directory, name = locate(self._root, member.name)
        if not name:
            if member.isdir():
                self._modes[directory] = member.mode & 0o7777
            return
        if name == ".wh..wh..opq":
            self._empty(directory)
            return
        if name.startswith(".wh."):
            remove_tree(Path(directory, _single(name[len(".wh.") :])))
            return
        path = os.path.join(directory, name)
        self._note(path)
        if member.isdir():
            self._directory(path, member.mode & 0o7777)
            return
        remove_tree(Path(path))  # never written in place: files are shared by hard links
        if member.isreg():
            self._file(tar, member, path)
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            self._hard_link(member, path)
        elif member.isfifo():
            os.mkfifo(path)
            os.chmod(path, member.mode & 0o7777)

    def _directory(self, path: str, mode: int) -> None:
        if os.path.islink(path) or not os.path.isdir(path):
            remove_tree(Path(path))
            os.mkdir(path, 0o755)
        self._modes[path] = mode

    def _file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        source = tar.extractfile(member)
        if source is None:
            raise tarfile.ReadError(f"`{member.name}` has no content")
        with source, open(path, "xb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        os.chmod(path, (member.mode & 0o7777) | stat.S_IRUSR)
        os.utime(path, (member.mtime, member.mtime))

    def _hard_link(self, member: tarfile.TarInfo, path: str) -> None:
        directory, name = locate(self._root, member.linkname, create=False)
        target = os.path.join(directory, name)
        if not name or not os.path.lexists(target) or os.path.isdir(target):
            raise tarfile.ReadError(f"`{member.name}` links to `{member.linkname}`, no file of it")
        os.link(target, path, follow_symlinks=False)

    def _empty(self, directory: str) -> None:
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if path not in self._written:
                remove_tree(Path(path))

    def _note(self, path: str) -> None:
        while path != self._root and path not in self._written:
            self._written.add(path)
            path = os.path.dirname(path)


@contextmanager
def _decompressed(file: IO[bytes]) -> Iterator[IO[bytes]]:
    head = file.read(4)
    file.seek(0)
    if head == _ZSTD:
        raise ValueError("it is compressed with zstd; only gzip is supported")
    if head[:2] != b"\x1f\x8b":
        yield file
        return
    with gzip.GzipFile(fileobj=file) as plain:
        yield cast(IO[bytes], plain)


def _base_id(digests: Sequence[str]) -> str:
    return f"base-{chain_id(digests)}"


def _single(name: str) -> str:
    if name in ("", ".", ".."):
        raise ValueError(f"whiteout of `{name}`")
    return name
