"""The remote shell of multi-node jobs does what ssh does, over the job's own network."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scar_supervisor import mnp_protocol as protocol
from scar_supervisor.mnp_protocol import Codec, job_key
from tests.doubles.loopback_job import JOB_ID, SECRET, LoopbackJob
from tests.doubles.supervised import processes_with

LIMIT_S = 30


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    job = LoopbackJob(tmp_path_factory.mktemp("job"))
    try:
        main, child = job.start(0, "#!/bin/sh\nexec sleep 1000\n"), job.start(1, "#!/bin/sh\n")
        main.wait_for("the script begins")
        child.wait_for("nodes are ready")
        yield job
    finally:
        job.close()


@pytest.fixture
def rsh(job):
    """Run a command on node 1."""

    def rsh(*words, name="scar-rsh", host=("node1",), **options):
        return subprocess.run(
            [job.program(name), *host, *words],
            **{"capture_output": True, "timeout": LIMIT_S, "check": False, **options},
        )

    return rsh


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_commands(rsh, code):
    assert rsh(f"exit {code}").returncode == code


def test_a_command_that_a_signal_ended_ends_with_128_and_its_number(rsh):
    assert rsh("kill -9 $$").returncode == 137


def test_a_host_that_is_no_node_is_told_with_255(rsh):
    done = rsh("true", host=("elsewhere",))
    assert done.returncode == 255
    assert b"`elsewhere` is no node of this job" in done.stderr


def test_words_are_joined_and_given_to_a_shell_as_ssh_does(rsh):
    done = rsh("-c", "x", host=("-x", "-o", "A=b", "me@127.0.0.1", "echo"))
    assert done.stdout == b"-c x\n"
    assert rsh("echo 'a  b' | tr a c; echo $((1+1))").stdout == b"c  b\n2\n"


def test_output_and_errors_come_apart(rsh):
    done = rsh("echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_input_reaches_the_command_and_ends(rsh, tmp_path):
    assert rsh("cat", input=b"a\nb\n").stdout == b"a\nb\n"
    (tmp_path / "file").write_bytes(b"from a file")
    with open(tmp_path / "file", "rb") as file:
        assert rsh("cat", stdin=file).stdout == b"from a file"
    assert rsh("cat", stdin=subprocess.DEVNULL).stdout == b""
    assert rsh("cat", host=("-n", "node1"), input=b"unread").stdout == b""


def test_a_closed_stdin_does_not_become_the_connection(rsh, job):
    words = [job.program("scar-rsh"), "node1", "cat; echo done"]
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *words], capture_output=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_binary_data_goes_there_and_back_unchanged(rsh):
    data = os.urandom(1 << 20) * 50
    done = rsh("cat", input=data)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_a_command_that_stops_reading_still_gives_its_exit_code(rsh):
    assert rsh("head -c 10 >/dev/null; exit 3", input=bytes(20 << 20)).returncode == 3


def test_a_slow_reader_gets_everything(job):
    words = f"{job.program('scar-rsh')} -n node1 'head -c 5000000 /dev/zero' | (sleep 1; wc -c)"
    done = subprocess.run(["sh", "-c", words], capture_output=True, timeout=LIMIT_S, check=False)
    assert done.stdout.strip() == b"5000000"


def test_when_the_reader_goes_away_the_command_ends(job):
    marker = f"4{os.getpid()}"
    words = f"{job.program('scar-rsh')} -n node1 'yes {marker}' | head -n 1"
    done = subprocess.run(["sh", "-c", words], capture_output=True, timeout=LIMIT_S, check=False)
    assert done.stdout.strip() == marker.encode()
    _nothing_left(f"yes\0{marker}")


def test_a_process_in_the_background_does_not_hold_the_call(rsh):
    marker = f"77{os.getpid()}"
    started = time.monotonic()
    assert rsh(f"sleep {marker} & echo started").stdout == b"started\n"
    assert time.monotonic() - started < 20
    for pid in processes_with(f"sleep\0{marker}"):
        os.kill(pid, signal.SIGKILL)


def test_signals_reach_the_command_even_when_it_ignores_its_input(job):
    script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [job.program("scar-rsh"), "node1", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        os.set_blocking(process.stdin.fileno(), False)
        for _ in range(1000):  # far more than pipe and window take
            try:
                os.write(process.stdin.fileno(), bytes(65536))
            except BlockingIOError:
                time.sleep(0.0005)
        process.terminate()
        assert process.wait(LIMIT_S) == 9


def test_killing_the_caller_kills_what_it_called(job):
    marker = f"55{os.getpid()}"
    with subprocess.Popen(
        [job.program("scar-rsh"), "-n", "node1", f"echo on; sleep {marker} & wait"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"on\n"
        process.kill()
    _nothing_left(f"sleep\0{marker}")


def test_directory_and_environment_go_along_but_not_what_is_one_nodes_own(rsh, tmp_path):
    given = {
        **os.environ,
        "FLAG": "a 'b'\n\"c\"",
        "AWS_SESSION_TOKEN": "mine",
        "NODE_RANK": "0",
        "LD_PRELOAD": "",
    }
    tell = "import os, json; print(json.dumps([dict(os.environ), os.getcwd()]))"
    program = f"{sys.executable} -c '{tell}'"
    variables, directory = json.loads(rsh(program, cwd=tmp_path, env=given).stdout)
    assert directory == os.fspath(tmp_path)
    assert variables["FLAG"] == given["FLAG"]
    assert variables["AWS_BATCH_JOB_NODE_INDEX"] == "1"
    assert variables["NODE_RANK"] == "1"
    assert not {"AWS_SESSION_TOKEN", "SCAR_MNP_SECRET"} & variables.keys()


def test_the_environment_stays_here_when_that_is_wanted(rsh):
    given = {**os.environ, "FLAG": "x", "SCAR_RSH_ENV": "none"}
    assert rsh("echo ${FLAG-unset}", env=given).stdout == b"unset\n"


def test_a_directory_that_is_missing_there_is_made(rsh, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = rsh("rmdir ../gone; true", cwd=gone)
    assert done.returncode == 0
    assert not gone.exists()


def test_a_preloaded_library_is_the_commands_not_ours(rsh):
    given = {**os.environ, "LD_PRELOAD": "libm.so.6"}
    assert rsh('echo "$LD_PRELOAD"', env=given).stdout == b"libm.so.6\n"


def test_many_calls_at_once_are_all_answered(job):
    calls = [
        subprocess.Popen(
            [job.program("scar-rsh"), "-n", "node1", f"echo {number}"], stdout=subprocess.PIPE
        )
        for number in range(40)
    ]
    outputs = [call.communicate(timeout=LIMIT_S)[0] for call in calls]
    assert outputs == [f"{number}\n".encode() for number in range(40)]


def test_scar_all_runs_on_every_node_and_says_where_lines_come_from(rsh):
    done = rsh("sh", "-c", "echo $SCAR_NODE_INDEX; exit $SCAR_NODE_INDEX", name="scar-all", host=())
    assert sorted(done.stdout.splitlines()) == [b"[0] 0", b"[1] 1"]
    assert done.returncode == 1


def test_scar_all_passes_a_signal_on(job):
    marker = f"66{os.getpid()}"
    with subprocess.Popen(
        [job.program("scar-all"), "sh", "-c", f"echo on; exec sleep {marker}"],
        stdout=subprocess.PIPE,
    ) as process:
        assert {process.stdout.readline() for _ in "ab"} == {b"[0] on\n", b"[1] on\n"}
        process.terminate()
        assert process.wait(LIMIT_S) == 143
    _nothing_left(f"sleep\0{marker}")


def test_programs_that_call_ssh_get_our_shell(job):
    done = subprocess.run(
        [job.files(0) / "shim" / "ssh", "-o", "StrictHostKeyChecking=no", "node1", "echo hi"],
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stdout == b"hi\n"


def test_the_jobs_files_are_private(job):
    assert job.files(0).stat().st_mode & 0o777 == 0o700
    assert (job.files(0) / "key").stat().st_mode & 0o777 == 0o600


class TestStrangers:
    """Whatever comes to the port, the node goes on serving."""

    @pytest.fixture(autouse=True)
    def _still_serving(self, rsh):
        yield
        assert rsh("echo alive").stdout == b"alive\n"

    @pytest.fixture
    def address(self, job):
        table = json.loads((job.files(0) / "nodes.json").read_text())["nodes"]
        return "127.0.0.1", next(node["port"] for node in table if node["index"] == 1)

    @pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4, bytes(5000)])
    def test_garbage_is_hung_up_on(self, address, said):
        with socket.create_connection(address, 5) as peer:
            peer.sendall(said)
            _ends(peer)

    def test_another_jobs_key_is_hung_up_on(self, address):
        with socket.create_connection(address, 5) as peer:
            codec = Codec(job_key("t" * 43, JOB_ID), is_server=False)
            peer.sendall(codec.feed(peer.recv(100))[0])
            _ends(peer)

    @pytest.mark.parametrize(
        ("kind", "payload"),
        [
            (protocol.EXEC, b"{"),
            (protocol.EXEC, b"[]"),
            (protocol.EXEC, b'{"command": 1, "variables": {}, "directory": "/"}'),
            (protocol.EXEC, b'{"command": "x", "variables": {"a": 1}, "directory": "/"}'),
            (protocol.HELLO, b"{}"),
            (protocol.STDIN, b"x"),
            (99, b""),
        ],
    )
    def test_nonsense_from_a_node_is_hung_up_on(self, address, kind, payload):
        with _authenticated(address) as (peer, codec):
            peer.sendall(codec.frame(kind, payload))
            _ends(peer)

    def test_a_node_that_sends_more_input_than_it_may_is_hung_up_on(self, address):
        with _authenticated(address) as (peer, codec):
            request = {"command": "sleep 100", "variables": {}, "directory": "/"}
            peer.sendall(codec.frame(protocol.EXEC, protocol.packed(request)))
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                peer.sendall(
                    b"".join(codec.frame(protocol.STDIN, bytes(60_000)) for _ in range(2000))
                )

    def test_many_silent_connections_do_not_keep_others_out(self, address):
        silent = [socket.create_connection(address, 5) for _ in range(100)]
        for peer in silent:
            peer.close()


class _authenticated:
    def __init__(self, address):
        self._peer = socket.create_connection(address, 5)

    def __enter__(self):
        codec = Codec(job_key(SECRET, JOB_ID), is_server=False)
        while not codec.authenticated:
            self._peer.sendall(codec.feed(self._peer.recv(100))[0])
        return self._peer, codec

    def __exit__(self, *_):
        self._peer.close()


def _ends(peer):
    peer.settimeout(8)
    try:
        while peer.recv(4096):
            continue
    except ConnectionResetError:
        return


def _nothing_left(marker):
    limit = time.monotonic() + 10
    while processes_with(marker):
        assert time.monotonic() < limit, [
            Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_with(marker)
        ]
        time.sleep(0.02)
