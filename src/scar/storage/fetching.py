"""Objects to files: each grows under another name and appears under its own when it is whole."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scar.aws.objects import ObjectInfo, Objects
from scar.errors import CloudError, TransferFailed
from scar.storage.crew import THREADS, Crew, Result
from scar.storage.names import Fault
from scar.storage.parts import MIB, WHOLE_BELOW_BYTES, is_same
from scar.storage.sending import OpenFile
from scar.storage.tally import Tally, Transfer

_RANGE_BYTES = 16 * MIB

_WORK = ".scar-get-"

_FULL = (errno.ENOSPC, errno.EDQUOT)

_OBJECT_FAULTS = {
    "InvalidObjectState": "is archived: restore it in S3 first",
    "NoSuchKey": "was deleted meanwhile",
    "404": "was deleted meanwhile",
    "PreconditionFailed": "was replaced while it was fetched: get it again",
    "412": "was replaced while it was fetched: get it again",
}
"""What S3 says of one object and not of the others."""


@dataclass(frozen=True)
class Wanted:
    """An object and the file it becomes."""

    info: ObjectInfo
    path: Path


class Fetching:
    """Fetches objects of one bucket; its methods are jobs of a crew."""

    def __init__(
        self, crew: Crew, objects: Objects, bucket: str, tally: Tally, *, force: bool
    ) -> None:
        self._crew, self._objects, self._bucket, self._tally = crew, objects, bucket, tally
        self._force = force

    def fetch(self, wanted: Wanted, growing: Path, future: Future[Result]) -> None:
        """Fetch one object, by way of the file `growing`; sets a Transfer or a Fault."""
        info = wanted.info
        with self._setting_fault(wanted, future):
            if not self._force and _is_there(wanted):
                self._tally.copied(info.size_bytes, files=1)
                future.set_result(self.transfer(wanted, info.size_bytes, is_fetched=False))
            elif info.size_bytes >= WHOLE_BELOW_BYTES:
                _InRanges(self, wanted, growing, future).start()
            else:
                with _Growing(growing, wanted.path) as file:
                    size = self._objects.fetch(info.key, file.write)
                    file.finish(size)
                self._tally.copied(info.size_bytes, files=1)
                future.set_result(self.transfer(wanted, size, is_fetched=True))

    def transfer(self, wanted: Wanted, size_bytes: int, *, is_fetched: bool) -> Transfer:
        """What to tell of an object."""
        source = f"{self._bucket}/{wanted.info.key}"
        return Transfer(source, str(wanted.path), size_bytes, "done" if is_fetched else "unchanged")

    @contextmanager
    def _setting_fault(self, wanted: Wanted, future: Future[Result]) -> Iterator[None]:
        def tell(why: str) -> None:
            future.set_result(Fault(wanted.info.key, why))

        with _on_fault(wanted, tell):
            yield


class _InRanges:
    """One large object: up to 16 jobs take its ranges in turn; the last to end names the file."""

    def __init__(
        self, fetching: Fetching, wanted: Wanted, growing: Path, future: Future[Result]
    ) -> None:
        self._fetching, self._wanted, self._future = fetching, wanted, future
        self._lock = threading.Lock()
        self._file = _Growing(growing, wanted.path)
        self._left = iter(range(0, wanted.info.size_bytes, _RANGE_BYTES))
        self._workers = min(THREADS, -(-wanted.info.size_bytes // _RANGE_BYTES))
        self._arrived, self._fault = 0, ""

    def start(self) -> None:
        """Begin."""
        self._fetching._crew.add(*[self._work] * self._workers, first=True)

    def _work(self) -> None:
        with _on_fault(self._wanted, self._set_fault):
            while (first := self._taken()) is not None:
                self._fetch(first)
        with self._lock:
            self._workers -= 1
            if self._workers:
                return
        self._end()

    def _taken(self) -> int | None:
        with self._lock:
            if self._fault or self._fetching._crew.is_stopped:
                return None
            return next(self._left, None)

    def _fetch(self, first: int) -> None:
        info = self._wanted.info
        size = min(_RANGE_BYTES, info.size_bytes - first)
        got = self._fetching._objects.fetch_range(info, first, size, self._file.write)
        with self._lock:
            self._arrived += got
        self._fetching._tally.copied(got)

    def _end(self) -> None:
        size = self._wanted.info.size_bytes
        with _on_fault(self._wanted, self._set_fault), self._file:
            if self._arrived == size and not self._fault:
                self._file.finish(size)
        if self._fault:
            self._future.set_result(Fault(self._wanted.info.key, self._fault))
        elif self._arrived == size:
            self._fetching._tally.copied(0, files=1)
            self._future.set_result(self._fetching.transfer(self._wanted, size, is_fetched=True))

    def _set_fault(self, why: str) -> None:
        self._fault = why


class _Growing:
    """A file that is not whole yet. Leaving it unfinished removes it."""

    def __init__(self, path: Path, target: Path) -> None:
        if target.parent.stat().st_dev != path.parent.stat().st_dev:
            # A file cannot be renamed into another file system.
            path = target.parent / f"{_WORK}{os.getpid()}-{path.name}"
        self._path, self._target, self._is_finished = path, target, False
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o666)

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_finished:
            os.close(self._descriptor)
            self._path.unlink(missing_ok=True)

    def write(self, data: bytes, offset: int) -> None:
        """Put `data` at `offset`. For any thread."""
        left = memoryview(data)
        while left:
            count = os.pwrite(self._descriptor, left, offset)
            left, offset = left[count:], offset + count

    def finish(self, size_bytes: int) -> None:
        """It is whole: give it its name."""
        os.ftruncate(self._descriptor, size_bytes)
        os.close(self._descriptor)
        self._is_finished = True
        try:
            self._path.replace(self._target)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise


@contextmanager
def work_folder(target: Path) -> Iterator[Callable[[], Path]]:
    """A folder in `target` for files that grow; gives what makes up their names.

    Removed at the end, and with it those that commands left which were killed.
    """
    for left in target.glob(f"{_WORK}*"):
        with suppress(OSError):
            _remove_unless_used(left)
    folder = Path(tempfile.mkdtemp(prefix=_WORK, dir=target))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    numbers = itertools.count()
    try:
        yield lambda: folder / str(next(numbers))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_unless_used(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _is_there(wanted: Wanted) -> bool:
    """Whether the file is there already, the same bytes."""
    try:
        file = OpenFile(str(wanted.path))
    except OSError:
        return False
    try:
        size = wanted.info.size_bytes
        return (
            file.size_bytes == size
            and is_same(file.read, size, wanted.info.etag)
            and not file.has_changed()
        )
    finally:
        file.close()


@contextmanager
def _on_fault(wanted: Wanted, tell: Callable[[str], None]) -> Iterator[None]:
    """`tell` what concerns one object only; a full disk ends everything."""
    try:
        yield
    except CloudError as exc:
        if exc.code not in _OBJECT_FAULTS:
            raise
        tell(_OBJECT_FAULTS[exc.code])
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        if exc.errno in _FULL:
            raise TransferFailed(
                f"no room for object `{wanted.info.key}` in `{wanted.path.parent}`: {why}", []
            ) from exc
        tell(f"cannot become `{wanted.path}`: {why}")
