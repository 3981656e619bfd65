"""From layers to one complete, valid Deployment, or every fault at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from scar.errors import Diagnostic, FdlError
from scar.fdl import rules as language_rules
from scar.fdl.retired import retire
from scar.fdl.rules import Described, DescribedRule, Fault, FunctionRule
from scar.fdl.schema import AwsFunction, Deployment, StorageProviders, bounded
from scar.fdl.source import Loc, Sources, dotted

_CONFIG_KEYS = ("scar", "aws", "oscar")


@dataclass(frozen=True)
class Loaded:
    """A valid deployment, and what its author should know."""

    deployment: Deployment
    warnings: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What is checked beyond the single keys."""

    of_function: Sequence[FunctionRule] = language_rules.FUNCTION_RULES
    across: Sequence[DescribedRule] = language_rules.DESCRIBED_RULES


NO_RULES = Rules((), ())
"""For commands that only need to know where a function is."""


def load(sources: Sources, rules: Rules = Rules()) -> Loaded:
    """Lay the layers over each other and check the result.

    Callers who can see more than the text (whether a script exists) add to the language's rules.

    Raises FdlError with every fault found, in the order of the text.
    """
    data, retired = retire(sources)
    faults = [*_config_faults(sources), *retired]
    found = list(sources.faults())
    deployment: Deployment | None = None
    try:
        deployment = Deployment.model_validate(data, by_alias=True, by_name=False)
        described = Described(
            dict(enumerate(deployment.functions.aws)),
            deployment.storage_providers.defined(),
            deployment.scar.target,
        )
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        found += [_explain(error, sources) for error in _meant(errors)]
        described = _well_formed(data, errors)
    faults += _rule_faults(described, rules)
    found += [_located(fault, sources) for fault in faults if not _is_noise(fault, sources)]
    found = [_discreet(one) for one in found]
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


def _rule_faults(described: Described, rules: Rules) -> Iterator[Fault]:
    for i, function in described.functions.items():
        for rule in rules.of_function:
            yield from rule(function, ("functions", "aws", i), described.target)
    for across in rules.across:
        yield from across(described)


def _well_formed(data: Mapping[str, Any], errors: Iterable[ErrorDetails]) -> Described:
    """What can be judged in spite of `errors`."""
    locs = [error["loc"] for error in errors]
    bad = {loc[2] for loc in locs if loc[:2] == ("functions", "aws") and len(loc) > 2}
    given = data.get("storage_providers", {})
    defined = StorageProviders.names(given if isinstance(given, Mapping) else {})
    # A fault outside the functions may be about the target, or there may be no list at all.
    if any(loc[:1] == ("scar",) or (loc[:1] == ("functions",) and len(loc) < 3) for loc in locs):
        return Described({}, defined)
    items = data.get("functions", {}).get("aws", [])
    functions = {
        i: AwsFunction.model_validate(item, by_alias=True, by_name=False)
        for i, item in enumerate(items)
        if i not in bad
    }
    return Described(functions, defined, data.get("scar", {}).get("target", "aws"))


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


def _meant(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without the count of a list whose items are wrong: pydantic counts the good ones only."""
    items = {error["loc"][:-1] for error in errors}
    return [e for e in errors if e["type"] != "too_short" or e["loc"] not in items]


def _explain(error: ErrorDetails, sources: Sources) -> Diagnostic:
    """pydantic's error in our words; what storage providers hold is secret and not shown."""
    told = _told(error, sources)
    if error["loc"][:1] != ("storage_providers",):
        return told
    hint = "put it in quotes" if told.hint.startswith("put it in quotes") else told.hint
    return replace(told, summary=told.summary.partition(", got ")[0], hint=hint)


def _discreet(fault: Diagnostic) -> Diagnostic:
    """Without the line of the file where a storage provider's keys may be in it."""
    if fault.place is None or not fault.path.startswith("storage_providers"):
        return fault
    return replace(fault, place=replace(fault.place, text=""))


def _told(error: ErrorDetails, sources: Sources) -> Diagnostic:
    """pydantic's error in our words, with the place of the value or key it is about."""
    kind, loc = error["type"], error["loc"]
    is_key = loc[-1:] == ("[key]",)
    if is_key:
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
    place = sources.key_place(loc) if is_key else sources.value_place(loc)
    return Diagnostic(f"{item} {must}", dotted(loc), place, hint)


def _requirement(error: ErrorDetails, loc: Loc) -> tuple[str, str]:
    """What the value must be and what it is; and how to mend it where that is not the same."""
    kind, got = error["type"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"]), ""
    if kind == "literal_error":
        return _choice(loc, got)
    if kind in ("too_short", "too_long"):
        return f"must have {_count_words(loc)}, got {error['ctx']['actual_length']}", ""
    words = _words(kind, loc)
    if words is None:
        message = error["msg"]
        return f"is wrong: {message[0].lower()}{message[1:]}, got {_shown(got)}", ""
    must = f"must be {words}, got {_shown(got)}"
    if kind == "string_type" and isinstance(got, int | float):
        return must, f'put it in quotes: "{got}"'
    if kind == "tuple_type":
        return must, "write `- ` before each item, or `[a, b]`"
    return must, _extra(loc, "above") if kind.startswith("less_") else ""


def _words(kind: str, loc: Loc) -> str | None:
    """What a value of the key at `loc` must be, where pydantic found a fault of this kind."""
    simple = {
        "string_type": "text",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "tuple_type": "a list",
        "model_type": "a mapping of keys",
        "dict_type": "a mapping of keys",
    }
    if kind in simple:
        return simple[kind]
    if kind in ("string_pattern_mismatch", "string_too_short", "string_too_long"):
        return _extra(loc, "means")
    if kind.startswith(("greater_", "less_")):
        return _range_words(loc)
    if kind.startswith("int_") or kind == "finite_number":
        return f"a whole number{_of_unit(loc)}"
    if kind.startswith("float_"):
        return "a number"
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


def _count_words(loc: Loc) -> str:
    """'one item', 'at most 16 items'."""
    field = _field_at(loc)
    bounds = field.metadata if field else []
    low = next((m.min_length for m in bounds if hasattr(m, "min_length")), 0)
    high = next((m.max_length for m in bounds if hasattr(m, "max_length")), None)
    if high is None:
        return "one item or more"
    many = f"{high} items" if high > 1 else "one item"
    return many if low == high else f"at most {many}"


def _of_unit(loc: Loc) -> str:
    unit = _extra(loc, "unit")
    return f" of {unit}" if unit else ""


def _extra(loc: Loc, word: str) -> str:
    """What the schema says of the key at `loc`, or of the mapping that it is a free key of."""
    field = _field_at(loc) or _field_at(loc[:-1])
    extra = field.json_schema_extra if field else None
    return str(extra[word]) if isinstance(extra, dict) and word in extra else ""


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
    annotation: Any = Deployment
    for part in loc:
        if isinstance(part, int):
            continue
        if (values := _values_of(annotation)) is not None:
            annotation = values
            continue
        model = _model_in(annotation)
        field = _fields_of(model).get(part) if model else None
        if field is None:
            return None
        annotation = field.annotation
    return None if _values_of(annotation) else _model_in(annotation)


def _values_of(annotation: Any) -> Any:
    """What a mapping of free keys holds; None where it is something else."""
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def _field_at(loc: Loc) -> FieldInfo | None:
    while loc and isinstance(loc[-1], int):
        loc = loc[:-1]
    model = _model_at(loc[:-1])
    field = _fields_of(model).get(str(loc[-1])) if model and loc else None
    return bounded(field) if field else None


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
            any_key = ".<id>" if _values_of(field.annotation) else ""
            yield from _all_paths(inner, f"{below}{key}{many}{any_key}.")
