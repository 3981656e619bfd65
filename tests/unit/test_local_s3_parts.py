"""The pure parts of the local S3: checksums, ranges, order of keys, text of XML."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scar_local.s3.call import S3Error, document, echo, parse_xml
from scar_local.s3.checksums import ALGORITHMS, checked, combined, in_headers, of_bytes
from scar_local.s3.conditions import byte_range
from scar_local.s3.listing import start_after, successor


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6))
def test_crcs_of_parts_combine_to_the_crc_of_the_whole(parts: list[bytes]) -> None:
    algorithm, pairs = ALGORITHMS["CRC32"], []
    for part in parts:
        digest = algorithm.start()
        assert digest is not None
        digest.update(part)
        pairs.append((of_bytes("CRC32", digest), len(part)))
    whole = zlib.crc32(b"".join(parts)).to_bytes(4, "big")
    assert combined(algorithm, pairs).raw == whole


@given(st.text(min_size=1), st.text(), st.text(min_size=1))
def test_the_successor_is_after_all_with_the_prefix_and_before_the_rest(
    prefix: str, rest: str, other: str
) -> None:
    after = successor(prefix)
    assert not after or (prefix + rest).encode() < after.encode()
    if after and prefix.encode() < other.encode() < after.encode():
        assert other.startswith(prefix)


def test_a_listing_goes_on_after_a_key_or_a_whole_common_prefix() -> None:
    assert start_after("a", "", "") == "a\0"
    assert start_after("a/", "", "/") == "a0"
    assert start_after("a/b", "", "/") == "a/b\0"
    assert start_after("", "", "/") == ""


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("", 10, None),
        ("bytes=0-", 10, (0, 10)),
        ("bytes=2-3", 10, (2, 2)),
        ("bytes=-4", 10, (6, 4)),
        ("bytes=-", 10, None),
        ("lines=1-2", 10, None),
        ("bytes=3-2", 10, None),
    ],
)
def test_a_range_header_becomes_first_and_count(
    header: str, size: int, expected: tuple[int, int] | None
) -> None:
    assert byte_range(header, size) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=0-", 0), ("bytes=-1", 0)])
def test_a_range_outside_the_object_is_refused(header: str, size: int) -> None:
    with pytest.raises(S3Error, match="not satisfiable"):
        byte_range(header, size)


@given(st.text())
def test_text_survives_xml_where_xml_can_hold_it(text: str) -> None:
    writable = echo(text)
    assert (parse_xml(document("A", [("B", writable)])).findtext("B") or "") == writable


def test_two_checksums_or_a_broken_one_are_refused() -> None:
    good = {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-sha1": "A" * 27 + "="}
    with pytest.raises(S3Error, match="single"):
        in_headers(good)
    with pytest.raises(S3Error, match="is invalid"):
        checked("CRC32", "AAAA")
