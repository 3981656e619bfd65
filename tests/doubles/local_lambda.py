"""Lambda, its logs and S3 alone, served to boto3 over a real port; functions are processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from scar_local.door import Control, Door
from scar_local.events import Events
from scar_local.functions import Functions, Settings
from scar_local.http import Exchange, Server
from scar_local.logs import Logs
from scar_local.s3.service import S3
from scar_local.store import Store
from tests.doubles.process_engine import ProcessEngine

IMAGE = "000000000000.dkr.ecr.eu-west-1.amazonaws.com/scar:echo-0123456789abcdef"
ROLE = "arn:aws:iam::000000000000:role/scar-local"
PROGRAM = Path(__file__).with_name("echo_function.py")


class Nothing:
    """The rooms of the local cloud that these tests have not."""

    def handle(self, exchange: Exchange, region: str = "") -> None:
        exchange.reply(404)


class LocalLambda:
    """One data directory; `restart` makes new services on it, as a new daemon would."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self._directory, self._settings = directory, settings
        self.resolve: Callable[[str], str] | None = None
        """Used from the next `restart` on."""
        self.engine = ProcessEngine({IMAGE: PROGRAM})
        self._server = Server(0, lambda exchange: self._door.answer(exchange))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._serving = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._serving.start()
        self.client = self.client_of("lambda")
        self._open()

    def restart(self) -> None:
        self.events.stop()
        self.functions.stop()
        self._open()

    def close(self) -> None:
        self.events.stop()
        self.functions.stop()
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()

    def create(self, name: str = "echo", **changes: Any) -> dict[str, Any]:
        request = {"FunctionName": name, "Role": ROLE, "PackageType": "Image", **changes}
        request.setdefault("Code", {"ImageUri": IMAGE})
        answer: dict[str, Any] = self.client.create_function(**request)
        return answer

    def messages(self, name: str = "echo") -> list[str]:
        """Every line of the function's log, oldest first."""
        rows = self.store.read().execute(
            "SELECT message FROM logs_events JOIN logs_groups ON logs_groups.id = group_id"
            " WHERE name = ? ORDER BY logs_events.id",
            (f"/aws/lambda/{name}",),
        )
        return [row["message"] for row in rows]

    def _open(self) -> None:
        self.store = Store(self._directory)
        self.functions = Functions(
            self.store,
            self.engine,
            Logs(self.store),
            lambda: self.url,
            settings=self._settings,
            resolve=self.resolve,
        )
        self.events = Events(self.store, self.functions)
        s3 = S3(self.store, self.events.record, self.events.wake)
        self.functions.start(s3)
        self.events.start()
        nothing = Nothing()
        control = Control(dict, lambda: None)
        self._door = Door({"lambda": self.functions}, s3, nothing, nothing, control)

    def client_of(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name="eu-west-1",
            endpoint_url=self.url,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=32),
        )
