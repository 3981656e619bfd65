"""The command line: flags to options and to a layer of settings.

Loaded by every command, `--help` and `--version` too: nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from scar import __version__
from scar.errors import Diagnostic, FdlError, Place, UserError

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Options:
    """One command as typed."""

    command: str
    """`init`, …, `local start`."""
    values: argparse.Namespace
    """The flags that are about the command itself."""
    settings: Mapping[str, Any]
    """The flags that are settings, in the shape of scar.cfg."""
    flags: Mapping[Loc, str]
    """Which flag made which setting."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Every answer of AWS, gathered while the command runs, where `-v` asks for them."""


class _Setting(NamedTuple):
    short: str
    long: str
    path: tuple[str, ...]
    metavar: str | None
    """None: a switch."""
    help: str
    kind: str = "one"
    """one, file, list, variables, bucket."""


_DEFINITION = (
    _Setting(
        "-s",
        "--init-script",
        ("lambda", "init_script"),
        "FILE",
        "script of every invocation",
        "file",
    ),
    _Setting("-d", "--description", ("lambda", "description"), "TEXT", "what the function does"),
    _Setting(
        *("-e", "--environment", ("lambda", "container", "environment", "Variables")),
        *("VAR=VAL", "variable of the script; repeatable", "variables"),
    ),
    _Setting(
        *("-le", "--lambda-environment", ("lambda", "environment", "Variables")),
        *("VAR=VAL", "variable of the Lambda function itself; repeatable", "variables"),
    ),
    _Setting("-m", "--memory", ("lambda", "memory"), "MB", "128 to 10240; default 512"),
    _Setting("-t", "--timeout", ("lambda", "timeout"), "SECONDS", "1 to 900; default 300"),
    _Setting(
        *("-tt", "--timeout-threshold", ("lambda", "container", "timeout_threshold"), "SECONDS"),
        "part of the timeout kept back for staging out; default 10",
    ),
    _Setting("-ll", "--log-level", ("lambda", "log_level"), "LEVEL", "of the supervisor"),
    _Setting("-l", "--layers", ("lambda", "layers"), "ARN", "ignored: images have none", "list"),
    _Setting(
        *("-ib", "--input-bucket", ("lambda", "input"), "BUCKET[/PREFIX]"),
        *("its new objects trigger the function", "bucket"),
    ),
    _Setting(
        *("-ob", "--output-bucket", ("lambda", "output"), "BUCKET[/PREFIX]"),
        *("where the output goes", "bucket"),
    ),
    _Setting(
        *("-em", "--execution-mode", ("lambda", "execution_mode"), "MODE"),
        "lambda, lambda-batch or batch; default lambda",
    ),
    _Setting("-r", "--iam-role", ("iam", "role"), "ARN", "execution role; not needed locally"),
    _Setting(
        *("-sv", "--supervisor-version", ("lambda", "supervisor", "version"), "VERSION"),
        "ignored: the supervisor comes with SCAR",
    ),
    _Setting("-rt", "--runtime", ("lambda", "runtime"), "NAME", "ignored: always an image"),
    _Setting("-bm", "--batch-memory", ("batch", "memory"), "MIB", "of a job; default 1024"),
    _Setting("-bc", "--batch-vcpus", ("batch", "vcpus"), "COUNT", "of a job; default 1"),
    _Setting("-g", "--enable-gpu", ("batch", "enable_gpu"), None, "one GPU for each job"),
    _Setting(
        *("-ep", "--extra-payload", ("lambda", "extra_payload"), "PATH"),
        *("file or folder added to the image, at $EXTRA_PAYLOAD", "file"),
    ),
    _Setting("-ph", "--preheat", ("lambda", "preheat"), None, "invoke once after deploying"),
    _Setting(
        *("-db", "--deployment-bucket", ("lambda", "deployment", "bucket"), "BUCKET"),
        "for events too large to travel inline",
    ),
    _Setting(
        *("-api", "--api-gateway-name", ("api_gateway", "name"), "NAME"),
        "give it an HTTP endpoint, a REST API of that name",
    ),
)
_IMAGE = _Setting(
    "-i", "--image", ("lambda", "container", "image"), "IMAGE", "image in a registry, or `host`"
)
_IMAGE_FILE = _Setting(
    *("-if", "--image-file", ("lambda", "container", "image_file"), "FILE"),
    *("an archive of `docker save`", "file"),
)
_NAME = _Setting("-n", "--name", ("lambda", "name"), "NAME", "name of the function")
_PROFILE = _Setting(
    *("-pf", "--profile", ("lambda", "boto_profile"), "NAME", "profile of the AWS credentials")
)
_SETTINGS = (*_DEFINITION, _IMAGE, _IMAGE_FILE, _NAME, _PROFILE)

_WORDS = {
    "--execution-mode": ("lambda", "lambda-batch", "batch"),
    "--log-level": ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"),
}
"""What shells complete after a flag."""

OFFLINE = ("validate", "schema", "completion")
"""Commands that ask nobody: neither AWS nor the local cloud."""

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")

_SUMMARIES = {
    "init": "deploy functions, or update them",
    "validate": "check an FDL file, scar.cfg and flags; nothing is asked or touched",
    "run": "invoke a function and show its output",
    "invoke": "call a function's HTTP endpoint and show its output",
    "put": "upload a file or folder into a bucket",
    "get": "download objects of a bucket",
    "ls": "list functions, or a bucket's objects",
    "log": "show a function's log, and its jobs'",
    "ps": "list invocations and jobs: state, age, duration, exit code, why they wait",
    "wait": "wait until jobs have ended",
    "stop": "end jobs",
    "explain": "say why a job is as it is, and what to do",
    "doctor": "say whether the account, or this machine, can run functions, and what to do",
    "trace": "say which functions made an object, of what, back to what no function made",
    "rm": "remove functions and what belongs to them",
    "iam": "print the roles that functions need: who may take them, and what they allow",
    "schema": "print the JSON Schema of FDL files, for editors",
    "completion": "print what makes a shell complete commands and flags",
    "local": "the local cloud: start, stop, status, prune, reset",
}
_EXAMPLES = {
    "validate": "scar validate -f video.yaml\n  scar --local validate -f video.yaml --json",
    "schema": "scar schema > fdl.schema.json",
    "completion": 'eval "$(scar completion bash)"   # in ~/.bashrc; zsh: in ~/.zshrc',
    "init": "scar init -f video.yaml\n  scar --local init -n cow -i host -s cow.sh --plan",
    "run": (
        "scar run -n cow\n  scar run -n cow -s other.sh\n  scar run -n cow ls -la /tmp\n"
        "  scar run -n split --all --wait\n  scar run -n split --retry-failed --wait"
    ),
    "invoke": (
        "scar invoke -n cow\n  scar invoke -n cow -db image.jpg -o cow.txt\n"
        """  scar invoke -n cow -jd '{"say": "moo"}' -p '{"colour": "brown"}'"""
    ),
    "put": "scar put -b video/input -p seq1.avi",
    "get": "scar get -b video/output -p results",
    "ls": "scar ls\n  scar ls -b video/output",
    "log": "scar log -n split --follow\n  scar log -f video.yaml -n split -ri 6f1c…",
    "ps": "scar ps -n split\n  scar ps -f video.yaml\n  scar ps -a --failed",
    "wait": "scar wait -n split\n  scar wait 1f0c… --timeout 600",
    "stop": "scar stop 1f0c…\n  scar stop -n split --waiting",
    "explain": "scar explain 1f0c…\n  scar explain 1f0c…:7",
    "doctor": "scar doctor -f video.yaml\n  scar --local doctor",
    "trace": "scar trace s3://video/output/seq1.txt\n  scar trace video/output/seq1.txt --json",
    "rm": "scar rm -f video.yaml\n  scar rm -n cow --plan",
    "iam": "scar iam -f video.yaml\n  scar iam -f video.yaml -n split --json",
    "local": "scar local status\n  scar local reset --yes",
}


def parse(argv: Sequence[str]) -> Options:
    """What was typed.

    Raises UserError or FdlError where it makes no command, SystemExit after --help and --version.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    values, rest = parser.parse_known_args(list(argv))
    if values.command is None:
        raise UserError("no command given", "`scar --help` lists the commands")
    command = values.command
    if rest:
        raise _unknown(rest[0], values.parser, command)
    if command == "local":
        command = f"local {values.action}"
    _check(command, values)
    settings, flags = _settings(values)
    return Options(command, values, settings, flags)


def flags() -> dict[str, list[str]]:
    """Every command's flags, short and long."""
    [commands] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return {
        name: [flag for action in sub._actions for flag in action.option_strings]
        for name, sub in commands.choices.items()
    }


class _Parser(argparse.ArgumentParser):
    """argparse whose faults are UserErrors, told like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"`{self.prog} --help` shows the flags and an example")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"one of {', '.join(names)}"
        what = "shell" if action.dest == "shell" else "command"
        raise UserError(f"unknown {what} `{value}`", hint)


def _parser() -> _Parser:
    parser = _Parser(
        prog="scar",
        description="Run containers on AWS Lambda and AWS Batch, or on this machine.",
        epilog="`scar COMMAND --help` shows a command's flags and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=f"SCAR {__version__}")
    _add_everywhere(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, summary in _SUMMARIES.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n  {_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(parser=sub)
        _add_everywhere(sub)
        sub.add_argument("-j", "--json", action="store_true", help="JSON instead of text")
        _ADD[name](sub)
    return parser


def _add_everywhere(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--local",
        action="store_true",
        default=argparse.SUPPRESS,
        help="on the local cloud of this machine instead of AWS",
    )
    _add(parser, _PROFILE)


def _add(group: Any, setting: _Setting) -> None:
    options: dict[str, Any] = {"dest": setting.long, "default": argparse.SUPPRESS}
    if setting.metavar is None:
        options["action"] = "store_true"
    else:
        options["metavar"] = setting.metavar
        options["action"] = "append" if setting.kind in ("list", "variables") else "store"
    action = group.add_argument(setting.short, setting.long, help=setting.help, **options)
    if words := _WORDS.get(setting.long):
        action.completer = lambda **_: words


def _add_fdl(group: Any, help_text: str = "describes the functions (FDL, YAML)") -> None:
    group.add_argument("-f", "--conf-file", metavar="FILE", help=help_text)


def _add_init(parser: argparse.ArgumentParser) -> None:
    _add_definition(parser)
    parser.add_argument("--plan", action="store_true", help="show what would be done; do nothing")
    _add_verbose(parser)


def _add_definition(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    _add_fdl(source)
    _add(source, _IMAGE)
    _add(source, _IMAGE_FILE)
    _add(parser, _NAME)
    for setting in _DEFINITION:
        _add(parser, setting)


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add(parser, _NAME)
    _add_fdl(parser)
    parser.add_argument("-s", "--run-script", metavar="FILE", help="instead of the init script")
    parser.add_argument(
        "-ib",
        "--input-bucket",
        metavar="BUCKET[/PREFIX]",
        help="once for each object there; in mode `batch` as one array job",
    )
    parser.add_argument(
        "--all", action="store_true", help="once for each object of its own input bucket"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="once for each event that failed for good"
    )
    parser.add_argument(
        "--force", action="store_true", help="in such a run also what is done already"
    )
    parser.add_argument("--wait", action="store_true", help="for the end of such a run")
    parser.add_argument(
        "--concurrency",
        metavar="COUNT",
        type=_count,
        help="invocations at a time in such a run; default 32",
    )
    parser.add_argument(
        "-a", "--asynchronous", action="store_true", help="do not wait for the output"
    )
    parser.add_argument("-o", "--output-file", metavar="FILE", help="write the output there")
    _add_verbose(parser)
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="COMMAND …",
        help="run in the container instead of the script",
    )


def _add_invoke(parser: argparse.ArgumentParser) -> None:
    _add(parser, _NAME)
    _add_fdl(parser)
    parser.add_argument("-db", "--data-binary", metavar="FILE", help="send it, as base64 text")
    parser.add_argument("-jd", "--json-data", metavar="JSON", help="send it")
    parser.add_argument(
        "-p", "--parameters", metavar="JSON", help="query parameters, a JSON object"
    )
    parser.add_argument(
        "-a", "--asynchronous", action="store_true", help="do not wait for the output"
    )
    parser.add_argument("-o", "--output-file", metavar="FILE", help="write the output there")


def _add_put(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-b", "--bucket", required=True, metavar="BUCKET[/PREFIX]", help="where to")
    parser.add_argument("-p", "--path", required=True, metavar="PATH", help="a file or folder")
    _add_force(parser)


def _add_get(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-b", "--bucket", required=True, metavar="BUCKET[/PREFIX]", help="which objects"
    )
    parser.add_argument("-p", "--path", required=True, metavar="PATH", help="folder for them")
    _add_force(parser)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force", action="store_true", help="copy also what is there already, byte for byte"
    )


def _add_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-b", "--bucket", metavar="BUCKET[/PREFIX]", help="its objects instead")
    _add_verbose(parser)


def _add_log(parser: argparse.ArgumentParser) -> None:
    _add(parser, _NAME)
    _add_fdl(parser)
    parser.add_argument("-ls", "--log-stream-name", metavar="NAME", help="this stream only")
    parser.add_argument(
        "-ri", "--request-id", metavar="ID", help="of one invocation or one Batch job"
    )
    parser.add_argument("--follow", action="store_true", help="go on with what is written from now")


def _add_ps(parser: argparse.ArgumentParser) -> None:
    _add(parser, _NAME)
    _add_fdl(parser)
    parser.add_argument("-a", "--all", action="store_true", help="all functions of yours")

    parser.add_argument(
        "--failed", action="store_true", help="what failed for good, and is kept for a retry"
    )


def _add_wait(parser: argparse.ArgumentParser) -> None:
    _add_jobs(parser)
    parser.add_argument(
        "-t", "--timeout", metavar="SECONDS", type=_count, help="give up after that time"
    )


def _add_stop(parser: argparse.ArgumentParser) -> None:
    _add_jobs(parser)
    parser.add_argument(
        "--waiting", action="store_true", help="only those that do not run yet (CancelJob)"
    )
    parser.add_argument(
        "--reason", metavar="TEXT", default="stopped by scar stop", help="kept with the jobs"
    )


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="ids, as `scar ps` shows them")
    _add(parser, _NAME)
    _add_fdl(parser)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="id of a job, an array, or a child (ID:INDEX)")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add(parser, _NAME)
    _add_fdl(parser, "what these functions need, too")


def _add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("object", metavar="[s3://]BUCKET/KEY", help="the object to begin with")


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got `{text}`")
    return int(text)


def _add_rm(parser: argparse.ArgumentParser) -> None:
    _add(parser, _NAME)
    _add_fdl(parser)
    parser.add_argument("-a", "--all", action="store_true", help="all functions of yours")
    parser.add_argument("--plan", action="store_true", help="show what would be done; do nothing")
    _add_verbose(parser)


def _add_schema(parser: argparse.ArgumentParser) -> None:
    """It has no flags of its own."""


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell to print it for")


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("start", "stop", "status", "prune", "reset"),
        help="prune removes unused images; reset deletes all: functions, objects, logs",
    )
    parser.add_argument("--yes", action="store_true", help="reset: yes, delete it")


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="as -j, then every answer of AWS as JSON"
    )


_ADD = {
    "init": _add_init,
    "validate": _add_definition,
    "run": _add_run,
    "invoke": _add_invoke,
    "put": _add_put,
    "get": _add_get,
    "ls": _add_ls,
    "log": _add_log,
    "ps": _add_ps,
    "wait": _add_wait,
    "stop": _add_stop,
    "explain": _add_explain,
    "doctor": _add_doctor,
    "trace": _add_trace,
    "rm": _add_rm,
    "iam": _add_definition,
    "schema": _add_schema,
    "completion": _add_completion,
    "local": _add_local,
}


def _unknown(flag: str, parser: argparse.ArgumentParser, command: str) -> UserError:
    if not flag.startswith("-"):
        return UserError(
            f"unexpected argument `{flag}`", f"`scar {command} --help` shows the flags"
        )
    known = [name for action in parser._actions for name in action.option_strings]
    near = difflib.get_close_matches(flag.split("=")[0], known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"`scar {command} --help` shows the flags"
    if command == "run" and not near:
        hint = "put `--` before a command for the container"
    return UserError(f"unknown flag `{flag}`", hint)


def _check(command: str, values: argparse.Namespace) -> None:
    """What argparse cannot say about one command's flags."""
    if getattr(values, "verbose", False):
        values.json = True
    named = [
        flag
        for flag, given in (
            ("-n", hasattr(values, _NAME.long)),
            ("-f", getattr(values, "conf_file", None) is not None),
            ("-a", command in ("rm", "ps") and values.all),
            ("JOB", bool(getattr(values, "jobs", ()))),
        )
        if given
    ]
    if command in ("wait", "stop") and len(named) != 1:
        raise UserError(
            f"`scar {command}` needs to know the jobs",
            "give their ids, or `-n NAME` or `-f FILE` for all that have not ended",
        )
    if command in ("run", "invoke", "log", "ps", "rm") and not named:
        every = ", or `-a` for all of yours" if command in ("ps", "rm") else ""
        raise UserError(
            f"`scar {command}` needs to know the function", f"add `-n NAME` or `-f FILE`{every}"
        )
    if "-a" in named and len(named) > 1:
        raise UserError(f"`-a` means all functions, `{named[0]}` some", "keep one of them")
    if command == "run":
        _check_run(values)
    if command == "invoke":
        _check_invoke(values)


def _check_run(values: argparse.Namespace) -> None:
    if values.arguments[:1] == ["--"]:
        del values.arguments[0]
    _check_bulk(values)
    if values.asynchronous and values.output_file is not None:
        raise UserError("`-o` needs the output, `-a` does not wait for it", "keep one of them")


def _check_bulk(values: argparse.Namespace) -> None:
    """A run for many objects, and the flags that only such a run has."""
    asked = [
        flag
        for flag, given in (
            ("--all", values.all),
            ("--input-bucket", values.input_bucket is not None),
            ("--retry-failed", values.retry_failed),
        )
        if given
    ]
    if len(asked) > 1:
        raise UserError(f"`{asked[0]}` and `{asked[1]}` exclude each other", "keep one of them")
    if not asked:
        for flag, given in (
            ("--wait", values.wait),
            ("--concurrency", values.concurrency),
            ("--force", values.force),
        ):
            if given:
                raise UserError(f"`{flag}` is for runs over many objects", "add `--all`")
        return
    if values.output_file is not None:
        raise UserError(f"`-o` is for one output, `{asked[0]}` gives many", "remove `-o`")
    if values.wait and values.asynchronous:
        raise UserError("`--wait` waits, `-a` does not", "keep one of them")
    if values.retry_failed and (values.arguments or values.run_script is not None):
        raise UserError("`--retry-failed` runs again what was run", "remove the script or command")


def _check_invoke(values: argparse.Namespace) -> None:
    if values.asynchronous and values.output_file is not None:
        raise UserError("`-o` needs the output, `-a` does not wait for it", "keep one of them")
    if values.data_binary is not None and values.json_data is not None:
        raise UserError("`-db` and `-jd` both say what to send", "keep one of them")
    if values.json_data is not None:
        _json(values.json_data, "--json-data")
    if values.parameters is not None:
        values.parameters = _json(values.parameters, "--parameters")
        if not isinstance(values.parameters, dict):
            raise UserError(
                "`--parameters` is not a JSON object", """write it as '{"name": "value"}'"""
            )


def _json(text: str, flag: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise UserError(
            f"`{flag}` is not JSON: {str(exc).lower()}", """write it as '{"name": "value"}'"""
        ) from exc


def _settings(values: argparse.Namespace) -> tuple[dict[str, Any], dict[Loc, str]]:
    """The settings among the flags, in the shape of scar.cfg, and which flag made which."""
    settings: dict[str, Any] = {}
    flags: dict[Loc, str] = {}
    faults: list[Diagnostic] = []
    for setting in _SETTINGS:
        given = getattr(values, setting.long, None)
        if given is not None:
            value = _value(setting, given, faults)
            _put(settings, flags, ("aws", *setting.path), value, setting.long)
    if getattr(values, "local", False):
        _put(settings, flags, ("scar", "target"), "local", "--local")
    if faults:
        raise FdlError(faults)
    return settings, flags


def _value(setting: _Setting, given: Any, faults: list[Diagnostic]) -> Any:
    if setting.kind == "file":
        # Flags are relative to the working folder, keys of an FDL file to that file's.
        return str(Path(given).absolute())
    if setting.kind == "bucket":
        return [{"storage_provider": "s3", "path": given}]
    if setting.kind != "variables":
        return given
    variables: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name:
            what = "no `=`" if not sign else "no name"
            faults.append(
                Diagnostic(
                    f"`{text}` has {what}", place=Place(setting.long), hint="write it as VAR=value"
                )
            )
        variables[name] = value
    return variables


def _put(
    settings: dict[str, Any], flags: dict[Loc, str], path: tuple[str, ...], value: Any, flag: str
) -> None:
    here = settings
    for key in path[:-1]:
        here = here.setdefault(key, {})
    here[path[-1]] = value
    for loc in _locs(path, value):
        flags[loc] = flag


def _locs(loc: Loc, value: Any) -> list[Loc]:
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    return [loc, *(inner for key, child in children for inner in _locs((*loc, key), child))]
