"""Layers become a root file system, and never anything outside of it."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from scar_local.engines import EngineError
from scar_local.engines.rootfs import (
    RootFileSystems,
    follow,
    is_executable,
    read_inside,
    remove_tree,
    unpack,
)
from tests.doubles.deep_tree import make_deep_tree
from tests.doubles.images import Item, digest, directory, hard_link, layer, symlink


def unpacked(tmp_path: Path, *layers: bytes) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    unpack(files(tmp_path, layers), root)
    return root


def files(tmp_path: Path, layers: Sequence[bytes]) -> list[Path]:
    paths = []
    for data in layers:
        path = tmp_path / digest(data).removeprefix("sha256:")
        path.write_bytes(data)
        paths.append(path)
    return paths


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_files_links_and_modes_are_as_the_layer_says(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path,
        layer(
            directory("bin", 0o755),
            Item("bin/tool", b"x", 0o4755),
            hard_link("bin/same", "bin/tool"),
            symlink("bin/name", "tool"),
            directory("closed", 0o555),
            Item("closed/file", b"y", 0o400),
            Item("no/parent/entry", b"z"),
        ),
    )
    assert stat.S_IMODE((root / "bin/tool").stat().st_mode) == 0o4755
    assert (root / "bin/same").stat().st_ino == (root / "bin/tool").stat().st_ino
    assert (root / "bin/name").readlink() == Path("tool")
    assert stat.S_IMODE((root / "closed").stat().st_mode) == 0o755, "we must be able to remove it"
    assert (root / "closed/file").read_bytes() == b"y"
    assert (root / "no/parent/entry").read_bytes() == b"z"


def test_modes_do_not_depend_on_the_umask_of_the_local_cloud(tmp_path: Path) -> None:
    data = layer(Item("opt/tool/run", b"x", 0o755), directory("srv", 0o775))
    before = os.umask(0o077)
    try:
        root = RootFileSystems(tmp_path / "roots").tree(files(tmp_path, [data]), [digest(data)])
    finally:
        os.umask(before)
    open_to_all = {
        *{".": 0o755, "opt": 0o755, "opt/tool": 0o755, "opt/tool/run": 0o755, "srv": 0o775}.items(),
        *{"etc": 0o755, "etc/hosts": 0o644, "proc": 0o755, "var/tmp": 0o755}.items(),
    }
    found = {(name, stat.S_IMODE((root / name).stat().st_mode)) for name, _ in open_to_all}
    assert found == open_to_all


def test_a_plain_tar_is_a_layer_too(tmp_path: Path) -> None:
    root = unpacked(tmp_path, layer(Item("a", b"1"), compress=False))
    assert (root / "a").read_bytes() == b"1"


def test_whiteouts_remove_what_lower_layers_brought(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path,
        layer(Item("keep", b""), Item("gone", b""), Item("tree/a", b""), Item("tree/deep/b", b"")),
        layer(Item(".wh.gone"), Item(".wh.never-there"), Item("tree/.wh.deep")),
    )
    assert names(root) == {"keep", "tree", "tree/a"}


def test_an_opaque_directory_hides_the_lower_layers_only(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path,
        layer(Item("etc/old", b""), Item("etc/sub/older", b""), Item("other", b"")),
        layer(Item("etc/new", b""), Item("etc/.wh..wh..opq"), Item("etc/newer", b"")),
    )
    assert names(root) == {"etc", "etc/new", "etc/newer", "other"}


def test_a_later_layer_replaces_a_file_by_a_directory_and_a_directory_by_a_link(
    tmp_path: Path,
) -> None:
    root = unpacked(
        tmp_path,
        layer(Item("a", b"file"), Item("b/inside", b"")),
        layer(directory("a"), Item("a/x", b""), symlink("b", "a")),
    )
    assert (root / "a/x").is_file()
    assert (root / "b").readlink() == Path("a")


def test_a_directory_entry_over_a_link_to_a_directory_keeps_the_content(tmp_path: Path) -> None:
    """Debian's merged /usr: a later layer that writes to lib/x writes to usr/lib/x."""
    root = unpacked(
        tmp_path,
        layer(Item("usr/lib/a", b""), symlink("lib", "usr/lib")),
        layer(Item("lib/b", b"")),
    )
    assert (root / "lib").is_symlink()
    assert names(root / "usr/lib") == {"a", "b"}


@pytest.mark.parametrize(
    "items",
    [
        [Item("../outside", b"evil")],
        [Item("a/../../outside", b"evil")],
        [symlink("up", ".."), Item("up/outside", b"evil")],
        [symlink("up", "../../../../.."), Item("up/outside", b"evil")],
        [directory("d"), symlink("d/up", "../.."), Item("d/up/outside", b"evil")],
        [symlink("a", "b"), symlink("b", "../.."), Item("a/outside", b"evil")],
        [symlink("outside", "../outside"), Item("outside", b"evil")],
        [Item("../.wh.victim")],
        [symlink("up", ".."), Item("up/.wh.victim")],
        [symlink("up", ".."), Item("up/.wh..wh..opq")],
        [symlink("up", ".."), directory("up", 0o700), Item("up/outside", b"evil")],
        [directory("../outside"), directory("..", 0o777)],
    ],
    ids=lambda items: " ".join(item.name for item in items),
)
def test_no_layer_writes_or_removes_outside_the_root(tmp_path: Path, items: list[Item]) -> None:
    (tmp_path / "victim").write_text("precious")
    mode = tmp_path.stat().st_mode
    root = unpacked(tmp_path, layer(*items))
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path.parent / "outside").exists()
    assert tmp_path.stat().st_mode == mode
    assert root.is_dir()


def test_absolute_names_and_absolute_links_mean_the_root_of_the_image(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    root = unpacked(
        tmp_path,
        layer(Item("/etc/a", b"1"), symlink("out", str(victim)), Item("out/b", b"2")),
    )
    assert (root / "etc/a").read_bytes() == b"1"
    assert list(victim.iterdir()) == []
    assert root.joinpath(*victim.parts[1:], "b").read_bytes() == b"2"


@pytest.mark.parametrize("target", ["../victim", "up/victim", "/nothing/here"])
def test_a_hard_link_to_something_outside_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "victim").write_text("precious")
    data = layer(symlink("up", ".."), hard_link("stolen", target))
    with pytest.raises(tarfile.TarError, match="links to"):
        unpacked(tmp_path, data)


def test_a_file_is_never_written_through_a_link_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    root = unpacked(
        tmp_path,
        layer(symlink("a", str(tmp_path / "victim"))),
        layer(Item("a", b"new")),
    )
    assert (tmp_path / "victim").read_text() == "precious"
    assert (root / "a").read_bytes() == b"new"


def test_devices_are_left_out(tmp_path: Path) -> None:
    root = unpacked(tmp_path, layer(Item("dev/null", kind=tarfile.CHRTYPE), Item("x", b"")))
    assert names(root) == {"dev", "x"}


def test_links_that_go_in_circles_are_an_error(tmp_path: Path) -> None:
    data = layer(symlink("a", "b"), symlink("b", "a"), Item("a/file", b""))
    with pytest.raises(ValueError, match="too many symbolic links"):
        unpacked(tmp_path, data)


def test_a_root_is_unpacked_once_and_has_places_to_mount_over(tmp_path: Path) -> None:
    roots = RootFileSystems(tmp_path / "rootfs")
    layers = [layer(Item("a", b"1")), layer(symlink("etc/resolv.conf", "/nowhere"))]
    digests = [digest(data) for data in layers]
    paths = files(tmp_path, layers)
    root = roots.tree(paths, digests)
    for path in paths:
        path.unlink()
    assert roots.tree(paths, digests) == root
    assert {"proc", "dev", "sys", "tmp", "var/tmp", "etc/resolv.conf", "a"} <= names(root)
    assert not (root / "etc/resolv.conf").is_symlink()


def test_images_that_differ_in_the_last_layer_share_the_files_below(tmp_path: Path) -> None:
    roots = RootFileSystems(tmp_path / "rootfs")
    base, first, second = (
        layer(Item("big", b"x" * 10_000), Item("script", b"0")),
        layer(Item("script", b"1")),
        layer(Item("script", b"2"), Item(".wh.big")),
    )
    paths = files(tmp_path, [base, first, second])
    one = roots.tree([paths[0], paths[1]], ["base", "one"])
    two = roots.tree([paths[0], paths[2]], ["base", "two"])
    assert (one / "script").read_bytes() == b"1"
    assert (two / "script").read_bytes() == b"2"
    assert (one / "big").stat().st_nlink == 2, "in the base and here"
    assert not (two / "big").exists()
    unused = roots.take_unused({("base", "one")})
    assert not two.exists()
    assert one.exists()
    for path in unused:
        remove_tree(path)
    assert (one / "big").stat().st_size == 10_000


def test_a_layer_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    roots = RootFileSystems(tmp_path / "rootfs")
    broken = layer(Item("a", b"1" * 100_000))[:-20]
    for data, why in ((broken, "CannotPull"), (b"\x28\xb5\x2f\xfdzstd", "zstd")):
        with pytest.raises(EngineError, match=why):
            roots.tree(files(tmp_path, [data]), [digest(data)])
    assert list((tmp_path / "rootfs").iterdir()) == []


def test_files_are_found_as_the_container_would_find_them(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path,
        layer(
            Item("usr/etc/passwd", b"inside"),
            symlink("etc", "/usr/etc"),
            symlink("escape", "../../../../../../etc/passwd"),
            Item("usr/bin/tool", b"", 0o755),
            symlink("bin", "usr/bin"),
            symlink("usr/bin/alias", "../../bin/tool"),
            Item("usr/bin/data", b"", 0o644),
            symlink("loop", "loop"),
        ),
    )
    assert read_inside(root, "/etc/passwd") == "inside"
    assert read_inside(root, "/escape") == "inside"
    assert read_inside(root, "/etc/shadow") == ""
    assert is_executable(root, "/bin/tool")
    assert is_executable(root, "/bin/alias")
    assert not is_executable(root, "/bin/data")
    assert not is_executable(root, "/bin")
    assert follow(root, "/loop") is None


def test_a_tree_is_removed_however_deep_it_is_and_no_link_is_followed(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    (outside / "kept").touch()
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    (tree / "below").mkdir()
    make_deep_tree(tree / "below")
    remove_tree(tree)
    assert list(tmp_path.iterdir()) == [outside]
    assert list(outside.iterdir()) == [outside / "kept"]
