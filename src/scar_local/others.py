"""Every AWS service that is not ours (IAM, EC2, EventBridge, SQS, …), answered by moto.

moto keeps all in memory. What changes its state is therefore written to a journal, with the seed of
the random identifiers it made up, and is done again at the first use after a restart. The first
request to each service and region is written too, whatever it is: it makes moto create defaults
(EC2: a VPC and its subnets), which must get the same identifiers again. moto is imported at first
use: 0.5 s and 100 MB.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

from scar_local.http import Exchange
from scar_local.protocol import ACCOUNT_ID, ApiError, read_whole

Wsgi = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]

_READ = re.compile("Describe|Get|List|BatchGet|Head|Simulate|Lookup|Search")
_SCOPE = re.compile(r"Credential=[^/]+/\d+/([^/]*/[^/]+)/")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One request as the journal keeps it, and the status of its answer."""

    method: str
    url: str
    headers: dict[str, str]
    body: str
    """Base64."""
    seed: int
    status: int = 0


class Moto:
    """moto in this process. One request at a time: moto's state is not made for threads."""

    def __init__(self, directory: Path) -> None:
        self._journal = directory / "moto.jsonl"
        self._app: Wsgi | None = None
        self._touched: set[str] = set()
        self._lock = threading.Lock()

    def handle(self, exchange: Exchange) -> None:
        """Answer the exchange. Raises ApiError (501) where moto is missing or does not know it."""
        url = exchange.path + (f"?{exchange.raw_query}" if exchange.raw_query else "")
        headers = dict(exchange.headers.items())
        status, answered, data = self._ask(exchange.method, url, headers, read_whole(exchange.body))
        length = {"content-length", "connection", "date", "server"}
        kept = {name: value for name, value in answered.items() if name.lower() not in length}
        exchange.reply(status, data, kept)

    def call(self, target: str, region: str, params: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and answer of an operation of a JSON service: `secretsmanager.GetSecretValue`.

        Raises ApiError as `handle` does.
        """
        service = "ssm" if target.startswith("AmazonSSM.") else target.partition(".")[0]
        headers = {
            "Host": f"{service}.{region}.amazonaws.com",
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": target,
            "Authorization": f"AWS4-HMAC-SHA256 Credential=local/20260101/{region}/{service}"
            "/aws4_request, SignedHeaders=host, Signature=none",
        }
        status, _, data = self._ask("POST", "/", headers, json.dumps(params).encode())
        return status, json.loads(data)

    def _ask(
        self, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        with self._lock:
            app = self._app or self._load()
            text, seed = base64.b64encode(body).decode(), random.getrandbits(62)
            entry = Entry(method, url, headers, text, seed)
            status, answered, data = _run(app, entry)
            self._keep(Entry(**{**asdict(entry), "status": status}))
        return status, answered, data

    def _load(self) -> Wsgi:
        # read by moto whenever it needs them; without the images EC2 starts 1 to 6 s earlier
        os.environ["MOTO_ACCOUNT_ID"] = ACCOUNT_ID
        os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
        os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"  # AWS's own: 0.07 s, 15 MB
        try:
            from moto.moto_server import werkzeug_app
        except ImportError as exc:
            text = f"this service needs the local cloud's extra ({exc}): pip install 'scar[local]'"
            raise ApiError("NotImplemented", text, 501) from exc
        app: Wsgi = werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
        self._replay(app)
        self._app = app
        return app

    def _keep(self, entry: Entry) -> None:
        changed = entry.status < 300 and not _READ.match(_action(entry))
        scope = _scope(entry)
        if changed or scope not in self._touched:
            self._touched.add(scope)
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(entry)) + "\n")

    def _replay(self, app: Wsgi) -> None:
        stamp = json.dumps({"moto": _moto_version()})
        text = self._journal.read_text(encoding="utf-8") if self._journal.exists() else ""
        if not text.endswith("\n"):  # new, or killed while writing the last line
            with self._journal.open("a", encoding="utf-8") as file:
                file.write("\n" if text else stamp + "\n")
        first, *lines = text.splitlines() or [stamp]
        if first != stamp:
            _log.warning("moto.jsonl was begun with %s; this is %s", first, stamp)
        for number, line in enumerate(lines, start=2):
            self._replay_line(app, number, line)

    def _replay_line(self, app: Wsgi, number: int, line: str) -> None:
        try:
            entry = Entry(**json.loads(line))
            status, _, data = _run(app, entry)
        except Exception:  # one entry that fails must not take the others along
            _log.exception("moto.jsonl:%s cannot be done again", number)
            return
        self._touched.add(_scope(entry))
        if status != entry.status:
            words = (number, _action(entry), status, entry.status, data[:500])
            _log.warning("moto.jsonl:%s: %s answers %s now, %s then: %s", *words)


def _moto_version() -> str:
    import moto

    return str(moto.__version__)


def _run(app: Wsgi, entry: Entry) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of moto's answer; the same seed makes the same identifiers."""
    from moto.moto_api._internal import mock_random

    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], *_: object) -> None:
        started.append((status, headers))

    mock_random.seed(entry.seed)
    try:
        data = b"".join(app(_environ(entry), start))
    except NotImplementedError as exc:
        text = f"{_action(entry)} is not in the local cloud: moto says {exc or 'nothing'}"
        raise ApiError("NotImplemented", text, 501) from exc
    status, headers = started[-1]
    return int(status[:3]), dict(headers), data


def _environ(entry: Entry) -> dict[str, Any]:
    """The request as WSGI has it (PEP 3333)."""
    path, _, query = entry.url.partition("?")
    body = base64.b64decode(entry.body)
    headers = {f"HTTP_{k.upper().replace('-', '_')}": v for k, v in entry.headers.items()}
    return {
        **headers,
        "REQUEST_METHOD": entry.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": entry.url,
        "REQUEST_URI": entry.url,
        "CONTENT_TYPE": headers.get("HTTP_CONTENT_TYPE", ""),
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def _header(headers: Mapping[str, str], wanted: str) -> str:
    return next((value for name, value in headers.items() if name.lower() == wanted), "")


def _scope(entry: Entry) -> str:
    """`<region>/<service>` of the signature."""
    match = _SCOPE.search(_header(entry.headers, "authorization"))
    return match[1] if match else ""


def _action(entry: Entry) -> str:
    """The operation's name; for REST services only whether it reads or writes."""
    if target := _header(entry.headers, "x-amz-target"):
        return target.rpartition(".")[2]
    form = parse_qs(base64.b64decode(entry.body).decode(errors="replace"))
    query = parse_qs(entry.url.partition("?")[2])
    if action := form.get("Action") or query.get("Action"):
        return action[0]
    return f"{'Get' if entry.method in ('GET', 'HEAD') else 'Change'} {entry.url}"
