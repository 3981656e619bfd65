"""Fresh directories for one run of the script, and their end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from scar_supervisor import contract
from scar_supervisor.faults import ConfigFault, StagingFailed
from scar_supervisor.log import Log

_OWN_TMP = f"{contract.SCAR_DIR}/tmp"  # noqa: S108
"""In every derived image: an image without /tmp may have a user who cannot make one."""


@dataclass(frozen=True)
class Scratch:
    """Directories of one run; all below `root`, which is ours alone."""

    root: str
    input: str
    output: str


@contextmanager
def fresh(environ: Mapping[str, str], log: Log, name: str = "") -> Iterator[Scratch]:
    """New empty directories, removed at the end with all that is in them.

    With a `name` they are at the same place on every machine; what was there before is removed.
    Raises ConfigFault where no directory is writable.
    """
    root = _new_directory(environ, name)
    try:
        scratch = Scratch(root, os.path.join(root, "input"), os.path.join(root, "output"))
        os.mkdir(scratch.input)
        os.mkdir(scratch.output)
        yield scratch
    finally:
        if left := remove(root):
            log.warning(f"{left} files in {root} could not be removed")


def write_file(path: str, data: bytes, mode: int = 0o600) -> None:
    """Make a new file. Raises StagingFailed where the disk is full."""
    try:
        with open(path, "xb") as file:
            file.write(data)
        os.chmod(path, mode)
    except OSError as exc:
        raise StagingFailed(path, f"cannot be written: {exc.strerror}") from exc


def remove(root: str) -> int:
    """Remove a directory and all in it; how many entries would not go."""
    left = 0
    for directory, folders, files in os.walk(root, topdown=False, onerror=_make_readable):
        for name in files + folders:
            left += _gone(os.path.join(directory, name))
    if not _gone(root):
        return 0
    # A directory that the script made unreadable is readable now.
    for directory, folders, files in os.walk(root, topdown=False):
        for name in files + folders:
            _gone(os.path.join(directory, name))
    return left if _gone(root) else 0


def _new_directory(environ: Mapping[str, str], wanted: str) -> str:
    name = wanted or f"scar-{os.urandom(6).hex()}"
    tried = [environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp", _OWN_TMP]  # noqa: S108
    for folder in dict.fromkeys(tried):
        try:
            os.makedirs(folder, exist_ok=True)  # an image may have no /tmp
            path = os.path.join(os.path.abspath(folder), name)
            if wanted and os.path.isdir(path):
                remove(path)
            os.mkdir(path, 0o700)
        except OSError:
            continue
        return path
    raise ConfigFault(f"no writable directory for the script's files: tried {', '.join(tried)}")


def _make_readable(exc: OSError) -> None:
    if exc.filename:
        try:
            os.chmod(exc.filename, 0o700)
        except OSError:
            return  # counted when it cannot be removed


def _gone(path: str) -> int:
    """Remove one entry; 1 when it stays."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return 0
    except OSError:
        return 1
    return 0
