import json

import pytest

from scar.errors import ImageError
from scar.images.manifests import Document, base_of, blob_of, config_blob, find

OCI, DOCKER = "application/vnd.oci.image.", "application/vnd.docker."
MANIFEST = {"config": {"digest": "sha256:" + "c" * 64, "size": 2}, "layers": []}


def digest(letter):
    return "sha256:" + letter * 64


def entry(letter, platform, **more):
    system, _, rest = platform.partition("/")
    processor, _, variant = rest.partition("/")
    its = {"os": system, "architecture": processor} | ({"variant": variant} if variant else {})
    return {"digest": digest(letter), "platform": its, **more}


def found(index, architecture="amd64", **others):
    """Which of the manifests named by letters `find` ends at."""
    documents = {"tag": index} | {digest(k): v for k, v in others.items()}

    def fetch(version):
        its = documents.get(version, {**MANIFEST, "found": version[-1]})
        return Document(json.dumps(its).encode())

    return find(fetch, "tag", architecture, "x")[1]["found"]


def test_an_index_is_followed_to_the_platform_and_attestations_are_passed_by():
    index = {
        "manifests": [
            entry("d", "unknown/unknown"),
            entry("d", "linux/amd64", annotations={"vnd.docker.reference.type": "attestation"}),
            entry("e", "linux/arm64/v8"),
            entry("f", "linux/amd64"),
        ]
    }
    assert found(index) == "f"
    assert found(index, "arm64") == "e"


def test_indexes_within_indexes_are_followed():
    inner = {"manifests": [entry("f", "linux/amd64")]}
    index = {"manifests": [entry("e", "linux/arm64"), {"digest": digest("a")}]}
    assert found(index, a=inner) == "f"


def test_the_variant_that_runs_anywhere_is_taken():
    index = {"manifests": [entry("a", "linux/amd64/v3"), entry("b", "linux/amd64")]}
    assert found(index) == "b"


def test_an_index_without_end_ends():
    index = {"manifests": [{"digest": digest("a")}]}
    with pytest.raises(ImageError, match="more than 4 indexes"):
        found(index, a=index)


def test_an_index_without_the_architecture_says_what_it_has():
    index = {"manifests": [entry("a", "linux/s390x"), entry("b", "linux/amd64"),
                           entry("c", "windows/amd64")]}  # fmt: skip
    with pytest.raises(ImageError, match=r"only for linux/s390x, linux/amd64, windows/amd64$") as e:
        found(index, "arm64")
    assert "architectures" in e.value.hint


@pytest.mark.parametrize(
    ("manifest", "why", "hint"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "is of type", "schema 1"),
        ({"schemaVersion": 2, "artifactType": "sbom", "blobs": []}, "is of type", "no container"),
        ([], "no JSON object", ""),
        ({"manifests": [{"digest": "sha256:../../etc"}]}, "no sha256 digest", ""),
    ],
)
def test_what_is_no_image_is_refused(manifest, why, hint):
    with pytest.raises(ImageError, match=why) as caught:
        find(lambda version: Document(json.dumps(manifest).encode()), "t", "amd64", "x")
    assert hint in caught.value.hint


def a_config(count=1, **its):
    diff_ids = [digest(str(n)) for n in range(count)]
    return {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}, **its}


def a_manifest(*types, **its):
    layers = [{"digest": digest("b"), "size": 3, "mediaType": one} for one in types]
    return {"layers": layers, **its}


@pytest.mark.parametrize(
    ("media_type", "packing"),
    [
        (f"{OCI}layer.v1.tar+gzip", "gzip"),
        (f"{OCI}layer.v1.tar+zstd", "zstd"),
        (f"{OCI}layer.v1.tar", "none"),
        (f"{DOCKER}image.rootfs.diff.tar.gzip", "gzip"),
    ],
)
def test_a_layer_may_be_packed_in_any_way(media_type, packing):
    base = base_of(Document(b"{}"), a_manifest(media_type), a_config(), "amd64", "x")
    assert [blob.packing for blob in base.layers] == [packing]


def test_the_family_is_that_of_the_manifest_and_oci_where_it_says_nothing():
    docker = f"{DOCKER}distribution.manifest.v2+json"
    served = Document(b"{}", docker)
    assert base_of(Document(b"{}"), a_manifest(), a_config(0), "amd64", "x").family == "oci"
    assert base_of(served, a_manifest(), a_config(0), "amd64", "x").family == "docker"
    said = a_manifest(mediaType=docker)
    assert base_of(Document(b"{}"), said, a_config(0), "amd64", "x").family == "docker"


@pytest.mark.parametrize(
    ("manifest", "config", "why"),
    [
        (a_manifest(), a_config(0, architecture="arm64"), "linux/arm64, not for linux/amd64"),
        (a_manifest(), a_config(0, os="windows"), "windows/amd64, not for linux/amd64"),
        (a_manifest(), a_config(1), "does not list its layers"),
        (a_manifest(f"{OCI}layer.v1.tar+gzip"), a_config(0), "does not list its layers"),
        (a_manifest("text/plain"), a_config(), "of type `text/plain`"),
        (
            a_manifest(f"{DOCKER}image.rootfs.foreign.diff.tar.gzip"), a_config(),
            "Linux containers do not have",
        ),
        (
            a_manifest(f"{OCI}layer.v1.tar+gzip"),
            a_config(rootfs={"diff_ids": ["sha256:../../../root/x"]}),
            "does not list its layers",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_derived_from_is_refused(manifest, config, why):
    with pytest.raises(ImageError, match=why):
        base_of(Document(b"{}"), manifest, config, "amd64", "x")


@pytest.mark.parametrize("size", [-1, None, "9"])
def test_a_blob_without_a_size_is_refused(size):
    with pytest.raises(ImageError, match="has no size"):
        blob_of({"digest": digest("a"), "size": size}, "x")


def test_a_config_that_is_too_large_is_not_read():
    with pytest.raises(ImageError, match="bytes"):
        config_blob({"config": {"digest": digest("a"), "size": 1 << 40}}, "x")
