"""What arrived: bytes become an `Event`, or an EventFault. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote_plus

from scar_supervisor.contract import (
    BODY_REFERENCE_HEADER,
    EVENT_REFERENCE,
    FORCE,
    FunctionConfig,
    ObjectPath,
)
from scar_supervisor.faults import EventFault

API_BODY_NAME = "api_event_file"
BODY_NAME = "event_file"
LONGEST_REFERENCE_BYTES = 1024
"""Of an event that only stands for another one."""

_PROVIDERS = {"aws:s3": "s3", "minio:s3": "minio"}


@dataclass(frozen=True)
class InputObject:
    """One object that an event announces; `key` is decoded."""

    provider: str
    bucket: str
    key: str
    size: int | None = None
    time: str = ""
    etag: str = ""
    """Without its quotes."""
    version_id: str = ""
    sequencer: str = ""
    """Orders the writes of one key; the same whenever one write is told of again."""

    @property
    def version(self) -> str:
        """What tells this version of the object from others; empty where nothing does."""
        return self.version_id or self.etag

    @property
    def place(self) -> str:
        """Its bucket, and which storage's that is where it is not the account's own."""
        return self.bucket if self.provider == "s3" else f"{self.provider}://{self.bucket}"

    @property
    def address(self) -> str:
        """Provider, bucket and key."""
        return f"{self.provider}://{self.bucket}/{self.key}"

    @property
    def is_folder_marker(self) -> bool:
        """Whether it only makes a folder show up in consoles: there is nothing to work on."""
        return self.key.endswith("/") and not self.size


@dataclass(frozen=True)
class Event:
    """One event. `text` is what arrived, for EVENT; the script runs once for each object.

    Without objects it runs once, with `body` as its input file where there is one. `variables`
    come from outside (query parameters): they never replace another variable.
    """

    text: str
    objects: tuple[InputObject, ...] = ()
    body: bytes | None = None
    body_name: str = BODY_NAME
    variables: Mapping[str, str] = field(default_factory=dict)
    script: bytes | None = None
    arguments: tuple[str, ...] = ()
    forced: bool = False
    """Whether what was done already for its objects is done again."""
    body_reference: str = ""
    """Where the body is, when it is too large to travel."""

    @property
    def own_program(self) -> Mapping[str, Any]:
        """The script or command that this event brings along, as it stands in it."""
        return json.loads(self.text) if self.script is not None or self.arguments else {}


def parse(raw: bytes) -> Event:
    """The event in `raw`. Raises EventFault where it is not JSON or contradicts itself."""
    try:
        text = raw.decode()
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise EventFault(f"the event is not JSON: {exc}") from exc
    event = Event(text)
    if not isinstance(data, dict):
        return replace(event, body=raw)
    event = replace(
        event, script=_script(data), arguments=_arguments(data), forced=data.get(FORCE) is True
    )
    if _is_request(data):
        return _request(event, data)
    if objects := _objects(data):
        return replace(event, objects=objects)
    if data.keys() - {"script", "cmd_args", FORCE}:
        return replace(event, body=raw)
    return event


def reference_in(raw: bytes) -> str:
    """Where the event is that `raw` only stands for; empty where it is the event itself."""
    if len(raw) > LONGEST_REFERENCE_BYTES or EVENT_REFERENCE.encode() not in raw:
        return ""
    try:
        data = json.loads(raw)
    except ValueError:
        return ""
    return str(data.get(EVENT_REFERENCE, "")) if isinstance(data, dict) else ""


def _script(data: dict[str, Any]) -> bytes | None:
    if "script" not in data:
        return None
    try:
        return base64.b64decode(data["script"], validate=True)
    except (ValueError, TypeError) as exc:
        raise EventFault(f"`script` of the event is not base64 text: {exc}") from exc


def _arguments(data: dict[str, Any]) -> tuple[str, ...]:
    if "cmd_args" not in data:
        return ()
    try:
        arguments = json.loads(data["cmd_args"])
    except (ValueError, TypeError, RecursionError) as exc:
        raise EventFault(f"`cmd_args` of the event is not JSON in a string: {exc}") from exc
    if not isinstance(arguments, list) or not arguments:
        raise EventFault("`cmd_args` of the event is not a JSON list of one or more strings")
    for argument in arguments:
        if not isinstance(argument, str) or "\0" in argument or not _is_utf8(argument):
            raise EventFault(f"`cmd_args` of the event: {argument!r} cannot be an argument")
    return tuple(arguments)


def _objects(data: dict[str, Any]) -> tuple[InputObject, ...]:
    """The objects of a storage event; empty for every other event."""
    records = data.get("Records")
    if not isinstance(records, list) or not records:
        return ()
    sources = [r.get("eventSource") if isinstance(r, dict) else None for r in records]
    if not all(source in _PROVIDERS for source in sources):
        return ()
    return tuple(_object(index, record) for index, record in enumerate(records))


def _object(index: int, record: dict[str, Any]) -> InputObject:
    try:
        bucket = record["s3"]["bucket"]["name"]
        # Encoded as in a form: a space is `+`, a plus is `%2B`. Decoded here and nowhere else.
        key = unquote_plus(record["s3"]["object"]["key"], errors="strict")
        about = record["s3"]["object"]
        size = about.get("size")
        time = record.get("eventTime") or ""
        told = [about.get(name) or "" for name in ("eTag", "versionId", "sequencer")]
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise EventFault(f"`Records[{index}]` of the event has no bucket or key: {exc!r}") from exc
    if not isinstance(bucket, str) or not bucket or not key or not _is_utf8(bucket + key):
        raise EventFault(f"`Records[{index}]` of the event has no usable bucket and key")
    if size is not None and not isinstance(size, int):
        raise EventFault(f"`Records[{index}]` of the event: size {size!r} is not a number")
    etag, version_id, sequencer = map(str, told)
    return InputObject(
        _PROVIDERS[record["eventSource"]],
        *(bucket, key, size, str(time)),
        *(etag.strip('"'), version_id, sequencer),
    )


def _is_request(data: dict[str, Any]) -> bool:
    """Whether API Gateway made it, of a REST API (httpMethod) or an HTTP API (version 2.0)."""
    context = data.get("requestContext")
    return "httpMethod" in data or (isinstance(context, dict) and "http" in context)


def _request(event: Event, data: dict[str, Any]) -> Event:
    parameters = data.get("queryStringParameters") or {}
    if not isinstance(parameters, dict):
        raise EventFault("`queryStringParameters` of the event is not a map")
    variables = {name: str(value) for name, value in parameters.items() if value is not None}
    # A request comes from anyone: it brings data, never a script or a command.
    event = replace(event, variables=variables, script=None, arguments=(), forced=False)
    if reference := _header(data, BODY_REFERENCE_HEADER):
        return replace(event, body_reference=reference, body_name=API_BODY_NAME)
    body = data.get("body")
    if body in (None, ""):
        return event
    if not isinstance(body, str):
        body = json.dumps(body)
    return replace(event, body=_request_body(data, body), body_name=API_BODY_NAME)


def _request_body(data: dict[str, Any], body: str) -> bytes:
    """The request's bytes.

    API Gateway hands binary bodies over as text unless told otherwise, so clients (ours, and
    `base64 FILE | curl -d @-`) send base64 without saying so: what is no JSON and no text by its
    content type and decodes strictly as base64 is taken as base64.
    """
    try:
        raw = body.encode()
    except UnicodeEncodeError as exc:
        raise EventFault("`body` of the event is not text") from exc
    declared = data.get("isBase64Encoded") is True
    kind = _header(data, "content-type").lower()
    if not declared and kind.startswith(("application/json", "text/")):
        return raw
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error as exc:
        if declared:
            raise EventFault(f"`body` of the event is not base64: {exc}") from exc
        return raw


def _header(data: dict[str, Any], wanted: str) -> str:
    headers = data.get("headers")
    if isinstance(headers, dict):
        for name, value in headers.items():
            if name.lower() == wanted:
                return str(value)
    return ""


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def placed(event: Event, config: FunctionConfig) -> Event:
    """The event, its objects with the storage providers that the function's inputs name.

    An event says `minio`, an input which one. What MinIO sends to the function's HTTP endpoint is
    an event too where the function has an input there. Raises EventFault for an object of MinIO
    that is under no input: the credentials must not open all to whoever can send an event.
    """
    if event.body is not None and any(_kind(path) == "minio" for path in config.inputs):
        event = replace(event, **_of_webhook(event.body))
    return replace(event, objects=tuple(_at_home(item, config.inputs) for item in event.objects))


def _of_webhook(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    objects = _objects(data) if isinstance(data, dict) else ()
    # Anybody may call the endpoint: what it says of other storages is data.
    if not objects or any(item.provider != "minio" for item in objects):
        return {}
    # Nor does it bring a program, in the job neither that the event may be handed over to.
    text = json.dumps({"Records": data["Records"]})
    return {"objects": objects, "body": None, "text": text}


def _at_home(item: InputObject, inputs: Sequence[ObjectPath]) -> InputObject:
    holding = [
        path.provider
        for path in inputs
        if _kind(path) == item.provider and path.bucket == item.bucket
        if not path.prefix or item.key.startswith(f"{path.prefix}/")
    ]
    if holding:
        return replace(item, provider=item.provider if item.provider in holding else holding[0])
    if item.provider == "s3":
        return item
    raise EventFault(
        f"`{item.bucket}/{item.key}` of the event is in MinIO, and under no input of the function"
    )


def _kind(path: ObjectPath) -> str:
    return path.provider.partition(".")[0]
