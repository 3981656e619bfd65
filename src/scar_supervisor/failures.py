"""Keeps an event that failed for good in the deployment bucket, with the reason."""

from __future__ import annotations

import time

from scar_supervisor.aws import ServiceError, Unreachable
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.faults import TAIL_LIMIT_BYTES, Fault
from scar_supervisor.log import Log
from scar_supervisor.once import Owner
from scar_supervisor.records import Failed, instant
from scar_supervisor.storage import Storages


def failed(
    config: FunctionConfig, owner: Owner, event: str, fault: BaseException, attempts: int
) -> Failed:
    """What is kept of an event that failed."""
    tail: bytes = getattr(fault, "tail", b"")
    return Failed(
        function=config.name,
        kind="job" if owner.is_job else "invocation",
        run_id=owner.id,
        event=event,
        error_type=type(fault).__name__,
        reason=str(fault),
        exit_code=getattr(fault, "exit_code", None),
        log_tail=tail[-TAIL_LIMIT_BYTES:].decode(errors="replace"),
        attempts=attempts,
        time=instant(time.time()),
    )


def keep(config: FunctionConfig, storages: Storages, log: Log, record: Failed) -> None:
    """Keep it; where that cannot be, the log says so."""
    if not config.deployment_bucket:
        return
    try:
        data = record.dump().encode()
        storages.account.write(config.deployment_bucket, record.key, data)
    except (ServiceError, Unreachable, Fault) as exc:
        log.error(f"s3://{config.deployment_bucket}/{record.key} cannot be kept: {exc}")
    else:
        log.info(f"the event is kept at s3://{config.deployment_bucket}/{record.key}")
