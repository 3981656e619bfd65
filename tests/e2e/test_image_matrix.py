"""Any image runs: every kind of base, however it is started, on Lambda and on Batch."""

from __future__ import annotations

import fcntl
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.doubles.base_images import KINDS, MUSL_LOADER, busybox, save
from tests.doubles.images import Item, directory, forget_pulled
from tests.e2e.conftest import Cloud

SHELLS = ("glibc", "musl", "busybox")
ECHO = {kind: "/echo" if kind == "empty" else "/bin/echo" for kind in KINDS}
STARTS = ("entrypoint", "no-entrypoint")
WORKS = ("script", "nothing", "arguments")
MODES = ("lambda", "batch")
SCRIPT = f"""
echo word-script
if [ -e /{MUSL_LOADER} ]; then /{MUSL_LOADER} /bin/ischroot --version; fi
touch "$TMP_OUTPUT_DIR/written" && cat "$TMP_OUTPUT_DIR/written" && mkdir "$TMP_INPUT_DIR/x"
"""


@dataclass(frozen=True)
class Case:
    kind: str
    start: str
    work: str
    mode: str

    @property
    def function(self) -> str:
        script = "script" if self.has_init_script else "bare"
        return f"{self.kind}-{self.start}-{script}-{self.mode}"

    @property
    def has_init_script(self) -> bool:
        return self.work == "script" and self.kind in SHELLS

    @property
    def words(self) -> list[str]:
        """What is said, by the words that the image, the script and `run` bring."""
        if self.work == "script":
            return ["word-script"]
        if self.work == "nothing":
            own = ["word-command"]
            return ["word-entrypoint", *own] if self.start == "entrypoint" else own
        given = ["word-run", "word-more"]
        return ["word-entrypoint", *given] if self.start == "entrypoint" else given

    def __str__(self) -> str:
        return f"{self.kind}-{self.start}-{self.work}-{self.mode}"


CASES = [Case(*case) for case in itertools.product(KINDS, STARTS, WORKS, MODES)]
SPREAD = CASES[::5]  # of each kind one or two, all starts, works and modes
RUNS = [("bubblewrap", case) for case in CASES] + [("docker", case) for case in SPREAD]


class Deployed:
    """A local cloud that gets the functions of a kind of image when the first is wanted.

    All processes of a test run share it: deploying costs more than running.
    """

    def __init__(self, engine: str, folder: Path) -> None:
        self._folder = folder
        self.cloud = Cloud(folder / "scar-home", {"SCAR_LOCAL_ENGINE": engine})

    @contextmanager
    def used(self) -> Iterator[None]:
        """Stopped by the last one who uses it."""
        with self._alone():
            self.cloud.ok("local", "start")
            self._count(+1)
        try:
            yield
        finally:
            with self._alone():
                if self._count(-1) == 0:
                    address = self.cloud.status["url"].removeprefix("http://")
                    self.cloud.ok("local", "stop")
                    if self.cloud.environment["SCAR_LOCAL_ENGINE"] == "docker":
                        forget_pulled(address)

    def ready(self, kind: str, cases: list[Case]) -> Cloud:
        fdl = self._folder / f"{kind}.yaml"
        with self._alone():
            if not fdl.exists():
                (self._folder / "script.sh").write_text(SCRIPT)
                by_name = {case.function: case for case in cases if case.kind == kind}
                functions = [self._function(case) for case in by_name.values()]
                new = self._folder / f"{kind}-new.yaml"
                new.write_text(json.dumps({"functions": {"aws": functions}}))
                self.cloud.ok("init", "-f", new)
                new.rename(fdl)
        return self.cloud

    def _function(self, case: Case) -> dict[str, object]:
        image = self._folder / f"{case.kind}-{case.start}.tar"
        if not image.exists():
            echo = ECHO[case.kind]
            run = {"Entrypoint": [echo, "word-entrypoint"], "Cmd": ["word-command"]}
            if case.start == "no-entrypoint":
                run = {"Cmd": [echo, "word-command"]}
            save(image, KINDS[case.kind](), run)
        keys = {
            "name": case.function,
            "memory": 256,
            "execution_mode": case.mode,
            "container": {"image_file": image.name},
        }
        if case.has_init_script:
            keys["init_script"] = "script.sh"
        return {"lambda": keys}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _count(self, change: int) -> int:
        path = self._folder / "users"
        users = (int(path.read_text()) if path.exists() else 0) + change
        path.write_text(str(users))
        return users


@pytest.fixture(scope="module")
def bubblewrap(tmp_path_factory, worker_id) -> Iterator[Deployed]:
    yield from _deployed("bubblewrap", tmp_path_factory, worker_id)


@pytest.fixture(scope="module")
def docker(tmp_path_factory, worker_id) -> Iterator[Deployed]:
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        missing("docker", "no Docker daemon answers")
    yield from _deployed("docker", tmp_path_factory, worker_id)


def _deployed(engine: str, tmp_path_factory, worker_id: str) -> Iterator[Deployed]:
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / f"matrix-{engine}"
    folder.mkdir(exist_ok=True)
    deployed = Deployed(engine, folder)
    with deployed.used():
        found = json.loads(deployed.cloud.ok("local", "status", "--json"))["LocalCloud"]["engine"]
        if found["name"] != engine:
            missing("images", found["why"])
        yield deployed


@pytest.mark.images
@pytest.mark.parametrize(
    ("engine", "case"),
    [pytest.param(engine, case, id=f"{engine}-{case}") for engine, case in RUNS],
)
def test_any_image_runs(request, engine: str, case: Case) -> None:
    cases = SPREAD if engine == "docker" else CASES
    cloud = request.getfixturevalue(engine).ready(case.kind, cases)
    done = cloud.run("run", "-n", case.function, *_arguments(cloud, case))
    if case.work == "script" and case.kind not in SHELLS:
        assert done.code == 5, done
        assert "the image has no /bin/sh to run the script with" in done.out + done.err, done
        return
    assert done.code == 0, done
    assert list(dict.fromkeys(re.findall(r"\bword-\w+", done.out))) == case.words, done
    if case.work == "script" and case.kind == "musl":
        assert "ischroot, version" in done.out, done


def _arguments(cloud: Cloud, case: Case) -> list[str]:
    if case.work == "script" and not case.has_init_script:
        return ["-s", str(cloud.home.parent / "script.sh")]
    if case.work == "arguments":
        own = [] if case.start == "entrypoint" else [ECHO[case.kind]]
        return ["--", *own, "word-run", "word-more"]
    return []


@pytest.mark.images
@pytest.mark.parametrize("engine", ["bubblewrap", "docker"])
def test_the_images_user_runs_it_and_jobs_may_write(request, tmp_path, engine: str) -> None:
    cloud = request.getfixturevalue(engine).cloud
    accounts = (
        directory("etc"),
        Item("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1234:99::/home/app:/bin/sh\n"),
        Item("etc/group", b"others:x:77:\n"),
        directory("work", 0o777),
    )
    run = {"User": "app:others", "WorkingDir": "/work"}
    image = save(tmp_path / "user.tar", [*busybox(), *accounts], run)
    (tmp_path / "who.sh").write_text(
        'echo "$(id -u):$(id -g) $HOME $PWD"; touch "$TMP_OUTPUT_DIR/a" && echo output\n'
        "touch /work/a && echo work; true"
    )
    for mode, writes in (("lambda", ["output"]), ("batch", ["output", "work"])):
        name = f"user-{mode}"
        script = tmp_path / "who.sh"
        keys = {"name": name, "execution_mode": mode, "init_script": str(script)}
        fdl = tmp_path / f"{mode}.yaml"
        container = {"image_file": str(image)}
        functions = {"aws": [{"lambda": {**keys, "container": container}}]}
        fdl.write_text(json.dumps({"functions": functions}))
        cloud.ok("init", "-f", fdl)
        done = cloud.run("run", "-n", name)
        assert "1234:77 /home/app /work" in done.out + done.err, done
        said = (done.out + done.err).splitlines()
        assert [line for line in said if line in ("output", "work")] == writes, done
