"""One array job over a bucket of 10,000 objects, with the local cloud killed in its middle.

`bench_array.py COUNT` for another number of children (2 to 10,000).
"""

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import Cloud, cloud, table, timed

CHILDREN = 10_000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else CHILDREN
    with cloud() as here:
        here.deploy(
            {
                "name": "many",
                "execution_mode": "batch",
                "script": '#!/bin/sh\ncp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"\n',
                "output": [{"storage_provider": "s3", "path": "many/out"}],
            }
        )
        s3 = here.client("s3")
        s3.create_bucket(Bucket="source")
        with ThreadPoolExecutor(16) as pool:
            list(
                pool.map(
                    lambda n: s3.put_object(Bucket="source", Key=f"in/{n}", Body=b"x"), range(count)
                )
            )
        before = here.memory_mb()
        told: dict[str, Any] = {}

        def submit() -> None:
            told.update(json.loads(here.scar("run", "-n", "many", "-ib", "source/in", "--json")))

        submitted = timed(submit)
        [array] = told["BulkRun"]["Jobs"]
        began = time.perf_counter()
        _until(here, array, count // 2)
        half, peak = time.perf_counter() - began, here.memory_mb(peak=True)
        os.kill(_pid(here), signal.SIGKILL)
        restarted = timed(lambda: here.scar("local", "start"))
        _until(here, array, count)
        took = time.perf_counter() - began
        again, successes = _attempts(here, array, count)
        rate = f"{count / took:.0f} children/s"
        table(
            f"an array of {count} children, kill -9 after {count // 2}",
            [
                ("scar run (manifest, one SubmitJob)", f"{submitted:.1f} s"),
                ("until half had succeeded", f"{half:.1f} s"),
                ("restart after kill -9", f"{restarted:.2f} s"),
                ("until all had ended", f"{took:.1f} s ({rate})"),
                ("children that succeeded", f"{successes} of {count}"),
                ("outputs in the bucket", f"{_outputs(here)} of {count}"),
                ("children run again because of the kill", str(again)),
                ("children run again after a success", str(_repeated(here, array, count))),
                ("memory of the local cloud", f"{before:.0f} MB before, peak {peak:.0f} MB"),
            ],
        )


def _pid(here: Cloud) -> int:
    return int(json.loads((here.home / "local" / "cloud.json").read_text())["pid"])


def _until(here: Cloud, array: str, wanted: int) -> None:
    batch = here.client("batch")
    while True:
        job = batch.describe_jobs(jobs=[array])["jobs"][0]
        counts = job["arrayProperties"]["statusSummary"]
        if counts["SUCCEEDED"] + counts["FAILED"] >= wanted:
            return
        time.sleep(0.5)


def _children(here: Cloud, array: str, count: int) -> list[dict[str, Any]]:
    batch, ids = here.client("batch"), [f"{array}:{n}" for n in range(count)]
    return [
        job
        for start in range(0, count, 100)
        for job in batch.describe_jobs(jobs=ids[start : start + 100])["jobs"]
    ]


def _attempts(here: Cloud, array: str, count: int) -> tuple[int, int]:
    found = _children(here, array, count)
    again = sum(len(job["attempts"]) > 1 for job in found)
    return again, sum(job["status"] == "SUCCEEDED" for job in found)


def _repeated(here: Cloud, array: str, count: int) -> int:
    codes = (
        [one["container"].get("exitCode") for one in job["attempts"]]
        for job in _children(here, array, count)
    )
    return sum(0 in attempts[:-1] for attempts in codes)


def _outputs(here: Cloud) -> int:
    pages = here.client("s3").get_paginator("list_objects_v2").paginate(Bucket="many")
    return sum(len(page.get("Contents", [])) for page in pages)


if __name__ == "__main__":
    main()
