"""All that is shown: data on stdout, talk on stderr; as text for a person, as JSON for a program.

The only module that prints. rich is imported only where a progress bar is really shown.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from scar.errors import (
    ApplyError,
    Diagnostic,
    FdlError,
    FunctionFailed,
    ScarError,
    TransferFailed,
)

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from scar.aws.functions import FunctionInfo
    from scar.aws.jobs import JobInfo
    from scar.aws.objects import ObjectInfo
    from scar.bulk import Outcome
    from scar.bulk import Progress as Counted
    from scar.doctor import Check
    from scar.explain import Finding
    from scar.failures import Failure
    from scar.invoke import RunResult
    from scar.lineage import Step as Traced
    from scar.local import Status
    from scar.logs import LogEvent
    from scar.plan.diff import Step
    from scar.storage import Progress, Transfer
    from scar.work import Ended, Work

DEBUG_VARIABLE = "SCAR_DEBUG"

_DONE = {"create": "created", "update": "updated", "delete": "deleted"}
_COLUMNS = ("NAME", "MEMORY", "TIME", "IMAGE_ID", "API_URL", "SUPERVISOR_VERSION")
_WIDEST_LINE = 160
_FAILURES = 20
"""Failures of a bulk run that are listed as text."""


def prepare_streams() -> None:
    """Odd names must not end a command: what the terminal cannot show is escaped.

    Nor must closed streams (`scar ls >&-`): what goes there goes nowhere.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def diagnostic(d: Diagnostic) -> str:
    """One fault the way compilers tell it: what, where, the line itself, how to mend it."""
    out = [f"{d.severity}: {d.summary}"]
    if d.place:
        out.append(f"  --> {d.place}" + (f"  {d.path}" if d.path else ""))
        out += _source_lines(d)
    if d.hint:
        out.append(f"   help: {d.hint}")
    return "\n".join(out)


def warnings(diagnostics: Iterable[Diagnostic]) -> None:
    """Tell what deserves attention but stops nothing."""
    for d in diagnostics:
        talk(_painted(diagnostic(d)) + "\n")


def talk(text: str) -> None:
    """One line about what is going on."""
    print(text, file=sys.stderr, flush=True)


def error(exc: ScarError, *, as_json: bool) -> None:
    """An error as text on stderr; with `as_json` also as an object on stdout."""
    if isinstance(exc, FdlError):
        talk("\n\n".join(_painted(diagnostic(d)) for d in exc.diagnostics))
    else:
        talk("\n".join([_painted(f"error: {exc}"), *_error_details(exc)]))
    if as_json:
        data({"error": _error_object(exc)})


def bug(exc: BaseException, *, as_json: bool) -> None:
    """An exception that nobody expected."""
    message = f"{type(exc).__name__}: {exc}"
    talk(f"bug: {message}; please report it with what {DEBUG_VARIABLE}=1 shows")
    if os.environ.get(DEBUG_VARIABLE):
        talk("".join(traceback.format_exception(exc)).rstrip())
    if as_json:
        data({"error": {"message": f"bug: {message}", "hint": "", "exitCode": 1}})


def data(value: Any) -> None:
    """One JSON value on one line of stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def document(value: Any) -> None:
    """A JSON document for a file: indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def answers(every: Sequence[Mapping[str, Any]]) -> None:
    """The end of `-v`: what AWS answered, word for word."""
    print(json.dumps({"Answers": every}, ensure_ascii=False, default=_plain), flush=True)


def valid(names: Sequence[str], found: Sequence[Diagnostic], *, as_json: bool) -> None:
    """The end of `validate`."""
    if as_json:
        told = [_diagnostic_object(d) for d in found]
        data({"Valid": True, "Functions": list(names), "Warnings": told})
        return
    print(f"valid: {', '.join(names)}")


def plan(steps: Sequence[Step], travels: str, *, as_json: bool) -> None:
    """What would be done; `travels` says how things will get to the functions."""
    if as_json:
        data({"Plan": [_step_object(step) for step in steps]})
        return
    for step in steps:
        # Beside "create … does not exist" the reason says nothing.
        why = f"  ({step.why})" if step.why and step.verb != "create" else ""
        print(f"{step}{why}")
    counts = [(verb, sum(step.verb == verb for step in steps)) for verb in _DONE]
    told = ", ".join(f"{count} to {verb}" for verb, count in counts if count)
    print(told or "nothing to do")
    if travels:
        print(travels)


def deployed(
    names: Sequence[str],
    steps: Sequence[Step],
    urls: Mapping[str, str],
    following: str,
    *,
    as_json: bool,
) -> None:
    """The end of `init`. `urls` are the functions' endpoints, `following` the command to try."""
    if as_json:
        told: dict[str, Any] = {"Endpoints": dict(urls)} if urls else {}
        data({"Functions": list(names), "Steps": [_step_object(step) for step in steps], **told})
        return
    for name in names:
        print(f"function `{name}` {'is deployed' if steps else 'is up to date'}")
        if name in urls:
            print(f"API Gateway endpoint: {urls[name]}")
    talk(f"next: {following}")


def removed(names: Sequence[str], steps: Sequence[Step], *, as_json: bool) -> None:
    """The end of `rm`."""
    if as_json:
        data({"Functions": list(names), "Steps": [_step_object(step) for step in steps]})
        return
    for name in names:
        print(f"function `{name}` is removed")
    if not names:
        print("nothing to remove")


def functions(infos: Sequence[FunctionInfo], *, as_json: bool) -> None:
    """`scar ls`."""
    if as_json:
        data({"Functions": [_function_object(info) for info in infos]})
        return
    rows = [
        (
            *(info.name, str(info.memory_mb), str(info.timeout_s), info.image or "-"),
            *(info.api_url or "-", info.supervisor_version or "-"),
        )
        for info in infos
    ]
    _table(_COLUMNS, rows)


def objects(found: Iterable[ObjectInfo], *, as_json: bool) -> None:
    """`scar ls -b`: keys, one a line; on a terminal with date and size. As they are listed."""
    shown = (info for info in found if not info.key.endswith("/"))
    if as_json:
        _json_list("Objects", map(_object_object, shown))
    elif sys.stdout.isatty():
        _object_table(shown)
    else:
        for info in shown:
            print(info.key)


def log_event(event: LogEvent, *, as_json: bool) -> None:
    """One line of a log; in JSON one object a line, so that it can be followed."""
    if as_json:
        data(
            {
                "Timestamp": event.timestamp_ms,
                "LogStreamName": event.stream,
                "Message": event.message,
            }
        )
    else:
        print(event.message.rstrip("\n"), flush=True)


def log_line(text: str) -> None:
    """A line of the job that a run waits for: what the script says is what was asked for."""
    print(text.rstrip("\n"), flush=True)


def ran(result: RunResult, *, as_json: bool, shows_output: bool) -> None:
    """The end of `run`: where it ran, then its output, byte for byte."""
    if as_json:
        data({"LambdaOutput": _run_object(result)})
        return
    print(f"Request Id: {result.request_id}")
    print(f"Log Group Name: {result.log_group}")
    print(f"Log Stream Name: {result.log_stream}")
    sys.stdout.flush()
    if shows_output:
        _write_bytes(result.output)


def launched(name: str, result: RunResult, *, as_json: bool) -> None:
    """The end of `run -a`."""
    if as_json:
        output = {"StatusCode": result.status_code, "RequestId": result.request_id}
        data({"LambdaOutput": output})
        return
    if result.request_id:  # a call through API Gateway does not tell it
        print(f"Request Id: {result.request_id}")
    print(f"Function '{name}' launched correctly")


def cloud(
    status: Status | None, folder: str, *, disk: Mapping[str, int] | None = None, as_json: bool
) -> None:
    """`scar local status` and `start`; `disk` is bytes by what they are for."""
    if as_json:
        details = {**status.details, **({"disk": disk} if disk else {})} if status else None
        data({"LocalCloud": details, "Data": folder})
        return
    if status is None:
        print(f"the local cloud is not running (data: {folder})")
        return
    print(f"the local cloud is running: {status.url} (process {status.pid}, data: {folder})")
    engine = status.details.get("engine")
    if isinstance(engine, Mapping):
        print(f"engine: {engine.get('name', '-')} ({engine.get('why', '')})")
        for probe in engine.get("probes", ()):
            works = "works" if probe.get("ok") else "does not work"
            print(f"  {probe.get('engine')}: {works}: {probe.get('why', '')}")
        print(f"limits: {engine.get('limits', '-')}")
    if disk:
        told = [f"{name.replace('_', ' ')} {_megabytes(size)}" for name, size in disk.items()]
        print(f"disk: {', '.join(told)}")


def pruned(done: Mapping[str, Any], *, as_json: bool) -> None:
    """`scar local prune`."""
    if as_json:
        data(done)
        return
    print(f"freed {_megabytes(done['freed_bytes'])}")
    for what in ("images", "root_file_systems", "docker_images"):
        one = done[what]
        if one["removed"]:
            print(f"  {one['removed']} {what.replace('_', ' ')}: {_megabytes(one['bytes'])}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def ran_many(outcome: Outcome, scar: str, *, as_json: bool) -> None:
    """The end of a bulk run: what was started, or how it ended."""
    if as_json:
        failures = [
            {"Object": one.key, "Id": one.id, "ExitCode": one.exit_code, "Reason": one.reason}
            for one in outcome.failures
        ]
        data(
            {
                "BulkRun": {
                    "Id": outcome.id,
                    "Function": outcome.function,
                    "Objects": outcome.total,
                    "AlreadyDone": outcome.already_done,
                    "Jobs": list(outcome.job_ids),
                    "Waited": outcome.waited,
                    "Succeeded": outcome.succeeded,
                    "Failed": len(outcome.failures),
                    "Failures": failures,
                }
            }
        )
        return
    if not outcome.total:
        print("nothing is left to do")
        return
    if not outcome.waited:
        how = "submitted" if outcome.job_ids else "invoked"
        many = "s" * (outcome.total != 1)
        print(f"function `{outcome.function}` is {how} for {outcome.total} event{many}")
        for job in outcome.job_ids:
            print(f"job {job}")
        if outcome.job_ids:
            talk(f"next: {scar} wait {' '.join(outcome.job_ids)}")
        return
    print(f"{outcome.succeeded} succeeded, {len(outcome.failures)} failed")
    for one in outcome.failures[:_FAILURES]:
        code = f"exit code {one.exit_code}" if one.exit_code is not None else one.reason
        print(f"  {one.key}: {code} ({one.id})")
    if len(outcome.failures) > _FAILURES:
        print(f"  and {len(outcome.failures) - _FAILURES} more: `--json` lists them")


def work(found: Sequence[Work], now_ms: int, *, as_json: bool) -> None:
    """`scar ps`."""
    if as_json:
        data({"Work": [asdict(one) for one in found]})
        return
    rows = [
        (
            *(one.function, one.kind, one.id, one.state, _duration(now_ms - one.created_ms)),
            "-" if one.duration_ms is None else _duration(one.duration_ms),
            "-" if one.exit_code is None else str(one.exit_code),
            one.why or "-",
        )
        for one in found
    ]
    _table(("FUNCTION", "KIND", "ID", "STATE", "AGE", "DURATION", "EXIT", "WHY"), rows)


def failed(found: Sequence[Failure], scar: str, *, as_json: bool) -> None:
    """`scar ps --failed`; `scar` is how to call us."""
    if as_json:
        told = [
            {
                "Function": one.record.function,
                "Kind": one.record.kind,
                "Id": one.record.run_id,
                "Time": one.record.time,
                "Objects": list(one.objects),
                "ExitCode": one.record.exit_code,
                "ErrorType": one.record.error_type,
                "Reason": one.record.reason,
                "Attempts": one.record.attempts,
                "LogTail": one.record.log_tail,
                "Event": one.event,
                "Records": list(one.keys),
            }
            for one in found
        ]
        data({"Failed": told})
        return
    rows = [
        (
            *(one.record.function, one.record.kind, one.record.run_id),
            one.record.time.replace("T", " ").rstrip("Z"),
            " ".join(one.objects) or "-",
            "-" if one.record.exit_code is None else str(one.record.exit_code),
            " ".join(one.record.reason.split())[:_WIDEST_LINE] or "-",
        )
        for one in found
    ]
    _table(("FUNCTION", "KIND", "ID", "WHEN (UTC)", "OBJECT", "EXIT", "WHY"), rows)
    for name in dict.fromkeys(one.record.function for one in found):
        talk(f"next: {scar} run -n {name} --retry-failed --wait")


def waited(ended: Ended, *, as_json: bool) -> None:
    """The end of `scar wait`."""
    if as_json:
        failed = [{"Id": job, "Why": why} for job, why in ended.failed]
        data({"Succeeded": list(ended.succeeded), "Failed": failed})
        return
    print(f"{len(ended.succeeded)} succeeded, {len(ended.failed)} failed")


def explained(job: JobInfo, findings: Sequence[Finding], *, as_json: bool) -> None:
    """`scar explain`."""
    if as_json:
        told = [{"What": one.what, "Do": one.do} for one in findings]
        data({"Job": job.id, "State": job.status, "Findings": told})
        return
    print(f"job {job.id} of function `{job.definition}`: {job.status}")
    for one in findings:
        print(f"- {one.what}")
        if one.do:
            print(f"  help: {one.do}")


def examined(checks: Sequence[Check], *, as_json: bool) -> None:
    """`scar doctor`."""
    if as_json:
        told = [{"Name": c.name, "State": c.state, "What": c.what, "Do": c.do} for c in checks]
        data({"Checks": told})
        return
    for one in checks:
        print(f"{one.state:<8} {one.name}: {one.what}")
        if one.do and one.state != "ok":
            print(f"{'':<8} help: {one.do}")


_ENDS = {
    "made by nobody": "no function made it",
    "replaced": "has been replaced since: what is there now is another one",
    "gone": "is not there any more",
    "elsewhere": "is in another storage, which is not asked",
    "unknown": "is not known any more: the record of it has expired",
    "again": "has been told of above",
}


def traced(steps: Iterable[Traced], scar: str, *, as_json: bool) -> None:
    """`scar trace`: each object below the one that was made of it; `scar` is how to call us."""
    if as_json:
        _json_list("Trace", map(_traced_object, steps))
        return
    for depth, step in enumerate(steps):
        within = "   " * (depth + 1)
        arrow = f"{'   ' * depth}└─ " if depth else ""
        about = ""
        if step.info is not None:
            about = f"  {_size(step.info.size_bytes)}  {step.info.modified:%Y-%m-%d %H:%M:%S} UTC"
        print(f"{arrow}{_printable(step.address)}{about}")
        its = step.made
        if its is None:
            print(f"{within}{_ENDS[step.state]}")
            continue
        kind, _, run_id = its.run.partition(":")
        took = _duration(its.duration_ms)
        print(f"{within}made by function `{its.function}` in {took}, {kind} {run_id}")
        parts = [("version", its.version), ("image", its.image), ("script", its.script)]
        told = [f"{name} {value.removeprefix('sha256:')[:12]}" for name, value in parts if value]
        print(f"{within}{', '.join(told)}")
        print(f"{within}log: {scar} log -n {its.function} -ri {run_id}")
        if step.is_last:
            print(f"{within}of no object: its event told of none")


def said(text: str, value: Mapping[str, Any], *, as_json: bool) -> None:
    """A plain sentence, or what it says as an object."""
    if as_json:
        data(value)
    else:
        print(text)


class Uploads:
    """How far images are, for the bar that `stepping` shows. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self._tags: dict[str, tuple[int, int]] = {}

    def __call__(self, tag: str, done_bytes: int, total_bytes: int) -> None:
        """Remember how much of the image `tag` is there."""
        with self._lock:
            self._tags[tag] = done_bytes, total_bytes
            if self._bar is None:
                return
            done, total = (sum(column) for column in zip(*self._tags.values(), strict=True))
            if self._task is None:
                self._task = self._bar.add_task("MB of images", total=None)
            self._bar.update(self._task, completed=-(-done // 10**6), total=-(-total // 10**6))

    def show_on(self, bar: Any) -> None:
        """Show it on `bar` from now on; on none where that is None."""
        with self._lock:
            self._bar = bar


@contextmanager
def stepping(
    total: int, uploads: Uploads | None = None
) -> Iterator[Callable[[Step, Literal["start", "done"]], None]]:
    """Tell of steps as they are done; on a terminal with a bar. For any thread."""
    with _bar(total) as bar:
        if uploads:
            uploads.show_on(bar)
        task = bar.add_task("", total=total) if bar else None
        running: dict[str, None] = {}
        lock = threading.Lock()

        def on_step(step: Step, phase: Literal["start", "done"]) -> None:
            with lock:
                if phase == "start":
                    running[str(step)] = None
                else:
                    running.pop(str(step), None)
                    line = str(step).replace(str(step.verb), _DONE[step.verb], 1)
                    if bar:
                        bar.console.print(line, markup=False, highlight=False)
                    else:
                        talk(line)
                if bar and task is not None:
                    now = ", ".join(running)
                    bar.update(task, description=now, advance=1 if phase == "done" else 0)

        yield on_step


class Transferring:
    """What `put` and `get` show: each file in a pipe, a bar on a terminal; JSON at the end."""

    def __init__(self, bar: RichProgress | None) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=0) if bar else None

    def progress(self, progress: Progress) -> None:
        """How far it is."""
        if self._bar and self._task is not None:
            self._bar.update(
                self._task,
                completed=progress.bytes_done,
                total=progress.bytes_found,
                description=f"{progress.files_done:,}/{progress.files_found:,} files",
            )

    def warn(self, text: str) -> None:
        """Something deserves attention."""
        warnings([Diagnostic(text, severity="warning")])

    def show(self, done: Iterable[Transfer], *, as_json: bool) -> None:
        """Tell of each file as it is done, and of all at the end."""
        counted = _Counted(done)
        try:
            if as_json:
                _json_list("Transfers", map(_transfer_object, counted))
            else:
                self._tell(counted)
        finally:
            if counted.files:
                talk(str(counted))

    def _tell(self, counted: Iterable[Transfer]) -> None:
        for transfer in counted:
            if self._bar is None:
                same = " (unchanged)" if transfer.status == "unchanged" else ""
                talk(f"{transfer.source} -> {transfer.target}{same}")


@contextmanager
def counting() -> Iterator[Callable[[Counted], None]]:
    """Tell how far a bulk run is; on a terminal with a bar, else at every tenth. For any thread."""
    with _bar(1) as bar:
        task = bar.add_task("", total=None) if bar else None
        told = [0]

        def on_progress(now: Counted) -> None:
            done = now.succeeded + now.failed
            text = f"{done} of {now.total} done, {now.failed} failed"
            if bar and task is not None:
                bar.update(task, total=now.total, completed=done, description=text)
            elif done * 10 // now.total > told[0]:
                told[0] = done * 10 // now.total
                talk(text)

        yield on_progress


@contextmanager
def transferring() -> Iterator[Transferring]:
    """Show the progress of files, on a terminal only."""
    with _bar(0, of_bytes=True) as bar:
        yield Transferring(bar)


class _Counted:
    """Passes transfers on and adds them up."""

    def __init__(self, done: Iterable[Transfer]) -> None:
        self._done = done
        self.files = self._unchanged = self._bytes = 0

    def __iter__(self) -> Iterator[Transfer]:
        for transfer in self._done:
            self.files += 1
            if transfer.status == "unchanged":
                self._unchanged += 1
            else:
                self._bytes += transfer.size_bytes
            yield transfer

    def __str__(self) -> str:
        copied = self.files - self._unchanged
        text = f"{copied:,} file{'s' * (copied != 1)} copied ({_size(self._bytes)})"
        if not self._unchanged:
            return text
        return f"{text}, {self._unchanged:,} unchanged (`--force` copies all)"


class _Bar(Protocol):
    """What is used of rich's Progress."""

    console: Any

    def add_task(self, description: str, *, total: float | None) -> Any: ...

    def update(self, task_id: Any, **fields: Any) -> None: ...


@contextmanager
def _bar(total: int, *, of_bytes: bool = False) -> Iterator[RichProgress | None]:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or not (total or of_bytes):
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    name = TextColumn("{task.description}", markup=False)
    columns = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    console = Console(stderr=True)
    with Progress(BarColumn(30), *columns, name, console=console, transient=True) as progress:
        yield progress


def _source_lines(d: Diagnostic) -> list[str]:
    """The faulty line and a mark under the fault, cut to what a terminal shows."""
    place = d.place
    if place is None or not place.text or not place.line:
        return []
    text, column = place.text.replace("\t", " ").rstrip(), place.column - 1
    if len(text) > _WIDEST_LINE:
        start = max(0, min(column - _WIDEST_LINE // 2, len(text) - _WIDEST_LINE))
        text, column = text[start : start + _WIDEST_LINE], column - start
    number = str(place.line)
    # Characters of East Asian scripts take two columns.
    pad = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text[:column])
    return [f"   {number} | {text}", f"   {' ' * len(number)} | {' ' * pad}^"]


def _error_details(exc: ScarError) -> list[str]:
    out: list[str] = []
    if isinstance(exc, ApplyError):
        out += [f"   {line}" for line in exc.why.splitlines()]
        told = [("done", exc.done), ("left", exc.left)]
        if parts := [f"{word}: {', '.join(names)}" for word, names in told if names]:
            out.append("   " + "    ".join(parts))
    if isinstance(exc, TransferFailed):
        out += [f"   {fault}" for fault in exc.faults]
    if isinstance(exc, FunctionFailed):
        if exc.request_id:
            out.append(f"   request id: {exc.request_id}")
        out += [f"   | {line}" for line in exc.log_tail.splitlines()]
    if exc.hint:
        out.append(f"   help: {exc.hint}")
    return out


def _error_object(exc: ScarError) -> dict[str, Any]:
    told: dict[str, Any] = {
        "type": type(exc).__name__,
        "message": str(exc),
        "hint": exc.hint,
        "exitCode": exc.exit_code,
    }
    if isinstance(exc, FdlError):
        told["diagnostics"] = [_diagnostic_object(d) for d in exc.diagnostics]
    if isinstance(exc, ApplyError):
        told |= {"why": exc.why, "done": list(exc.done), "left": list(exc.left)}
    if isinstance(exc, TransferFailed):
        told["faults"] = list(exc.faults)
    if isinstance(exc, FunctionFailed):
        told |= {"requestId": exc.request_id, "logTail": exc.log_tail}
    return told


def _diagnostic_object(d: Diagnostic) -> dict[str, Any]:
    place = d.place
    return {
        "summary": d.summary,
        "path": d.path,
        "origin": place.origin if place else None,
        "line": place.line or None if place else None,
        "column": place.column or None if place else None,
        "hint": d.hint,
    }


def _step_object(step: Step) -> dict[str, str]:
    return {
        "Verb": str(step.verb),
        "Kind": step.resource.kind,
        "Name": step.resource.name,
        "Why": step.why,
    }


def _function_object(info: FunctionInfo) -> dict[str, Any]:
    return {
        "Name": info.name,
        "Memory": info.memory_mb,
        "Timeout": info.timeout_s,
        "Image_id": info.image or "-",
        "Api_gateway": info.api_url or "-",
        "Sup_version": info.supervisor_version or "-",
        "Execution_mode": info.execution_mode,
    }


def _run_object(result: RunResult) -> dict[str, Any]:
    told: dict[str, Any] = {
        "StatusCode": result.status_code,
        "Payload": "",
        "LogGroupName": result.log_group,
        "LogStreamName": result.log_stream,
        "RequestId": result.request_id,
    }
    try:
        told["Payload"] = result.output.decode("utf-8")
    except UnicodeDecodeError:
        told["Payload"] = base64.b64encode(result.output).decode("ascii")
        told["IsBase64Encoded"] = True
    if result.job_id:
        told["JobId"] = result.job_id
    return told


def _object_object(info: ObjectInfo) -> dict[str, Any]:
    return {
        "Key": info.key,
        "Size": info.size_bytes,
        "LastModified": info.modified.isoformat(),
        "ETag": info.etag,
    }


def _traced_object(step: Traced) -> dict[str, Any]:
    info, its = step.info, step.made
    return {
        "Object": step.address,
        "State": step.state,
        "Size": info.size_bytes if info else None,
        "LastModified": info.modified.isoformat() if info else None,
        "ETag": info.etag if info else None,
        "VersionId": (info.version_id or None) if info else None,
        "MadeBy": None
        if its is None
        else {
            "Function": its.function,
            "Version": its.version,
            "Run": its.run,
            "Image": its.image,
            "Script": its.script,
            "DurationMs": its.duration_ms,
            "Record": f"s3://{its.bucket}/{its.record}" if its.record else None,
        },
    }


def _transfer_object(transfer: Transfer) -> dict[str, Any]:
    return {
        "Source": transfer.source,
        "Target": transfer.target,
        "Size": transfer.size_bytes,
        "Status": transfer.status,
    }


def _json_list(name: str, values: Iterable[Any]) -> None:
    """`{name: [values]}` on one line, written as the values come; nothing if the first fails."""
    start = f"{{{json.dumps(name)}: ["
    try:
        for value in values:
            sys.stdout.write(start + json.dumps(value, ensure_ascii=False))
            start = ", "
    except BaseException:
        if start == ", ":
            print("]}", flush=True)
        raise
    print(("" if start == ", " else start) + "]}", flush=True)


def _object_table(found: Iterable[ObjectInfo]) -> None:
    """Rows of fixed widths: they are shown before the last is known."""
    print(f"{'DATE':<19}  {'SIZE':>9}  KEY")
    for info in found:
        date = info.modified.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        print(f"{date}  {_size(info.size_bytes):>9}  {_printable(info.key)}")


def _printable(key: str) -> str:
    """A key may hold what a terminal takes for a command."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in key)


def _size(size_bytes: int) -> str:
    size, unit = float(size_bytes), 0
    while size >= 999.5 and unit < 5:
        size, unit = size / 1000, unit + 1
    return f"{size_bytes} B" if unit == 0 else f"{size:.1f} {' kMGTP'[unit]}B"


def _plain(value: Any) -> str:
    """What JSON has no word for."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    for number, row in enumerate((head, *rows)):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line = "  ".join(cells).rstrip()
        print(f"\x1b[1m{line}\x1b[0m" if number == 0 and _shows_colours(sys.stdout) else line)


def _duration(milliseconds: float) -> str:
    """`850ms`, `12s`, `3m20s`, `2h05m`, `4d03h`."""
    if milliseconds < 1000:
        return f"{max(0, round(milliseconds))}ms"
    seconds = int(milliseconds // 1000)
    for unit, below, size, lower in (("d", "h", 86400, 3600), ("h", "m", 3600, 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // lower:02}{below}"
    return f"{seconds // 60}m{seconds % 60:02}s" if seconds >= 60 else f"{seconds}s"


def _write_bytes(output: bytes) -> None:
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(output.decode("utf-8", "replace"))
        return
    binary.write(output)
    if sys.stdout.isatty() and output and not output.endswith(b"\n"):
        binary.write(b"\n")
    binary.flush()


def _painted(text: str) -> str:
    """Colour for the first word, where a terminal shows it and nobody asked for none."""
    if not _shows_colours(sys.stderr):
        return text
    word, sign, rest = text.partition(":")
    colour = "33" if word == "warning" else "31"
    return f"\x1b[1;{colour}m{word}{sign}\x1b[0m{rest}"


def _shows_colours(stream: TextIO) -> bool:
    return stream.isatty() and not ("NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb")
