import gzip
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from scar.errors import ImageError
from scar.images.connect import RegistryError
from scar.images.derive import Blob, Layer, derive
from scar.images.login import Login
from scar.images.push import push
from scar.images.registry import Repository
from scar.images.streams import CorruptBlob
from scar.images.tokens import Authorization, Challenged
from scar.images.turns import Turns
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
    return Repository(registry.host, name, f"{registry.host}/{name}", plain=True, pause_s=0.01)


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
    with pytest.raises(RegistryError, match=r"does not answer: .*refused") as caught:
        a_repository(gone).base("1", "amd64")
    assert caught.value.is_absence


def pushed(source, target, ours, name="team/app"):
    base = a_repository(source).base("1", "amd64")
    push(derive(base, [ours], "5.0"), a_repository(source), a_repository(target, name), "t")
    return base


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_that_breaks_off_goes_on_from_there(registry, tmp_path, knows_ranges):
    source, target = registry(), registry()
    source.knows_ranges = knows_ranges
    layer = os.urandom(1_000_000)
    source.hold_image([layer])
    source.cuts[digest_of(layer)] = [300_000, 300_000]
    pushed(source, target, a_layer(tmp_path))
    assert target.blobs[digest_of(layer)] == layer
    starts = [int(one[6:-1]) for one in source.ranges]
    assert starts == [300_000, 600_000 if knows_ranges else 300_000]
    assert target.seen["PUT blobs"] == 3, "the upload went on"


def test_a_download_that_always_breaks_off_is_given_up(registry, tmp_path):
    source, target = registry(), registry()
    layer = os.urandom(100_000)
    source.hold_image([layer])
    source.cuts[digest_of(layer)] = [0] * 100
    with pytest.raises(ImageError, match=r"broke off 6 times, at byte 0 of 100000"):
        pushed(source, target, a_layer(tmp_path))
    assert not target.manifests


def test_a_blob_that_is_always_damaged_is_given_up_and_leaves_nothing(registry, tmp_path):
    source, target = registry(), registry()
    source.hold_image([gzip.compress(b"base" * 1000)])
    base, ours = a_repository(source).base("1", "amd64"), a_layer(tmp_path)
    broken = base.layers[0].digest
    source.blobs[broken] = b"?" * base.layers[0].size_bytes
    with pytest.raises(CorruptBlob, match="not what its digest names"):
        push(derive(base, [ours], "5.0"), a_repository(source), a_repository(target), "t")
    assert broken not in target.blobs
    assert not target.manifests


def test_a_blob_that_is_too_short_is_given_up(registry, tmp_path):
    source, target = registry(), registry()
    layer = gzip.compress(b"base" * 1000)
    source.hold_image([layer])
    source.blobs[digest_of(layer)] = layer[:-5]
    with pytest.raises(ImageError, match=r"broke off"):
        pushed(source, target, a_layer(tmp_path))
    assert not target.manifests


def test_a_login_that_runs_out_while_a_body_is_sent_is_renewed(registry, tmp_path):
    source, target = registry(), registry()
    layer = gzip.compress(b"base")
    source.hold_image([layer])
    target.expires_in_uploads = 1
    pushed(source, target, a_layer(tmp_path))
    assert target.blobs[digest_of(layer)] == layer


def test_where_mounting_is_refused_the_blob_is_sent(registry, tmp_path):
    held = registry()
    layer = gzip.compress(b"base")
    held.hold_image([layer])
    base = a_repository(held).base("1", "amd64")
    source, held.refuses_mounts = a_repository(held), True
    kept = held.blobs.pop(digest_of(layer))
    target = a_repository(held, "scar")

    class Elsewhere:
        mounts = source.mounts

        def open(self, blob):
            return io.BytesIO(kept)

    push(derive(base, [], "5.0"), Elsewhere(), target, "t")
    assert held.blobs[digest_of(layer)] == layer


def test_two_functions_on_one_base_send_it_once(registry, tmp_path):
    source, target = registry(), registry()
    source.hold_image([os.urandom(2_000_000)])
    base, turns = a_repository(source).base("1", "amd64"), Turns()
    with ThreadPoolExecutor(4) as pool:
        for n in range(4):
            (tmp_path / str(n)).mkdir()
            ours = a_layer(tmp_path / str(n), b"ours %d" % n)
            derived = derive(base, [ours], "5.0")
            to = a_repository(target)
            pool.submit(push, derived, a_repository(source), to, f"f-{n}", turns)
    assert target.seen["PUT blobs"] == 1 + 4 + 4, "one base, four layers and configs"
    assert len(target.manifests) == 4


def test_progress_is_told_up_to_the_last_byte(registry, tmp_path):
    source, target = registry(), registry()
    source.hold_image([os.urandom(1_000_000)])
    base, told = a_repository(source).base("1", "amd64"), []
    derived = derive(base, [a_layer(tmp_path)], "5.0")
    push(derived, a_repository(source), a_repository(target), "t", None, lambda *a: told.append(a))
    totals = {total for _, _, total in told}
    assert len(totals) == 1
    assert told[-1] == ("t", *(2 * list(totals)))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_an_index_that_is_larger_than_any_is_not_read(registry):
    source = registry()
    source.manifests["1"] = (b" " * (5 << 20), "application/vnd.oci.image.index.v1+json")
    with pytest.raises(ImageError, match="more than 4 MiB"):
        a_repository(source).base("1", "amd64")


def test_a_login_is_not_sent_in_the_clear_to_another_machine(registry):
    challenge = 'Bearer realm="http://tokens.example/token",service="here"'
    authorization = Authorization("r.example", "x", "x", lambda: Login("me", "secret"))
    with pytest.raises(ImageError, match="in the clear"):
        authorization.renew(Challenged(challenge, ""), urllib3.PoolManager(), urllib3.Retry(0))


def test_a_broken_login_is_told_only_where_a_login_is_needed(registry):
    def login():
        raise ImageError("x", "the credential helper is not installed")

    source = registry()
    source.hold_image([gzip.compress(b"base")])
    repository = Repository(source.host, "x", "x", login)
    assert repository.base("1", "amd64").layers, "a public image needs none"
    source.uses = 0
    with pytest.raises(ImageError) as caught:
        Repository(source.host, "x", "x", login).base("1", "amd64")
    assert "helper is not installed" in caught.value.hint
