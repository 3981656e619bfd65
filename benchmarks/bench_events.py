"""1,000 uploads through one function: time, memory of the local cloud, none lost."""

from concurrent.futures import ThreadPoolExecutor

from common import cloud, table, timed, until

EVENTS = 1000


def main() -> None:
    with cloud() as here:
        here.deploy(
            {
                "name": "many",
                "script": '#!/bin/sh\ncp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"\n',
                "input": [{"storage_provider": "s3", "path": "many/in"}],
                "output": [{"storage_provider": "s3", "path": "many/out"}],
            }
        )
        s3 = here.client("s3")
        before = here.memory_mb()

        def outputs() -> set[str]:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket="many", Prefix="out/")
            return {entry["Key"] for page in pages for entry in page.get("Contents", [])}

        def everything() -> None:
            with ThreadPoolExecutor(16) as pool:
                list(
                    pool.map(
                        lambda n: s3.put_object(Bucket="many", Key=f"in/{n}", Body=b"x"),
                        range(EVENTS),
                    )
                )
            until(
                lambda: (
                    s3.list_objects_v2(Bucket="many", Prefix="out/999")["KeyCount"]
                    or len(outputs()) >= EVENTS
                )
            )
            until(lambda: len(outputs()) >= EVENTS)

        took = timed(everything)
        table(
            f"{EVENTS} events through one function",
            [
                ("total time", f"{took:.1f} s ({EVENTS / took:.0f} events/s)"),
                ("outputs", f"{len(outputs())} of {EVENTS}"),
                (
                    "memory of the local cloud",
                    f"{before:.0f} MB before, peak {here.memory_mb(peak=True):.0f} MB",
                ),
            ],
        )


if __name__ == "__main__":
    main()
