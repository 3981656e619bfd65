"""Any image runs: every kind of base, however it is started, on Lambda and on Batch."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("images")

    def image(kind: str, start: str) -> Path:
        path = folder / f"{kind}-{start}.tar"
        if not path.exists():
            echo = ECHO[kind]
            run = {"Entrypoint": [echo, "word-entrypoint"], "Cmd": ["word-command"]}
            if start == "no-entrypoint":
                run = {"Cmd": [echo, "word-command"]}
            save(path, KINDS[kind](), run)
        return path

    return image


class Deployed:
    """One local cloud that gets the functions of a kind of image when the first is wanted."""

    def __init__(self, cloud: Cloud, image: Callable[[str, str], Path], folder: Path) -> None:
        self.cloud, self._image, self._folder = cloud, image, folder
        self._kinds: set[str] = set()
        (folder / "script.sh").write_text(SCRIPT)

    def ready(self, kind: str, cases: list[Case]) -> Cloud:
        if kind not in self._kinds:
            by_name = {case.function: case for case in cases if case.kind == kind}
            functions = [self._function(case) for case in by_name.values()]
            fdl = self._folder / f"{kind}.yaml"
            fdl.write_text(json.dumps({"functions": {"aws": functions}}))
            self.cloud.ok("init", "-f", fdl)
            self._kinds.add(kind)
        return self.cloud

    def _function(self, case: Case) -> dict[str, object]:
        keys = {
            "name": case.function,
            "memory": 256,
            "execution_mode": case.mode,
            "container": {"image_file": str(self._image(case.kind, case.start))},
        }
        if case.has_init_script:
            keys["init_script"] = "script.sh"
        return {"lambda": keys}


@pytest.fixture(scope="module")
def bubblewrap(images, tmp_path_factory) -> Iterator[Deployed]:
    yield from _deployed("bubblewrap", images, tmp_path_factory)


@pytest.fixture(scope="module")
def docker(images, tmp_path_factory) -> Iterator[Deployed]:
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        missing("docker", "no Docker daemon answers")
    yield from _deployed("docker", images, tmp_path_factory)


def _deployed(engine: str, images, tmp_path_factory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp(engine)
    cloud = Cloud(folder / "scar-home", {"SCAR_LOCAL_ENGINE": engine})
    found = json.loads(cloud.ok("local", "start", "--json"))["LocalCloud"]["engine"]
    if found["name"] != engine:
        missing("images", found["why"])
    yield Deployed(cloud, images, folder)
    address = cloud.status["url"].removeprefix("http://")
    cloud.ok("local", "stop")
    if engine == "docker":
        forget_pulled(address)


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
