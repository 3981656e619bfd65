"""The nodes of a job begin together and end together, whatever happens to one of them."""

import json
import os
import signal
import socket
import time

import pytest

from scar_supervisor import mnp_protocol as protocol
from scar_supervisor.mnp_protocol import Codec, job_key
from tests.conftest import missing
from tests.doubles import node_network
from tests.doubles.loopback_job import JOB_ID, SECRET, LoopbackJob
from tests.doubles.node_network import Network
from tests.doubles.supervised import processes_with

SLEEP = "#!/bin/sh\necho begun\nexec sleep 1000\n"
FAST = {"SCAR_MNP_HEARTBEAT_S": "0.3", "SCAR_MNP_LOSS_S": "1.2"}


@pytest.fixture
def job(tmp_path):
    jobs = []

    def job(count=2, **options):
        jobs.append(LoopbackJob(tmp_path / f"job{len(jobs)}", count, **options))
        return jobs[-1]

    yield job
    for one in jobs:
        one.close()


def _all(job, script, environment=None):
    return [job.start(index, script, environment) for index in range(job.count)]


def _codes(nodes):
    return [node.wait(40) for node in nodes]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("no-such-program", 127),
    ],
)
def test_the_jobs_exit_code_is_the_scripts_and_children_end_with_0(job, script, code):
    nodes = _all(job(3), f"#!/bin/sh\n{script}\n")
    assert _codes(nodes) == [code, 0, 0]
    assert "seen" not in nodes[1].log


def test_children_may_come_long_before_the_main_node(job):
    one = job()
    child = one.start(1, "#!/bin/sh\n")
    time.sleep(0.5)
    main = one.start(0, "#!/bin/sh\nscar-rsh node1 'echo here'\n")
    assert _codes([main, child]) == [0, 0]
    assert "here" in main.log


def test_a_job_of_one_node_needs_no_secret_and_opens_no_port(job):
    (main,) = _all(job(1, secret=""), "#!/bin/sh\ncat $SCAR_HOSTFILE; echo $SCAR_NUM_NODES\n")
    assert main.wait() == 0
    assert " slots=1\n1\n" in main.log
    assert "on port" not in main.log


def test_nodes_that_do_not_come_are_named_at_the_limit(job):
    one = job(4)
    environment = {"SCAR_MNP_JOIN_S": "1"}
    main, child = one.start(0, SLEEP, environment), one.start(2, SLEEP, environment)
    assert main.wait() == 111
    assert "nodes 1, 3 did not join in 1 s" in main.log
    assert "begun" not in main.log
    assert child.wait() == 0


def test_a_child_gives_up_when_there_is_no_main_node(job):
    child = job().start(1, SLEEP, {"SCAR_MNP_JOIN_S": "1"})
    assert child.wait() == 111
    assert "cannot be joined" in child.log


@pytest.mark.parametrize("secret", ["", "short"])
def test_without_a_secret_no_node_opens_a_port(job, secret):
    one = job(secret=secret)
    main = one.start(0, SLEEP)
    assert main.wait() == 114
    assert "no node may be trusted" in main.log


def test_a_child_with_another_secret_is_refused_and_says_so(job):
    one = job()
    main = one.start(0, SLEEP, {"SCAR_MNP_JOIN_S": "3"})
    one.secret = "t" * 43
    child = one.start(1, SLEEP)
    assert child.wait() == 114
    assert "refuses us" in child.log
    assert main.wait() == 111
    assert "does not know the job's secret" in main.log


def test_a_second_node_with_the_same_index_is_sent_away(job, tmp_path):
    one = job(3)
    main, child = one.start(0, SLEEP), one.start(1, SLEEP)
    main.wait_for("node 1 joined")
    one.directory = tmp_path / "twin"
    twin = one.start(1, SLEEP)
    assert twin.wait() == 113
    assert "node 1 is here already" in twin.log
    assert child.process.poll() is None


@pytest.mark.parametrize("node", [{}, {"index": 1}, {"index": 9}, []])
def test_a_node_that_describes_itself_wrongly_is_hung_up_on(job, node):
    one = job()
    main = one.start(0, "#!/bin/sh\necho hi\n")
    main.wait_for("waiting for")
    with socket.create_connection(("127.0.0.1", one.port), 5) as peer:
        codec = Codec(job_key(SECRET, JOB_ID), is_server=False)
        while not codec.authenticated:
            peer.sendall(codec.feed(peer.recv(100))[0])
        hello = protocol.packed({"node": node, "attempt": "1"})
        peer.sendall(codec.frame(protocol.HELLO, hello))
        while peer.recv(4096):
            continue
    child = one.start(1, "#!/bin/sh\n")
    assert _codes([main, child]) == [0, 0]


def test_a_lost_child_ends_the_job_with_the_end_of_its_log(job):
    main, child = _all(job(), SLEEP)
    main.wait_for("begun")
    time.sleep(1.1)  # the child's log is told once a second
    started = time.monotonic()
    child.process.kill()
    assert main.wait() == 112
    assert time.monotonic() - started < 10
    assert "node 1 (127.0.0.1) was lost: it closed the connection" in main.log
    assert "[1] " in main.log.partition("the end of the log of node 1:")[2]


def test_a_script_that_does_not_notice_a_lost_node_still_fails(job):
    script = "#!/bin/sh\ntrap 'exit 0' TERM\necho begun; while :; do sleep 0.05; done\n"
    main, child = _all(job(), script)
    main.wait_for("begun")
    child.process.kill()
    assert main.wait() == 112


def test_a_job_may_outlive_its_nodes(job):
    script = "#!/bin/sh\necho begun; while [ ! -e $HOME/go ]; do sleep 0.05; done\n"
    one = job(3)
    main, first, second = _all(one, script, {"SCAR_MNP_ON_NODE_LOSS": "continue"})
    main.wait_for("begun")
    first.process.kill()
    main.wait_for("was lost")
    (one.directory / "go").touch()
    assert _codes([main, second]) == [0, 0]


def test_a_child_whose_main_node_is_gone_ends_itself(job):
    main, child = _all(job(), SLEEP)
    main.wait_for("begun")
    main.process.kill()
    assert child.wait() == 113


def test_a_stopped_job_stops_its_script_and_never_counts_as_done(job):
    script = (
        "#!/bin/sh\ntrap 'echo ending; exit 0' TERM\necho begun; while :; do sleep 0.05; done\n"
    )
    main, child = _all(job(), script)
    main.wait_for("begun")
    main.process.send_signal(signal.SIGTERM)
    assert _codes([main, child]) == [143, 0]
    assert "ending" in main.log


def test_a_stopped_child_says_so(job):
    main, child = _all(job(), SLEEP)
    main.wait_for("begun")
    child.process.send_signal(signal.SIGTERM)
    assert _codes([main, child]) == [112, 143]


def test_what_a_script_leaves_on_other_nodes_is_ended(job):
    marker = f"88{os.getpid()}"
    script = f"#!/bin/sh\nscar-all sh -c 'setsid sleep {marker} >/dev/null 2>&1 & echo on'\n"
    nodes = _all(job(), script)
    assert _codes(nodes) == [0, 0]
    assert not processes_with(f"sleep\0{marker}")


def test_the_script_runs_on_all_nodes_when_it_should(job):
    script = "#!/bin/sh\necho node $SCAR_NODE_INDEX of $NNODES at $MASTER_ADDR; sleep $NODE_RANK\n"
    nodes = _all(job(3), script, {"SCAR_MNP_RUN_ON": "all"})
    assert _codes(nodes) == [0, 0, 0]
    for index, node in enumerate(nodes):
        assert f"node {index} of 3 at 127.0.0.1" in node.log


def test_a_script_that_fails_on_one_of_all_nodes_fails_the_job(job):
    script = (
        "#!/bin/sh\n[ $SCAR_NODE_INDEX = 1 ] && exit 5\n[ $SCAR_NODE_INDEX = 0 ] || sleep 100\n"
    )
    nodes = _all(job(3), script, {"SCAR_MNP_RUN_ON": "all"})
    assert _codes(nodes)[0] == 5


def test_a_child_that_cannot_stage_in_fails_the_job_at_once(job):
    event = {
        "Records": [
            {"eventSource": "aws:s3", "s3": {"bucket": {"name": "b"}, "object": {"key": "k"}}}
        ]
    }
    environment = {
        "SCAR_EVENT": json.dumps(event),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    one = job()
    main, child = one.start(0, "#!/bin/sh\n"), one.start(1, "#!/bin/sh\n", environment)
    assert child.wait(60) == 120
    assert main.wait() == 112
    assert "[1] " in main.log
    assert "StagingFailed" in main.log


def test_a_taken_port_is_told(job):
    one = job()
    with socket.create_server(("", one.port)):
        main = one.start(0, SLEEP)
        assert main.wait() == 121
    assert f"port {one.port}" in main.log


class TestMachines:
    """On machines with addresses of their own."""

    @pytest.fixture
    def network(self, tmp_path):
        if why := node_network.unusable():
            missing("namespaces", why)
        network = Network(3, tmp_path / "net")
        yield network
        network.close()

    def test_a_node_whose_cable_is_pulled_is_lost_on_both_sides(self, network):
        nodes = [network.start(index, SLEEP, FAST) for index in range(3)]
        nodes[0].wait_for("begun")
        network.cut(2)
        assert _codes(nodes) == [112, 0, 113]
        assert "node 2 (10.77.0.12) was lost: it has been silent for 1.2 s" in nodes[0].log
        assert network.processes_left() == []

    def test_every_node_stages_its_input_at_the_same_place(self, network):
        event = json.dumps({"body": "aGVsbG8=", "isBase64Encoded": True, "httpMethod": "POST"})
        script = "#!/bin/sh\nscar-all sh -c 'cat $INPUT_FILE_PATH; echo \" $INPUT_FILE_PATH\"'\n"
        nodes = [network.start(index, script, {"SCAR_EVENT": event}) for index in range(3)]
        assert _codes(nodes) == [0, 0, 0]
        lines = {line[3:] for line in nodes[0].log.splitlines() if line.startswith("[")}
        assert len(lines) == 1
        assert lines.pop().startswith(" hello /tmp/scar-11111111-2222")

    def test_the_secret_is_in_no_programs_environment(self, network):
        script = "#!/bin/sh\nscar-all env; env\n"
        nodes = [network.start(index, script) for index in range(3)]
        assert _codes(nodes) == [0, 0, 0]
        assert node_network.SECRET not in nodes[0].log
