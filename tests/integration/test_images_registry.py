import base64
import gzip
import hashlib
import io
import json
import tarfile

import pytest

from scar.errors import ImageError
from scar.images.archive import Archive
from scar.images.cache import LayerCache
from scar.images.derive import Blob, Layer, derive
from scar.images.login import Login, docker_login
from scar.images.push import push
from scar.images.registry import Repository
from tests.doubles.strict_registry import StrictRegistry, digest_of


@pytest.fixture
def registry():
    held = []

    def make(**given):
        held.append(StrictRegistry(**given))
        return held[-1]

    yield make
    for one in held:
        one.close()


def a_repository(registry, name="team/app"):
    return Repository(registry.host, name, f"{registry.host}/{name}", plain=True)


def a_layer(folder, content=b"ours"):
    path = folder / "layer.tar.gz"
    path.write_bytes(gzip.compress(content, mtime=0))
    packed = path.read_bytes()
    return Layer(Blob(digest_of(packed), len(packed)), digest_of(content), path)


def test_an_image_is_derived_from_registry_to_registry(registry, tmp_path):
    source, target = registry(), registry()
    layers = [gzip.compress(bytes([n]) * 300_000) for n in range(3)]
    source.hold_image(layers, Entrypoint=["run"])
    base = a_repository(source).base("1", "amd64")
    ours = a_layer(tmp_path)
    derived = derive(base, [ours], "5.0")
    push(derived, a_repository(source), a_repository(target, "scar"), "f-1")
    manifest = json.loads(target.manifests["f-1"][0])
    assert [one["digest"] for one in manifest["layers"]] == [
        *map(digest_of, layers),
        ours.blob.digest,
    ]
    for one in (manifest["config"], *manifest["layers"]):
        assert digest_of(target.blobs[one["digest"]]) == one["digest"]


def test_pushing_again_sends_no_blob(registry, tmp_path):
    source, target = registry(), registry()
    source.hold_image([gzip.compress(b"base")])
    base, ours = a_repository(source).base("1", "amd64"), a_layer(tmp_path)
    for _ in range(2):
        push(derive(base, [ours], "5.0"), a_repository(source), a_repository(target), "t")
    assert target.seen["PUT blobs"] == 3


def test_a_token_that_expires_half_way_is_renewed(registry):
    source = registry(uses=1)
    source.hold_image([gzip.compress(b"base")])
    assert a_repository(source).base("1", "amd64").layers
    assert source.tokens == 2


def test_a_redirect_to_another_host_carries_no_credentials(registry):
    source = registry()
    source.hold_image([gzip.compress(b"base")])
    a_repository(source).base("1", "amd64")
    assert source.elsewhere_got == [""]


def test_a_blob_that_arrives_broken_is_fetched_again(registry, tmp_path):
    source, target = registry(), registry()
    layer = gzip.compress(b"base" * 100_000)
    source.hold_image([layer])
    base, ours = a_repository(source).base("1", "amd64"), a_layer(tmp_path)
    source.breaks.add(digest_of(layer))
    push(derive(base, [ours], "5.0"), a_repository(source), a_repository(target), "t")
    assert target.blobs[digest_of(layer)] == layer


def test_a_blob_of_the_same_registry_is_mounted_not_sent(registry, tmp_path):
    held = registry()
    layer = gzip.compress(b"base")
    held.hold_image([layer])
    base, ours = a_repository(held).base("1", "amd64"), a_layer(tmp_path)
    del held.blobs[digest_of(layer)]
    held.mountable.add(digest_of(layer))
    push(derive(base, [ours], "5.0"), a_repository(held), a_repository(held, "scar"), "t")
    assert held.blobs[digest_of(layer)] == b"mounted"


def test_an_image_that_is_not_there_says_so(registry):
    with pytest.raises(ImageError, match=r"HTTP 404 MANIFEST_UNKNOWN: no such thing") as caught:
        a_repository(registry()).base("2", "amd64")
    assert "name and tag" in caught.value.hint


def test_a_registry_that_does_not_answer_says_so(registry):
    gone = registry()
    gone.close()
    repository = Repository(gone.host, "x", "x", plain=True)
    repository._retries = repository._retries.new(total=0)
    with pytest.raises(ImageError, match="does not answer"):
        repository.base("1", "amd64")


def test_logins_of_docker_are_found(tmp_path):
    def auth(text):
        return {"auth": base64.b64encode(text.encode()).decode()}

    auths = {"https://index.docker.io/v1/": auth("me:secret:x"), "ghcr.io": auth("you:t")}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    environment = {"DOCKER_CONFIG": str(tmp_path)}
    assert docker_login("registry-1.docker.io", environment) == Login("me", "secret:x")
    assert docker_login("ghcr.io", environment) == Login("you", "t")
    assert docker_login("quay.io", environment) is None
    assert docker_login("quay.io", {"DOCKER_CONFIG": str(tmp_path / "none")}) is None


def a_saved_image(path, *, oci: bool, packed: bool):
    """What `docker save` writes: the old way by name, or an OCI layout."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        info = tarfile.TarInfo("hello")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    layer = gzip.compress(plain.getvalue()) if packed else plain.getvalue()
    diff_id = digest_of(plain.getvalue())
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
         "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    ).encode()  # fmt: skip
    files = {}
    if oci:
        kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if packed else "")
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
             "config": {"digest": digest_of(config), "size": len(config), "mediaType": "x"},
             "layers": [{"digest": digest_of(layer), "size": len(layer), "mediaType": kind}]}
        ).encode()  # fmt: skip
        for blob in (config, layer, manifest):
            files["blobs/sha256/" + hashlib.sha256(blob).hexdigest()] = blob
        files["index.json"] = json.dumps({"manifests": [{"digest": digest_of(manifest)}]}).encode()
    else:
        files = {"abc.json": config, "abc/layer.tar": layer}
        files["manifest.json"] = json.dumps(
            [{"Config": "abc.json", "Layers": ["abc/layer.tar"]}]
        ).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return plain.getvalue()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("oci", [True, False])
def test_an_archive_is_a_base_with_gzip_layers(tmp_path, oci, packed, registry):
    plain = a_saved_image(tmp_path / "image.tar", oci=oci, packed=packed)
    target = registry()
    digests = []
    for n in range(2):
        work = tmp_path / str(n)
        work.mkdir()
        archive = Archive(tmp_path / "image.tar", work)
        base = archive.base("", "amd64")
        ours = a_layer(work)
        its, packed = LayerCache(tmp_path / "cache").gzipped(archive, base, "x")
        push(derive(packed, [ours], "5.0"), its, a_repository(target), "t")
        digests.append(packed.layers[0].digest)
    assert digests[0] == digests[1]
    assert gzip.decompress(target.blobs[digests[0]]) == plain


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda path: path.write_text("no tar"), "cannot be read as a tar"),
        (lambda path: None, "cannot be read"),
        (lambda path: tarfile.open(path, "w").close(), "holds no image"),
    ],
)
def test_what_is_no_image_archive_is_told(tmp_path, write, why):
    write(tmp_path / "image.tar")
    with pytest.raises(ImageError, match=why) as caught:
        Archive(tmp_path / "image.tar", tmp_path).base("", "amd64")
    assert "docker save" in caught.value.hint
