"""Starts the supervisor: which runtime am I in?"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from scar_supervisor import contract
from scar_supervisor.faults import Stopped
from scar_supervisor.log import Log

EXIT_STOPPED = 128 + signal.SIGTERM


def main() -> int:
    """Run as a Lambda runtime or as one Batch job; the process's exit code."""
    log = Log()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        return _run(log)
    except Stopped:
        log.warning("stopped by the platform")
        return EXIT_STOPPED


def _run(log: Log) -> int:
    environ = _environment()
    if "AWS_LAMBDA_RUNTIME_API" in environ:
        from scar_supervisor import lambda_runtime

        return lambda_runtime.run(environ, log)
    if "AWS_BATCH_JOB_ID" in environ:
        from scar_supervisor import one_job

        return one_job.run(environ, log)
    log.error(
        "ConfigFault: this image runs under AWS Lambda or AWS Batch (or SCAR's local cloud): "
        "neither AWS_LAMBDA_RUNTIME_API nor AWS_BATCH_JOB_ID is set"
    )
    return contract.EXIT_CONFIG


def _environment() -> dict[str, str]:
    """The process's environment as it was given, without what Python adds in the C locale."""
    environ = dict(os.environ)
    if environ.get("LC_CTYPE") == "C.UTF-8":  # PEP 538
        try:
            with open("/proc/self/environ", "rb") as file:
                given = file.read().split(b"\0")
        except OSError:
            return environ
        if not any(line.startswith(b"LC_CTYPE=") for line in given):
            del environ["LC_CTYPE"]
    return environ


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
