"""Small decisions of the supervisor: names, variables, programs, references, credentials."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scar_supervisor import environment, parallel, program, scratch, staging
from scar_supervisor.aws import configured_endpoint, find_region
from scar_supervisor.contract import FunctionConfig, ImageDefaults, ObjectPath, load_config
from scar_supervisor.credentials import Credentials
from scar_supervisor.events import Event
from scar_supervisor.faults import ConfigFault, ScriptTimedOut, StagingFailed
from scar_supervisor.log import Log
from scar_supervisor.sigv4 import Keys
from tests.doubles.deep_tree import make_deep_tree

keys = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=400)
QUIET = Log("CRITICAL")


@given(keys)
def test_a_name_is_always_one_plain_file_of_the_directory(key):
    name = staging.safe_name(key)
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert "\0" not in name
    assert len(os.fsencode(name)) <= 255


def test_a_long_name_keeps_its_suffix():
    assert staging.safe_name("d/" + "x" * 300 + ".fastq") == "x" * 249 + ".fastq"
    assert staging.safe_name("é" * 200 + ".gz") == "é" * 126 + ".gz"
    assert staging.safe_name("a." + "x" * 300) == "a." + "x" * 253


def test_a_transfer_needs_room_and_time(tmp_path):
    guard = staging.Guard(str(tmp_path), deadline=0.0)
    guard.room(1)
    with pytest.raises(StagingFailed, match="bytes are free"):
        guard.room(1 << 60)
    with pytest.raises(ScriptTimedOut, match="staging in was still running"):
        guard.time()


def test_stronger_variables_win_and_query_parameters_only_add():
    config = FunctionConfig(
        "f",
        environment={"A": "container", "B": "container"},
        batch_environment={"A": "batch", "C": "batch"},
        image=ImageDefaults(environment={"LD_LIBRARY_PATH": "/x", "C": "image"}),
    )
    base = {"A": "base", "PATH": "/bin", "SCAR_EVENT": "{}", "AWS_LAMBDA_RUNTIME_API": "x"}
    outside = {"A": "q", "NEW": "q", "LD_PRELOAD": "q", "1x": "q", "ENV": "q", "nul": "a\0b"}
    in_job = environment.for_script(base, config, True, {"B": "given"}, outside)
    assert in_job == {
        "A": "container",
        "B": "given",
        "C": "batch",
        "LD_LIBRARY_PATH": "/x",
        "PATH": "/bin",
        "NEW": "q",
    }
    assert environment.for_script(base, config, False, {}, {})["C"] == "image"


def test_the_longest_variable_is_what_execve_takes():
    fits = "x" * (environment.LONGEST_STRING_BYTES - len("EVENT=") - 1)
    assert environment.fits("EVENT", fits)
    assert not environment.fits("EVENT", fits + "x")


def test_a_program_is_found_on_the_scripts_own_path(tmp_path):
    (tmp_path / "tool").touch(0o755)
    (tmp_path / "data").touch(0o644)
    here = {"PATH": f"/nowhere:{tmp_path}"}
    assert program.find("tool", here) == f"{tmp_path}/tool"
    with pytest.raises(PermissionError):
        program.find("data", here)
    with pytest.raises(FileNotFoundError):
        program.find("tool", {"PATH": "/nowhere"})


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (b"echo", ("/bin/sh",)),
        (b"", ("/bin/sh",)),
        (b"#!\necho", ("/bin/sh",)),
        (b"#! /bin/sh\n", ("/bin/sh",)),
        (b"#!/usr/bin/env -S sh -e \n", ("/usr/bin/env", "-S sh -e")),
        (b"\x7fELF", ()),
    ],
)
def test_a_script_is_run_as_the_kernel_would(tmp_path, text, command):
    path = tmp_path / "script"
    path.write_bytes(text)
    assert program.script_command(str(path)) == (*command, str(path))


def test_a_function_with_nothing_to_run_says_what_to_give(tmp_path):
    with pytest.raises(ConfigFault, match="give an `init_script`"):
        program.command_line(Event("{}"), FunctionConfig("f"), "/none", str(tmp_path))


def test_the_config_comes_back_as_it_was_written():
    config = FunctionConfig(
        "f",
        inputs=(ObjectPath("s3", "b", "p", ("a",), (".x", ".y")),),
        image=ImageDefaults(("a",), ("b", "c"), {"LD_PRELOAD": "x"}),
    )
    assert load_config(config.dump()) == config


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', "null"])
def test_a_text_that_is_no_config_is_refused(text):
    with pytest.raises(ValueError, match=r"config|JSON|Expecting"):
        load_config(text)


def test_work_stops_at_the_first_failure_and_says_what_is_left():
    def work(item):
        if item == 2:
            raise ValueError("two")

    tally = parallel.for_each([0, 1, 2, 3, 4], work, threads=1)
    assert (tally.done, [item for item, _ in tally.failed], tally.left) == ([0, 1], [2], [3, 4])
    with pytest.raises(ValueError, match="two"):
        tally.check()


def test_scratch_is_gone_even_when_the_script_locked_it(tmp_path):
    with scratch.fresh({"TMPDIR": str(tmp_path)}, QUIET) as made:
        os.makedirs(f"{made.output}/a/b")
        os.chmod(f"{made.output}/a", 0)
        os.symlink("/", f"{made.output}/root")
    assert list(tmp_path.iterdir()) == []


def test_scratch_is_gone_however_deep_the_script_nested_it(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    with scratch.fresh({"TMPDIR": str(tmp_path / "tmp")}, QUIET) as made:
        make_deep_tree(Path(made.output))
        os.symlink(outside, f"{made.output}/link-to-outside")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list(outside.iterdir()) == [outside / "kept"]


def test_scratch_falls_back_where_the_wanted_place_is_not_writable():
    with scratch.fresh({"TMPDIR": "/proc/none"}, QUIET) as made:
        assert made.root.startswith("/tmp/scar-")


def test_the_environments_credentials_need_no_network():
    found = Credentials({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    assert found.keys() == Keys("a", "b", None)
    assert not found.forget()


def test_credentials_are_not_sent_to_a_stranger_in_the_clear():
    environ = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.com/x"}
    with pytest.raises(ConfigFault, match="neither https nor a loopback address"):
        Credentials(environ).keys()


def test_the_services_own_endpoint_wins_over_the_general_one():
    both = {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}
    assert configured_endpoint("s3", both) == "http://b"
    assert configured_endpoint("batch", both) == "http://a"
    assert configured_endpoint("batch", {}) is None
    with pytest.raises(ConfigFault, match="is not an http or https address"):
        configured_endpoint("s3", {"AWS_ENDPOINT_URL": "localhost:1"})


def test_the_region_is_the_environments():
    assert find_region({"AWS_DEFAULT_REGION": "eu-west-1"}) == "eu-west-1"
    assert json.loads(FunctionConfig("f").dump())["format"] == 1
