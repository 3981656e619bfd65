"""Cutting, comparing and naming, without a cloud."""

import hashlib
import os
import subprocess
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scar.storage.crew import Crew, Room
from scar.storage.names import (
    KEY_LIMIT_BYTES,
    Fault,
    Source,
    Special,
    Standing,
    just_before,
    parts_of,
    too_long,
    walk,
)
from scar.storage.parts import FILE_LIMIT_BYTES, PART_LIMIT_BYTES, is_same, part_size
from scar.storage.sending import OpenFile
from scar.storage.tally import Transfer

MIB = 1 << 20


@pytest.mark.parametrize(
    "size", [1, 16 * MIB, 5 << 30, 160_000 * MIB, 160_000 * MIB + 1, 5 << 40, FILE_LIMIT_BYTES]
)
def test_ten_thousand_parts_are_always_enough_and_none_is_too_large(size):
    cut = part_size(size)
    assert -(-size // cut) <= 10_000
    assert 5 * MIB <= cut <= PART_LIMIT_BYTES


def etag_of(data, cut):
    parts = [hashlib.md5(data[n : n + cut]).digest() for n in range(0, len(data), cut)]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


@pytest.mark.parametrize("cut", [5 * MIB, 8 * MIB, 16 * MIB, 50 * MIB])
def test_parts_of_any_usual_size_are_known_again(cut):
    data = os.urandom(1000) * (17 * 1049)
    etag = etag_of(data, cut)
    assert is_same(lambda first, size: data[first : first + size], len(data), etag)
    other = data[:-1] + bytes([data[-1] ^ 1])
    assert not is_same(lambda first, size: other[first : first + size], len(data), etag)


@pytest.mark.parametrize(
    "etag", ["", "x", "-", "-1", "abc-x", "0" * 32, f"{'0' * 32}-1", "a-99999"]
)
def test_an_etag_that_is_no_md5_never_agrees(etag):
    assert not is_same(lambda first, size: b"data"[first : first + size], 4, etag)


def test_nothing_is_the_same_as_nothing():
    assert is_same(lambda first, size: b"", 0, hashlib.md5(b"").hexdigest())
    assert is_same(lambda first, size: b"", 0, _one_empty_part())


def _one_empty_part():
    return f"{hashlib.md5(hashlib.md5(b'').digest()).hexdigest()}-1"


def test_a_folder_is_walked_in_the_order_of_its_keys(tmp_path):
    names = ["a", "a-b", "a.d/x", "a/y/z", "a/y-", "a0", "B", "é", "z", "😀", "\uffff"]
    for name in names:
        path = tmp_path / "f" / (f"{name}/file" if name == "a" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = [item.key for item in walk(tmp_path / "f", "in/")]
    assert found == sorted(found, key=str.encode)
    assert len(found) == len(names)


def test_links_are_followed_and_loops_are_named(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "x").write_text("x")
    (inside / "sub" / "up").symlink_to("..")
    (inside / "far").symlink_to(outside)
    (inside / "file").symlink_to(outside / "x")
    (inside / "gone").symlink_to("nowhere")
    (inside / "self").symlink_to("self")
    found = list(walk(inside, ""))
    assert [item.key for item in found if isinstance(item, Source)] == ["far/x", "file"]
    faults = {os.path.basename(i.name): i.why for i in found if isinstance(i, Fault)}
    assert faults == {
        "up": "is a link into itself: ..",
        "gone": "is a link to what does not exist",
        "self": "cannot be read: too many levels of symbolic links",
    }


def test_what_is_no_file_or_has_no_key_is_told_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "fine").write_text("")
    with open(os.fsencode(tmp_path) + b"/bad\xff", "wb"):
        pass
    found = list(walk(tmp_path, "k" * 1020 + "/"))
    assert [type(item) for item in found] == [Fault, Fault, Special]
    assert str(found[0]).endswith(
        "bad\\xff` has a name that is not UTF-8, keys of S3 are: rename it"
    )
    assert found[1].why == "would get a key of 1025 bytes, S3 allows 1024"
    assert found[2].path.endswith("pipe")


def test_folders_nested_as_deep_as_paths_go_are_walked(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        here, old = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(old)
    os.close(here)
    try:
        assert list(walk(tmp_path, "")) == []
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest goes less deep


ODD = st.text(st.sampled_from("./%025EFa\0"), max_size=8)


@given(ODD, ODD)
def test_no_two_keys_become_one_file_and_none_leaves_the_folder(one, other):
    parts = parts_of(one)
    assert all(part not in ("", ".", "..") and not {"/", "\0"} & set(part) for part in parts)
    if one != other:
        assert parts != parts_of(other)


def test_usual_names_stay_as_they_are():
    for name in ("a/b.txt", "100%.csv", "%20", "..x", "...", "é/%2E.txt"):
        assert parts_of(name) == tuple(name.split("/"))
    assert too_long(parts_of("a/" + "é" * 128)) == 256
    assert too_long(parts_of("n" * 255)) == 0


@given(st.sets(st.text(st.sampled_from("ab/-!"), min_size=1, max_size=5)))
def test_a_file_in_the_way_of_a_folder_is_found_without_keeping_all_keys(keys):
    standing, files = Standing(), set()
    for key in sorted(keys):
        expected = [file for file in files if key.startswith(f"{file}/")]
        assert (standing.over(key) in expected) if expected else (standing.over(key) is None)
        if not expected:
            standing.add(key)
            files.add(key)


@given(st.text(min_size=1, max_size=1024))
def test_a_listing_can_start_just_before_any_key(key):
    before = just_before(key)
    assert before < key
    assert len(before.encode()) <= max(len(key.encode()) + 3, KEY_LIMIT_BYTES)
    assert key[:-1] == before[: len(key) - 1]


def test_a_name_cannot_command_the_terminal():
    assert str(Fault("a\x1b[2J\nb", "is bad")) == "`a\\x1b[2J\\nb` is bad"


def test_results_come_in_order_whatever_ends_first():
    crew = Crew()

    def task(number):
        def run(future):
            time.sleep(0.01 * (5 - number % 5))
            future.set_result(Transfer(str(number), "", 0))

        return run

    fault = Fault("x", "y")
    try:
        found = list(crew.results([task(n) for n in range(20)] + [fault]))
    finally:
        crew.stop()
    assert [item.source for item in found[:-1]] == [str(n) for n in range(20)]
    assert found[-1] == fault


def test_what_a_job_raises_ends_the_crew_though_the_first_job_goes_on():
    crew, let_go = Crew(), threading.Event()

    def slow(future):
        let_go.wait(20)
        future.set_result(Fault("late", ""))

    def broken(future):
        raise ValueError("broken")

    try:
        with pytest.raises(ValueError, match="broken"):
            list(crew.results([slow, broken, slow]))
    finally:
        let_go.set()
        crew.stop()


def test_work_is_read_no_further_ahead_than_the_window():
    crew, let_go, read = Crew(), threading.Event(), []

    def slow(future):
        let_go.wait(20)
        future.set_result(Fault("x", ""))

    def work():
        for number in range(5000):
            read.append(number)
            if len(read) == 1000:
                let_go.set()
            yield slow

    results = crew.results(work())
    next(results)
    assert len(read) == 1000
    results.close()
    crew.stop()


def test_room_is_given_out_once_and_more_than_all_of_it_means_all():
    room, held, most, lock = Room(100), 0, 0, threading.Lock()

    def take(size):
        nonlocal held, most
        with room.taking(size):
            with lock:
                held += min(size, 100)
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                held -= min(size, 100)

    threads = [threading.Thread(target=take, args=(size,)) for size in [30, 60, 500, 100] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most <= 100
    assert held == 0


def test_an_open_file_knows_that_somebody_wrote_to_it(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    file = OpenFile(str(tmp_path / "x"))
    assert (file.read(1, 3), file.read(3, 9), file.read(9, 1)) == (b"234", b"45", b"")
    assert not file.has_changed()
    with (tmp_path / "x").open("ab") as writer:
        writer.write(b"6")
    assert file.has_changed()
    file.close()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        OpenFile(str(tmp_path / "pipe"))
