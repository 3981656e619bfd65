"""Functions in a real image, built here from Debian packages, on every engine that is here."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.doubles.images import forget_pulled
from tests.e2e.conftest import Cloud, need_program, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "video-frames"
CACHE = Path(__file__).parents[2] / "build" / "test-images"


def _debian_mirror() -> list[str]:
    """The mirror this machine uses, so that a closed network works too."""
    for source in [*Path("/etc/apt/sources.list.d").glob("debian*"), Path("/etc/apt/sources.list")]:
        if source.exists() and (
            found := re.search(
                r"^(?:URIs:|deb(?: \[.*\])?) *(\S+/debian)\b", source.read_text(), re.M
            )
        ):
            return [found[1]]
    return []


@pytest.fixture(scope="session")
def video_tools() -> Path:
    """The image of the example, made once and kept in build/."""
    need_program("mmdebstrap")
    image = CACHE / "video-tools.tar"
    if not image.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = CACHE / f"video-tools-{os.getpid()}.tar"
        subprocess.run(
            ["sh", EXAMPLE / "make-image.sh", made, *_debian_mirror()], check=True, timeout=600
        )
        made.rename(image)
    return image


@pytest.mark.images
@pytest.mark.parametrize("engine", ["bubblewrap", "docker"])
def test_the_video_example_runs_in_its_image(cloud: Cloud, video_tools, tmp_path, engine):
    if engine == "docker" and subprocess.run(["docker", "info"], capture_output=True).returncode:
        missing("docker", "no Docker daemon answers")
    cloud.environment["SCAR_LOCAL_ENGINE"] = engine
    folder = tmp_path / "video-frames"
    shutil.copytree(EXAMPLE, folder)
    (folder / "video-tools.tar").symlink_to(video_tools)
    cloud.ok("init", "-f", folder / "video-frames.yaml")
    make = tmp_path / "make.sh"
    make.write_text(
        "#!/bin/sh\nset -e\n"
        "ffmpeg -nostdin -loglevel error -f lavfi -i testsrc=duration=3:size=320x240:rate=24 "
        '-f matroska - > "$TMP_OUTPUT_DIR/sample.mkv"\n'
    )
    # The video itself is made by the image's own ffmpeg.
    cloud.ok(
        "init", "-n", "make-video", "-if", video_tools, "-s", make, "-ob", "video/input", "-m", 1024
    )
    cloud.ok("run", "-n", "make-video")
    thumbnails = wait_for(
        "six thumbnails",
        lambda: (
            len(k := [k for k in cloud.keys("video") if k.startswith("thumbnails/")]) == 6 and k
        ),
        120,
    )
    assert sorted(thumbnails) == [f"thumbnails/sample-00{n}.jpg" for n in range(1, 7)]
    assert cloud.content("video", thumbnails[0])[:2] == b"\xff\xd8"  # a JPEG
    assert "6 frames cut from sample" in cloud.ok("log", "-n", "video-split")
    assert "80x60" in cloud.ok("log", "-n", "video-thumbnail")
    status = json.loads(cloud.ok("local", "status", "--json"))
    assert status["LocalCloud"]["engine"]["name"] == engine
    cloud.ok("local", "stop")
    if engine == "docker":
        forget_pulled(cloud.status["url"].removeprefix("http://"))
