"""The local cloud's daemon, from the outside: start it, ask it, stop it, forget its data.

Everything is said over loopback HTTP and through two files in the data folder: `cloud.json`
(written when it is ready: pid, port, url, version) and `lock` (held while it lives).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scar import __version__, config
from scar.errors import ScarError, UserError

FOLDER_VARIABLE = "SCAR_LOCAL_DIR"
START_LIMIT_S = 15.0
STOP_LIMIT_S = 20.0
REPORT_LIMIT_S = 60.0
PRUNE_LIMIT_S = 600.0

_PING_LIMIT_S = 5.0
_LOOK_EVERY_S = 0.05
_EXIT_BUSY = 75
"""The daemon's exit code where another one holds the lock."""

_OWN = frozenset(
    "blobs cloud.db cloud.db-shm cloud.db-wal cloud.json cloud.json.new daemon.log lock moto.jsonl "
    "rootfs scratch".split()
)
"""All that a local cloud makes in its data folder; what has another name is not ours to delete."""


class LocalCloudFailed(ScarError):
    """The local cloud could not be started or stopped."""

    exit_code = 3


@dataclass(frozen=True)
class Status:
    """A running local cloud; `details` is what it says of itself."""

    url: str
    pid: int
    version: str
    data: Path
    details: Mapping[str, Any]


def data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`$SCAR_LOCAL_DIR`, else `local` in the folder of scar.cfg."""
    if named := environ.get(FOLDER_VARIABLE):
        return Path(named).absolute()
    return config.folder(environ) / "local"


def ensure(data: Path, tell: Callable[[str], None] = lambda text: None) -> str:
    """URL of the running local cloud on `data`, started when there is none.

    Raises LocalCloudFailed where it does not come up within START_LIMIT_S.
    """
    running = status(data) or _start(data)
    if running.version != __version__:
        tell(
            f"the local cloud is of version {running.version}, this is {__version__}: "
            "`scar local stop` lets the next command start the new one"
        )
    return running.url


def status(data: Path) -> Status | None:
    """The running local cloud on `data`; None where there is none."""
    try:
        told = json.loads((data / "cloud.json").read_text(encoding="utf-8"))
        port = int(told["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    details = _request(port, "GET", "/_scar/ping")
    # The port of a dead cloud may by now belong to somebody else, even to another local cloud.
    if details is None or not _is_same(details.get("data"), data):
        return None
    version = str(details.get("version", told.get("version", "")))
    url = str(details.get("url", f"http://127.0.0.1:{port}"))
    return Status(url, int(details["pid"]), version, data, details)


def detailed(running: Status) -> Status:
    """With its whole report as `details`: engines, counts. It tries the engines first: seconds."""
    details = _request(_port(running), "GET", "/_scar/status", REPORT_LIMIT_S)
    return replace(running, details=details or running.details)


def disk(running: Status) -> Mapping[str, int]:
    """Bytes that a running local cloud takes on the disk, by what they are for."""
    return _request(_port(running), "GET", "/_scar/disk", PRUNE_LIMIT_S) or {}


def prune(data: Path, tell: Callable[[str], None] = lambda text: None) -> Mapping[str, Any]:
    """Remove images that no function and no job uses; what went. Starts the local cloud.

    Raises LocalCloudFailed where it does not answer within PRUNE_LIMIT_S.
    """
    ensure(data, tell)
    running = status(data)
    done = running and _request(_port(running), "POST", "/_scar/prune", PRUNE_LIMIT_S)
    if not done:
        raise LocalCloudFailed(
            "the local cloud could not remove its unused images",
            f"see `{data / 'daemon.log'}`; one of another version ends with `scar local stop`",
        )
    return done


def stop(data: Path) -> bool:
    """End the local cloud on `data` with its containers; False where none ran.

    Raises LocalCloudFailed where it still lives after STOP_LIMIT_S.
    """
    running = status(data)
    if running is None:
        return _nobody_there(data)
    _request(_port(running), "POST", "/_scar/stop")
    deadline = time.monotonic() + STOP_LIMIT_S
    while time.monotonic() < deadline:
        with _lock(data) as is_ours:
            if is_ours:
                return True
        time.sleep(_LOOK_EVERY_S)
    raise LocalCloudFailed(
        f"the local cloud (process {running.pid}) did not stop within {STOP_LIMIT_S:.0f} seconds",
        f"see `{data / 'daemon.log'}`; `kill {running.pid}` ends it",
    )


def reset(data: Path) -> bool:
    """Stop the local cloud on `data` and delete all its data; False where there was nothing.

    Raises UserError where the folder is not a local cloud's. Files of others in it stay.
    """
    if not data.exists():
        return False
    _check_ours(data)
    stop(data)
    with _lock(data) as is_ours:
        if not is_ours:
            raise LocalCloudFailed("the local cloud is just starting", "run the command again")
        for name in _OWN - {"lock"}:
            _delete(data / name)
    return True


def _nobody_there(data: Path) -> Literal[False]:
    """Raises LocalCloudFailed where a local cloud lives and does not answer."""
    if (data / "lock").exists():
        with _lock(data) as is_free:
            if not is_free:
                raise LocalCloudFailed(
                    f"the local cloud on `{data}` does not answer",
                    f"the process that holds `{data / 'lock'}` is stuck: end it with `kill`",
                )
    return False


def _start(data: Path) -> Status:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        before = _spawn(data)
        # It is ready; or another command's is about to be, or just ended.
        while time.monotonic() < deadline:
            if running := status(data):
                return running
            time.sleep(_LOOK_EVERY_S)
            with _lock(data) as is_free:
                if is_free:
                    break
        else:
            raise _failed(data, before, f"did not answer within {START_LIMIT_S:.0f} seconds")


def _spawn(data: Path) -> int:
    """Start the daemon and wait until it is ready or steps back for another.

    Gives the size of the log before.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ours(data)
        _keep_private(data)
        log = (data / "daemon.log").open("ab")
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        raise UserError(
            f"cannot write to the local cloud's folder `{data}`: {why}",
            f"set {FOLDER_VARIABLE} to a folder that can be written",
        ) from exc
    with log:
        before = log.tell()
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", "scar_local", "--data", str(data)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=data,
            start_new_session=True,
        )
    assert daemon.stdout is not None
    with daemon.stdout as ready:
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(ready, select.POLLIN)
        if not poll.poll(START_LIMIT_S * 1000):
            daemon.terminate()
            raise _failed(data, before, f"was not ready within {START_LIMIT_S:.0f} seconds")
        if not ready.readline() and daemon.wait() != _EXIT_BUSY:
            raise _failed(data, before, f"ended with exit code {daemon.returncode}")
    return before


def _failed(data: Path, before: int, why: str) -> LocalCloudFailed:
    log = data / "daemon.log"
    with log.open("rb") as file:
        file.seek(before)
        tail = file.read().decode("utf-8", "replace").splitlines()[-15:]
    told = "".join(f"\n   {line}" for line in tail)
    return LocalCloudFailed(f"the local cloud {why}{told}", f"its log is `{log}`")


def _port(running: Status) -> int:
    return int(running.url.rpartition(":")[2])


def _request(
    port: int, method: str, path: str, limit_s: float = _PING_LIMIT_S
) -> dict[str, Any] | None:
    """The JSON answer of whoever listens on `port`; None where nobody does, or no local cloud."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection("127.0.0.1", port, timeout=limit_s)
    try:
        connection.request(method, path, headers={"Content-Length": "0"})
        answer = connection.getresponse()
        body = json.loads(answer.read() or b"{}")
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return body if answer.status == 200 and isinstance(body, dict) else None


def _is_same(named: Any, data: Path) -> bool:
    try:
        return isinstance(named, str) and os.path.samefile(named, data)
    except OSError:
        return False


def _check_ours(data: Path) -> None:
    """Raises UserError where `data` is a folder of something else: we would mix with it."""
    is_folder = data.is_dir()
    names = {entry.name for entry in data.iterdir()} if is_folder else set()
    if not is_folder or (names - _OWN and "cloud.db" not in names):
        raise UserError(
            f"`{data}` is not the data folder of a local cloud",
            f"set {FOLDER_VARIABLE} to a folder of its own",
        )


def _keep_private(data: Path) -> None:
    """Objects and logs are their owner's alone. A folder with other things in it keeps its mode."""
    names = {entry.name for entry in data.iterdir()}
    if names <= _OWN and data.stat().st_uid == os.geteuid():
        data.chmod(0o700)


@contextlib.contextmanager
def _lock(data: Path) -> Iterator[bool]:
    """Hold the daemon's lock; gives False where a living daemon has it."""
    with (data / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _delete(entry: Path) -> None:
    if not entry.is_dir() or entry.is_symlink():
        entry.unlink(missing_ok=True)
        return

    def again(remove: Callable[[str], object], path: str, error: object) -> None:
        # Unpacked images hold folders without write permission.
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path, onerror=again)
        else:
            remove(path)

    shutil.rmtree(entry, onerror=again)
