"""Files here and keys there: what a folder holds, and where a key belongs."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEY_LIMIT_BYTES = 1024
"""The longest key of S3, in UTF-8."""

FILE_NAME_LIMIT_BYTES = 255
"""The longest name of a file or folder, here and nearly everywhere."""


@dataclass(frozen=True)
class Fault:
    """One file or object that cannot be copied. The others are."""

    name: str
    why: str

    def __str__(self) -> str:
        # A name may hold what a terminal takes for a command.
        name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in self.name)
        return f"`{name}` {self.why}"


@dataclass(frozen=True)
class Special:
    """A socket, pipe or device: nothing that could be an object."""

    path: str


@dataclass(frozen=True)
class Source:
    """A file here and the key it gets."""

    path: str
    key: str
    size_bytes: int
    """When it was found."""


Walked = Source | Fault | Special


def walk(folder: Path, start: str) -> Iterator[Walked]:
    """All below `folder`, with keys that begin with `start`, in the order of S3's keys.

    Links are followed, also those that lead out of the folder. One that leads back into a folder
    it is in is a fault.
    """
    here = os.fspath(folder)
    try:
        status = os.stat(here)
        frames = [_Frame(_sorted(here), start, _identity(status))]
    except OSError as exc:
        yield Fault(shown(here), _why(exc))
        return
    while frames:
        frame = frames[-1]
        entry = next(frame.entries, None)
        if entry is None:
            frames.pop()
            continue
        key = frame.start + entry.name
        try:
            status = entry.stat()
            if not stat.S_ISDIR(status.st_mode):
                yield source(entry.path, key, status)
            elif _identity(status) in [above.identity for above in frames]:
                yield Fault(shown(entry.path), f"is a link into itself: {os.readlink(entry.path)}")
            else:
                frames.append(_Frame(_sorted(entry.path), f"{key}/", _identity(status)))
        except OSError as exc:
            yield Fault(shown(entry.path), _why(exc))


def source(path: str, key: str, status: os.stat_result) -> Walked:
    """One file as what is to be sent."""
    if not stat.S_ISREG(status.st_mode):
        return Special(shown(path))
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return Fault(shown(path), "has a name that is not UTF-8, keys of S3 are: rename it")
    if size > KEY_LIMIT_BYTES:
        return Fault(path, f"would get a key of {size} bytes, S3 allows {KEY_LIMIT_BYTES}")
    return Source(path, key, status.st_size)


def shown(path: str) -> str:
    """A path as it can be told: what is not UTF-8 as `\\xNN`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def parts_of(relative: str) -> tuple[str, ...]:
    """The names of folders and file that a key becomes; no two keys become the same.

    Parts that are no file names (`..`, `.`, empty, with a NUL) are percent-encoded, and so is a
    part that looks like one of those.
    """
    return tuple(map(_safe, relative.split("/")))


def too_long(parts: tuple[str, ...]) -> int:
    """The bytes of the first part that is too long for a file's name; 0 where all fit."""
    sizes = (len(part.encode()) for part in parts)
    return next((size for size in sizes if size > FILE_NAME_LIMIT_BYTES), 0)


def just_before(key: str) -> str:
    """A string that sorts before `key` with as little as possible between the two."""
    if not key:
        return ""
    stem, last = key[:-1], ord(key[-1]) - 1
    if last < ord(" ") or 0xD800 <= last < 0xE000:
        return stem
    # What S3 takes to start after is no longer than a key.
    end = "\U0010ffff" if len(key.encode()) + 4 <= KEY_LIMIT_BYTES else ""
    return stem + chr(last) + end


class Standing:
    """Which file keys of a sorted listing a later key would need to be a folder."""

    def __init__(self) -> None:
        self._open: list[str] = []

    def over(self, relative: str) -> str | None:
        """The earlier key whose file stands where `relative` needs a folder, or None."""
        # Between `a` and `a/…` a sorted listing has nothing that does not begin with `a`.
        while self._open and not relative.startswith(self._open[-1]):
            self._open.pop()
        return next((key for key in self._open if relative.startswith(f"{key}/")), None)

    def add(self, relative: str) -> None:
        """Take note of a file. Keys come in order."""
        self._open.append(relative)


@dataclass(frozen=True)
class _Frame:
    entries: Iterator[os.DirEntry[str]]
    start: str
    identity: tuple[int, int]


def _sorted(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=_place))


def _place(entry: os.DirEntry[str]) -> bytes:
    """Where an entry's keys sort: those of a folder have a `/` behind its name."""
    try:
        is_folder = entry.is_dir()
    except OSError:
        is_folder = False
    return os.fsencode(entry.name) + (b"/" if is_folder else b"")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _why(exc: OSError) -> str:
    if isinstance(exc, FileNotFoundError):
        return "is a link to what does not exist"
    return f"cannot be read: {(exc.strerror or str(exc)).lower()}"


_LOOKS_SAFE_MADE = re.compile(r"%(25)*00|\A%(25)*2F\Z|\A(%(25)*2E){1,2}\Z")


def _safe(part: str) -> str:
    if part == "":
        return "%2F"
    if part in (".", ".."):
        return part.replace(".", "%2E")
    if "\0" in part:
        return part.replace("%", "%25").replace("\0", "%00")
    return part.replace("%", "%25") if _LOOKS_SAFE_MADE.search(part) else part
