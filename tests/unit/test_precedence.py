"""Where a value comes from: flags, variables, the FDL, scar.cfg, the defaults, in this order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scar.cli import arguments, commands, described
from scar.cli.arguments import Options


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Options of a command line, after scar.cfg, FDL and variables were made."""
    for name in ("SCAR_TARGET", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCAR_CONFIG_FOLDER", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    (tmp_path / "aws").write_text(
        "[default]\nregion = eu-west-3\n[profile mine]\nregion = eu-south-2\n"
    )

    def make(
        *flags: str,
        cfg: dict[str, Any] | None = None,
        fdl: dict[str, Any] | None = None,
        **env: str,
    ) -> Options:
        (tmp_path / "scar.cfg").write_text(json.dumps({"aws": {"lambda": cfg or {}}}))
        item = {"lambda": {"name": "cow", "container": {"image": "x"}, **(fdl or {})}}
        role = {"iam": {"role": "arn:aws:iam::000000000000:role/r"}}
        path = tmp_path / "a.yaml"
        path.write_text(json.dumps({"functions": {"aws": [{**item, **role}]}}))
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return arguments.parse(["validate", "-f", str(path), *flags])

    return make


def memory(options: Options) -> int:
    function = described.describe(options, described.complete_rules).deployment.functions.aws[0]
    return function.lambda_.memory


def account(options: Options):
    return commands._account_of(described.describe(options).deployment, options)


def test_a_flag_wins_over_the_file_over_scar_cfg_over_the_default(typed):
    assert memory(typed()) == 512
    assert memory(typed(cfg={"memory": 600})) == 600
    assert memory(typed(cfg={"memory": 600}, fdl={"memory": 700})) == 700
    assert memory(typed("-m", "800", cfg={"memory": 600}, fdl={"memory": 700})) == 800


def test_a_falsy_flag_wins_too(typed):
    options = typed("-tt", "0", fdl={"container": {"image": "x", "timeout_threshold": 20}})
    function = described.describe(options).deployment.functions.aws[0]
    assert function.lambda_.container.timeout_threshold == 0


def test_the_region_is_the_files_then_the_variables_then_the_profiles(typed):
    assert account(typed()).region == "eu-west-3"
    assert account(typed(AWS_DEFAULT_REGION="us-west-1")).region == "us-west-1"
    assert account(typed(AWS_REGION="us-west-2")).region == "us-west-2"
    assert account(typed(cfg={"region": "eu-west-1"})).region == "eu-west-1"
    assert account(typed(cfg={"region": "eu-west-1"}, fdl={"region": "sa-east-1"})).region == (
        "sa-east-1"
    )


def test_the_profile_is_the_flags_then_the_files_then_awss_own(typed):
    assert account(typed(fdl={"boto_profile": "mine"})).region == "eu-south-2"
    assert account(typed("-pf", "mine", fdl={"boto_profile": "other"})).region == "eu-south-2"
    assert account(typed(AWS_PROFILE="mine")).region == "eu-south-2"
