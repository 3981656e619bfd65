"""Files to buckets and back, against a real local cloud."""

import os
import threading

import pytest

from scar.errors import CloudError, Missing, UserError
from scar.storage import Progress, get, list_objects, put
from tests.doubles.cloud import local_cloud


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        yield account


def ignore(progress: Progress) -> None:
    pass


def hold(account, bucket, **objects):
    client = account.client("s3")
    client.create_bucket(
        Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": account.region}
    )
    for key, body in objects.items():
        client.put_object(Bucket=bucket, Key=key, Body=body)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_comes_back_as_it_went(account, tmp_path):
    files = {"a b+c%.txt": b"1", "ü/x": b"2", "deep/er/x": b"3", "deep/empty": b"", ".hidden": b"4"}
    for name, content in files.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    sent = put(account, "there/in/", tmp_path / "up", ignore)
    assert sorted(t.target for t in sent) == sorted(f"there/in/{name}" for name in files)
    got = get(account, "there/in", tmp_path / "down", ignore)
    assert tree(tmp_path / "down") == files
    assert {t.source for t in got} == {t.target for t in sent}


def test_one_file_goes_below_the_prefix_and_comes_back_by_its_key(account, tmp_path):
    (tmp_path / "seq.avi").write_bytes(b"film")
    (sent,) = put(account, "s3://single/video/input", tmp_path / "seq.avi", ignore)
    assert (sent.target, sent.size_bytes) == ("single/video/input/seq.avi", 4)
    get(account, "single/video/input/seq.avi", tmp_path / "down", ignore)
    assert tree(tmp_path / "down") == {"seq.avi": b"film"}


def test_a_large_file_goes_in_parts_and_progress_ends_at_its_size(account, tmp_path):
    data = os.urandom(1 << 20) * 20
    (tmp_path / "large").write_bytes(data)
    heard = {"up": [], "down": []}
    put(account, "large", tmp_path / "large", heard["up"].append)
    get(account, "large/large", tmp_path / "down", heard["down"].append)
    assert (tmp_path / "down" / "large").read_bytes() == data
    for told in heard.values():
        assert (told[-1].done_bytes, told[-1].total_bytes) == (len(data), len(data))
        assert len(told) > 2


def test_many_small_files_arrive(account, tmp_path):
    (tmp_path / "up").mkdir()
    for n in range(200):
        (tmp_path / "up" / str(n)).write_text(str(n))
    put(account, "many", tmp_path / "up", ignore)
    assert len(list(list_objects(account, "many"))) == 200
    get(account, "many", tmp_path / "down", ignore)
    assert tree(tmp_path / "down") == tree(tmp_path / "up")
    assert not list((tmp_path / "down").glob(".scar-*"))


def test_keys_that_are_no_paths_stay_inside_the_folder_and_nothing_is_lost(account, tmp_path):
    keys = [
        "../up",
        "/abs",
        "a//b",
        "a/../../c",
        "./d",
        "x/..",
        "dir/",
        "nul\x01",
        "é+ %20",
        "%2E%2E/z",
    ]
    hold(account, "strange", **{key: key.encode() for key in keys})
    got = get(account, "strange", tmp_path / "down", ignore)
    assert len(got) == len(keys)
    inside = (tmp_path / "down").resolve()
    assert all(os.path.realpath(t.target).startswith(f"{inside}/") for t in got)
    assert sorted(tree(inside).values()) == sorted(key.encode() for key in keys)
    assert list(tmp_path.iterdir()) == [tmp_path / "down"]


def test_a_prefix_is_a_folder_not_the_beginning_of_a_name(account, tmp_path):
    hold(account, "prefix", **{"out/a": b"1", "output/b": b"2", "out": b"3"})
    get(account, "prefix/out", tmp_path, ignore)
    assert tree(tmp_path) == {"a": b"1", "out": b"3"}


def test_empty_folder_markers_become_folders(account, tmp_path):
    hold(account, "markers", **{"in/": b"", "in/sub/": b"", "in/x": b"1"})
    assert [t.source for t in get(account, "markers/in", tmp_path, ignore)] == ["markers/in/x"]
    assert (tmp_path / "sub").is_dir()
    assert [o.key for o in list_objects(account, "markers")] == ["in/x"]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["a", "a/b"], "`a` and `a/b`"),
        (["../z", "%2E%2E/z"], "`%2E%2E/z` and `../z`"),
        (["y" * 300], "y" * 300),
    ],
)
def test_keys_that_cannot_be_files_together_are_refused_before_anything_is_copied(
    account, tmp_path, keys, named, request
):
    bucket = f"clash-{abs(hash(named)) % 10**9}"
    hold(account, bucket, **dict.fromkeys(keys, b"x"), fine=b"x")
    with pytest.raises(UserError) as caught:
        get(account, bucket, tmp_path / "down", ignore)
    assert named in str(caught.value)
    assert not (tmp_path / "down").exists()


def test_a_key_of_1024_bytes_travels_both_ways(account, tmp_path):
    name = "/".join(["d" * 200] * 5) + "/" + "f" * 19
    path = tmp_path / "up" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert len(name) == 1024
    put(account, "long-keys", tmp_path / "up", ignore)
    get(account, "long-keys", tmp_path / "down", ignore)
    assert tree(tmp_path / "down") == {name: b"x"}
    with pytest.raises(UserError, match="1026 bytes, S3 allows 1024"):
        put(account, "long-keys/p", tmp_path / "up", ignore)


def test_a_file_name_of_255_bytes_travels_both_ways(account, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / ("n" * 255)).write_bytes(b"x")
    put(account, "long-names", tmp_path / "up", ignore)
    get(account, "long-names", tmp_path / "down", ignore)
    assert tree(tmp_path / "down") == {"n" * 255: b"x"}


def test_what_is_not_there_is_told(account, tmp_path):
    with pytest.raises(Missing, match="does not exist"):
        put(account, "bucket", tmp_path / "none", ignore)
    with pytest.raises(Missing, match="bucket `no-such` does not exist"):
        get(account, "no-such", tmp_path, ignore)
    with pytest.raises(Missing, match="`no-such`"):
        list(list_objects(account, "no-such/x"))
    hold(account, "is-there")
    with pytest.raises(Missing, match="no object at or below `is-there/x`"):
        get(account, "is-there/x", tmp_path, ignore)
    assert get(account, "is-there", tmp_path, ignore) == []


def test_what_cannot_be_an_object_is_told(account, tmp_path):
    (tmp_path / "up").mkdir()
    os.mkfifo(tmp_path / "up" / "pipe")
    with pytest.raises(UserError, match=r"pipe` is no regular file"):
        put(account, "bucket", tmp_path / "up", ignore)
    with pytest.raises(UserError, match="names no bucket"):
        put(account, "/", tmp_path, ignore)
    with pytest.raises(CloudError, match="InvalidBucketName"):
        put(
            account,
            "Upper_case",
            tmp_path / "up" if os.remove(tmp_path / "up" / "pipe") else tmp_path,
            ignore,
        )


def test_a_file_where_the_folder_should_be_is_told(account, tmp_path):
    hold(account, "occupied", **{"a/b": b"x"})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        get(account, "occupied", tmp_path / "file", ignore)
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="File exists"):
        get(account, "occupied", tmp_path, ignore)


def test_two_at_once_do_not_disturb_each_other(account, tmp_path):
    (tmp_path / "up").mkdir()
    for n in range(20):
        (tmp_path / "up" / str(n)).write_text(str(n))
    put(account, "shared", tmp_path / "up", ignore)
    threads = [
        threading.Thread(target=get, args=(account, "shared", tmp_path / "down", ignore))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree(tmp_path / "down") == tree(tmp_path / "up")
