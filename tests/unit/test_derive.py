import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scar.errors import ImageError
from scar.images.derive import (
    ENTRYPOINT,
    Base,
    Blob,
    Layer,
    content_tag,
    defaults,
    derive,
    digest_of,
    host_base,
    is_derived,
    is_host,
)

LAYER = Layer(Blob("sha256:" + "1" * 64, 10), "sha256:" + "2" * 64, Path("unused"))


def a_base(family="oci", **run) -> Base:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "3" * 64]},
        "history": [{"created_by": "somebody"}],
    }
    return Base("sha256:" + "4" * 64, family, config, (Blob("sha256:" + "5" * 64, 20),))


def test_the_supervisor_becomes_the_entrypoint_and_the_rest_stays():
    base = a_base(
        Entrypoint=["tini", "--"], Cmd=["sh"], User="nobody", WorkingDir="/data", Env=["A=1"]
    )
    derived = derive(base, [LAYER], "5.0")
    config = json.loads(derived.config)
    run = config["config"]
    assert (run["Entrypoint"], run["Cmd"]) == (list(ENTRYPOINT), [])
    assert (run["User"], run["WorkingDir"], run["Env"]) == ("nobody", "/data", ["A=1"])
    assert run["Labels"] == {"scar.supervisor": "5.0"}
    assert config["rootfs"]["diff_ids"] == ["sha256:" + "3" * 64, LAYER.diff_id]
    assert len(config["history"]) == 2
    manifest = json.loads(derived.manifest)
    assert [one["digest"] for one in manifest["layers"]] == [
        base.layers[0].digest,
        LAYER.blob.digest,
    ]
    assert manifest["config"]["digest"] == digest_of(derived.config)


def test_what_would_steer_our_loader_is_kept_for_the_script_instead():
    env = ["PATH=/bin", "LD_PRELOAD=x.so", "PYTHONHOME=/opt/py", "LOCPATH=/l=l", "LDX=1"]
    base = a_base(Env=env, Entrypoint=["run"], Cmd=["it"])
    assert json.loads(derive(base, [LAYER], "5.0").config)["config"]["Env"] == [
        "PATH=/bin",
        "LDX=1",
    ]
    said = defaults(base)
    assert said.environment == {"LD_PRELOAD": "x.so", "PYTHONHOME": "/opt/py", "LOCPATH": "/l=l"}
    assert (said.entrypoint, said.command) == (("run",), ("it",))


@pytest.mark.parametrize("family", ["oci", "docker"])
def test_one_manifest_uses_the_media_types_of_one_family(family):
    manifest = json.loads(derive(a_base(family), [LAYER], "5.0").manifest)
    types = [
        manifest["mediaType"],
        manifest["config"]["mediaType"],
        *(one["mediaType"] for one in manifest["layers"]),
    ]
    word = "vnd.oci" if family == "oci" else "vnd.docker"
    assert all(word in one for one in types)


def test_the_image_host_is_one_layer_and_runs_no_supervisor_of_its_own():
    base = host_base("x86_64")
    config = json.loads(derive(base, [LAYER], "5.0").config)
    assert is_host(base)
    assert config["config"] == {"Labels": {"scar.host": "true"}}
    assert config["rootfs"]["diff_ids"] == [LAYER.diff_id]


def test_what_was_derived_is_known_again():
    base = a_base()
    made = json.loads(derive(base, [LAYER], "5.0").config)
    assert is_derived(Base(base.digest, "oci", made, base.layers))
    assert not is_derived(base)


def test_a_config_that_does_not_list_its_layers_is_refused():
    base = a_base()
    with pytest.raises(ImageError, match="does not list its layers"):
        derive(Base(base.digest, "oci", base.config, ()), [LAYER], "5.0")


@given(st.dictionaries(st.sampled_from(["User", "WorkingDir", "StopSignal"]), st.text(max_size=8)))
def test_deriving_changes_nothing_it_was_given_and_repeats_itself(run):
    base = a_base(**run)
    before = json.dumps(base.config)
    first, second = derive(base, [LAYER], "5.0"), derive(base, [LAYER], "5.0")
    assert (first.config, first.manifest) == (second.config, second.manifest)
    assert json.dumps(base.config) == before


def test_the_tag_changes_with_base_and_layers_and_with_nothing_else():
    other = Layer(LAYER.blob, "sha256:" + "9" * 64, LAYER.path)
    packed = Layer(Blob("sha256:" + "9" * 64, 10), LAYER.diff_id, Path("elsewhere"))
    tag = content_tag("split", a_base(), [LAYER])
    assert tag.startswith("split-")
    assert len(tag) == len("split-") + 16
    assert tag == content_tag("split", a_base(User="x"), [LAYER])
    assert tag != content_tag("split", a_base(), [other])
    assert tag == content_tag("split", a_base(), [packed])
