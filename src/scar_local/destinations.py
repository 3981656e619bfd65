"""On-failure destinations: an event that failed for good is kept as an object of an S3 bucket.

https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from scar_local.function_limits import invalid
from scar_local.invocations import Queued, Verdict

_BUCKET = re.compile(r"arn:aws[a-z-]*:s3:::([^/]+)")
_log = logging.getLogger(__name__)


class Buckets(Protocol):
    """What destinations need of S3."""

    def has_bucket(self, name: str) -> bool:
        """Whether there is such a bucket."""

    def deposit(self, db: sqlite3.Connection, bucket: str, key: str, data: bytes) -> bool:
        """Put an object within the caller's transaction; False: there is no such bucket."""

    def wake(self) -> None:
        """Deliver the events of what was deposited; called after the commit."""


class Destinations:
    """What may be a destination, and what is sent there."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    def checked(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A DestinationConfig in the shape in which the API shows it. Raises ApiError."""
        if (config.get("OnSuccess") or {}).get("Destination"):
            raise invalid("OnSuccess is not in the local cloud, and never an S3 bucket: leave it")
        arn = (config.get("OnFailure") or {}).get("Destination")
        if not arn:
            return {"OnSuccess": {}, "OnFailure": {}}
        match = _BUCKET.fullmatch(arn)
        if match is None:
            raise invalid(
                f"the destination {arn} is not in the local cloud, which keeps what failed in an S3"
                " bucket only: arn:aws:s3:::<bucket>"
            )
        if not self._buckets.has_bucket(match[1]):
            raise invalid(f"the destination {arn} does not exist")
        return {"OnSuccess": {}, "OnFailure": {"Destination": arn}}

    def send(
        self, db: sqlite3.Connection, function: Mapping[str, Any], queued: Queued, verdict: Verdict
    ) -> None:
        """Keep what is known of a failed event, where its function has a destination."""
        config = (function["events"] or {}).get("DestinationConfig", {})
        match = _BUCKET.fullmatch(config.get("OnFailure", {}).get("Destination", ""))
        if match is None:
            return
        now = datetime.now(UTC)
        name = function["configuration"]["FunctionName"]
        key = f"aws/lambda/async/{name}/{now:%Y/%m/%d/%Y-%m-%dT%H.%M.%S}-{uuid.uuid4()}"
        data = json.dumps(_record(function, queued, verdict, now)).encode()
        if not self._buckets.deposit(db, match[1], key, data):
            _log.warning("the failed event %s of %s is lost: its destination, bucket %s, is gone",
                         queued.request_id, name, match[1])  # fmt: skip

    def sent(self) -> None:
        """What was sent is committed."""
        self._buckets.wake()


def _record(
    function: Mapping[str, Any], queued: Queued, verdict: Verdict, now: datetime
) -> dict[str, Any]:
    # What stands for a response that never was is documented nowhere: we leave it out.
    response = {
        "responseContext": {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": "Unhandled",
        },
        "responsePayload": _value(verdict.response or b"null"),
    }
    return {
        "version": "1.0",
        "timestamp": f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z",
        "requestContext": {
            "requestId": queued.request_id,
            "functionArn": f"{function['configuration']['FunctionArn']}:$LATEST",
            "condition": "EventAgeExceeded" if verdict.is_too_old else "RetriesExhausted",
            "approximateInvokeCount": queued.attempt - verdict.is_too_old,
        },
        "requestPayload": _value(queued.payload),
        **({} if verdict.response is None else response),
    }


def _value(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return payload.decode(errors="replace")
