"""How large files are cut, and whether a file and an object are the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

MIB = 1 << 20

WHOLE_BELOW_BYTES = 16 * MIB
"""Smaller files travel in one request."""

PARTS_LIMIT = 10_000
PART_LIMIT_BYTES = 5 << 30
FILE_LIMIT_BYTES = PARTS_LIMIT * PART_LIMIT_BYTES
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

_SMALLEST_BYTES = 16 * MIB

_USUAL_BYTES = tuple(MIB * size for size in (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256))
"""Part sizes of other tools: the AWS CLI cuts at 8 MiB, s5cmd at 50 MiB, the console at 16 MiB."""

_READ_BYTES = MIB

Read = Callable[[int, int], bytes]
"""`read(offset, size)`: that many bytes of a file, fewer at its end."""


def part_size(size_bytes: int) -> int:
    """The size of all parts but the last: 16 MiB, or more so that 10,000 parts are enough."""
    needed = -(-size_bytes // PARTS_LIMIT)
    return max(_SMALLEST_BYTES, -(-needed // MIB) * MIB)


def is_same(read: Read, size_bytes: int, etag: str) -> bool:
    """Whether `size_bytes` bytes of a file are those of an object of that size with `etag`.

    S3's ETag is the MD5 of the bytes, or of the MD5s of the parts and then `-<number of parts>`.
    Where it is something else (objects encrypted with a KMS key) or the parts were cut in an
    unknown way, the answer is no.
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    digest, _, count = etag.partition("-")
    if not count:
        return _md5(read, 0, size_bytes).hexdigest() == digest
    return count.isdecimal() and any(
        _of_parts(read, size_bytes, size) == etag for size in _cuts(size_bytes, int(count))
    )


def _cuts(size_bytes: int, count: int) -> Iterator[int]:
    """The part sizes that may have made `count` parts."""
    if count == 1:
        yield max(size_bytes, 1)
        return
    for size in sorted({part_size(size_bytes), *_USUAL_BYTES}):
        if -(-size_bytes // size) == count:
            yield size


def _of_parts(read: Read, size_bytes: int, cut: int) -> str:
    parts = [
        _md5(read, first, min(cut, size_bytes - first)).digest()
        for first in range(0, max(size_bytes, 1), cut)
    ]
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def _md5(read: Read, first: int, size: int) -> hashlib._Hash:
    digest = hashlib.md5(usedforsecurity=False)
    while size > 0 and (data := read(first, min(size, _READ_BYTES))):
        digest.update(data)
        first, size = first + len(data), size - len(data)
    return digest
