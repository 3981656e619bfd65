"""One function a command: options in, the work handed down, the result handed to `render`."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from scar import (
    bulk,
    config,
    deploy,
    doctor,
    endpoint,
    failures,
    invoke,
    lineage,
    local,
    logs,
    state,
    storage,
    work,
)
from scar.aws.account import Account, Target, connect
from scar.aws.functions import list_functions
from scar.aws.gateway import endpoint_of
from scar.cli import render
from scar.cli.arguments import Options
from scar.cli.described import complete_rules, describe, given_name, names_of, places, read_config
from scar.errors import (
    ApplyError,
    Diagnostic,
    FdlError,
    FunctionFailed,
    Missing,
    NotDeployed,
    Place,
    ScarError,
    UserError,
)
from scar.fdl.load import NO_RULES, load
from scar.fdl.schema import AwsFunction, Deployment, bucket_fault
from scar.fdl.source import Layer, Sources
from scar.plan.desired import NeededRole, roles
from scar.plan.diff import Step, Verb
from scar.plan.limits import how_things_travel
from scar.plan.policies import document, trust
from scar.plan.resources import Function

_RECOMMENDED = re.compile(
    r"\bscar (?=(init|run|invoke|put|get|ls|log|ps|wait|stop|explain|trace|doctor|rm|iam)\b)"
)


def run_command(options: Options) -> None:
    """Do what was typed. Raises ScarError where it cannot be done."""
    try:
        _COMMANDS[options.command](options)
        if getattr(options.values, "verbose", False):
            render.answers(options.answers)
    except ScarError as exc:
        if "scar" in options.settings:
            # A command that is recommended must go where this one went.
            exc.hint = _RECOMMENDED.sub(r"scar --local ", exc.hint)
        raise


def init(options: Options) -> None:
    """Deploy, or update what is deployed."""
    described = describe(options, complete_rules)
    deployment = described.chosen()
    account = _account_of(deployment, options)
    uploads = render.Uploads()
    prepared = deploy.prepare(deployment, described.base, account, render.talk, uploads)
    render.warnings(prepared.warnings)
    steps, as_json = prepared.plan.steps, options.values.json
    if options.values.plan:
        scripts = {
            its.name: (described.base / its.init_script).stat().st_size
            for its in (one.lambda_ for one in deployment.functions.aws)
            if its.init_script is not None
        }
        travels = how_things_travel(deployment, scripts, account.facts())
        render.plan(steps, travels, as_json=as_json)
        return
    file = options.values.conf_file
    undo = f"`scar rm -f {file}`" if file else f"`scar rm -n {names_of(deployment)[0]}`"
    with _told_how_to_go_on(undo), render.stepping(len(steps), uploads) as on_step:
        deploy.carry_out(prepared, on_step)
    _preheat(account, deployment, steps)
    names = names_of(deployment)
    urls = _urls(deployment, account)
    render.deployed(names, steps, urls, _following(deployment), as_json=as_json)


def run(options: Options) -> None:
    """Invoke one function and show its output."""
    values = options.values
    output = _output_file(values)
    script = None
    if values.all or values.retry_failed or values.input_bucket is not None:
        _run_many(options)
        return
    if values.run_script is not None:
        script = _script(Path(values.run_script), values.run_script)
    name, account, function = _one_function(options)
    asynchronous = values.asynchronous
    if function is not None:
        asynchronous = asynchronous or function.lambda_.asynchronous
        if script is None and function.lambda_.run_script is not None:
            named = function.lambda_.run_script
            script = _script(Path(values.conf_file).parent / named, named)
    result = _invoked(account, name, script, values, asynchronous)
    if asynchronous:
        render.launched(name, result, as_json=values.json)
        return
    if output is not None:
        output.write_bytes(result.output)
    render.ran(result, as_json=values.json, shows_output=output is None)


def _run_many(options: Options) -> None:
    """Run the function for every object."""
    values = options.values
    path = None
    if values.input_bucket is not None:
        path = _checked_path(str(values.input_bucket), "--input-bucket")
    script = None
    if values.run_script is not None:
        script = _script(Path(values.run_script), values.run_script)
    name, account, _ = _one_function(options)
    wanted = bulk.Wanted(
        path=path,
        script=script,
        arguments=values.arguments,
        retries_failed=values.retry_failed,
        waits=values.wait,
        forces=values.force,
        concurrency=values.concurrency or bulk.CONCURRENCY,
    )
    with render.counting() as on_progress:
        outcome = bulk.run(account, name, wanted, render.talk, on_progress)
    render.ran_many(outcome, _scar(account), as_json=values.json)
    if outcome.failures:
        raise FunctionFailed(
            f"{len(outcome.failures)} of {outcome.total} runs of function `{name}` failed",
            outcome.failures[0].id,
            hint=f"`scar run -n {name} --retry-failed --wait` runs those again",
        )


def call(options: Options) -> None:
    """Call one function's HTTP endpoint and show its output."""
    values = options.values
    output = _output_file(values)
    name, account, function = _one_function(options)
    wanted = _call(values, function)
    result = endpoint.call(account, name, wanted)
    if wanted.asynchronous:
        render.launched(name, result, as_json=values.json)
        return
    if output is not None:
        output.write_bytes(result.output)
    render.ran(result, as_json=values.json, shows_output=output is None)


def put(options: Options) -> None:
    """Upload a file or folder."""
    path, bucket = Path(options.values.path), _bucket_path(options)
    if not path.exists():
        raise Missing(f"no file or folder `{path}`", "give the path of an existing one")
    account, force = _account(options), options.values.force
    with (
        render.transferring() as shown,
        closing(storage.put(account, bucket, path, shown, force=force)) as done,
    ):
        shown.show(done, as_json=options.values.json)


def get(options: Options) -> None:
    """Download a bucket's objects."""
    path, bucket = Path(options.values.path), _bucket_path(options)
    if path.exists() and not path.is_dir():
        raise UserError(f"`{path}` is a file", "give a folder for the objects")
    account, force = _account(options), options.values.force
    with (
        render.transferring() as shown,
        closing(storage.get(account, bucket, path, shown, force=force)) as done,
    ):
        shown.show(done, as_json=options.values.json)


def ls(options: Options) -> None:
    """List functions, or a bucket's objects."""
    if options.values.bucket is not None:
        bucket = _bucket_path(options)
        found = storage.list_objects(_account(options), bucket)
        render.objects(found, as_json=options.values.json)
    else:
        render.functions(list_functions(_account(options)), as_json=options.values.json)


def log(options: Options) -> None:
    """Show a function's log, and its jobs'."""
    values = options.values
    name, account, _ = _one_function(options)
    read = logs.follow if values.follow else logs.read
    events = read(account, name, stream=values.log_stream_name, request_id=values.request_id)
    for event in events:
        render.log_event(event, as_json=values.json)


def ps(options: Options) -> None:
    """List invocations and jobs."""
    values = options.values
    account, names = _some_functions(options)
    if values.failed:
        targets = [state.target_of(account, name) for name in names]
        render.failed(
            [one for its in targets for one in failures.failures(account, its)],
            _scar(account),
            as_json=values.json,
        )
        return
    now_ms = time.time_ns() // 1_000_000
    render.work(list(work.ps(account, names, now_ms)), now_ms, as_json=values.json)


def wait(options: Options) -> None:
    """Wait until jobs have ended."""
    values = options.values
    account, ids = _some_jobs(options)

    def on_change(job: str, state: str) -> None:
        render.talk(f"job {job}: {state}")

    ended = work.wait(account, ids, values.timeout, on_change)
    render.waited(ended, as_json=values.json)
    if ended.failed:
        job, why = ended.failed[0]
        raise FunctionFailed(
            f"{len(ended.failed)} of {len(ids)} jobs failed: {why}",
            job,
            hint=f"`scar explain {job}`",
        )


def stop(options: Options) -> None:
    """End jobs."""
    values = options.values
    account, ids = _some_jobs(options)
    stopped = work.stop(account, ids, values.reason, only_waiting=values.waiting)
    text = "\n".join(f"job {job} is being stopped" for job in stopped) or "nothing to stop"
    render.said(text, {"Stopped": stopped}, as_json=values.json)


def explain(options: Options) -> None:
    """Say why a job is as it is."""
    values = options.values
    job, findings = work.explain_job(_account(options), values.job)
    render.explained(job, findings, as_json=values.json)


def examine(options: Options) -> None:
    """Say whether everything that is needed is there, and what to do if not."""
    found: list[doctor.Check] = []
    try:
        deployment = _examined(options, found)
        account = _account_of(deployment, options) if deployment else _account(options)
        found += doctor.examine(account, deployment)
    except FdlError as exc:
        found += _faults(exc)
    except local.LocalCloudFailed as exc:
        found.append(doctor.Check("local cloud", "problem", str(exc), exc.hint))
    render.examined(found, as_json=options.values.json)
    if problems := sum(one.state == "problem" for one in found):
        told = "1 problem stands" if problems == 1 else f"{problems} problems stand"
        raise doctor.NotUsable(f"{told} in the way", "mend what is named, and run it again")


def _examined(options: Options, found: list[doctor.Check]) -> Deployment | None:
    """What `-f` describes, its faults told; None where nothing does."""
    file = options.values.conf_file
    if file is None:
        return None
    try:
        described = describe(options, complete_rules)
        found.append(doctor.Check("description", "ok", f"`{file}` is right"))
    except FdlError as exc:
        described = describe(options)
        found += _faults(exc)
    return described.chosen()


def _faults(error: FdlError) -> list[doctor.Check]:
    return [
        doctor.Check("description", "problem", f"{one.place}: {one.summary}", one.hint)
        for one in error.diagnostics
    ]


def trace(options: Options) -> None:
    """Say which functions made an object."""
    bucket, key = _object(str(options.values.object))
    account = _account(options)
    steps = lineage.trace(account, bucket, key)
    render.traced(steps, _scar(account), as_json=options.values.json)


def rm(options: Options) -> None:
    """Remove functions and what belongs to them."""
    values = options.values
    names: list[str] | None = None
    if values.all:
        account = _account(options)
        names = [info.name for info in list_functions(account)]
        prepared = deploy.prepare_removal(None, account)
    elif values.conf_file is not None:
        described = describe(options)
        deployment = described.chosen()
        account = _account_of(deployment, options)
        names = _deployed(names_of(deployment), account)
        prepared = deploy.prepare_removal(names, account)
    else:
        account, names = _account(options), [_named(options)]
        prepared = deploy.prepare_removal(names, account)
    steps = prepared.plan.steps
    if values.plan:
        render.plan(steps, "", as_json=values.json)
        return
    with _told_how_to_go_on(None), render.stepping(len(steps)) as on_step:
        deploy.carry_out(prepared, on_step)
    render.removed(names, steps, as_json=values.json)


def iam(options: Options) -> None:
    """Print what the roles of functions allow and who may take them."""
    deployment = describe(options, complete_rules).chosen()
    facts = _account_of(deployment, options).facts()
    told = [
        {
            "Name": function.lambda_.name,
            "Roles": [_role(one) for one in roles(function, facts, deployment.storage_providers)],
        }
        for function in deployment.functions.aws
    ]
    show = render.data if options.values.json else render.document
    show({"Functions": told})


def local_start(options: Options) -> None:
    """Start the local cloud, unless it runs."""
    data = local.data_folder()
    local.ensure(data, render.talk)
    render.cloud(local.status(data), str(data), as_json=options.values.json)


def local_stop(options: Options) -> None:
    """Stop the local cloud; its data stays."""
    stopped = local.stop(local.data_folder())
    text = "the local cloud is stopped" if stopped else "the local cloud was not running"
    render.said(text, {"Stopped": stopped}, as_json=options.values.json)


def local_status(options: Options) -> None:
    """Whether the local cloud runs, where, on which engine, and what it takes on the disk."""
    data = local.data_folder()
    running = local.status(data)
    told = local.detailed(running) if running else None
    disk = local.disk(running) if running else {}
    render.cloud(told, str(data), disk=disk, as_json=options.values.json)


def local_prune(options: Options) -> None:
    """Remove the images that no function and no job uses, with what was unpacked of them."""
    done = local.prune(local.data_folder(), render.talk)
    render.pruned(done, as_json=options.values.json)


def local_reset(options: Options) -> None:
    """Stop the local cloud and delete all its data."""
    data = local.data_folder()
    if not options.values.yes:
        raise UserError(
            f"this would delete everything in the local cloud: `{data}`", "add `--yes` to do it"
        )
    deleted = local.reset(data)
    text = f"deleted everything in `{data}`" if deleted else f"there is nothing in `{data}`"
    render.said(text, {"Deleted": deleted, "Data": str(data)}, as_json=options.values.json)


_COMMANDS: dict[str, Callable[[Options], None]] = {
    "init": init,
    "run": run,
    "invoke": call,
    "put": put,
    "get": get,
    "ls": ls,
    "log": log,
    "ps": ps,
    "wait": wait,
    "stop": stop,
    "explain": explain,
    "doctor": examine,
    "trace": trace,
    "rm": rm,
    "iam": iam,
    "local start": local_start,
    "local stop": local_stop,
    "local status": local_status,
    "local reset": local_reset,
    "local prune": local_prune,
}


def _one_function(options: Options) -> tuple[str, Account, AwsFunction | None]:
    """The function that `run` and `log` are about, and where it is."""
    file = options.values.conf_file
    if file is None:
        return _named(options), _account(options), None
    described = describe(options)
    deployment = described.chosen()
    names = names_of(deployment)
    if len(names) > 1:
        raise UserError(
            f"`{file}` describes {len(names)} functions", f"add `-n NAME`: {', '.join(names)}"
        )
    return names[0], _account_of(deployment, options), deployment.functions.aws[0]


def _some_functions(options: Options) -> tuple[Account, list[str]]:
    """The functions that `ps`, `wait` and `stop` are about, and where they are."""
    values = options.values
    if getattr(values, "all", False):
        account = _account(options)
        return account, [info.name for info in list_functions(account)]
    if values.conf_file is None:
        return _account(options), [_named(options)]
    described = describe(options)
    deployment = described.chosen()
    return _account_of(deployment, options), names_of(deployment)


def _some_jobs(options: Options) -> tuple[Account, list[str]]:
    """The jobs named, or all of the functions named that have not ended."""
    if options.values.jobs:
        return _account(options), list(dict.fromkeys(options.values.jobs))
    account, names = _some_functions(options)
    return account, [job for name in names for job in work.unfinished(account, name)]


def _account(options: Options) -> Account:
    """The account for commands without an FDL: only where to go is taken from scar.cfg."""
    read = read_config()
    aws = read.data.get("aws")
    if isinstance(aws, dict):
        its = aws.get("lambda")
        kept: Any = its
        if isinstance(its, dict):
            kept = {key: its[key] for key in ("boto_profile", "region") if key in its}
        read = replace(read, data={**read.data, "aws": {"lambda": kept} if "lambda" in aws else {}})
    flags = Layer(options.settings, places(options))
    given = options.settings.get("aws", {}).get("lambda", {})
    flags = replace(flags, data={**flags.data, "aws": {"lambda": {"name": "any", **given}}})
    loaded = load(Sources(read, None, config.read_environment(), flags), NO_RULES)
    return _account_of(loaded.deployment, options)


def _account_of(deployment: Deployment, options: Options) -> Account:
    part = deployment.functions.aws[0].lambda_
    kind = deployment.scar.target
    # botocore reads AWS_DEFAULT_REGION only; other tools of AWS prefer AWS_REGION.
    region = part.region or os.environ.get("AWS_REGION") or None
    told = options.answers.append if getattr(options.values, "verbose", False) else None
    if kind == "local":
        region = region or os.environ.get("AWS_DEFAULT_REGION")
        url = local.ensure(local.data_folder(), render.talk)
        return connect(Target("local", url, None, region, told))
    # AWS's own order (AWS_PROFILE, then `default`) decides where no profile is asked for.
    profile = part.boto_profile if part.boto_profile != "default" else None
    return connect(Target("aws", None, profile, region, told))


def _named(options: Options) -> str:
    name = given_name(options)
    assert name is not None, "arguments.parse asks for a name or a file"
    return name


def _deployed(names: list[str], account: Account) -> list[str]:
    """Those of a file's functions that are there: `rm -f` also undoes a half-done `init`.

    Raises NotDeployed where none is.
    """
    found: list[str] = []
    absent: NotDeployed | None = None
    for name in names:
        try:
            deploy.prepare_removal([name], account)
        except NotDeployed as exc:
            absent = absent or exc
        else:
            found.append(name)
    if absent is not None and not found:
        raise absent
    return found


def _invoked(
    account: Account, name: str, script: bytes | None, values: Namespace, asynchronous: bool
) -> invoke.RunResult:
    told: list[str] = []

    def on_log(line: str) -> None:
        if not values.json:
            render.log_line(line)
            told[:] = [line]

    try:
        return invoke.run(
            account,
            name,
            script=script,
            arguments=values.arguments,
            asynchronous=asynchronous,
            on_delegated=lambda job: render.talk(f"delegated to Batch job {job}"),
            on_log=on_log,
        )
    except FunctionFailed as exc:
        if told:
            exc.log_tail = ""  # it was told line by line
        raise


def _call(values: Namespace, function: AwsFunction | None) -> endpoint.Call:
    """What the flags say; what they do not say, `api_gateway` of the FDL may."""
    file, text, parameters = values.data_binary, values.json_data, values.parameters
    path = Path(file) if file is not None else None
    asynchronous = values.asynchronous
    if function is not None:
        its = function.api_gateway
        asynchronous = asynchronous or function.lambda_.asynchronous
        parameters = its.parameters if parameters is None else parameters
        if file is None and text is None:
            file = its.data_binary
            path = Path(values.conf_file).parent / file if file is not None else None
            text = its.json_data
    body: bytes | Path | None = path
    if path is None:
        body = text.encode(errors="surrogateescape") if text is not None else None
    else:
        with _readable(path, str(file)):
            path.open("rb").close()
    return endpoint.Call(body, path is None, parameters or {}, asynchronous)


def _urls(deployment: Deployment, account: Account) -> dict[str, str]:
    """Where the functions are called that have an HTTP endpoint."""
    return {
        function.lambda_.name: endpoint_of(account, function.lambda_.name).url
        for function in deployment.functions.aws
        if function.api_gateway.name is not None
    }


def _output_file(values: Namespace) -> Path | None:
    output = Path(values.output_file) if values.output_file is not None else None
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UserError(f"cannot write the output to `{output}`", "name a file in a folder that is")
    return output


def _script(path: Path, named: str) -> bytes:
    with _readable(path, named):
        return path.read_bytes()


@contextmanager
def _readable(path: Path, named: str) -> Iterator[None]:
    """Tell of a file that is not there, is none, or cannot be read."""
    if path.is_dir():
        raise UserError(f"`{named}` is a folder, not a file")
    if path.exists() and not path.is_file():  # a device or a pipe never ends
        raise UserError(f"`{named}` is not a regular file")
    try:
        yield
    except FileNotFoundError as exc:
        raise Missing(f"no file `{named}`", f"looked for `{path.absolute()}`") from exc
    except OSError as exc:
        raise UserError(f"cannot read `{named}`: {(exc.strerror or str(exc)).lower()}") from exc


def _bucket_path(options: Options) -> str:
    return _checked_path(str(options.values.bucket), "--bucket")


def _object(given: str) -> tuple[str, str]:
    """Bucket and key of `[s3://]bucket/key`."""
    bucket, slash, key = given.removeprefix("s3://").partition("/")
    why = ""
    if "://" in given and not given.startswith("s3://"):
        why = f"must be in S3, not at `{given.partition('://')[0]}://`"
    elif fault := bucket_fault(bucket):
        why = fault
    elif not slash or not key:
        why = "names a bucket, not an object in it"
    if why:
        raise UserError(
            f"`{given}` {why}", "write it as `s3://bucket/key`; `scar ls -b` lists keys"
        )
    return bucket, key


def _checked_path(given: str, flag: str) -> str:
    why = bucket_fault(given.partition("/")[0])
    if "://" in given:
        why = f"must be `bucket/prefix` without `{given.split('://')[0]}://`"
    if why:
        raise FdlError([Diagnostic(f"bucket {why}", place=Place(flag))])
    return given


def _preheat(account: Account, deployment: Deployment, steps: Sequence[Step]) -> None:
    changed = {
        step.resource.name
        for step in steps
        if isinstance(step.resource, Function) and step.verb is not Verb.DELETE
    }
    for function in deployment.functions.aws:
        name = function.lambda_.name
        if not function.lambda_.preheat or name not in changed:
            continue
        render.talk(f"preheating function '{name}'")
        try:
            invoke.run(
                account,
                name,
                script=None,
                arguments=(),
                asynchronous=False,
                on_delegated=lambda job: None,
                on_log=lambda line: None,
            )
        except FunctionFailed as exc:
            hint = "it is deployed all the same"
            render.warnings([Diagnostic(f"preheating: {exc}", hint=hint, severity="warning")])


def _role(needed: NeededRole) -> dict[str, Any]:
    return {
        "Use": needed.use,
        "Arn": needed.arn,
        "Made": needed.is_made,
        "Trust": trust(needed.role.service),
        "Policy": document(needed.role.policy),
    }


def _scar(account: Account) -> str:
    """How this command is called for the same place."""
    return "scar --local" if account.is_local else "scar"


def _following(deployment: Deployment) -> str:
    """The command to try after `init`."""
    where = "--local " if deployment.scar.target == "local" else ""
    for function in deployment.functions.aws:
        for path in function.lambda_.input:
            if path.storage_provider != "s3":
                continue
            return f"scar {where}put -b {path.path} -p FILE"
        if function.api_gateway.name is not None:
            return f"scar {where}invoke -n {function.lambda_.name}"
    return f"scar {where}run -n {names_of(deployment)[0]}"


@contextmanager
def _told_how_to_go_on(undo: str | None) -> Iterator[None]:
    try:
        yield
    except ApplyError as exc:
        hint = "run the same command again to continue"
        exc.hint = exc.hint or (f"{hint}, or {undo} to undo" if undo else hint)
        raise
