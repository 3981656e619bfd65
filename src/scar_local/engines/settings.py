"""What an image's config and a ContainerSpec together say about one run, decided before it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scar_local.engines import ContainerSpec, EngineError
from scar_local.engines.rootfs import is_executable, read_inside

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST_LABEL = "scar.host"
"""An image with this label runs on the machine's own file system, with the supervisor of here."""

_FUNCTION_DIR = "opt/scar/function"
_FUNCTION_DIR_VARIABLE = "SCAR_FUNCTION_DIR"
_SUPERVISOR = "scar_supervisor"
_START_SUPERVISOR = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    f"from {_SUPERVISOR}.__main__ import main; sys.exit(main())"
)


@dataclass(frozen=True)
class Settings:
    """All that an engine passes to the kernel for one container."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    """Working directory, as the container sees it."""
    uid: int = 0
    gid: int = 0


def is_host_image(config: Mapping[str, Any]) -> bool:
    """Whether an image is to run on the machine's own file system."""
    labels = (config.get("config") or {}).get("Labels") or {}
    return str(labels.get(HOST_LABEL, "")).lower() == "true"


def image_settings(spec: ContainerSpec, config: Mapping[str, Any], root: Path) -> Settings:
    """How to run a real image that is unpacked at `root`.

    Raises EngineError where its user or its program is not in it.
    """
    run = config.get("config") or {}
    uid, gid, home = _user(str(run.get("User") or ""), root)
    declared = dict(line.partition("=")[::2] for line in run.get("Env") or ())
    environment = {"PATH": DEFAULT_PATH, "HOME": home, **declared, **spec.environment}
    argv = (*(run.get("Entrypoint") or ()), *(spec.command or run.get("Cmd") or ()))
    directory = "/" + str(run.get("WorkingDir") or "").lstrip("/")
    check_words(argv, environment)
    _check_program(argv, environment["PATH"], directory, root)
    return Settings(argv, environment, directory, uid, gid)


def host_settings(spec: ContainerSpec, layer: Path, package_parent: Path) -> Settings:
    """How to run the supervisor of here on a function layer that is unpacked at `layer`."""
    environment = {
        "PATH": os.environ.get("PATH", DEFAULT_PATH),
        "HOME": "/tmp",  # noqa: S108 (the container's own)
        **spec.environment,
        _FUNCTION_DIR_VARIABLE: str(layer / _FUNCTION_DIR),
    }
    check_words(spec.command, environment)
    python = (sys.executable, "-I", "-S", "-B", "-c", _START_SUPERVISOR, str(package_parent))
    return Settings(
        (*python, *spec.command),
        environment,
        "/tmp",  # noqa: S108
        os.getuid(),
        os.getgid(),
    )


def check_words(argv: Iterable[str], environment: Mapping[str, str]) -> None:
    """Raises EngineError for what the kernel cannot pass on (and bubblewrap would misread)."""
    if any("\0" in text for text in (*argv, *environment, *environment.values())):
        raise EngineError("the command or the environment holds a NUL character")
    for name in environment:
        if not name or "=" in name:
            raise EngineError(f"`{name}` cannot be the name of an environment variable")


def supervisor_parent() -> Path:
    """The directory that holds the supervisor's package, found without importing it.

    Raises EngineError where it is not installed.
    """
    found = importlib.util.find_spec(_SUPERVISOR)
    places = found.submodule_search_locations if found else None
    if not places:
        raise EngineError(f"the package `{_SUPERVISOR}` is not installed beside the local cloud")
    return Path(next(iter(places))).resolve().parent


def _user(user: str, root: Path) -> tuple[int, int, str]:
    name, _, group = user.partition(":")
    if not name:
        name = "0"
    entry = _entry(read_inside(root, "/etc/passwd"), name)
    if not entry and not name.isdigit():
        raise EngineError(f"the image's user `{name}` is not in its /etc/passwd")
    uid = int(entry[2]) if entry else int(name)
    gid = int(entry[3]) if entry else 0
    home = entry[5] if len(entry) > 5 and entry[5] else "/root" if uid == 0 else "/"
    return uid, _group(group, root) if group else gid, home


def _group(name: str, root: Path) -> int:
    entry = _entry(read_inside(root, "/etc/group"), name)
    if not entry and not name.isdigit():
        raise EngineError(f"the image's group `{name}` is not in its /etc/group")
    return int(entry[2]) if entry else int(name)


def _entry(text: str, name: str) -> list[str]:
    """The line of a passwd or group file for a name or number; empty where there is none."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) > 3 and name in (fields[0], fields[2]) and fields[2].isdigit():
            return fields
    return []


def _check_program(argv: tuple[str, ...], path: str, directory: str, root: Path) -> None:
    if not argv:
        raise EngineError("the image names no program to run, and the command is empty")
    program = argv[0]
    if "/" in program:
        found = is_executable(root, f"{directory}/{program}" if program[0] != "/" else program)
    else:
        found = any(is_executable(root, f"{place}/{program}") for place in path.split(":"))
    if not found:
        raise EngineError(f"CannotStartContainerError: `{program}`: no such program in the image")
