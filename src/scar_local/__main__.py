"""`python -m scar_local --data DIR [--port N] [--url URL]`: run the local cloud until stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scar_local.daemon import CannotStart, run


def main() -> int:
    """Run the daemon. Exit codes: 0 stopped, 2 wrong settings or port, 75 another one runs."""
    parser = argparse.ArgumentParser(prog="python -m scar_local", description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder that holds all state")
    parser.add_argument("--port", type=int, help="port of 127.0.0.1; default: the last one")
    parser.add_argument("--url", help="where clients and containers reach it, if not at its port")
    arguments = parser.parse_args()
    try:
        run(arguments.data, arguments.port, arguments.url)
    except CannotStart as exc:
        print(f"scar_local: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
