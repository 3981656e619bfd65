"""The daemon: one process that holds a data directory, wires the services and serves their port.

In the data directory: `cloud.db` and `blobs/` (the store), `moto.jsonl`, `lock` (held by flock as
long as the daemon lives), `cloud.json` (where it answers; written when it is ready) and
`daemon.log`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scar_local.batch import Batch
from scar_local.door import Control, Door
from scar_local.engines.auto import AutoEngine
from scar_local.events import Events
from scar_local.functions import Functions
from scar_local.gateway import Gateway
from scar_local.gateway_endpoint import Endpoint
from scar_local.http import Exchange, Server
from scar_local.identity import Sts, Tagging
from scar_local.logs import Logs
from scar_local.others import Moto
from scar_local.prune import Pruning
from scar_local.registry import Registry
from scar_local.s3.body import owned_blobs
from scar_local.s3.service import S3
from scar_local.store import Store

PORT_VARIABLE = "SCAR_LOCAL_PORT"
WRONG_SETTINGS, ALREADY_RUNNING = 2, 75
SWEEP_EVERY_S = 3600
OPEN_FILES = 16384
_log = logging.getLogger(__name__)


class CannotStart(Exception):
    """The daemon cannot run as it was asked to; `exit_code` says which way."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(
    data: Path,
    port: int | None = None,
    url: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Serve `data` until SIGTERM, SIGINT or POST /_scar/stop.

    Without `port` and $SCAR_LOCAL_PORT it takes the port it had before when that is free, else any
    free one. `url` is what clients and containers are told where something stands in front of it.
    When it answers, it prints `cloud.json` as one line; stdout and stderr then go to `daemon.log`.
    Raises CannotStart.
    """
    data = data.absolute()
    _allow_open_files()
    os.umask(0o077)  # what it holds is its owner's alone, in a folder of others' too
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never closed: the kernel lets go of it when all else of this process is over, so that whoever
    # gets the lock next finds no file of ours in use.
    _hold(os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), data)
    logging.basicConfig(
        filename=data / "daemon.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Not an Event: when another thread takes the signal, one that waits for a lock sleeps on.
    asked, ask = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stop = partial(os.write, ask, b"\0")
    cloud = _Cloud(data, _wanted_port(port, environ), _last_port(data), url, stop)
    signal.set_wakeup_fd(ask, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    cloud.start()
    _announce(cloud.about, data)
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    while not poll.poll(SWEEP_EVERY_S * 1000):
        cloud.logs.sweep()
    _log.info("stopping")
    cloud.stop()


class _Cloud:
    """All services of one data directory, and the server in front of them."""

    def __init__(
        self,
        data: Path,
        port: int | None,
        last_port: int,
        url: str | None,
        stop: Callable[[], object],
    ) -> None:
        self._server = _bind(port, last_port, self._answer)
        url = url or f"http://127.0.0.1:{self._server.server_port}"
        self.about: dict[str, Any] = {
            "pid": os.getpid(),
            "port": self._server.server_port,
            "url": url,
            "version": _version(),
            "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "data": str(data),
        }
        self._store = Store(data)
        self.logs = Logs(self._store)
        registry = self._registry = Registry(self._store, lambda: url)
        self._engine = AutoEngine(registry, data)
        try:
            self._functions = Functions(
                self._store,
                self._engine,
                self.logs,
                lambda: url,
                resolve=lambda image: registry.resolve(image).manifest_digest,
            )
        except ValueError as exc:  # a setting in the environment
            raise CannotStart(str(exc), WRONG_SETTINGS) from exc
        moto = Moto(data)
        self._batch = Batch(self._store, self._engine, self.logs, lambda: url, ask=moto.call)
        self._events = Events(self._store, self._functions)
        self._s3 = S3(
            self._store, self._events.record, self._events.wake, self._functions.can_be_invoked_by
        )
        self._gateway = Gateway(self._store)
        services = {
            "apigateway": self._gateway,
            "batch": self._batch,
            "ecr": registry,
            "lambda": self._functions,
            "logs": self.logs,
            "sts": Sts(),
            "tagging": Tagging([self._functions, self._batch, self.logs, registry, self._gateway]),
        }
        self._pruning = Pruning(
            registry, self._engine, (self._functions.images, self._batch.images)
        )
        more = {
            ("GET", "/_scar/ping"): lambda: self.about,
            ("GET", "/_scar/disk"): self._disk,
            ("POST", "/_scar/prune"): self._pruning.prune,
        }
        control = Control(self._status, stop, more, self._batch.changes)
        apis = Endpoint(self._gateway, self._functions)
        self._door = Door(services, self._s3, registry, moto, control, apis)

    def start(self) -> None:
        """Go on with what an earlier daemon left undone, and answer requests.

        Clients that come before wait: the port listens from the beginning.
        """
        self._sweep()
        self._functions.start(self._s3)
        self._batch.start()
        self._events.start()
        for name, target in (("server", self._serve), ("warm-up", self._warm_up)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def stop(self) -> None:
        """End deliveries, jobs and environments, then the server."""
        self._events.stop()
        self._batch.stop()
        self._functions.stop()
        self._engine.stop_all()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, exchange: Exchange) -> None:
        try:
            self._door.answer(exchange)
        finally:
            self._store.release()  # connections of clients stay open for long, and unused

    def _sweep(self) -> None:
        """Remove the blobs that a crash left without a row, S3's and the registry's."""
        self._s3.sweep()
        kept = set(owned_blobs(self._store)) | self._registry.blobs_in_use()
        for blob in set(self._store.all_blobs()) - kept:
            self._store.delete_blob(blob)

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)  # how long `stop` waits for it

    def _warm_up(self) -> None:
        self._engine.prepare()
        self.logs.sweep()

    def _disk(self) -> dict[str, int]:
        """Bytes by what they are for; not part of the status, which has to be quick."""
        return {
            "objects": self._s3.disk_bytes(),
            "images": self._registry.disk_bytes(),
            **self._engine.disk(),
        }

    def _status(self) -> dict[str, Any]:
        report = self._engine.report()
        jobs = self._store.read().execute("SELECT status, count(*) FROM batch_jobs GROUP BY status")
        return {
            **self.about,
            "engine": {"name": report.pop("engine"), **report},
            "counts": {
                **self._s3.counts(),
                **self._functions.counts(),
                **self._gateway.counts(),
                **{f"jobs_{status.lower()}": number for status, number in jobs},
            },
        }


def _allow_open_files() -> None:
    """As many as this user may have: each client's connection is one, and 1024 is the usual limit.

    Containers inherit it, so it stays a number that programs can count up to.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft not in (resource.RLIM_INFINITY, most) and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _hold(lock: int, data: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CannotStart(f"a local cloud runs on {data} already", ALREADY_RUNNING) from None


def _wanted_port(port: int | None, environ: Mapping[str, str]) -> int | None:
    text = environ.get(PORT_VARIABLE, "") if port is None else str(port)
    if not text:
        return None
    if not (text.isdecimal() and 0 <= int(text) < 65536):
        raise CannotStart(f"port {text!r} must be a number from 0 to 65535", WRONG_SETTINGS)
    return int(text)


def _last_port(data: Path) -> int:
    try:
        return int(json.loads((data / "cloud.json").read_text(encoding="utf-8"))["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _bind(port: int | None, last_port: int, answer: Callable[[Exchange], None]) -> Server:
    if port is not None:
        try:
            return Server(port, answer)
        except OSError as exc:
            text = f"cannot listen on 127.0.0.1:{port}: {exc.strerror}; choose another port"
            raise CannotStart(text, WRONG_SETTINGS) from exc
    try:
        return Server(last_port, answer)
    except OSError:
        return Server(0, answer)


def _version() -> str:
    try:
        return version("scar")
    except PackageNotFoundError:
        return "unknown"


def _announce(about: Mapping[str, Any], data: Path) -> None:
    """Write cloud.json, say the same on stdout, and leave both standard streams to the log."""
    text = json.dumps(about)
    new = data / "cloud.json.new"
    new.write_text(text, encoding="utf-8")
    new.replace(data / "cloud.json")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    with (data / "daemon.log").open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
