"""What the language is, told from its schema: for editors (JSON Schema) and for people (tables)."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from scar.fdl import schema
from scar.fdl.retired import IGNORED_KEYS
from scar.fdl.schema import Deployment, bounded
from scar.fdl.source import MOVED, TEXT_MAPPINGS

_BOUNDS = {"ge": "minimum", "le": "maximum"}
"""pydantic writes its own words for a bound behind a validator."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Key:
    """One key, for people."""

    path: str
    """`lambda.container.image`, below an item of `functions.aws`; or from the top."""
    values: str
    """What it may be, with bounds and unit."""
    default: str
    """As YAML; empty: it is required; `-`: not set."""
    text: str


def json_schema() -> dict[str, Any]:
    """The JSON Schema of FDL files. Keys that are accepted and ignored are marked deprecated."""
    whole = Deployment.model_json_schema(by_alias=True)
    models = _models(Deployment)
    for name, part in {"Deployment": whole, **whole["$defs"]}.items():
        part["description"] = _plain(inspect.getdoc(models[name]) or "")
        part.pop("title", None)
        docs = _docs(models[name])
        fields = _fields(models[name])
        for key, its in part["properties"].items():
            part["properties"][key] = _property(key, its, docs.get(fields[key][0], ""))
    _mark_deprecated(whole["$defs"])
    whole.pop("description")
    return {"$schema": DIALECT, "title": "SCAR function definitions (FDL)", **whole}


def keys() -> Iterator[Key]:
    """Every key, in the order of the schema."""
    yield from _keys(schema.AwsFunction, "")
    yield from _keys(schema.StorageProviders, "storage_providers.")
    yield from _keys(schema.Settings, "scar.")


def _keys(model: type[BaseModel], below: str) -> Iterator[Key]:
    docs = _docs(model)
    for key, (name, field) in _fields(model).items():
        path, inner = below + key, _model_in(field.annotation)
        if inner is None:
            default = _default(field)
            yield Key(path, _values(field), default, docs.get(name, ""))
            continue
        many = "[]" if "tuple" in str(field.annotation) else ""
        if get_origin(field.annotation) is dict:
            many = ".<id>"
        if docs.get(name) or many == "[]":
            text = docs.get(name, "") or _plain(inspect.getdoc(inner) or "")
            yield Key(path, "a list" if many == "[]" else "a mapping", "-", text)
        yield from _keys(inner, f"{path}{many}.")


def _values(field: FieldInfo) -> str:
    field = bounded(field)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    unit = f" {extra['unit']}" if "unit" in extra else ""
    words = list(dict.fromkeys(_literals(field.annotation)))
    kinds = _kinds(field.annotation)
    if words:
        text = ", ".join(f"`{word}`" for word in words)
    elif "means" in extra and dict not in kinds:
        text = str(extra["means"])
    elif bool in kinds:
        text = "true or false"
    elif int in kinds or float in kinds:
        text = _range(field, "a number" if float in kinds else "a whole number")
        low, sign, more = text.partition(" or more")
        text = f"{low}{unit}{sign}{more}"
    elif dict in kinds:
        text = "names and texts"
    else:
        text = "text"
    return f"a list; each: {text}" if tuple in kinds else text


def _range(field: FieldInfo, otherwise: str) -> str:
    low = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in field.metadata if hasattr(m, "le")), None)
    if low is None:
        return otherwise
    return f"{low} to {high}" if high is not None else f"{low} or more"


def _kinds(annotation: Any) -> set[Any]:
    found = {get_origin(annotation) or annotation}
    if get_origin(annotation) is not Literal:
        for arg in get_args(annotation):
            found |= _kinds(arg)
    return found


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(arg) for arg in get_args(annotation)]
    return [word for arg in get_args(annotation) for word in _literals(arg)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", (), {}) or value is PydanticUndefined:
        return "-"
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _property(key: str, its: dict[str, Any], text: str) -> dict[str, Any]:
    """One key's part of the JSON Schema, without what only our own messages use."""
    kept: dict[str, Any] = _cleaned(its)
    if isinstance(kept.get("default"), dict) or kept.get("default", "") is None:
        del kept["default"]
    unit = str(its.get("unit", ""))
    if text:
        kept["description"] = text if unit.lower() in text.lower() else f"{text} ({unit})"
    if key in TEXT_MAPPINGS:
        kept["additionalProperties"] = {"type": ["string", "number", "boolean", "null"]}
        kept.pop("propertyNames", None)
    if key in ("log_level", "http_method"):
        kept["enum"] = [*its["enum"], *(word.lower() for word in its["enum"])]
    if key == "enable_gpu":
        kept["type"] = ["integer", "boolean"]
    return kept


def _cleaned(its: Any) -> Any:
    if isinstance(its, dict):
        return {
            _BOUNDS.get(key, key): _cleaned(value)
            for key, value in its.items()
            if key not in ("title", "means", "above", "unit")
        }
    return [_cleaned(value) for value in its] if isinstance(its, list) else its


def _mark_deprecated(models: dict[str, Any]) -> None:
    told = "ignored: this version of SCAR deploys to AWS only"
    models["Functions"]["properties"]["oscar"] = {"deprecated": True, "description": told}
    moved = {old: f"write it as `{'.'.join(new)}`" for old, new in MOVED}
    for path, why in {**IGNORED_KEYS, **moved}.items():
        part = models["AwsFunction"]
        for step in path[:-1]:
            part = _resolved(part["properties"][step], models) if step in part["properties"] else {}
            if not part:
                break
        if part:
            part["properties"].setdefault(path[-1], {"deprecated": True, "description": why})


def _resolved(its: Mapping[str, Any], models: Mapping[str, Any]) -> Any:
    return models[its["$ref"].rpartition("/")[2]] if "$ref" in its else {}


def _models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found = {model.__name__: model}
    for field in model.model_fields.values():
        if inner := _model_in(field.annotation):
            found |= _models(inner)
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(arg) for arg in get_args(annotation))
    return next((model for model in inner if model), None)


def _fields(model: type[BaseModel]) -> dict[str, tuple[str, FieldInfo]]:
    return {field.alias or name: (name, field) for name, field in model.model_fields.items()}


@cache
def _docs(model: type[BaseModel]) -> Mapping[str, str]:
    """The text under each field in the schema's source."""
    tree = ast.parse(inspect.getsource(model))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        field.target.id: _plain(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _plain(text: str) -> str:
    return " ".join(text.split())
