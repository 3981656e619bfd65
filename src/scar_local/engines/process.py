"""The image `host` as a plain process, for machines where bubblewrap does not work.

Nothing is hidden from it and nothing is protected: it has the rights of the user. Its TMPDIR is its
own. It is ended with all its descendants, found by a variable in their environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from scar_local.engines import ContainerSpec, EngineError, Exit, Running
from scar_local.engines.limits import OOM_REASON, Group
from scar_local.engines.networks import JobNetwork
from scar_local.engines.rootfs import remove_tree
from scar_local.engines.runner import Probe, Shared, clear_away
from scar_local.engines.settings import host_settings, is_host_image
from scar_local.engines.spawn import Start, exit_code, pass_lines
from scar_local.image_store import StoredImage

MARK = "SCAR_LOCAL_CONTAINER"
"""Variable of every process of a container: the data directory and the container's own."""

_PROC = Path("/proc")
_KILL_ROUNDS = 20
_KILL_WAIT_S = 0.01


class HostProcess:
    """Runs the image `host` only."""

    name = "process"

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def probe(self) -> Probe:
        """A process can always be started; what it lacks is said."""
        return Probe(
            self.name, True, "functions of image `host` run unprotected, as plain processes"
        )

    def run(
        self, spec: ContainerSpec, image: StoredImage, on_output: Callable[[str], None]
    ) -> Running:
        """Start the process. Raises EngineError."""
        if not is_host_image(image.config):
            raise EngineError("only the image `host` can run as a plain process")
        layer = self._shared.roots.borrow(image.layers, image.layer_digests)
        try:
            return self._run(spec, layer, on_output)
        except BaseException:
            self._shared.roots.give_back(layer)
            raise

    def open_network(self, count: int, endpoint: str) -> JobNetwork:
        """Never: a plain process has the machine's address. Raises EngineError."""
        raise EngineError(
            "multi-node jobs need an address for every node, which plain processes have not; "
            "install bubblewrap and run the local cloud as root"
        )

    def _run(self, spec: ContainerSpec, layer: Path, on_output: Callable[[str], None]) -> Running:
        directory = self._shared.scratch / uuid.uuid4().hex
        directory.mkdir(parents=True)
        settings = host_settings(spec, layer, self._shared.package_parent())
        private = {"HOME": str(directory), "TMPDIR": str(directory)}
        mark = f"{self._shared.scratch}:{directory.name}"
        environment = {**settings.environment, **private, **spec.environment, MARK: mark}
        settings = replace(settings, environment=environment, directory=str(directory))
        try:
            group = self._shared.limits().group(spec)
            start = Start(settings.argv, settings.environment, settings.directory)
            process = self._shared.spawner.spawn(start)
            group.enter(process.pid)
        except (OSError, ValueError) as exc:
            remove_tree(directory)
            raise EngineError(f"process cannot be started: {exc}") from exc

        def clear() -> None:
            clear_away(
                lambda: remove_tree(directory),
                lambda: self._shared.roots.give_back(layer),
            )

        container = _Process(process, group, clear, mark)
        container.begin(spec.name, on_output)
        return container

    def sweep(self) -> None:
        """End what an earlier run of this local cloud left running."""
        _kill(f"{self._shared.scratch}:")


class _Process:
    """One process with its descendants."""

    def __init__(
        self, process: subprocess.Popen[bytes], group: Group, clear: Callable[[], None], mark: str
    ) -> None:
        self._process = process
        self._group = group
        self._clear = clear
        self._mark = mark
        self._exit = Exit(0)
        self._done = threading.Event()

    def begin(self, name: str, on_output: Callable[[str], None]) -> None:
        """Follow it to its end."""
        assert self._process.stdout is not None
        output = os.dup(self._process.stdout.fileno())
        self._process.stdout.close()
        reader = threading.Thread(
            target=pass_lines, args=(output, on_output), name=f"{name} output", daemon=True
        )
        follower = threading.Thread(target=self._follow, args=(reader,), name=name, daemon=True)
        try:
            reader.start()
            follower.start()
        except RuntimeError as exc:  # there are too many threads on the machine
            self._process.kill()
            self._process.wait()
            raise EngineError(f"CannotStartContainerError: {exc}") from exc

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """The process's end, or None when it still runs after `timeout_s`."""
        return self._exit if self._done.wait(timeout_s) else None

    def stop(self, grace_s: float = 0.0) -> None:
        """SIGTERM to the process, after `grace_s` SIGKILL to it and all its descendants."""
        if grace_s > 0 and not self._done.is_set():
            self._process.terminate()
            self._done.wait(grace_s)
        if not self._done.is_set():
            self._process.kill()
        self._done.wait()

    def _follow(self, reader: threading.Thread) -> None:
        try:
            code = exit_code(self._process.wait())
            self._exit = Exit(code)
            _kill(self._mark, self._process.pid)
            reader.join()
            if code != 0 and self._group.oom_killed():
                self._exit = Exit(code, True, OOM_REASON)
        finally:
            clear_away(self._group.close, self._clear)
            self._done.set()


def _kill(mark: str, session: int | None = None) -> None:
    """SIGKILL to what bears the mark or belongs to the session, until nothing is left."""
    for _ in range(_KILL_ROUNDS):
        if session:
            _send_kill(-session)
        found = list(_marked(mark))
        for pid in found:
            _send_kill(pid)
        if not found:
            return
        time.sleep(_KILL_WAIT_S)


def _send_kill(pid: int) -> None:
    try:
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(-pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # it is gone; the number may be another's by now


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{MARK}={mark}".encode()
    for place in _PROC.glob("[0-9]*"):
        try:
            variables = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone, or another user's
        if any(variable.startswith(wanted) for variable in variables):
            yield int(place.name)
