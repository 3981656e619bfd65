import gzip
import hashlib
import json
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar.bundle import function_layer, runtime_layer, sources_sha256
from scar.errors import Missing, UserError
from scar_supervisor.contract import FunctionConfig, load_config

CONFIG = FunctionConfig("split", has_script=True)


def members(layer):
    with tarfile.open(layer.path) as tar:
        return {m.name: m for m in tar.getmembers()}


def read(layer, name):
    with tarfile.open(layer.path) as tar:
        return tar.extractfile(name).read()


def test_the_layer_holds_config_and_script_below_the_functions_folder(tmp_path):
    script = tmp_path / "split.sh"
    script.write_text("exit 7\n")
    layer = function_layer(CONFIG, script, None, tmp_path / "layer")
    assert list(members(layer)) == [
        "opt",
        "opt/scar",
        "opt/scar/function",
        "opt/scar/function/config.json",
        "opt/scar/function/script",
    ]
    assert load_config(read(layer, "opt/scar/function/config.json").decode()) == CONFIG
    assert read(layer, "opt/scar/function/script") == b"exit 7\n"


def test_digest_size_and_diff_id_are_those_of_the_file(tmp_path):
    layer = function_layer(CONFIG, None, None, tmp_path / "layer")
    packed = layer.path.read_bytes()
    assert layer.blob.digest == "sha256:" + hashlib.sha256(packed).hexdigest()
    assert layer.blob.size_bytes == len(packed)
    assert layer.diff_id == "sha256:" + hashlib.sha256(gzip.decompress(packed)).hexdigest()


def test_an_extra_folder_goes_in_whole_with_links_as_links(tmp_path):
    extra = tmp_path / "extra"
    (extra / "sub" / "empty").mkdir(parents=True)
    (extra / "data").write_text("same")
    os.link(extra / "data", extra / "hard")
    (extra / "sub" / "soft").symlink_to("../data")
    (extra / "tool").write_text("#!/bin/sh")
    (extra / "tool").chmod(0o700)
    layer = function_layer(CONFIG, None, extra, tmp_path / "layer")
    its = members(layer)
    start = "opt/scar/function/extra"
    assert its[f"{start}/sub/soft"].linkname == "../data"
    assert its[f"{start}/sub/empty"].isdir()
    assert (its[f"{start}/tool"].mode, its[f"{start}/data"].mode) == (0o755, 0o644)
    assert not any(m.islnk() for m in its.values())
    assert read(layer, f"{start}/hard") == b"same"


def test_an_extra_file_keeps_its_name(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"m")
    layer = function_layer(CONFIG, None, tmp_path / "model.bin", tmp_path / "layer")
    assert read(layer, "opt/scar/function/extra/model.bin") == b"m"


names = st.text(alphabet="ab.-é /", min_size=1, max_size=12).filter(
    lambda name: all(p.strip() not in ("", ".", "..") for p in name.split("/"))
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=64), max_size=6))
def test_the_same_content_is_the_same_layer_and_parents_come_first(tmp_path_factory, files):
    layers = []
    for order in (files.items(), reversed(files.items())):
        folder = tmp_path_factory.mktemp("some")
        extra = folder / "extra"
        extra.mkdir()
        for name, content in order:
            path = extra / name
            if any(p.is_file() for p in path.parents) or path.is_dir():
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        layers.append(function_layer(CONFIG, None, extra, folder / "layer"))
    assert layers[0].blob == layers[1].blob
    seen = set()
    for name, member in members(layers[0]).items():
        parent = name.rpartition("/")[0]
        assert not parent or parent in seen
        assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
        seen.add(name)


def test_a_script_that_is_missing_or_a_folder_is_told(tmp_path):
    with pytest.raises(Missing, match=r"no\.sh"):
        function_layer(CONFIG, tmp_path / "no.sh", None, tmp_path / "layer")
    with pytest.raises(UserError, match="cannot be read"):
        function_layer(CONFIG, tmp_path, None, tmp_path / "layer")
    with pytest.raises(Missing, match="payload"):
        function_layer(CONFIG, None, tmp_path / "no", tmp_path / "layer")


def test_a_pipe_in_the_extra_payload_is_refused_rather_than_read(tmp_path):
    (tmp_path / "extra").mkdir()
    os.mkfifo(tmp_path / "extra" / "pipe")
    with pytest.raises(UserError, match="pipe"):
        function_layer(CONFIG, None, tmp_path / "extra", tmp_path / "layer")


def test_a_supervisor_that_is_not_built_or_is_out_of_date_is_told(tmp_path):
    with pytest.raises(UserError, match="not built") as caught:
        runtime_layer("x86_64", tmp_path)
    assert "make supervisor" in caught.value.hint
    (tmp_path / "x86_64.tar.gz").write_bytes(b"tree")
    about = {"digest": "sha256:d", "size": 4, "diff_id": "sha256:e", "sources_sha256": "old"}
    (tmp_path / "x86_64.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="older"):
        runtime_layer("x86_64", tmp_path)
    about["sources_sha256"] = sources_sha256()
    (tmp_path / "x86_64.json").write_text(json.dumps(about))
    assert runtime_layer("x86_64", tmp_path).blob.digest == "sha256:d"
