"""Which program runs: arguments of `run`, the event's script, the config's script, the image's."""

from __future__ import annotations

import os
from collections.abc import Mapping

from scar_supervisor import contract
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.events import Event
from scar_supervisor.faults import ConfigFault
from scar_supervisor.scratch import write_file

SHELL = "/bin/sh"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def command_line(
    event: Event, config: FunctionConfig, function_dir: str, directory: str
) -> tuple[str, ...]:
    """What to run for an event; its script is written into `directory`.

    Raises ConfigFault where there is nothing to run, or no interpreter to run it with.
    """
    if event.arguments:
        return (*config.image.entrypoint, *event.arguments)
    if event.script is not None:
        path = os.path.join(directory, "script")
        write_file(path, event.script, 0o700)
        return script_command(path)
    if config.has_script:
        return script_command(os.path.join(function_dir, contract.SCRIPT_NAME))
    if command := (*config.image.entrypoint, *config.image.command):
        return command
    raise ConfigFault(
        f"function `{config.name}` has nothing to run: its image has no entrypoint and no command; "
        "give an `init_script`, or a command to `scar run`"
    )


def script_command(path: str) -> tuple[str, ...]:
    """How to run a script file: by its `#!` line as the kernel would, else by /bin/sh.

    The interpreter is called by name, so the file needs no x bit and may be where noexec is.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as exc:
        raise ConfigFault(f"the script cannot be read: {exc}") from exc
    if head.startswith(b"\x7fELF"):
        return (path,)
    if not head.startswith(b"#!"):
        return (_interpreter(SHELL, "begin it with a #! line of an interpreter in it"), path)
    line = head[2:].split(b"\n", 1)[0]
    if line.endswith(b"\r"):
        raise ConfigFault("the script has Windows line ends (CR LF); save it with Unix ones (LF)")
    words = os.fsdecode(line.strip(b" \t")).split(None, 1)
    if not words:
        return (_interpreter(SHELL, "name an interpreter in its #! line"), path)
    program = _interpreter(words[0], "name one in its #! line that is")
    return (program, *(word.strip() for word in words[1:]), path)


def find(name: str, environ: Mapping[str, str]) -> str:
    """The file that `name` means for a program with that environment.

    Raises FileNotFoundError or PermissionError, as execve would.
    """
    if "/" in name:
        return name
    refused = False
    for folder in environ.get("PATH", DEFAULT_PATH).split(":"):
        path = os.path.join(folder or ".", name)
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            refused = True
    if refused:
        raise PermissionError(f"`{name}` is not executable")
    raise FileNotFoundError(f"`{name}` is not in the image's PATH")


def _interpreter(path: str, remedy: str) -> str:
    if not os.path.exists(path):
        raise ConfigFault(f"the image has no {path} to run the script with; {remedy}")
    return path
