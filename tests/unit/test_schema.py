"""The JSON Schema and the reference say what the command accepts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scar import config
from scar.__main__ import main
from scar.cli import arguments
from scar.fdl.reference import json_schema, keys

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted(ROOT.glob("examples/**/*.yaml")),
    *sorted(ROOT.glob("tests/contract/documentation/*.yaml")),
]
SCHEMA = json_schema()


def faults(data: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(data)]


def function(**its: Any) -> dict[str, Any]:
    return {"functions": {"aws": [{"lambda": {"name": "a", **its}}]}}


def test_the_documents_are_what_the_schema_says():
    done = subprocess.run(
        [sys.executable, "tools/fdl_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command_prints_the_schema_of_the_documents(capsys: pytest.CaptureFixture[str]):
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((ROOT / "docs" / "fdl.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(printed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_editor_finds_no_fault_in_an_example(path: Path):
    assert faults(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    ("its", "says"),
    [
        ({"memroy": 1}, "memroy"),
        ({"memory": 1}, "less than the minimum of 128"),
        ({"timeout": 901}, "greater than the maximum of 900"),
        ({"execution_mode": "bacth"}, "is not one of"),
        ({"architectures": []}, "too short|non-empty"),
        ({"input": [{}]}, "'path' is a required property"),
    ],
)
def test_an_editor_finds_what_the_command_would(its: dict[str, Any], says: str):
    [fault] = faults(function(**its))
    assert any(word in fault for word in says.split("|"))


def test_an_editor_accepts_what_the_command_does():
    variables = {"Variables": {"A": 1, "B": True, "C": "x", "D": None}}
    assert faults(function(log_level="debug", environment=variables, time=5, layers=["x"])) == []
    assert faults({"functions": {"aws": [{"lambda": {"name": "a"}, "s3": {}}]}}) == []


def test_every_key_is_told_with_its_values():
    every = {key.path: key for key in keys()}
    assert every["lambda.memory"].values == "128 to 10240 MB"
    assert every["lambda.memory"].default == "512"
    assert every["lambda.name"].default == ""
    assert every["batch.timeout"].values == "60 seconds or more"
    path = every["lambda.input[].path"]
    assert path.text == "`bucket` or `bucket/prefix`; of a WebDAV server a folder."
    assert "storage_providers.minio.<id>.endpoint" in every
    assert len(every) > 90


def test_the_page_of_commands_has_every_command_and_every_flag():
    page = (ROOT / "docs" / "commands.md").read_text()
    for command, flags in arguments.flags().items():
        assert f"`{command}`" in page, command
        for flag in flags:
            assert f"{flag}`" in page or f"{flag} " in page, f"{command} {flag}"


def test_the_page_of_configuration_has_what_the_first_use_writes(tmp_path: Path):
    config.read_config({"SCAR_CONFIG_FOLDER": str(tmp_path)})
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert (tmp_path / "scar.cfg").read_text() in page
