"""`init` with real images: what is sent, what is refused, what is left behind."""

import gzip
import hashlib
import os
import subprocess
import uuid

import pytest

from scar.aws.repositories import tags_of
from scar.bundle import runtime_layer
from scar.deploy import carry_out, prepare, prepare_removal
from scar.errors import ApplyError, ImageError, UserError
from scar.fdl.schema import Deployment
from tests.conftest import missing
from tests.doubles.cloud import local_cloud
from tests.doubles.strict_registry import StrictRegistry, digest_of
from tests.integration.test_images_sources import a_tar, files_of, image_of_docker, write

__all__ = ["image_of_docker"]


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    try:
        runtime_layer("x86_64")
    except UserError as exc:
        missing("images", str(exc))
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        yield account


@pytest.fixture
def source():
    held = StrictRegistry()
    yield held
    held.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SCAR_CONFIG_FOLDER", str(tmp_path / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    (tmp_path / "script.sh").write_text("true\n")
    return tmp_path


@pytest.fixture
def name():
    return f"f{uuid.uuid4().hex[:10]}"


def a_function(name, ecr=None, mode="lambda", **lambda_):
    its = {"name": name, "init_script": "script.sh", "execution_mode": mode, **lambda_}
    return {"lambda": its, "ecr": ecr or {}}


def prepared(account, folder, *functions, told=None):
    deployment = Deployment.model_validate({"functions": {"aws": list(functions)}})
    return prepare(deployment, folder, account, (told if told is not None else []).append)


def deploy(account, folder, *functions):
    carry_out(prepared(account, folder, *functions), lambda step, state: None)


def steps(found):
    return [str(step).partition(" '")[0] for step in found.plan.steps]


def tags(account, name):
    return {tag for tag in tags_of(account, "scar") if tag.startswith(f"{name}-")}


def a_base(source, tag="1", **names):
    """An image whose layer is a real tar; the reference to it."""
    source.hold_image([gzip.compress(a_tar(*names.get("files", ["bin/sh"])), mtime=0)], tag)
    return {"image": f"{source.host}/team/app:{tag}"}


def test_an_unchanged_image_is_not_sent_and_not_packed(account, folder, name):
    write(folder / "image.tar", files_of([a_tar()], layout=False))
    function = a_function(name, container={"image_file": "image.tar"})
    deploy(account, folder, function)
    cache = folder / "config" / "cache"
    for path in cache.iterdir():
        path.unlink()
    assert steps(prepared(account, folder, function)) == []
    assert not list(cache.iterdir()), "nothing was packed to find that out"


def test_an_update_keeps_the_image_before_and_removes_those_before_that(account, folder, name):
    function, seen = a_function(name, container={"image": "host"}), []
    for n in range(4):
        (folder / "script.sh").write_text(f"echo {n}\n")
        deploy(account, folder, function)
        seen.append(tags(account, name))
        assert steps(prepared(account, folder, function)) == [], "and then there is nothing to do"
    assert [len(one) for one in seen] == [1, 2, 2, 2]
    assert seen[3] > seen[2] - seen[1]


def test_images_stay_where_the_fdl_says_so(account, folder, name):
    function = a_function(name, {"delete_image": False}, container={"image": "host"})
    for n in range(3):
        (folder / "script.sh").write_text(f"echo {n}\n")
        deploy(account, folder, function)
    assert len(tags(account, name)) == 3
    carry_out(prepare_removal([name], account), lambda step, state: None)
    assert len(tags(account, name)) == 3


def test_images_stay_while_jobs_wait(account, folder, name):
    function = a_function(name, mode="batch", container={"image": "host"})
    for n in range(2):
        (folder / "script.sh").write_text(f"sleep 20 # {n}\n")
        deploy(account, folder, function)
    batch = account.client("batch")
    definition = batch.describe_job_definitions(jobDefinitionName=name, status="ACTIVE")
    queue = definition["jobDefinitions"][0]["tags"]["scar:queue"]
    job = batch.submit_job(jobName="waits", jobQueue=queue, jobDefinition=name)["jobId"]
    (folder / "script.sh").write_text("echo done\n")
    found = prepared(account, folder, function)
    assert not [step for step in steps(found) if step.startswith("delete")]
    batch.terminate_job(jobId=job, reason="the test is over")


def test_untagged_images_expire(account, folder, name):
    deploy(account, folder, a_function(name, container={"image": "host"}))
    ecr = account.client("ecr")
    policy = ecr.get_lifecycle_policy(repositoryName="scar")["lifecyclePolicyText"]
    assert '"untagged"' in policy
    ecr.delete_lifecycle_policy(repositoryName="scar")
    function = a_function(name, container={"image": "host"})
    assert steps(prepared(account, folder, function)) == ["update repository"]
    theirs = policy.replace('"countNumber": 1', '"countNumber": 99')
    ecr.put_lifecycle_policy(repositoryName="scar", lifecyclePolicyText=theirs)
    assert steps(prepared(account, folder, function)) == [], "what the user set stays"
    ecr.delete_lifecycle_policy(repositoryName="scar")
    deploy(account, folder, function)


@pytest.mark.parametrize(
    ("container", "more", "why"),
    [
        ({"image": "{host}/team/app:no"}, {}, "HTTP 404 MANIFEST_UNKNOWN"),
        ({"image": "{host}/team/app:1"}, {"architectures": ["arm64"]}, "linux/amd64, not for"),
        ({"image": "{host}/team/app:empty"}, {}, "no `/bin/sh` to run `init_script`"),
        ({"image": "127.0.0.1:9/x"}, {}, "does not answer"),
        ({"image_file": "script.sh"}, {}, "cannot be read as a tar"),
    ],
)
def test_an_image_that_will_not_do_is_told_before_anything_is_made(
    account, folder, name, source, container, more, why
):
    a_base(source)
    a_base(source, "empty", files=["echo"])
    its = {key: value.replace("{host}", source.host) for key, value in container.items()}
    before = set(tags_of(account, "scar"))
    with pytest.raises(ImageError, match=why):
        prepared(account, folder, a_function(name, container=its, **more))
    groups = account.client("logs").describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{name}")
    assert groups["logGroups"] == []
    assert set(tags_of(account, "scar")) == before


def test_a_base_that_breaks_is_told_and_the_next_init_goes_on(account, folder, name, source):
    function = a_function(name, container=a_base(source))
    found = prepared(account, folder, function)
    (digest,) = [one for one, data in source.blobs.items() if data[:2] == b"\x1f\x8b"]
    whole, source.blobs[digest] = source.blobs[digest], b"\0" * len(source.blobs[digest])
    with pytest.raises(ApplyError) as caught:
        carry_out(found, lambda step, state: None)
    assert "is damaged" in caught.value.why
    assert source.host in caught.value.why, "it is the base that is named"
    assert not tags(account, name)
    assert f"function '{name}'" in " ".join(caught.value.left)
    source.blobs[digest] = whole
    deploy(account, folder, function)
    assert steps(prepared(account, folder, function)) == []


def test_a_second_function_on_the_same_base_sends_only_its_own_layer(account, folder, name, source):
    container = a_base(source)
    deploy(account, folder, a_function(name, container=container))
    before = len(source.elsewhere_got)
    deploy(account, folder, a_function(f"{name}-b", container=container))
    read = len(source.elsewhere_got) - before
    assert read == 2, "the config and, to see whether it has a shell, the small layer"


def test_a_prepared_image_is_checked_and_used_as_it_is(account, folder, name, source):
    deploy(account, folder, a_function(name, container=a_base(source)))
    (tag,) = tags(account, name)
    image = f"{account.facts().registry_host}/scar:{tag}"
    its = {"image": image, "create_image": False}
    other = f"{name}-b"
    deploy(account, folder, a_function(other, container=its))
    found = account.client("lambda").get_function(FunctionName=other)
    assert found["Code"]["ImageUri"] == image
    assert not tags(account, other)
    with pytest.raises(ImageError, match="not for linux/arm64"):
        prepared(account, folder, a_function(other, container=its, architectures=["arm64"]))
    gone = {**its, "image": f"{image}-gone"}
    with pytest.raises(ImageError, match="404"):
        prepared(account, folder, a_function(other, container=gone))


@pytest.mark.docker
def test_docker_is_asked_where_the_registry_has_no_such_image(
    account, folder, name, source, image_of_docker
):
    local = f"{source.host}/only/{image_of_docker}:1"
    subprocess.run(["docker", "tag", image_of_docker, local], check=True)
    (folder / "script.sh").write_text("#!/only-docker-has-this\n")
    told = []
    try:
        function = a_function(name, container={"image": local})
        found = prepared(account, folder, function, told=told)
        carry_out(found, lambda step, state: None)
        assert steps(prepared(account, folder, function)) == []
    finally:
        subprocess.run(["docker", "rmi", local], check=True, capture_output=True)
    assert "taking it from the local Docker daemon" in told[-1]
    with pytest.raises(ImageError) as caught:
        prepared(account, folder, function)
    assert "Docker daemon does not have it either" in caught.value.hint


def test_an_interpreter_in_the_extra_payload_is_left_to_the_function(account, folder, name, source):
    a_base(source, "empty", files=["echo"])
    (folder / "script.sh").write_text("#!/opt/scar/function/extra/mine\n")
    container = {"image": f"{source.host}/team/app:empty"}
    assert "create image" in steps(prepared(account, folder, a_function(name, container=container)))


def test_what_scar_made_is_not_a_base(account, folder, name, source):
    deploy(account, folder, a_function(name, container=a_base(source)))
    (tag,) = tags(account, name)
    image = f"{account.facts().registry_host}/scar:{tag}"
    with pytest.raises(ImageError, match="SCAR made it"):
        prepared(account, folder, a_function(f"{name}-b", container={"image": image}))


def test_no_blob_is_sent_that_is_not_what_it_says(account, folder, name, source):
    """What lands in the registry is what the base's registry promised."""
    deploy(account, folder, a_function(name, container=a_base(source)))
    (tag,) = tags(account, name)
    answer = account.client("ecr").batch_get_image(
        repositoryName="scar", imageIds=[{"imageTag": tag}]
    )
    manifest = answer["images"][0]["imageManifest"]
    digests = {digest_of(data) for data in source.blobs.values() if data[:2] == b"\x1f\x8b"}
    assert all(one in manifest for one in digests)
    found = hashlib.sha256(manifest.encode()).hexdigest()
    assert answer["images"][0]["imageId"]["imageDigest"] == f"sha256:{found}"
    assert os.environ["SCAR_CONFIG_FOLDER"] == str(folder / "config")
