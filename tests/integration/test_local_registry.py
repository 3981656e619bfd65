"""The registry over the wire: boto3 for ECR, plain HTTP and skopeo for the distribution API."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from scar_local.codec import codec
from scar_local.engines import EngineError
from scar_local.http import Exchange, Server
from scar_local.protocol import Call
from scar_local.registry import Registry
from scar_local.store import Store
from tests.doubles.images import OCI, Client, Image, Item, digest, layer

MANIFEST = {"Content-Type": f"{OCI}manifest.v1+json"}
NONE = "sha256:" + "0" * 64


@dataclass
class World:
    """A registry with repository `scar`, and clients of it."""

    registry: Registry
    store: Store
    client: Client
    ecr: Any

    def blobs(self) -> int:
        return len(list(self.store.all_blobs()))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = Store(tmp_path)
    address: list[str] = []
    registry = Registry(store, lambda: f"http://{address[0]}")

    def answer(exchange: Exchange) -> None:
        if exchange.path.startswith("/v2"):
            registry.handle(exchange)
            return
        headers = dict(exchange.headers.items())
        call = Call(exchange.method, exchange.path, "", headers, exchange.body.read())
        said = codec("ecr").serve(registry, call, "eu-west-3")
        exchange.reply(said.status, said.body, said.headers)

    server = Server(0, answer)
    address.append(f"127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    ecr = boto3.client(
        "ecr",
        endpoint_url=f"http://{address[0]}",
        region_name="eu-west-3",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(retries={"total_max_attempts": 1}),
    )
    ecr.create_repository(repositoryName="scar")
    yield World(registry, store, Client(address[0]), ecr)
    ecr.close()
    server.shutdown()
    server.server_close()


def an_image(text: str = "1") -> Image:
    return Image([layer(Item("base", b"base")), layer(Item("text", text.encode()))], {"Cmd": ["x"]})


def code(failure: pytest.ExceptionInfo[ClientError]) -> str:
    return str(failure.value.response["Error"]["Code"])


def error(body: bytes) -> str:
    return str(json.loads(body)["errors"][0]["code"])


def test_repositories_are_created_described_and_deleted_as_in_ecr(world: World) -> None:
    ecr = world.ecr
    made = ecr.create_repository(repositoryName="team/app", tags=[{"Key": "a", "Value": "b"}])
    repository = made["repository"]
    assert repository["repositoryUri"] == "000000000000.dkr.ecr.eu-west-3.amazonaws.com/team/app"
    arn = repository["repositoryArn"]
    assert arn == "arn:aws:ecr:eu-west-3:000000000000:repository/team/app"
    with pytest.raises(ClientError) as failure:
        ecr.create_repository(repositoryName="team/app")
    assert code(failure) == "RepositoryAlreadyExistsException"
    described = ecr.describe_repositories(repositoryNames=["team/app"])["repositories"]
    assert described == [repository]
    assert [r["repositoryName"] for r in ecr.describe_repositories()["repositories"]] == [
        "scar",
        "team/app",
    ]
    ecr.tag_resource(resourceArn=arn, tags=[{"Key": "c", "Value": "d"}])
    ecr.untag_resource(resourceArn=arn, tagKeys=["a"])
    assert ecr.list_tags_for_resource(resourceArn=arn)["tags"] == [{"Key": "c", "Value": "d"}]
    assert dict(world.registry.tagged())[arn] == {"c": "d"}
    ecr.delete_repository(repositoryName="team/app")
    with pytest.raises(ClientError) as failure:
        ecr.describe_repositories(repositoryNames=["team/app"])
    assert code(failure) == "RepositoryNotFoundException"


def test_a_bad_repository_name_is_refused(world: World) -> None:
    with pytest.raises(ClientError) as failure:
        world.ecr.create_repository(repositoryName="Team/App")
    assert code(failure) == "InvalidParameterException"


def test_lists_come_in_pages(world: World) -> None:
    for number in range(5):
        world.client.push("scar", f"tag{number}", an_image(str(number)))
    pages = world.ecr.get_paginator("list_images").paginate(
        repositoryName="scar", PaginationConfig={"PageSize": 2}
    )
    assert [len(page["imageIds"]) for page in pages] == [2, 2, 1]


def test_the_authorization_token_is_for_the_proxy_endpoint(world: World) -> None:
    data = world.ecr.get_authorization_token()["authorizationData"][0]
    assert base64.b64decode(data["authorizationToken"]).startswith(b"AWS:")
    assert data["proxyEndpoint"] == f"http://{world.client.address}"
    ping = world.client.request(
        "GET", "/v2/", headers={"Authorization": f"Basic {data['authorizationToken']}"}
    )
    assert ping.status == 200
    assert ping.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


def test_lifecycle_policies_are_kept(world: World) -> None:
    ecr = world.ecr
    with pytest.raises(ClientError) as failure:
        ecr.get_lifecycle_policy(repositoryName="scar")
    assert code(failure) == "LifecyclePolicyNotFoundException"
    count = {"tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 1}
    rule = {"rulePriority": 1, "selection": count, "action": {"type": "expire"}}
    text = json.dumps({"rules": [rule]})
    ecr.put_lifecycle_policy(repositoryName="scar", lifecyclePolicyText=text)
    assert ecr.get_lifecycle_policy(repositoryName="scar")["lifecyclePolicyText"] == text
    ecr.delete_lifecycle_policy(repositoryName="scar")
    with pytest.raises(ClientError):
        ecr.get_lifecycle_policy(repositoryName="scar")


def test_an_image_comes_back_byte_for_byte(world: World) -> None:
    image = an_image()
    world.client.push("scar", "v1", image)
    for reference in ("v1", digest(image.manifest())):
        got = world.client.request("GET", f"/v2/scar/manifests/{reference}")
        assert got.body == image.manifest()
        assert got.headers["Docker-Content-Digest"] == digest(image.manifest())
        assert got.headers["Content-Type"] == f"{OCI}manifest.v1+json"
        head = world.client.request("HEAD", f"/v2/scar/manifests/{reference}")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(image.manifest()))
    for data in image.layers:
        path = f"/v2/scar/blobs/{digest(data)}"
        assert world.client.request("GET", path).body == data
        assert world.client.request("HEAD", path).headers["Content-Length"] == str(len(data))
        part = world.client.request("GET", path, headers={"Range": "bytes=5-9"})
        assert (part.status, part.body) == (206, data[5:10])
        assert part.headers["Content-Range"] == f"bytes 5-9/{len(data)}"
        tail = world.client.request("GET", path, headers={"Range": "bytes=-4"})
        assert tail.body == data[-4:]
        beyond = world.client.request("GET", path, headers={"Range": f"bytes={len(data)}-"})
        assert beyond.status == 416


def test_engines_find_an_image_by_its_uri(world: World) -> None:
    image = an_image()
    uri = world.client.push("scar", "v1", image)
    by_digest = uri.replace(":v1", f"@{digest(image.manifest())}")
    for name in (uri, by_digest, "scar:v1"):
        found = world.registry.resolve(name)
        assert found.config["config"] == {"Cmd": ["x"]}
        assert [path.read_bytes() for path in found.layers] == list(image.layers)
        assert found.manifest_digest == digest(image.manifest())
    for name in ("scar:v2", "grycap/cowsay", "other.example/none:v1"):
        with pytest.raises(EngineError, match="CannotPullContainerError"):
            world.registry.resolve(name)


def test_of_an_index_engines_get_this_machines_image(world: World) -> None:
    image = an_image()
    world.client.push("scar", "single", image)
    child = {
        "mediaType": f"{OCI}manifest.v1+json",
        "digest": digest(image.manifest()),
        "size": len(image.manifest()),
    }
    platforms = [
        {"os": "linux", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64"},
        {"os": "unknown", "architecture": "unknown"},
    ]
    index = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}index.v1+json",
        "manifests": [{**child, "platform": platform} for platform in platforms],
    }
    kind = {"Content-Type": f"{OCI}index.v1+json"}
    put = world.client.request("PUT", "/v2/scar/manifests/multi", json.dumps(index), kind)
    assert put.status == 201
    assert world.registry.resolve("scar:multi").manifest_digest == child["digest"]
    refused = world.ecr.batch_delete_image(
        repositoryName="scar", imageIds=[{"imageDigest": child["digest"]}]
    )
    assert refused["failures"][0]["failureCode"] == "ImageReferencedByManifestList"


def test_pushing_to_a_repository_that_is_not_there_is_refused(world: World) -> None:
    answer = world.client.request("POST", "/v2/nobody/blobs/uploads/")
    assert (answer.status, error(answer.body)) == (404, "NAME_UNKNOWN")


def test_a_manifest_whose_parts_are_missing_is_refused(world: World) -> None:
    image = an_image()
    world.client.push_blob("scar", image.config())
    world.client.push_blob("scar", image.layers[0])
    put = world.client.request("PUT", "/v2/scar/manifests/v1", image.manifest(), MANIFEST)
    assert (put.status, error(put.body)) == (400, "MANIFEST_BLOB_UNKNOWN")
    missing = json.loads(put.body)["errors"][0]["detail"]["digest"]
    assert missing == digest(image.layers[1])
    got = world.client.request("GET", "/v2/scar/manifests/v1")
    assert (got.status, error(got.body)) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize(
    ("path", "body", "kind", "expected"),
    [
        ("v1", b"no json", MANIFEST, "MANIFEST_INVALID"),
        ("v1", b"{}", MANIFEST, "MANIFEST_INVALID"),
        ("v1", b'{"schemaVersion": 2}', MANIFEST, "MANIFEST_INVALID"),
        ("v1", b'{"schemaVersion": 2}', {"Content-Type": "text/plain"}, "MANIFEST_INVALID"),
        (NONE, b'{"schemaVersion": 2}', MANIFEST, "DIGEST_INVALID"),
        (".tag", b'{"schemaVersion": 2}', MANIFEST, "TAG_INVALID"),
    ],
)
def test_what_is_no_manifest_is_refused(
    world: World, path: str, body: bytes, kind: dict[str, str], expected: str
) -> None:
    put = world.client.request("PUT", f"/v2/scar/manifests/{path}", body, kind)
    assert (put.status, error(put.body)) == (400, expected)


def test_a_blob_with_another_digest_than_said_is_refused_and_thrown_away(world: World) -> None:
    begun = world.client.request("POST", "/v2/scar/blobs/uploads/")
    place = begun.headers["Location"]
    put = world.client.request("PUT", f"{place}?digest={NONE}", b"data")
    assert (put.status, error(put.body)) == (400, "DIGEST_INVALID")
    assert world.client.request("GET", f"/v2/scar/blobs/{NONE}").status == 404
    again = world.client.request("PUT", f"{place}?digest={digest(b'data')}", b"data")
    assert (again.status, error(again.body)) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert world.blobs() == 0


def test_a_blob_may_come_in_one_post_in_patches_and_in_chunks(world: World) -> None:
    one = world.client.request("POST", f"/v2/scar/blobs/uploads/?digest={digest(b'one')}", b"one")
    assert one.status == 201
    begun = world.client.request("POST", "/v2/scar/blobs/uploads/")
    place = begun.headers["Location"]
    first = world.client.request("PATCH", place, b"abc", {"Content-Range": "0-2"})
    assert (first.status, first.headers["Range"]) == (202, "0-2")
    wrong = world.client.request("PATCH", place, b"abc", {"Content-Range": "9-11"})
    assert (wrong.status, error(wrong.body)) == (416, "BLOB_UPLOAD_INVALID")
    chunked = world.client.request("PATCH", place, iter([b"de", b"f"]))
    assert chunked.headers["Range"] == "0-5"
    assert world.client.request("GET", place).headers["Range"] == "0-5"
    done = world.client.request("PUT", f"{place}?digest={digest(b'abcdefgh')}", b"gh")
    assert done.status == 201
    assert world.client.request("GET", done.headers["Location"]).body == b"abcdefgh"


def test_an_upload_can_be_given_up(world: World) -> None:
    place = world.client.request("POST", "/v2/scar/blobs/uploads/").headers["Location"]
    world.client.request("PATCH", place, b"abc")
    assert world.client.request("DELETE", place).status == 204
    assert world.client.request("PATCH", place, b"abc").status == 404
    assert world.blobs() == 0


def test_blobs_are_kept_once_and_mounted_between_repositories(world: World) -> None:
    world.ecr.create_repository(repositoryName="other")
    data = b"x" * 1000
    world.client.push_blob("scar", data)
    world.client.push_blob("scar", data)
    assert world.blobs() == 1
    assert world.client.request("HEAD", f"/v2/other/blobs/{digest(data)}").status == 404
    query = f"mount={digest(data)}&from=scar"
    mounted = world.client.request("POST", f"/v2/other/blobs/uploads/?{query}")
    assert mounted.status == 201
    assert world.client.request("GET", f"/v2/other/blobs/{digest(data)}").body == data
    unknown = world.client.request("POST", f"/v2/other/blobs/uploads/?mount={NONE}&from=scar")
    assert unknown.status == 202
    assert "Location" in unknown.headers


def test_tags_are_listed_in_pages(world: World) -> None:
    for tag in ("b", "a", "c"):
        world.client.push("scar", tag, an_image(tag))
    first = world.client.request("GET", "/v2/scar/tags/list?n=2")
    assert json.loads(first.body) == {"name": "scar", "tags": ["a", "b"]}
    following = first.headers["Link"].partition(">")[0].lstrip("<")
    assert json.loads(world.client.request("GET", following).body)["tags"] == ["c"]


def test_images_are_described_with_tags_size_and_digest(world: World) -> None:
    image = an_image()
    world.client.push("scar", "v1", image)
    world.client.push("scar", "v2", image)
    world.client.push("scar", "v3", an_image("other"))
    world.client.push("scar", "v3", an_image("newer"))
    details = world.ecr.describe_images(repositoryName="scar")["imageDetails"]
    assert [detail.get("imageTags") for detail in details] == [["v1", "v2"], None, ["v3"]]
    assert details[0]["imageDigest"] == digest(image.manifest())
    assert details[0]["imageSizeInBytes"] == sum(map(len, [*image.layers, image.config()]))
    wanted = [{"imageTag": "v2"}]
    one = world.ecr.describe_images(repositoryName="scar", imageIds=wanted)["imageDetails"]
    assert one == [details[0]]
    untagged = {"tagStatus": "UNTAGGED"}
    left = world.ecr.list_images(repositoryName="scar", filter=untagged)["imageIds"]
    assert left == [{"imageDigest": details[1]["imageDigest"]}]
    with pytest.raises(ClientError) as failure:
        world.ecr.describe_images(repositoryName="scar", imageIds=[{"imageTag": "none"}])
    assert code(failure) == "ImageNotFoundException"
    got = world.ecr.batch_get_image(repositoryName="scar", imageIds=[*wanted, {"imageTag": "no"}])
    assert got["images"][0]["imageManifest"].encode() == image.manifest()
    assert got["failures"][0]["failureCode"] == "ImageNotFound"


def test_deleting_the_last_tag_removes_the_image_and_only_its_own_blobs(world: World) -> None:
    image, other = an_image("1"), an_image("2")
    world.client.push("scar", "v1", image)
    world.client.push("scar", "also", image)
    world.client.push("scar", "v2", other)
    assert world.blobs() == 5, "one base, and a layer and a config each"
    world.ecr.batch_delete_image(repositoryName="scar", imageIds=[{"imageTag": "v1"}])
    assert world.registry.resolve("scar:also").layers
    gone = world.ecr.batch_delete_image(repositoryName="scar", imageIds=[{"imageTag": "also"}])
    assert gone["imageIds"] == [{"imageDigest": digest(image.manifest()), "imageTag": "also"}]
    with pytest.raises(EngineError):
        world.registry.resolve(f"scar@{digest(image.manifest())}")
    found = world.registry.resolve("scar:v2")
    assert all(path.exists() for path in found.layers)
    assert world.blobs() == 3


def test_a_repository_with_images_is_deleted_only_by_force(world: World) -> None:
    world.client.push("scar", "v1", an_image())
    with pytest.raises(ClientError) as failure:
        world.ecr.delete_repository(repositoryName="scar")
    assert code(failure) == "RepositoryNotEmptyException"
    world.ecr.delete_repository(repositoryName="scar", force=True)
    assert world.blobs() == 0


def test_an_immutable_tag_does_not_move(world: World) -> None:
    world.ecr.put_image_tag_mutability(repositoryName="scar", imageTagMutability="IMMUTABLE")
    world.client.push("scar", "v1", an_image())
    world.client.push("scar", "v1", an_image())
    other = an_image("other")
    for blob in (*other.layers, other.config()):
        world.client.push_blob("scar", blob)
    put = world.client.request("PUT", "/v2/scar/manifests/v1", other.manifest(), MANIFEST)
    assert (put.status, error(put.body)) == (400, "TAG_INVALID")


def test_images_are_still_there_after_a_restart_and_broken_uploads_are_not(world: World) -> None:
    uri = world.client.push("scar", "v1", an_image())
    begun = world.client.request("POST", "/v2/scar/blobs/uploads/")
    world.client.request("PATCH", begun.headers["Location"], b"half")
    again = Registry(Store(world.store.directory), lambda: "http://127.0.0.1:1")
    assert all(path.exists() for path in again.resolve(uri).layers)
    assert len(again.blobs_in_use()) == 3
    assert len(world.registry.blobs_in_use()) == 4, "the upload under way"


def test_a_large_blob_is_streamed(world: World, tmp_path: Path) -> None:
    size = 64 << 20
    hashed = hashlib.sha256()
    piece = bytes(range(256)) * 4096
    for _ in range(size // len(piece)):
        hashed.update(piece)
    place = world.client.request("POST", "/v2/scar/blobs/uploads/").headers["Location"]
    name = f"sha256:{hashed.hexdigest()}"
    pieces = (piece for _ in range(size // len(piece)))
    put = world.client.request(
        "PUT", f"{place}?digest={name}", pieces, {"Content-Length": str(size)}
    )
    assert put.status == 201
    assert world.client.request("HEAD", f"/v2/scar/blobs/{name}").headers["Content-Length"] == str(
        size
    )


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
@pytest.mark.parametrize("kind", ["oci", "v2s2"])
def test_skopeo_pushes_and_pulls_what_it_pushed(world: World, tmp_path: Path, kind: str) -> None:
    image = replace(an_image(), run={"Entrypoint": ["/tool"]})
    world.client.push("scar", "mine", image)
    base = f"docker://{world.client.address}/scar"

    def skopeo(*arguments: str) -> None:
        command = ["skopeo", "--insecure-policy", "copy", *arguments]
        plain = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        done = subprocess.run([*command, *plain], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    skopeo(f"{base}:mine", f"dir:{tmp_path / 'pulled'}")
    skopeo(f"dir:{tmp_path / 'pulled'}", f"{base}:theirs", "--format", kind)
    found = world.registry.resolve("scar:theirs")
    assert [path.read_bytes() for path in found.layers] == list(image.layers)
    assert found.config["config"]["Entrypoint"] == ["/tool"]
    skopeo(f"{base}:theirs", f"dir:{tmp_path / 'again'}")
