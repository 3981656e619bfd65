"""Every FDL file that users have seen loads, and what is not there yet is told exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scar import config
from scar.errors import Diagnostic, FdlError
from scar.fdl.load import Rules, load
from scar.fdl.source import Layer, Sources, from_flags, read_yaml
from scar.plan import limits

ROOT = Path(__file__).parents[2]
DOCUMENTATION = sorted((Path(__file__).parent / "documentation").glob("*.yaml"))
EXAMPLES = sorted(ROOT.glob("examples/**/*.yaml"))

RULES = Rules(
    (*Rules().of_function, *limits.FUNCTION_RULES), (*Rules().across, *limits.DESCRIBED_RULES)
)
LOCAL = from_flags({"scar": {"target": "local"}}, {("scar", "target"): "--local"})
ACCOUNT = json.dumps(
    {
        "aws": {
            "iam": {"role": "arn:aws:iam::{account_id}:role/scar"},
            "batch": {
                "compute_resources": {"subnets": ["subnet-1"], "security_group_ids": ["sg-1"]}
            },
        }
    }
)
"""A scar.cfg with what only the user's AWS account can give."""

NOT_YET = {
    "efs.yaml": ["10: file_system is of AWS only: the local cloud has no EFS"],
}


def told(diagnostic: Diagnostic) -> str:
    assert diagnostic.place is not None
    return f"{diagnostic.place.line}: {diagnostic.summary}"


def faults(path: Path, sources: Sources) -> list[str]:
    try:
        load(sources, RULES)
    except FdlError as exc:
        return [told(d) for d in exc.diagnostics]
    return []


@pytest.mark.parametrize("path", [*DOCUMENTATION, *EXAMPLES], ids=lambda path: path.name)
def test_an_example_loads_for_the_local_cloud(path: Path):
    found = faults(path, Sources(Layer(), config.read_fdl(path), Layer(), LOCAL))
    assert found == NOT_YET.get(path.name, [])


def test_every_example_is_among_them():
    assert {path.parent for path in EXAMPLES} == set(ROOT.glob("examples/*"))


@pytest.mark.parametrize("path", DOCUMENTATION, ids=lambda path: path.name)
def test_an_example_of_the_documentation_loads_for_aws(path: Path):
    account = read_yaml(ACCOUNT, "scar.cfg")
    found = faults(path, Sources(account, config.read_fdl(path)))
    expected = [] if path.name == "efs.yaml" else [*NOT_YET.get(path.name, [])]
    assert found == expected


def test_what_is_ignored_of_the_example_of_all_keys_is_told_with_its_line():
    [path] = [path for path in DOCUMENTATION if path.name == "all-keys.yaml"]
    text = path.read_text().replace("minio.my_minio", "s3").replace("s3.my_s3", "s3")
    loaded = load(Sources(Layer(), read_yaml(text, path.name), Layer(), LOCAL), RULES)
    assert [told(w) for w in loaded.warnings] == [
        "12: `lambda.layers` is ignored: functions are images, which have no layers",
        "72: `functions.oscar` is ignored: this version of SCAR deploys to AWS only",
    ]


def test_a_quote_too_many_in_a_key_is_noticed():
    """As in the documentation's own example of all values, which nobody ever noticed."""
    text = (
        "functions: {aws: [{lambda: {name: a, container: {image: x, 'timeout_threshold\"': 10}}}]}"
    )
    with pytest.raises(FdlError) as caught:
        load(Sources(Layer(), read_yaml(text, "a.yaml"), Layer(), LOCAL))
    [fault] = caught.value.diagnostics
    assert fault.summary == 'unknown key `timeout_threshold"`'
    assert fault.hint == "did you mean `timeout_threshold`?"
