"""The files of a multi-node job on one of its nodes, and what the machine says of its network."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import stat
import struct
import sys
from collections.abc import Mapping, Sequence

from scar_supervisor import contract, rsh
from scar_supervisor.faults import ConfigFault
from scar_supervisor.log import Log
from scar_supervisor.mnp_environment import Node, host_files
from scar_supervisor.program import SHELL

_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B  # linux/sockios.h
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from scar_supervisor.rsh import main; "
    "import os; os._exit(main(sys.argv[2:]))"
)


def prepare_directory(environ: Mapping[str, str]) -> str:
    """A directory for the job's files that is ours alone, at the same place on every node.

    Raises ConfigFault where none can be made.
    """
    temporary = os.path.join(environ.get("TMPDIR") or "/tmp", f"scar-mnp-{os.geteuid()}")  # noqa: S108
    chosen = environ.get(rsh.DIRECTORY_VARIABLE)
    tried = [chosen] if chosen else ["/run/scar/mnp", temporary]
    for path in tried:
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            found = os.lstat(path)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            os.chmod(path, 0o700)
        except OSError:
            continue
        return path
    raise ConfigFault(f"no private directory for the job's nodes: tried {', '.join(tried)}")


def publish(
    directory: str, nodes: Sequence[Node], key: bytes, has_shim: bool, log: Log
) -> list[str]:
    """Write key, table of nodes, host files and remote shell; the directories for PATH.

    Raises ConfigFault where they cannot be written.
    """
    table = json.dumps({"nodes": [node.as_json() for node in nodes]})
    files = {"key": key.hex(), "nodes.json": table, **host_files(nodes)}
    folders = []
    try:
        for name, text in files.items():
            _write(os.path.join(directory, name), text, 0o600)
        if not os.path.exists(SHELL):
            log.warning(f"the image has no {SHELL}: launchers cannot start commands on its nodes")
            return []
        folders = [_write_programs(directory, "bin", ("scar-rsh", "scar-all"))]
        if has_shim:
            folders.append(_write_programs(directory, "shim", ("ssh", "rsh")))
        _tame_intel_mpi()
    except OSError as exc:
        raise ConfigFault(f"{directory}: the job's files cannot be written: {exc}") from exc
    return folders


def find_interface(ip: str) -> tuple[str, str]:
    """(name, network as CIDR) of the interface with an address; empty where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]
                if socket.inet_ntoa(address) == ip:
                    mask = fcntl.ioctl(probe, _SIOCGIFNETMASK, request)[20:24]
                    return name, _cidr(address, mask)
            except OSError:
                continue  # it has no IPv4 address
    return "", ""


def own_ip() -> str:
    """This machine's address towards others; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 9))
            return str(probe.getsockname()[0])
        except OSError:  # no network but loopback
            return "127.0.0.1"


def _cidr(address: bytes, mask: bytes) -> str:
    network = bytes(a & m for a, m in zip(address, mask, strict=True))
    return f"{socket.inet_ntoa(network)}/{int.from_bytes(mask, 'big').bit_count()}"


def _write_programs(directory: str, folder: str, names: Sequence[str]) -> str:
    path = os.path.join(directory, folder)
    os.makedirs(path, mode=0o700, exist_ok=True)
    for name in names:
        _write(os.path.join(path, name), _program(directory, name), 0o700)
    return path


def _program(directory: str, name: str) -> str:
    """A shell script: launchers execute a file, and our Python may need its own loader.

    That loader must not load what LD_PRELOAD names for the user's programs.
    """
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    python: Sequence[str] = (sys.executable, "-I", "-S", "-B")
    if package_parent == contract.APP_DIR:
        python = contract.PYTHON_COMMAND
    words = shlex.join([*python, "-c", _START, package_parent, name])
    return (
        f"#!{SHELL}\n"
        f'if [ -n "$LD_PRELOAD" ]; then {rsh.PRELOAD_VARIABLE}="$LD_PRELOAD"; '
        f"export {rsh.PRELOAD_VARIABLE}; unset LD_PRELOAD; fi\n"
        f"{rsh.DIRECTORY_VARIABLE}={shlex.quote(directory)}; export {rsh.DIRECTORY_VARIABLE}\n"
        f'exec {words} "$@"\n'
    )


def _write(path: str, text: str, mode: int) -> None:
    partial = f"{path}.new"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.rename(partial, path)


def _tame_intel_mpi() -> None:
    """Intel's mpiexec would give every rank the main node's variables; only this stops it."""
    home = os.environ.get("HOME", "")
    path = os.path.join(home, ".mpiexec.conf")
    if home and os.access(home, os.W_OK) and not os.path.exists(path):
        _write(path, "-genvnone\n", 0o600)
