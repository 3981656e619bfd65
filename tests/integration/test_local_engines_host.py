"""The image `host`: the machine's own files and the supervisor's package, no image needed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scar_local.engines import ContainerSpec, EngineError, Exit, Running
from scar_local.engines.auto import AutoEngine
from scar_local.engines.bubblewrap import Bubblewrap
from scar_local.engines.limits import NoLimits
from scar_local.engines.networks import NamespaceNetworks
from scar_local.engines.process import HostProcess
from scar_local.engines.rootfs import RootFileSystems
from scar_local.engines.runner import Runner, Shared
from scar_local.engines.spawn import Spawner
from scar_local.image_store import StoredImage
from scar_local.registry import Registry
from tests.conftest import missing
from tests.doubles.images import Image, Item, ecr, layer, served_registry

LIMIT_S = 30.0
HOST = {"Labels": {"scar.host": "true"}}
STAND_IN = """
import os, subprocess, sys
from pathlib import Path

def main():
    function = Path(os.environ["SCAR_FUNCTION_DIR"])
    print("config", (function / "config.json").read_text(), flush=True)
    for name in ("HOME", "GIVEN", "SECRET_OF_THE_DAEMON"):
        print(name, os.environ.get(name), flush=True)
    return subprocess.call(["/bin/sh", str(function / "script"), *sys.argv[1:]])
"""


@dataclass
class World:
    """One way to run the image `host`, with a stand-in for the supervisor."""

    name: str
    data: Path
    registry: Registry
    image: StoredImage
    runner: Runner

    def start(self, script: str, *, on_output: Any = None, **spec: Any) -> Running:
        command = ("-c", script) if script else ()
        wanted = ContainerSpec("test", "", command=command, **spec)
        return self.runner.run(wanted, self.image, on_output or (lambda line: None))

    def run(self, script: str, **spec: Any) -> tuple[Exit, list[str]]:
        lines: list[str] = []
        ended = self.start(script, on_output=lines.append, **spec).wait(LIMIT_S)
        assert ended is not None
        return ended, lines


@pytest.fixture(params=["bubblewrap", "process"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    package = tmp_path / "package" / "scar_supervisor"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    data = tmp_path / "data"
    with served_registry(data) as (registry, client):
        ecr(registry, "create_repository", repositoryName="scar")
        function = layer(
            Item("opt/scar/function/config.json", b'{"name": "f"}'),
            Item("opt/scar/function/script", b'eval "$2"', 0o755),
        )
        image = registry.resolve(client.push("scar", "f", Image([function], HOST)))
        (data / "scratch").mkdir()
        shared = Shared(
            data / "scratch",
            RootFileSystems(data / "rootfs"),
            NoLimits,
            lambda: package.parent,
            Spawner(),
            NamespaceNetworks("scar-test-"),
        )
        runner: Runner = {"bubblewrap": Bubblewrap, "process": HostProcess}[request.param](shared)
        probe = runner.probe()
        if not probe.ok:
            missing("images", probe.why)
        yield World(request.param, data, registry, image, runner)
        assert list((data / "scratch").iterdir()) == []


def test_the_supervisor_runs_the_function_that_the_layer_brought(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    ended, lines = world.run("echo ran; exit 7", environment={"GIVEN": "1", "HOME": "/somewhere"})
    assert ended == Exit(7)
    assert lines[0] == 'config {"name": "f"}'
    assert lines[1:] == ["HOME /somewhere", "GIVEN 1", "SECRET_OF_THE_DAEMON None", "ran"]


def test_its_temporary_directory_is_its_own_and_goes_away(world: World) -> None:
    script = 'cd "${TMPDIR:-/tmp}" && ls && echo x > mine && pwd && cd "$HOME" && ls mine'
    for _ in range(2):
        ended, lines = world.run(script)
        assert ended == Exit(0)
        kept = [line for line in lines[4:] if not line.startswith(str(world.data).split("/")[1])]
        assert kept[-1] == "mine"
        assert kept.count("mine") == 1, "nothing of the run before"


def test_a_container_ends_however_deep_the_directories_are_that_it_leaves(world: World) -> None:
    program = "import os; [(os.mkdir('d' * 50), os.chdir('d' * 50)) for _ in range(1200)]"
    ended, _ = world.run(f'cd "${{TMPDIR:-/tmp}}" && {sys.executable} -c "{program}"')
    assert ended == Exit(0)


def test_the_machines_files_are_there_and_bubblewrap_protects_them(world: World) -> None:
    made = world.data.parent / "package" / "new"
    _, lines = world.run(f"ls /usr/bin/env; touch {made} 2>/dev/null || echo refused")
    assert "/usr/bin/env" in lines
    assert made.exists() == (world.name == "process")
    assert ("refused" in lines) == (world.name == "bubblewrap")


def test_stop_ends_children_that_hide_in_sessions_of_their_own(world: World) -> None:
    length = f"5{time.time_ns() % 10**9}.{os.getpid()}"
    ready = threading.Event()
    script = (
        f"trap '' TERM; setsid sleep {length} & (setsid sh -c 'sleep {length} & ' &) ; "
        f"sleep 0.1; echo ready; sleep {length}"
    )

    def hear(line: str) -> None:
        if line == "ready":
            ready.set()

    running = world.start(script, on_output=hear)
    assert ready.wait(LIMIT_S)
    running.stop(grace_s=0.2)
    ended = running.wait(0)
    assert ended is not None
    assert ended.code in (137, 143)
    assert not _running(length)


def test_children_left_behind_by_a_program_that_ended_are_ended(world: World) -> None:
    length = f"4{time.time_ns() % 10**9}.{os.getpid()}"
    ended, _ = world.run(f"setsid sleep {length} & echo left; exit 3")
    assert ended == Exit(3)
    assert not _running(length)


def test_a_plain_process_runs_nothing_but_the_image_host(world: World) -> None:
    if world.name != "process":
        pytest.skip("bubblewrap runs real images")
    other = StoredImage("scar", "sha256:0", {"config": {}}, (), (), ())
    with pytest.raises(EngineError, match="host"):
        world.runner.run(ContainerSpec("n", ""), other, lambda line: None)


def test_auto_never_gives_the_image_host_to_docker(world: World) -> None:
    engine = AutoEngine(world.registry, world.data / "other", world.data.parent / "package")
    lines: list[str] = []
    spec = ContainerSpec("test", "scar:f", command=("-c", "echo hello"))
    assert engine.start(spec, lines.append).wait(LIMIT_S) == Exit(0)
    assert lines[-1] == "hello"
    assert engine.report()["host"] in ("bubblewrap", "process")


def _running(argument: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", argument.encode()]:
            return True
    return False
