"""All state of the local cloud: one SQLite database in WAL mode, and blob files beside it.

Nothing lives only in memory: what a method answered is committed first. Writers take turns under
one lock of the process (SQLite's own busy handler sleeps up to 100 ms a try); readers never wait.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IDLE_CONNECTIONS = 8
"""Kept for the next threads; more are closed."""

_log = logging.getLogger(__name__)


def is_out_of_space(exc: BaseException) -> bool:
    """Whether the disk is full, a quota is used up, or a file reached the size it may have."""
    if isinstance(exc, sqlite3.Error):
        return getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(exc, OSError) and exc.errno in full


class Store:
    """The database and the blob folder of one data directory.

    A service calls `install` once with its `CREATE TABLE IF NOT EXISTS` statements.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._idle: list[sqlite3.Connection] = []
        self._writing = threading.Lock()

    def install(self, schema: str) -> None:
        """Create the tables of one service where they are missing."""
        with self._writing:
            self.read().executescript(schema)

    def read(self) -> sqlite3.Connection:
        """This thread's connection, outside a transaction: a statement sees what is committed.

        It is the thread's until `release`, or until the thread ends.
        """
        lease: _Lease | None = getattr(self._local, "lease", None)
        if lease is None:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            lease = self._local.lease = _Lease(connection, self._idle)
        return lease.connection

    def release(self) -> None:
        """This thread needs its connection no more, for now: a waiting thread holds no files."""
        self._local.lease = None

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Keep it short and never wait inside: the whole process writes through this one door. Not
        reentrant: pass the connection on to helpers instead.
        """
        connection = self.read()
        with self._writing:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # some errors, such as a full disk, roll back
                    connection.execute("ROLLBACK")
                raise

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.directory / "cloud.db",
            isolation_level=None,
            timeout=30,
            check_same_thread=False,  # one thread after the other
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def new_blob(self) -> tuple[str, Path]:
        """A fresh blob id and the path to write its bytes to; never made of a user's key."""
        blob = uuid.uuid4().hex
        path = self.blob(blob)
        path.parent.mkdir(exist_ok=True)
        return blob, path

    def blob(self, blob: str) -> Path:
        """Where the bytes of a blob are."""
        return self._blobs / blob[:2] / blob

    def delete_blob(self, blob: str) -> None:
        """Remove a blob's bytes. Never raises: what stays is swept at the next start.

        Whoever calls is done with the blob, and has mostly committed that already.
        """
        try:
            self.blob(blob).unlink(missing_ok=True)
        except OSError as exc:
            _log.warning("blob %s cannot be removed now: %s", blob, exc)

    def all_blobs(self) -> Iterator[str]:
        """Every blob id that has a file, for sweeping the ones without a row at start."""
        return (path.name for path in self._blobs.glob("??/*"))


class _Lease:
    """A connection in the hands of one thread; kept by the thread alone, so it ends with it.

    A connection that is only forgotten keeps its two files open until the garbage collector looks
    at cycles: its cache of statements refers to it.
    """

    def __init__(self, connection: sqlite3.Connection, idle: list[sqlite3.Connection]) -> None:
        self.connection, self._idle = connection, idle

    def __del__(self) -> None:
        if len(self._idle) < _IDLE_CONNECTIONS and not self.connection.in_transaction:
            self._idle.append(self.connection)
        else:
            self.connection.close()
