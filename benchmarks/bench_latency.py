"""From a put object to its output: through one function, and through a job and a function."""

import uuid
from typing import Any

from common import cloud, milliseconds, table, timed, until

COPY = '#!/bin/sh\ncp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"\n'


def main() -> None:
    with cloud() as here:
        deploy = timed(
            lambda: here.deploy(
                _function("single", "one/in", "one/out"),
                _function("first", "two/in", "two/middle", execution_mode="batch"),
                _function("second", "two/middle", "two/out"),
            )
        )
        again = timed(lambda: here.scar("init", "-f", here.home / "fdl.yaml"))
        s3 = here.client("s3")

        def chain(bucket: str) -> float:
            name = uuid.uuid4().hex
            return timed(lambda: _through(s3, bucket, name))

        rows = [
            ("init of three functions", f"{deploy * 1000:.0f}"),
            ("init again, nothing to do", f"{again * 1000:.0f}"),
            ("put -> function -> output, cold", milliseconds([chain("one")])),
            ("put -> function -> output, warm", milliseconds([chain("one") for _ in range(20)])),
            ("put -> function -> job -> function, cold", milliseconds([chain("two")])),
            (
                "put -> function -> job -> function, warm",
                milliseconds([chain("two") for _ in range(10)]),
            ),
        ]
    table("latency, ms (min / median / max)", rows)


def _function(name: str, source: str, target: str, **keys: Any) -> dict[str, Any]:
    return {
        "name": name,
        "script": COPY,
        "input": [{"storage_provider": "s3", "path": source}],
        "output": [{"storage_provider": "s3", "path": target}],
        **keys,
    }


def _through(s3: Any, bucket: str, name: str) -> None:
    s3.put_object(Bucket=bucket, Key=f"in/{name}", Body=b"x")
    until(lambda: s3.list_objects_v2(Bucket=bucket, Prefix=f"out/{name}")["KeyCount"])


if __name__ == "__main__":
    main()
