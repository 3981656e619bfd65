"""What an FDL file or the flags describe: the layers of one command, loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scar import config
from scar.cli import render
from scar.cli.arguments import Options
from scar.errors import Diagnostic, Place, UserError
from scar.fdl.load import NO_RULES, Rules, load
from scar.fdl.schema import Deployment, Functions
from scar.fdl.source import Layer, Sources
from scar.plan import limits


@dataclass(frozen=True)
class Described:
    """What an FDL file, or the flags of `init`, describe."""

    deployment: Deployment
    base: Path
    """The folder that scripts are relative to."""
    name: str | None
    """The function picked with `-n` beside `-f`."""
    warnings: tuple[Diagnostic, ...] = ()

    def chosen(self) -> Deployment:
        """The deployment with the picked function only, if one was."""
        if self.name is None:
            return self.deployment
        kept = tuple(f for f in self.deployment.functions.aws if f.lambda_.name == self.name)
        return self.deployment.model_copy(update={"functions": Functions(aws=kept)})


def describe(options: Options, rules: Callable[[Path], Rules] = lambda base: NO_RULES) -> Described:
    """Read and load all layers; warnings are told. `rules` are given the folder of the scripts.

    Raises FdlError with every fault, UserError where there is no such function.
    """
    file = options.values.conf_file
    read = read_config()
    fdl = config.read_fdl(Path(file)) if file is not None else None
    flags = Layer(options.settings, places(options))
    name = None
    if fdl is not None:
        # Beside -f, -n picks a function; it does not name one.
        name = given_name(options)
        flags = _without_name(flags)
    base = Path(file).absolute().parent if file is not None else Path.cwd()
    loaded = load(Sources(read, fdl, config.read_environment(), flags), rules(base))
    render.warnings(loaded.warnings)
    if file is not None and not loaded.deployment.functions.aws:
        raise UserError(f"`{file}` describes no functions", "list them under `functions: {aws: …}`")
    names = names_of(loaded.deployment)
    if name is not None and name not in names:
        raise UserError(f"no function `{name}` in `{file}`", f"it has: {', '.join(names)}")
    return Described(loaded.deployment, base, name, loaded.warnings)


def complete_rules(base: Path) -> Rules:
    """All that can be known to be wrong before anything is asked or touched."""
    every = Rules()
    return Rules(
        (*every.of_function, *limits.FUNCTION_RULES, config.files_exist(base)),
        (*every.across, *limits.DESCRIBED_RULES),
    )


def read_config() -> Layer:
    """The layer of scar.cfg; what was noticed on the way is told."""
    read = config.read_config()
    render.warnings(read.warnings)
    return read.layer


def places(options: Options) -> dict[tuple[str | int, ...], Place]:
    """Which flag made which setting."""
    return {loc: Place(flag) for loc, flag in options.flags.items()}


def given_name(options: Options) -> str | None:
    """What `-n` says."""
    name = options.settings.get("aws", {}).get("lambda", {}).get("name")
    return str(name) if name is not None else None


def names_of(deployment: Deployment) -> list[str]:
    """The functions' names."""
    return [function.lambda_.name for function in deployment.functions.aws]


def _without_name(flags: Layer) -> Layer:
    aws = flags.data.get("aws", {})
    part = {key: value for key, value in aws.get("lambda", {}).items() if key != "name"}
    return replace(flags, data={**flags.data, "aws": {**aws, "lambda": part}})
