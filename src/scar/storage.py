"""Copy files to buckets and back, and list what is there."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scar.aws import buckets as s3
from scar.aws.account import Account
from scar.aws.buckets import Copy, ObjectInfo
from scar.aws.errors import is_absent
from scar.errors import CloudError, Missing, UserError
from scar.plan.desired import object_path
from scar.plan.resources import Bucket

KEY_LIMIT_BYTES = 1024
"""The longest key of S3, in UTF-8."""

FILE_NAME_LIMIT_BYTES = 255
"""The longest name of a file or folder, here and nearly everywhere."""


@dataclass(frozen=True)
class Progress:
    """How far one file is."""

    file: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Transfer:
    """One file that was copied."""

    source: str
    target: str
    size_bytes: int


@dataclass(frozen=True)
class _Pair:
    """A file here and an object there."""

    path: Path
    key: str
    size_bytes: int


def put(
    account: Account, bucket_path: str, local: Path, on_progress: Callable[[Progress], None]
) -> list[Transfer]:
    """Upload a file, or a folder with all below it, under `bucket[/prefix]`.

    A file becomes `prefix/<its name>`; a folder's files keep their path below the folder (the
    reference implementation drops sub-folders, so files of one name replaced each other). Missing
    buckets are created. Raises Missing where `local` does not exist, UserError where a file cannot
    be an object.
    """
    bucket, prefix = _target(bucket_path)
    pairs = list(_files(local, prefix))
    handler = s3.Buckets(account)
    if handler.read(bucket) is None:
        handler.create(Bucket(bucket))
    heard = _Heard(on_progress)
    with _using_files():
        s3.upload(account, bucket, [heard.copy(str(p.path), p.path, p) for p in pairs])
    return [Transfer(str(p.path), f"{bucket}/{p.key}", p.size_bytes) for p in pairs]


def get(
    account: Account, bucket_path: str, local: Path, on_progress: Callable[[Progress], None]
) -> list[Transfer]:
    """Download the object `bucket/key`, or all below `bucket[/prefix]`, into folder `local`.

    An object becomes `local/<its key below the prefix>` (the reference implementation repeats the
    whole key below `local`, and takes `a/bc` for a part of `a/b`). No key leads out of `local`:
    parts that are no file names (`..`, `.`, empty) are written percent-encoded. Keys that cannot
    stand beside each other in a file system are refused before anything is copied. A file appears
    under its name when it is whole. Raises Missing where there is nothing, UserError for such keys.
    """
    bucket, prefix = _target(bucket_path)
    if local.exists() and not local.is_dir():
        raise UserError(f"`{local}` is a file", "name the folder to download into")
    found = list(_below(account, bucket, prefix))
    if not found and prefix:
        raise Missing(
            f"there is no object at or below `{bucket}/{prefix}`", "`scar ls -b` shows all"
        )
    folders, pairs = _places(found, prefix, local)
    heard = _Heard(on_progress)
    with _using_files():
        for folder in [local, *folders, *(p.path.parent for p in pairs)]:
            folder.mkdir(parents=True, exist_ok=True)
        # Own names while they grow: s3transfer's would make a name of 255 bytes too long.
        with tempfile.TemporaryDirectory(prefix=".scar-", dir=local) as work:
            whole = [(Path(work) / str(n), pair) for n, pair in enumerate(pairs)]
            try:
                s3.download(account, bucket, [heard.copy(p.key, path, p) for path, p in whole])
            finally:
                for path, pair in whole:
                    if path.exists():
                        path.replace(pair.path)
    return [Transfer(f"{bucket}/{p.key}", str(p.path), p.size_bytes) for p in pairs]


def list_objects(account: Account, bucket_path: str) -> Iterator[ObjectInfo]:
    """The objects whose key starts with the prefix of `bucket[/prefix]`, without folder markers.

    Raises Missing where there is no such bucket.
    """
    bucket, _, prefix = bucket_path.removeprefix("s3://").lstrip("/").partition("/")
    for info in _listed(account, bucket, prefix):
        if not (info.key.endswith("/") and info.size_bytes == 0):
            yield info


class _Heard:
    """Adds up the bytes of each file; s3transfer tells of them from its threads."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress, self._lock = on_progress, threading.Lock()

    def copy(self, file: str, path: Path, pair: _Pair) -> Copy:
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            with self._lock:  # one call at a time: those who listen need no lock of their own
                done += count
                self._on_progress(Progress(file, done, pair.size_bytes))

        return Copy(path, pair.key, on_bytes)


def _target(bucket_path: str) -> tuple[str, str]:
    bucket, prefix = object_path(bucket_path)
    if not bucket:
        raise UserError(f"`{bucket_path}` names no bucket", "write it as `bucket` or `bucket/path`")
    return bucket, prefix


def _files(local: Path, prefix: str) -> Iterator[_Pair]:
    if not local.exists():
        raise Missing(f"`{local}` does not exist")
    start = f"{prefix}/" if prefix else ""
    if not local.is_dir():
        yield _pair(local, start + local.resolve().name if local.name == "" else start + local.name)
        return
    for folder, folders, names in os.walk(local):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            yield _pair(path, start + path.relative_to(local).as_posix())


def _pair(path: Path, key: str) -> _Pair:
    if not path.is_file():
        raise UserError(f"`{path}` is no regular file", "remove it, or move it out of the folder")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as exc:
        shown = key.encode(errors="replace").decode()
        raise UserError(f"the name of `{shown}` is not UTF-8, keys of S3 are") from exc
    if size > KEY_LIMIT_BYTES:
        raise UserError(f"`{path}` would get a key of {size} bytes, S3 allows {KEY_LIMIT_BYTES}")
    return _Pair(path, key, path.stat().st_size)


def _listed(account: Account, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    try:
        yield from s3.objects(account, bucket, prefix)
    except CloudError as exc:
        if is_absent(exc):
            raise Missing(f"bucket `{bucket}` does not exist in this account") from exc
        raise


def _below(account: Account, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    for info in _listed(account, bucket, prefix):
        if not prefix or info.key == prefix or info.key.startswith(f"{prefix}/"):
            yield info


def _places(
    found: Iterable[ObjectInfo], prefix: str, local: Path
) -> tuple[list[Path], list[_Pair]]:
    """Where each object goes: folders for folder markers, files for the others."""
    folders: dict[tuple[str, ...], str] = {}
    files: dict[tuple[str, ...], ObjectInfo] = {}
    for info in found:
        parts = _parts(info, prefix)
        if info.key.endswith("/") and info.size_bytes == 0:
            folders[parts] = info.key
        elif parts in files:
            raise _clash(files[parts].key, info.key)
        else:
            files[parts] = info
    for parts, info in files.items():
        for n in range(1, len(parts)):
            if parts[:n] in files:
                raise _clash(files[parts[:n]].key, info.key)
    for parts, key in folders.items():
        for n in range(1, len(parts) + 1):
            if parts[:n] in files:
                raise _clash(files[parts[:n]].key, key)
    pairs = [
        _Pair(local.joinpath(*parts), info.key, info.size_bytes) for parts, info in files.items()
    ]
    return [local.joinpath(*parts) for parts in folders], pairs


def _parts(info: ObjectInfo, prefix: str) -> tuple[str, ...]:
    """The file names that a key becomes, each safe by itself."""
    if info.key == prefix:
        relative = prefix.rpartition("/")[2]
    else:
        relative = info.key[len(prefix) + 1 :] if prefix else info.key
    is_folder = info.key.endswith("/") and info.size_bytes == 0
    parts = (relative.removesuffix("/") if is_folder else relative).split("/")
    if is_folder and parts == [""]:
        return ()  # the marker of the prefix itself
    safe = tuple(map(_safe, parts))
    for part in safe:
        if len(part.encode()) > FILE_NAME_LIMIT_BYTES:
            raise UserError(
                f"object `{info.key}` cannot be a file: a part of its name has"
                f" {len(part.encode())} bytes, {FILE_NAME_LIMIT_BYTES} is the most",
                "get the others by a longer path",
            )
    return safe


def _safe(part: str) -> str:
    """One part of a key as a file name."""
    if part == "":
        return "%2F"
    if part in (".", ".."):
        return part.replace(".", "%2E")
    return part.replace("\0", "%00")


def _clash(one: str, other: str) -> UserError:
    return UserError(
        f"objects `{one}` and `{other}` cannot both be files in one folder",
        "get them one by one, into two folders",
    )


@contextmanager
def _using_files() -> Iterator[None]:
    """What this machine refuses is the user's to mend."""
    try:
        yield
    except OSError as exc:
        where = exc.filename2 or exc.filename or "a file"
        raise UserError(f"`{where}`: {exc.strerror or exc}") from exc
