"""What clients other than boto3 send: aws-chunked frames, checksums in trailers, wrong digests."""

from __future__ import annotations

import base64
import hashlib
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.local_s3 import LocalS3

BODY = bytes(range(256)) * 1000


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalS3]:
    local = LocalS3(tmp_path)
    local.client.create_bucket(Bucket="b-b")
    yield local
    local.close()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


CRC32 = b64(zlib.crc32(BODY).to_bytes(4, "big"))


def framed(body: bytes, size: int, signed: bool, trailer: str = "") -> bytes:
    """`body` in aws-chunked frames of `size` bytes."""
    signature = b";chunk-signature=" + b"0" * 64 if signed else b""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    out = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), signature, piece) for piece in pieces)
    out += b"0" + signature + b"\r\n" + trailer.encode()
    if trailer and signed:
        out += b"x-amz-trailer-signature:" + b"0" * 64 + b"\r\n"
    return out + b"\r\n"


def put_framed(
    cloud: LocalS3, wire: bytes, length: int = len(BODY), **headers: str
) -> tuple[int, dict[str, str], bytes]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return cloud.raw(
        "PUT",
        "/b-b/k",
        wire,
        {
            "Content-Encoding": "aws-chunked",
            "X-Amz-Decoded-Content-Length": str(length),
            "X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            **given,
        },
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [1000, 65536, 1 << 20])
def test_frames_and_trailers_are_taken_off_and_verified(
    cloud: LocalS3, signed: bool, size: int
) -> None:
    wire = framed(BODY, size, signed, f"x-amz-checksum-crc32:{CRC32}\r\n")
    status, headers, _ = put_framed(cloud, wire, X_Amz_Trailer="x-amz-checksum-crc32")
    assert (status, headers["x-amz-checksum-crc32"]) == (200, CRC32)
    found = cloud.client.get_object(Bucket="b-b", Key="k")
    assert found["Body"].read() == BODY
    assert "ContentEncoding" not in found


def test_frames_may_come_inside_http_chunks_cut_anywhere(cloud: LocalS3) -> None:
    wire = framed(BODY[:3000], 1000, False, "x-amz-checksum-crc32:" + _crc(BODY[:3000]) + "\r\n")
    pieces = [wire[at : at + 7] for at in range(0, len(wire), 7)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    status, _, body = put_framed(
        cloud,
        chunked,
        3000,
        X_Amz_Trailer="x-amz-checksum-crc32",
        Transfer_Encoding="chunked",
        Content_Length="",
    )
    assert status == 200, body
    assert cloud.client.get_object(Bucket="b-b", Key="k")["Body"].read() == BODY[:3000]


def _crc(body: bytes) -> str:
    return b64(zlib.crc32(body).to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("trailer", "code"),
    [
        ("x-amz-checksum-crc32:AAAAAA==\r\n", b"BadDigest"),
        ("x-amz-checksum-crc32:nonsense\r\n", b"InvalidRequest"),
        ("", b"MalformedTrailerError"),
    ],
)
def test_a_wrong_trailer_is_refused_and_leaves_nothing(
    cloud: LocalS3, trailer: str, code: bytes
) -> None:
    wire = framed(BODY, 65536, False, trailer)
    status, _, body = put_framed(cloud, wire, X_Amz_Trailer="x-amz-checksum-crc32")
    assert status == 400
    assert b"<Code>" + code + b"</Code>" in body
    assert cloud.blobs() == set()


def test_frames_must_hold_as_many_bytes_as_they_say(cloud: LocalS3) -> None:
    for wire in (framed(BODY[:-1], 65536, False), framed(BODY, 65536, False)[:-70000], b"zz\r\n"):
        status, _, body = put_framed(cloud, wire)
        assert (status, b"<Code>IncompleteBody</Code>" in body) == (400, True)
    assert cloud.blobs() == set()


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("Content-MD5", b64(hashlib.md5(b"other").digest()), "BadDigest"),
        ("Content-MD5", "short", "InvalidDigest"),
        ("x-amz-checksum-crc32", "AAAAAA==", "BadDigest"),
        ("x-amz-checksum-sha1", b64(b"0" * 20), "BadDigest"),
        ("x-amz-checksum-sha256", b64(b"0" * 32), "BadDigest"),
        ("x-amz-checksum-sha256", "AAAAAA==", "InvalidRequest"),
        ("x-amz-content-sha256", "0" * 64, "XAmzContentSHA256Mismatch"),
        ("x-amz-sdk-checksum-algorithm", "CRC32", "InvalidRequest"),
        ("x-amz-acl", "public-read", "AccessControlListNotSupported"),
        ("x-amz-expected-bucket-owner", "111111111111", "AccessDenied"),
        ("x-amz-meta-big", "x" * 3000, "MetadataTooLarge"),
    ],
)
def test_a_wrong_header_is_refused_and_leaves_nothing(
    cloud: LocalS3, header: str, value: str, code: str
) -> None:
    status, _, body = cloud.raw("PUT", "/b-b/k", BODY, {header: value})
    assert status in (400, 403)
    assert f"<Code>{code}</Code>".encode() in body
    assert cloud.blobs() == set()


def crc(body: bytes, polynomial: int, width: int) -> bytes:
    """A reflected CRC as the books define it, bit by bit."""
    mask = (1 << width) - 1
    value = mask
    for byte in body:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
    return (value ^ mask).to_bytes(width // 8, "big")


SMALL = BODY[:2000]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("crc32", zlib.crc32(SMALL).to_bytes(4, "big")),
        ("crc32c", crc(SMALL, 0x82F63B78, 32)),
        ("crc64nvme", crc(SMALL, 0x9A6C9329AC4BC9B5, 64)),
        ("sha1", hashlib.sha1(SMALL).digest()),
        ("sha256", hashlib.sha256(SMALL).digest()),
    ],
)
def test_checksums_are_kept_and_told_when_asked_for(cloud: LocalS3, name: str, raw: bytes) -> None:
    header = f"x-amz-checksum-{name}"
    assert cloud.raw("PUT", "/b-b/k", SMALL, {header: b64(raw)})[0] == 200
    asked = cloud.raw("HEAD", "/b-b/k", headers={"x-amz-checksum-mode": "ENABLED"})[1]
    assert (asked[header], asked["x-amz-checksum-type"]) == (b64(raw), "FULL_OBJECT")
    assert header not in cloud.raw("HEAD", "/b-b/k")[1]
    ranged = {"x-amz-checksum-mode": "ENABLED", "Range": "bytes=0-9"}
    assert header not in cloud.raw("GET", "/b-b/k", headers=ranged)[1]


def test_http_chunks_without_a_length_are_refused_as_on_s3(cloud: LocalS3) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Length": ""}
    status, _, body = cloud.raw("PUT", "/b-b/k", b"3\r\nabc\r\n0\r\n\r\n", headers)
    assert (status, b"<Code>NotImplemented</Code>" in body) == (501, True)


def test_a_client_that_vanishes_leaves_nothing(cloud: LocalS3) -> None:
    with socket.create_connection(("127.0.0.1", cloud.port)) as connection:
        connection.sendall(b"PUT /b-b/k HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
    for _ in range(200):
        if not cloud.blobs():
            break
        time.sleep(0.02)
    assert cloud.blobs() == set()
    assert cloud.raw("HEAD", "/b-b/k")[0] == 404


def test_a_key_that_is_not_utf_8_is_refused(cloud: LocalS3) -> None:
    status, _, body = cloud.raw("PUT", "/b-b/%ff%fe", b"x")
    assert (status, b"<Code>InvalidURI</Code>" in body) == (400, True)


def test_a_document_with_entities_is_refused(cloud: LocalS3) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><Delete><Object><Key>&a;</Key></Object></Delete>'
    status, _, body = cloud.raw("POST", "/b-b?delete", bomb)
    assert (status, b"<Code>MalformedXML</Code>" in body) == (400, True)
