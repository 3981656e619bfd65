"""One Batch job: the event from its environment, the script's exit code as its own."""

from __future__ import annotations

import os
from collections.abc import Mapping

from scar_supervisor import contract, events
from scar_supervisor.faults import (
    ConfigFault,
    EventFault,
    Fault,
    NodesFailed,
    ScriptFailed,
    StagingFailed,
)
from scar_supervisor.log import Log
from scar_supervisor.script import Limits, stop_grace_s
from scar_supervisor.storage import Storages
from scar_supervisor.supervise import Part, Supervisor, Turn, load_function, work_of


def run(environ: Mapping[str, str], log: Log) -> int:
    """Run the job's event; the exit code: the script's, or contract.EXIT_*."""
    if contract.NODE_COUNT_VARIABLE in environ:
        from scar_supervisor import nodes

        return nodes.run(environ, log, work)
    return work(environ, log, Part())


def work(environ: Mapping[str, str], log: Log, part: Part) -> int:
    """Do one machine's part of the job; the exit code."""
    try:
        function = load_function(environ)
        log = Log(function.config.log_level)
        storages = Storages(environ, function.config.providers)
        parsed = events.placed(events.parse(_event(environ, storages, log)), function.config)
        event = work_of(parsed, log)
        if event is None:
            return 0
        if part.scratch_name and len(event.objects) > 1:
            raise EventFault("a multi-node job works on one object; the event has several")
        turn = Turn(
            environ.get(contract.REQUEST_ID_VARIABLE) or environ["AWS_BATCH_JOB_ID"],
            in_job=True,
            limits=Limits(stop_grace_s=stop_grace_s(environ)),
            part=part,
        )
        Supervisor(function, environ, storages, log).supervise(event, turn)
    except Fault as fault:
        log.error(f"{type(fault).__name__}: {fault}")
        return exit_code(fault)
    return 0


def exit_code(fault: Fault) -> int:
    """The exit code that tells of a fault."""
    if isinstance(fault, (ScriptFailed, NodesFailed)):
        return fault.exit_code
    if isinstance(fault, (ConfigFault, EventFault)):
        return contract.EXIT_CONFIG
    if isinstance(fault, StagingFailed):
        return contract.EXIT_STAGING
    return 1


def _event(environ: Mapping[str, str], storages: Storages, log: Log) -> bytes:
    """The job's event; a job of a bulk run has it in a line of its manifest."""
    if contract.ARRAY_VARIABLE not in environ:
        return _delegated(environ, storages, log)
    from scar_supervisor import array

    given = contract.EVENT_VARIABLE in environ or contract.EVENT_REFERENCE_VARIABLE in environ
    return array.event(environ, _delegated(environ, storages, log) if given else b"{}")


def _delegated(environ: Mapping[str, str], storages: Storages, log: Log) -> bytes:
    """The delegated event; an empty one for a job that was submitted by hand."""
    inline = environ.get(contract.EVENT_VARIABLE)
    if inline is not None:
        return os.fsencode(inline)
    reference = environ.get(contract.EVENT_REFERENCE_VARIABLE)
    if reference is None:
        log.info(f"no {contract.EVENT_VARIABLE} in the job's environment: the event is empty")
        return b"{}"
    return _stored_event(reference, environ, storages, log)


def _stored_event(text: str, environ: Mapping[str, str], storages: Storages, log: Log) -> bytes:
    import hashlib

    from scar_supervisor import scratch
    from scar_supervisor.delegate import parse_reference
    from scar_supervisor.staging import Guard

    reference = parse_reference(text)
    with scratch.fresh(environ, log) as directories:
        path = os.path.join(directories.root, "event")
        guard = Guard(directories.root, deadline=None)
        storages["s3"].fetch(reference.bucket, reference.key, path, guard)
        with open(path, "rb") as file:
            data = file.read()
    if hashlib.sha256(data).hexdigest() != reference.sha256:
        raise EventFault(f"the event at s3://{reference.bucket}/{reference.key} has been changed")
    return data
