"""The wheel holds all that SCAR needs, the supervisor for every architecture included."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import missing

ROOT = Path(__file__).parents[2]
TREES = ROOT / "src" / "scar" / "supervisor"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_carries_the_packages_and_nothing_of_the_workshop(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"scar/__main__.py", "scar_supervisor/contract.py", "scar_local/daemon.py"} <= set(names)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "scar",
        "scar_local",
        "scar_supervisor",
    }


@pytest.mark.parametrize("name", ["x86_64", "arm64"])
def test_the_wheels_supervisor_can_be_shipped_from_where_it_is_installed(
    wheel: Path, tmp_path: Path, name: str
) -> None:
    if not (TREES / f"{name}.json").exists():
        missing(name, f"no tree for {name}: run `make supervisor`")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import json, sys; from scar.bundle import runtime_layer;"
        f"layer = runtime_layer({name!r});"
        "print(json.dumps([layer.blob.digest, str(layer.path), layer.path.stat().st_size]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if "older than its sources" in done.stderr:
        missing(name, f"the tree for {name} is stale: run `make supervisor`")
    assert done.returncode == 0, done.stderr
    digest, path, size = json.loads(done.stdout)
    assert Path(path).is_relative_to(tmp_path)
    told = json.loads((TREES / f"{name}.json").read_text())
    assert (digest, size) == (told["digest"], told["size"])
