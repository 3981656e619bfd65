"""A child of an array job: its own line of the manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from scar_supervisor import contract
from scar_supervisor.faults import EventFault
from scar_supervisor.storage import Storages

_REFERENCE = re.compile(r"s3://([^/]+)/(.+)#width=(\d+)")


def event(environ: Mapping[str, str], storages: Storages, common: bytes) -> bytes:
    """The event of this child: what all children have in common, and its own line.

    A job that is no array takes the first line. Raises EventFault where there is no such line.
    """
    reference = environ[contract.ARRAY_VARIABLE]
    index = int(environ.get("AWS_BATCH_JOB_ARRAY_INDEX") or 0)
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise EventFault(
            f"{contract.ARRAY_VARIABLE}: `{reference}` is not s3://bucket/key#width=<bytes>"
        )
    bucket, key, width = found[1], found[2], int(found[3])
    line = storages.account.read(bucket, key, index * width, width)
    try:
        own, shared = json.loads(line), json.loads(common)
        return json.dumps({**shared, **own}).encode()
    except (ValueError, TypeError) as exc:
        raise EventFault(f"line {index} of s3://{bucket}/{key} is no event: {exc}") from exc
