"""`mpirun ./app` runs on all nodes, with real MPIs on machines made of namespaces, without ssh.

SCAR_TEST_MPI=all tries Intel MPI too, and more ways to launch and to fail.
"""

import signal
import time

import pytest

from tests.conftest import missing
from tests.doubles import mpi, node_network
from tests.doubles.node_network import Network

LIMIT_S = 60
ATTEMPTS = 2
"""Open MPI 5's launcher may hang at its end, over ssh too (open-mpi/ompi#12064)."""

long = pytest.mark.skipif(not mpi.everything(), reason="SCAR_TEST_MPI=all tries this")


@pytest.fixture(scope="module", params=mpi.chosen(), ids=lambda r: r.replace("==", "-"))
def place(request):
    try:
        return mpi.installed(request.param)
    except RuntimeError as exc:
        missing("mpi", str(exc))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    if why := node_network.unusable():
        missing("namespaces", why)
    network = Network(3, tmp_path_factory.mktemp("mpi") / "net")
    yield network
    network.close()


@pytest.fixture
def launch(network, place):
    def launch(command, environment=None, count=3):
        script = mpi.a_script(place, command)
        return [network.start(index, script, environment, count) for index in range(count)]

    yield launch
    network.stop_all()


@pytest.fixture
def finished(launch, network):
    """Run a command on all nodes to its end; the main node, its exit code and the children's."""

    def finished(command, environment=None, count=3):
        for _ in range(ATTEMPTS):
            guarded = f"timeout -k 5 {LIMIT_S // 3} {command}"
            nodes = launch(guarded, environment, count)
            codes = [node.wait(LIMIT_S) for node in nodes]
            if codes[0] != 124:
                return nodes[0], codes
        raise AssertionError(f"{command} did not end:\n{nodes[0].log}")

    return finished


def _hosts(log):
    lines = [line.split() for line in log.splitlines() if line.startswith("rank on ")]
    return sorted((words[2], words[3]) for words in lines)


def test_a_bare_mpirun_fills_all_slots_of_all_nodes(finished, network, place):
    main, codes = finished("mpirun python program.py")
    assert codes == [0, 0, 0], main.log
    assert "6 ranks, sum 21" in main.log
    assert _hosts(main.log) == [(f"ip-10-77-0-1{i}", str(i)) for i in (0, 0, 1, 1, 2, 2)]
    assert f"a b {place}" in main.log, "environment and directory of the script"
    assert network.processes_left() == []


def test_a_lost_node_fails_the_job_within_seconds(launch, network):
    nodes = launch("mpirun python program.py wait")
    nodes[0].wait_for("6 ranks", LIMIT_S)
    started = time.monotonic()
    network.signal(1, signal.SIGKILL)
    assert nodes[0].wait(LIMIT_S) == 112
    assert time.monotonic() - started < 20
    assert nodes[2].wait(LIMIT_S) == 0
    assert "node 1 (10.77.0.11) was lost" in nodes[0].log
    assert network.processes_left() == []


def test_a_stopped_job_stops_its_ranks_everywhere(launch, network):
    nodes = launch("mpirun python program.py wait")
    nodes[0].wait_for("6 ranks", LIMIT_S)
    network.signal(0, signal.SIGTERM)
    assert [node.wait(LIMIT_S) for node in nodes] == [143, 0, 0]
    assert network.processes_left() == []


def test_an_aborted_run_fails_with_its_code(finished, network):
    main, codes = finished("mpirun python program.py abort")
    assert codes[0] == 3, main.log
    assert codes[1:] == [0, 0]
    assert network.processes_left() == []


@long
def test_ranks_are_put_where_the_command_says(finished, place):
    each = "-ppn 1" if place.name == "impi-rt" else ""
    main, codes = finished(
        f'mpirun -np 2 {each} -host "$SCAR_MAIN_IP,10.77.0.12" python program.py'
    )
    assert codes == [0, 0, 0], main.log
    assert _hosts(main.log) == [("ip-10-77-0-10", "0"), ("ip-10-77-0-12", "2")]


@long
def test_ssh_alone_is_enough_for_a_launcher_that_knows_nothing_else(finished):
    names = "PRTE_MCA_plm_ssh_agent OMPI_MCA_plm_rsh_agent HYDRA_LAUNCHER HYDRA_LAUNCHER_EXEC"
    command = (
        f"env {' '.join('-u ' + n for n in names.split())} -u I_MPI_HYDRA_BOOTSTRAP "
        "-u I_MPI_HYDRA_BOOTSTRAP_EXEC mpirun python program.py"
    )
    main, codes = finished(command)
    assert codes == [0, 0, 0], main.log
    assert "6 ranks" in main.log


@long
def test_launchers_may_launch_from_node_to_node(finished):
    environment = {"PRTE_MCA_routed_radix": "1", "I_MPI_HYDRA_BRANCH_COUNT": "1"}
    main, codes = finished("mpirun python program.py", environment)
    assert codes == [0, 0, 0], main.log
    assert "6 ranks" in main.log


@long
def test_one_node_is_a_job_too(finished):
    main, codes = finished("mpirun python program.py", count=1)
    assert codes == [0], main.log
    assert "2 ranks, sum 3" in main.log


@long
def test_a_node_whose_cable_is_pulled_fails_the_job(launch, network):
    environment = {"SCAR_MNP_HEARTBEAT_S": "0.5", "SCAR_MNP_LOSS_S": "2"}
    nodes = launch("mpirun python program.py wait", environment)
    nodes[0].wait_for("6 ranks", LIMIT_S)
    network.cut(2)
    try:
        assert [node.wait(LIMIT_S) for node in nodes] == [112, 0, 113]
    finally:
        network.join(2)
    assert network.processes_left() == []


@long
def test_ten_launches_one_after_the_other_all_end(launch):
    guarded = "timeout -k 5 20 mpirun hostname >/dev/null || timeout -k 5 20 mpirun hostname"
    nodes = launch(f"for i in 1 2 3 4 5 6 7 8 9 10; do {guarded} || exit 9; done")
    assert [node.wait(120) for node in nodes] == [0, 0, 0], nodes[0].log
