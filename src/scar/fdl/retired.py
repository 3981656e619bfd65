"""Keys users bring along that this version ignores on purpose, or does not have yet.

An ignored key is answered with a warning, a key that is to come with an error: neither vanishes
silently, because the author would believe that it works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from scar.fdl.rules import Fault
from scar.fdl.source import Loc, Sources


class _Ignored(NamedTuple):
    path: tuple[str, ...]
    why: str
    harmless: Callable[[Any], bool] = lambda value: False
    """Values that ask for nothing: no warning."""


def _is_documented(value: Any) -> bool:
    """Whether it is what the documentation's scar.cfg has for a key of `api_gateway`."""
    text = str(value)
    return any(
        known in text for known in ("{api_id}", "apigateway.amazonaws.com", "X-Amz-Invocation-Type")
    )


_IGNORED = (
    _Ignored(("lambda", "layers"), "functions are images, which have no layers", lambda v: not v),
    _Ignored(
        ("lambda", "runtime"), "functions are always images", lambda v: v in ("image", "python3.7")
    ),
    _Ignored(("lambda", "handler"), "functions are always images"),
    _Ignored(
        ("lambda", "supervisor"),
        "the supervisor comes with SCAR",
        lambda v: isinstance(v, dict) and v.get("version", "latest") == "latest",
    ),
    _Ignored(
        ("lambda", "invocation_type"),
        "`asynchronous` says how `scar run` invokes",
        lambda v: v == "RequestResponse",
    ),
    _Ignored(("lambda", "log_type"), "`scar log` reads the log", lambda v: v == "Tail"),
    _Ignored(("lambda", "container", "alpine"), "the supervisor runs in any image"),
    _Ignored(("lambda", "deployment", "max_payload_size"), "functions are images"),
    _Ignored(("lambda", "deployment", "max_s3_payload_size"), "functions are images"),
    *(
        _Ignored(("api_gateway", key), "SCAR makes it itself", _is_documented)
        for key in (
            *("endpoint", "request_parameters", "service_id"),
            *("source_arn_testing", "source_arn_invocation"),
        )
    ),
    _Ignored(("s3",), "buckets are where the function is", lambda v: True),
    _Ignored(
        ("batch", "compute_resources", "launch_template_name"),
        "instances need no launch template",
        lambda v: v == "faas-supervisor",
    ),
)
_UDOCKER = "UDOCKER_"

IGNORED_KEYS = {one.path: f"ignored: {one.why}" for one in _IGNORED}
"""Accepted keys of a function that do nothing, and why."""


def retire(sources: Sources) -> tuple[dict[str, Any], list[Fault]]:
    """The merged data without such keys, and what to tell about each."""
    data = sources.merged()
    faults = list(_top_level(data, sources))
    functions = data.get("functions")
    items = functions.get("aws") if isinstance(functions, dict) else None
    for i, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, dict):
            at: Loc = ("functions", "aws", i)
            faults += _ignored(item, at)
            faults += _udocker(item, at)
    return data, faults


def _top_level(data: dict[str, Any], sources: Sources) -> Iterator[Fault]:
    functions = data.get("functions")
    if isinstance(functions, dict) and "oscar" in functions:
        data["functions"] = {k: v for k, v in functions.items() if k != "oscar"}
        yield Fault(
            ("functions", "oscar"),
            "`functions.oscar` is ignored: this version of SCAR deploys to AWS only",
            "deploy OSCAR services with oscar-cli",
            "warning",
            is_about_key=True,
        )
    providers = data.get("storage_providers")
    if isinstance(providers, dict) and "rucio" in providers:
        data["storage_providers"] = {k: v for k, v in providers.items() if k != "rucio"}
        yield Fault(
            ("storage_providers", "rucio"),
            "`storage_providers.rucio` is not in this version of SCAR yet",
            "remove it to deploy without",
            is_about_key=True,
        )


def _ignored(item: dict[str, Any], at: Loc) -> Iterator[Fault]:
    for path, why, harmless in _IGNORED:
        found, value = _take(item, path)
        if found and not harmless(value):
            summary = f"`{'.'.join(path)}` is ignored: {why}"
            yield Fault((*at, *path), summary, "remove it", "warning", is_about_key=True)


def _udocker(item: dict[str, Any], at: Loc) -> Iterator[Fault]:
    path = ("lambda", "environment", "Variables")
    variables = _at(item, path)
    for name in [name for name in variables or () if name.startswith(_UDOCKER)]:
        _take(item, (*path, name))
        summary = f"`{name}` is ignored: nothing runs udocker"
        yield Fault((*at, *path, name), summary, "remove it", "warning", is_about_key=True)


def _take(item: dict[str, Any], path: tuple[str, ...]) -> tuple[bool, Any]:
    """Remove the value at `path`, copying the mappings on the way: they belong to the layers."""
    if not isinstance(_at(item, path[:-1]), dict):
        return False, None
    here = item
    for key in path[:-1]:
        here[key] = dict(here[key])
        here = here[key]
    if path[-1] not in here:
        return False, None
    return True, here.pop(path[-1])


def _at(item: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    here: Any = item
    for key in path:
        here = here.get(key) if isinstance(here, dict) else None
    return here if isinstance(here, dict) else None
