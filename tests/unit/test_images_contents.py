import gzip
import hashlib
import io
import sys
import tarfile

import pytest

from scar.building import interpreter
from scar.images.connect import is_loopback
from scar.images.contents import Contents
from scar.images.streams import damaged, pack, packing_of, unpacked


def a_layer(*names, **links):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
        for name, target in links.items():
            info = tarfile.TarInfo(name.replace("_", "/"))
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    buffer.seek(0)
    return buffer


def contents(*layers):
    made = Contents()
    for layer in layers:
        made.add(layer)
    return made


@pytest.mark.parametrize(
    "layers",
    [
        [a_layer("bin/sh")],
        [a_layer("./bin/", "./bin/sh")],
        [a_layer("usr/bin/sh", bin="usr/bin")],
        [a_layer("usr/bin/dash", bin="/usr/bin", usr_bin_sh="dash")],
        [a_layer("bin/busybox", bin_sh="../bin/./busybox")],
        [a_layer("bin/other"), a_layer("bin/sh")],
        [a_layer("bin/.wh.sh"), a_layer("bin/sh")],
        [a_layer("bin/old"), a_layer("bin/.wh..wh..opq", "bin/sh")],
    ],
)
def test_a_program_is_found_through_links_and_layers(layers):
    assert contents(*layers).has("/bin/sh")


@pytest.mark.parametrize(
    "layers",
    [
        [a_layer("echo")],
        [a_layer("usr/bin/sh")],
        [a_layer(bin_sh="gone")],
        [a_layer(bin_sh="sh")],
        [a_layer(bin_sh="../../../../bin/sh")],
        [a_layer("bin/sh"), a_layer("bin/.wh.sh")],
        [a_layer("bin/sh"), a_layer(".wh.bin")],
        [a_layer("bin/sh"), a_layer("bin/.wh..wh..opq")],
    ],
)
def test_a_program_that_is_not_there_or_was_removed_is_not_found(layers):
    assert not contents(*layers).has("/bin/sh")


@pytest.mark.parametrize(
    ("head", "program"),
    [
        (b"#!/bin/bash\necho", "/bin/bash"),
        (b"#! /usr/bin/env python3\n", "/usr/bin/env"),
        (b"echo hello\n", "/bin/sh"),
        (b"#!\n", "/bin/sh"),
        (b"", "/bin/sh"),
        (b"\x7fELF\x02", ""),
    ],
)
def test_a_scripts_program_is_that_of_its_first_line(tmp_path, head, program):
    (tmp_path / "script").write_bytes(head)
    assert interpreter(tmp_path / "script") == program


def test_packing_gives_the_same_bytes_each_time_and_unpacks_to_what_it_was(tmp_path):
    content = b"some content " * 100_000
    made = [pack(io.BytesIO(content), tmp_path / name) for name in "ab"]
    assert made[0] == made[1]
    packed = (tmp_path / "a").read_bytes()
    assert packing_of(packed) == "gzip"
    assert unpacked(io.BytesIO(packed), "gzip").read() == content


def test_where_there_is_no_isal_layers_are_packed_by_the_standard_library(tmp_path, monkeypatch):
    for name in ("isal", "isal.igzip", "isal.isal_zlib"):
        monkeypatch.setitem(sys.modules, name, None)
    diff_id, _, size = pack(io.BytesIO(b"content"), tmp_path / "a")
    assert diff_id == "sha256:" + hashlib.sha256(b"content").hexdigest()
    packed = (tmp_path / "a").read_bytes()
    assert (gzip.decompress(packed), len(packed)) == (b"content", size)
    assert unpacked(io.BytesIO(packed), "gzip").read() == b"content"
    with pytest.raises(damaged()):
        unpacked(io.BytesIO(packed[:-9]), "gzip").read()


@pytest.mark.parametrize("packing", ["gzip", "zstd", "xz", "bzip2"])
def test_what_is_packed_and_damaged_is_told_as_that(packing):
    with pytest.raises(damaged()):
        unpacked(io.BytesIO(b"no such thing"), packing).read()


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.9.9.9", "[::1]:5"])
def test_loopback_is_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1.example", "localhost.example", "10.0.0.1:5000", "a"])
def test_nothing_else_is_loopback(host):
    assert not is_loopback(host)
