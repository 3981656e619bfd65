"""One fault at any request of the supervisor's: the work ends well in the same attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scar_supervisor import contract
from scar_supervisor.contract import ObjectPath
from scar_supervisor.storage.s3 import SINGLE_PUT_LIMIT_BYTES
from tests.doubles.faulty_cloud import Asked, Fault, FaultyCloud
from tests.doubles.supervised import Cloud, Supervised, a_config, s3_event

FAULTS = {
    Fault.ERROR: ("GET", "PUT", "POST"),
    Fault.RESET: ("GET", "PUT", "POST"),
    Fault.LOST: ("PUT", "POST"),
    Fault.CUT: ("PUT",),
    Fault.TRUNCATED: ("GET",),
}
"""And the methods of requests that have them."""
INPUT = bytes(range(256)) * (SINGLE_PUT_LIMIT_BYTES // 256 + 1)
"""So large that it is fetched in ranges, and its copy is sent in parts."""

SCRIPT = """
echo worked
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/large"
echo small > "$TMP_OUTPUT_DIR/small"
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    made = Cloud(tmp_path_factory.mktemp("cloud"))
    yield made
    made.close()


@pytest.fixture
def proxy(cloud: Cloud) -> Iterator[FaultyCloud]:
    made = FaultyCloud(cloud.url)
    yield made
    made.close()


def work(cloud: Cloud, proxy: FaultyCloud, folder: Path) -> Supervised:
    """One job on an input, to its end, on a cloud where nothing was done yet."""
    cloud.start_over("inbox", "out", "state")
    cloud.put("inbox", "in/a", INPUT)
    etag = cloud.client.head_object(Bucket="inbox", Key="in/a")["ETag"]
    event: dict[str, Any] = s3_event(("inbox", "in/a", len(INPUT)))
    event["Records"][0]["s3"]["object"] |= {"eTag": etag.strip('"'), "sequencer": "0A"}
    config = a_config(deployment_bucket="state", outputs=(ObjectPath("s3", "out", "made"),))
    told = {
        **cloud.environment,
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_BATCH_JOB_ID": "job-1",
        contract.EVENT_VARIABLE: json.dumps(event),
    }
    job = Supervised(folder, config, SCRIPT, told)
    try:
        job.wait(60)
    finally:
        job.close()
    return job


def requests_of(cloud: Cloud, proxy: FaultyCloud, folder: Path) -> list[tuple[str, str]]:
    """Method and path of every request that the work takes, with sub-resources."""
    work(cloud, proxy, folder)
    return list(dict.fromkeys(map(kind_of, proxy.asked)))


def kind_of(asked: Asked) -> tuple[str, str]:
    query = "&".join(part for part in asked.query.split("&") if not part.startswith("uploadId"))
    ends = "&complete" if asked.method == "POST" and "uploadId=" in asked.query else ""
    return asked.method, f"{asked.path}?{query}{ends}"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
def test_one_fault_at_any_request_is_got_over(
    cloud: Cloud, proxy: FaultyCloud, fault: Fault, tmp_path: Path
) -> None:
    every = requests_of(cloud, proxy, tmp_path)
    assert len(every) >= 9
    for wanted in (one for one in every if one[0] in FAULTS[fault]):
        left = [wanted]

        def plan(asked: Asked, left: list[tuple[str, str]] = left) -> Fault | None:
            return fault if left and kind_of(asked) == left[0] and left.pop() else None

        proxy.plan = plan
        job = work(cloud, proxy, tmp_path)

        assert (job.process.returncode, wanted, left) == (0, wanted, []), job.log
        assert job.log.count("worked\n") == 1
        assert cloud.keys("out") == ["made/large", "made/small"]
        assert cloud.get("out", "made/large") == INPUT
        [done] = [key for key in cloud.keys("state") if key.startswith(".scar/done/f/")]
        assert b'"job:job-1"' in cloud.get("state", done)
