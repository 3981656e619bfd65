"""An engine that runs a Python program as a plain process: no images, no isolation."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from scar_local.engines import ContainerSpec, EngineError, Exit


class ProcessEngine:
    """`programs` says which program each image URI stands for; another URI is an EngineError."""

    name = "process"

    def __init__(self, programs: Mapping[str, Path]) -> None:
        self.programs = dict(programs)
        self.started: list[ContainerSpec] = []

    def start(self, spec: ContainerSpec, on_output: Callable[[str], None]) -> RunningProcess:
        program = self.programs.get(spec.image)
        if program is None:
            raise EngineError(f"CannotPullContainerError: no such image: {spec.image}")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(program), *spec.command],
            env={"PATH": os.defpath, **spec.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.started.append(spec)
        return RunningProcess(process, on_output)


class RunningProcess:
    def __init__(self, process: subprocess.Popen[str], on_output: Callable[[str], None]) -> None:
        self._process = process
        self._reader = threading.Thread(target=self._read, args=(on_output,), daemon=True)
        self._reader.start()

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join()
        return Exit(128 - code if code < 0 else code)

    def stop(self, grace_s: float = 0.0) -> None:
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended in this moment
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)

    def _read(self, on_output: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                on_output(line)
