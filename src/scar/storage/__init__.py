"""Copy files to buckets and back, and list what is there.

`names` says which file is which key, `parts` whether two are the same; `sending` and `fetching`
copy, in the threads of `crew`. Everything is a stream: a folder's files and a bucket's objects
are looked at while others are copied, and results come in the order of the keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

from scar.aws.account import Account
from scar.aws.buckets import Buckets
from scar.aws.errors import is_absent
from scar.aws.objects import ObjectInfo, Objects, objects
from scar.errors import CloudError, Missing, TransferFailed, UserError
from scar.plan.desired import object_path
from scar.plan.resources import Bucket
from scar.storage.crew import Crew, Result, Task
from scar.storage.fetching import Fetching, Wanted, work_folder
from scar.storage.names import (
    FILE_NAME_LIMIT_BYTES,
    Fault,
    Source,
    Special,
    Standing,
    Walked,
    just_before,
    parts_of,
    source,
    too_long,
    walk,
)
from scar.storage.sending import Sending
from scar.storage.tally import Progress, Tally, Transfer

__all__ = ["Listener", "Progress", "Transfer", "get", "list_objects", "put", "store"]


_BESIDE_THREADS = 4
"""For a file that is sent beside a command's own work; each holds a part of it, 16 MiB."""


class Listener(Protocol):
    """Hears what happens on the way, one call at a time."""

    def progress(self, progress: Progress) -> None:
        """How far it is."""

    def warn(self, text: str) -> None:
        """Something deserves attention but stops nothing."""


def put(
    account: Account, bucket_path: str, local: Path, listener: Listener, *, force: bool = False
) -> Generator[Transfer, None, None]:
    """Upload a file, or a folder with all below it, under `bucket[/prefix]`.

    A file becomes `prefix/<its name>`; a folder's files keep their path below the folder (the
    reference implementation drops sub-folders, so files of one name replaced each other). Missing
    buckets are created. What is there with the same bytes is not sent, unless with `force`.
    Sockets, pipes and devices are left out with a warning.

    Close it to break off. Raises Missing where `local` does not exist, UserError where it cannot
    be an object; TransferFailed, after all others are sent, where some files cannot.
    """
    bucket, prefix = _target(bucket_path)
    if not local.exists():
        raise Missing(f"`{local}` does not exist")
    start = f"{prefix}/" if prefix else ""
    walked = walk(local, start) if local.is_dir() else iter([_single(local, start + local.name)])
    return _put(account, bucket, walked, _There(account, bucket, start, listener, force), listener)


def get(
    account: Account, bucket_path: str, local: Path, listener: Listener, *, force: bool = False
) -> Generator[Transfer, None, None]:
    """Download the object `bucket/key`, or all below `bucket[/prefix]`, into folder `local`.

    An object becomes `local/<its key below the prefix>` (the reference implementation repeats the
    whole key below `local`, and takes `a/bc` for a part of `a/b`). No key leads out of `local`, and
    no two keys to one file: parts that are no file names (`..`, `.`, empty) are written
    percent-encoded. A file appears under its name when it is whole. What is there with the same
    bytes is not fetched, unless with `force`.

    Close it to break off. Raises Missing where there is nothing, UserError where `local` cannot be
    a folder; TransferFailed, after all others are fetched, where some objects cannot be files.
    """
    bucket, prefix = _target(bucket_path)
    if local.exists() and not local.is_dir():
        raise UserError(f"`{local}` is a file", "name the folder to download into")
    return _get(account, (bucket, prefix), local, listener, force)


def list_objects(account: Account, bucket_path: str) -> Iterator[ObjectInfo]:
    """The objects whose key starts with the prefix of `bucket[/prefix]`, without folder markers.

    Raises Missing where there is no such bucket.
    """
    bucket, _, prefix = bucket_path.removeprefix("s3://").lstrip("/").partition("/")
    for info in _listed(bucket, objects(account, bucket, prefix)):
        if not _is_marker(info):
            yield info


def store(account: Account, bucket: str, key: str, file: Path) -> None:
    """Make an object of a file of any size, in parts where it is large.

    Raises TransferFailed where the file cannot be read, or changes meanwhile; CloudError.
    """
    crew, its = Crew(), Objects(account, bucket)
    sending = Sending(crew, its, bucket, Tally(lambda progress: None), _BESIDE_THREADS)
    task = partial(sending.send, Source(str(file), key, file.stat().st_size), None)
    try:
        for result in crew.results([task]):
            if isinstance(result, Fault):
                raise TransferFailed(f"cannot send `{file}`", [str(result)])
    finally:
        crew.stop()
        its.abort_all()


def _put(
    account: Account, bucket: str, walked: Iterator[Walked], there: _There, listener: Listener
) -> Generator[Transfer, None, None]:
    crew, its, tally = Crew(), Objects(account, bucket), Tally(listener.progress)
    sending = Sending(crew, its, bucket, tally)

    def work() -> Iterator[Task | Fault]:
        for found in walked:
            if isinstance(found, Special):
                listener.warn(f"`{found.path}` is left out: it is no regular file")
            elif isinstance(found, Fault):
                yield found
            else:
                tally.found(found.size_bytes)
                yield partial(sending.send, found, there.find(found.key))

    try:
        yield from _without_faults(crew.results(work()), "sent")
        there.open()  # an empty folder makes a bucket too
    finally:
        try:
            crew.stop()
        finally:
            its.abort_all()


def _get(
    account: Account, place: tuple[str, str], local: Path, listener: Listener, force: bool
) -> Generator[Transfer, None, None]:
    bucket, prefix = place
    its, crew, tally = Objects(account, bucket), Crew(), Tally(listener.progress)
    fetching = Fetching(crew, its, bucket, tally, force=force)
    found = _listed(bucket, _below(account, its, bucket, prefix))
    first = next(found, None)
    if first is None and prefix:
        raise Missing(
            f"there is no object at or below `{bucket}/{prefix}`", "`scar ls -b` shows all"
        )
    _make(local)
    if first is None:
        return

    with work_folder(local) as growing:

        def work() -> Iterator[Task | Fault]:
            for wanted in _placed(chain([first], found), prefix, local):
                if isinstance(wanted, Fault):
                    yield wanted
                else:
                    tally.found(wanted.info.size_bytes)
                    yield partial(fetching.fetch, wanted, growing())

        try:
            yield from _without_faults(crew.results(work()), "fetched")
        finally:
            crew.stop()


class _There:
    """What a bucket holds, for keys that are asked for in order. Makes the bucket if need be."""

    def __init__(
        self, account: Account, bucket: str, prefix: str, listener: Listener, force: bool
    ) -> None:
        self._account, self._bucket, self._prefix = account, bucket, prefix
        self._listener, self._force = listener, force
        self._objects = Objects(account, bucket)
        self._page: deque[ObjectInfo] = deque()
        self._more, self._is_open, self._last = True, False, ""

    def open(self, key: str = "") -> None:
        """Look at the bucket, unless that is done, from `key` on; make it if it is not there."""
        if self._is_open:
            return
        self._is_open = True
        try:
            self._read(key)
        except CloudError as exc:
            self._more = False
            if is_absent(exc):
                Buckets(self._account).create(Bucket(self._bucket))
            elif exc.code in ("AccessDenied", "403"):
                if not self._force:
                    self._listener.warn(
                        f"bucket `{self._bucket}` may not be listed: everything is sent, also what"
                        " is there already"
                    )
            else:
                raise

    def find(self, key: str) -> ObjectInfo | None:
        """The object of `key`, which sorts after all asked for before."""
        self.open(key)
        if self._force:
            return None
        while True:
            while self._page and self._page[0].key < key:
                self._page.popleft()
            if self._page or not self._more:
                break
            self._read(key)
        return self._page[0] if self._page and self._page[0].key == key else None

    def _read(self, key: str) -> None:
        # What is before the key belongs to no file here, however much it is.
        after = max(self._last, just_before(key))
        found, self._more = self._objects.page(self._prefix, after)
        self._page.extend(found)
        if found:
            self._last = found[-1].key


def _target(bucket_path: str) -> tuple[str, str]:
    bucket, prefix = object_path(bucket_path)
    if not bucket:
        raise UserError(f"`{bucket_path}` names no bucket", "write it as `bucket` or `bucket/path`")
    return bucket, prefix


def _single(local: Path, key: str) -> Source:
    found = source(str(local), key, local.stat())
    if isinstance(found, Source):
        return found
    raise UserError(
        str(found) if isinstance(found, Fault) else f"`{found.path}` is no regular file",
        "name a file or a folder",
    )


def _without_faults(results: Iterable[Result], done: str) -> Iterator[Transfer]:
    """The transfers; at the end one error for all that failed."""
    faults: list[Fault] = []
    count = 0
    for result in results:
        if isinstance(result, Fault):
            faults.append(result)
        else:
            count += 1
            yield result
    if not faults:
        return
    if len(faults) == 1 and not count:
        raise UserError(str(faults[0]))
    raise TransferFailed(
        f"{len(faults)} of {count + len(faults)} files were not {done}",
        [str(fault) for fault in faults],
        "mend these and run the same command again: what is there already is skipped",
    )


def _listed(bucket: str, found: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
    try:
        yield from found
    except CloudError as exc:
        if is_absent(exc):
            raise Missing(f"bucket `{bucket}` does not exist in this account") from exc
        raise


def _below(account: Account, its: Objects, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    """The object `prefix` and all below it, without listing `prefix-2` on the way."""
    if prefix:
        found, _ = its.page(prefix, "", most=1)
        yield from (info for info in found if info.key == prefix)
        prefix += "/"
    yield from objects(account, bucket, prefix)


def _placed(found: Iterable[ObjectInfo], prefix: str, local: Path) -> Iterator[Wanted | Fault]:
    """Where each object goes; its folder is made, and those that folder markers mean."""
    places = _Places(prefix, local)
    for info in found:
        try:
            place = places.of(info)
        except OSError as exc:
            why = (exc.strerror or str(exc)).lower()
            yield Fault(info.key, f"cannot become a file: `{exc.filename}`: {why}")
        else:
            if place is not None:
                yield place


class _Places:
    """Files for the objects of a sorted listing."""

    def __init__(self, prefix: str, local: Path) -> None:
        self._start, self._local, self._made = f"{prefix}/" if prefix else "", local, local
        self._prefix, self._single = prefix, ""
        self._standing = Standing()

    def of(self, info: ObjectInfo) -> Wanted | Fault | None:
        """The file of one object, in a folder that is there; None for a marker.

        Raises OSError where the folder cannot be.
        """
        is_single = info.key == self._prefix
        relative = info.key.rpartition("/")[2] if is_single else info.key[len(self._start) :]
        under = self._under(relative)
        if _is_marker(info):
            if under is None and relative:  # where a file is, nothing is lost
                self._make(self._local.joinpath(*parts_of(relative[:-1])))
            return None
        if under is not None:
            return Fault(info.key, f"needs a folder where `{under}` is a file: get it by itself")
        if is_single:
            self._single = relative
        else:
            self._standing.add(relative)
        parts = parts_of(relative)
        if size := too_long(parts):
            most = f"a file's name at most {FILE_NAME_LIMIT_BYTES}"
            return Fault(info.key, f"has a part of {size} bytes, {most}: get it by itself")
        path = self._local.joinpath(*parts)
        self._make(path.parent)
        return Wanted(info, path)

    def _under(self, relative: str) -> str | None:
        """The key whose file stands in the way."""
        single = self._single
        if single and f"{relative}/".startswith(f"{single}/"):
            return self._prefix
        over = self._standing.over(relative)
        return None if over is None else self._start + over

    def _make(self, folder: Path) -> None:
        if folder != self._made:
            folder.mkdir(parents=True, exist_ok=True)
            self._made = folder


def _is_marker(info: ObjectInfo) -> bool:
    """Whether an object only says that there is a folder."""
    return info.key.endswith("/") and info.size_bytes == 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        raise UserError(f"cannot make folder `{folder}`: {why}") from exc
