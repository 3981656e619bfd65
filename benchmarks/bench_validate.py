"""How long `scar validate` takes for a file of 50 functions."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import milliseconds, table, timed

FUNCTION = """\
    - lambda:
        name: step-{n}
        init_script: step.sh
        memory: 1024
        execution_mode: batch
        container:
          image: host
          environment:
            Variables: {{STEP: "{n}", MODE: fast}}
        input: [{{storage_provider: s3, path: data/step-{n}}}]
        output: [{{storage_provider: s3, path: data/step-{following}, suffix: [.txt]}}]
      batch:
        vcpus: 2
        memory: 2048
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "step.sh").write_text("#!/bin/sh\n")
        for count in (1, 50):
            functions = [FUNCTION.format(n=n, following=n + 1) for n in range(count)]
            (folder / f"{count}.yaml").write_text("functions:\n  aws:\n" + "".join(functions))
        environment = {**os.environ, "SCAR_CONFIG_FOLDER": str(folder / "home")}
        rows = []
        for count in (1, 50):
            command = [sys.executable, "-m", "scar", "--local", "validate", "-f", f"{count}.yaml"]

            def run(command: list[str] = command) -> None:
                subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, check=True
                )

            run()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = [timed(run) for _ in range(10)]
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 10
            functions_ = f"{count} function{'s' if count > 1 else ''}"
            rows.append((f"scar validate, {functions_}", milliseconds(took)))
            rows.append(("  of that the processor's", f"{1000 * cpu:.0f}"))
    table("scar validate, ms (min / median / max)", rows)


if __name__ == "__main__":
    main()
