"""A job of two nodes on this machine's loopback: no root, no network of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from scar_supervisor import contract
from tests.doubles.supervised import Supervised, a_config

SECRET = "s" * 43
JOB_ID = "11111111-2222-3333-4444-555555555555"


class LoopbackJob:
    """Nodes 0 (main) and up; each has files of its own."""

    def __init__(self, directory: Path, count: int = 2, secret: str = SECRET) -> None:
        self.directory, self.count, self.secret = directory, count, secret
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.started: list[Supervised] = []

    def start(
        self, index: int, script: str, environment: Mapping[str, str] | None = None
    ) -> Supervised:
        variables = {
            "AWS_BATCH_JOB_ID": f"{JOB_ID}#{index}",
            "AWS_BATCH_JOB_NODE_INDEX": str(index),
            contract.NODE_COUNT_VARIABLE: str(self.count),
            "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
            contract.MNP_SECRET_VARIABLE: self.secret,
            contract.EVENT_VARIABLE: "{}",
            "SCAR_MNP_PORT": str(self.port),
            "SCAR_MNP_DIR": str(self.files(index)),
            "SCAR_MNP_SLOTS": "1",
            "HOME": str(self.directory),
        }
        if index:
            variables["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = "127.0.0.1"
        process = Supervised(
            self.directory / f"node{index}", a_config(), script, variables | dict(environment or {})
        )
        self.started.append(process)
        return process

    def files(self, index: int) -> Path:
        """The node's private directory."""
        return self.directory / f"files{index}"

    def program(self, name: str) -> str:
        """`scar-rsh` or `scar-all`, as the main node's script has it."""
        return os.fspath(self.files(0) / "bin" / name)

    def close(self) -> None:
        for process in self.started:
            process.close()
