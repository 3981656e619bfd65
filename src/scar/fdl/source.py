"""Text to plain data that knows where each value stands; layers laid over each other.

A `Layer` is one source of settings. There are three shapes, told apart by who made them:
the FDL file (`functions.aws[…]`, `storage_providers`, `scar`), and scar.cfg and the flags (`aws`,
which is laid under or over EVERY item of `functions.aws`, and `scar`). `Sources` puts them
together and answers for any value of the result where it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from scar.errors import Diagnostic, FdlError, Place

Loc = tuple[str | int, ...]
"""Path of a value: keys and list indexes from the top."""

Data = Mapping[str, Any]

MAX_DEPTH = 40
MAX_VALUES = 100_000
"""Values a file may expand to; aliases count each time they are used."""

TEXT_MAPPINGS = ("Variables", "tags")
"""Mappings whose values are text as written: `yes`, `007` and `1.10` stay what they are."""

MOVED: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("lambda", "batch"), ("batch",)),
    (("lambda", "time"), ("lambda", "timeout")),
    (("lambda", "timeout_threshold"), ("lambda", "container", "timeout_threshold")),
    (("lambda", "image"), ("lambda", "container", "image")),
    (("lambda", "image_file"), ("lambda", "container", "image_file")),
    (
        ("batch", "multi_node_parallel", "enable"),
        ("batch", "multi_node_parallel", "enabled"),
    ),
)
"""Where files of the reference implementation have a key of a function, and where it is now."""

_LoaderClass: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"
_IMAGES = {"image", "image_file"}


@dataclass(frozen=True)
class Layer:
    """One source of settings: scar.cfg, the FDL file, the environment or the flags."""

    data: Data = field(default_factory=dict)
    values: Mapping[Loc, Place] = field(default_factory=dict)
    """Where each value starts."""
    keys: Mapping[Loc, Place] = field(default_factory=dict)
    """Where the key of each value starts; list items have none."""
    faults: tuple[Diagnostic, ...] = ()
    """Faults that leave the data usable, such as a key written twice."""


def read_yaml(text: str, origin: str) -> Layer:
    """Parse YAML text into data and places. Nulls in mappings are absent keys.

    Raises FdlError where the text is not YAML, is not a mapping at its top, or expands without
    bound.
    """
    lines = text.splitlines()
    root = _compose(text, lines, origin)
    if root is None:
        raise _fault("the file is empty", Place(origin, 1, 1), "see `scar init --help`")
    if not isinstance(root, yaml.MappingNode):
        mark = root.start_mark
        raise _fault(
            f"expected keys at the top, got {_kind(root)}",
            Place(origin, mark.line + 1, mark.column + 1, _line(lines, mark.line)),
            "start with `functions:`",
        )
    reader = _Reader(origin, lines)
    data = reader.read(root, ())
    return Layer(data, reader.values, reader.keys, tuple(reader.faults))


def from_flags(data: Data, flags: Mapping[Loc, str]) -> Layer:
    """A layer made of flags or variables; `flags` says which one set which value."""
    return Layer(data, {loc: Place(name) for loc, name in flags.items()})


def overlay(below: Data, above: Data) -> dict[str, Any]:
    """`above` laid over `below`: mappings merge, anything else replaces (lists too)."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = overlay(under, value)
        result[key] = value
    return result


def modern(item: Any) -> Any:
    """One layer's function with every key where it is now; a key that is in both places stays."""
    for old, new in MOVED:
        if _has(item, old) and not _has(item, new) and _has_room(item, new[:-1]):
            item, value = _without(item, old)
            item = overlay(item, _nested(new, value))
    return item


@dataclass(frozen=True)
class Sources:
    """All layers of one command, weakest first: scar.cfg, FDL, environment, flags."""

    config: Layer = field(default_factory=Layer)
    fdl: Layer | None = None
    environment: Layer = field(default_factory=Layer)
    flags: Layer = field(default_factory=Layer)

    def merged(self) -> dict[str, Any]:
        """The data of all layers in the FDL's shape; without an FDL, the flags' one function."""
        fdl = self.fdl.data if self.fdl is not None else _one_function(self.flags)
        merged = {key: value for key, value in fdl.items() if key != "scar"}
        scar: Any = {}
        for part in (self.config.data, fdl, self.environment.data, self.flags.data):
            if "scar" in part:
                scar = _laid(scar, part["scar"])
        merged["scar"] = scar
        functions = fdl.get("functions")
        if isinstance(functions, Mapping) and isinstance(functions.get("aws"), list):
            items = [self._item(item) for item in functions["aws"]]
            merged["functions"] = {**functions, "aws": items}
        return merged

    def value_place(self, loc: Loc) -> Place | None:
        """Where the value that won at `loc` was written, or its nearest enclosing key."""
        for layer, inner in self._views(loc):
            if place := layer.values.get(inner):
                return place
        # Of what encloses a missing value the key tells more than the value, a whole block.
        for cut in range(len(loc), 0, -1):
            for layer, inner in self._views(loc[:cut]):
                # The blocks of scar.cfg belong to all functions: nothing of one is missing there.
                if layer is self.config and cut <= 4:
                    continue
                if place := layer.keys.get(inner) or layer.values.get(inner):
                    return place
        return None

    def key_place(self, loc: Loc) -> Place | None:
        """Where the key at `loc` was written."""
        for layer, inner in self._views(loc):
            if inner in layer.keys:
                return layer.keys[inner]
        return self.value_place(loc)

    def is_from_config(self, loc: Loc) -> bool:
        """Whether the value at `loc` comes from scar.cfg and no stronger layer."""
        for layer, inner in self._views(loc):
            if inner in layer.values:
                return layer is self.config
        return False

    def faults(self) -> tuple[Diagnostic, ...]:
        """The faults found while reading any layer."""
        layers = (self.config, self.fdl or Layer(), self.environment, self.flags)
        return tuple(fault for layer in layers for fault in layer.faults)

    def _item(self, item: Any) -> Any:
        if not isinstance(item, Mapping):
            return item
        below: Any = modern(self.config.data.get("aws", {}))
        for above in (modern(item), self.flags.data.get("aws", {})):
            if isinstance(below, Mapping) and isinstance(above, Mapping):
                below = _one_image(below, above)
            below = _laid(below, above)
        return below

    def _views(self, loc: Loc) -> Iterator[tuple[Layer, Loc]]:
        """The layers that may hold `loc`, strongest first, each with its own path for it."""
        in_item = loc[:2] == ("functions", "aws") and len(loc) > 2
        shared: Loc = ("aws", *loc[3:]) if in_item else loc
        if loc[:2] == ("functions", "aws") and not in_item:
            shared = ("aws",)
        yield self.flags, shared
        yield self.environment, shared
        old = list(_old_spellings(loc[3:])) if in_item else []
        if self.fdl is not None:
            yield self.fdl, loc
            yield from ((self.fdl, (*loc[:3], *path)) for path in old)
        yield self.config, shared
        yield from ((self.config, ("aws", *path)) for path in old)


def dotted(loc: Loc) -> str:
    """('functions', 'aws', 0, 'lambda') -> 'functions.aws[0].lambda'."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).lstrip(".")


def _one_function(flags: Layer) -> Data:
    return {"functions": {"aws": [{}]}} if "aws" in flags.data else {}


def _laid(below: Any, above: Any) -> Any:
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        return overlay(below, above)
    return above


def _old_spellings(path: Loc) -> Iterator[Loc]:
    for old, new in MOVED:
        if path[: len(new)] == new:
            yield (*old, *path[len(new) :])


def _has(data: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return True


def _has_room(data: Any, path: tuple[str, ...]) -> bool:
    """Whether mappings, or nothing, stand at every step of `path`."""
    for key in path:
        if not isinstance(data, Mapping):
            return False
        data = data.get(key, {})
    return isinstance(data, Mapping)


def _without(data: Mapping[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    """`data` without the value at `path`, and that value; nothing is changed in place."""
    rest = dict(data)
    if len(path) == 1:
        value = rest.pop(path[0])
    else:
        rest[path[0]], value = _without(data[path[0]], path[1:])
    return rest, value


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def _one_image(below: Mapping[str, Any], above: Mapping[str, Any]) -> Mapping[str, Any]:
    """`image` and `image_file` exclude each other: the stronger layer's choice drops the other."""
    strong, weak = _container(above), _container(below)
    dropped = _IMAGES - strong.keys() if strong.keys() & _IMAGES else set()
    if not dropped & weak.keys():
        return below
    kept = {key: value for key, value in weak.items() if key not in dropped}
    return {**below, "lambda": {**below["lambda"], "container": kept}}


def _container(item: Mapping[str, Any]) -> Mapping[str, Any]:
    function = item.get("lambda")
    container = function.get("container") if isinstance(function, Mapping) else None
    return container if isinstance(container, Mapping) else {}


def _compose(text: str, lines: list[str], origin: str) -> yaml.Node | None:
    if bad := _NOT_YAML.search(text):
        line = text.count("\n", 0, bad.start())
        column = bad.start() - (text.rfind("\n", 0, bad.start()) + 1)
        raise _fault(
            f"not a text file: it holds the character U+{ord(bad.group()):04X}",
            Place(origin, line + 1, column + 1),
            "give a YAML file in UTF-8",
        )
    try:
        _check_depth(text, lines, origin)
        root: yaml.Node | None = yaml.compose(text, Loader=_LoaderClass)
    except yaml.MarkedYAMLError as exc:
        marks = [mark for mark in (exc.problem_mark, exc.context_mark) if mark is not None]
        # An unclosed bracket or quote is noticed at the end of the text: show where it opens.
        marks = [mark for mark in marks if mark.line < len(lines)] or marks
        line, column = (marks[0].line, marks[0].column) if marks else (0, 0)
        place = Place(origin, line + 1, column + 1, _line(lines, line))
        problem = ", ".join(filter(None, (exc.context, exc.problem)))
        raise _fault(f"not valid YAML: {problem}", place, _remedy(place)) from exc
    except yaml.YAMLError as exc:
        raise _fault(f"not valid YAML: {exc}", Place(origin, 1, 1)) from exc
    return root


def _check_depth(text: str, lines: list[str], origin: str) -> None:
    """Composing recurses, and libyaml's recursion ends the process; events do not recurse."""
    depth = 0
    for event in yaml.parse(text, Loader=_LoaderClass):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            mark = event.start_mark
            line, column = (mark.line, mark.column) if mark else (0, 0)
            place = Place(origin, line + 1, column + 1, _line(lines, line))
            raise _fault(f"nested more than {MAX_DEPTH} deep", place)


def _remedy(place: Place) -> str:
    if "\t" in place.text[: place.column]:
        return "indent with spaces: YAML allows no tabs"
    return "check the indentation, the `:` after each key and the quotes around here"


def _line(lines: list[str], index: int) -> str:
    return lines[index] if index < len(lines) else ""


def _fault(summary: str, place: Place, hint: str = "") -> FdlError:
    return FdlError([Diagnostic(summary, place=place, hint=hint)])


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else f"`{str(node.value)[:40]}`"


class _Reader:
    """Walks YAML nodes once: data, places, and the faults that YAML itself lets pass."""

    def __init__(self, origin: str, lines: list[str]) -> None:
        self.values: dict[Loc, Place] = {}
        self.keys: dict[Loc, Place] = {}
        self.faults: list[Diagnostic] = []
        self._origin, self._lines = origin, lines
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, loc: Loc) -> Any:
        self._count += 1
        place = self._place(node)
        if self._count > MAX_VALUES:
            raise _fault(
                f"the file expands to more than {MAX_VALUES:,} values",
                self.keys.get(loc[:1], place),
                "write fewer aliases (`*name`) of aliases",
            )
        if len(loc) > MAX_DEPTH:
            raise _fault(
                f"nested more than {MAX_DEPTH} deep", place, "an alias must not hold itself"
            )
        self.values.setdefault(loc, place)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*loc, i)) for i, item in enumerate(node.value)]
        if len(loc) > 1 and loc[-2] in TEXT_MAPPINGS:
            return "" if node.tag == f"{_TAG}null" else node.value
        return self._scalar(node, loc)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        result: dict[str, Any] = {}
        seen: dict[str, Place] = {}
        for key, value, is_own in self._pairs(node, loc):
            place = self._place(key)
            if not isinstance(key, yaml.ScalarNode):
                self._report("a key must be text", loc, place)
            elif key.value not in seen:
                seen[key.value] = place
                self._entry(key, value, (*loc, key.value), result)
            elif is_own:
                hint = f"the first is in line {seen[key.value].line}; keep one"
                self._report(f"`{key.value}` is written twice", (*loc, key.value), place, hint)
        return result

    def _pairs(
        self, node: yaml.MappingNode, loc: Loc, depth: int = 0
    ) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
        """Keys and values: its own first, then those of the mappings it merges (`<<: *base`)."""
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_VALUES:
            raise _fault("`<<` merges without end", self._place(node), "merge plain mappings")
        bases: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag != f"{_TAG}merge":
                yield key, value, depth == 0
            else:
                bases += value.value if isinstance(value, yaml.SequenceNode) else [value]
        for base in bases:
            if isinstance(base, yaml.MappingNode):
                yield from self._pairs(base, loc, depth + 1)
            else:
                self._report("`<<` needs a mapping", loc, self._place(base), "write `<<: *name`")

    def _entry(
        self, key: yaml.ScalarNode, value: yaml.Node, loc: Loc, result: dict[str, Any]
    ) -> None:
        self.keys[loc] = self._place(key)
        read = self.read(value, loc)
        if read is None:
            del self.values[loc]
        else:
            result[key.value] = read

    def _scalar(self, node: yaml.Node, loc: Loc) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp", "value") or (kind == "int" and ":" in node.value):
            return node.value
        if kind not in ("int", "float", "bool", "null"):
            self._report(f"the tag `{node.tag}` is not allowed", loc, self._place(node))
            return node.value
        try:
            return self._scalars.construct_object(node)
        except (ValueError, KeyError, OverflowError, yaml.YAMLError):
            self._report(
                f"`{node.value[:40]}` is no {kind}", loc, self._place(node), "put text in quotes"
            )
            return node.value

    def _place(self, node: yaml.Node) -> Place:
        mark = node.start_mark
        return Place(self._origin, mark.line + 1, mark.column + 1, _line(self._lines, mark.line))

    def _report(self, summary: str, loc: Loc, place: Place, hint: str = "") -> None:
        self.faults.append(Diagnostic(summary, dotted(loc), place, hint))
