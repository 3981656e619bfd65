"""cgroups: which are taken, and what is written into them. Their files are plain files here."""

from __future__ import annotations

from pathlib import Path

from scar_local.engines import ContainerSpec
from scar_local.engines.limits import CgroupLimits, NoLimits, find_limits

SPEC = ContainerSpec("n", "image", memory_mib=64, vcpus=0.5)


def test_version_2_limits_memory_and_cpu_in_one_directory(tmp_path: Path) -> None:
    parent = tmp_path / "user.slice"
    parent.mkdir()
    group = CgroupLimits("v2", {"": parent}, 2, "scar-").group(SPEC)
    (made,) = parent.iterdir()
    assert (made / "memory.max").read_text() == str(64 << 20)
    group.enter(42)
    assert (made / "cgroup.procs").read_text() == "42"
    (made / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    assert not group.oom_killed()
    (made / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert group.oom_killed()


def test_version_1_limits_memory_and_cpu_in_two_directories(tmp_path: Path) -> None:
    parents = {name: tmp_path / name for name in ("memory", "cpu")}
    for parent in parents.values():
        parent.mkdir()
    group = CgroupLimits("v1", parents, 1, "scar-").group(SPEC)
    (memory,) = parents["memory"].iterdir()
    (cpu,) = parents["cpu"].iterdir()
    assert (memory / "memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "50000"
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert group.oom_killed()


def test_in_a_leaf_of_a_user_session_the_parent_with_controllers_is_taken(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    session = tmp_path / "user.slice"
    leaf = session / "app.scope"
    leaf.mkdir(parents=True)
    (session / "cgroup.subtree_control").write_text("memory pids")
    own = tmp_path / "own"
    own.write_text("0::/user.slice/app.scope\n")
    limits = find_limits("scar-", tmp_path, own)
    assert isinstance(limits, CgroupLimits)
    assert limits.parents == {"": session}
    assert limits.version == 2


def test_without_a_cgroup_that_can_be_made_it_is_said(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/nowhere\n1:cpu:/nowhere\n0::/\n")
    limits = find_limits("scar-", tmp_path / "none", own)
    assert isinstance(limits, NoLimits)
    assert "not enforced" in limits.what
    assert not limits.group(SPEC).oom_killed()
