"""An engine without containers: a command is a real process, with exactly the given variables."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from scar_local.engines import ContainerSpec, EngineError, Exit, NodeAddress


class JobProcess:
    """A running process group that stands for a container."""

    def __init__(self, process: subprocess.Popen[str], on_output: Callable[[str], None]) -> None:
        self._process = process
        self._reader = threading.Thread(target=self._read, args=(on_output,), daemon=True)
        self._reader.start()

    def _read(self, on_output: Callable[[str], None]) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            on_output(line.rstrip("\n"))

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join()
        return Exit(code if code >= 0 else 128 - code)

    def stop(self, grace_s: float = 0.0) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Loopback:
    """A network whose nodes are all here."""

    def __init__(self, count: int, endpoint: str) -> None:
        self.endpoint = endpoint
        self.nodes = [NodeAddress("lo", f"127.0.0.{10 + i}", f"n{i}") for i in range(count)]

    def close(self) -> None:
        return


@dataclass
class JobEngine:
    """Runs `spec.command`; knows every image but `missing:latest`. Remembers what it started."""

    name: str = "processes"
    specs: list[ContainerSpec] = field(default_factory=list)

    def open_network(self, image: str, count: int, endpoint: str) -> Loopback:
        if image == "lonely:latest":
            raise EngineError("no network can be made here")
        return Loopback(count, endpoint)

    def start(self, spec: ContainerSpec, on_output: Callable[[str], None]) -> JobProcess:
        if spec.image == "missing:latest":
            raise EngineError("missing:latest is not in the registry")
        self.specs.append(spec)
        process = subprocess.Popen(
            list(spec.command),
            env={"PATH": os.environ["PATH"], **spec.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return JobProcess(process, on_output)
