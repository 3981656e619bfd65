"""Nodes as AWS Batch gives them to a job: machines of their own, made of Linux namespaces.

Each has an address on a network of the job's, private /tmp, /run and /dev/shm, process ids of its
own, and a second interface as ECS tasks have (`ecs-eth0`), which reaches no other node. Needs root.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from scar_supervisor import contract
from tests.doubles.supervised import SOURCES, Supervised, a_config

SECRET = "s" * 43
_COUNTER = itertools.count()
_ROOT = Path(__file__).resolve().parents[2]
_CHECKOUT = str(_ROOT) if _ROOT.is_relative_to("/tmp") else ""
"""This checkout, where the private /tmp of a node would hide it: its interpreter may be in it."""
_MACHINE = """
set -e
mount --make-rprivate /
hostname "$1"
for place in /tmp /run /dev/shm; do
  [ -d $place ] || mkdir $place
done
mount --bind "$2" /mnt
[ -z "$3" ] || mount --bind "$3" /media
mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /dev/shm
[ -z "$3" ] || { mkdir -p "$3"; mount --move /media "$3"; }
mkdir -p "$2"; mount --move /mnt "$2"
shift 3
exec "$@"
"""


def unusable() -> str:
    """Why nodes cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "`ip` (package iproute2) and `unshare` are needed"
    name = f"scar-{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces cannot be made: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


class Network:
    """A network of `count` machines; the bridge is in a namespace too, so nothing leaves it."""

    def __init__(self, count: int, directory: Path) -> None:
        self.directory = directory
        self.addresses = [f"10.77.0.{10 + i}" for i in range(count)]
        self._prefix = f"scar-{os.getpid()}-{next(_COUNTER)}"
        self._processes: list[Supervised] = []
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "br0", "up")
        for i in range(count):
            self._add(i)

    @property
    def _bridge(self) -> str:
        return f"{self._prefix}-br"

    def _space(self, index: int) -> str:
        return f"{self._prefix}-{index}"

    def _add(self, i: int) -> None:
        space, port = self._space(i), f"port{i}"
        _ip("netns", "add", space)
        _ip(
            *("-n", self._bridge, "link", "add", port, "type", "veth"),
            *("peer", "name", "eth0", "netns", space),
        )
        _ip("-n", self._bridge, "link", "set", port, "master", "br0", "up")
        for name, address in (("lo", None), ("eth0", f"{self.addresses[i]}/24")):
            if address:
                _ip("-n", space, "addr", "add", address, "dev", name)
            _ip("-n", space, "link", "set", name, "up")
        _ip(
            *("-n", space, "link", "add", "ecs-eth0", "type", "veth"),
            *("peer", "name", "ecs-peer"),
        )
        _ip("-n", space, "addr", "add", f"169.254.172.{2 + i}/22", "dev", "ecs-eth0")
        for name in ("ecs-eth0", "ecs-peer"):
            _ip("-n", space, "link", "set", name, "up")

    def cut(self, index: int) -> None:
        """The node's cable is pulled: packets are lost, connections are not closed."""
        _ip("-n", self._bridge, "link", "set", f"port{index}", "down")

    def join(self, index: int) -> None:
        """The cable is back."""
        _ip("-n", self._bridge, "link", "set", f"port{index}", "up")

    def start(
        self,
        index: int,
        script: str,
        environment: Mapping[str, str] | None = None,
        count: int | None = None,
        **config: object,
    ) -> Supervised:
        """Start the supervisor on a node, as its first process."""
        directory = self.directory / f"node{index}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        command = (
            *("ip", "netns", "exec", self._space(index)),
            *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
            *("--mount-proc", "sh", "-c", _MACHINE, "sh"),
            *(f"ip-10-77-0-{10 + index}", str(self.directory.parent), _CHECKOUT),
            *(sys.executable, "-I", "-S", "-B", "-c"),
            "import sys; sys.path.insert(0, sys.argv.pop(1)); "
            "from scar_supervisor.__main__ import main; sys.exit(main())",
            str(SOURCES),
        )
        started = Supervised(
            directory,
            a_config(**config),
            script,
            {**self.variables(index, count), **(environment or {})},
            command,
        )
        self._processes.append(started)
        return started

    def variables(self, index: int, count: int | None = None) -> dict[str, str]:
        """What Batch tells a node, and the secret."""
        found = {
            "AWS_BATCH_JOB_ID": f"11111111-2222-3333-4444-555555555555#{index}",
            "AWS_BATCH_JOB_ATTEMPT": "1",
            "AWS_BATCH_JOB_NODE_INDEX": str(index),
            contract.NODE_COUNT_VARIABLE: str(count or len(self.addresses)),
            "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
            contract.MNP_SECRET_VARIABLE: SECRET,
            contract.EVENT_VARIABLE: json.dumps({}),
            "SCAR_MNP_SLOTS": "2",
            "HOME": "/tmp",
            "TMPDIR": "/tmp",
        }
        if index:
            found["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = self.addresses[0]
        return found

    def signal(self, index: int, number: int) -> None:
        """Send a signal to the node's first process, its supervisor."""
        for pid in self._pids(index):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                status = Path(f"/proc/{pid}/status").read_text()
                if re.search(r"^NSpid:.*\t1$", status, re.MULTILINE):
                    os.kill(pid, number)

    def _pids(self, index: int) -> list[int]:
        listed = subprocess.run(
            ["ip", "netns", "pids", self._space(index)], capture_output=True, text=True
        )
        return [int(pid) for pid in listed.stdout.split()]

    def stop_all(self) -> None:
        """Kill what still runs."""
        for process in self._processes:
            process.close()
        self._processes.clear()

    def processes_left(self) -> list[str]:
        """Command lines of what still runs on the nodes."""
        found = []
        for index in range(len(self.addresses)):
            for pid in self._pids(index):
                try:
                    found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
                except OSError:
                    continue
        return found

    def close(self) -> None:
        """Stop everything and remove the network."""
        self.stop_all()
        for index in range(len(self.addresses)):
            _ip("netns", "del", self._space(index))
        _ip("netns", "del", self._bridge)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
