"""Builds the layer that runs the supervisor in any image: a Python of its own and scar_supervisor.

The Python comes from Debian packages, fetched with a private apt root (no root needed, nothing of
the machine's own package state is touched) and trimmed; it is cached under build/, so a change of
the supervisor's sources costs about a second and no network. Two runs give the same bytes.

The packages are those of supervisor.lock.json, by version and sha256. Debian's mirrors drop old
versions: where one is gone, the build takes what is there and says so; --refresh takes the newest
and writes them down.

    python tools/build_supervisor.py [--arch host|all|amd64|arm64] [--refresh]
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "scar_supervisor"
OUTPUT = ROOT / "src" / "scar" / "supervisor"
CACHE = ROOT / "build" / "supervisor"
LOCK = Path(__file__).with_name("supervisor.lock.json")

SUITE = "trixie"
PYTHON = "3.13"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FALLBACK_MIRROR = "http://deb.debian.org/debian"
FALLBACK_SECURITY_MIRROR = "http://deb.debian.org/debian-security"
PACKAGES = (
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "libc6",
    "libssl3t64",
    "libffi8",
    "libexpat1",
    "zlib1g",
    "libzstd1",
    "ca-certificates",
)

# Standard library modules that the supervisor never imports, by name in lib/python3.13.
UNUSED_TEXT = """
    test tests idlelib tkinter turtle.py turtledemo ensurepip venv pydoc.py pydoc_data sqlite3
    curses dbm xmlrpc wsgiref config-* __phello__* LICENSE.txt lib-dynload __pycache__ asyncio
    multiprocessing unittest doctest.py pdb.py bdb.py _pyrepl imaplib.py ftplib.py poplib.py
    smtplib.py mailbox.py antigravity.py this.py _pydecimal.py pickletools.py tabnanny.py
    trace.py profile.py cProfile.py pstats.py timeit.py webbrowser.py pyclbr.py
    _aix_support.py _osx_support.py _android_support.py _apple_support.py _ios_support.py
    zoneinfo tomllib sitecustomize.py optparse.py argparse.py statistics.py difflib.py cmd.py
    code.py plistlib.py rlcompleter.py xml html pathlib sysconfig fractions.py decimal.py
    _pydatetime.py symtable.py wave.py zipapp.py zipfile tarfile.py cgi.py modulefinder.py
    netrc.py getpass.py fileinput.py filecmp.py csv.py configparser.py gettext.py optparse.py
    sched.py socketserver.py nturl2path.py pkgutil.py py_compile.py compileall.py shelve.py
    pickle.py _pylong.py ntpath.py _strptime.py _sysconfigdata* _sitebuiltins.py crypt.py
    xdrlib.py imghdr.py sndhdr.py graphlib.py
"""
UNUSED = tuple(UNUSED_TEXT.split())
# dataclasses imports inspect for these three: a third of the supervisor's start.
INSPECT = '''"""What dataclasses needs of inspect."""


def get_annotations(cls):
    return dict(cls.__dict__.get("__annotations__", {}))


def signature(cls):
    raise ValueError("no signatures here")


def unwrap(function):
    return function
'''
ENTRY = """import os

from scar_supervisor.__main__ import main

# Not sys.exit: ending the interpreter in good order takes 8 ms and gives nothing more.
os._exit(main())
"""
USED_EXTENSIONS = {"_ssl", "_hashlib", "_ctypes", "_json", "mmap", "resource", "_queue"}
UNUSED_CODECS = re.compile(
    r"(cp\d(?!37\.)|mac_|iso8859_(?!1\.)|big5|euc_|gb|hz|iso2022|johab|koi8|kz|ptcp|shift|tis|hp_"
    r"|palmos|uu_codec|zlib_codec|bz2_codec|quopri|rot_13|mbcs|oem)"
)


@dataclass(frozen=True)
class Architecture:
    """One architecture's names: Debian's, Linux's, its loader's and Lambda's."""

    debian: str
    machine: str
    loader: str
    name: str

    @property
    def triplet(self) -> str:
        """Debian's directory of this architecture's libraries."""
        return f"{self.machine}-linux-gnu"


ARCHITECTURES = {
    "amd64": Architecture("amd64", "x86_64", "ld-linux-x86-64.so.2", "x86_64"),
    "arm64": Architecture("arm64", "aarch64", "ld-linux-aarch64.so.1", "arm64"),
}
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}


def main() -> int:
    """Build the layers of one or all architectures into src/scar/supervisor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = ["host", "all", *sorted(ARCHITECTURES)]
    parser.add_argument("--arch", choices=choices, default="host", help="default: this machine's")
    parser.add_argument("--refresh", action="store_true", help="take the newest Debian packages")
    arguments = parser.parse_args()
    names = {"host": [native()], "all": sorted(ARCHITECTURES)}.get(arguments.arch, [arguments.arch])
    if arguments.refresh:
        names = sorted(ARCHITECTURES)
        LOCK.unlink(missing_ok=True)
        shutil.rmtree(CACHE, ignore_errors=True)
    built = {name: built_runtime(ARCHITECTURES[name]) for name in names}
    if arguments.refresh:
        locked = {name: runtime.packages for name, runtime in built.items()}
        LOCK.write_text(json.dumps(locked, indent=1, sort_keys=True) + "\n")
        for runtime in built.values():  # it was built of just these
            directory = runtime.directory
            directory.rename(CACHE / f"{directory.name.partition('-')[0]}-{_recipe()}")
        built = {name: built_runtime(ARCHITECTURES[name]) for name in names}
    for name, runtime in built.items():
        digest = write_layer(ARCHITECTURES[name], runtime)
        print(f"{OUTPUT / ARCHITECTURES[name].name}.tar.gz  {digest}")
    return 0


def native() -> str:
    """Debian's name of this machine's architecture."""
    name = NATIVE.get(platform.machine())
    if name is None:
        raise SystemExit(f"the supervisor cannot be built on a {platform.machine()} machine")
    return name


@dataclass(frozen=True)
class Runtime:
    """The part of a layer that does not depend on our sources, in a directory of its own.

    `head.json` describes `head.deflate`: the part's tar entries, compressed up to a byte boundary,
    so that the layer's rest can be appended without compressing 20 MB again.
    """

    directory: Path

    @property
    def tree(self) -> Path:
        """The files, rooted at opt/scar."""
        return self.directory / "tree" / "opt" / "scar"

    @property
    def packages(self) -> dict[str, dict[str, str]]:
        """Version and sha256 of each Debian package in it."""
        found: dict[str, dict[str, str]] = json.loads(
            (self.directory / "packages.json").read_text()
        )
        return found


def built_runtime(architecture: Architecture) -> Runtime:
    """The runtime for this recipe from the cache, or built now."""
    directory = CACHE / f"{architecture.debian}-{_recipe()}"
    if not (directory / "head.json").exists():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _build_runtime(architecture, Runtime(partial))
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    return Runtime(directory)


def write_layer(architecture: Architecture, runtime: Runtime) -> str:
    """Write the layer and its manifest; the layer's digest."""
    head = json.loads((runtime.directory / "head.json").read_text())
    raw_head = (runtime.directory / "head.deflate").read_bytes()
    app = _app_tar(_compiled(runtime))
    diff_id = hashlib.sha256(_inflated(raw_head))
    diff_id.update(app)
    rest = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    raw_rest = rest.compress(app) + rest.flush(zlib.Z_FINISH)
    length = head["length"] + len(app)
    trailer = struct.pack("<II", zlib.crc32(app, head["crc32"]), length & 0xFFFFFFFF)
    layer = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff" + raw_head + raw_rest + trailer
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    manifest = {
        "digest": digest,
        "size": len(layer),
        "diff_id": f"sha256:{diff_id.hexdigest()}",
        "python": head["python"],
        "packages": runtime.packages,
        "sources_sha256": sources_sha256(SOURCES),
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    _replace(OUTPUT / f"{architecture.name}.tar.gz", layer)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    _replace(OUTPUT / f"{architecture.name}.json", text.encode())
    return digest


def sources_sha256(package: Path) -> str:
    """The state of the supervisor's sources: says whether a built layer is stale.

    sha256 over one line `path NUL sha256-of-content LF` for each .py file, sorted by path.
    """
    whole = hashlib.sha256()
    for path in sorted(p.relative_to(package).as_posix() for p in package.rglob("*.py")):
        content = hashlib.sha256((package / path).read_bytes()).hexdigest()
        whole.update(f"{path}\0{content}\n".encode())
    return whole.hexdigest()


def _recipe() -> str:
    lock = LOCK.read_bytes() if LOCK.exists() else b""
    return hashlib.sha256(Path(__file__).read_bytes() + lock).hexdigest()[:12]


def _build_runtime(architecture: Architecture, runtime: Runtime) -> None:
    packages = _fetch(architecture, runtime.directory)
    unpacked = runtime.directory / "unpacked"
    _assemble(architecture, unpacked, runtime.tree)
    _compile_tree(_interpreter(architecture, runtime), runtime.tree / "lib" / f"python{PYTHON}")
    (runtime.directory / "packages.json").write_text(json.dumps(packages, indent=1))
    tar = b"".join(_entries(runtime.tree.parent.parent))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    compressed = deflate.compress(tar) + deflate.flush(zlib.Z_FULL_FLUSH)
    (runtime.directory / "head.deflate").write_bytes(compressed)
    shutil.rmtree(unpacked)
    shutil.rmtree(runtime.directory / "apt")
    version = packages[f"python{PYTHON}-minimal"]["version"]
    head = {"length": len(tar), "crc32": zlib.crc32(tar), "python": version}
    (runtime.directory / "head.json").write_text(json.dumps(head))


def _fetch(architecture: Architecture, directory: Path) -> dict[str, dict[str, str]]:
    """Download and unpack the packages below `directory`/unpacked; their versions and digests."""
    apt = directory / "apt"
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(_sources_list(architecture))
    options = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": apt,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "APT::Architecture": architecture.debian,
        "APT::Architectures": architecture.debian,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
    }
    command = ["apt-get", "-qq"]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    _run([*command, "update"])
    locked = _locked(architecture)
    for name in PACKAGES:
        _download(command, name, locked.get(name, {}).get("version"), apt / "debs")
    packages = {}
    for deb in sorted((apt / "debs").glob("*.deb")):
        name, version = _output(["dpkg-deb", "-W", str(deb)]).split()
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        packages[name] = {"version": version, "sha256": digest}
        if locked.get(name, packages[name])["version"] == version:
            _check_digest(name, packages[name], locked.get(name, packages[name]))
        _run(["dpkg-deb", "-x", str(deb), str(directory / "unpacked")])
    return packages


def _locked(architecture: Architecture) -> dict[str, dict[str, str]]:
    locked: dict[str, dict[str, dict[str, str]]]
    locked = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    return locked.get(architecture.debian, {})


def _download(apt_get: list[str], name: str, version: str | None, directory: Path) -> None:
    if version is not None:
        wanted = [*apt_get, "download", f"{name}={version}"]
        if subprocess.run(wanted, cwd=directory, capture_output=True, check=False).returncode == 0:
            return
        print(f"{name} {version} is on no mirror any more: taking what there is", file=sys.stderr)
    _run([*apt_get, "download", name], cwd=directory)


def _check_digest(name: str, found: dict[str, str], locked: dict[str, str]) -> None:
    if found["sha256"] != locked["sha256"]:
        raise SystemExit(f"{name} {found['version']} is not the file that {LOCK.name} names")


def _sources_list(architecture: Architecture) -> str:
    """The machine's own Debian mirrors, asked for another suite."""
    found = set()
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt").glob("sources.list.d/*")]:
        if path.is_file():
            found |= set(re.findall(r"https?://[^\s\]]+", path.read_text(errors="replace")))
    mirrors = {url.rstrip("/") for url in found}
    main = sorted(u for u in mirrors if u.endswith("/debian")) or [FALLBACK_MIRROR]
    security = sorted(u for u in mirrors if u.endswith("/debian-security")) or [
        FALLBACK_SECURITY_MIRROR
    ]
    options = f"[arch={architecture.debian} signed-by={KEYRING}]"
    return (
        f"deb {options} {main[0]} {SUITE} main\ndeb {options} {security[0]} {SUITE}-security main\n"
    )


def _assemble(architecture: Architecture, unpacked: Path, tree: Path) -> None:
    """Copy what the supervisor needs of the unpacked packages into `tree`."""
    for folder in ("bin", "lib", "tmp"):
        (tree / folder).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)  # for images without a /tmp that their user could write to
    shutil.copy(unpacked / f"usr/bin/python{PYTHON}", tree / "bin" / "python3")
    shutil.copy(_library(architecture, unpacked, architecture.loader), tree / "lib" / "ld.so")
    # libc.so.6 needs the loader by its own name.
    (tree / "lib" / architecture.loader).symlink_to("ld.so")
    library = unpacked / f"usr/lib/python{PYTHON}"
    target = tree / "lib" / f"python{PYTHON}"
    shutil.copytree(library, target, ignore=_unused)
    (target / "inspect.py").write_text(INSPECT)
    (target / "lib-dynload").mkdir()
    for path in (library / "lib-dynload").iterdir():
        if path.name.split(".")[0] in USED_EXTENSIONS:
            shutil.copy(path, target / "lib-dynload")
    _copy_libraries(architecture, unpacked, tree)
    certificates = sorted((unpacked / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    bundle = "".join(path.read_text() for path in certificates)
    (tree / "lib" / "cacert.pem").write_text(bundle)


def _unused(directory: str, names: list[str]) -> list[str]:
    if Path(directory).name == f"python{PYTHON}":
        return [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in UNUSED)]
    if Path(directory).name == "encodings":
        return [n for n in names if n == "__pycache__" or UNUSED_CODECS.match(n)]
    return [n for n in names if n in ("__pycache__", "test", "tests")]


def _copy_libraries(architecture: Architecture, unpacked: Path, tree: Path) -> None:
    waiting = [tree / "bin" / "python3", *tree.rglob("*.so")]
    seen = {architecture.loader}
    while waiting:
        dynamic = _output(["readelf", "-d", str(waiting.pop())])
        for name in re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic):
            if name not in seen:
                seen.add(name)
                copied = shutil.copy(_library(architecture, unpacked, name), tree / "lib" / name)
                waiting.append(Path(copied))


def _library(architecture: Architecture, unpacked: Path, name: str) -> Path:
    folders = [f"{usr}lib/{architecture.triplet}" for usr in ("", "usr/")]
    for folder in [*folders, "lib", "usr/lib", "lib64", "usr/lib64"]:
        path = unpacked / folder / name
        if path.exists():
            return path.resolve()
    raise SystemExit(f"no package of {', '.join(PACKAGES)} holds {name}")


def _interpreter(architecture: Architecture, runtime: Runtime) -> list[str]:
    """A command that starts a Python of the same version on this machine, for byte-compiling."""
    here = native()
    tree = runtime.tree
    if here != architecture.debian:
        tree = built_runtime(ARCHITECTURES[here]).tree
    return [
        str(tree / "lib" / "ld.so"),
        "--inhibit-cache",
        "--library-path",
        str(tree / "lib"),
        "--argv0",
        str(tree / "bin" / "python3"),
        str(tree / "bin" / "python3"),
        "-I",
        "-S",
        "-B",
    ]


# Unchecked: no stat of a source at run time. The .pyc takes the place of its .py (no __pycache__).
_COMPILE = """
import sys, os, _frozen_importlib_external as external, _imp
top, shown = sys.argv[1:]
for directory, _, names in os.walk(top):
    for name in names:
        if name.endswith(".py"):
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                source = file.read()
            label = os.path.join(shown, os.path.relpath(path, top))
            code = compile(source, label, "exec", dont_inherit=True)
            digest = _imp.source_hash(external._RAW_MAGIC_NUMBER, source)
            data = external._code_to_hash_pyc(code, digest, False)
            with open(path + "c", "wb") as file:
                file.write(data)
            os.unlink(path)
"""


def _compile_tree(interpreter: list[str], directory: Path, shown: str | None = None) -> None:
    label = shown or f"/opt/scar/lib/{directory.name}"
    _run([*interpreter, "-c", _COMPILE, str(directory), label])


def _compiled(runtime: Runtime) -> Path:
    """The app directory: our package, byte-compiled, and the entry that calls it."""
    work = runtime.directory / f"app.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    app = work / "opt" / "scar" / "app"
    shutil.copytree(SOURCES, app / "scar_supervisor", ignore=shutil.ignore_patterns("__pycache__"))
    (app / "__main__.py").write_text(ENTRY)
    architecture = next(
        a for a in ARCHITECTURES.values() if runtime.directory.name.startswith(a.debian)
    )
    _compile_tree(_interpreter(architecture, runtime), app, "/opt/scar/app")
    return work


def _app_tar(work: Path) -> bytes:
    app = b"".join(entry for entry in _entries(work, skip=("opt", "opt/scar")))
    shutil.rmtree(work)
    end = tarfile.BLOCKSIZE * 2
    return app + b"\0" * end


def _entries(root: Path, skip: Iterable[str] = ()) -> Iterator[bytes]:
    """Tar entries of everything below `root`: parents first, no owner, no date, no hard links."""
    for path in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).parts):
        name = path.relative_to(root).as_posix()
        if name in skip:
            continue
        entry = tarfile.TarInfo(name)
        status = path.lstat()
        content = b""
        if path.is_symlink():
            entry.type, entry.mode = tarfile.SYMTYPE, 0o777
            entry.linkname = os.readlink(path)
        elif path.is_dir():
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if status.st_mode & stat.S_ISVTX else 0o755
        else:
            content = path.read_bytes()
            entry.size = len(content)
            entry.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        padding = -len(content) % tarfile.BLOCKSIZE
        yield entry.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * padding


def _inflated(raw: bytes) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        raise SystemExit(f"`{command[0]}` ended with exit code {done.returncode}")


def _output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
