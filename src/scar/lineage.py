"""Which functions made an object, and of what: outputs say it in their metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from scar.aws.account import Account
from scar.aws.errors import is_absent
from scar.aws.objects import ObjectInfo, Objects
from scar.errors import CloudError, Missing
from scar_supervisor.records import Done, Lineage

State = Literal["made", "made by nobody", "replaced", "gone", "elsewhere", "unknown", "again"]


@dataclass(frozen=True)
class Step:
    """One object on the way back."""

    address: str
    """`s3://bucket/key`; another storage has another name before the colon."""
    state: State
    info: ObjectInfo | None = None
    """None where it is not there, or not asked."""
    made: Lineage | None = None
    """What made it; None at the end of the way."""
    is_last: bool = False
    """Whether what made it had no object to make it of."""


def trace(account: Account, bucket: str, key: str) -> Iterator[Step]:
    """The object, what it was made of, and so on to what no function made.

    Raises Missing where the object does not exist.
    """
    address, version = f"s3://{bucket}/{key}", ""
    seen: set[tuple[str, str]] = set()
    while address:
        step = _step(account, address, version)
        if not seen and step.info is None:
            raise Missing(f"there is no object `{address}`", f"`scar ls -b {bucket}` lists keys")
        known = (address, step.info.etag if step.info else "")
        if known in seen:
            yield Step(address, "again", step.info)
            return
        seen.add(known)
        if step.made is None:
            yield step
            return
        address, version = _input(account, step.made), step.made.input_version
        is_last = not address and not step.made.record
        yield replace(step, is_last=is_last)
        if not address and not is_last:
            yield Step("what it was made of", "unknown")


def _step(account: Account, address: str, version: str) -> Step:
    """What is known of an object; `version` as Lineage has it, or empty."""
    provider, _, path = address.partition("://")
    if provider != "s3":
        return Step(address, "elsewhere")
    bucket, _, key = path.partition("/")
    kind, _, name = version.partition(":")
    found = Objects(account, bucket).head(key, name if kind == "version" else "")
    if found is None:
        return Step(address, "gone")
    info, metadata = found
    if kind == "etag" and info.etag != name:
        return Step(address, "replaced", info)
    made = Lineage.of(metadata)
    return Step(address, "made" if made else "made by nobody", info, made)


def _input(account: Account, made: Lineage) -> str:
    """The address of what an output was made of; empty where nothing says so."""
    if made.input or not made.record:
        return made.input
    try:
        return Done.load(Objects(account, made.bucket).load(made.record).decode()).input
    except CloudError as exc:
        if not is_absent(exc):
            raise
    except ValueError:
        pass
    return ""
