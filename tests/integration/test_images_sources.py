"""Bases from files and from the Docker daemon, pushed to a registry."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import uuid

import pytest
from backports import zstd

from scar.errors import ImageError
from scar.images.archive import Archive
from scar.images.cache import LayerCache
from scar.images.daemon import Daemon, daemon_address
from scar.images.derive import Blob, derive
from scar.images.push import push
from scar.images.registry import Repository
from scar.images.streams import CorruptBlob
from tests.conftest import missing
from tests.doubles.strict_registry import StrictRegistry, digest_of

PACKERS = {
    "none": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}

TWO_IMAGES = json.dumps(
    {
        "manifests": [
            {"digest": f"sha256:{n}" * 64, "annotations": {"org.opencontainers.image.ref.name": n}}
            for n in ("one", "two")
        ]
    }
).encode()


@pytest.fixture
def target():
    held = StrictRegistry()
    yield held
    held.close()


def a_tar(*names, content=b"hello" * 1000):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names or ("bin/sh",):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def files_of(plains, *, layout, packing="none"):
    """The files of an archive: as `docker save` once named them, or an OCI layout."""
    diff_ids = [digest_of(one) for one in plains]
    layers = [PACKERS[packing](one) for one in plains]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "User": "nobody"},
         "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()  # fmt: skip
    if not layout:
        names = [f"{n}/layer.tar" for n in range(len(layers))]
        listed = json.dumps([{"Config": "abc.json", "Layers": names}]).encode()
        return {
            "abc.json": config,
            **dict(zip(names, layers, strict=True)),
            "manifest.json": listed,
        }
    kind = "application/vnd.oci.image.layer.v1.tar" + (f"+{packing}" * (packing != "none"))
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
         "config": {"digest": digest_of(config), "size": len(config), "mediaType": "x"},
         "layers": [{"digest": digest_of(one), "size": len(one), "mediaType": kind}
                    for one in layers]}
    ).encode()  # fmt: skip
    files = {f"blobs/sha256/{hashlib.sha256(one).hexdigest()}": one
             for one in (config, *layers, manifest)}  # fmt: skip
    index = {"manifests": [{"digest": digest_of(manifest)}]}
    return {**files, "index.json": json.dumps(index).encode()}


def write(path, files, packing="none", links=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind, to in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, to
            tar.addfile(info)
    path.write_bytes(PACKERS[packing](buffer.getvalue()))
    return path


def pushed(path, target, tmp_path, tag="t"):
    """The digests of the layers that were pushed."""
    work = tmp_path / f"work-{uuid.uuid4().hex}"
    work.mkdir()
    archive = Archive(path, work)
    base = archive.base("", "amd64")
    source, packed = LayerCache(tmp_path / "cache").gzipped(archive, base, "x")
    to = Repository(target.host, "scar", "x", plain=True, pause_s=0.01)
    push(derive(packed, [], "5.0"), source, to, tag)
    return [blob.digest for blob in packed.layers]


@pytest.mark.parametrize("packing", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("layout", [True, False])
def test_an_archive_becomes_gzip_layers_whatever_its_own_are(tmp_path, target, layout, packing):
    plains = [a_tar(), a_tar("a", "b")]
    path = write(tmp_path / "image.tar", files_of(plains, layout=layout, packing=packing))
    digests = pushed(path, target, tmp_path)
    assert [gzip.decompress(target.blobs[one]) for one in digests] == plains


@pytest.mark.parametrize("packing", ["gzip", "zstd", "xz", "bzip2"])
@pytest.mark.parametrize("layout", [True, False])
def test_the_archive_itself_may_be_compressed(tmp_path, target, layout, packing):
    plain = a_tar()
    path = write(tmp_path / "image", files_of([plain], layout=layout), packing)
    (digest,) = pushed(path, target, tmp_path)
    assert gzip.decompress(target.blobs[digest]) == plain


def test_a_folder_may_hold_an_oci_layout(tmp_path, target):
    plain, folder = a_tar(), tmp_path / "layout"
    for name, data in files_of([plain], layout=True, packing="gzip").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (digest,) = pushed(folder, target, tmp_path)
    assert gzip.decompress(target.blobs[digest]) == plain


def test_reading_a_compressed_archive_unpacks_nothing(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    path = write(tmp_path / "image.tar.gz", files_of([a_tar()], layout=False), "gzip")
    assert Archive(path, work).base("", "amd64").layers
    assert not list(work.iterdir())


def test_layers_that_docker_linked_are_followed(tmp_path, target):
    files = files_of([a_tar(), a_tar()], layout=False)
    del files["1/layer.tar"]
    link = ("1/layer.tar", tarfile.SYMTYPE, "../0/layer.tar")
    path = write(tmp_path / "image.tar", files, links=[link])
    assert len(set(pushed(path, target, tmp_path))) == 1


def test_a_layer_is_packed_once(tmp_path, target):
    path = write(tmp_path / "image.tar", files_of([a_tar()], layout=False))
    first = pushed(path, target, tmp_path)
    (kept,) = (tmp_path / "cache").iterdir()
    written = kept.stat().st_ino, kept.stat().st_ctime_ns
    assert pushed(path, target, tmp_path) == first
    assert kept.stat().st_ino == written[0]
    assert target.seen["PUT blobs"] == 2


def test_what_was_used_longest_ago_leaves_the_cache_first(tmp_path, target):
    archives = [
        write(tmp_path / f"{n}.tar", files_of([a_tar(content=os.urandom(50_000))], layout=False))
        for n in range(3)
    ]
    for path in archives:
        pushed(path, target, tmp_path)
    cache = tmp_path / "cache"
    old = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    (cache / "layer-x.part").write_bytes(b"what a crash left")
    for age, path in enumerate([*reversed(old), cache / "layer-x.part"]):
        os.utime(path, (1000 - age, 1000 - age))
    work = tmp_path / "other"
    work.mkdir()
    path = write(tmp_path / "new.tar", files_of([a_tar("new")], layout=False))
    archive = Archive(path, work)
    LayerCache(cache, 110_000).gzipped(archive, archive.base("", "amd64"), "x")
    left = set(cache.iterdir())
    assert left & set(old) == set(old[1:])
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_text("no tar"), "cannot be read as a tar"),
        (lambda path: path.write_bytes(b"\x1f\x8bno gzip"), "cannot be read as a tar"),
        (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfdno zstd"), "cannot be read as a tar"),
        (lambda path: None, "cannot be read"),
        (lambda path: tarfile.open(path, "w").close(), "holds no image"),
        (lambda path: path.mkdir(), "holds no image"),
        (lambda path: write(path, {"manifest.json": b"{"}), "no JSON"),
        (lambda path: write(path, {"manifest.json": b"[{}]"}), "damaged"),
        (lambda path: write(path, {"manifest.json": b"[{},{}]"}), "holds 2 images"),
        (lambda path: write(path, {"index.json": b'{"manifests":[]}'}), "not there for"),
        (lambda path: write(path, {"index.json": TWO_IMAGES}), "it holds one, two"),
        (
            lambda path: write(
                path, {"manifest.json": b'[{"Config": "../../etc/passwd", "Layers": []}]'}
            ),
            "damaged",
        ),
        (
            lambda path: write(
                path,
                {"index.json": b'{"manifests":[{"digest":"sha256:../../../etc/passwd"}]}'},
            ),
            "no sha256 digest",
        ),
        (
            lambda path: write(
                path, {}, links=[("manifest.json", tarfile.SYMTYPE, "manifest.json")]
            ),
            "leads nowhere",
        ),
    ],
)
def test_what_is_no_image_is_told(tmp_path, make, why):
    make(tmp_path / "image")
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(ImageError, match=why):
        Archive(tmp_path / "image", work).base("", "amd64")
    assert not list(work.iterdir())


def test_an_archive_that_ends_early_is_told(tmp_path):
    path = write(tmp_path / "image.tar", files_of([a_tar(content=b"x" * 100_000)], layout=False))
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(ImageError, match=r"cannot be read as a tar|holds no image|damaged"):
        Archive(path, tmp_path).base("", "amd64")


@pytest.mark.parametrize("packing", ["none", "zstd"])
def test_a_layer_that_is_not_what_the_config_says_is_told_and_not_kept(tmp_path, target, packing):
    files = files_of([a_tar()], layout=False, packing=packing)
    other = PACKERS[packing](a_tar("evil"))
    path = write(tmp_path / "image.tar", {**files, "0/layer.tar": other})
    with pytest.raises(CorruptBlob, match="damaged"):
        pushed(path, target, tmp_path)
    assert not list((tmp_path / "cache").iterdir())
    assert not target.manifests


def test_names_that_lead_out_write_nothing(tmp_path, target):
    """Members are looked up by name, never extracted."""
    outside = tmp_path / "outside"
    files = files_of([a_tar()], layout=False)
    evil = {f"../../../../../..{outside}": b"evil", str(outside): b"evil"}
    links = [("/etc/link", tarfile.SYMTYPE, "/etc/passwd"), ("dev", tarfile.CHRTYPE, "")]
    path = write(tmp_path / "image.tar", {**evil, **files}, links=links)
    assert pushed(path, target, tmp_path)
    assert not outside.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, target):
    small = tmp_path / "cache"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small])
    if mounted.returncode:
        pytest.skip("this machine mounts no tmpfs")
    path = write(
        tmp_path / "image.tar", files_of([a_tar(content=os.urandom(500_000))], layout=False)
    )
    try:
        with pytest.raises(ImageError, match=r"cannot pack its layers: .*No space left") as caught:
            pushed(path, target, tmp_path)
        assert "make room in" in caught.value.hint
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)
    assert pushed(path, target, tmp_path), "with room it goes on"


@pytest.fixture
def image_of_docker(tmp_path):
    """An image that only Docker has."""
    if shutil.which("docker") is None or subprocess.run(
        ["docker", "info"], capture_output=True
    ).returncode:  # fmt: skip
        missing("docker", "no Docker daemon answers")
    (tmp_path / "root.tar").write_bytes(a_tar("only-docker-has-this"))
    name = f"scar-test-{uuid.uuid4().hex[:12]}"
    change = ["--change", 'CMD ["sh"]', "--change", "USER nobody"]
    subprocess.run(
        ["docker", "import", *change, tmp_path / "root.tar", name], check=True, capture_output=True
    )
    yield name
    subprocess.run(["docker", "rmi", "-f", name], check=True, capture_output=True)


@pytest.mark.docker
def test_an_image_that_only_docker_has_is_a_base(image_of_docker, tmp_path, target):
    daemon = Daemon(image_of_docker, tmp_path, daemon_address())
    assert daemon.has_it()
    base = daemon.base("", "amd64")
    assert base.config["config"]["User"] == "nobody"
    assert not (tmp_path / "export.tar").exists(), "nothing is exported to look at it"
    source, packed = LayerCache(tmp_path / "cache").gzipped(daemon, base, "x")
    to = Repository(target.host, "scar", "x", plain=True)
    push(derive(packed, [], "5.0"), source, to, "t")
    (blob,) = packed.layers
    assert gzip.decompress(target.blobs[blob.digest]) == a_tar("only-docker-has-this")


@pytest.mark.docker
def test_what_docker_saves_is_read(image_of_docker, tmp_path, target):
    saved = tmp_path / "saved.tar"
    subprocess.run(["docker", "save", "--output", saved, image_of_docker], check=True)
    (digest,) = pushed(saved, target, tmp_path)
    assert gzip.decompress(target.blobs[digest]) == a_tar("only-docker-has-this")


def test_a_daemon_that_is_not_there_has_nothing(tmp_path):
    daemon = Daemon("x", tmp_path, f"unix://{tmp_path}/no.sock")
    assert not daemon.has_it()
    with pytest.raises(ImageError, match="does not answer"):
        daemon.base("", "amd64")
    assert daemon_address({"DOCKER_HOST": "ssh://elsewhere"}) == ""
    assert daemon_address({"DOCKER_HOST": "unix:///x.sock"}) == "unix:///x.sock"


def test_blobs_that_are_not_packed_cannot_be_derived_from(tmp_path):
    path = write(tmp_path / "image.tar", files_of([a_tar()], layout=False))
    base = Archive(path, tmp_path).base("", "amd64")
    assert base.layers == (Blob(digest_of(a_tar()), len(a_tar()), "none"),)
    with pytest.raises(AssertionError, match="repacked"):
        derive(base, [], "5.0")
