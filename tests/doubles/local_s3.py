"""S3 and its events alone, served to boto3 over a real port; functions are a list of names."""

from __future__ import annotations

import http.client
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from scar_local.events import Events
from scar_local.http import Exchange, Server
from scar_local.protocol import ApiError
from scar_local.s3.service import S3
from scar_local.store import Store


class RecordingFunctions:
    """Takes every invocation down; commits with the caller's transaction as the real one does."""

    def __init__(self, store: Store, names: set[str]) -> None:
        self._store, self.names = store, names
        self._woken = threading.Condition()
        store.install("CREATE TABLE IF NOT EXISTS test_queue (name TEXT, payload TEXT)")

    def enqueue(self, db: sqlite3.Connection, name: str, payload: bytes, source: str = "") -> str:
        if name not in self.names:
            raise ApiError("ResourceNotFoundException", f"Function not found: {name}", 404)
        db.execute("INSERT INTO test_queue VALUES (?, ?)", (name, payload.decode()))
        return "request"

    def wake(self) -> None:
        with self._woken:
            self._woken.notify_all()

    def can_be_invoked_by(self, bucket: str, function_arn: str) -> bool:
        return function_arn.rpartition(":")[2] in self.names

    def invocations(self, count: int, timeout_s: float = 10.0) -> list[tuple[str, dict[str, Any]]]:
        """Wait for at least `count`; every (function, record) so far."""
        with self._woken:
            self._woken.wait_for(lambda: len(self._all()) >= count, timeout_s)
        return [(name, json.loads(text)["Records"][0]) for name, text in self._all()]

    def _all(self) -> list[tuple[str, str]]:
        rows = self._store.read().execute("SELECT name, payload FROM test_queue ORDER BY rowid")
        return [(row[0], row[1]) for row in rows]


class LocalS3:
    """One data directory; `reopen` makes new services on it, as a new daemon would."""

    def __init__(self, directory: Path, region: str = "us-east-1") -> None:
        self.directory, self.region = directory, region
        self.names = {"f", "g"}
        self._server = Server(0, self._answer)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._serving = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._serving.start()
        self.open()
        self.client = self.client_for("us-east-1")

    def open(self) -> None:
        """New services on the data directory."""
        self.store = Store(self.directory)
        self.functions = RecordingFunctions(self.store, self.names)
        self.events = Events(self.store, self.functions)
        self.s3 = S3(
            self.store, self.events.record, self.events.wake, self.functions.can_be_invoked_by
        )
        self.swept = self.s3.sweep()
        self.events.start()

    def reopen(self) -> None:
        self.events.stop()
        self.open()

    def close(self) -> None:
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()
        self.events.stop()

    def client_for(self, region: str, **config: Any) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=region,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(retries={"max_attempts": 1}, max_pool_connections=20, **config),
        )

    def blobs(self) -> set[str]:
        return set(self.store.all_blobs())

    def raw(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request exactly as given: status, headers (lower case), body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            skip_host = "Host" in (headers or {})
            connection.putrequest(method, path, skip_host=skip_host, skip_accept_encoding=True)
            given = {"Content-Length": str(len(body)), **(headers or {})}
            for name, value in given.items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def _answer(self, exchange: Exchange) -> None:
        scope = exchange.headers.get("Authorization", "").partition("Credential=")[2].split("/")
        self.s3.handle(exchange, scope[2] if len(scope) > 2 else self.region)
