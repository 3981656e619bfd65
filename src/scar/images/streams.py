"""Streams that know what goes by: digests checked, written or packed, never the whole in memory."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from scar.errors import ImageError

PART_BYTES = 1 << 18
"""Read and written at a time."""

Packing: TypeAlias = Literal["none", "gzip", "zstd", "xz", "bzip2"]

_MAGIC: tuple[tuple[bytes, Packing], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
)
MAGIC_BYTES = max(len(magic) for magic, _ in _MAGIC)


class CorruptBlob(ImageError):
    """A blob's bytes are not those its digest names."""


class Reading(io.RawIOBase):
    """A stream that is made by giving it `read`; never more than it is asked for."""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`: how many bytes; 0 at the end."""
        data = self.read(len(buffer)) or b""
        buffer[: len(data)] = data
        return len(data)


class Checked(Reading):
    """A stream that raises CorruptBlob at its end where size or digest are not as they should be.

    `named` is the image as the user wrote it.
    """

    def __init__(self, stream: BinaryIO, digest: str, size_bytes: int, named: str) -> None:
        self._stream, self._digest, self._named = stream, digest, named
        self._left, self._hash = size_bytes, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; b"" at the end."""
        data = self._stream.read(size)
        self._hash.update(data)
        self._left -= len(data)
        # At the last byte, not at the end of the stream: the receiver stops at Content-Length.
        if self._left <= 0 and f"sha256:{self._hash.hexdigest()}" != self._digest:
            raise self._corrupt("its content is not what its digest names")
        if not data and self._left:
            raise self._corrupt(f"{self._left} bytes are missing")
        return data

    def close(self) -> None:
        """Close what it reads from."""
        self._stream.close()
        super().close()

    def _corrupt(self, why: str) -> CorruptBlob:
        return CorruptBlob(self._named, f"blob {self._digest} is damaged: {why}")


class Hashing(io.RawIOBase):
    """Writes through to another stream, and knows the digest of what went by."""

    def __init__(self, to: object) -> None:
        self._to, self._hash = cast(BinaryIO, to), hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of all that was written."""
        return f"sha256:{self._hash.hexdigest()}"

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Write `data`, hashed."""
        self._hash.update(data)
        self.size_bytes += len(data)
        return self._to.write(data)


def forget(tar: Any) -> None:
    """Drop what a TarFile keeps of each member that has passed by."""
    tar.members = []


def packing_of(head: bytes) -> Packing:
    """How what begins with `head` is compressed."""
    return next((packing for magic, packing in _MAGIC if head.startswith(magic)), "none")


def unpacked(stream: BinaryIO, packing: Packing) -> BinaryIO:
    """The content of a compressed stream. Closing it does not close `stream`.

    Reading raises one of `damaged()` where it is not what it should be.
    """
    opened: Any = stream
    match packing:
        case "gzip":
            opened = _gzip_file()(fileobj=stream, mode="rb")
        case "zstd":
            opened = _zstd().ZstdFile(stream, "rb")
        case "xz":
            opened = lzma.LZMAFile(stream)  # noqa: SIM115
        case "bzip2":
            opened = bz2.BZ2File(stream)
    return cast(BinaryIO, opened)


def damaged() -> tuple[type[Exception], ...]:
    """What reading an `unpacked` stream, or a tar in it, raises where it is damaged."""
    return (
        tarfile.TarError,
        EOFError,
        OSError,
        lzma.LZMAError,
        zlib.error,
        _gzip_error(),
        _zstd().ZstdError,
    )


def pack(plain: BinaryIO, path: Path) -> tuple[str, str, int]:
    """Write `plain` to `path` as gzip: its digest before and after, and its size after.

    The same content gives the same bytes. ISA-L compresses ten times as fast as zlib's level 6,
    into 15 % more.
    """
    with path.open("wb") as file:
        packed = Hashing(file)
        with _gzip_file()("", "wb", 1, cast(BinaryIO, packed), 0) as zipped:
            through = Hashing(zipped)
            while part := plain.read(PART_BYTES):
                through.write(part)
    return through.digest, packed.digest, packed.size_bytes


def _gzip_file() -> Any:
    """ISA-L's, where there is one for this processor; imported here, as few commands need it."""
    try:
        from isal.igzip import IGzipFile
    except ImportError:
        return gzip.GzipFile
    return IGzipFile


def _gzip_error() -> Any:
    try:
        from isal.isal_zlib import error
    except ImportError:
        return zlib.error
    return error


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
