"""S3 of the local cloud: many small objects, one large one, and the memory it takes."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import cloud, milliseconds, table, timed

SMALL = 1000
LARGE_BYTES = 1 << 30


def main() -> None:
    with cloud() as here, tempfile.TemporaryDirectory() as folder:
        s3 = here.client("s3")
        s3.create_bucket(Bucket="bench")

        def put(number: int) -> None:
            s3.put_object(Bucket="bench", Key=f"small/{number}", Body=b"x" * 1024)

        def get(number: int) -> None:
            s3.get_object(Bucket="bench", Key=f"small/{number}")["Body"].read()

        with ThreadPoolExecutor(16) as pool:
            puts = timed(lambda: list(pool.map(put, range(SMALL))))
            gets = timed(lambda: list(pool.map(get, range(SMALL))))
        one_put = [timed(lambda: put(0)) for _ in range(50)]
        one_get = [timed(lambda: get(0)) for _ in range(50)]

        large = Path(folder) / "large"
        with large.open("wb") as file:
            for _ in range(LARGE_BYTES >> 24):
                file.write(os.urandom(1 << 24))
        up = timed(lambda: s3.upload_file(str(large), "bench", "large"))
        down = timed(lambda: s3.download_file("bench", "large", f"{large}.back"))
        table(
            "S3 of the local cloud (boto3)",
            [
                ("put / get of 1 KiB, ms", f"{milliseconds(one_put)}; {milliseconds(one_get)}"),
                (f"{SMALL} puts, 16 threads", f"{puts:.2f} s"),
                (f"{SMALL} gets, 16 threads", f"{gets:.2f} s"),
                ("1 GiB up", f"{up:.1f} s, {LARGE_BYTES / up / 1e6:.0f} MB/s"),
                ("1 GiB down", f"{down:.1f} s, {LARGE_BYTES / down / 1e6:.0f} MB/s"),
                ("memory of the local cloud, peak", f"{here.memory_mb(peak=True):.0f} MB"),
            ],
        )


if __name__ == "__main__":
    main()
