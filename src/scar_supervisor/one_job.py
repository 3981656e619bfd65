"""One Batch job: the event from its environment, the script's exit code as its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scar_supervisor import contract
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.events import Event
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
from scar_supervisor.supervise import (
    Function,
    Part,
    Supervisor,
    Turn,
    load_function,
    whole,
    work_of,
)

if TYPE_CHECKING:
    from scar_supervisor.once import Once


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
    except ConfigFault as fault:
        log.error(f"{type(fault).__name__}: {fault}")
        return contract.EXIT_CONFIG
    job = _Job(function, environ, Log(function.config.log_level), part)
    try:
        job.run()
    except Fault as fault:
        job.log.error(f"{type(fault).__name__}: {fault}")
        job.failed(fault)
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


class _Job:
    """This machine's part of a job."""

    def __init__(
        self, function: Function, environ: Mapping[str, str], log: Log, part: Part
    ) -> None:
        self.log = log
        self._function, self._environ, self._part = function, environ, part
        self._storages = Storages(environ, function.config.providers)
        # A node has a number behind it; what is claimed is claimed by the whole job.
        self._id = environ["AWS_BATCH_JOB_ID"].partition("#")[0]
        self._once: Once | None = None
        self._event = "{}"

    def run(self) -> None:
        """Do the event's work. Raises a Fault where it fails."""
        config, environ = self._function.config, self._environ
        raw = _event(environ, config, self._storages, self.log)
        self._event = raw.decode(errors="replace")
        event = work_of(raw, config, self._storages, self.log)
        if event is None:
            return
        if self._part.scratch_name and len(event.objects) > 1:
            raise EventFault("a multi-node job works on one object; the event has several")
        if event.objects and self._part.claims:
            self._once = self._claiming(event)
        turn = Turn(
            environ.get(contract.REQUEST_ID_VARIABLE) or self._id,
            f"job:{self._id}",
            in_job=True,
            limits=Limits(stop_grace_s=stop_grace_s(environ)),
            part=self._part,
        )
        supervisor = Supervisor(self._function, environ, self._storages, self.log)
        supervisor.supervise(event, turn, self._once)

    def failed(self, fault: Fault) -> None:
        """Keep the event, unless Batch will try again."""
        if not self._part.claims:
            return
        if self._once is not None:
            self._once.give_up()
        config = self._function.config
        attempt = int(self._environ.get("AWS_BATCH_JOB_ATTEMPT") or 1)
        if attempt < config.job_attempts and exit_code(fault) != contract.EXIT_CONFIG:
            return
        from scar_supervisor import failures
        from scar_supervisor.once import Owner

        owner = Owner(self._id, is_job=True)
        record = failures.failed(config, owner, self._event, fault, attempt)
        failures.keep(config, self._storages, self.log, record)

    def _claiming(self, event: Event) -> Once:
        from scar_supervisor.once import Once, Owner

        config, owner = self._function.config, Owner(self._id, is_job=True)
        return Once(config, self._storages, self.log, owner, event, self._has_ended)

    def _has_ended(self, job_id: str) -> bool:
        from scar_supervisor.delegate import Batch  # needed only where another job has it

        return Batch(self._environ, self._storages).has_ended(job_id)


def _event(
    environ: Mapping[str, str], config: FunctionConfig, storages: Storages, log: Log
) -> bytes:
    """The job's event; a job of a bulk run has it in a line of its manifest."""
    inline = environ.get(contract.EVENT_VARIABLE)
    if contract.ARRAY_VARIABLE in environ:
        from scar_supervisor import array

        common = whole(os.fsencode(inline), config, storages) if inline is not None else b"{}"
        return array.event(environ, storages, common)
    if inline is None:
        log.info(f"no {contract.EVENT_VARIABLE} in the job's environment: the event is empty")
        return b"{}"
    return os.fsencode(inline)
