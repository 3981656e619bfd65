"""The project's own local cloud in a process of its own, for tests of what speaks AWS."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scar.aws.account import Account, Target, connect


@contextmanager
def local_cloud(data: Path, region: str = "eu-south-2") -> Iterator[Account]:
    """A cloud with its state in `data`, stopped at the end."""
    command = [sys.executable, "-m", "scar_local", "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready = json.loads(process.stdout.readline())
        yield connect(Target("local", ready["url"], None, region))
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
