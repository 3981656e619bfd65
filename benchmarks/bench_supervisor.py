"""What the supervisor costs in a container, against a program made as the reference makes its own.

One event that says hello, from the start of its container to the end; the peak memory is of all
processes but the script's. The other program is a PyInstaller onefile of the same supervisor that
also imports boto3 (built once, in build/; needs PyPI and a Python with a shared library).
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import milliseconds, table, timed

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.doubles.base_images import glibc, libraries  # noqa: E402
from tests.doubles.images import (  # noqa: E402
    Image,
    Item,
    directory,
    ecr,
    forget_pulled,
    layer,
    served_registry,
)

from scar.bundle import function_layer, runtime_layer  # noqa: E402
from scar.images.derive import ENTRYPOINT, HOST_LABEL  # noqa: E402
from scar_local.engines import ContainerSpec  # noqa: E402
from scar_local.engines.auto import ENGINE_VARIABLE, AutoEngine  # noqa: E402
from scar_supervisor.contract import FunctionConfig  # noqa: E402

ROUNDS = 10
PYTHON = "/usr/bin/python3"
WORK = ROOT / "build" / "bench-supervisor"
SHELL, HOST = "a shell alone", "image `host`, this Python"
JOB = {"AWS_BATCH_JOB_ID": "j", "SCAR_EVENT": "{}"}
SCRIPT = """#!/bin/sh
echo hello
for s in /proc/[0-9]*/status; do
    [ "$s" = /proc/$$/status ] && continue
    while read -r key value unit; do [ "$key" = VmHWM: ] && echo "peak $value"; done <"$s"
done
exit 0
"""
ENTRY = """import sys
import boto3
from scar_supervisor.__main__ import main
sys.exit(main())
"""


@dataclass
class Runs:
    """One way to say hello, on one engine."""

    engine: AutoEngine
    name: str
    image: str
    command: Sequence[str] = ()
    seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)

    def run(self) -> None:
        os.environ[ENGINE_VARIABLE] = self.name
        lines: list[str] = []
        spec = ContainerSpec("bench", self.image, JOB, self.command, 1024)

        def once() -> None:
            ended = self.engine.start(spec, lines.append).wait()
            if ended is None or ended.code or "hello" not in lines:
                raise SystemExit(f"{self.image}: {ended}: {lines}")

        self.seconds.append(timed(once))
        kib = sum(int(line.split()[1]) for line in lines if line.startswith("peak "))
        self.peak_mb.append(kib * 1.024 / 1000)

    def told(self) -> str:
        peak = f"{max(self.peak_mb):5.0f} MB" if max(self.peak_mb) else "       -"
        return f"{milliseconds(self.seconds):>22}   {peak}"


def main() -> None:
    program = onefile()
    with (
        tempfile.TemporaryDirectory(prefix="scar-bench-") as folder,
        served_registry(Path(folder, "data")) as (registry, client),
    ):
        ecr(registry, "create_repository", repositoryName="scar")
        made = _images(Path(folder), program)
        images = {
            name: client.push("scar", f"v{number}", image)
            for number, (name, image) in enumerate(made.items())
        }
        runs = {}
        for name in ("bubblewrap", "docker"):
            os.environ[ENGINE_VARIABLE] = name
            engine = AutoEngine(registry, Path(folder, name))
            report = engine.report()
            if report["engine"] != name:
                print(f"\n{name}: {report['why']}")
                continue
            for what, image in images.items():
                if what != HOST or name == "bubblewrap":
                    command = ("/bin/sh", "-c", SCRIPT) if what == SHELL else ()
                    runs[f"{name}: {what}"] = Runs(engine, name, image, command)
        for one in runs.values():  # unpacks or pulls it
            one.run()
            one.seconds.clear()
        for _ in range(ROUNDS):
            for one in runs.values():
                one.run()
        rows = [(name, one.told()) for name, one in runs.items()]
        table("hello in a container, ms (min / median / max) and peak memory", rows)
        if any(one.name == "docker" for one in runs.values()):
            forget_pulled(client.address)


def _images(folder: Path, program: Path | None) -> dict[str, Image]:
    (folder / "script").write_text(SCRIPT)
    config = FunctionConfig("hello", has_script=True)
    own = function_layer(config, folder / "script", None, folder / "layer").path.read_bytes()
    base = layer(*glibc())
    tree = runtime_layer("x86_64").path.read_bytes()
    images = {
        SHELL: Image([base]),
        HOST: Image([own], {"Labels": {HOST_LABEL: "true"}}),
        "the tree": Image([base, tree, own], {"Entrypoint": list(ENTRYPOINT)}),
    }
    if program is not None:
        needed = layer(*libraries(str(program), PYTHON))
        it = layer(directory("opt"), Item("opt/supervisor", program.read_bytes(), 0o755))
        run = {"Entrypoint": ["/opt/supervisor"]}
        images["PyInstaller onefile, boto3"] = Image([base, needed, it, own], run)
    return images


def onefile() -> Path | None:
    """The program, built when it is not there; None where it cannot be."""
    program = WORK / "dist" / "supervisor"
    if program.exists():
        return program
    if not Path(PYTHON).exists():
        print(f"no PyInstaller program to compare with: {PYTHON} is not here")
        return None
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "entry.py").write_text(ENTRY)
    python = str(WORK / "venv" / "bin" / "python")
    steps: list[list[str]] = [
        [PYTHON, "-m", "venv", str(WORK / "venv")],
        [python, "-m", "pip", "install", "--quiet", "pyinstaller", "boto3"],
        [python, "-m", "PyInstaller", "--onefile", "--name", "supervisor", "--log-level", "ERROR",
         "--paths", str(ROOT / "src"), "--hidden-import", "scar_supervisor.storage.s3", "entry.py"],
    ]  # fmt: skip
    for step in steps:
        done = subprocess.run(step, cwd=WORK, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"no PyInstaller program to compare with: {step[:4]}: {done.stderr.strip()}")
            return None
    return program


if __name__ == "__main__":
    main()
