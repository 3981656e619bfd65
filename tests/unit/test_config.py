"""scar.cfg and the FDL file, from the disk to layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scar import config
from scar.errors import FdlError, Missing, UserError
from scar.fdl.load import NO_RULES, load
from scar.fdl.schema import Deployment
from scar.fdl.source import Layer, Sources, from_flags

HOST = from_flags(
    {"aws": {"lambda": {"name": "a", "container": {"image": "host"}}}, "scar": {"target": "local"}},
    {},
)


def environ(folder: Path) -> dict[str, str]:
    return {"SCAR_CONFIG_FOLDER": str(folder)}


def load_with(layer: Layer) -> Deployment:
    return load(Sources(config=layer, flags=HOST)).deployment


def test_the_first_use_writes_the_defaults_and_goes_on(tmp_path: Path):
    read = config.read_config(environ(tmp_path / "new"))
    assert read.warnings == ()
    path = tmp_path / "new" / "scar.cfg"
    written = json.loads(path.read_text())
    assert written["scar"] == {"config_version": "2.0.0", "target": "aws"}
    assert written["aws"]["lambda"]["memory"] == 512
    assert [p.name for p in path.parent.iterdir()] == ["scar.cfg"]
    assert load_with(read.layer) == load_with(Layer({"scar": {"config_version": "2.0.0"}}))


def test_the_second_use_reads_what_is_there_and_leaves_it(tmp_path: Path):
    text = '{"aws": {"lambda": {"memory": 1024}}}'
    (tmp_path / "scar.cfg").write_text(text)
    read = config.read_config(environ(tmp_path))
    assert load_with(read.layer).functions.aws[0].lambda_.memory == 1024
    assert (tmp_path / "scar.cfg").read_text() == text


def test_json_indented_with_tabs_keeps_its_places(tmp_path: Path):
    (tmp_path / "scar.cfg").write_text('{\n\t"aws": {\n\t\t"lambda": {"memory": 1}\n\t}\n}\n')
    with pytest.raises(FdlError) as caught:
        load_with(config.read_config(environ(tmp_path)).layer)
    place = caught.value.diagnostics[0].place
    assert place is not None
    assert (place.line, place.column) == (3, 24)


def test_json_that_yaml_cannot_read_is_read_all_the_same(tmp_path: Path):
    long = "k" * 2000
    (tmp_path / "scar.cfg").write_text(json.dumps({"aws": {"lambda": {"tags": {long: "v"}}}}))
    deployment = load_with(config.read_config(environ(tmp_path)).layer)
    assert deployment.functions.aws[0].lambda_.tags == {long: "v"}


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
def test_an_empty_scar_cfg_says_nothing(tmp_path: Path, text: str):
    (tmp_path / "scar.cfg").write_text(text)
    assert config.read_config(environ(tmp_path)).layer.data == {}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": 1,}', ":1:9"),
        ('{"a": 1', ":1:8"),
        ("{'a': 1}", ":1:2"),
        ("[1]", ":1:1"),
        ("nonsense", ":1:1"),
        ("[" * 100_000, ":1:1"),
    ],
)
def test_json_that_is_none_is_a_fault_with_its_place(tmp_path: Path, text: str, place: str):
    (tmp_path / "scar.cfg").write_text(text)
    with pytest.raises(FdlError) as caught:
        config.read_config(environ(tmp_path))
    assert str(caught.value.diagnostics[0].place).endswith(place)


@pytest.mark.parametrize("text", ['{"aws": []}', '{"aws": 5}', '{"scar": "x"}'])
def test_a_part_of_scar_cfg_that_is_no_mapping_is_a_fault(tmp_path: Path, text: str):
    (tmp_path / "scar.cfg").write_text(text)
    with pytest.raises(FdlError, match="must be a mapping of keys"):
        load_with(config.read_config(environ(tmp_path)).layer)


def test_the_target_of_the_environment_stands_between_file_and_flags(tmp_path: Path):
    def target(flags: Layer) -> str:
        variables = {**environ(tmp_path), "SCAR_TARGET": "local"}
        fdl = Layer({"scar": {"target": "aws"}})
        sources = Sources(
            config.read_config(variables).layer, fdl, config.read_environment(variables), flags
        )
        return load(sources, NO_RULES).deployment.scar.target

    assert target(Layer()) == "local"
    assert target(from_flags({"scar": {"target": "aws"}}, {})) == "aws"
    assert config.read_environment({}) == Layer()


def test_a_data_file_named_by_mistake_is_not_read_whole(tmp_path: Path):
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than 4 MiB"):
        config.read_fdl(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbffunctions: {}\n")
    assert config.read_fdl(tmp_path / "a.yaml").data == {"functions": {}}


def test_a_missing_file_is_missing(tmp_path: Path):
    with pytest.raises(Missing):
        config.read_fdl(tmp_path / "nope.yaml")
