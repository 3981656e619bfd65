"""`torchrun` without arguments about the cluster, on machines made of namespaces."""

import pytest

from tests.conftest import missing
from tests.doubles import mpi, node_network
from tests.doubles.node_network import Network

pytestmark = pytest.mark.skipif(not mpi.everything(), reason="SCAR_TEST_MPI=all tries this")
LIMIT_S = 240
"""Nine processes load PyTorch."""

PROGRAM = """
import os, socket
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
names = [None] * dist.get_world_size()
dist.all_gather_object(names, socket.gethostname())
if dist.get_rank() == 0:
    print(f"{len(names)} ranks on {','.join(names)}, sum {total.item()}", flush=True)
dist.destroy_process_group()
"""
HOSTS = ",".join(f"ip-10-77-0-1{i}" for i in (0, 0, 1, 1, 2, 2))


@pytest.fixture
def network(tmp_path):
    if why := node_network.unusable():
        missing("namespaces", why)
    network = Network(3, tmp_path / "net")
    yield network
    network.close()


@pytest.mark.parametrize(
    ("command", "where"),
    [("torchrun reduce.py", "all"), ("scar-all torchrun reduce.py", "main")],
)
def test_torchrun_finds_the_nodes_by_itself(network, command, where):
    try:
        place = mpi.installed("torch==2.13.0", "numpy")
    except RuntimeError as exc:
        missing("mpi", str(exc))
    (place / "reduce.py").write_text(PROGRAM)
    environment = {"SCAR_MNP_RUN_ON": where}
    nodes = [network.start(i, mpi.a_script(place, command), environment) for i in range(3)]
    codes = [node.wait(LIMIT_S) for node in nodes]
    assert codes == [0, 0, 0], nodes[0].log
    assert f"6 ranks on {HOSTS}, sum 21" in nodes[0].log
    assert network.processes_left() == []
