"""scar.cfg and the FDL file: from the disk and the environment to layers of settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scar.errors import Diagnostic, FdlError, Missing, Place, UserError
from scar.fdl.migrate import migrate
from scar.fdl.rules import Fault, FunctionRule
from scar.fdl.schema import AwsFunction
from scar.fdl.source import Layer, Loc, from_flags, read_yaml

FOLDER_VARIABLE = "SCAR_CONFIG_FOLDER"
TARGET_VARIABLE = "SCAR_TARGET"
CONFIG_NAME = "scar.cfg"
BACKUP_NAME = "scar.cfg_old"
CONFIG_VERSION = "2.0.0"
"""Of the files this version writes; the reference's (1.x) are brought up to it, once."""
_MAJOR = int(CONFIG_VERSION.partition(".")[0])

MAX_BYTES = 4 << 20
"""No description of functions is larger; a data file named by mistake is."""


MAX_IMAGE = 10 * 2**30
"""Bytes of an image, uncompressed (Lambda quotas); an archive is never larger than its image."""


@dataclass(frozen=True)
class Config:
    """The layer of scar.cfg, and what was noticed on the way."""

    layer: Layer
    warnings: tuple[Diagnostic, ...] = ()


def folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`$SCAR_CONFIG_FOLDER`, else `~/.scar`.

    Raises UserError where neither the variable nor a home folder is set.
    """
    if named := environ.get(FOLDER_VARIABLE):
        return Path(named).absolute()
    try:
        return Path.home() / ".scar"
    except RuntimeError as exc:
        raise UserError("there is no home folder", f"set {FOLDER_VARIABLE} to a folder") from exc


def read_config(environ: Mapping[str, str] = os.environ) -> Config:
    """scar.cfg, written with the defaults when there is none, brought up to date when it is old.

    Raises FdlError where it is not JSON, UserError where it cannot be read. A folder that cannot
    be written is a warning: nothing needed is missing.
    """
    path = folder(environ) / CONFIG_NAME
    try:
        text = _read_text(path)
    except Missing:
        return _first_use(path)
    layer = _parse(text, str(path))
    version = _version(layer.data)
    if version is None or version[0] == _MAJOR:
        return Config(layer)
    if version[0] > _MAJOR:
        told = f"`{path}` is of a newer version of SCAR: this one may not know all its keys"
        return Config(layer, (Diagnostic(told, hint="update SCAR", severity="warning"),))
    return _migrated(path, text, layer)


def read_environment(environ: Mapping[str, str] = os.environ) -> Layer:
    """The settings made by variables: `SCAR_TARGET`."""
    if target := environ.get(TARGET_VARIABLE):
        return from_flags({"scar": {"target": target}}, {("scar", "target"): TARGET_VARIABLE})
    return Layer()


def read_fdl(path: Path) -> Layer:
    """The FDL file.

    Raises Missing, UserError or FdlError where it is not there, not readable or not YAML.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        hint = f"did you mean `{path / inside[0]}`?" if inside else "give the file's own path"
        raise UserError(f"`{path}` is a folder, not an FDL file", hint)
    return read_yaml(_read_text(path), str(path))


def files_exist(base: Path) -> FunctionRule:
    """A rule: scripts, payloads and image archives are there. `base` is the FDL file's folder."""

    def rule(function: AwsFunction, at: Loc, target: str) -> list[Fault]:
        part = function.lambda_
        faults: list[Fault] = []
        for key in ("init_script", "run_script"):
            faults += _file_faults(base, getattr(part, key), (*at, "lambda", key))
        archive = part.container.image_file
        if archive is None or not (base / archive / "index.json").exists():  # an OCI layout
            faults += _archive_faults(base, archive, (*at, "lambda", "container", "image_file"))
        if part.extra_payload is not None and not (base / part.extra_payload).exists():
            hint = f"looked in `{base}`"
            loc: Loc = (*at, "lambda", "extra_payload")
            faults.append(Fault(loc, f"no file or folder `{part.extra_payload}`", hint))
        return faults

    return rule


def _archive_faults(base: Path, named: str | None, loc: Loc) -> list[Fault]:
    faults = _file_faults(base, named, loc)
    if named is not None and not faults and (size := (base / named).stat().st_size) > MAX_IMAGE:
        told = f"`{named}` has {size / 1e9:.1f} GB, Lambda takes images of at most 10 GB"
        faults.append(Fault(loc, told, "leave out what the script does not need"))
    return faults


def _file_faults(base: Path, named: str | None, loc: Loc) -> list[Fault]:
    if named is None:
        return []
    path = base / named
    if path.is_dir():
        return [Fault(loc, f"`{named}` is a folder, not a file")]
    if not path.exists():
        return [Fault(loc, f"no file `{named}`", f"looked for `{path}`")]
    if not path.is_file():  # a device or a pipe never ends
        return [Fault(loc, f"`{named}` is not a regular file")]
    if not os.access(path, os.R_OK):
        return [Fault(loc, f"cannot read `{named}`: permission denied")]
    return []


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise Missing(f"no file `{path}`", "give the path of an existing file") from exc
    except OSError as exc:
        raise UserError(f"cannot read `{path}`: {(exc.strerror or str(exc)).lower()}") from exc
    if len(raw) > MAX_BYTES:
        raise UserError(f"`{path}` is larger than {MAX_BYTES >> 20} MiB: it describes no functions")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = raw[: exc.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        byte = f"0x{raw[exc.start]:02x}"
        fault = Diagnostic(
            f"not a text file in UTF-8: it holds the byte {byte}",
            place=Place(str(path), line, column),
            hint="save the file as UTF-8 text",
        )
        raise FdlError([fault]) from exc


def _parse(text: str, origin: str) -> Layer:
    if not text.strip():
        return Layer()
    try:
        data = json.loads(text)
    except json.JSONDecodeError as exc:
        lines = text.splitlines()
        line = lines[exc.lineno - 1] if exc.lineno <= len(lines) else ""
        message = exc.msg[0].lower() + exc.msg[1:]
        raise _fault(
            f"not valid JSON: {message}", Place(origin, exc.lineno, exc.colno, line)
        ) from exc
    except RecursionError as exc:
        raise _fault("nested too deep", Place(origin, 1, 1)) from exc
    if not isinstance(data, dict):
        raise _fault("expected an object at the top", Place(origin, 1, 1))
    if not data:
        return Layer()
    try:
        # JSON is YAML except for tabs, which stand between values only: in text they are escaped.
        return read_yaml(text.replace("\t", " "), origin)
    except FdlError:
        return Layer(_without_nulls(data))


def _without_nulls(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: _without_nulls(v) for k, v in data.items() if v is not None}
    return data


def _fault(summary: str, place: Place) -> FdlError:
    hint = f"mend the file, or remove it: a new one with the defaults is written ({CONFIG_NAME})"
    return FdlError([Diagnostic(summary, place=place, hint=hint)])


def _first_use(path: Path) -> Config:
    text = json.dumps(_defaults(), indent=2) + "\n"
    layer = _parse(text, str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(path, text)
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        warning = Diagnostic(
            f"cannot write `{path}`: {why}; going on with the defaults",
            hint=f"set {FOLDER_VARIABLE} to a folder that can be written",
            severity="warning",
        )
        return Config(replace(layer, values={}, keys={}), (warning,))
    return Config(layer)


def _version(data: Mapping[str, Any]) -> tuple[int, ...] | None:
    """`scar.config_version` as numbers; None where it is not given or no version."""
    its = data.get("scar")
    given = its.get("config_version") if isinstance(its, Mapping) else None
    return _numbers(given) if isinstance(given, str) else None


def _numbers(version: str) -> tuple[int, ...] | None:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6}){0,3}", version):
        return None
    return tuple(map(int, version.split(".")))


def _migrated(path: Path, text: str, layer: Layer) -> Config:
    """The file of an older version rewritten for this one; the old one is kept beside it."""
    written = json.dumps(migrate(layer.data, CONFIG_VERSION), indent=2, ensure_ascii=False) + "\n"
    try:
        backup = _backup(path, text)
        _replace(path, written)
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        told = (
            f"`{path}` is of an older version and cannot be rewritten: {why}; it is read as it is"
        )
        return Config(layer, (Diagnostic(told, severity="warning"),))
    told = f"`{path}` is now of version {CONFIG_VERSION}; the old one is `{backup.name}` beside it"
    hint = "your values are in both"
    return Config(_parse(written, str(path)), (Diagnostic(told, hint=hint, severity="warning"),))


def _backup(path: Path, text: str) -> Path:
    """A copy of the old file under a name that is still free."""
    for number in range(1, 100):
        backup = path.with_name(BACKUP_NAME + (f".{number}" if number > 1 else ""))
        try:
            _write_new(backup, text, must_be_new=True)
        except FileExistsError:
            continue
        return backup
    raise FileExistsError(f"too many files `{BACKUP_NAME}`")


def _replace(path: Path, text: str) -> None:
    """Whole or not at all; where the file is a link, what it leads to."""
    target = path.resolve()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError:
        os.unlink(temporary)
        raise


def _write_new(path: Path, text: str, *, must_be_new: bool = False) -> None:
    """Whole or not at all, and never over the file of a command that was faster.

    Raises FileExistsError where it is there already and `must_be_new`.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.link(temporary, path)
    except FileExistsError:
        if must_be_new:
            raise
    finally:
        os.unlink(temporary)


def _defaults() -> dict[str, Any]:
    """What users most often set once for all their functions, at the language's own defaults."""
    whole = AwsFunction.model_validate({"lambda": {"name": "x"}}).model_dump(
        by_alias=True, exclude_none=True
    )
    chosen = ("boto_profile", "memory", "timeout", "execution_mode", "log_level")
    return {
        "scar": {"config_version": CONFIG_VERSION, "target": "aws"},
        "aws": {
            "lambda": {key: whole["lambda"][key] for key in chosen},
            "iam": {"role": ""},
            "cloudwatch": {
                "log_retention_policy_in_days": whole["cloudwatch"]["log_retention_policy_in_days"]
            },
            "batch": {
                "vcpus": whole["batch"]["vcpus"],
                "memory": whole["batch"]["memory"],
                "compute_resources": whole["batch"]["compute_resources"],
            },
        },
    }
