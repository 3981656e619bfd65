"""Files to buckets and back, against a real local cloud."""

import fcntl
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.awsrequest import AWSResponse

from scar import storage
from scar.aws.account import Target, connect
from scar.aws.objects import Objects
from scar.errors import CloudError, Missing, TransferFailed, UserError
from scar.storage import list_objects
from scar.storage.crew import Crew
from scar.storage.fetching import Fetching, Wanted
from scar.storage.tally import Tally
from tests.doubles.cloud import local_cloud


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        yield account


class Heard:
    """Takes down what happens on the way; `each` is called with every progress."""

    def __init__(self, each=lambda progress: None):
        self.progresses, self.warnings, self._each = [], [], each

    def progress(self, progress):
        self.progresses.append(progress)
        self._each(progress)

    def warn(self, text):
        self.warnings.append(text)


def put(account, bucket_path, local, listener=None, **options):
    return list(storage.put(account, bucket_path, local, listener or Heard(), **options))


def get(account, bucket_path, local, listener=None, **options):
    return list(storage.get(account, bucket_path, local, listener or Heard(), **options))


def uploads_left(account, bucket):
    return account.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", [])


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
    sent = put(account, "there/in/", tmp_path / "up")
    assert sorted(t.target for t in sent) == sorted(f"there/in/{name}" for name in files)
    got = get(account, "there/in", tmp_path / "down")
    assert tree(tmp_path / "down") == files
    assert {t.source for t in got} == {t.target for t in sent}


def test_one_file_goes_below_the_prefix_and_comes_back_by_its_key(account, tmp_path):
    (tmp_path / "seq.avi").write_bytes(b"film")
    (sent,) = put(account, "s3://single/video/input", tmp_path / "seq.avi")
    assert (sent.target, sent.size_bytes) == ("single/video/input/seq.avi", 4)
    get(account, "single/video/input/seq.avi", tmp_path / "down")
    assert tree(tmp_path / "down") == {"seq.avi": b"film"}


def test_a_large_file_goes_in_parts_and_progress_ends_at_its_size(account, tmp_path):
    data = os.urandom(1 << 20) * 20
    (tmp_path / "large").write_bytes(data)
    up, down = Heard(), Heard()
    put(account, "large", tmp_path / "large", up)
    get(account, "large/large", tmp_path / "down", down)
    assert (tmp_path / "down" / "large").read_bytes() == data
    for heard in (up, down):
        last = heard.progresses[-1]
        assert (last.bytes_done, last.bytes_found) == (len(data), len(data))
        assert (last.files_done, last.files_found) == (1, 1)
        assert len(heard.progresses) > 2
    assert uploads_left(account, "large") == []


def test_many_small_files_arrive(account, tmp_path):
    (tmp_path / "up").mkdir()
    for n in range(200):
        (tmp_path / "up" / str(n)).write_text(str(n))
    put(account, "many", tmp_path / "up")
    assert len(list(list_objects(account, "many"))) == 200
    get(account, "many", tmp_path / "down")
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
    got = get(account, "strange", tmp_path / "down")
    assert len(got) == len(keys)
    inside = (tmp_path / "down").resolve()
    assert all(os.path.realpath(t.target).startswith(f"{inside}/") for t in got)
    assert sorted(tree(inside).values()) == sorted(key.encode() for key in keys)
    assert list(tmp_path.iterdir()) == [tmp_path / "down"]


def test_a_prefix_is_a_folder_not_the_beginning_of_a_name(account, tmp_path):
    hold(account, "prefix", **{"out/a": b"1", "output/b": b"2", "out": b"3"})
    get(account, "prefix/out", tmp_path)
    assert tree(tmp_path) == {"a": b"1", "out": b"3"}


def test_empty_folder_markers_become_folders(account, tmp_path):
    hold(account, "markers", **{"in/": b"", "in/sub/": b"", "in/x": b"1"})
    assert [t.source for t in get(account, "markers/in", tmp_path)] == ["markers/in/x"]
    assert (tmp_path / "sub").is_dir()
    assert [o.key for o in list_objects(account, "markers")] == ["in/x"]


def test_what_cannot_be_a_file_is_named_and_all_others_are_fetched(account, tmp_path):
    long = "y" * 300
    hold(account, "clash", **dict.fromkeys(["a", "a!", "a/b", "a/c/d", long, "z"], b"x"))
    with pytest.raises(TransferFailed, match="3 of 6 files were not fetched") as caught:
        get(account, "clash", tmp_path / "down")
    assert list(caught.value.faults) == [
        "`a/b` needs a folder where `a` is a file: get it by itself",
        "`a/c/d` needs a folder where `a` is a file: get it by itself",
        f"`{long}` has a part of 300 bytes, a file's name at most 255: get it by itself",
    ]
    assert set(tree(tmp_path / "down")) == {"a", "a!", "z"}
    get(account, "clash/a/b", tmp_path / "apart")
    assert tree(tmp_path / "apart") == {"b": b"x"}


def test_an_object_beside_the_folder_of_its_name_is_not_lost(account, tmp_path):
    hold(account, "beside", **{"p/out": b"1", "p/out/out/x": b"2", "p/out/y": b"3", "p/out-2": b""})
    with pytest.raises(TransferFailed) as caught:
        get(account, "beside/p/out", tmp_path)
    assert list(caught.value.faults) == [
        "`p/out/out/x` needs a folder where `p/out` is a file: get it by itself"
    ]
    assert tree(tmp_path) == {"out": b"1", "y": b"3"}


def test_keys_that_look_alike_become_different_files(account, tmp_path):
    keys = ["../z", "%2E%2E/z", "%252E%252E/z", "a//b", "a/%2F/b"]
    hold(account, "alike", **{key: key.encode() for key in keys})
    get(account, "alike", tmp_path / "down")
    assert sorted(tree(tmp_path / "down").values()) == sorted(key.encode() for key in keys)


def test_a_key_of_1024_bytes_travels_both_ways(account, tmp_path):
    name = "/".join(["d" * 200] * 5) + "/" + "f" * 19
    path = tmp_path / "up" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert len(name) == 1024
    put(account, "long-keys", tmp_path / "up")
    get(account, "long-keys", tmp_path / "down")
    assert tree(tmp_path / "down") == {name: b"x"}
    with pytest.raises(UserError, match="1026 bytes, S3 allows 1024"):
        put(account, "long-keys/p", tmp_path / "up")


def test_a_file_name_of_255_bytes_travels_both_ways(account, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / ("n" * 255)).write_bytes(b"x")
    put(account, "long-names", tmp_path / "up")
    get(account, "long-names", tmp_path / "down")
    assert tree(tmp_path / "down") == {"n" * 255: b"x"}


def test_what_is_not_there_is_told(account, tmp_path):
    with pytest.raises(Missing, match="does not exist"):
        put(account, "bucket", tmp_path / "none")
    with pytest.raises(Missing, match="bucket `no-such` does not exist"):
        get(account, "no-such", tmp_path)
    with pytest.raises(Missing, match="`no-such`"):
        list(list_objects(account, "no-such/x"))
    hold(account, "is-there")
    with pytest.raises(Missing, match="no object at or below `is-there/x`"):
        get(account, "is-there/x", tmp_path)
    assert get(account, "is-there", tmp_path) == []


def test_what_cannot_be_an_object_is_told(account, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe` is no regular file"):
        put(account, "bucket", tmp_path / "pipe")
    with pytest.raises(UserError, match="names no bucket"):
        put(account, "/", tmp_path)
    with pytest.raises(CloudError, match="InvalidBucketName"):
        put(account, "Upper_case", tmp_path)


def test_one_bad_file_does_not_keep_the_others(account, tmp_path):
    up = tmp_path / "up"
    up.mkdir()
    os.mkfifo(up / "pipe")
    (up / "loop").symlink_to(".")
    (up / "gone").symlink_to("nowhere")
    (up / "fine").write_text("fine")
    with open(os.fsencode(up) + b"/bad\xff", "wb"):
        pass
    heard = Heard()
    with pytest.raises(TransferFailed, match="3 of 4 files were not sent") as caught:
        put(account, "mixed", up, heard)
    assert [fault.partition("`")[2].partition("`")[0] for fault in caught.value.faults] == [
        f"{up}/bad\\xff", f"{up}/gone", f"{up}/loop",
    ]  # fmt: skip
    assert heard.warnings == [f"`{up}/pipe` is left out: it is no regular file"]
    assert [info.key for info in list_objects(account, "mixed")] == ["fine"]


def test_a_second_time_nothing_is_copied_but_what_differs(account, tmp_path):
    up, down = tmp_path / "up", tmp_path / "down"
    (up / "deep").mkdir(parents=True)
    for name, content in {
        "a": b"1",
        "deep/b": b"2",
        "empty": b"",
        "large": b"x" * (17 << 20),
    }.items():
        (up / name).write_bytes(content)
    assert {t.status for t in put(account, "twice/in", up)} == {"done"}
    assert {t.status for t in put(account, "twice/in", up)} == {"unchanged"}
    assert {t.status for t in get(account, "twice/in", down)} == {"done"}
    assert {t.status for t in get(account, "twice/in", down)} == {"unchanged"}

    before = (up / "deep" / "b").stat()
    (up / "deep" / "b").write_bytes(b"3")  # the same size, and the same date
    os.utime(up / "deep" / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    with (up / "large").open("r+b") as file:
        file.seek(9 << 20)
        file.write(b"y")
    statuses = {t.target: t.status for t in put(account, "twice/in", up)}
    assert statuses == {
        "twice/in/a": "unchanged",
        "twice/in/deep/b": "done",
        "twice/in/empty": "unchanged",
        "twice/in/large": "done",
    }
    assert {t.source: t.status for t in get(account, "twice/in", down)} == statuses
    assert tree(down) == tree(up)
    assert {t.status for t in put(account, "twice/in", up, force=True)} == {"done"}
    assert {t.status for t in get(account, "twice/in", down, force=True)} == {"done"}


def test_what_other_tools_sent_is_known_again(account, tmp_path):
    (tmp_path / "f").write_bytes(os.urandom(1 << 20) * 12)
    client = account.client("s3")
    hold(account, "others")
    client.upload_file(str(tmp_path / "f"), "others", "f")  # boto3 and the AWS CLI: 8 MiB parts
    assert "-2" in client.head_object(Bucket="others", Key="f")["ETag"]
    (sent,) = put(account, "others", tmp_path / "f")
    assert sent.status == "unchanged"


def test_a_folder_is_found_again_among_many_other_objects(account, tmp_path):
    names = [f"{n:04}" for n in range(0, 1100, 3)]
    (tmp_path / "up").mkdir()
    for name in names:
        (tmp_path / "up" / name).write_text(name)
    others = {f"in/{n:04}": b"other" for n in range(1100) if n % 3}
    put(account, "among/in", tmp_path / "up")
    client = account.client("s3")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: client.put_object(Bucket="among", Key=key, Body=b"o"), others))
    assert {t.status for t in put(account, "among/in", tmp_path / "up")} == {"unchanged"}
    asked = []
    client.meta.events.register(
        "before-call.s3.ListObjectsV2", lambda **its: asked.append(1), unique_id="asked"
    )
    (again,) = put(account, "among/in", tmp_path / "up" / "1098")
    client.meta.events.unregister("before-call.s3.ListObjectsV2", unique_id="asked")
    assert (again.status, len(asked)) == ("unchanged", 1)
    assert len(list(list_objects(account, "among"))) == 1100
    assert len(get(account, "among/in", tmp_path / "down")) == 1100


def test_a_file_that_grows_while_it_is_sent_makes_no_object(account, tmp_path):
    path = tmp_path / "growing"
    path.write_bytes(b"x" * (20 << 20))

    def grow(progress):
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(UserError, match="growing` changed while it was read"):
        put(account, "grows", path, Heard(grow))
    assert list(list_objects(account, "grows")) == []
    assert uploads_left(account, "grows") == []


def test_breaking_off_leaves_no_upload_and_no_half_file(account, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"x" * (40 << 20))

    def interrupt(progress):
        if progress.bytes_done:
            raise KeyboardInterrupt  # in a thread of ours: as good as any other end

    with pytest.raises(KeyboardInterrupt):
        put(account, "broken-off", path, Heard(interrupt))
    assert uploads_left(account, "broken-off") == []
    assert list(list_objects(account, "broken-off")) == []
    put(account, "broken-off", path)
    with pytest.raises(KeyboardInterrupt):
        get(account, "broken-off", tmp_path / "down", Heard(interrupt))
    assert list((tmp_path / "down").iterdir()) == []
    get(account, "broken-off", tmp_path / "down")
    assert (tmp_path / "down" / "large").stat().st_size == 40 << 20


def test_what_a_killed_command_left_is_removed_by_the_next_and_what_one_uses_is_not(
    account, tmp_path
):
    hold(account, "killed", x=b"1")
    left, used = tmp_path / ".scar-get-left", tmp_path / ".scar-get-used"
    for folder in (left, used):
        folder.mkdir()
        (folder / "0").write_text("half")
    descriptor = os.open(used, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    get(account, "killed", tmp_path)
    os.close(descriptor)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scar-get-used", "x"]


def test_a_link_to_another_file_system_is_filled_too(account, tmp_path):
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    hold(account, "far-away", **{"far/x": b"1", "far/large": b"2" * (17 << 20)})
    with tempfile.TemporaryDirectory(dir=shared) as far:
        (tmp_path / "far").symlink_to(far)
        get(account, "far-away", tmp_path)
        assert {path.name: path.stat().st_size for path in Path(far).iterdir()} == {
            "x": 1,
            "large": 17 << 20,
        }


def test_an_object_that_is_replaced_meanwhile_is_not_mixed(account, tmp_path):
    hold(account, "replaced", x=b"1" * (20 << 20))
    its = Objects(account, "replaced")
    (info,), _ = its.page("x", "")
    hold_again = account.client("s3").put_object
    hold_again(Bucket="replaced", Key="x", Body=b"2" * (20 << 20))
    crew, future = Crew(), Future()
    (tmp_path / "work").mkdir()
    fetching = Fetching(crew, its, "replaced", Tally(lambda progress: None), force=False)
    fetching.fetch(Wanted(info, tmp_path / "x"), tmp_path / "work" / "0", future)
    assert future.result(20).why == "was replaced while it was fetched: get it again"
    crew.stop()
    assert list(tmp_path.rglob("*")) == [tmp_path / "work"]


COMMAND = """
import sys
from pathlib import Path
from scar import storage
from scar.aws.account import Target, connect
from scar.errors import ScarError
class Deaf:
    def progress(self, progress): pass
    def warn(self, text): pass
url, what, bucket, path = sys.argv[1:]
account = connect(Target("local", url, None, "eu-south-2"))
try:
    for transfer in getattr(storage, what)(account, bucket, Path(path), Deaf()):
        print(transfer.target)
except ScarError as exc:
    print(exc.exit_code, exc, *getattr(exc, "faults", ()), sep="\\n")
print(sorted(path.name for path in Path(path).iterdir()))
"""


def apart(account, namespace, *arguments):
    """What `storage` does in a process that lives in namespaces of its own."""
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip(f"`{' '.join(namespace[:2])}` does not work here")
    url = account.client("s3").meta.endpoint_url
    done = subprocess.run(
        [*namespace, sys.executable, "-c", COMMAND, url, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done
    return done.stdout.splitlines()


def test_a_full_disk_is_told_and_leaves_no_half_file(account, tmp_path):
    hold(account, "full", a=b"1" * 1000, b=b"2" * (4 << 20))
    mounting = f'mount -t tmpfs -o size=1m t {shlex.quote(str(tmp_path))} && exec "$@"'
    told = apart(account, ["unshare", "-rm", "sh", "-c", mounting, "sh"], "get", "full", tmp_path)
    assert told[-1] in ("['a']", "[]")
    assert told[-3] == "4"
    assert told[-2].startswith("no room for object `")
    assert told[-2].endswith("no space left on device")


def test_what_may_not_be_read_is_named_and_the_rest_is_sent(account, tmp_path):
    up = tmp_path / "up"
    (up / "sub").mkdir(parents=True)
    for name in ("fine", "secret", "sub/x"):
        (up / name).write_text(name)
    (up / "secret").chmod(0)
    (up / "sub").chmod(0)
    try:  # in a user namespace without users even root may not read everything
        told = apart(account, ["unshare", "-U"], "put", "private", up)
    finally:
        (up / "sub").chmod(0o755)
    assert told == [
        "private/fine",
        "4",
        "2 of 3 files were not sent",
        f"`{up}/secret` cannot be read: permission denied",
        f"`{up}/sub` cannot be read: permission denied",
        "['fine', 'secret', 'sub']",
    ]


def test_a_file_where_the_folder_should_be_is_told(account, tmp_path):
    hold(account, "occupied", **{"a/b": b"x", "c": b"y"})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        get(account, "occupied", tmp_path / "file")
    (tmp_path / "a").write_text("")
    with pytest.raises(TransferFailed) as caught:
        get(account, "occupied", tmp_path)
    assert list(caught.value.faults) == [f"`a/b` cannot become a file: `{tmp_path}/a`: file exists"]
    (tmp_path / "c").unlink()
    (tmp_path / "c").mkdir()
    with pytest.raises(TransferFailed, match="2 of 2"):
        get(account, "occupied", tmp_path)
    assert (tmp_path / "a").read_bytes() == b""


def test_to_aws_a_body_goes_as_one_signed_piece_with_its_checksum(monkeypatch):
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    aws, sent = connect(Target("aws", None, None, "eu-south-2")), []

    class Nothing:
        def stream(self):
            return iter([b""])

    def answer(request, **_):
        sent.append(request)
        return AWSResponse(request.url, 200, {"ETag": '"x"'}, Nothing())

    aws.client("s3").meta.events.register("before-send.s3", answer)
    its = Objects(aws, "bucket")
    its.store("k", b"small")
    assert its.store_part("k", "u", 1, b"x" * (2 << 20)).crc32 == "eShP/w=="
    small, part = sent
    assert (small.body, len(part.body)) == (b"small", 2 << 20)
    assert part.headers["x-amz-checksum-crc32"] == b"eShP/w=="
    for request in sent:
        assert request.url.startswith("https://bucket.s3.eu-south-2.amazonaws.com/k")
        digest = hashlib.sha256(request.body).hexdigest().encode()
        assert request.headers["X-Amz-Content-SHA256"] == digest
        assert "Content-Encoding" not in request.headers
    assert ("Expect" in small.headers, "Expect" in part.headers) == (False, True)


def test_two_at_once_do_not_disturb_each_other(account, tmp_path):
    (tmp_path / "up").mkdir()
    for n in range(20):
        (tmp_path / "up" / str(n)).write_text(str(n))
    put(account, "shared", tmp_path / "up")
    threads = [
        threading.Thread(target=get, args=(account, "shared", tmp_path / "down")) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree(tmp_path / "down") == tree(tmp_path / "up")
