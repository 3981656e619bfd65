"""Every engine of this machine keeps the same promises for real images."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scar_local.engines import ContainerSpec, EngineError, Exit, Running
from scar_local.engines.auto import ENGINE_VARIABLE, AutoEngine
from scar_local.engines.bubblewrap import OVERLAYS, Bubblewrap, Overlay
from scar_local.engines.limits import NoLimits
from scar_local.engines.networks import NamespaceNetworks
from scar_local.engines.rootfs import RootFileSystems
from scar_local.engines.runner import Shared
from scar_local.engines.spawn import Spawner
from scar_local.registry import Registry
from tests.conftest import missing
from tests.doubles.images import (
    BUSYBOX,
    NO_BUSYBOX,
    Client,
    Image,
    Item,
    busybox_layer,
    ecr,
    forget_pulled,
    layer,
    pulled,
    served_registry,
    symlink,
)

LIMIT_S = 30.0
ACCOUNTS = (
    Item("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1234:99:App:/home/app:/bin/sh\n"),
    Item("etc/group", b"root:x:0:\napps:x:99:\nothers:x:77:\n"),
)


@dataclass
class World:
    """One engine over one registry, and all that a test says about a run."""

    name: str
    data: Path
    registry: Registry
    client: Client
    engine: AutoEngine
    pushed: int = 0

    def image(self, *layers: bytes, **run: Any) -> str:
        self.pushed += 1
        return self.client.push(
            "scar", f"v{self.pushed}", Image([busybox_layer(), *layers], {**run})
        )

    def start(self, image: str, *command: str, on_output: Any = None, **spec: Any) -> Running:
        wanted = ContainerSpec("test", image, command=command, **spec)
        return self.engine.start(wanted, on_output or (lambda line: None))

    def run(self, image: str, *command: str, **spec: Any) -> tuple[Exit, list[str]]:
        lines: list[str] = []
        ended = self.start(image, *command, on_output=lines.append, **spec).wait(LIMIT_S)
        assert ended is not None
        return ended, lines

    def shell(self, image: str, script: str, **spec: Any) -> tuple[Exit, list[str]]:
        return self.run(image, "sh", "-c", script, **spec)


@pytest.fixture(params=["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    yield from _world(request.param, tmp_path, monkeypatch)


@pytest.fixture
def bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    yield from _world("bubblewrap", tmp_path, monkeypatch)


def _world(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if not BUSYBOX:
        missing("images", NO_BUSYBOX)
    monkeypatch.setenv(ENGINE_VARIABLE, name)
    data = tmp_path / "data"
    with served_registry(data) as (registry, client):
        engine = AutoEngine(registry, data)
        report = engine.report()
        if report["engine"] != name:
            missing("docker" if name == "docker" else "images", report["why"])
        ecr(registry, "create_repository", repositoryName="scar")
        yield World(name, data, registry, client, engine)
        engine.stop_all()
        assert list((data / "scratch").iterdir()) == []
        if name == "docker":
            forget_pulled(client.address)


def test_the_images_command_runs_and_says_what_it_says(world: World) -> None:
    image = world.image(Entrypoint=["echo", "one"], Cmd=["two"])
    assert world.run(image) == (Exit(0), ["one two"])
    assert world.run(image, "three", "a b", "") == (Exit(0), ["one three a b "])


def test_the_exit_code_is_the_programs(world: World) -> None:
    image = world.image()
    assert world.shell(image, "exit 7") == (Exit(7), [])
    assert world.shell(image, "exit 1") == (Exit(1), [])
    killed, _ = world.shell(image, "sh -c 'kill -9 $$'; exit $?")
    assert killed.code == 137
    assert not killed.oom_killed


def test_the_environment_is_the_images_then_the_specs_and_nothing_of_ours(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    image = world.image(Env=["A=image", "B=image", "PATH=/bin:/more", "EQUALS=a=b"])
    given = {"B": "spec", "TEXT": "two words\nand a line, ü"}
    _, lines = world.run(image, "env", environment=given)
    assert {"A=image", "B=spec", "PATH=/bin:/more", "EQUALS=a=b", "TEXT=two words"} <= set(lines)
    assert "and a line, ü" in lines
    assert "SECRET" not in "".join(lines)


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", "uid=0 gid=0"),
        ("app", "uid=1234 gid=99"),
        ("app:others", "uid=1234 gid=77"),
        ("4321", "uid=4321 gid=0"),
        ("4321:5", "uid=4321 gid=5"),
    ],
)
def test_the_images_user_runs_it(world: World, user: str, ids: str) -> None:
    image = world.image(layer(*ACCOUNTS), User=user, Cmd=["sh", "-c", "id -u; id -g"])
    numbers = [part.split("=")[1] for part in ids.split()]
    for read_only in (True, False):
        assert world.run(image, read_only_root=read_only) == (Exit(0), numbers)


def test_an_unknown_user_is_said_before_the_start(world: World) -> None:
    with pytest.raises(EngineError, match="nobody-here"):
        world.start(world.image(layer(*ACCOUNTS), User="nobody-here", Cmd=["id"]))


def test_the_working_directory_is_the_images_even_when_it_is_not_there(world: World) -> None:
    assert world.run(world.image(), "pwd") == (Exit(0), ["/"])
    for read_only in (True, False):
        made = world.image(WorkingDir="/not/there/yet")
        assert world.run(made, "pwd", read_only_root=read_only) == (Exit(0), ["/not/there/yet"])


def test_with_a_read_only_root_only_tmp_is_writable_and_it_is_fresh(world: World) -> None:
    image = world.image(layer(*ACCOUNTS))
    script = "ls /tmp; touch /tmp/mine && echo tmp; touch /etc/mine 2>/dev/null || echo read-only"
    for _ in range(2):
        assert world.shell(image, script) == (Exit(0), ["tmp", "read-only"])
    other = world.image(layer(*ACCOUNTS), User="app")
    assert world.shell(other, script) == (Exit(0), ["tmp", "read-only"])


@pytest.mark.parametrize(
    "links",
    [
        {"tmp": "/var/tmp", "etc": "/usr/etc"},
        {"tmp": "/nowhere/at/all", "dev": "/etc", "proc": "../../etc"},
        {"tmp": "/", "sys": "tmp", "etc": "/a", "a": "/b"},
    ],
    ids=lambda links: " ".join(links),
)
def test_places_to_mount_over_may_be_links(bubblewrap: World, links: dict[str, str]) -> None:
    image = bubblewrap.image(layer(*(symlink(name, target) for name, target in links.items())))
    script = (
        "touch /tmp/a && echo tmp; cat /etc/hosts >/dev/null && ls /proc/1 >/dev/null && echo ok"
    )
    for read_only in (True, False):
        ended = bubblewrap.shell(image, script, read_only_root=read_only)
        assert ended == (Exit(0), ["tmp", "ok"])


def test_modes_inside_do_not_depend_on_our_umask(world: World) -> None:
    before = os.umask(0o077)
    try:
        image = world.image(layer(*ACCOUNTS, Item("opt/x", b"x", 0o644)), User="app")
        script = "umask; stat -c %a / /opt /opt/x; cat /opt/x"
        expected = ["0022", "755", "755", "644", "x"]
        for read_only in (True, False):
            assert world.shell(image, script, read_only_root=read_only) == (Exit(0), expected)
    finally:
        os.umask(before)


def test_a_writable_root_is_thrown_away(world: World) -> None:
    image = world.image(layer(*ACCOUNTS))
    script = "ls /new 2>/dev/null; echo x > /etc/passwd; mkdir /new && cat /etc/passwd"
    for _ in range(2):
        assert world.shell(image, script, read_only_root=False) == (Exit(0), ["x"])
    assert world.shell(image, "grep -c root /etc/passwd") == (Exit(0), ["1"])


def test_every_line_was_passed_on_before_wait_answers(world: World) -> None:
    script = "seq 1 3000; echo err >&2; printf 'bad \\377 bytes\\r\\n\\nno line end'"
    ended, lines = world.shell(world.image(), script)
    assert ended == Exit(0)
    numbers = [line for line in lines if line.isdigit()]
    assert numbers == [str(number) for number in range(1, 3001)]
    assert [line for line in lines if not line.isdigit() and line != "err"] == [
        "bad � bytes",
        "",
        "no line end",
    ]
    assert "err" in lines


def test_lines_arrive_while_the_program_runs(world: World) -> None:
    arrived = threading.Event()
    running = world.start(
        world.image(), "sh", "-c", "echo now; sleep 60", on_output=lambda line: arrived.set()
    )
    assert arrived.wait(LIMIT_S)
    assert running.wait(0) is None
    running.stop()


def test_stop_lets_the_program_end_by_itself_first(world: World) -> None:
    lines: list[str] = []
    ready = threading.Event()

    def hear(line: str) -> None:
        lines.append(line)
        ready.set()

    script = "trap 'echo bye; exit 3' TERM; echo ready; while true; do sleep 0.05; done"
    running = world.start(world.image(), "sh", "-c", script, on_output=hear)
    assert ready.wait(LIMIT_S)
    running.stop(grace_s=LIMIT_S)
    assert running.wait(0) == Exit(3)
    assert lines == ["ready", "bye"]
    running.stop()


def test_stop_kills_what_does_not_listen_with_all_its_children(world: World) -> None:
    length = _unusual_seconds()
    ready = threading.Event()
    script = f"trap '' TERM; setsid sleep {length} & sleep {length} & echo ready; sleep {length}"
    running = world.start(world.image(), "sh", "-c", script, on_output=lambda line: ready.set())
    assert ready.wait(LIMIT_S)
    before = time.monotonic()
    running.stop(grace_s=0.3)
    assert time.monotonic() - before < 10
    ended = running.wait(0)
    assert ended is not None
    assert ended.code == 137
    assert not ended.oom_killed
    assert _running(length) == []


def test_the_end_of_the_first_process_ends_all(world: World) -> None:
    length = _unusual_seconds()
    ended, lines = world.shell(world.image(), f"setsid sleep {length} & echo started")
    assert (ended, lines) == (Exit(0), ["started"])
    assert _running(length) == []


def test_a_program_that_is_not_in_the_image_never_starts(world: World) -> None:
    image = world.image()
    for program in ("no-such-program", "/bin/no-such", "./relative"):
        with pytest.raises(EngineError, match=program):
            world.start(image, program)
    with pytest.raises(EngineError):
        world.start(image)


def test_an_environment_that_would_end_a_word_early_is_refused(world: World) -> None:
    image = world.image()
    for given in ({"A": "x\0--bind\0/\0/host"}, {"A=B": "x"}):
        with pytest.raises(EngineError, match=r"NUL|name of an environment variable"):
            world.start(image, "env", environment=given)


def test_an_image_that_is_not_there_never_starts(world: World) -> None:
    with pytest.raises(EngineError, match=r"CannotPullContainerError.*scar:none"):
        world.start("000000000000.dkr.ecr.us-east-1.amazonaws.com/scar:none", "echo")


def test_memory_over_the_limit_ends_the_container_and_says_so(world: World) -> None:
    if "not enforced" in world.engine.report()["limits"]:
        pytest.skip(world.engine.report()["limits"])
    image = world.image()
    ended, _ = world.run(
        image, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=2", memory_mib=64
    )
    assert ended.oom_killed
    assert ended.code == 137
    assert "OutOfMemoryError" in ended.reason
    fits, _ = world.run(
        image, "dd", "if=/dev/zero", "of=/dev/null", "bs=20M", "count=2", memory_mib=64
    )
    assert fits == Exit(0)


def test_containers_reach_the_local_cloud_on_loopback(world: World) -> None:
    url = f"http://{world.client.address}/v2/"
    assert world.run(world.image(), "wget", "-qO-", url) == (Exit(0), ["{}"])


def test_many_containers_run_at_once_and_stop_at_once(world: World) -> None:
    image = world.image()
    running = [world.start(image, "sleep", "60") for _ in range(6)]
    before = time.monotonic()
    world.engine.stop_all()
    assert time.monotonic() - before < 10
    assert [ended.code for one in running if (ended := one.wait(0))] == [137] * 6


def test_a_container_outlives_the_thread_that_started_it(world: World) -> None:
    """PR_SET_PDEATHSIG, as bubblewrap uses it, goes by threads."""
    started: list[Running] = []
    image = world.image()
    thread = threading.Thread(
        target=lambda: started.append(world.start(image, "sh", "-c", "sleep 0.3; exit 5"))
    )
    thread.start()
    thread.join()
    assert started[0].wait(LIMIT_S) == Exit(5)


def test_what_a_killed_local_cloud_left_is_gone_at_the_next_start(world: World) -> None:
    length = _unusual_seconds()
    image = world.image()
    left = [sys.executable, "-c", _DAEMON, str(world.data), world.client.address, image, length]
    daemon = subprocess.Popen(
        left, stdout=subprocess.PIPE, env={**os.environ, ENGINE_VARIABLE: world.name}, text=True
    )
    assert daemon.stdout is not None
    with daemon.stdout as output:
        assert output.readline() == "ready\n"
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    again = AutoEngine(world.registry, world.data)
    again.prepare()
    for _ in range(100):
        if not _running(length) and not list((world.data / "scratch").iterdir()):
            break
        time.sleep(0.05)
    assert _running(length) == []
    assert list((world.data / "scratch").iterdir()) == []


def test_inside_bubblewrap_there_is_one_process_no_right_and_no_file_of_ours(
    bubblewrap: World,
) -> None:
    script = "echo $$; ls -d /proc/[0-9]*; grep CapEff /proc/self/status; ls /proc/1/fd; true"
    ended, lines = bubblewrap.shell(bubblewrap.image(), script)
    assert ended == Exit(0)
    assert lines[0] == "1"
    assert [line for line in lines if line.startswith("/proc/")] == ["/proc/1"]
    rights = next(line for line in lines if line.startswith("CapEff"))
    assert rights.split()[1].strip("0") == ""
    assert lines[lines.index(rights) + 1 :] == ["0", "1", "2"]


def test_the_environment_is_not_shown_to_other_users_by_ps(bubblewrap: World) -> None:
    length = _unusual_seconds()
    running = bubblewrap.start(bubblewrap.image(), "sleep", length, environment={"KEY": "hidden"})
    shown = _running(length)
    running.stop()
    assert shown
    assert "hidden" not in "".join(shown)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_way_to_a_writable_root_gives_the_same(bubblewrap: World, overlay: Overlay) -> None:
    shared = Shared(
        bubblewrap.data / "scratch",
        RootFileSystems(bubblewrap.data / "rootfs"),
        NoLimits,
        lambda: Path("/nowhere"),
        Spawner(),
        NamespaceNetworks("scar-test-"),
    )
    runner = Bubblewrap(shared, overlays=(overlay,))
    if not runner.probe().ok:
        pytest.skip(f"no bubblewrap here gives writable roots by `{overlay}`")
    image = bubblewrap.registry.resolve(bubblewrap.image(layer(*ACCOUNTS)))
    script = "touch /etc/new; echo x > /etc/passwd; cat /etc/passwd; ls /etc; touch /tmp/t"
    for _ in range(2):
        lines: list[str] = []
        command = ("sh", "-c", script)
        spec = ContainerSpec("test", "", command=command, read_only_root=False)
        assert runner.run(spec, image, lines.append).wait(LIMIT_S) == Exit(0)
        assert [line for line in lines if line in ("x", "new", "passwd")] == ["x", "new", "passwd"]


@pytest.mark.docker
def test_docker_forgets_images_that_the_registry_has_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for world in _world("docker", tmp_path, monkeypatch):
        kept, gone = (world.image(layer(Item("n", name))) for name in (b"kept", b"gone"))
        for image in (kept, gone):
            world.run(image, "echo")
        ecr(
            world.registry,
            "batch_delete_image",
            repositoryName="scar",
            imageIds=[{"imageTag": gone.rpartition(":")[2]}],
        )
        AutoEngine(world.registry, world.data).prepare()
        assert [name.partition("@")[2] for name in pulled(world.client.address)] == [
            world.registry.resolve(kept).manifest_digest
        ]


def test_an_engine_that_does_not_exist_cannot_be_forced(
    bubblewrap: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = bubblewrap.image()
    monkeypatch.setenv(ENGINE_VARIABLE, "docke")
    with pytest.raises(EngineError, match="must be `auto`, `docker` or `bubblewrap`"):
        bubblewrap.start(image, "echo")
    monkeypatch.setenv(ENGINE_VARIABLE, "auto")
    assert bubblewrap.run(image, "echo", "hi") == (Exit(0), ["hi"])


def test_auto_reports_what_it_tried_and_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, "docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with served_registry(tmp_path / "data") as (registry, client):
        engine = AutoEngine(registry, tmp_path / "data")
        report = engine.report()
        assert report["engine"] == "none"
        assert "nothing.sock" in report["why"]
        assert "install bubblewrap" in report["why"]
        ecr(registry, "create_repository", repositoryName="scar")
        image = client.push("scar", "v1", Image([layer(Item("a", b""))]))
        with pytest.raises(EngineError, match="install bubblewrap"):
            engine.start(ContainerSpec("n", image, command=["x"]), lambda line: None)


_DAEMON = """
import sys, time
from pathlib import Path
from scar_local.engines import ContainerSpec
from scar_local.engines.auto import AutoEngine
from scar_local.registry import Registry
from scar_local.store import Store

data, address, image, length = sys.argv[1:]
registry = Registry(Store(Path(data)), lambda: f"http://{address}")
engine = AutoEngine(registry, Path(data))
command = ["sh", "-c", f"setsid sleep {length} & echo ready; sleep {length}"]
engine.start(ContainerSpec("left", image, command=command), lambda line: print(line, flush=True))
time.sleep(600)
"""


def _unusual_seconds() -> str:
    return f"6{time.time_ns() % 10**9}.{os.getpid()}"


def _running(argument: str) -> Sequence[str]:
    """Processes of this machine that have this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in words and words[0] != sys.executable.encode():
            found.append(str(words))
    return found


def test_the_end_of_a_container_is_seen_with_a_thousand_files_open(world: World) -> None:
    """A daemon with many clients: the container's descriptors are above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("no more than 2048 files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert world.run(world.image(), "sh", "-c", "exit 3")[0].code == 3
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
