"""The checksums of S3: computed while bytes pass, compared, and combined for multipart uploads.

CRC32, SHA-1, SHA-256, SHA-512 and MD5 are verified here. CRC32C, CRC64NVME and the XXHASH family
are verified where `awscrt` is installed; pure Python does 10-30 MB/s under the interpreter's lock,
so without it their values are kept for the client as they came.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scar_local.s3.call import S3Error

PREFIX = "x-amz-checksum-"


class Digest(Protocol):
    """hashlib's interface."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""

    def digest(self) -> bytes:
        """The value so far."""


@dataclass(frozen=True)
class Checksum:
    """An object's or part's checksum, as the client sees it."""

    algorithm: str
    """As in `ChecksumAlgorithm`: `CRC32`, `SHA256`, …"""
    value: str
    """Base64; for a COMPOSITE one with `-<number of parts>` behind."""
    type: str = "FULL_OBJECT"
    """FULL_OBJECT or COMPOSITE (a checksum of the parts' checksums)."""

    @property
    def header(self) -> tuple[str, str]:
        """Header name and value."""
        return PREFIX + self.algorithm.lower(), self.value

    @property
    def element(self) -> tuple[str, str]:
        """XML element name and text."""
        return "Checksum" + self.algorithm, self.value

    @property
    def raw(self) -> bytes:
        """The bytes of the value."""
        return base64.b64decode(self.value.partition("-")[0])


@dataclass(frozen=True)
class Algorithm:
    """One checksum algorithm."""

    name: str
    size: int
    """Bytes of the value."""
    start: Callable[[], Digest | None]
    """A fresh computation; None where this machine cannot compute it fast enough."""
    polynomial: int = 0
    """Of a CRC, reversed; 0 for hashes. CRCs of parts combine to the whole object's."""
    default_type: str = "COMPOSITE"
    """Checksum type of a multipart upload that names none."""


class _Crc:
    def __init__(self, function: Callable[[bytes, int], int], size: int) -> None:
        self._function, self._size, self._value = function, size, 0

    def update(self, data: bytes, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def _crt_crc(function: str, size: int) -> Callable[[], Digest | None]:
    def start() -> Digest | None:
        crt = _crt()
        return _Crc(getattr(crt, function), size) if hasattr(crt, function) else None

    return start


class _CrtHash:
    def __init__(self, hasher: Any) -> None:
        self._hasher = hasher

    def update(self, data: bytes, /) -> None:
        self._hasher.update(data)

    def digest(self) -> bytes:
        return bytes(self._hasher.finalize())


def _crt_hash(maker: str) -> Callable[[], Digest | None]:
    def start() -> Digest | None:
        make = getattr(getattr(_crt(), "XXHash", None), maker, None)
        return _CrtHash(make()) if make else None

    return start


def _crt() -> object:
    try:
        return importlib.import_module("awscrt.checksums")
    except ImportError:
        return None


ALGORITHMS: Mapping[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("CRC32", 4, lambda: _Crc(zlib.crc32, 4), 0xEDB88320),
        Algorithm("CRC32C", 4, _crt_crc("crc32c", 4), 0x82F63B78),
        Algorithm("CRC64NVME", 8, _crt_crc("crc64nvme", 8), 0x9A6C9329AC4BC9B5, "FULL_OBJECT"),
        Algorithm("SHA1", 20, lambda: hashlib.sha1(usedforsecurity=False)),
        Algorithm("SHA256", 32, hashlib.sha256),
        Algorithm("SHA512", 64, hashlib.sha512),
        Algorithm("MD5", 16, lambda: hashlib.md5(usedforsecurity=False)),
        Algorithm("XXHASH64", 8, _crt_hash("new_xxhash64")),
        Algorithm("XXHASH3", 8, _crt_hash("new_xxhash3_64")),
        Algorithm("XXHASH128", 16, _crt_hash("new_xxhash3_128")),
    )
}

_NAMES = {PREFIX + name.lower(): name for name in ALGORITHMS}


def named(name: str) -> Algorithm:
    """The algorithm a client names. Raises S3Error for one that S3 does not have."""
    algorithm = ALGORITHMS.get(name.upper())
    if algorithm is None:
        raise S3Error(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with any of the valid "
            f"types: [{', '.join(ALGORITHMS)}]",
        )
    return algorithm


def in_headers(headers: Mapping[str, str]) -> Checksum | None:
    """The checksum among headers or trailers. Raises S3Error for two, or one that cannot be."""
    given = [(_NAMES[name], value) for name, value in headers.items() if name in _NAMES]
    if len(given) > 1:
        raise S3Error(
            "InvalidRequest",
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        )
    return checked(*given[0]) if given else None


def checked(name: str, value: str) -> Checksum:
    """A checksum the client claims. Raises S3Error when its value cannot be one."""
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != ALGORITHMS[name].size:
        raise S3Error("InvalidRequest", f"Value for {PREFIX}{name.lower()} header is invalid.")
    return Checksum(name, value)


def in_trailer(names: str) -> Algorithm | None:
    """The algorithm that `x-amz-trailer` announces. Raises S3Error for an unknown trailer."""
    for name in (part.strip().lower() for part in names.split(",") if part.strip()):
        if name in _NAMES:
            return ALGORITHMS[_NAMES[name]]
        raise S3Error(
            "InvalidRequest", "The value specified in the x-amz-trailer header is not supported"
        )
    return None


def of_bytes(name: str, digest: Digest) -> Checksum:
    """A computed checksum."""
    return Checksum(name, base64.b64encode(digest.digest()).decode())


def composite(parts: Sequence[Checksum]) -> Checksum | None:
    """The COMPOSITE checksum of a multipart upload, where it can be computed here."""
    digest = ALGORITHMS[parts[0].algorithm].start()
    if digest is None:
        return None
    for part in parts:
        digest.update(part.raw)
    value = base64.b64encode(digest.digest()).decode()
    return Checksum(parts[0].algorithm, f"{value}-{len(parts)}", "COMPOSITE")


def combined(algorithm: Algorithm, parts: Iterable[tuple[Checksum, int]]) -> Checksum:
    """The whole object's CRC from the parts' CRCs and sizes, without reading a byte again."""
    crc = 0
    for part, size in parts:
        crc = _shifted(algorithm, crc, size) ^ int.from_bytes(part.raw, "big")
    value = base64.b64encode(crc.to_bytes(algorithm.size, "big")).decode()
    return Checksum(algorithm.name, value)


def _shifted(algorithm: Algorithm, crc: int, size: int) -> int:
    """`crc` times x^(8 size) modulo the polynomial: what `size` more zero bytes do to it."""
    width = algorithm.size * 8
    power = 1 << (width - 9)  # x^8; the highest bit is x^0 in a reversed polynomial
    while size:
        if size & 1:
            crc = _product(crc, power, algorithm.polynomial, width)
        power = _product(power, power, algorithm.polynomial, width)
        size >>= 1
    return crc


def _product(one: int, other: int, polynomial: int, width: int) -> int:
    product, bit = 0, 1 << (width - 1)
    while bit:
        if one & bit:
            product ^= other
        other = (other >> 1) ^ (polynomial if other & 1 else 0)
        bit >>= 1
    return product
