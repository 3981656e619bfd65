"""Files to objects."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from scar.aws.objects import ObjectInfo, Objects, Part
from scar.storage.crew import THREADS, Crew, Result, Room
from scar.storage.names import Fault, Source, shown
from scar.storage.parts import FILE_LIMIT_BYTES, MIB, WHOLE_BELOW_BYTES, is_same, part_size
from scar.storage.tally import Tally, Transfer

_MEMORY_BYTES = 128 * MIB
"""Held by all bodies under way; one part of a file above 1.2 TiB may be more."""

_CHANGED = "changed while it was read: send it again when nobody writes to it"


class Sending:
    """Sends files into one bucket; its methods are jobs of a crew."""

    def __init__(
        self,
        crew: Crew,
        objects: Objects,
        bucket: str,
        tally: Tally,
        threads: int = THREADS,
    ) -> None:
        self._crew, self._objects, self._bucket, self._tally = crew, objects, bucket, tally
        self._room, self._threads = Room(_MEMORY_BYTES), threads

    def send(self, source: Source, there: ObjectInfo | None, future: Future[Result]) -> None:
        """Send one file unless `there` is the same; sets a Transfer or a Fault."""
        try:
            file = OpenFile(source.path)
        except OSError as exc:
            future.set_result(Fault(shown(source.path), _why(exc)))
            return
        if file.size_bytes >= WHOLE_BELOW_BYTES:
            _InParts(self, file, source, future).start(there)
            return
        try:
            future.set_result(self._whole(file, source, there))
        except OSError as exc:
            future.set_result(Fault(source.path, _why(exc)))
        finally:
            file.close()

    def transfer(self, source: Source, size_bytes: int, *, is_sent: bool) -> Transfer:
        """What to tell of a file."""
        target = f"{self._bucket}/{source.key}"
        return Transfer(source.path, target, size_bytes, "done" if is_sent else "unchanged")

    def _whole(self, file: OpenFile, source: Source, there: ObjectInfo | None) -> Transfer | Fault:
        size = file.size_bytes
        with self._room.taking(size):
            content = file.read(0, size)
            if file.has_changed() or len(content) != size:
                return Fault(source.path, _CHANGED)
            same = _agrees(file, there)
            if not same:
                self._objects.store(source.key, content)
        self._tally.copied(size, files=1)
        return self.transfer(source, size, is_sent=not same)


class _InParts:
    """One large file: up to 16 jobs take its parts in turn; the last to end makes the object."""

    def __init__(
        self, sending: Sending, file: OpenFile, source: Source, future: Future[Result]
    ) -> None:
        self._crew, self._objects = sending._crew, sending._objects
        self._sending, self._file, self._source, self._future = sending, file, source, future
        self._lock = threading.Lock()
        self._upload, self._parts, self._fault = "", list[Part](), ""
        self._cut = part_size(file.size_bytes)
        self._count = -(-file.size_bytes // self._cut)
        self._next = self._workers = 0

    def start(self, there: ObjectInfo | None) -> None:
        """Begin, unless there is nothing to do."""
        with self._ending_on_fault():
            if self._file.size_bytes > FILE_LIMIT_BYTES:
                self._fault = f"has {self._file.size_bytes} bytes, S3 allows {FILE_LIMIT_BYTES}"
            elif _agrees(self._file, there):
                self._file.close()
                size = self._file.size_bytes
                self._sending._tally.copied(size, files=1)
                self._future.set_result(self._sending.transfer(self._source, size, is_sent=False))
                return
            else:
                self._upload = self._objects.begin(self._source.key)
                self._workers = min(self._count, self._sending._threads)
                # Before files that wait: one large file after the other, each with all threads.
                self._crew.add(*[self._work] * self._workers, first=True)
                return
        self._give_up()

    def _work(self) -> None:
        with self._ending_on_fault():
            while (number := self._taken()) is not None:
                self._send(number)
        with self._lock:
            self._workers -= 1
            if self._workers:
                return
        self._end()

    def _taken(self) -> int | None:
        """The number of the next part, from 1; None where all are taken or none is wanted."""
        with self._lock:
            if self._fault or self._crew.is_stopped or self._next == self._count:
                return None
            self._next += 1
            return self._next

    def _send(self, number: int) -> None:
        first = (number - 1) * self._cut
        size = min(self._cut, self._file.size_bytes - first)
        with self._sending._room.taking(size):
            content = self._file.read(first, size)
            if len(content) != size or self._file.has_changed():
                self._fault = _CHANGED
                return
            part = self._objects.store_part(self._source.key, self._upload, number, content)
        with self._lock:
            self._parts.append(part)
        self._sending._tally.copied(size)

    def _end(self) -> None:
        with self._ending_on_fault():
            if not self._fault and self._file.has_changed():
                self._fault = _CHANGED
        if self._fault or len(self._parts) < self._count:
            self._give_up()
            return
        size = self._file.size_bytes
        parts = sorted(self._parts, key=lambda part: part.number)
        self._objects.end(self._source.key, self._upload, parts, size)
        self._file.close()
        self._sending._tally.copied(0, files=1)
        self._future.set_result(self._sending.transfer(self._source, size, is_sent=True))

    def _give_up(self) -> None:
        self._file.close()
        self._objects.abort(self._upload)
        if self._fault:
            self._future.set_result(Fault(self._source.path, self._fault))

    @contextmanager
    def _ending_on_fault(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            self._fault = _why(exc)


class OpenFile:
    """A regular file as it is when it is opened. Raises OSError where it cannot be read."""

    def __init__(self, path: str) -> None:
        # A pipe that took the file's place must not stop us.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._then = os.fstat(self._descriptor)
        if not stat.S_ISREG(self._then.st_mode):
            os.close(self._descriptor)
            raise OSError("it is no regular file any more")

    @property
    def size_bytes(self) -> int:
        """When it was opened."""
        return self._then.st_size

    def read(self, first: int, size: int) -> bytes:
        """`size` bytes from `first` on, fewer at the end. For any thread."""
        data = os.pread(self._descriptor, size, first)
        if len(data) == size or not data:
            return data
        pieces = [data]
        size, first = size - len(data), first + len(data)
        while size and (data := os.pread(self._descriptor, size, first)):
            pieces.append(data)
            size, first = size - len(data), first + len(data)
        return b"".join(pieces)

    def has_changed(self) -> bool:
        """Whether somebody has written to it since it was opened."""
        now = os.fstat(self._descriptor)
        return (now.st_size, now.st_mtime_ns) != (self._then.st_size, self._then.st_mtime_ns)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def _agrees(file: OpenFile, there: ObjectInfo | None) -> bool:
    return (
        there is not None
        and there.size_bytes == file.size_bytes
        and is_same(file.read, file.size_bytes, there.etag)
        and not file.has_changed()
    )


def _why(exc: OSError) -> str:
    return f"cannot be read: {(exc.strerror or str(exc)).lower()}"
