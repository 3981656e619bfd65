"""2,000 uploads in a burst to a function in mode `batch`, one by one and coalesced into arrays.

`bench_burst.py COUNT` for another number of uploads.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import Cloud, cloud, table, timed, until

UPLOADS = 2000
WINDOW_S, MAX_EVENTS = 10, 1000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else UPLOADS
    coalesce = {"coalesce": {"window_s": WINDOW_S, "max_events": MAX_EVENTS}}
    alone, together = _measured(count, {}), _measured(count, coalesce)
    table(
        f"{count} uploads in a burst, mode batch (alone / coalesced: window {WINDOW_S} s, "
        f"at most {MAX_EVENTS} events)",
        [(name, f"{alone[name]} / {together[name]}") for name in alone],
    )


def _measured(count: int, batch: dict[str, Any]) -> dict[str, str]:
    with cloud() as here:
        here.deploy(
            {
                "name": "many",
                "execution_mode": "batch",
                "script": '#!/bin/sh\ncp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"\n',
                "input": [{"storage_provider": "s3", "path": "many/in"}],
                "output": [{"storage_provider": "s3", "path": "made/out"}],
                "batch": {**batch, "compute_resources": {"max_v_cpus": 16}},
            }
        )
        s3, began = here.client("s3"), time.perf_counter()

        def upload() -> None:
            with ThreadPoolExecutor(16) as pool:
                list(
                    pool.map(
                        lambda n: s3.put_object(Bucket="many", Key=f"in/{n}", Body=b"%d" % n),
                        range(count),
                    )
                )

        uploaded = timed(upload)
        until(lambda: _ended(here) >= count, limit_s=3600)
        took = time.perf_counter() - began
        return {
            "uploads": f"{uploaded:.1f} s",
            "SubmitJob calls": str(len(_jobs(here))),
            "all outputs are there after": f"{took:.1f} s ({count / took:.0f} events/s)",
            "outputs": f"{_outputs(here)} of {count}",
            "memory of the local cloud": f"{here.memory_mb(peak=True):.0f} MB",
        }


def _jobs(here: Cloud) -> list[dict[str, Any]]:
    """What was submitted: an array is one, its children are none."""
    batch = here.client("batch")
    [queue] = batch.describe_job_queues()["jobQueues"]
    pages = batch.get_paginator("list_jobs").paginate(
        jobQueue=queue["jobQueueName"], filters=[{"name": "JOB_NAME", "values": ["many"]}]
    )
    return [job for page in pages for job in page["jobSummaryList"]]


def _ended(here: Cloud) -> int:
    time.sleep(0.5)
    return _outputs(here)


def _outputs(here: Cloud) -> int:
    pages = here.client("s3").get_paginator("list_objects_v2").paginate(Bucket="made")
    return sum(len(page.get("Contents", [])) for page in pages)


if __name__ == "__main__":
    main()
