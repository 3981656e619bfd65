"""scar.cfg and the FDL file, from the disk to layers."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


# A scar.cfg as the reference implementation wrote it on its first use, version 1.1.0.
REFERENCE: dict[str, Any] = {
    "scar": {"config_version": "1.1.0"},
    "oscar": {"my_oscar": {"endpoint": "", "auth_user": "", "auth_password": ""}},
    "aws": {
        "iam": {"boto_profile": "default", "role": ""},
        "lambda": {
            "boto_profile": "default",
            "region": "us-east-1",
            "execution_mode": "lambda",
            "timeout": 300,
            "memory": 512,
            "description": "Automatically generated lambda function",
            "runtime": "python3.7",
            "layers": [],
            "invocation_type": "RequestResponse",
            "asynchronous": False,
            "log_type": "Tail",
            "log_level": "INFO",
            "environment": {
                "Variables": {
                    "UDOCKER_BIN": "/opt/udocker/bin/",
                    "UDOCKER_LIB": "/opt/udocker/lib/",
                    "UDOCKER_DIR": "/tmp/shared/udocker",
                    "UDOCKER_EXEC": "/opt/udocker/udocker.py",
                }
            },
            "deployment": {"max_payload_size": 52428800, "max_s3_payload_size": 262144000},
            "container": {"environment": {"Variables": {}}, "timeout_threshold": 10},
            "supervisor": {
                "version": "latest",
                "layer_name": "faas-supervisor",
                "license_info": "Apache 2.0",
            },
        },
        "s3": {
            "boto_profile": "default",
            "region": "us-east-1",
            "event": {
                "Records": [
                    {
                        "eventSource": "aws:s3",
                        "s3": {
                            "bucket": {
                                "name": "{bucket_name}",
                                "arn": "arn:aws:s3:::{bucket_name}",
                            },
                            "object": {"key": "{file_key}"},
                        },
                    }
                ]
            },
        },
        "api_gateway": {
            "boto_profile": "default",
            "region": "us-east-1",
            "endpoint": (
                "https://{api_id}.execute-api.{api_region}.amazonaws.com/{stage_name}/launch"
            ),
            "request_parameters": {
                "integration.request.header.X-Amz-Invocation-Type": (
                    "method.request.header.X-Amz-Invocation-Type"
                )
            },
            "http_method": "ANY",
            "method": {
                "authorizationType": "NONE",
                "requestParameters": {"method.request.header.X-Amz-Invocation-Type": False},
            },
            "integration": {
                "type": "AWS_PROXY",
                "integrationHttpMethod": "POST",
                "uri": "arn:aws:apigateway:{api_region}:lambda:path/2015-03-31/functions/"
                "arn:aws:lambda:{lambda_region}:{account_id}:function:{function_name}/invocations",
                "requestParameters": {
                    "integration.request.header.X-Amz-Invocation-Type": (
                        "method.request.header.X-Amz-Invocation-Type"
                    )
                },
            },
            "path_part": "{proxy+}",
            "stage_name": "scar",
            "service_id": "apigateway.amazonaws.com",
            "source_arn_testing": "arn:aws:execute-api:{api_region}:{account_id}:{api_id}/*",
            "source_arn_invocation": (
                "arn:aws:execute-api:{api_region}:{account_id}:{api_id}/{stage_name}/ANY"
            ),
        },
        "cloudwatch": {
            "boto_profile": "default",
            "region": "us-east-1",
            "log_retention_policy_in_days": 30,
        },
        "batch": {
            "multi_node_parallel": {"enabled": False, "number_nodes": 10, "main_node_index": 0},
            "boto_profile": "default",
            "region": "us-east-1",
            "vcpus": 1,
            "memory": 1024,
            "enable_gpu": False,
            "state": "ENABLED",
            "type": "MANAGED",
            "environment": {"Variables": {}},
            "compute_resources": {
                "security_group_ids": [],
                "type": "EC2",
                "desired_v_cpus": 0,
                "min_v_cpus": 0,
                "max_v_cpus": 2,
                "subnets": [],
                "instance_types": ["m3.medium"],
                "launch_template_name": "faas-supervisor",
                "instance_role": "arn:aws:iam::{account_id}:instance-profile/ecsInstanceRole",
            },
            "service_role": "arn:aws:iam::{account_id}:role/service-role/AWSBatchServiceRole",
        },
    },
}


def written(folder: Path, data: object) -> Path:
    path = folder / "scar.cfg"
    path.write_text(json.dumps(data, indent=2))
    return path


def without_version(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "scar": {}}


def test_the_references_scar_cfg_loads_as_it_is_without_a_word(tmp_path: Path):
    written(tmp_path, without_version(REFERENCE))
    read = config.read_config(environ(tmp_path))
    loaded = load(Sources(config=read.layer, flags=HOST))
    assert (read.warnings, loaded.warnings) == ((), ())
    function = loaded.deployment.functions.aws[0]
    assert function.lambda_.description == "Automatically generated lambda function"
    assert function.batch.compute_resources.instance_types == ("m3.medium",)
    assert function.batch.service_role.endswith("AWSBatchServiceRole")


def test_the_documentations_short_scar_cfg_loads_with_its_old_spellings(tmp_path: Path):
    old = {"region": "us-east-1", "time": 100, "memory": 256, "timeout_threshold": 20}
    path = written(tmp_path, {"aws": {"iam": {"role": ""}, "lambda": old}})
    function = load_with(config.read_config(environ(tmp_path)).layer).functions.aws[0]
    assert (function.lambda_.timeout, function.lambda_.container.timeout_threshold) == (100, 20)

    path.write_text(path.read_text().replace("100", "1000"))
    with pytest.raises(FdlError) as caught:
        load_with(config.read_config(environ(tmp_path)).layer)
    [fault] = caught.value.diagnostics
    assert fault.summary == "timeout must be 1 to 900 seconds, got 1000"
    assert fault.place is not None
    assert fault.place.text.strip() == '"time": 1000,'


def test_an_old_version_is_brought_up_to_date_once_and_kept_beside(tmp_path: Path):
    path = written(tmp_path, REFERENCE)
    path.chmod(0o600)
    before = path.read_text()
    first = config.read_config(environ(tmp_path))
    assert [w.summary for w in first.warnings] == [
        f"`{path}` is now of version 2.0.0; the old one is `scar.cfg_old` beside it"
    ]
    assert (tmp_path / "scar.cfg_old").read_text() == before
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scar.cfg", "scar.cfg_old"]
    # An untouched file of the reference means the defaults of this version.
    fresh = load_with(Layer({"scar": {"config_version": "2.0.0"}})).functions.aws[0]
    migrated = load_with(first.layer).functions.aws[0]
    assert migrated.batch.compute_resources == fresh.batch.compute_resources
    assert migrated.batch.service_role == ""

    after = path.read_text()
    second = config.read_config(environ(tmp_path))
    assert second.warnings == ()
    assert path.read_text() == after
    assert second.layer == first.layer


def test_no_value_that_a_user_chose_is_lost_on_the_way(tmp_path: Path):
    mine = json.loads(json.dumps(REFERENCE))
    mine["scar"]["config_version"] = "1.0.9"
    mine["oscar"]["my_oscar"]["endpoint"] = "https://oscar.example.org"
    its = mine["aws"]
    its["iam"]["role"] = "arn:aws:iam::123456789012:role/mine"
    its["lambda"] |= {"memory": 1024, "layers": ["arn:mine"], "runtime": "image", "colour": "red"}
    its["lambda"]["environment"]["Variables"] |= {"MINE": "1", "UDOCKER_DIR": "/elsewhere"}
    its["batch"]["compute_resources"] |= {
        "instance_types": ["m3.medium", "c5.large"],
        "subnets": ["subnet-1"],
    }
    its["batch"]["multi_node_parallel"]["number_nodes"] = 4
    written(tmp_path, mine)
    config.read_config(environ(tmp_path))
    now = json.loads((tmp_path / "scar.cfg").read_text())["aws"]
    assert now["iam"]["role"] == "arn:aws:iam::123456789012:role/mine"
    assert now["lambda"]["memory"] == 1024
    assert (now["lambda"]["layers"], now["lambda"]["colour"]) == (["arn:mine"], "red")
    assert now["lambda"]["environment"]["Variables"] == {"MINE": "1", "UDOCKER_DIR": "/elsewhere"}
    assert now["batch"]["compute_resources"]["instance_types"] == ["m3.medium", "c5.large"]
    assert now["batch"]["compute_resources"]["subnets"] == ["subnet-1"]
    assert now["batch"]["multi_node_parallel"]["number_nodes"] == 4
    assert json.loads((tmp_path / "scar.cfg").read_text())["oscar"] == mine["oscar"]


def test_a_backup_that_is_there_is_never_overwritten(tmp_path: Path):
    (tmp_path / "scar.cfg_old").write_text("mine")
    path = written(tmp_path, REFERENCE)
    before = path.read_text()
    config.read_config(environ(tmp_path))
    assert (tmp_path / "scar.cfg_old").read_text() == "mine"
    assert (tmp_path / "scar.cfg_old.2").read_text() == before


def test_a_linked_scar_cfg_stays_a_link(tmp_path: Path):
    (tmp_path / "dotfiles").mkdir()
    real = written(tmp_path / "dotfiles", REFERENCE)
    (tmp_path / "scar.cfg").symlink_to(real)
    config.read_config(environ(tmp_path))
    assert (tmp_path / "scar.cfg").is_symlink()
    assert json.loads(real.read_text())["scar"]["config_version"] == "2.0.0"


@pytest.mark.parametrize("version", ["2.0.0", "2.7", "", "x", "1.x"])
def test_other_versions_are_left_alone(tmp_path: Path, version: str):
    path = written(tmp_path, {"scar": {"config_version": version}})
    before = path.read_text()
    assert config.read_config(environ(tmp_path)).warnings == ()
    assert path.read_text() == before


def test_a_newer_version_is_read_with_a_warning(tmp_path: Path):
    path = written(tmp_path, {"scar": {"config_version": "3.0.0"}})
    [warning] = config.read_config(environ(tmp_path)).warnings
    assert warning.summary == (
        f"`{path}` is of a newer version of SCAR: this one may not know all its keys"
    )


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    "scar aws oscar config_version target lambda iam batch role memory time image "
                    "container environment Variables compute_resources subnets x".split()
                )
                | st.text(max_size=5),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
    | st.fixed_dictionaries(
        {
            "scar": st.just({"config_version": "1.1.0"}),
            "aws": st.dictionaries(
                st.sampled_from(["lambda", "batch", "iam", "s3"]),
                st.none()
                | st.dictionaries(
                    st.sampled_from(["time", "timeout", "batch", "image", "environment"]),
                    st.integers()
                    | st.text(max_size=4)
                    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
                ),
            ),
        }
    )
)
@settings(max_examples=150, deadline=None)
def test_any_json_is_a_config_or_diagnostics_never_a_traceback(data: object):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scar.cfg").write_text(json.dumps(data))
        with suppress(FdlError):
            load_with(config.read_config(environ(folder)).layer)
