"""A real registry, Debian's: TLS with Basic auth and with a token server; re-read by skopeo."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from scar.errors import ImageError
from scar.images.connect import RegistryError
from scar.images.derive import Blob, Layer, derive
from scar.images.login import Login
from scar.images.push import push
from scar.images.registry import Repository
from tests.conftest import missing
from tests.doubles.debian_registry import PASSWORD, USER, debian_registry, is_installed
from tests.doubles.images import Item, digest, layer
from tests.doubles.strict_registry import digest_of


@pytest.fixture(scope="module")
def registries(tmp_path_factory):
    """One of each kind."""
    if not is_installed():
        missing("registry", "docker-registry is not installed (Debian: docker-registry)")
    folder = tmp_path_factory.mktemp("registries")
    with (
        debian_registry(folder / "plain", "plain") as plain,
        debian_registry(folder / "basic", "basic") as basic,
        debian_registry(folder / "token", "token") as token,
    ):
        bundle = folder / "authorities.pem"
        bundle.write_bytes(basic.certificate.read_bytes() + token.certificate.read_bytes())
        yield {"plain": plain, "basic": basic, "token": token, "bundle": bundle}


@pytest.fixture(autouse=True)
def trusted(registries, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(registries["bundle"]))


def login():
    return Login(USER, PASSWORD)


def a_repository(registry, name, asks=login):
    return Repository(registry.host, name, f"{registry.host}/{name}", asks, pause_s=0.05)


def a_layer(folder: Path, content=b"ours") -> Layer:
    packed, plain = layer(Item("ours", content)), layer(Item("ours", content), compress=False)
    path = folder / f"{digest(packed)[7:20]}.tar.gz"
    path.write_bytes(packed)
    return Layer(Blob(digest(packed), len(packed)), digest(plain), path)


def a_base(folder: Path, repository: Repository, family="oci", content=b"base") -> None:
    """Store a base image as `family`, without a word of its own on its type."""
    held = a_layer(folder, content)
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
              "rootfs": {"type": "layers", "diff_ids": [held.diff_id]}}  # fmt: skip
    body = json.dumps(config).encode()
    start = "application/vnd.oci.image." if family == "oci" else "application/vnd.docker."
    kinds = {
        "oci": ("config.v1+json", "layer.v1.tar+gzip", "manifest.v1+json"),
        "docker": (
            "container.image.v1+json", "image.rootfs.diff.tar.gzip",
            "distribution.manifest.v2+json",
        ),
    }[family]  # fmt: skip
    manifest = {
        "schemaVersion": 2,
        **({"mediaType": start + kinds[2]} if family == "docker" else {}),
        "config": {"mediaType": start + kinds[0], "digest": digest_of(body), "size": len(body)},
        "layers": [{"mediaType": start + kinds[1], "digest": held.blob.digest,
                    "size": held.blob.size_bytes}],
    }  # fmt: skip
    repository.put(Blob(digest_of(body), len(body)), lambda: io.BytesIO(body))
    repository.put(held.blob, lambda: held.path.open("rb"))
    repository.put_manifest("1", json.dumps(manifest).encode(), start + kinds[2])


def read_again(registry, name, tag, folder: Path):
    """What skopeo makes of it: every digest is checked on the way."""
    if shutil.which("skopeo") is None:
        missing("registry", "skopeo is not installed (Debian: skopeo)")
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"--src-creds={USER}:{PASSWORD}",
         f"docker://{registry.host}/{name}:{tag}", f"dir:{folder}"],
        check=True, timeout=60,
    )  # fmt: skip
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("family", ["oci", "docker"])
@pytest.mark.parametrize("kind", ["plain", "basic", "token"])
def test_what_is_pushed_is_read_again_by_skopeo(registries, tmp_path, kind, family):
    registry, name = registries[kind], f"base-{family}"
    a_base(tmp_path, a_repository(registry, name), family)
    source, target = a_repository(registry, name), a_repository(registry, f"scar-{family}")
    base, ours = source.base("1", "amd64"), a_layer(tmp_path)
    assert base.family == family
    derived = derive(base, [ours], "5.0")
    push(derived, source, target, "f-1")
    manifest = read_again(registry, f"scar-{family}", "f-1", tmp_path / "read")
    assert [one["digest"] for one in manifest["layers"]] == [
        base.layers[0].digest,
        ours.blob.digest,
    ]
    assert target.base("f-1", "amd64").digest == digest_of(derived.manifest)


@pytest.mark.parametrize("kind", ["basic", "token"])
@pytest.mark.parametrize("asks", [lambda: None, lambda: Login(USER, "wrong")])
def test_a_private_image_is_told_as_that(registries, tmp_path, kind, asks):
    registry = registries[kind]
    a_base(tmp_path, a_repository(registry, "private/x"))
    with pytest.raises(RegistryError) as caught:
        a_repository(registry, "private/x", asks).base("1", "amd64")
    assert caught.value.is_absence
    assert "log in" in caught.value.hint or "login is not right" in caught.value.hint


def test_a_public_image_of_a_token_server_needs_no_login(registries, tmp_path):
    registry = registries["token"]
    a_base(tmp_path, a_repository(registry, "public/x"))
    assert a_repository(registry, "public/x", lambda: None).base("1", "amd64").layers


def test_one_token_serves_for_reading_writing_and_mounting(registries, tmp_path):
    registry = registries["token"]
    a_base(tmp_path, a_repository(registry, "team/base"))
    source, target = a_repository(registry, "team/base"), a_repository(registry, "team/scar")
    base = source.base("1", "amd64")
    before = registry.tokens.total()
    push(derive(base, [a_layer(tmp_path)], "5.0"), source, target, "f-1")
    assert registry.tokens["repository:team/base:pull"] >= 1
    assert registry.tokens.total() - before <= 8, "not one for each request"
    assert target.base("f-1", "amd64").layers[0] == base.layers[0]


def test_tokens_that_run_out_in_the_middle_are_renewed(tmp_path, monkeypatch):
    if not is_installed():
        missing("registry", "docker-registry is not installed")
    # Shorter than the push: the registry takes none that is over.
    with debian_registry(tmp_path / "short", "token", token_lifetime_s=1) as registry:
        monkeypatch.setenv("SSL_CERT_FILE", str(registry.certificate))
        target = a_repository(registry, "scar")
        content = os.urandom(300_000)
        blob = Blob(digest_of(content), len(content))

        waits = [1.2]

        def slow():
            threading.Event().wait(waits.pop() if waits else 0)
            return io.BytesIO(content)

        target.put(blob, slow)
        threading.Event().wait(1.2)
        assert target.has(blob)
        assert registry.tokens.total() >= 3


def test_an_unknown_image_is_told_as_that(registries):
    with pytest.raises(RegistryError, match=r"HTTP 404 MANIFEST_UNKNOWN") as caught:
        a_repository(registries["basic"], "no/such").base("1", "amd64")
    assert "name and tag" in caught.value.hint


def test_a_certificate_that_nobody_vouches_for_is_told(registries, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RegistryError, match="certificate verify failed") as caught:
        a_repository(registries["basic"], "x").base("1", "amd64")
    assert "SSL_CERT_FILE" in caught.value.hint


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"])
def test_authorities_are_taken_from_where_other_programs_have_them(
    registries, tmp_path, monkeypatch, name
):
    a_base(tmp_path, a_repository(registries["basic"], "trusted"))
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv(name, str(registries["bundle"]))
    assert a_repository(registries["basic"], "trusted").base("1", "amd64").layers


def test_a_registry_that_dies_in_the_middle_is_told_and_the_next_push_goes_on(
    tmp_path, monkeypatch
):
    if not is_installed():
        missing("registry", "docker-registry is not installed")
    from scar.images.derive import host_base

    small, large = a_layer(tmp_path), a_layer(tmp_path, os.urandom(8_000_000))
    derived = derive(host_base("x86_64"), [small, large], "5.0")
    with debian_registry(tmp_path / "one", "plain") as registry:
        target = a_repository(registry, "scar")
        target.put(small.blob, lambda: small.path.open("rb"))

        def dies(tag, done, total):
            if done > total // 2:
                os.kill(registry.process.pid, signal.SIGKILL)

        with pytest.raises(ImageError, match="does not answer"):
            push(derived, None, target, "f-1", None, dies)
    with debian_registry(tmp_path / "one", "plain") as registry:
        target = a_repository(registry, "scar")
        with pytest.raises(RegistryError, match="404"):
            target.base("f-1", "amd64")
        assert target.has(small.blob)
        push(derived, None, target, "f-1")
        assert len(target.base("f-1", "amd64").layers) == 2


def test_a_blob_of_any_size_takes_little_memory(registries, tmp_path):
    """A child's peak: 512 MiB of zeros, in and out."""
    program = textwrap.dedent(
        r"""
        import hashlib, io, re, sys
        from scar.images.derive import Blob
        from scar.images.registry import Repository
        SIZE = 512 << 20
        class Zeros(io.RawIOBase):
            left = SIZE
            def read(self, size=-1):
                count = min(size, self.left)
                self.left -= count
                return bytes(count)
        hashed, part = hashlib.sha256(), bytes(1 << 20)
        for _ in range(SIZE >> 20):
            hashed.update(part)
        blob = Blob("sha256:" + hashed.hexdigest(), SIZE)
        one, other = (Repository(sys.argv[1], name, name) for name in ("large", "copy"))
        one.put(blob, Zeros)
        other.put(blob, lambda: one.open(blob))
        # Not getrusage: its peak is that of the parent too.
        print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, registries["plain"].host],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) < 100_000, "kB"
