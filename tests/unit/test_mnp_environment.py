"""What a node's programs are told, and what a remote command takes along."""

import pytest

from scar_supervisor import rsh
from scar_supervisor.faults import ConfigFault
from scar_supervisor.mnp_environment import (
    Node,
    Place,
    host_files,
    parse_node,
    variables,
    with_defaults,
)
from scar_supervisor.mnp_protocol import Refused
from scar_supervisor.nodes import parse_settings

PLACE = Place("/run/scar/mnp", is_root=True)


def a_node(index=0, **changes):
    fields = {
        "ip": f"10.0.0.{index + 1}",
        "port": 7470,
        "slots": 2,
        "hostname": f"host{index}.internal",
        "interface": "eth0",
        "network": "10.0.0.0/24",
    }
    return Node(**{"index": index, **fields, **changes})


NODES = [a_node(2), a_node(0), a_node(1, slots=4)]
"""Node 2 is the main node."""


def test_host_files_are_in_each_launchers_form_main_node_first():
    assert host_files(NODES) == {
        "hosts": "10.0.0.3\n10.0.0.1\n10.0.0.2\n",
        "hostfile": "10.0.0.3 slots=2\n10.0.0.1 slots=2\n10.0.0.2 slots=4\n",
        "machinefile": "10.0.0.3:2\n10.0.0.1:2\n10.0.0.2:4\n",
    }


def test_scripts_learn_who_they_are_and_where_the_others_are():
    found = variables(NODES, 1, PLACE)
    assert found["SCAR_NODE_INDEX"] == "1"
    assert found["SCAR_NUM_NODES"] == "3"
    assert found["SCAR_NUM_SLOTS"] == "8"
    assert found["SCAR_NODE_IP"] == "10.0.0.2"
    assert found["SCAR_MAIN_IP"] == found["MASTER_ADDR"] == "10.0.0.3"
    assert found["SCAR_NODE_IPS"] == "10.0.0.3,10.0.0.1,10.0.0.2"
    assert found["SCAR_HOSTFILE"] == "/run/scar/mnp/hostfile"


def test_ranks_of_nodes_begin_at_the_main_node_as_torchrun_and_jax_need_it():
    ranks = [variables(NODES, index, PLACE)["NODE_RANK"] for index in (2, 0, 1)]
    assert ranks == ["0", "1", "2"]
    assert variables(NODES, 2, PLACE)["JAX_PROCESS_ID"] == "0"
    assert variables(NODES, 1, PLACE)["PET_NPROC_PER_NODE"] == "4"


def test_what_would_change_programs_that_do_not_want_it_is_not_set():
    found = variables(NODES, 0, PLACE)
    never = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "TF_CONFIG", "RAY_ADDRESS"}
    assert not never & found.keys()
    assert not [name for name in found if name.startswith("SLURM")]


def test_only_root_is_told_that_mpi_may_run_as_root():
    assert variables(NODES, 0, PLACE)["PRTE_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in variables(NODES, 0, Place("/x", is_root=False))


def test_networks_are_the_union_of_all_nodes():
    nodes = [a_node(0), a_node(1, network="10.0.1.0/24")]
    assert variables(nodes, 0, PLACE)["OMPI_MCA_btl_tcp_if_include"] == "10.0.0.0/24,10.0.1.0/24"
    assert "PRTE_MCA_prte_if_include" not in variables([a_node(network="")], 0, PLACE)


def test_an_interface_is_named_only_when_it_has_one_name_everywhere():
    assert variables(NODES, 0, PLACE)["NCCL_SOCKET_IFNAME"] == "eth0"
    mixed = [a_node(0), a_node(1, interface="ens5")]
    assert "GLOO_SOCKET_IFNAME" not in variables(mixed, 0, PLACE)
    assert "HYDRA_IFACE" not in variables([a_node(interface="")], 0, PLACE)


def test_ucx_chooses_for_itself_where_there_is_infiniband():
    assert "UCX_NET_DEVICES" in variables(NODES, 0, PLACE)
    assert "UCX_NET_DEVICES" not in variables(NODES, 0, Place("/x", True, has_infiniband=True))


def test_what_the_user_has_set_stays_and_our_directories_come_first():
    found = with_defaults(
        {"HYDRA_IFACE": "mine", "PATH": "/a"}, {"HYDRA_IFACE": "x", "B": "1"}, "/p"
    )
    assert found == {"HYDRA_IFACE": "mine", "B": "1", "PATH": "/p:/a"}


@pytest.mark.parametrize(
    "changes",
    [
        {"index": 3},
        {"index": -1},
        {"port": 0},
        {"slots": 0},
        {"ip": "1.2.3.4 slots=9"},
        {"hostname": "a\nb"},
        {"slots": "2"},
    ],
)
def test_a_node_that_cannot_be_is_refused(changes):
    with pytest.raises(Refused):
        parse_node({**a_node().as_json(), **changes}, 3)
    assert parse_node(a_node().as_json(), 3) == a_node()


def test_a_remote_command_takes_along_what_is_not_one_nodes_own():
    environ = {
        "OMP_NUM_THREADS": "3",
        "LINES": "a\nb",
        "SCAR_MNP_DIR": "/run/scar/mnp",
        "SCAR_MNP_SECRET": "s",
        "AWS_BATCH_JOB_NODE_INDEX": "0",
        "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.1",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_SESSION_TOKEN": "x",
        "ECS_CONTAINER_METADATA_URI_V4": "x",
        "PMI_RANK": "0",
        "OMPI_COMM_WORLD_RANK": "0",
        "NODE_RANK": "0",
    }
    assert set(rsh.forwarded(environ)) == {"OMP_NUM_THREADS", "LINES", "SCAR_MNP_DIR"}


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        (["h", "ls", "-l"], ("h", "ls -l", True)),
        (["-x", "-o", "BatchMode=yes", "me@h", "true"], ("h", "true", True)),
        (["-n", "-p", "22", "h", "a  b"], ("h", "a  b", False)),
        (["-oBatchMode=yes", "--", "h", "x"], ("h", "x", True)),
    ],
)
def test_command_lines_for_ssh_are_understood(words, parsed):
    assert rsh.parse_ssh(words) == parsed


@pytest.mark.parametrize("words", [[], ["h"], ["-n"], ["-o", "x"]])
def test_a_host_and_a_command_are_needed(words):
    with pytest.raises(ValueError, match="host and a command"):
        rsh.parse_ssh(words)


@pytest.mark.parametrize("name", ["10.0.0.2", "host1", "host1.internal", "node1", "1"])
def test_a_node_is_found_by_each_of_its_names(name):
    assert rsh.find_node([node.as_json() for node in NODES], name)["index"] == 1


def test_a_host_that_is_no_node_is_refused():
    with pytest.raises(LookupError, match="`elsewhere` is no node"):
        rsh.find_node([], "elsewhere")


BATCH = {
    "AWS_BATCH_JOB_ID": "ab12#1",
    "AWS_BATCH_JOB_NODE_INDEX": "1",
    "AWS_BATCH_JOB_NUM_NODES": "3",
    "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
    "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.1",
}


def test_settings_are_batchs_for_the_nodes_and_the_users_for_the_rest():
    user = {"SCAR_MNP_SLOTS": "8", "SCAR_MNP_RUN_ON": "all", "SCAR_MNP_ON_NODE_LOSS": "continue"}
    settings = parse_settings(BATCH, user)
    assert (settings.index, settings.count, settings.main) == (1, 3, 0)
    assert (settings.slots, settings.runs_everywhere, settings.outlives_nodes) == (8, True, True)
    assert settings.scratch_name == "scar-ab12"


@pytest.mark.parametrize(
    ("batch", "user", "message"),
    [
        ({"AWS_BATCH_JOB_NODE_INDEX": "3"}, {}, "not both among 3 nodes"),
        ({"AWS_BATCH_JOB_MAIN_NODE_INDEX": "x"}, {}, "no number"),
        ({"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": ""}, {}, "not set on a child"),
        ({}, {"SCAR_MNP_RUN_ON": "children"}, "it may be main or all"),
        ({}, {"SCAR_MNP_JOIN_S": "soon"}, "no number"),
    ],
)
def test_settings_that_describe_no_node_are_told(batch, user, message):
    with pytest.raises(ConfigFault, match=message):
        parse_settings({**BATCH, **batch}, user)
