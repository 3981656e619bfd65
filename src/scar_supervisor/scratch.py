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

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


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
    """Remove a directory and all in it, following no links; how many entries would not go.

    Directories are moved up before they are emptied: a script may nest them deeper than a path can
    say, a function can call itself, or files can be open.
    """
    try:
        os.chmod(root, 0o700)
        top = os.open(root, _DIRECTORY)
    except FileNotFoundError:
        return 0
    except OSError:
        return 1
    try:
        todo, left = _flatten(top, top)
        while todo:
            moved, stayed = _empty(todo.pop(), top)
            todo += moved
            left += stayed
        os.rmdir(root)
    except OSError:
        return left or 1
    finally:
        os.close(top)
    return left


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


def _empty(name: str, top: int) -> tuple[list[str], int]:
    """Remove a directory of `top`; see `_flatten`."""
    try:
        directory = os.open(name, _DIRECTORY, dir_fd=top)
    except OSError:
        return [], 1
    try:
        moved, left = _flatten(directory, top)
    finally:
        os.close(directory)
    try:
        os.rmdir(name, dir_fd=top)
    except OSError:
        left = left or 1
    return moved, left


def _flatten(directory: int, top: int) -> tuple[list[str], int]:
    """Remove the files of a directory, move its directories to `top`.

    The directories' new names, and how many entries stay.
    """
    moved, left = [], 0
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.name, 0o700, dir_fd=directory)  # else it cannot be moved
                name = f".scar-{os.urandom(8).hex()}"
                os.rename(entry.name, name, src_dir_fd=directory, dst_dir_fd=top)
                moved.append(name)
            else:
                os.unlink(entry.name, dir_fd=directory)
        except FileNotFoundError:
            continue  # a process that the script left behind was faster
        except OSError:
            left += 1
    return moved, left
