"""`scar local prune` removes what nothing uses and says how much it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scar_local.engines import ContainerSpec, EngineError, Running
from scar_local.engines.auto import ENGINE_VARIABLE, AutoEngine
from scar_local.engines.rootfs import RootFileSystems, disk_bytes, remove_tree
from scar_local.prune import NEW_S, Pruning
from scar_local.registry import Registry
from tests.conftest import missing
from tests.doubles.images import (
    BUSYBOX,
    NO_BUSYBOX,
    Client,
    Image,
    Item,
    busybox_layer,
    digest,
    ecr,
    forget_pulled,
    layer,
    pulled,
    served_registry,
)

LIMIT_S = 30.0
OWN_TAGS = [{"Key": "createdby", "Value": "scar"}]


@dataclass
class World:
    """A registry with SCAR's repository and another, an engine, and who uses which image."""

    registry: Registry
    client: Client
    engine: AutoEngine
    data: Path
    used: list[str] = field(default_factory=list)

    def image(self, tag: str, repository: str = "scar", size: int = 200_000) -> str:
        own = layer(Item(f"own-{tag}", (tag * size).encode()[:size]), compress=False)
        labels = {"scar.supervisor": "test"}
        return self.client.push(repository, tag, Image([busybox_layer(), own], {"Labels": labels}))

    def run(self, image: str, *command: str) -> Running:
        ready = threading.Event()
        script = f"echo ready; {' '.join(command)}"
        spec = ContainerSpec("test", image, command=("sh", "-c", script))
        running = self.engine.start(spec, lambda line: ready.set())
        assert ready.wait(LIMIT_S)
        return running

    def prune(self, later_s: float = NEW_S + 1) -> dict[str, Any]:
        clock = lambda: time.time() + later_s  # noqa: E731
        return Pruning(self.registry, self.engine, [lambda: self.used], clock).prune()

    def has(self, image: str) -> bool:
        try:
            return all(path.exists() for path in self.registry.resolve(image).layers)
        except EngineError:
            return False

    def trees(self) -> list[str]:
        return sorted(path.name for path in (self.data / "rootfs").iterdir())


@pytest.fixture(params=["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    if not BUSYBOX:
        missing("images", NO_BUSYBOX)
    monkeypatch.setenv(ENGINE_VARIABLE, request.param)
    data = tmp_path / "data"
    with served_registry(data) as (registry, client):
        engine = AutoEngine(registry, data)
        report = engine.report()
        if report["engine"] != request.param:
            missing("docker" if request.param == "docker" else "images", report["why"])
        ecr(registry, "create_repository", repositoryName="scar", tags=OWN_TAGS)
        ecr(registry, "create_repository", repositoryName="mine")
        yield World(registry, client, engine, data)
        engine.stop_all()
        if request.param == "docker":
            forget_pulled(client.address)


def test_images_that_nothing_uses_go_with_all_that_was_made_of_them(world: World) -> None:
    kept, gone = world.image("kept"), world.image("gone")
    for image in (kept, gone):
        assert world.run(image).wait(LIMIT_S)
    world.used = [kept]
    before = disk_bytes(world.data / "blobs")
    done = world.prune()
    assert world.has(kept)
    assert not world.has(gone)
    assert done["images"]["removed"] == 1
    assert done["images"]["bytes"] >= 200_000
    assert before - disk_bytes(world.data / "blobs") >= 200_000
    if world.engine.report()["engine"] == "docker":
        assert done["docker_images"]["removed"] >= 1
        assert len(pulled(world.client.address)) == 1
    else:
        assert done["root_file_systems"]["removed"] == 1
        assert done["root_file_systems"]["bytes"] >= 200_000
    assert done["freed_bytes"] >= done["images"]["bytes"]
    assert world.run(kept).wait(LIMIT_S)


def test_what_a_running_container_uses_stays_until_it_has_ended(world: World) -> None:
    image = world.image("running")
    running = world.run(image, "sleep 0.5; cat /own-running >/dev/null; exit 7")
    done = world.prune()
    ended = running.wait(LIMIT_S)
    assert ended is not None
    assert ended.code == 7, "it could read its files to the end"
    assert done["images"]["removed"] == 1, "its blobs are not needed any more"
    world.prune()
    assert world.trees() == []
    assert pulled(world.client.address) == [] or world.engine.report()["engine"] != "docker"


def test_images_of_other_repositories_and_new_ones_stay(world: World) -> None:
    mine, new = world.image("a", "mine"), world.image("b")
    assert world.prune(later_s=0)["images"]["removed"] == 0
    assert world.has(new)
    assert world.prune()["images"]["removed"] == 1
    assert world.has(mine)
    assert not world.has(new)


def test_pruning_twice_removes_nothing_more(world: World) -> None:
    world.run(world.image("a")).wait(LIMIT_S)
    world.prune()
    again = world.prune()
    assert [again[what]["removed"] for what in ("images", "root_file_systems")] == [0, 0]
    assert again["images"]["bytes"] == 0


def test_a_tree_that_is_being_unpacked_or_borrowed_is_not_taken_away(tmp_path: Path) -> None:
    roots = RootFileSystems(tmp_path / "rootfs")
    paths, digests = [], []
    for content in (b"base", b"top"):
        data = layer(Item(content.decode(), content))
        path = tmp_path / content.decode()
        path.write_bytes(data)
        paths.append(path)
        digests.append(digest(data))
    borrowed = [roots.borrow(paths, digests) for _ in range(2)]
    assert {path.name[:4] for path in roots.take_unused(())} == {"old-"}, "the base is linked"
    roots.give_back(borrowed[0])
    assert roots.take_unused(()) == []
    assert (borrowed[1] / "base").read_bytes() == b"base"
    roots.give_back(borrowed[1])
    taken = roots.take_unused(())
    assert len(taken) == 1
    assert roots.take_unused(()) == [], "what is being removed is not taken again"
    for path in taken:
        remove_tree(path)


def test_a_file_of_many_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    one = disk_bytes(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to("/usr")
    assert 100_000 <= one == disk_bytes(tmp_path) < 200_000


def test_the_layers_of_a_base_are_unpacked_once_for_all_functions(world: World) -> None:
    if world.engine.report()["engine"] == "docker":
        pytest.skip("Docker keeps layers in its own store")
    for tag in ("one", "two", "three"):
        assert world.run(world.image(tag, size=10)).wait(LIMIT_S)
    busyboxes = list((world.data / "rootfs").glob("*/bin/busybox"))
    assert len(busyboxes) == 4, "the base and three functions"
    assert len({path.stat().st_ino for path in busyboxes}) == 1
