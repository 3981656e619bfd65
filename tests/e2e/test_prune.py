"""A user can see what the local cloud takes on the disk, and get back what nothing uses."""

from __future__ import annotations

import json
import re
import sqlite3

import pytest

from tests.doubles.base_images import busybox, save
from tests.e2e.conftest import Cloud


@pytest.mark.images
def test_prune_frees_what_removed_functions_leave_and_spares_the_others(cloud: Cloud, tmp_path):
    cloud.environment["SCAR_LOCAL_ENGINE"] = "bubblewrap"
    image = save(tmp_path / "image.tar", busybox(), {})
    (tmp_path / "s.sh").write_text("echo still here")
    for name, mode in (("kept", "batch"), ("gone", "lambda")):
        container = {"image_file": str(image)}
        keys = {"name": name, "init_script": "s.sh", "execution_mode": mode, "container": container}
        functions = {"functions": {"aws": [{"lambda": keys}]}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(functions))
        cloud.ok("init", "-f", tmp_path / f"{name}.yaml")
        assert "still here" in cloud.ok("run", "-n", name)
    cloud.ok("rm", "-n", "gone")
    _let_an_hour_pass(cloud)
    before = json.loads(cloud.ok("local", "status", "--json"))["LocalCloud"]["disk"]
    assert before["images"] > 1_000_000
    assert before["root_file_systems"] > 1_000_000
    done = json.loads(cloud.ok("local", "prune", "--json"))
    assert done["root_file_systems"]["removed"] == 1
    after = json.loads(cloud.ok("local", "status", "--json"))["LocalCloud"]["disk"]
    freed = sum(before[what] - after[what] for what in ("images", "root_file_systems"))
    assert done["freed_bytes"] == freed > 0
    assert "still here" in cloud.ok("run", "-n", "kept")
    assert cloud.ok("local", "prune") == "freed 0.0 MB\n"
    told = cloud.ok("local", "status")
    assert re.search(r"disk: objects [\d.]+ MB, images [\d.]+ MB, root file systems [\d.]+", told)
    assert re.search(r"limits: .*memory and CPU limits", told)


def _let_an_hour_pass(cloud: Cloud) -> None:
    """Images that were just pushed are spared: a deployment may be about to use them."""
    with sqlite3.connect(cloud.home / "local" / "cloud.db") as db:
        db.execute("UPDATE registry_manifests SET pushed = pushed - 3600")
    db.close()
