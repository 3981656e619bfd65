"""How long a command takes before it does anything."""

import subprocess
import sys

from common import Cloud, cloud, milliseconds, table, timed


def main() -> None:
    def run(*arguments: str) -> list[float]:
        command = [sys.executable, *arguments]
        return [
            timed(lambda: subprocess.run(command, capture_output=True, check=True))
            for _ in range(10)
        ]

    rows = [
        ("python -c pass", milliseconds(run("-c", "pass"))),
        ("scar --version", milliseconds(run("-m", "scar", "--version"))),
        ("scar --help", milliseconds(run("-m", "scar", "--help"))),
    ]
    with cloud() as here:
        rows.append(("scar ls (no function)", milliseconds([_ls(here) for _ in range(5)])))
        rows.append(("local start", milliseconds([_restart(here) for _ in range(5)])))
    table("start of a command, ms (min / median / max)", rows)


def _ls(here: Cloud) -> float:
    return timed(lambda: here.scar("ls"))


def _restart(here: Cloud) -> float:
    here.scar("local", "stop")
    return timed(lambda: here.scar("local", "start"))


if __name__ == "__main__":
    main()
