"""The layer that `make supervisor` builds starts in any image: tried with bubblewrap."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from scar.images.derive import ENTRYPOINT
from scar_supervisor import contract
from tests.conftest import missing
from tests.doubles.supervised import SOURCES, a_config

MACHINES = {"x86_64": 62, "arm64": 183}  # e_machine in the ELF header
BUILT = Path(__file__).parents[2] / "src" / "scar" / "supervisor"
LAYER, MANIFEST = BUILT / "x86_64.tar.gz", BUILT / "x86_64.json"
BASE = {"AWS_BATCH_JOB_ID": "j", "SCAR_EVENT": "{}"}


@pytest.fixture(scope="module")
def manifest():
    if os.uname().machine != "x86_64" or not MANIFEST.exists():
        missing("supervisor", "the supervisor's tree is not built: run `make supervisor`")
    return json.loads(MANIFEST.read_text())


@pytest.fixture(scope="module")
def tree(manifest, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tree")
    with tarfile.open(LAYER) as tar:
        tar.extractall(directory, filter="tar")
    return directory / "opt" / "scar"


@pytest.fixture(scope="module")
def bwrap():
    program = shutil.which("bwrap")
    tried = program and subprocess.run([program, "--ro-bind", "/", "/", "true"], check=False)
    if not tried or tried.returncode:
        missing("bubblewrap", "bubblewrap does not work here")
    return program


@pytest.fixture
def run(tree, bwrap, tmp_path):
    """Run the supervisor as one job in a root file system of these files."""

    def run(files, options=(), script=None, environment=None, **config):
        root, function = tmp_path / "root", tmp_path / "function"
        for folder in ("opt/scar/function", "tmp", "proc", "dev", "bin"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name, source in files.items():
            shutil.copy(source, root / name)
        for name in ("bin", "lib", "app"):
            (root / "opt/scar" / name).mkdir()
        function.mkdir()
        function.chmod(0o755)
        (function / "config.json").write_text(
            a_config(has_script=script is not None, **config).dump()
        )
        if script is not None:
            (function / "script").write_text(script)
        binds = ["--bind", str(root), "/"]
        for name in ("bin", "lib", "app"):
            binds += ["--ro-bind", str(tree / name), f"/opt/scar/{name}"]
        binds += ["--ro-bind", str(function), contract.FUNCTION_DIR]
        command = [bwrap, "--unshare-pid", "--die-with-parent", "--clearenv"]
        for name, value in {**BASE, **(environment or {})}.items():
            command += ["--setenv", name, value]
        command += [*binds, "--dev", "/dev", *options, *ENTRYPOINT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def busybox():
    path = shutil.which("busybox")
    if (
        not path
        or b"statically linked"
        not in subprocess.run(["file", path], capture_output=True, check=False).stdout
    ):
        missing("busybox", "no static busybox here: install Debian's busybox-static")
    return path


def test_the_manifest_describes_the_layer(manifest):
    layer = LAYER.read_bytes()
    assert manifest["size"] == len(layer)
    assert manifest["digest"] == f"sha256:{hashlib.sha256(layer).hexdigest()}"
    assert manifest["diff_id"] == f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}"
    assert manifest["python"].startswith("3.13.")
    assert {"python3.13-minimal", "libc6", "ca-certificates"} <= manifest["packages"].keys()


def test_the_layer_obeys_lambdas_rules(manifest):
    seen = set()
    with tarfile.open(LAYER) as tar:
        for entry in tar:
            parent = entry.name.rpartition("/")[0]
            assert not parent or parent in seen, entry.name
            assert entry.isdir() or entry.isfile() or entry.issym(), entry.name
            assert (entry.uid, entry.gid, entry.mtime) == (0, 0, 0)
            assert entry.name == "opt" or entry.name.startswith(("opt/scar", "opt/scar/"))
            seen.add(entry.name)
    assert {"opt", "opt/scar", "opt/scar/app", "opt/scar/bin/python3"} <= seen


def test_it_starts_in_an_empty_root_and_runs_a_static_program(run):
    image = contract.ImageDefaults(("/bin/busybox", "echo", "hello"))
    code, log = run({"bin/busybox": busybox()}, image=image)
    assert (code, log.splitlines()[0]) == (0, "hello")


def test_an_image_without_a_shell_says_that_a_script_needs_one(run):
    code, log = run({}, script="echo hello")
    assert code == contract.EXIT_CONFIG
    assert "the image has no /bin/sh to run the script with" in log


def test_it_runs_a_script_where_busybox_is_all_there_is(run):
    code, log = run({"bin/sh": busybox()}, script="echo $0 | sh -c 'echo ok'; exit 7")
    assert code == 7, log


@pytest.mark.parametrize(
    "options",
    [
        ("--proc", "/proc"),
        ("--unshare-user", "--uid", "1234", "--gid", "1234"),
        ("--remount-ro", "/", "--tmpfs", "/tmp"),
        ("--proc", "/proc", "--as-pid-1"),
        ("--chdir", "/tmp"),
    ],
)
def test_it_runs_as_anybody_on_any_root(run, options):
    code, log = run({"bin/sh": busybox()}, options, "echo hello; (sleep 60 &); exit 3")
    assert code == 3, log
    assert log.startswith("hello\n")


def test_the_images_loader_variables_reach_the_script_and_only_the_script(run):
    image = contract.ImageDefaults(environment={"LD_LIBRARY_PATH": "/x", "PYTHONHOME": "/y"})
    code, log = run(
        {"bin/sh": busybox()}, (), "echo $LD_LIBRARY_PATH $PYTHONHOME ${LC_CTYPE-unset}",
        image=image,
    )  # fmt: skip
    assert code == 0, log
    # Without /proc nobody can say whether LC_CTYPE is the image's or Python's.
    assert log.startswith("/x /y ")


def test_it_starts_on_this_machines_own_root(tree, tmp_path):
    function = tmp_path / "function"
    function.mkdir()
    (function / "config.json").write_text(a_config().dump())
    (function / "script").write_text("env; exit 5")
    command = [str(tree) + part.removeprefix("/opt/scar") if part.startswith("/opt/scar") else part
               for part in ENTRYPOINT]  # fmt: skip
    done = subprocess.run(
        command,
        env={**BASE, "SCAR_FUNCTION_DIR": str(function), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stdout + done.stderr
    assert "LC_CTYPE" not in done.stdout


def test_all_of_the_supervisor_can_be_imported_in_it(tree):
    modules = sorted(
        str(path.relative_to(SOURCES).with_suffix("")).replace("/", ".")
        for path in (SOURCES / "scar_supervisor").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )
    extra = ["ssl", "ctypes", "hashlib", "traceback", "random", "datetime", "socket", "threading"]
    code = (
        f"import sys; sys.path.insert(0, {str(tree / 'app')!r})\n"
        f"import importlib\nfor name in {modules + extra!r}: importlib.import_module(name)\n"
        "import ssl; ssl.create_default_context(cafile=sys.prefix + '/lib/cacert.pem')\n"
        "import socket; socket.getaddrinfo('localhost', 80)\n"
    )
    command = [str(tree) + part.removeprefix("/opt/scar") if part.startswith("/opt/scar") else part
               for part in ENTRYPOINT[:-1]]  # fmt: skip
    done = subprocess.run([*command, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["x86_64", "arm64"])
def built(request, tmp_path_factory):
    """One architecture's tree and its name."""
    layer = BUILT / f"{request.param}.tar.gz"
    if not layer.exists():
        missing(request.param, f"no tree for {request.param}: run `make supervisor`")
    directory = tmp_path_factory.mktemp(request.param)
    with tarfile.open(layer) as tar:
        tar.extractall(directory, filter="tar")
    return request.param, directory / "opt" / "scar"


def test_every_program_in_a_tree_is_of_its_architecture(built):
    name, tree = built
    programs = {
        path.relative_to(tree).as_posix(): int.from_bytes(head[18:20], "little")
        for path in tree.rglob("*")
        if path.is_file() and (head := path.read_bytes()[:20]).startswith(b"\x7fELF")
    }
    assert {"bin/python3", "lib/ld.so", "lib/libc.so.6", "lib/libssl.so.3"} <= programs.keys()
    assert set(programs.values()) == {MACHINES[name]}


def test_a_tree_needs_no_library_that_is_not_in_it(built):
    _, tree = built
    for path in tree.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.read_bytes()[:4] != b"\x7fELF":
            continue
        told = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
        for line in told.stdout.splitlines():
            if "(NEEDED)" in line:
                needed = line.partition("[")[2].rstrip("]")
                assert (tree / "lib" / needed).exists(), f"{path.name} needs {needed}"


def test_both_trees_hold_the_same_files():
    names = {}
    for name, machine, loader in (
        ("x86_64", "x86_64", "ld-linux-x86-64.so.2"),
        ("arm64", "aarch64", "ld-linux-aarch64.so.1"),
    ):
        if not (BUILT / f"{name}.tar.gz").exists():
            missing(name, f"no tree for {name}: run `make supervisor`")
        with tarfile.open(BUILT / f"{name}.tar.gz") as tar:
            found = {(entry.name, entry.mode, entry.type) for entry in tar}
        names[name] = {
            (path.replace(loader, "LOADER").replace(machine, "MACHINE"), *rest)
            for path, *rest in found
        }
    assert names["x86_64"] == names["arm64"]


def test_the_arm64_tree_runs_a_script(tmp_path):
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None or not (BUILT / "arm64.tar.gz").exists():
        missing("qemu", "needs qemu-user-static and the tree of `make supervisor`")
    with tarfile.open(BUILT / "arm64.tar.gz") as tar:
        tar.extractall(tmp_path, filter="tar")
    (tmp_path / "config.json").write_text(a_config().dump())
    (tmp_path / "script").write_text('echo "$TMP_INPUT_DIR"; (sleep 60 &); exit 6')
    entry = [part.replace("/opt/scar", f"{tmp_path}/opt/scar") for part in ENTRYPOINT]
    done = subprocess.run(
        [emulator, *entry],
        env={**BASE, "SCAR_FUNCTION_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 6, done.stdout + done.stderr
    assert "/tmp/scar-" in done.stdout
