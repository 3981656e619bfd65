"""Files to buckets and back through the real command."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Cloud, wait_for


def test_put_and_get_talk_on_stderr_and_give_data_on_stdout(cloud: Cloud, tmp_path: Path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "ü b.txt").write_text("one")
    (tmp_path / "up" / "empty").write_text("")
    sent = cloud.run("put", "-b", "data/in", "-p", tmp_path / "up")
    assert (sent.code, sent.out) == (0, "")
    assert sent.err.splitlines()[-3:] == [
        f"{tmp_path}/up/empty -> data/in/empty",
        f"{tmp_path}/up/ü b.txt -> data/in/ü b.txt",
        "2 files copied (3 B)",
    ]
    again = cloud.run("put", "-b", "data/in", "-p", tmp_path / "up", "--json")
    assert again.json() == {
        "Transfers": [
            {
                "Source": f"{tmp_path}/up/{name}",
                "Target": f"data/in/{name}",
                "Size": size,
                "Status": "unchanged",
            }
            for name, size in (("empty", 0), ("ü b.txt", 3))
        ]
    }
    forced = cloud.run("put", "-b", "data/in", "-p", tmp_path / "up", "--json", "--force")
    assert [row["Status"] for row in forced.json()["Transfers"]] == ["done", "done"]
    got = cloud.run("get", "-b", "data/in", "-p", tmp_path / "down", "-j")
    assert [row["Source"] for row in got.json()["Transfers"]] == [
        "data/in/empty",
        "data/in/ü b.txt",
    ]
    assert (tmp_path / "down" / "ü b.txt").read_text() == "one"
    assert (tmp_path / "down" / "empty").read_text() == ""


def test_ls_gives_one_key_a_line_in_a_pipe_and_a_table_on_a_terminal(cloud: Cloud, tmp_path: Path):
    (tmp_path / "f").write_bytes(b"x" * 1500)
    cloud.ok("put", "-b", "data/in", "-p", tmp_path / "f")
    cloud.client("s3").put_object(Bucket="data", Key="in/\x1b[31m", Body=b"")
    assert cloud.ok("ls", "-b", "data/in").splitlines() == ["in/\x1b[31m", "in/f"]
    (odd, found) = json.loads(cloud.ok("ls", "-b", "data", "--json"))["Objects"]
    assert (odd["Key"], found["Key"], found["Size"]) == ("in/\x1b[31m", "in/f", 1500)
    assert re.fullmatch("[0-9a-f]{32}", found["ETag"])
    shown = on_a_terminal(cloud, "ls", "-b", "data").splitlines()
    assert shown[0].split() == ["DATE", "SIZE", "KEY"]
    assert shown[1].endswith("0 B  in/\\x1b[31m")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d     1\.5 kB  in/f", shown[2])


def test_what_cannot_be_copied_is_named_and_the_rest_is_copied(cloud: Cloud, tmp_path: Path):
    up = tmp_path / "up"
    up.mkdir()
    (up / "fine").write_text("fine")
    (up / "loop").symlink_to(".")
    os.mkfifo(up / "pipe")
    done = cloud.run("put", "-b", "data", "-p", up, "--json")
    assert done.code == 4
    rows, error = map(json.loads, done.out.splitlines())
    assert [row["Target"] for row in rows["Transfers"]] == ["data/fine"]
    assert error["error"]["faults"] == [f"`{up}/loop` is a link into itself: ."]
    assert f"warning: `{up}/pipe` is left out: it is no regular file" in done.err
    assert "error: 1 of 2 files were not sent" in done.err
    assert cloud.keys("data") == ["fine"]


def test_an_interrupted_put_leaves_no_upload_and_goes_on_the_next_time(
    cloud: Cloud, tmp_path: Path
):
    up = tmp_path / "up"
    up.mkdir()
    (up / "a").write_text("a")
    with (up / "large").open("wb") as file:
        file.truncate(400 << 20)
    cloud.ok("local", "start")
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="data")
    process = cloud.start("put", "-b", "data", "-p", up)
    wait_for("an upload", lambda: s3.list_multipart_uploads(Bucket="data").get("Uploads"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.endswith("interrupted\n")
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="data")
    assert cloud.keys("data") == ["a"]
    (up / "large").write_bytes(b"smaller")
    again = cloud.run("put", "-b", "data", "-p", up, "--json").json()["Transfers"]
    assert [row["Status"] for row in again] == ["unchanged", "done"]


def test_a_terminal_shows_how_far_it_is(cloud: Cloud, tmp_path: Path):
    (tmp_path / "up").mkdir()
    for number in range(30):
        (tmp_path / "up" / str(number)).write_bytes(b"x" * 1000)
    cloud.ok("local", "start")
    shown = on_a_terminal(cloud, "put", "-b", "data", "-p", tmp_path / "up")
    assert "30/30 files" in shown
    assert "30 files copied (30.0 kB)" in shown
    assert "up/7 -> data/7" not in shown


def on_a_terminal(cloud: Cloud, *arguments: object) -> str:
    """What the command shows on a terminal of 100 columns."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "scar", "--local", *map(str, arguments)],
        env={
            **os.environ,
            "SCAR_CONFIG_FOLDER": str(cloud.home),
            "COLUMNS": "100",
            "TERM": "xterm",
        },
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError as exc:  # how Linux says that the other end is closed
        if exc.errno != errno.EIO:
            raise
    os.close(ours)
    assert process.wait(60) == 0, shown
    return shown.decode()
