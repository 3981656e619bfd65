"""What the programs of a multi-node job are told: host files and variables. Pure.

Launchers find the remote shell and the hosts by variables of their own, and every library must be
told which network reaches the other nodes: a task on AWS also has an interface that reaches none
(`ecs-eth0`). What the user has set is never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scar_supervisor.mnp_protocol import Refused, packed, unpacked
from scar_supervisor.program import DEFAULT_PATH

TORCH_PORT, JAX_PORT = 29500, 29400


@dataclass(frozen=True)
class Node:
    """One node as the others see it."""

    index: int
    ip: str
    port: int
    slots: int
    hostname: str
    interface: str = ""
    """Name of the interface that has `ip`; empty where it is not known."""
    network: str = ""
    """Its network as CIDR; empty where it is not known."""

    def as_json(self) -> dict[str, Any]:
        """For a payload or file."""
        return asdict(self)


def parse_node(data: object, count: int) -> Node:
    """A node that another one described. Raises Refused where that cannot be."""
    if not isinstance(data, dict):
        raise Refused("a node is no JSON object")
    fields = {name: int for name in ("index", "port", "slots")}
    texts = {name: str for name in ("ip", "hostname", "interface", "network")}
    node = Node(**unpacked(packed(data), {**fields, **texts}))
    if not 0 <= node.index < count or not 0 < node.port < 65536 or not 0 < node.slots < 100_000:
        raise Refused(f"node {node.index} of {count}, port {node.port}, cannot be")
    if any(character in node.ip + node.hostname for character in " \t\n:#"):
        raise Refused(f"the name of node {node.index} cannot stand in a host file")
    return node


def host_files(nodes: Sequence[Node]) -> dict[str, str]:
    """Name and text of the files that launchers read, main node first as `nodes` is."""
    return {
        "hosts": "".join(f"{node.ip}\n" for node in nodes),
        "hostfile": "".join(f"{node.ip} slots={node.slots}\n" for node in nodes),
        "machinefile": "".join(f"{node.ip}:{node.slots}\n" for node in nodes),
    }


@dataclass(frozen=True)
class Place:
    """Where a process of the job runs."""

    directory: str
    """With the host files and the remote shell."""
    is_root: bool
    has_infiniband: bool = False


def variables(nodes: Sequence[Node], index: int, place: Place) -> dict[str, str]:
    """All variables of the programs on node `index`; the main node is the first of `nodes`."""
    me = next(node for node in nodes if node.index == index)
    found = _for_scripts(nodes, me, place) | _for_launchers(place) | _for_learning(nodes, me)
    if place.is_root:
        for prefix in ("OMPI", "PRTE"):
            found[f"{prefix}_ALLOW_RUN_AS_ROOT"] = "1"
            found[f"{prefix}_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return found | _for_networks(nodes, place)


def _for_scripts(nodes: Sequence[Node], me: Node, place: Place) -> dict[str, str]:
    return {
        "SCAR_MNP_DIR": place.directory,
        "SCAR_NODE_INDEX": str(me.index),
        "SCAR_NUM_NODES": str(len(nodes)),
        "SCAR_NODE_IP": me.ip,
        "SCAR_MAIN_IP": nodes[0].ip,
        "SCAR_NODE_IPS": ",".join(node.ip for node in nodes),
        "SCAR_NUM_SLOTS": str(sum(node.slots for node in nodes)),
        "SCAR_HOSTFILE": f"{place.directory}/hostfile",
        "SCAR_MACHINEFILE": f"{place.directory}/machinefile",
    }


def _for_launchers(place: Place) -> dict[str, str]:
    agent = f"{place.directory}/bin/scar-rsh"
    hostfile, machinefile = f"{place.directory}/hostfile", f"{place.directory}/machinefile"
    return {
        # Open MPI up to 4
        "OMPI_MCA_plm_rsh_agent": agent,
        "OMPI_MCA_plm_rsh_disable_qrsh": "1",
        "OMPI_MCA_orte_default_hostfile": hostfile,
        # Open MPI 5
        "PRTE_MCA_plm_ssh_agent": agent,
        "PRTE_MCA_prte_default_hostfile": hostfile,
        # MPICH. The remote shell carries the environment, without what belongs to one node only.
        "HYDRA_LAUNCHER": "rsh",
        "HYDRA_LAUNCHER_EXEC": agent,
        "HYDRA_HOST_FILE": machinefile,
        "HYDRA_ENV": "none",
        # Intel MPI
        "I_MPI_HYDRA_BOOTSTRAP": "rsh",
        "I_MPI_HYDRA_BOOTSTRAP_EXEC": agent,
        "I_MPI_HYDRA_HOST_FILE": machinefile,
    }


def _for_learning(nodes: Sequence[Node], me: Node) -> dict[str, str]:
    """PyTorch and JAX. Not RANK and WORLD_SIZE: those are a process's, and torchrun's to set."""
    main, count, rank = nodes[0].ip, str(len(nodes)), str(nodes.index(me))
    return {
        "MASTER_ADDR": main,
        "MASTER_PORT": str(TORCH_PORT),
        "NNODES": count,
        "NODE_RANK": rank,
        "PET_NNODES": count,
        "PET_NODE_RANK": rank,
        "PET_MASTER_ADDR": main,
        "PET_MASTER_PORT": str(TORCH_PORT),
        "PET_NPROC_PER_NODE": str(me.slots),
        "JAX_COORDINATOR_ADDRESS": f"{main}:{JAX_PORT}",
        "JAX_NUM_PROCESSES": count,
        "JAX_PROCESS_ID": rank,
    }


def _for_networks(nodes: Sequence[Node], place: Place) -> dict[str, str]:
    found = {}
    networks = ",".join(sorted({node.network for node in nodes if node.network}))
    if networks:
        for name in ("OMPI_MCA_btl_tcp", "OMPI_MCA_oob_tcp", "PRTE_MCA_prte"):
            found[f"{name}_if_include"] = networks
    names = {node.interface for node in nodes}
    if len(names) == 1 and (interface := names.pop()):
        text = """
            HYDRA_IFACE I_MPI_HYDRA_IFACE FI_TCP_IFACE FI_SOCKETS_IFACE
            NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME TP_SOCKET_IFNAME
        """
        found |= dict.fromkeys(text.split(), interface)
        if not place.has_infiniband:
            found["UCX_NET_DEVICES"] = interface
    return found


def with_defaults(environ: Mapping[str, str], more: Mapping[str, str], path: str) -> dict[str, str]:
    """`environ`, with what it does not set of `more`, and with directories before its PATH."""
    found = {**more, **environ}
    found["PATH"] = ":".join(part for part in (path, found.get("PATH", DEFAULT_PATH)) if part)
    return found
