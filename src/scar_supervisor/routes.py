"""Whether an event of a lambda-batch function is worth a try on Lambda: what earlier ones tell."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from scar_supervisor import records
from scar_supervisor.aws import ServiceError, Unreachable
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.events import Event, InputObject
from scar_supervisor.log import Log
from scar_supervisor.storage import Storages
from scar_supervisor.storage.s3 import Found

TRIES = 5
"""To write the evidence while others write it too; it is only a help."""


@dataclass(frozen=True)
class Evidence:
    """The smallest input that ran out of time, and under which circumstances."""

    input: str
    size: int
    limit_s: float
    """Seconds that it had, from its beginning to the deadline."""
    memory_mb: int
    version: str
    """Of the function."""
    request_id: str
    time: str


class Routes:
    """What is known of one function. All of it is advice: where S3 fails, nothing is known."""

    def __init__(
        self, config: FunctionConfig, storages: Storages, environ: Mapping[str, str], log: Log
    ) -> None:
        self._config, self._storages, self._log = config, storages, log
        self._memory_mb = int(environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE") or 0)
        self._key = records.route_key(config.name)

    def leads_to_batch(self, event: Event, limit_s: float) -> bool:
        """Whether an input as large as one of the event's ran out of time before; the log says.

        It tells nothing of another script, of more memory, or of more time.
        """
        largest = _largest(event)
        if largest is None or not self._config.deployment_bucket or event.own_program:
            return False
        evidence = self._evidence(self._found())
        if evidence is None or (largest.size or 0) < evidence.size:
            return False
        if evidence.memory_mb < self._memory_mb or evidence.limit_s * 1.1 + 1 < limit_s:
            return False
        self._log.info(
            f"{largest.address} has {largest.size:,} bytes; {evidence.input} with "
            f"{evidence.size:,} bytes ran out of {evidence.limit_s:.0f} s on {evidence.time} "
            f"({evidence.request_id}): straight to Batch"
        )
        return True

    def ran_out_of_time(self, event: Event, limit_s: float, request_id: str) -> None:
        """Keep that the event did, unless a smaller one is known."""
        largest = _largest(event)
        if largest is None or not self._config.deployment_bucket or event.own_program:
            return
        now = records.instant(time.time())
        mine = Evidence(
            *(largest.address, largest.size or 0, round(limit_s, 1), self._memory_mb),
            *(self._config.version, request_id, now),
        )
        try:
            self._keep(mine)
        except (ServiceError, Unreachable) as exc:
            self._log.warning(f"cannot keep that it ran out of time: {exc}")

    def _keep(self, mine: Evidence) -> None:
        for _ in range(TRIES):
            found = self._found()
            known = self._evidence(found)
            if known is not None and known.size <= mine.size and known.limit_s >= mine.limit_s:
                return
            condition = {"If-Match": found.etag} if found else {"If-None-Match": "*"}
            data = json.dumps(asdict(mine), indent=1).encode()
            account, bucket = self._storages.account, self._config.deployment_bucket
            if account.write(bucket, self._key, data, condition) is not None:
                return

    def _found(self) -> Found | None:
        try:
            return self._storages.account.load(self._config.deployment_bucket, self._key)
        except (ServiceError, Unreachable) as exc:
            self._log.warning(f"cannot tell which inputs ran out of time: {exc}")
            return None

    def _evidence(self, found: Found | None) -> Evidence | None:
        """What was found, while it still tells something."""
        try:
            its = Evidence(**json.loads(found.data)) if found else None
        except (ValueError, TypeError):
            return None
        return its if its and its.version == self._config.version else None


def _largest(event: Event) -> InputObject | None:
    sized = [item for item in event.objects if item.size is not None]
    return max(sized, key=lambda item: item.size or 0, default=None)
