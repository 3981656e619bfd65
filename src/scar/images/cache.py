"""Layers that had to be packed anew, kept: as gzip, named by what they were and what they are."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

from scar.errors import ImageError
from scar.images.derive import Base, Blob
from scar.images.manifests import Source
from scar.images.streams import Checked, CorruptBlob, damaged, pack, unpacked
from scar.images.turns import Turns

LIMIT_BYTES = 4 << 30
"""What is kept; what was used longest ago goes first."""

_YOUNG_S = 3600
"""Younger files may be in use by another command: they stay."""
_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})\.tar\.gz")


class LayerCache:
    """A folder of repacked layers. Threads and processes may share it."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes
        self._turns = Turns()

    def gzipped(self, source: Source, base: Base, named: str) -> tuple[Source, Base]:
        """`base` with gzip layers only, and a source that has them; nothing where it is so already.

        Plain layers are compressed, zstd is taken for Lambda's sake: diff ids stay. Raises
        ImageError where a layer is damaged or there is no room.
        """
        if all(blob.packing == "gzip" for blob in base.layers):
            return source, base
        diff_ids: list[str] = base.config["rootfs"]["diff_ids"]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                found = list(
                    pool.map(
                        lambda blob, diff_id: self._gzipped(source, blob, diff_id, named),
                        base.layers,
                        diff_ids,
                    )
                )
            self._evict()
        except OSError as exc:
            hint = f"make room in `{self._folder}`" if exc.errno == errno.ENOSPC else ""
            raise ImageError(named, f"cannot pack its layers: {exc}", hint) from exc
        paths = {blob.digest: path for blob, path in found if path is not None}
        return _Repacked(source, paths, named), replace(base, layers=tuple(b for b, _ in found))

    def _gzipped(
        self, source: Source, blob: Blob, diff_id: str, named: str
    ) -> tuple[Blob, Path | None]:
        if blob.packing == "gzip":
            return blob, None
        with self._turns.of(diff_id):
            path = self._kept(diff_id) or self._packed(source, blob, diff_id, named)
        packed = f"sha256:{path.name[65:129]}"
        return Blob(packed, path.stat().st_size), path

    def _kept(self, diff_id: str) -> Path | None:
        for path in self._folder.glob(f"{_hex(diff_id)}-*.tar.gz"):
            if _NAME.fullmatch(path.name):
                os.utime(path)
                return path
        return None

    def _packed(self, source: Source, blob: Blob, diff_id: str, named: str) -> Path:
        handle, name = tempfile.mkstemp(".part", "layer-", self._folder)
        os.close(handle)
        part = Path(name)
        try:
            with source.open(blob) as stream:
                found, packed, _ = pack(cast(BinaryIO, _Readable(stream, blob, named)), part)
            if found != diff_id:
                raise CorruptBlob(named, f"layer {diff_id} is damaged: its content is {found}")
            path = self._folder / f"{_hex(diff_id)}-{_hex(packed)}.tar.gz"
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _evict(self) -> None:
        """Remove what is too much, and what a crash left."""
        every = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another command tidies up too
                about = path.stat()
                every.append((about.st_mtime, about.st_size, path))
        left, old = sum(size for _, size, _ in every), time.time() - _YOUNG_S
        for used, size, path in sorted(every):
            if used < old and (left > self._limit_bytes or path.suffix == ".part"):
                path.unlink(missing_ok=True)
                left -= size


class _Readable:
    """An unpacked layer whose damages are told as what they are."""

    def __init__(self, stream: BinaryIO, blob: Blob, named: str) -> None:
        self._plain, self._blob, self._named = unpacked(stream, blob.packing), blob, named
        self._damaged = damaged() if blob.packing != "none" else ()

    def read(self, size: int) -> bytes:
        try:
            return self._plain.read(size)
        except ImageError:
            raise
        except self._damaged as exc:
            raise CorruptBlob(self._named, f"layer {self._blob.digest} is damaged: {exc}") from exc


class _Repacked:
    """A source some of whose layers are in the cache."""

    def __init__(self, source: Source, paths: Mapping[str, Path], named: str) -> None:
        self._source, self._paths, self._named = source, paths, named

    @property
    def mounts(self) -> tuple[str, str] | None:
        return self._source.mounts

    def base(self, version: str, architecture: str) -> Base:
        return self._source.base(version, architecture)

    def open(self, blob: Blob) -> BinaryIO:
        path = self._paths.get(blob.digest)
        if path is None:
            return self._source.open(blob)
        return cast(BinaryIO, Checked(path.open("rb"), blob.digest, blob.size_bytes, self._named))


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
