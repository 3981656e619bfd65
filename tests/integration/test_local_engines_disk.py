"""A full disk is one clear error, and what was begun is cleared away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scar_local.engines import ContainerSpec, EngineError, Exit
from scar_local.engines.auto import ENGINE_VARIABLE, AutoEngine
from tests.conftest import missing
from tests.doubles.images import (
    BUSYBOX,
    NO_BUSYBOX,
    Image,
    Item,
    busybox_layer,
    ecr,
    layer,
    served_registry,
)

LIMIT_S = 30.0
DISK_BYTES = 24 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"]
    done = subprocess.run(["mount", *options, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_an_image_that_fills_the_disk_fails_clearly_and_the_next_one_runs(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not BUSYBOX:
        missing("images", NO_BUSYBOX)
    monkeypatch.setenv(ENGINE_VARIABLE, "bubblewrap")
    with served_registry(disk) as (registry, client):
        engine = AutoEngine(registry, disk)
        if engine.report()["engine"] != "bubblewrap":
            missing("images", engine.report()["why"])
        ecr(registry, "create_repository", repositoryName="scar")
        big = layer(Item("zeros", bytes(2 * DISK_BYTES)))  # a few KiB in the registry
        too_big = client.push("scar", "big", Image([busybox_layer(), big]))
        small = client.push("scar", "small", Image([busybox_layer()]))
        for _ in range(2):
            with pytest.raises(EngineError, match=r"CannotPullContainerError.*No space left"):
                engine.start(ContainerSpec("big", too_big, command=["true"]), lambda line: None)
            assert not list((disk / "rootfs").glob("new-*"))
            assert list((disk / "scratch").iterdir()) == []
        lines: list[str] = []
        spec = ContainerSpec("small", small, command=["echo", "it runs"])
        assert engine.start(spec, lines.append).wait(LIMIT_S) == Exit(0)
        assert lines == ["it runs"]
        engine.stop_all()
