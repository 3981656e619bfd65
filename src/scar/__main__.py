"""The command `scar`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from scar.cli import arguments, render
from scar.errors import ScarError, UserError

_INTERRUPTED = 130
_BROKEN_PIPE = 141
"""What a shell reports for a program that ended because its reader did (128 + SIGPIPE)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code (see `scar.errors`)."""
    typed = sys.argv[1:] if argv is None else argv
    as_json = "--json" in typed or "-j" in typed
    render.prepare_streams()
    try:
        try:
            return _run(typed)
        except OSError as exc:
            if exc.filename is None and exc.errno != errno.ENOSPC:
                raise
            what = "cannot write" if exc.filename is None else f"cannot use `{exc.filename}`"
            raise UserError(f"{what}: {(exc.strerror or str(exc)).lower()}") from exc
    except ScarError as exc:
        render.error(exc, as_json=as_json)
        return exc.exit_code
    except KeyboardInterrupt:
        render.talk("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as exc:
        render.bug(exc, as_json=as_json)
        return 1


def _run(typed: Sequence[str]) -> int:
    options = arguments.parse(typed)
    # Only now, so that `--help` and `--version` do not wait for pydantic and boto3.
    if options.command in arguments.OFFLINE:
        from scar.cli import offline

        offline.run_command(options)
    else:
        from scar.cli import commands

        commands.run_command(options)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
