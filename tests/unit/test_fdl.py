"""The language: layers become one deployment, or every fault with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar.errors import FdlError
from scar.fdl.load import NO_RULES, Loaded, load
from scar.fdl.reference import keys
from scar.fdl.schema import Deployment
from scar.fdl.source import Layer, Sources, from_flags, overlay, read_yaml

COW = """\
functions:
  aws:
  - lambda:
      name: cow
      container:
        image: grycap/cowsay
"""

LOCAL = from_flags({"scar": {"target": "local"}}, {("scar", "target"): "--local"})


def loaded(text: str, config: str = "{}", flags: Layer = LOCAL) -> Loaded:
    cfg = read_yaml(config, "scar.cfg")
    return load(Sources(cfg, read_yaml(text, "a.yaml"), Layer(), flags))


def faults(text: str, config: str = "{}", flags: Layer = LOCAL) -> list[str]:
    """`place: summary` of each fault."""
    with pytest.raises(FdlError) as caught:
        loaded(text, config, flags)
    return [f"{d.place}: {d.summary}" for d in caught.value.diagnostics]


def cow(*lines: str) -> str:
    """The cow with these lines more in its `lambda`, from line 7 on."""
    return COW + "".join(f"      {line}\n" for line in lines)


def function_of(it: Loaded) -> Any:
    return it.deployment.functions.aws[0]


# Layers


def test_the_defaults_fill_what_nobody_says():
    function = function_of(loaded(COW))
    assert (function.lambda_.memory, function.lambda_.timeout) == (512, 300)
    assert function.lambda_.execution_mode == "lambda"
    assert function.batch.compute_resources.instance_types == ("optimal",)
    assert function.cloudwatch.log_retention_policy_in_days == 30


def test_flags_win_over_the_file_which_wins_over_scar_cfg():
    config = '{"aws": {"lambda": {"memory": 1000, "timeout": 100, "log_level": "ERROR"}}}'
    flags = from_flags(
        {"aws": {"lambda": {"memory": "3000"}}, "scar": {"target": "local"}},
        {("aws", "lambda", "memory"): "--memory"},
    )
    function = function_of(loaded(cow("memory: 2000", "timeout: 200"), config, flags))
    assert function.lambda_.memory == 3000
    assert function.lambda_.timeout == 200
    assert function.lambda_.log_level == "ERROR"


def test_scar_cfg_is_the_base_of_every_function():
    two = COW + COW.partition("aws:\n")[2].replace("cow", "sheep", 1)
    deployment = loaded(two, '{"aws": {"iam": {"role": ""}, "batch": {"vcpus": 2}}}').deployment
    assert [f.batch.vcpus for f in deployment.functions.aws] == [2, 2]


def test_lists_are_replaced_not_appended():
    config = '{"aws": {"batch": {"compute_resources": {"instance_types": ["m3.medium"]}}}}'
    text = COW + "    batch: {compute_resources: {instance_types: [g4dn.xlarge]}}\n"
    resources = function_of(loaded(text, config)).batch.compute_resources
    assert resources.instance_types == ("g4dn.xlarge",)


def test_an_empty_key_is_an_absent_key():
    config = '{"aws": {"lambda": {"memory": 1000}}}'
    assert function_of(loaded(cow("memory:", "environment:"), config)).lambda_.memory == 1000


def test_a_stronger_image_file_replaces_a_weaker_image():
    flags = from_flags(
        {"aws": {"lambda": {"container": {"image_file": "/x.tar"}}}, "scar": {"target": "local"}},
        {},
    )
    container = function_of(loaded(COW, flags=flags)).lambda_.container
    assert (container.image, container.image_file) == (None, "/x.tar")


def test_merging_leaves_the_layers_as_they_were():
    below = {"a": {"b": [1]}}
    above = {"a": {"b": [2], "c": 3}}
    assert overlay(below, above) == {"a": {"b": [2], "c": 3}}
    assert below == {"a": {"b": [1]}}


def test_loading_twice_from_the_same_layers_gives_the_same():
    sources = Sources(Layer(), read_yaml(cow("layers: [x]"), "a.yaml"), Layer(), LOCAL)
    assert load(sources) == load(sources)


def test_without_a_file_the_flags_are_one_function():
    flags = from_flags(
        {
            "aws": {"lambda": {"name": "cow", "container": {"image": "host"}}},
            "scar": {"target": "local"},
        },
        {},
    )
    assert function_of(load(Sources(flags=flags))).lambda_.name == "cow"


# YAML


def test_variables_are_text_as_written():
    text = cow("environment: {Variables: {AA: yes, BB: 007, CC: 1.10, DD: 2024-01-01, EE: }}")
    assert function_of(loaded(text)).lambda_.environment.Variables == {
        "AA": "yes",
        "BB": "007",
        "CC": "1.10",
        "DD": "2024-01-01",
        "EE": "",
    }


def test_anchors_and_merge_keys_work_and_a_fault_in_them_points_at_what_was_written():
    text = "storage_providers: &none {}\n" + COW.replace("- lambda:", "- lambda: &cow").replace(
        "name: cow", "name: cow\n      memory: 99"
    )
    text += "  - lambda: {<<: *cow, name: sheep, memory: 512}\n"
    assert faults(text) == ["a.yaml:6:15: memory must be 128 to 10240 MB, got 99"]
    deployment = loaded(text.replace("memory: 99", "memory: 256")).deployment
    assert [(f.lambda_.name, f.lambda_.memory) for f in deployment.functions.aws] == [
        ("cow", 256),
        ("sheep", 512),
    ]


def test_keys_written_twice_are_all_told():
    text = COW.replace("name: cow", "name: cow\n      name: sheep") + "functions: {}\n"
    assert faults(text) == [
        "a.yaml:5:7: `name` is written twice",
        "a.yaml:8:1: `functions` is written twice",
    ]


def test_a_merge_of_a_mapping_into_itself_ends():
    assert faults("functions: &f\n  <<: *f\n")[0].endswith("`<<` merges without end")


def test_a_bomb_of_merges_ends():
    levels = ["a0: &a0 {x: 1}"]
    levels += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 20)]
    with pytest.raises(FdlError):
        read_yaml("\n".join(levels), "a.yaml")


@pytest.mark.parametrize("text", ["? [a, b]\n: c", "? {a: b}\n: c"])
def test_keys_that_are_no_text_are_faults(text: str):
    assert "a key must be text" in faults(text)[0]


def test_huge_numbers_are_faults_not_crashes():
    assert faults(cow("memory: " + "9" * 5000))
    assert faults(cow("memory: .inf")) == [
        "a.yaml:7:15: memory must be a whole number of MB, got inf"
    ]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_a_deployment_or_faults(text: str):
    try_to_load(text)


ALPHABET = st.sampled_from(
    [
        *("functions:", "aws:", "lambda:", "name: a", "container:", "image: x", "batch:", "input:"),
        *("memory: 5", "- ", "  ", "\n", ": ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "!x ", "~"),
        *(
            "'",
            '"',
            "|",
            ">",
            "#",
            ",",
            "? ",
            "%",
            "---",
            "\t",
            "é",
            "\u2028",
            "1",
            "yes",
            "oscar:",
        ),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ALPHABET, max_size=30).map("".join))
def test_any_pieces_of_yaml_give_a_deployment_or_faults(text: str):
    try_to_load(text)


KEYS = st.sampled_from(
    [
        *("functions", "aws", "lambda", "name", "container", "image", "batch", "input", "path"),
        *("output", "environment", "Variables", "supervisor", "s3", "api_gateway", "scar", "oscar"),
        *("compute_resources", "target", "storage_providers", "multi_node_parallel", "deployment"),
    ]
)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(KEYS, DATA, max_size=4),
    st.lists(st.dictionaries(KEYS, DATA, max_size=4) | DATA, max_size=3),
    st.dictionaries(KEYS, DATA, max_size=4),
)
def test_any_data_gives_a_deployment_or_faults(top: Any, items: Any, config: Any):
    fdl = Layer({"functions": {"aws": items}, **top})
    try_to_load(Sources(Layer({"aws": config, "scar": config}), fdl, Layer(), LOCAL))


def try_to_load(given: str | Sources) -> None:
    try:
        sources = given
        if isinstance(given, str):
            sources = Sources(Layer(), read_yaml(given, "a.yaml"), Layer(), LOCAL)
        result: Any = load(sources).deployment  # type: ignore[arg-type]
    except FdlError as exc:
        result = exc.diagnostics
    assert isinstance(result, Deployment) or all(d.summary for d in result)


# Keys of the reference


def test_ignored_keys_warn_with_their_place():
    text = cow(
        "layers: [arn:x]",
        "runtime: python3.8",
        "supervisor: {version: 1.5.0}",
        "deployment: {max_payload_size: 1}",
        "environment: {Variables: {UDOCKER_BIN: /opt, MY_VAR: x}}",
    )
    text = text.replace("image: grycap/cowsay", "image: grycap/cowsay\n        alpine: true")
    it = loaded(text + "  oscar: []\n")
    assert [f"{d.place}: {d.summary}" for d in it.warnings] == [
        "a.yaml:7:9: `lambda.container.alpine` is ignored: the supervisor runs in any image",
        "a.yaml:8:7: `lambda.layers` is ignored: functions are images, which have no layers",
        "a.yaml:9:7: `lambda.runtime` is ignored: functions are always images",
        "a.yaml:10:7: `lambda.supervisor` is ignored: the supervisor comes with SCAR",
        "a.yaml:11:20: `lambda.deployment.max_payload_size` is ignored: functions are images",
        "a.yaml:12:33: `UDOCKER_BIN` is ignored: nothing runs udocker",
        "a.yaml:13:3: `functions.oscar` is ignored: this version of SCAR deploys to AWS only",
    ]
    assert function_of(it).lambda_.environment.Variables == {"MY_VAR": "x"}
    assert all(d.severity == "warning" for d in it.warnings)


def test_the_same_keys_in_an_old_scar_cfg_are_silent():
    config = """
    {"scar": {"config_version": "1.1.0"},
     "aws": {
      "lambda": {"layers": [], "runtime": "python3.7", "supervisor": {"version": "latest",
        "layer_name": "faas-supervisor"}, "log_type": "Tail", "invocation_type": "RequestResponse",
        "deployment": {"max_payload_size": 52428800}, "region": "us-east-1",
        "environment": {"Variables": {"UDOCKER_BIN": "/opt/udocker/bin/"}}},
      "iam": {"boto_profile": "default", "role": ""},
      "api_gateway": {"boto_profile": "default", "stage_name": "scar"},
      "s3": {"event": {"Records": []}},
      "batch": {"region": "us-east-1", "multi_node_parallel": {"enabled": false},
        "service_role": "arn:aws:iam::{account_id}:role/service-role/AWSBatchServiceRole",
        "compute_resources": {"launch_template_name": "faas-supervisor", "type": "EC2",
          "instance_types": ["m3.medium"], "subnets": [], "security_group_ids": []}}},
     "oscar": {"my_oscar": {"endpoint": ""}}}"""
    it = loaded(COW, config)
    assert it.warnings == ()
    assert function_of(it).batch.compute_resources.instance_types == ("m3.medium",)


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ("storage_providers: {rucio: {mine: {host: x}}}", "storage_providers.rucio"),
    ],
)
def test_keys_that_are_to_come_are_errors(lines: str, key: str):
    [fault] = faults(f"{COW}{lines}\n")
    assert fault.endswith(f"`{key}` is not in this version of SCAR yet")
    assert fault.startswith("a.yaml:7:")


def test_batch_may_be_indented_into_lambda():
    function = function_of(loaded(cow("batch: {vcpus: 2}")))
    assert function.batch.vcpus == 2
    assert faults(cow("batch: {vcpus: 0}")) == ["a.yaml:7:22: vcpus must be 0.25 or more, got 0"]


def test_the_examples_of_the_reference_load():
    text = """\
functions:
  aws:
  - lambda:
      name: scar-batch-ffmpeg-split
      init_script: split-video.sh
      execution_mode: batch
      container:
        image: grycap/ffmpeg
      input:
      - storage_provider: s3
        path: scar-video/input
      output:
      - storage_provider: s3
        path: scar-video/split-images
  - lambda:
      name: scar-lambda-darknet
      init_script: yolo.sh
      memory: 3008
      container:
        image: grycap/darknet
      input:
      - storage_provider: s3
        path: scar-video/split-images
      output:
      - storage_provider: s3
        path: scar-video/output
"""
    it = loaded(text)
    assert it.warnings == ()
    assert [f.lambda_.memory for f in it.deployment.functions.aws] == [512, 3008]


# Rules


def test_aws_needs_subnets_and_security_groups_but_no_role():
    text = cow("execution_mode: batch")
    assert faults(text, flags=Layer()) == [
        "a.yaml:3:5: execution mode `batch` needs `batch.compute_resources.subnets` on AWS",
        "a.yaml:3:5: execution mode `batch` needs "
        "`batch.compute_resources.security_group_ids` on AWS",
    ]
    text += "    batch: {compute_resources: {subnets: [subnet-1], security_group_ids: [sg-1]}}\n"
    assert loaded(text, flags=Layer()).deployment.scar.target == "aws"


def test_a_circle_through_several_functions_is_told_once():
    text = "functions:\n  aws:\n" + "".join(
        f"  - lambda: {{name: {name}, container: {{image: x}}, "
        f"input: [{{path: data/{name}}}], output: [{{path: data/{after}}}]}}\n"
        for name, after in ("ab", "bc", "ca")
    )
    [fault] = faults(text)
    assert fault.startswith("a.yaml:5:")
    assert fault.endswith("the functions trigger each other without end: a → b → c → a")


def test_suffixes_keep_an_output_apart_from_an_input_of_the_same_path():
    text = cow(
        "input: [{path: data/x, suffix: [.mp4]}]", "output: [{path: data/x, suffix: [.png]}]"
    )
    assert loaded(text)
    assert "trigger itself" in faults(text.replace(".png", "s.mp4"))[0]


def test_a_path_that_only_starts_alike_is_not_below():
    text = cow("input: [{path: data/in}]", "output: [{path: data/inner}]")
    assert loaded(text)


def test_a_fault_of_one_function_does_not_hide_those_of_another():
    text = COW.replace("name: cow", "nmae: cow") + "  - lambda: {name: b}\n"
    assert faults(text) == [
        "a.yaml:3:5: `name` is required",
        "a.yaml:4:7: unknown key `nmae`",
        "a.yaml:7:5: function `b` has no image",
    ]


def test_a_fault_of_a_flag_is_told_once_for_all_functions():
    two = COW + COW.partition("aws:\n")[2].replace("cow", "sheep", 1)
    flags = from_flags(
        {"aws": {"lambda": {"timeout": "0"}}, "scar": {"target": "local"}},
        {("aws", "lambda", "timeout"): "--timeout"},
    )
    assert faults(two, flags=flags) == ["--timeout: timeout must be 1 to 900 seconds, got `0`"]


def test_functions_of_one_file_share_a_region():
    two = cow("region: eu-west-1") + COW.partition("aws:\n")[2].replace("cow", "sheep", 1)
    assert faults(two) == ["a.yaml:8:5: region differs from the first function's, `eu-west-1`"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("log_level: LOUD", "log_level must be `CRITICAL`, `ERROR`, `WARNING`, `INFO` or `DEBUG`"),
        ("architectures: [x86_64, arm64]", "architectures must have one item, got 2"),
        ("region: us-east", "region must be a region such as `us-east-1`, got `us-east`"),
        ("container: busybox", "`container` is written twice"),
        ("tags: [a]", "tags must be a mapping of keys, got a list"),
        ("preheat: maybe", "preheat must be true or false, got `maybe`"),
        ("input: [{path: ab}]", "path must name a bucket of 3 to 63 characters, got `ab`"),
        ("input: [{path: 192.168.0.1}]", "path must name a bucket, got the IP address"),
        ("input: [{path: /abc}]", "path must start with a bucket, as in `bucket/prefix`"),
        ("input: [{path: abc//d}]", "path must not hold an empty part (`//`), got `abc//d`"),
        ("memory: 512.5", "memory must be a whole number of MB, got 512.5"),
        ("environment: {Variables: {1A: x}}", "1A must be named with letters, digits and `_`"),
    ],
)
def test_each_key_says_what_it_takes(line: str, fault: str):
    assert fault in faults(cow(line))[0]


def test_lower_case_log_levels_and_paths_with_a_slash_at_the_end_are_fine():
    function = function_of(loaded(cow("log_level: debug", "input: [{path: video/in/}]")))
    assert function.lambda_.log_level == "DEBUG"


def test_the_log_retention_is_one_that_aws_has():
    [fault] = faults(COW + "    cloudwatch: {log_retention_policy_in_days: 31}\n")
    assert "must be one of 1, 3, 5, 7, 14, 30" in fault


@pytest.mark.parametrize(("given", "count"), [("true", 1), ("false", 0), ("4", 4)])
def test_gpus_are_a_switch_or_a_count(given: str, count: int):
    assert (
        function_of(loaded(f"{COW}    batch: {{enable_gpu: {given}}}\n")).batch.enable_gpu == count
    )


# Everything that the schema knows

LEAVES = st.none() | st.booleans() | st.integers(-5, 20000) | st.floats() | st.text(max_size=6)
PATHS = sorted({key.path.replace("<id>", "mine") for key in keys()})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS), LEAVES | st.lists(LEAVES, max_size=2))))
def test_any_value_at_any_key_gives_a_deployment_or_faults(values: list[tuple[str, Any]]):
    top: dict[str, Any] = {}
    item: dict[str, Any] = {"lambda": {"name": "a", "container": {"image": "x"}}}
    for path, value in values:
        here = top if path.startswith(("storage_providers.", "scar.")) else item
        put(here, path.split("."), value)
    try_to_load(Sources(Layer(), Layer({"functions": {"aws": [item]}, **top}), Layer(), LOCAL))


def put(here: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the value at `path`, whatever stands on the way; `key[]` is a list of one."""
    key, many, _ = path[0].partition("[]")
    if len(path) == 1:
        here[key] = value
        return
    inner = here.get(key)
    if many:
        inner = inner[0] if isinstance(inner, list) and inner else {}
    inner = inner if isinstance(inner, dict) else {}
    here[key] = [inner] if many else inner
    put(inner, path[1:], value)


NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
TEXT = st.text("ab07é𐀀'\":#{}[]-&*!%~ \n\t", max_size=8)
VARIABLES = st.fixed_dictionaries(
    {"Variables": st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{1,5}", fullmatch=True), TEXT)}
)
OBJECTS = st.lists(
    st.fixed_dictionaries(
        {"path": st.from_regex(r"[a-z]{3,9}(/[a-z]{1,5}){0,3}", fullmatch=True)},
        optional={"suffix": st.lists(st.sampled_from([".png", ".txt"]), max_size=2)},
    ),
    max_size=2,
)
FUNCTIONS = st.fixed_dictionaries(
    {
        "lambda": st.fixed_dictionaries(
            {"name": NAMES, "container": st.fixed_dictionaries({"image": st.just("x")})},
            optional={
                "memory": st.integers(128, 10240),
                "timeout": st.integers(1, 900),
                "execution_mode": st.sampled_from(["lambda", "batch", "lambda-batch"]),
                "log_level": st.sampled_from(["info", "DEBUG"]),
                "environment": VARIABLES,
                "input": OBJECTS,
                "output": OBJECTS,
                "tags": st.dictionaries(TEXT, TEXT, max_size=2),
            },
        )
    },
    optional={
        "batch": st.fixed_dictionaries(
            {},
            optional={
                "vcpus": st.sampled_from([0.25, 1, 2.0, 8]),
                "memory": st.integers(4, 4096),
                "enable_gpu": st.booleans() | st.integers(0, 4),
                "environment": VARIABLES,
            },
        ),
        "cloudwatch": st.fixed_dictionaries({"log_retention_policy_in_days": st.just(7)}),
    },
)


@settings(max_examples=40, deadline=None)
@given(st.lists(FUNCTIONS, max_size=3))
def test_what_is_dumped_loads_as_the_same(functions: list[Any]):
    fdl = Layer({"functions": {"aws": functions}})
    deployment = load(Sources(fdl=fdl, flags=LOCAL), NO_RULES).deployment
    dumped = deployment.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = json.dumps(dumped, ensure_ascii=False)
    again = load(Sources(fdl=read_yaml(text, "a.json")), NO_RULES).deployment
    assert again == deployment
