"""Copies an event's input to this machine and the script's output from it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scar_supervisor.contract import FunctionConfig, ObjectPath
from scar_supervisor.events import InputObject
from scar_supervisor.faults import ScriptTimedOut, StagingFailed
from scar_supervisor.log import Log
from scar_supervisor.parallel import for_each
from scar_supervisor.storage import Storages

LONGEST_NAME_BYTES = 255
LONGEST_KEY_BYTES = 1024
"""S3 takes no longer key."""

SPARE_BYTES = 1024 * 1024


def stage_in(item: InputObject, directory: str, storages: Storages, deadline: float | None) -> str:
    """Copy an event's object into `directory`; the file's path.

    Raises StagingFailed where it cannot be read, ScriptTimedOut at `deadline` (monotonic clock).
    """
    path = os.path.join(directory, safe_name(item.key))
    guard = Guard(directory, deadline)
    storages[item.provider].fetch(item.bucket, item.key, path, guard, item.size)
    return path


def safe_name(key: str) -> str:
    """A file name for a key: its last part, made fit for any directory, its suffix kept."""
    name = key.rstrip("/").rpartition("/")[2].replace("\0", "_")
    if name in ("", ".", ".."):
        return "input"
    raw = name.encode(errors="surrogateescape")
    if len(raw) <= LONGEST_NAME_BYTES:
        return name
    stem, suffix = os.path.splitext(name)
    end = suffix.encode(errors="surrogateescape")
    if len(end) > LONGEST_NAME_BYTES // 2:
        stem, end = name, b""
    start = stem.encode(errors="surrogateescape")[: LONGEST_NAME_BYTES - len(end)]
    return start.decode(errors="ignore") + end.decode()


@dataclass(frozen=True)
class Output:
    """What the script left, and what is told about it."""

    directory: str
    about: Mapping[str, str]
    """Metadata of every copy."""
    known_by: Mapping[str, str] | None = None
    """Metadata of what an earlier attempt may have copied: the same is not sent again."""


def stage_out(
    config: FunctionConfig, output: Output, storages: Storages, log: Log
) -> tuple[str, ...]:
    """Copy every file of `output` to the outputs that want it; the address of every copy.

    Raises StagingFailed before the first copy where a file cannot have a key, and after a failed
    copy with all that was and was not uploaded. What was uploaded stays: it is not taken back.
    """
    if not config.outputs:
        return ()
    directory = output.directory
    names = sorted(_files(directory, log), key=os.fsencode)
    uploads = [upload for path in config.outputs for upload in _uploads(path, directory, names)]
    if not uploads:
        log.info("no output files")
        return ()
    # One after the other those that are sent in several threads themselves.
    small = [upload for upload in uploads if upload.size < SPARE_BYTES * 16]
    large = [upload for upload in uploads if upload.size >= SPARE_BYTES * 16]

    def send(upload: _Upload) -> None:
        storage, place = storages[upload.provider], (upload.bucket, upload.key, upload.path)
        if output.known_by and storage.holds(*place, output.known_by):
            log.info(f"{upload.target} is there already, from an earlier attempt")
            return
        storage.store(*place, output.about)
        log.debug(f"uploaded {upload.target}")

    first = for_each(small, send)
    second = for_each(large if not first.failed else [], send, threads=1)
    order = {id(upload): index for index, upload in enumerate(uploads)}
    done = sorted(first.done + second.done, key=lambda upload: order[id(upload)])
    failed = first.failed + second.failed
    if failed:
        tried = {id(upload) for upload in done} | {id(upload) for upload, _ in failed}
        left = [upload for upload in uploads if id(upload) not in tried]
        raise StagingFailed("output", _account(done, failed, left))
    return tuple(upload.target for upload in uploads)


@dataclass(frozen=True)
class _Upload:
    provider: str
    bucket: str
    key: str
    path: str
    size: int

    @property
    def target(self) -> str:
        return f"{self.provider}://{self.bucket}/{self.key}"


class Guard:
    """Stops a transfer that has no room, or no time."""

    def __init__(self, directory: str, deadline: float | None) -> None:
        self._directory, self._deadline = directory, deadline
        self._started = time.monotonic()

    def room(self, size_bytes: int) -> None:
        """Raise StagingFailed unless there is room for so many bytes."""
        disk = os.statvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize
        if size_bytes + SPARE_BYTES > free:
            raise StagingFailed(
                "",
                f"it has {size_bytes:,} bytes, but only {free:,} bytes are free for it; give the "
                "function more `ephemeral_storage`",
            )

    def time(self) -> None:
        """Raise ScriptTimedOut when the invocation's time is over."""
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            raise ScriptTimedOut(now - self._started, doing="staging in was")


def _files(directory: str, log: Log) -> Iterator[str]:
    """Relative paths of all files to upload."""
    root = os.path.realpath(directory)
    yield from _files_below(directory, "", root, log)


def _files_below(
    directory: str, relative: str, root: str, log: Log, through_link: bool = False
) -> Iterator[str]:
    try:
        with os.scandir(os.path.join(directory, relative)) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as exc:
        raise StagingFailed(f"output `{relative or '.'}`", f"cannot be read: {exc}") from exc
    for entry in found:
        name = os.path.join(relative, entry.name)
        if entry.is_symlink():
            _check_link(entry.path, name, root)
            if entry.is_dir() and through_link:
                log.warning(f"output `{name}` is a link behind a link: not followed")
                continue
        if entry.is_dir():
            yield from _files_below(directory, name, root, log, through_link or entry.is_symlink())
        elif entry.is_file():
            yield name
        else:
            log.warning(f"output `{name}` is not a regular file: not uploaded")


def _check_link(path: str, name: str, root: str) -> None:
    real = os.path.realpath(path)
    if real != root and not real.startswith(f"{root}/"):
        raise StagingFailed(
            f"output `{name}`", f"is a link that leaves the output directory (to {real})"
        )
    if not os.path.exists(path):
        raise StagingFailed(f"output `{name}`", "is a link to nothing")


def _uploads(output: ObjectPath, directory: str, names: Sequence[str]) -> Iterator[_Upload]:
    for name in names:
        if not _wanted(output, os.path.basename(name)):
            continue
        try:
            key = f"{output.prefix}/{name}" if output.prefix else name
            length = len(key.encode())
        except UnicodeEncodeError as exc:
            shown = os.fsencode(name)
            raise StagingFailed(f"output {shown!r}", "its name is not UTF-8, a key is") from exc
        if length > LONGEST_KEY_BYTES:
            raise StagingFailed(
                f"output `{name}`", f"its key has {length} bytes, S3 takes {LONGEST_KEY_BYTES}"
            )
        path = os.path.join(directory, name)
        yield _Upload(output.provider, output.bucket, key, path, os.stat(path).st_size)


def _wanted(output: ObjectPath, name: str) -> bool:
    by_start = not output.name_prefixes or name.startswith(output.name_prefixes)
    by_end = not output.name_suffixes or name.endswith(output.name_suffixes)
    return by_start and by_end


def _account(
    done: Sequence[_Upload],
    failed: Sequence[tuple[_Upload, Exception]],
    left: Sequence[_Upload],
) -> str:
    parts = [f"{len(done)} of {len(done) + len(failed) + len(left)} files uploaded"]
    for upload, exc in failed:
        why = exc.why if isinstance(exc, StagingFailed) else exc
        parts.append(f"failed: {upload.target}: {why}")
    for word, uploads in (("uploaded", done), ("not tried", left)):
        if uploads:
            parts.append(f"{word}: {_listed(uploads, lambda upload: upload.target)}")
    return "; ".join(parts)


def _listed(uploads: Sequence[_Upload], name: Callable[[_Upload], str], most: int = 50) -> str:
    shown = ", ".join(name(upload) for upload in uploads[:most])
    return shown if len(uploads) <= most else f"{shown} and {len(uploads) - most} more"
