"""AWS's wire formats, from botocore's own service models: requests parsed, answers serialised.

Protocols: rest-json, json and query (https://smithy.io/2.0/aws/protocols/). botocore takes 60 ms to
import: import this module where a request needs it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import cache
from html import escape
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote

from botocore import xform_name
from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel, Shape
from botocore.utils import parse_timestamp
from botocore.validate import ParamValidator

from scar_local.protocol import Answer, ApiError, Call, Request, error_answer

INVALID = {
    "apigateway": "BadRequestException",
    "batch": "ClientException",
    "ecr": "InvalidParameterException",
    "lambda": "ValidationException",
    "logs": "InvalidParameterException",
    "resourcegroupstaggingapi": "InvalidParameterException",
    "sts": "ValidationError",
}
"""The error code with which each service refuses parameters that do not fit its model."""


class Codec:
    """Translates one service between the wire and the objects that implement it.

    `service` is botocore's name, such as `lambda` or `resourcegroupstaggingapi`.
    """

    def __init__(self, service: str, model: ServiceModel | None = None) -> None:
        self.service = service
        self._model = model or ServiceModel(
            Loader().load_service_model(service, "service-2"), service
        )
        self.protocol = str(self._model.resolved_protocol)
        if self.protocol == "rest-json":
            self._find: Callable[[Call], tuple[str, dict[str, str]]] = _Routes(self._model).find
        else:
            self._find = self._named

    def serve(self, implementation: object, call: Call, region: str) -> Answer:
        """Parse the call, let the service's method answer it, and serialise what it said.

        ApiError becomes an answer; anything else a method raises is a fault and is passed on.
        """
        try:
            name, labels = self._find(call)
            method = getattr(implementation, xform_name(name), None)
            if method is None:
                raise self._missing(name)
            operation = self._model.operation_model(name)
            params = self._params(operation, labels, call)
            self._validate(operation, params)
            return self._answer(operation, method(Request(name, region, params)) or {})
        except ApiError as error:
            return self.failure(error)

    def failure(self, error: ApiError) -> Answer:
        """The error as this service's clients expect it."""
        find_shape: Any = self._model.shape_for_error_code  # the stubs say it takes an int
        shape = find_shape(error.code)
        status = error.status
        if shape is not None and status == 400:
            status = shape.metadata.get("error", {}).get("httpStatusCode", status)
        if self.protocol == "query":
            return error_answer("query", error, status)
        members: Mapping[str, object] = getattr(shape, "members", {})
        fields = {"Type": "User" if status < 500 else "Service"} if "Type" in members else {}
        return error_answer(self.protocol, error, status, fields)

    def _named(self, call: Call) -> tuple[str, dict[str, str]]:
        """The operation that the call names itself (json and query)."""
        if self.protocol == "query":
            name = _form(call).get("Action", [""])[0]
        else:
            prefix, _, name = (call.headers.get("X-Amz-Target") or "").rpartition(".")
            if prefix != self._model.metadata.get("targetPrefix"):
                name = ""
        if name not in self._model.operation_names:
            raise self._missing(name or f"{call.method} {call.path}")
        return name, {}

    def _missing(self, name: str) -> ApiError:
        text = f"{self.service}.{name} is not in the local cloud"
        return ApiError("NotImplemented", text, 501)

    def _params(
        self, operation: OperationModel, labels: dict[str, str], call: Call
    ) -> dict[str, Any]:
        shape: Any = operation.input_shape
        if shape is None:
            return {}
        try:
            if self.protocol == "rest-json":
                return _read_rest(shape, labels, call)
            if self.protocol == "query":
                form = {name: values[0] for name, values in _form(call).items()}
                return dict(_read_form(shape, "", form) or {})
            return dict(_read_json(shape, _object(call.body)))
        except (ValueError, binascii.Error, RecursionError) as exc:
            text = f"{operation.name}: the request cannot be read: {exc}"
            raise ApiError("SerializationException", text) from exc

    def _validate(self, operation: OperationModel, params: dict[str, Any]) -> None:
        if operation.input_shape is None:
            return
        report = ParamValidator().validate(params, operation.input_shape)
        if report.has_errors():
            raise ApiError(
                INVALID.get(self.service, "ValidationException"), report.generate_report()
            )

    def _answer(self, operation: OperationModel, result: dict[str, Any]) -> Answer:
        request_id = result.get("ResponseMetadata", {}).get("RequestId") or str(uuid.uuid4())
        values = {k: v for k, v in result.items() if k != "ResponseMetadata" and v is not None}
        status = int(operation.http.get("responseCode") or 200)
        shape: Any = operation.output_shape
        _known(operation.name, shape, values)
        headers = {"x-amzn-RequestId": request_id}
        if self.protocol == "query":
            body = _query_xml(operation, shape, values, request_id)
            return Answer(status, {**headers, "Content-Type": "text/xml"}, body)
        if self.protocol == "json":
            version = self._model.metadata.get("jsonVersion", "1.0")
            headers["Content-Type"] = f"application/x-amz-json-{version}"
            body = json.dumps(_write_json(shape, values) if shape else {}).encode()
            return Answer(status, headers, body)
        return _write_rest(shape, values, Answer(status, headers))


@cache
def codec(service: str) -> Codec:
    """The codec of a service, made when it is first asked for: reading a model takes 10-70 ms."""
    return Codec(service)


@dataclass(frozen=True)
class _Route:
    name: str
    path: re.Pattern[str]
    query: frozenset[tuple[str, str]]
    """What the template itself asks of the query string: `/layers?find=LayerVersion`."""
    order: tuple[list[int], int]


class _Routes:
    """Finds a rest-json operation by its method and path; static text beats a label."""

    def __init__(self, model: ServiceModel) -> None:
        self._service = model.service_name
        self._by_method: dict[str, list[_Route]] = {}
        for name in model.operation_names:
            http = model.operation_model(name).http
            self._by_method.setdefault(http["method"], []).append(_route(name, http["requestUri"]))
        for routes in self._by_method.values():
            routes.sort(key=lambda route: route.order)

    def find(self, call: Call) -> tuple[str, dict[str, str]]:
        """The operation's name and its path labels, decoded."""
        path = call.path.rstrip("/")
        query = set(parse_qsl(call.query, keep_blank_values=True))
        for route in self._by_method.get(call.method, ()):
            if route.query <= query and (match := route.path.fullmatch(path)):
                labels = {_label(group): text for group, text in match.groupdict().items()}
                return route.name, {label: unquote(text) for label, text in labels.items()}
        text = f"{self._service}: {call.method} {call.path} is not in the local cloud"
        raise ApiError("NotImplemented", text, 501)


def _route(name: str, template: str) -> _Route:
    path, _, query = template.partition("?")
    path = path.rstrip("/")
    wanted = frozenset(parse_qsl(query, keep_blank_values=True))
    order = [_looseness(segment) for segment in path.split("/")]
    return _Route(name, re.compile(_pattern(path), re.DOTALL), wanted, (order, -len(wanted)))


def _looseness(segment: str) -> int:
    return 0 if "{" not in segment else 2 if "+}" in segment else 1


def _pattern(template: str) -> str:
    parts = re.split(r"\{([^}]+)\}", template)
    return "".join(_part(index, part) for index, part in enumerate(parts))


def _part(index: int, part: str) -> str:
    if index % 2 == 0:
        return re.escape(part)
    name = "label_" + part.rstrip("+").encode().hex()  # labels may hold `-`, group names may not
    return f"(?P<{name}>{'.+' if part.endswith('+') else '[^/]+'})"


def _label(group: str) -> str:
    return bytes.fromhex(group.removeprefix("label_")).decode()


# Reading


def _wire_name(name: str, shape: Shape) -> str:
    return str(shape.serialization.get("name", name))


def _object(body: bytes) -> dict[str, Any]:
    value = json.loads(body) if body else {}
    if not isinstance(value, dict):
        raise ValueError("the body must be a JSON object")
    return value


def _read_rest(shape: Any, labels: Mapping[str, str], call: Call) -> dict[str, Any]:
    payload = shape.serialization.get("payload")
    places = {name: member.serialization.get("location") for name, member in shape.members.items()}
    body: dict[str, Any] = {}
    if payload is None and any(place is None for place in places.values()):
        body = _object(call.body)
    query = parse_qs(call.query, keep_blank_values=True)
    params: dict[str, Any] = {}
    for name, member in shape.members.items():
        if name == payload:
            value = _read_payload(member, call.body)
        elif places[name] is None:
            raw = body.get(_wire_name(name, member))
            value = None if raw is None else _read_json(member, raw)
        else:
            value = _read_place(
                places[name], _wire_name(name, member), member, (labels, query, call)
            )
        if value is not None:
            params[name] = value
    return params


def _read_payload(shape: Shape, body: bytes) -> Any:
    if shape.type_name == "blob":
        return body or None
    if shape.type_name == "string":
        return body.decode() or None
    return _read_json(shape, json.loads(body)) if body else None


def _read_place(
    place: str,
    name: str,
    shape: Any,
    source: tuple[Mapping[str, str], Mapping[str, list[str]], Call],
) -> Any:
    labels, query, call = source
    if place == "uri":
        return _read_text(shape, labels[name])
    if place == "headers":
        prefix = name.lower()
        found = {k[len(name) :]: v for k, v in call.headers.items() if k.lower().startswith(prefix)}
        return found or None
    if place == "header":
        text = call.headers.get(name)
        values = [] if text is None else [text]
    else:
        values = query.get(name, [])
    if not values:
        return None
    if shape.type_name == "list":
        texts = values if place == "querystring" else [v.strip() for v in values[0].split(",")]
        return [_read_text(shape.member, text) for text in texts]
    return _read_text(shape, values[0])


def _read_text(shape: Shape, text: str) -> Any:
    kind = shape.type_name
    if kind == "boolean":
        return text == "true"
    if kind in ("integer", "long"):
        return int(text)
    if kind in ("float", "double"):
        return float(text)
    if kind == "timestamp":
        return parse_timestamp(text)
    return base64.b64decode(text, validate=True) if kind == "blob" else text


def _read_json(shape: Any, value: Any) -> Any:
    """JSON as boto3 would have been given it. What has the wrong type is left for the validator."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict) and not shape.is_document_type:
        return {
            name: _read_json(member, value[wire])
            for name, member in shape.members.items()
            if value.get(wire := _wire_name(name, member)) is not None
        }
    if kind == "list" and isinstance(value, list):
        return [_read_json(shape.member, item) for item in value]
    if kind == "map" and isinstance(value, dict):
        return {key: _read_json(shape.value, item) for key, item in value.items()}
    if kind == "blob" and isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if kind == "timestamp" and isinstance(value, str | int | float):
        parse: Any = parse_timestamp  # the stubs say it takes text only
        return parse(value)
    return value


def _form(call: Call) -> dict[str, list[str]]:
    text = call.body.decode() if call.method == "POST" else call.query
    return parse_qs(text, keep_blank_values=True)


def _read_form(shape: Any, prefix: str, form: Mapping[str, str]) -> Any:
    """Query parameters: `A.B`, `List.member.1`, `Map.entry.1.key`."""
    if shape.type_name == "structure":
        start = f"{prefix}." if prefix else ""
        found = {
            name: _read_form(member, start + _wire_name(name, member), form)
            for name, member in shape.members.items()
        }
        return {name: value for name, value in found.items() if value is not None} or None
    if shape.type_name == "list":
        middle = "" if shape.serialization.get("flattened") else ".member"
        return (
            _read_numbered(lambda at: _read_form(shape.member, at, form), prefix + middle) or None
        )
    if shape.type_name == "map":
        middle = "" if shape.serialization.get("flattened") else ".entry"
        pairs = _read_numbered(lambda at: _read_pair(shape, at, form), prefix + middle)
        return dict(pairs) or None
    text = form.get(prefix)
    return None if text is None else _read_text(shape, text)


def _read_numbered(read: Callable[[str], Any], prefix: str) -> list[Any]:
    found: list[Any] = []
    while (value := read(f"{prefix}.{len(found) + 1}")) is not None:
        found.append(value)
    return found


def _read_pair(shape: Any, prefix: str, form: Mapping[str, str]) -> tuple[str, Any] | None:
    key = form.get(f"{prefix}.{_wire_name('key', shape.key)}")
    value = _read_form(shape.value, f"{prefix}.{_wire_name('value', shape.value)}", form)
    return None if key is None else (key, value)


# Writing


def _known(operation: str, shape: Any, values: Mapping[str, Any]) -> None:
    unknown = values.keys() - (shape.members if shape else {}).keys()
    if unknown:
        raise TypeError(f"{operation} answers {sorted(unknown)}, which its model does not have")


def _write_rest(shape: Any, values: Mapping[str, Any], answer: Answer) -> Answer:
    payload = shape.serialization.get("payload") if shape else None
    status, headers = answer.status, dict(answer.headers)
    inside: dict[str, Any] = {}
    for name, value in values.items():
        member = shape.members[name]
        place, wire = member.serialization.get("location"), _wire_name(name, member)
        if place == "statusCode":
            status = int(value)
        elif place == "header":
            headers[wire] = _write_text(member, value)
        elif place == "headers":
            headers |= {wire + key: str(text) for key, text in value.items()}
        elif name != payload:
            inside[wire] = _write_json(member, value)
    if payload is None:
        headers["Content-Type"] = "application/json"
        body = json.dumps(inside).encode()
    else:
        body, kind = _write_payload(shape.members[payload], values.get(payload))
        headers.setdefault("Content-Type", kind)
    return Answer(status, headers, b"" if status in (204, 304) else body)


def _write_payload(shape: Shape, value: Any) -> tuple[bytes, str]:
    if shape.type_name in ("structure", "map", "list"):
        return json.dumps(
            _write_json(shape, {} if value is None else value)
        ).encode(), "application/json"
    data = value.encode() if isinstance(value, str) else bytes(value or b"")
    return data, "application/octet-stream" if shape.type_name == "blob" else "text/plain"


def _write_json(shape: Any, value: Any) -> Any:
    kind = shape.type_name
    if kind == "structure" and not shape.is_document_type:
        _known(shape.name, shape, value)
        return {
            _wire_name(name, shape.members[name]): _write_json(shape.members[name], item)
            for name, item in value.items()
            if item is not None
        }
    if kind == "list":
        return [_write_json(shape.member, item) for item in value]
    if kind == "map":
        return {key: _write_json(shape.value, item) for key, item in value.items()}
    if kind == "blob":
        return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
    if kind == "timestamp":
        return _write_time(value, shape.serialization.get("timestampFormat", "unixTimestamp"))
    return value


def _write_text(shape: Shape, value: Any) -> str:
    """A value in a header or in XML."""
    kind = shape.type_name
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "timestamp":
        usual = "rfc822" if shape.serialization.get("location") == "header" else "iso8601"
        return str(_write_time(value, shape.serialization.get("timestampFormat", usual)))
    if kind == "list":
        return ",".join(str(item) for item in value)
    return base64.b64encode(value).decode() if kind == "blob" else str(value)


def _write_time(value: datetime | float, form: str) -> str | float:
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    else:
        moment = datetime.fromtimestamp(value, UTC)
    if form == "unixTimestamp":
        return value if isinstance(value, int | float) else moment.timestamp()
    if form == "rfc822":
        return format_datetime(moment.astimezone(UTC), usegmt=True)
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _query_xml(
    operation: OperationModel, shape: Any, values: Mapping[str, Any], request_id: str
) -> bytes:
    inside = _write_xml(shape, values) if shape else ""
    wrapper = shape.serialization.get("resultWrapper") if shape else None
    if wrapper:
        inside = f"<{wrapper}>{inside}</{wrapper}>"
    name = operation.name
    space = operation.metadata.get("xmlNamespace", "")
    metadata = f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
    return f'<{name}Response xmlns="{space}">{inside}{metadata}</{name}Response>'.encode()


def _write_xml(shape: Any, value: Any) -> str:
    """What stands between a value's tags."""
    kind = shape.type_name
    if kind == "structure":
        _known(shape.name, shape, value)
        members = ((name, shape.members[name], item) for name, item in value.items())
        return "".join(
            _write_element(_wire_name(name, member), member, item)
            for name, member, item in members
            if item is not None
        )
    if kind == "list":
        tag = _wire_name("member", shape.member)
        return "".join(_write_element(tag, shape.member, item) for item in value)
    if kind == "map":
        key, item = _wire_name("key", shape.key), _wire_name("value", shape.value)
        return "".join(
            f"<entry><{key}>{escape(k)}</{key}>{_write_element(item, shape.value, v)}</entry>"
            for k, v in value.items()
        )
    return escape(_write_text(shape, value))


def _write_element(tag: str, shape: Any, value: Any) -> str:
    return f"<{tag}>{_write_xml(shape, value)}</{tag}>"
