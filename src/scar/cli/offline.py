"""The commands that ask nobody: no daemon, no network, and nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Callable

from scar.cli import render
from scar.cli.arguments import Options


def run_command(options: Options) -> None:
    """Do what was typed. Raises ScarError where it cannot be done."""
    _COMMANDS[options.command](options)


def validate(options: Options) -> None:
    """Say that what is described can be deployed, as far as can be known here."""
    from scar.cli.described import complete_rules, describe, names_of

    described = describe(options, complete_rules)
    names = names_of(described.chosen())
    render.valid(names, described.warnings, as_json=options.values.json)


def schema(options: Options) -> None:
    """Print the JSON Schema of FDL files."""
    from scar.fdl.reference import json_schema

    render.document(json_schema())


def completion(options: Options) -> None:
    """Print the code that a shell sources to complete commands and flags."""
    from argcomplete.shell_integration import shellcode

    code = shellcode(["scar"], shell=options.values.shell)
    render.said(code.strip(), {"Completion": code}, as_json=options.values.json)


_COMMANDS: dict[str, Callable[[Options], None]] = {
    "validate": validate,
    "schema": schema,
    "completion": completion,
}
COMMANDS = frozenset(_COMMANDS)
