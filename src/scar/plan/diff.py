"""What must be done to turn what is into what should be. Pure: no AWS, no files, no clock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from graphlib import TopologicalSorter
from typing import TypeAlias

from scar.plan.resources import BucketTrigger, Resource, ResourceId, id_of, needs

Observed: TypeAlias = Mapping[ResourceId, Resource]
"""What an account holds of the resources that were asked about; an absent id does not exist."""


class Verb(StrEnum):
    """What a step does to its resource."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True)
class Step:
    """One change to one resource, and the reason."""

    verb: Verb
    resource: Resource
    """As it should be; for DELETE, as it is."""
    why: str
    found: Resource | None = None
    """As it is; None for CREATE."""

    def __str__(self) -> str:
        return f"{self.verb} {id_of(self.resource)}"


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which they may run."""

    steps: tuple[Step, ...]


def to_reach(desired: Iterable[Resource], observed: Observed) -> Plan:
    """The steps that make the account hold `desired`; none where it already does."""
    steps = (_step(resource, observed.get(id_of(resource))) for resource in in_order(desired))
    return Plan(tuple(step for step in steps if step))


def to_remove(observed: Observed, why: str = "no longer wanted") -> Plan:
    """The steps that delete everything in `observed`, dependents first."""
    backwards = reversed(in_order(observed.values()))
    return Plan(tuple(Step(Verb.DELETE, resource, why, resource) for resource in backwards))


def in_order(resources: Iterable[Resource]) -> list[Resource]:
    """Resources so that each stands after all that it needs; otherwise in the order given."""
    by_id = {id_of(resource): resource for resource in resources}
    graph = {rid: [n for n in needs(resource) if n in by_id] for rid, resource in by_id.items()}
    return [by_id[rid] for rid in TopologicalSorter(graph).static_order()]


def waits_for(plan: Plan) -> list[set[int]]:
    """For each step, the indexes of the steps that must be done before it.

    What is deleted beside a change goes last: until then something may still use it. A trigger goes
    first: what it would start is not what the change is for, and may run in a circle.
    """
    index = {id_of(step.resource): n for n, step in enumerate(plan.steps)}
    changes = {n for n, step in enumerate(plan.steps) if step.verb is not Verb.DELETE}
    triggers = {
        n
        for n, step in enumerate(plan.steps)
        if n not in changes and isinstance(step.resource, BucketTrigger)
    }
    before = [
        set(triggers) if n in changes else set() if n in triggers else set(changes)
        for n in range(len(plan.steps))
    ]
    for n, step in enumerate(plan.steps):
        others = {index[needed] for needed in needs(step.resource) if needed in index}
        if n in changes:
            before[n] |= others & changes
        else:
            for other in others - changes:
                before[other].add(n)
    return before


def _step(wanted: Resource, found: Resource | None) -> Step | None:
    if found is None:
        return Step(Verb.CREATE, wanted, "does not exist")
    changes = _changes(found, wanted)
    return Step(Verb.UPDATE, wanted, ", ".join(changes), found) if changes else None


def _changes(old: Resource, new: Resource) -> list[str]:
    changes: list[str] = []
    for name, shown in ((f.name, f.repr) for f in fields(new) if f.compare):
        was, now = getattr(old, name), getattr(new, name)
        if was == now:
            continue
        if not shown:
            changes.append(f"{name} changed")
        elif isinstance(was, Mapping) and isinstance(now, Mapping):
            changes += [
                f"{name}.{key} {_text(was.get(key))} -> {_text(now.get(key))}"
                for key in sorted({*was, *now})
                if was.get(key) != now.get(key)
            ]
        else:
            changes.append(f"{name} {_text(was)} -> {_text(now)}")
    return changes


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value)
    return "(none)" if value is None or value in ("", ()) else str(value)
