"""From layers to one complete, valid Deployment, or every fault at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from scar.errors import Diagnostic, FdlError
from scar.fdl import rules as language_rules
from scar.fdl.retired import retire
from scar.fdl.rules import Fault, FunctionRule
from scar.fdl.schema import AwsFunction, Deployment
from scar.fdl.source import Loc, Sources, dotted

_CONFIG_KEYS = ("scar", "aws", "oscar")


@dataclass(frozen=True)
class Loaded:
    """A valid deployment, and what its author should know."""

    deployment: Deployment
    warnings: tuple[Diagnostic, ...] = ()


def load(
    sources: Sources, function_rules: Sequence[FunctionRule] = language_rules.FUNCTION_RULES
) -> Loaded:
    """Lay the layers over each other and check the result.

    `function_rules` are checked for every function: the language's own, and those of callers who
    can see more than the text (whether a script exists). The rules across functions are checked
    when there are any rules.

    Raises FdlError with every fault found, in the order of the text.
    """
    data, retired = retire(sources)
    faults = [*_config_faults(sources), *retired]
    found = list(sources.faults())
    deployment: Deployment | None = None
    try:
        deployment = Deployment.model_validate(data, by_alias=True, by_name=False)
        faults += _rule_faults(deployment, function_rules)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        found += [_explain(error, sources) for error in errors]
        faults += _faults_of_the_rest(data, errors, function_rules)
    found += [_located(fault, sources) for fault in faults if not _is_noise(fault, sources)]
    if deployment is None or any(d.severity == "error" for d in found):
        raise FdlError([d for d in _in_order(found) if d.severity == "error"])
    return Loaded(deployment, tuple(_in_order(found)))


def _config_faults(sources: Sources) -> Iterator[Fault]:
    """Faults of scar.cfg that the merged data would not show."""
    for key in sources.config.data:
        if key not in _CONFIG_KEYS:
            near = difflib.get_close_matches(key, _CONFIG_KEYS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "the keys are `scar` and `aws`"
            yield Fault((key,), f"unknown key `{key}`", hint, is_about_key=True)
    for key in ("scar", "aws"):
        value = sources.config.data.get(key, {})
        if not isinstance(value, Mapping):
            yield Fault((key,), f"{key} must be a mapping of keys, got {_shown(value)}")


def _rule_faults(deployment: Deployment, rules: Sequence[FunctionRule]) -> Iterator[Fault]:
    for i, function in enumerate(deployment.functions.aws):
        for rule in rules:
            yield from rule(function, ("functions", "aws", i), deployment.scar.target)
    if rules:
        for across in language_rules.DEPLOYMENT_RULES:
            yield from across(deployment)


def _faults_of_the_rest(
    data: Mapping[str, Any], errors: Iterable[ErrorDetails], rules: Sequence[FunctionRule]
) -> Iterator[Fault]:
    """The rules for those functions that are themselves well-formed."""
    locs = [error["loc"] for error in errors]
    bad = {loc[2] for loc in locs if loc[:2] == ("functions", "aws") and len(loc) > 2}
    # A fault outside the functions may be about the target, or there may be no list at all.
    if any(loc[:1] == ("scar",) or (loc[:1] == ("functions",) and len(loc) < 3) for loc in locs):
        return
    target = data.get("scar", {}).get("target", "aws")
    for i, item in enumerate(data.get("functions", {}).get("aws", [])):
        if i not in bad:
            function = AwsFunction.model_validate(item, by_alias=True, by_name=False)
            for rule in rules:
                yield from rule(function, ("functions", "aws", i), target)


def _is_noise(fault: Fault, sources: Sources) -> bool:
    """A warning about scar.cfg would be repeated by every command, whatever it is about."""
    return fault.severity == "warning" and sources.is_from_config(fault.loc)


def _located(fault: Fault, sources: Sources) -> Diagnostic:
    find = sources.key_place if fault.is_about_key else sources.value_place
    place = find(fault.loc)
    return Diagnostic(fault.summary, dotted(fault.loc), place, fault.hint, fault.severity)


def _in_order(found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """In the order of the text; a fault of a flag, found in each function, is told once."""
    once: dict[tuple[str, object], Diagnostic] = {}
    for d in found:
        once.setdefault((d.summary, d.place), d)
    return sorted(once.values(), key=_order)


def _order(diagnostic: Diagnostic) -> tuple[str, int, int]:
    place = diagnostic.place
    return (place.origin, place.line, place.column) if place else ("", 0, 0)


def _explain(error: ErrorDetails, sources: Sources) -> Diagnostic:
    """pydantic's error in our words, with the place of the value or key it is about."""
    kind, loc = error["type"], error["loc"]
    if loc[-1:] == ("[key]",):
        loc = loc[:-1]
    key = next((str(part) for part in reversed(loc) if isinstance(part, str)), "")
    item = f"{key}[{loc[-1]}]" if isinstance(loc[-1], int) else key
    if kind == "extra_forbidden":
        hint = _hint_for_unknown(loc)
        return Diagnostic(f"unknown key `{key}`", dotted(loc), sources.key_place(loc), hint)
    if kind == "missing":
        place = sources.value_place(loc)
        hint = f"add `{key}:` here" if place else f"add `--{key} {key.upper()}`"
        return Diagnostic(f"`{key}` is required", dotted(loc), place, hint)
    must, hint = _requirement(error, loc)
    return Diagnostic(f"{item} {must}", dotted(loc), sources.value_place(loc), hint)


def _requirement(error: ErrorDetails, loc: Loc) -> tuple[str, str]:
    """What the value must be and what it is; and how to mend it where that is not the same."""
    kind, got = error["type"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"]), ""
    if kind == "literal_error":
        return _choice(loc, got)
    words = _words(kind, loc)
    if words is None:
        message = error["msg"]
        return f"is wrong: {message[0].lower()}{message[1:]}, got {_shown(got)}", ""
    if kind == "string_type" and isinstance(got, int | float):
        return f"must be {words}, got {_shown(got)}", f'put it in quotes: "{got}"'
    if kind == "tuple_type":
        return f"must be {words}, got {_shown(got)}", "write `- ` before each item, or `[a, b]`"
    return f"must be {words}, got {_shown(got)}", ""


def _words(kind: str, loc: Loc) -> str | None:
    """What a value of the key at `loc` must be, where pydantic found a fault of this kind."""
    simple = {
        "string_type": "text",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "tuple_type": "a list",
        "model_type": "a mapping of keys",
        "dict_type": "a mapping of keys",
        "string_too_long": "shorter: at most 256 characters",
    }
    if kind in simple:
        return simple[kind]
    if kind == "string_pattern_mismatch":
        return _pattern_words(loc)
    if kind in ("too_short", "too_long"):
        return "one item" if loc[-1] == "architectures" else "one item or more"
    if kind.startswith(("greater_", "less_")):
        return _range_words(loc)
    if kind.startswith("int_") or kind == "finite_number":
        return f"a whole number{_of_unit(loc)}"
    return None


def _choice(loc: Loc, got: Any) -> tuple[str, str]:
    field = _field_at(loc)
    names = [str(name) for name in _literals(field.annotation)] if field else []
    near = difflib.get_close_matches(str(got), names, n=1)
    *most, last = (f"`{name}`" for name in names)
    words = f"{', '.join(most)} or {last}" if most else last
    return f"must be {words}, got {_shown(got)}", f"did you mean `{near[0]}`?" if near else ""


def _literals(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for arg in get_args(annotation):
        found += _literals(arg) if get_args(arg) else [arg] if isinstance(arg, str) else []
    return found


def _range_words(loc: Loc) -> str:
    """'1 to 900 seconds', '1 or more'."""
    field = _field_at(loc)
    bounds = field.metadata if field else []
    low = next((m.ge for m in bounds if hasattr(m, "ge")), None)
    high = next((m.le for m in bounds if hasattr(m, "le")), None)
    unit = _of_unit(loc).removeprefix(" of")
    return f"{low} to {high}{unit}" if high is not None else f"{low}{unit} or more"


def _of_unit(loc: Loc) -> str:
    field = _field_at(loc)
    extra = field.json_schema_extra if field else None
    return f" of {extra['unit']}" if isinstance(extra, dict) and "unit" in extra else ""


def _pattern_words(loc: Loc) -> str:
    if loc[-1] == "name":
        return "1 to 64 letters, digits, `-` or `_`"
    if loc[-3:-1] == ("environment", "Variables") and loc[-4] == "lambda":
        return "named with letters, digits and `_`, a letter first and at least two"
    return "a variable's name, without `=`"


def _shown(value: Any) -> str:
    """A value as its author would recognise it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)[:40]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value)
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"


def _hint_for_unknown(loc: Loc) -> str:
    key, around = str(loc[-1]), loc[:-1]
    elsewhere = [path for path in _all_paths() if path.rpartition(".")[2] == key]
    if elsewhere:
        home = elsewhere[0].rpartition(".")[0].removeprefix("functions.aws[].")
        return f"`{key}` goes under `{home}`" if home else f"`{key}` goes at the top"
    model = _model_at(around)
    near = difflib.get_close_matches(key, _keys_of(model) if model else [], n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    if around == ("functions",):
        return "functions stand in a list: `functions: {aws: [{lambda: {name: …}}]}`"
    return f"the keys here are {', '.join(_keys_of(model))}" if model else ""


def _model_at(loc: Loc) -> type[BaseModel] | None:
    """The mapping of the language at `loc`; None below free-form values."""
    model: type[BaseModel] = Deployment
    for part in loc:
        if isinstance(part, int):
            continue
        field = _fields_of(model).get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def _field_at(loc: Loc) -> FieldInfo | None:
    while loc and isinstance(loc[-1], int):
        loc = loc[:-1]
    model = _model_at(loc[:-1])
    return _fields_of(model).get(str(loc[-1])) if model and loc else None


def _fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _keys_of(model: type[BaseModel]) -> list[str]:
    return list(_fields_of(model))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(arg) for arg in get_args(annotation))
    return next((model for model in inner if model), None)


def _all_paths(model: type[BaseModel] = Deployment, below: str = "") -> Iterator[str]:
    for key, field in _fields_of(model).items():
        yield below + key
        inner = _model_in(field.annotation)
        if inner is not None:
            many = "[]" if "tuple" in str(field.annotation) else ""
            yield from _all_paths(inner, f"{below}{key}{many}.")
