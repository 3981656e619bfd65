"""What AWS's own models say against a request as it was on the wire.

botocore's models are read strictly here: the operation is found by what was sent, every part must
belong to it, every constraint must hold, and botocore's serializer must make the same request of
what was understood. Nothing of `scar_local` takes part.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, unquote

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ParamValidationError
from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel
from botocore.serialize import create_serializer
from botocore.utils import parse_timestamp

from tests.doubles.recorder import Recorded

MODELS = {
    "tagging": "resourcegroupstaggingapi",
    "servicequotas": "service-quotas",
}
"""botocore's name of a service, where it is signed for by another one."""

TRANSPORT = frozenset(
    """
    accept accept-encoding amz-sdk-invocation-id amz-sdk-request authorization connection
    content-length content-type expect host user-agent x-amz-content-sha256 x-amz-date
    x-amz-security-token x-amz-target x-amzn-query-mode
    """.split()
)
"""Headers that belong to HTTP, to the signature or to the protocol, in no operation's model."""

_DIGESTS = {
    "content-md5": lambda body: hashlib.md5(body).digest(),
    "x-amz-checksum-crc32": lambda body: binascii.crc32(body).to_bytes(4, "big"),
    "x-amz-checksum-sha256": lambda body: hashlib.sha256(body).digest(),
}


@dataclass
class Reading:
    """A request as one operation understands it, and what is wrong with it as such."""

    operation: str
    params: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    specific: int = 0
    """How much of the request names this operation rather than another of the same path."""
    is_old: bool = False


@cache
def model_of(service: str) -> ServiceModel:
    """The model of a service, by the name that requests are signed for."""
    name = MODELS.get(service, service)
    return ServiceModel(Loader().load_service_model(name, "service-2"), name)


def read(request: Recorded) -> Reading:
    """The request as the operation that it fits best. LookupError: it fits none by name or path."""
    model = model_of(request.service)
    readings = [_Reader(model, operation, request).read() for operation in _named(model, request)]
    if not readings:
        raise LookupError(f"{request}: no operation of {model.service_name}")
    return min(readings, key=lambda one: (len(one.faults), -one.specific, one.is_old))


def signature_fault(request: Recorded, secrets: Mapping[str, str]) -> str:
    """How its signature differs from botocore's own; empty where it is the same."""
    authorization = request.header("Authorization")
    key, _, region, service = request.credential
    signed = _field(authorization, "SignedHeaders").split(";")
    given = AWSRequest(request.method, f"http://host{request.path}", data=request.body)
    if request.query:
        given.url += f"?{request.query}"
    for name, value in request.headers:
        if name.lower() in signed:
            given.headers[name] = value
    for name in ("x-amz-date", "host"):
        if name not in signed:
            return f"{name} is not signed"
    given.context["timestamp"] = request.header("X-Amz-Date")
    kind = S3SigV4Auth if service == "s3" else SigV4Auth
    signer = kind(Credentials(key, secrets[key]), service, region)
    canonical = signer.canonical_request(given)
    expected = signer.signature(signer.string_to_sign(given, canonical), given)
    if expected != _field(authorization, "Signature"):
        return f"botocore signs {expected} for\n{canonical}"
    digest = request.header("X-Amz-Content-SHA256")
    if digest not in ("", "UNSIGNED-PAYLOAD", hashlib.sha256(request.body).hexdigest()):
        return "x-amz-content-sha256 is not that of the body"
    return ""


def _field(authorization: str, name: str) -> str:
    return authorization.partition(f"{name}=")[2].partition(",")[0].strip()


def _named(model: ServiceModel, request: Recorded) -> Iterator[OperationModel]:
    """The operations that a request may be: by its target, its Action, or its method and path."""
    if model.resolved_protocol == "json":
        prefix, _, name = request.header("X-Amz-Target").rpartition(".")
        if prefix == model.metadata["targetPrefix"] and name in model.operation_names:
            yield model.operation_model(name)
    elif model.resolved_protocol in ("query", "ec2"):
        name = dict(parse_qsl(request.body.decode())).get("Action", "")
        if name in model.operation_names:
            yield model.operation_model(name)
    else:
        for name in model.operation_names:
            operation = model.operation_model(name)
            if operation.http["method"] == request.method and _labels(operation, request.path):
                yield operation


def _labels(operation: OperationModel, path: str) -> re.Match[str] | None:
    """The path against the operation's; groups are the labels' wire names."""
    template = operation.http["requestUri"].partition("?")[0]
    parts = re.split(r"\{(\w+)(\+?)\}", template)
    pattern = re.escape(parts[0])
    for name, greedy, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        pattern += f"(?P<{name}>{'.+' if greedy else '[^/]+'}){re.escape(text)}"
    return re.fullmatch(pattern, path)


class _Reader:
    """Reads one request as one operation."""

    def __init__(self, model: ServiceModel, operation: OperationModel, request: Recorded) -> None:
        self._model, self._operation, self._request = model, operation, request
        self._protocol = str(model.resolved_protocol)
        self._its = Reading(operation.name, is_old=operation.deprecated)

    def read(self) -> Reading:
        """All faults, the operation's parameters, and how much of the request names it."""
        shape = self._operation.input_shape
        if self._protocol.startswith("rest-"):
            self._its.params = self._rest(shape)
        elif self._protocol == "json":
            self._its.params = self._json(shape, self._json_body(), "")
        else:
            self._its.params = self._form(shape)
        if shape is not None:
            self._constraints(shape, self._its.params, "")
        self._headers(shape)
        if not self._its.faults:
            self._again()
        return self._its

    def _fault(self, text: str) -> None:
        self._its.faults.append(f"{self._operation.name}: {text}")

    # -- reading -------------------------------------------------------------------------------

    def _rest(self, shape: Any) -> dict[str, Any]:
        params: dict[str, Any] = {}
        match = _labels(self._operation, self._request.path)
        assert match is not None
        query = self._request.parameters
        constants = parse_qsl(self._operation.http["requestUri"].partition("?")[2], True)
        for constant in constants:
            self._its.specific += 1
            if constant in query:
                query.remove(constant)
            elif (constant[0], "") not in query:
                self._fault(f"{constant} is not in the query")
            else:
                query.remove((constant[0], ""))
        members = shape.members if shape is not None else {}
        body: dict[str, Any] = {}
        payload = shape.serialization.get("payload") if shape is not None else None
        for name, member in members.items():
            place, wire = member.serialization.get("location"), member.serialization.get("name")
            if place == "uri":
                params[name] = self._text(member, unquote(match[wire or name]), name)
            elif place == "querystring":
                self._from_query(params, name, member, query)
            elif place in ("header", "headers"):
                self._from_header(params, name, member)
            elif place is None and name != payload:
                body[name] = member
        for left in query:
            self._fault(f"{left} is not of its query")
        self._from_body(params, shape, payload, body)
        return params

    def _from_query(self, params: Any, name: str, member: Any, query: Any) -> None:
        wire = member.serialization.get("name", name)
        if member.type_name == "map":  # all that no other member takes
            return
        values = [value for key, value in query if key == wire]
        query[:] = [one for one in query if one[0] != wire]
        if not values:
            return
        self._its.specific += 1
        if member.type_name == "list":
            params[name] = [self._text(member.member, value, name) for value in values]
        elif len(values) > 1:
            self._fault(f"{wire} comes {len(values)} times")
        else:
            params[name] = self._text(member, values[0], name)

    def _from_header(self, params: Any, name: str, member: Any) -> None:
        wire = member.serialization.get("name", name).lower()
        if member.serialization.get("location") == "headers":
            found = {
                key[len(wire) :]: value
                for key, value in self._request.headers
                if key.lower().startswith(wire)
            }
            if found:
                params[name] = found
        elif (value := self._request.header(wire)) and wire not in ("content-length", "expect"):
            self._its.specific += 1
            params[name] = self._text(member, value, name)

    def _from_body(self, params: Any, shape: Any, payload: str | None, members: Any) -> None:
        body = self._request.body
        if payload is not None:
            member = shape.members[payload]
            if member.type_name in ("blob", "string"):
                if body:
                    params[payload] = body if member.type_name == "blob" else body.decode()
            elif body:
                params[payload] = self._document(member, payload)
        elif members:
            if body:
                params.update(self._document(shape, ""))
        elif body not in (b"", b"{}"):
            self._fault(f"it takes no body: {body[:80]!r}")

    def _document(self, shape: Any, path: str) -> Any:
        if self._protocol == "rest-json":
            return self._json(shape, self._json_body(), path)
        try:
            root = ET.fromstring(self._request.body)
        except ET.ParseError as exc:
            self._fault(f"the body is no XML: {exc}")
            return {}
        expected = shape.serialization.get("name", shape.name)
        if _local(root.tag) != expected and _local(root.tag) != shape.name:
            self._fault(f"the document is a {root.tag}, not a {expected}")
        return self._xml(shape, root, path)

    def _json_body(self) -> Any:
        try:
            return json.loads(self._request.body or b"{}")
        except ValueError:
            self._fault(f"the body is no JSON: {self._request.body[:80]!r}")
            return {}

    def _json(self, shape: Any, value: Any, path: str) -> Any:
        if shape is None:
            if value:
                self._fault(f"it takes nothing: {value!r}")
            return {}
        if shape.type_name == "structure" and isinstance(value, dict):
            return value if shape.is_document_type else self._json_structure(shape, value, path)
        if shape.type_name == "list" and isinstance(value, list):
            return [self._json(shape.member, one, f"{path}[{n}]") for n, one in enumerate(value)]
        if shape.type_name == "map" and isinstance(value, dict):
            return {k: self._json(shape.value, one, f"{path}.{k}") for k, one in value.items()}
        if shape.type_name == "blob" and isinstance(value, str):
            return base64.b64decode(value, validate=True)
        if shape.type_name == "timestamp":
            return parse_timestamp(value)
        return value  # botocore's validator says where the type is another one

    def _json_structure(self, shape: Any, value: dict[str, Any], path: str) -> dict[str, Any]:
        wires = {m.serialization.get("name", n): n for n, m in shape.members.items()}
        found = {}
        for key, inner in value.items():
            if key not in wires:
                self._fault(f"{path}.{key} is not in the model")
            elif inner is None:
                self._fault(f"{path}.{key} is null")
            else:
                name = wires[key]
                found[name] = self._json(shape.members[name], inner, f"{path}.{key}")
        return found

    def _xml(self, shape: Any, node: ET.Element, path: str) -> Any:
        if shape.type_name == "structure":
            return self._xml_structure(shape, node, path)
        if shape.type_name == "list":
            return [self._xml(shape.member, one, f"{path}[]") for one in node]
        return self._text(shape, node.text or "", path)

    def _xml_structure(self, shape: Any, node: ET.Element, path: str) -> dict[str, Any]:
        wires = {m.serialization.get("name", n): n for n, m in shape.members.items()}
        found: dict[str, Any] = {}
        for child in node:
            name = wires.get(_local(child.tag))
            if name is None:
                self._fault(f"{path}.{child.tag} is not in the model")
                continue
            member = shape.members[name]
            if member.type_name == "list" and member.serialization.get("flattened"):
                found.setdefault(name, []).append(self._xml(member.member, child, f"{path}.{name}"))
            elif name in found:
                self._fault(f"{path}.{name} comes twice")
            else:
                found[name] = self._xml(member, child, f"{path}.{name}")
        return found

    def _form(self, shape: Any) -> dict[str, Any]:
        pairs = parse_qsl(self._request.body.decode(), keep_blank_values=True)
        form = dict(pairs)
        if len(form) != len(pairs):
            self._fault("a parameter comes twice")
        action, version = form.pop("Action"), form.pop("Version", "")
        assert action == self._operation.name
        if version != self._model.metadata["apiVersion"]:
            self._fault(f"version {version} is not {self._model.metadata['apiVersion']}")
        params = self._form_value(shape, "", form) if shape is not None else {}
        for left in form:
            self._fault(f"{left} is not in the model")
        return dict(params or {})

    def _form_value(self, shape: Any, prefix: str, form: dict[str, str]) -> Any:
        """What stands under `prefix`, taken out of the form; None where nothing does."""
        if shape.type_name == "structure":
            found = {}
            for name, member in shape.members.items():
                wire = self._form_name(member, name)
                value = self._form_value(member, f"{prefix}.{wire}".lstrip("."), form)
                if value is not None:
                    found[name] = value
            return found or None
        if shape.type_name == "list":
            return self._form_list(shape, prefix, form)
        if prefix not in form:
            return None
        return self._text(shape, form.pop(prefix), prefix)

    def _form_list(self, shape: Any, prefix: str, form: dict[str, str]) -> Any:
        flat = self._protocol == "ec2" or shape.serialization.get("flattened")
        start = prefix if flat else f"{prefix}.{shape.member.serialization.get('name', 'member')}"
        found: list[Any] = []
        while (
            value := self._form_value(shape.member, f"{start}.{len(found) + 1}", form)
        ) is not None:
            found.append(value)
        return found or None

    def _form_name(self, member: Any, name: str) -> str:
        if self._protocol == "ec2":
            if "queryName" in member.serialization:
                return str(member.serialization["queryName"])
            wire = str(member.serialization.get("name", name))
            return wire[0].upper() + wire[1:]
        return str(member.serialization.get("name", name))

    def _text(self, shape: Any, value: str, path: str) -> Any:
        kind = shape.type_name
        try:
            if kind in ("integer", "long"):
                return int(value)
            if kind in ("float", "double"):
                return float(value)
            if kind == "boolean":
                return {"true": True, "false": False}[value]
            if kind == "timestamp":
                return parse_timestamp(value)
            if kind == "blob":
                return base64.b64decode(value, validate=True)
        except (ValueError, KeyError):
            self._fault(f"{path}: {value!r} is no {kind}")
        return value

    # -- judging -------------------------------------------------------------------------------

    def _constraints(self, shape: Any, value: Any, path: str) -> None:
        """What botocore's validator leaves out: upper bounds, patterns and enumerations."""
        limits = shape.metadata
        size = len(value) if isinstance(value, str | bytes | list | dict) else value
        if shape.type_name not in ("boolean", "timestamp", "structure"):
            if "max" in limits and size > limits["max"]:
                self._fault(f"{path}: {size} is more than {limits['max']}")
            if "min" in limits and size < limits["min"]:
                self._fault(f"{path}: {size} is less than {limits['min']}")
        if shape.type_name == "string" and isinstance(value, str):
            if shape.enum and value not in shape.enum:
                self._fault(f"{path}: {value!r} is none of {', '.join(shape.enum)}")
            pattern = limits.get("pattern")
            if pattern and not re.fullmatch(_python(pattern), value, re.DOTALL):
                self._fault(f"{path}: {value!r} is not {pattern}")
        for inner, part, name in _parts(shape, value):
            self._constraints(inner, part, f"{path}.{name}")

    def _headers(self, shape: Any) -> None:
        names = Counter(name.lower() for name, _ in self._request.headers)
        for name, count in names.items():
            if count > 1:
                self._fault(f"header {name} comes {count} times")
            if name in _DIGESTS:
                self._digest(name)
            elif name not in TRANSPORT and not self._is_of_model(shape, name):
                self._fault(f"header {name} is not in the model")

    def _digest(self, name: str) -> None:
        if self._request.query.startswith("uploadId=") and self._request.method == "POST":
            return  # of all the parts together
        expected = base64.b64encode(_DIGESTS[name](self._request.body)).decode()
        if self._request.header(name) != expected:
            self._fault(f"{name} is not that of the body")

    def _is_of_model(self, shape: Any, name: str) -> bool:
        if name == "x-amz-sdk-checksum-algorithm":
            return bool(self._operation.http_checksum)
        for key, member in shape.members.items() if shape is not None else ():
            wire = member.serialization.get("name", key).lower()
            place = member.serialization.get("location")
            if (place == "header" and wire == name) or (
                place == "headers" and name.startswith(wire)
            ):
                return True
        return False

    def _again(self) -> None:
        """botocore's serializer must make the same of what was understood."""
        serializer = create_serializer(self._protocol)
        try:
            made = serializer.serialize_to_request(self._its.params, self._operation)
        except ParamValidationError as exc:
            self._fault(str(exc))
            return
        path, _, constants = made["url_path"].partition("?")
        if unquote(path) != unquote(self._request.path):
            self._fault(f"botocore asks {path}, this {self._request.path}")
        query = parse_qsl(constants, True) + _pairs(made["query_string"])
        if Counter(query) != Counter(self._request.parameters):
            self._fault(f"botocore's query is {query}, this {self._request.parameters}")
        self._same_body(made["body"])
        for name, value in made["headers"].items():
            sent = self._request.header(name)
            same = sent.partition(";")[0] == value.partition(";")[0]
            if not same and not (name == "Content-Type" and not self._request.body):
                self._fault(f"botocore sends {name}: {value}, this {sent!r}")

    def _same_body(self, theirs: Any) -> None:
        ours = self._request.body
        if isinstance(theirs, dict):  # a form
            same = dict(parse_qsl(ours.decode(), True)) == {
                k: _as_text(v) for k, v in theirs.items()
            }
        else:
            theirs = theirs.encode() if isinstance(theirs, str) else theirs
            same = ours == theirs or _canonical(ours) == _canonical(theirs)
        if not same:
            self._fault(f"botocore's body is {theirs[:300]!r}, this {ours[:300]!r}")


def _canonical(body: bytes) -> Any:
    """A document without what means nothing in it; anything else as it is."""
    if body.startswith(b"<"):
        return ET.canonicalize(body, strip_text=True)
    try:
        return json.loads(body or b"{}")
    except ValueError:
        return body


def _parts(shape: Any, value: Any) -> Iterator[tuple[Any, Any, str]]:
    if shape.type_name == "structure" and isinstance(value, dict):
        for name, part in value.items():
            if name in shape.members:
                yield shape.members[name], part, name
    elif shape.type_name == "list" and isinstance(value, list):
        for number, part in enumerate(value):
            yield shape.member, part, str(number)
    elif shape.type_name == "map" and isinstance(value, dict):
        for name, part in value.items():
            yield shape.key, name, f"key {name}"
            yield shape.value, part, str(name)


def _pairs(query: Any) -> list[tuple[str, str]]:
    items = query.items() if isinstance(query, dict) else query or ()
    return [
        (name, _as_text(one))
        for name, value in items
        for one in (value if isinstance(value, list) else [value])
    ]


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


@cache
def _python(pattern: str) -> str:
    """A pattern of the models, which are Java's, with the nearest that Python has."""
    for theirs, ours in ((r"\p{L}", r"\w"), (r"\p{N}", r"\d"), (r"\p{Z}", r"\s")):
        pattern = pattern.replace(theirs, ours)
    return pattern
