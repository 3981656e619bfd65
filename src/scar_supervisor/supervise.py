"""One event, start to end: stage in, run, stage out. Nothing is kept for the next event."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scar_supervisor import contract, environment, events, program, scratch, script, staging
from scar_supervisor.contract import FunctionConfig, load_config
from scar_supervisor.events import Event, InputObject
from scar_supervisor.faults import ConfigFault, EventFault, ScriptFailed, ScriptTimedOut, Stopped
from scar_supervisor.log import Log
from scar_supervisor.scratch import Scratch
from scar_supervisor.script import Limits, Outcome
from scar_supervisor.storage import Storages, check_providers

if TYPE_CHECKING:
    # Loaded when an event has objects: many have none, and OpenSSL's library takes time to load.
    from scar_supervisor.once import Mark, Once
    from scar_supervisor.records import Lineage, Reference


@dataclass(frozen=True)
class Function:
    """What runs here: its config, and the directory with its script and extra payload."""

    config: FunctionConfig
    directory: str


Runner = Callable[
    [Sequence[str], Mapping[str, str], Limits, Callable[[bytes], None]],
    Outcome,
]
"""Runs a program as `script.run` does."""


@dataclass(frozen=True)
class Part:
    """This machine's part in the work: all of it, or that of one node."""

    run: Runner = script.run
    scratch_name: str = ""
    """Where the work is done, the same on all nodes; empty: anywhere."""
    stages_out: bool = True
    claims: bool = True
    """Whether it is this machine that claims the objects."""


@dataclass(frozen=True)
class Turn:
    """One event's circumstances."""

    request_id: str
    """Of the invocation, in a job of that which submitted it."""
    run: str
    """As `Lineage` names it."""
    limits: Limits
    in_job: bool = False
    trace_id: str | None = None
    part: Part = Part()


def load_function(environ: Mapping[str, str]) -> Function:
    """The function of this image. Raises ConfigFault where its config cannot be used."""
    directory = environ.get(contract.FUNCTION_DIR_VARIABLE, contract.FUNCTION_DIR)
    path = os.path.join(directory, contract.CONFIG_NAME)
    try:
        with open(path, encoding="utf-8") as file:
            config = load_config(file.read())
    except (OSError, ValueError) as exc:
        raise ConfigFault(f"{path}: {exc}") from exc
    check_providers(config)
    return Function(config, directory)


def work_of(raw: bytes, config: FunctionConfig, storages: Storages, log: Log) -> Event | None:
    """The event in `raw`, or the one it stands for, without objects that nobody works on.

    None where nothing is left to do. Raises EventFault, StagingFailed.
    """
    event = events.placed(events.parse(whole(raw, config, storages)), config)
    objects = []
    for item in event.objects:
        if item.is_folder_marker:
            log.info(f"`{item.key}` only marks a folder: nothing to do for it")
        elif _is_our_own(item, config):
            log.warning(f"`{item.key}` is SCAR's own: nothing to do for it")
        else:
            objects.append(item)
    if event.objects and not objects:
        return None
    return replace(event, objects=tuple(objects))


def whole(raw: bytes, config: FunctionConfig, storages: Storages) -> bytes:
    """An event, or the one that it only stands for. Raises EventFault, StagingFailed."""
    text = events.reference_in(raw)
    if not text:
        return raw
    import hashlib

    reference = _reference(text, config)
    data = storages.account.load_whole(reference.bucket, reference.key)
    if hashlib.sha256(data).hexdigest() != reference.sha256:
        raise EventFault(f"the event at s3://{reference.bucket}/{reference.key} has been changed")
    return data


def _is_our_own(item: InputObject, config: FunctionConfig) -> bool:
    from scar_supervisor.records import STATE_PREFIX

    return item.bucket == config.deployment_bucket and item.key.startswith(STATE_PREFIX)


def _reference(text: str, config: FunctionConfig) -> Reference:
    from scar_supervisor.records import Reference

    try:
        return Reference.parse(text, config.deployment_bucket, config.name)
    except ValueError as exc:
        raise EventFault(f"the event refers to what is not the function's own: {exc}") from exc


class Supervisor:
    """Runs the function for one event after the other."""

    def __init__(
        self, function: Function, environ: Mapping[str, str], storages: Storages, log: Log
    ) -> None:
        self._function, self._environ = function, environ
        self._storages, self._log = storages, log
        self._adopts = False

    def supervise(self, event: Event, turn: Turn, once: Once | None) -> bytes:
        """Run the script once for each object of the event, in order; its output, joined.

        `once` claims them; None where there are none, or another machine does. An object that needs
        no work is left out. Raises a Fault at the first run that fails, Stopped when the platform
        ends us.
        """
        self._adopt_orphans()
        output = bytearray()
        for item in event.objects or (None,):
            keep = max(0, turn.limits.keep_bytes - len(output))
            limits = replace(turn.limits, keep_bytes=keep)
            if once and item and (known := once.known(item)):
                self._log.info(f"{known}: nothing to do")
                output += f"{known}; `scar run --force` repeats it\n".encode()
                continue
            mark = once.mark(item) if once and item else None
            outcome = self._run_once(_Run(event, item, replace(turn, limits=limits), mark), once)
            output += outcome.head
            if keep and outcome.output_bytes > len(outcome.head):
                output += (
                    f"\n[the output has {outcome.output_bytes:,} bytes, more than an answer can "
                    f"hold: these are the first {len(outcome.head):,}, the log has all]\n"
                ).encode()
        return bytes(output)

    def _run_once(self, run: _Run, once: Once | None) -> Outcome:
        event, item, turn = run.event, run.item, run.turn
        with scratch.fresh(self._environ, self._log, turn.part.scratch_name) as directories:
            input_path = self._stage_in(event, item, directories, turn)
            given = self._given(event, item, directories, turn)
            given["INPUT_FILE_PATH"] = input_path
            variables = environment.for_script(
                self._environ, self._function.config, turn.in_job, given, event.variables
            )
            for name in sorted(event.variables.keys() - variables.keys()):
                self._log.warning(f"query parameter {name!r} is not given to the script")
            config, root = self._function.config, directories.root
            argv = program.command_line(event, config, self._function.directory, root)
            outcome = self._run(argv, variables, turn)
            if not turn.part.stages_out:
                return outcome
            self._stage_out(run, outcome, directories, once)
            return outcome

    def _stage_out(
        self, run: _Run, outcome: Outcome, directories: Scratch, once: Once | None
    ) -> None:
        """Upload the output, and keep that the object's work is done."""
        config, mark = self._function.config, run.mark
        if once is None and not config.outputs:
            self._log.info("staged out 0 files")
            return
        from scar_supervisor.records import RECORD

        record = once.done_key(mark) if once and mark else ""
        lineage = self._lineage(run, outcome, record)
        known_by = {RECORD: record} if mark and mark.is_repeated else None
        output = staging.Output(directories.output, lineage.metadata(), known_by)
        copies = staging.stage_out(config, output, self._storages, self._log)
        self._log.info(f"staged out {len(copies)} files")
        if once and mark:
            once.done(mark, lineage, copies)

    def _lineage(self, run: _Run, outcome: Outcome, record: str) -> Lineage:
        import hashlib

        from scar_supervisor.records import Lineage

        config, item, event = self._function.config, run.item, run.event
        script_sha256 = config.script_sha256
        if event.script is not None:
            script_sha256 = hashlib.sha256(event.script).hexdigest()
        kind = "version" if item and item.version_id else "etag"
        return Lineage(
            function=config.name,
            version=config.version,
            run=run.turn.run,
            image=config.image_digest,
            script="" if event.arguments else script_sha256,
            duration_ms=round(outcome.elapsed_s * 1000),
            record=record,
            bucket=config.deployment_bucket if record else "",
            input=item.address if item else "",
            input_version=f"{kind}:{item.version}" if item and item.version else "",
        )

    def _stage_in(
        self, event: Event, item: InputObject | None, directories: Scratch, turn: Turn
    ) -> str:
        """Put the event's input in place; the path of it, or of the empty directory."""
        if item is not None and self._function.config.stages_in:
            started = time.monotonic()
            path = staging.stage_in(item, directories.input, self._storages, turn.limits.deadline)
            size, elapsed_s = os.stat(path).st_size, time.monotonic() - started
            self._log.info(
                f"staged in {item.provider}://{item.bucket}/{item.key} "
                f"({size:,} bytes, {elapsed_s:.2f} s)"
            )
            return path
        if item is not None:
            return directories.input
        path = os.path.join(directories.input, event.body_name)
        if event.body_reference:
            import hashlib

            reference = _reference(event.body_reference, self._function.config)
            guard = staging.Guard(directories.input, turn.limits.deadline)
            self._storages.account.fetch(reference.bucket, reference.key, path, guard)
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != reference.sha256:
                    raise EventFault(f"the body at {reference} has been changed")
        elif event.body is not None:
            scratch.write_file(path, event.body)
        else:
            return directories.input
        return path

    def _given(
        self, event: Event, item: InputObject | None, directories: Scratch, turn: Turn
    ) -> dict[str, str]:
        """The variables that describe this run."""
        given = {
            "TMP_INPUT_DIR": directories.input,
            "TMP_OUTPUT_DIR": directories.output,
            "EVENT": event.text,
            "REQUEST_ID": turn.request_id,
            contract.REQUEST_ID_VARIABLE: turn.request_id,
            "AWS_LAMBDA_FUNCTION_NAME": self._function.config.name,
            "INSTANCE_IP": _instance_ip(),
        }
        if item is not None:
            given["STORAGE_OBJECT_KEY"] = item.key
            given["EVENT_TIME"] = item.time
        if self._function.config.has_extra_payload:
            folder = os.path.join(self._function.directory, contract.EXTRA_PAYLOAD_NAME)
            given["EXTRA_PAYLOAD"] = folder
        if turn.trace_id:
            given["_X_AMZN_TRACE_ID"] = turn.trace_id
        if not environment.fits("EVENT", event.text):
            given["EVENT_FILE"] = os.path.join(directories.root, "event.json")
            scratch.write_file(given["EVENT_FILE"], given.pop("EVENT").encode())
            self._log.warning(
                f"the event has {len(event.text):,} characters, too many for a variable: "
                "it is in the file $EVENT_FILE instead of $EVENT"
            )
        return given

    def _run(self, argv: tuple[str, ...], variables: Mapping[str, str], turn: Turn) -> Outcome:
        outcome = turn.part.run(argv, variables, turn.limits, self._log.write)
        if outcome.left_behind:
            self._log.warning(f"{outcome.left_behind} processes of the script would not end")
        if outcome.stopped:
            self._log.warning(f"stopped by the platform after {outcome.elapsed_s:.1f} s")
            raise Stopped
        if outcome.timed_out:
            raise ScriptTimedOut(outcome.elapsed_s, outcome.tail)
        if outcome.exit_code:
            raise ScriptFailed(outcome.exit_code, outcome.tail)
        if outcome.elapsed_s:  # on a child node nothing ran
            self._log.info(f"the script is done after {outcome.elapsed_s:.2f} s")
        return outcome

    def _adopt_orphans(self) -> None:
        if self._adopts:
            return
        try:
            script.adopt_orphans()
        except (OSError, ImportError) as exc:
            self._log.warning(f"processes that leave the script's group may survive it: {exc}")
        self._adopts = True


@dataclass(frozen=True)
class _Run:
    """One run of the script."""

    event: Event
    item: InputObject | None
    turn: Turn
    mark: Mark | None


def _instance_ip() -> str:
    """This machine's address towards others; connecting a datagram socket sends nothing."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 9))
            return str(probe.getsockname()[0])
        except OSError:  # no network but loopback
            return "127.0.0.1"
