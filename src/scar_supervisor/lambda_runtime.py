"""The Lambda runtime: three calls over the Runtime API, one event after the other."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scar_supervisor import contract
from scar_supervisor.events import Event
from scar_supervisor.faults import ConfigFault, Fault, ScriptTimedOut
from scar_supervisor.log import Log
from scar_supervisor.script import Limits, stop_grace_s
from scar_supervisor.storage import Storages
from scar_supervisor.supervise import Function, Supervisor, Turn, load_function, work_of
from scar_supervisor.transport import BROKEN, Origin, Reply

if TYPE_CHECKING:
    # Loaded when they are needed: most functions never delegate, many events have no object, and
    # OpenSSL's library takes time to load.
    from scar_supervisor.delegate import Batch
    from scar_supervisor.once import Already, Once
    from scar_supervisor.routes import Routes

VERSION_PATH = "/2018-06-01/runtime"

KEPT_OUTPUT_BYTES = 4_400_000
"""An answer has at most 6 MB (6,291,556 bytes); base64 makes four bytes of three."""

GRACE_S = 2.0


def run(environ: Mapping[str, str], log: Log) -> int:
    """Answer events until the platform ends this process; the exit code."""
    api = RuntimeApi(environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        function = load_function(environ)
    except ConfigFault as fault:
        log.error(str(fault))
        api.fail_to_start(fault)
        return contract.EXIT_CONFIG
    log = Log(function.config.log_level)
    runtime = Runtime(function, environ, log)
    while True:
        try:
            invocation = api.next()
        except BROKEN as exc:
            log.debug(f"the Runtime API is gone: {exc}")
            return 0
        try:
            _answer(api, runtime, invocation, log)
        except BROKEN as exc:
            log.error(f"the Runtime API took no answer to {invocation.request_id}: {exc}")
            return 1


@dataclass(frozen=True)
class Invocation:
    """One event as the Runtime API gives it; `deadline_ms` since 1970."""

    request_id: str
    deadline_ms: int
    raw: bytes
    trace_id: str | None = None


class RuntimeApi:
    """The Runtime API at `host:port`."""

    def __init__(self, address: str) -> None:
        # `next` waits for as long as no event comes.
        self._origin = Origin(f"http://{address}", timeout_s=None)

    def next(self) -> Invocation:
        """Wait for the next event. Raises one of transport.BROKEN when the API is gone."""
        reply = self._ask("GET", "/invocation/next")
        if reply.status != 200:
            raise ConnectionError(f"HTTP status {reply.status} to next")
        headers = reply.headers
        return Invocation(
            headers["lambda-runtime-aws-request-id"],
            int(headers.get("lambda-runtime-deadline-ms") or 0),
            reply.body,
            headers.get("lambda-runtime-trace-id"),
        )

    def respond(self, request_id: str, answer: Mapping[str, object]) -> None:
        """The invocation succeeded."""
        self._ask("POST", f"/invocation/{request_id}/response", json.dumps(answer).encode())

    def fail(self, request_id: str, kind: str, message: str) -> None:
        """The invocation failed."""
        self._report(f"/invocation/{request_id}/error", kind, message)

    def fail_to_start(self, fault: Fault) -> None:
        """The function can answer no event at all."""
        self._report("/init/error", type(fault).__name__, fault.report)

    def _report(self, path: str, kind: str, message: str) -> None:
        body = {"errorType": kind, "errorMessage": message, "stackTrace": []}
        headers = {
            "Content-Type": "application/vnd.aws.lambda.error+json",
            "Lambda-Runtime-Function-Error-Type": kind,
        }
        self._ask("POST", path, json.dumps(body).encode(), headers)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        all_headers = {
            "Host": self._origin.netloc,
            "User-Agent": "scar-supervisor",
            **(headers or {}),
        }
        return self._origin.exchange(method, VERSION_PATH + path, all_headers, body)


def _answer(api: RuntimeApi, runtime: Runtime, invocation: Invocation, log: Log) -> None:
    """Answer one event, whatever happens. Raises one of transport.BROKEN when the API is gone."""
    try:
        answer = runtime.answer(invocation)
    except Fault as fault:
        log.error(f"{type(fault).__name__}: {fault}")
        api.fail(invocation.request_id, type(fault).__name__, fault.report)
    except Exception as exc:
        import traceback  # never needed unless there is a bug

        log.error(traceback.format_exc())
        api.fail(invocation.request_id, "SupervisorError", f"{type(exc).__name__}: {exc}")
    else:
        api.respond(invocation.request_id, answer)


class Runtime:
    """Answers invocations of one function in its execution mode."""

    def __init__(self, function: Function, environ: Mapping[str, str], log: Log) -> None:
        self._config, self._environ, self._log = function.config, environ, log
        self._storages = Storages(environ, function.config.providers)
        self._supervisor = Supervisor(function, environ, self._storages, log)

    def answer(self, invocation: Invocation) -> dict[str, object]:
        """What Invoke's caller gets. Raises a Fault where the event fails."""
        event = work_of(invocation.raw, self._config, self._storages, self._log)
        if event is None:
            return self._answered(invocation, b"")
        once = self._once(invocation, event) if event.objects else None
        try:
            return self._work(invocation, event, once)
        except BaseException as fault:
            if once is not None:
                self._failed(event, once, fault)
            raise

    def _work(self, invocation: Invocation, event: Event, once: Once | None) -> dict[str, object]:
        mode = self._config.execution_mode
        if mode == "batch":
            return self._delegated(invocation, event, once)
        turn = self._turn(invocation)
        limit_s = (turn.limits.deadline or 0) - time.monotonic()
        routes = self._routes() if mode == "lambda-batch" and event.objects else None
        if routes and routes.leads_to_batch(event, limit_s):
            return self._delegated(invocation, event, once)
        try:
            output = self._supervisor.supervise(event, turn, once)
        except ScriptTimedOut as fault:
            if mode != "lambda-batch":
                raise
            self._log.warning(str(fault))
            if routes:
                routes.ran_out_of_time(event, limit_s, invocation.request_id)
            return self._delegated(invocation, event, once)
        return self._answered(invocation, output)

    def _once(self, invocation: Invocation, event: Event) -> Once:
        from scar_supervisor.once import Once, Owner

        owner = Owner(invocation.request_id, until_ms=invocation.deadline_ms)
        return Once(self._config, self._storages, self._log, owner, event, self._has_ended)

    def _routes(self) -> Routes:
        from scar_supervisor.routes import Routes

        return Routes(self._config, self._storages, self._environ, self._log)

    def _failed(self, event: Event, once: Once, fault: BaseException) -> None:
        """Lambda tries again; after the last time the event is kept.

        How often it tried only a claim tells. What has none, or was killed, Lambda's on-failure
        destination keeps.
        """
        attempts = once.attempts
        once.give_up()
        if attempts >= contract.ASYNCHRONOUS_ATTEMPTS:
            from scar_supervisor import failures

            record = failures.failed(self._config, once.owner, event.text, fault, attempts)
            failures.keep(self._config, self._storages, self._log, record)

    def _turn(self, invocation: Invocation) -> Turn:
        left_s = invocation.deadline_ms / 1000 - time.time()
        threshold_s = float(self._config.timeout_threshold_s)
        if threshold_s >= left_s:
            self._log.warning(
                f"`timeout_threshold` of {threshold_s:g} s leaves nothing of the {left_s:.1f} s "
                "of this invocation: the script gets 80 % of it"
            )
            threshold_s = left_s * 0.2
        limits = Limits(
            deadline=time.monotonic() + left_s - threshold_s,
            grace_s=min(GRACE_S, threshold_s / 4),
            stop_grace_s=stop_grace_s(self._environ),
            keep_bytes=KEPT_OUTPUT_BYTES,
        )
        request_id = invocation.request_id
        run = f"invocation:{request_id}"
        return Turn(request_id, run, limits=limits, trace_id=invocation.trace_id)

    def _batch(self) -> Batch:
        from scar_supervisor.delegate import Batch

        return Batch(self._environ, self._storages)

    def _has_ended(self, job_id: str) -> bool:
        return self._batch().has_ended(job_id)

    def _delegated(
        self, invocation: Invocation, event: Event, once: Once | None
    ) -> dict[str, object]:
        if once is None:
            job_id = self._batch().submit(self._config, event.text, invocation.request_id)
        else:
            known = [its for item in event.objects if (its := once.known(item))]
            for its in known:
                self._log.info(f"{its}: nothing to do")
            if len(known) == len(event.objects):
                return self._known(invocation, known[-1])
            if self._config.burst is not None and not event.own_program:
                return self._gathered(invocation, event, once)
            job_id = self._submitted(invocation, event, once)
            once.hand_over(job_id)
        self._log.info(f"delegated to Batch job {job_id}")
        return self._in_job(invocation, job_id)

    def _submitted(self, invocation: Invocation, event: Event, once: Once) -> str:
        """The event's job; the attempt before may have broken off when it had submitted it."""
        batch, request_id = self._batch(), invocation.request_id
        found = None
        if once.attempts > 1:
            since_ms = min(mark.claim.began_ms for mark in once.held)
            variable = (contract.REQUEST_ID_VARIABLE, request_id)
            found = batch.find(self._config, since_ms, variable)
        return found or batch.submit(self._config, event.text, request_id)

    def _gathered(self, invocation: Invocation, event: Event, once: Once) -> dict[str, object]:
        from scar_supervisor.bursts import Bursts

        bursts = Bursts(self._config, self._storages, self._batch(), self._log)
        for mark in once.held:
            bursts.add(event, mark)
        jobs = bursts.lead(invocation.request_id, invocation.deadline_ms)
        if not jobs:
            return self._answered(invocation, b"The event waits to become a job with others.\n")
        return self._in_job(invocation, jobs[-1])

    def _known(self, invocation: Invocation, its: Already) -> dict[str, object]:
        text = f"{its}; `scar run --force` repeats it\n"
        headers = {contract.JOB_ID_HEADER: its.by} if its.is_job and not its.is_done else {}
        return self._answered(invocation, text.encode(), headers)

    def _in_job(self, invocation: Invocation, job_id: str) -> dict[str, object]:
        text = (
            "Job delegated to batch.\nCheck batch logs with:\n"
            f"  scar log -n {self._config.name} -ri {job_id}\n"
        )
        return self._answered(invocation, text.encode(), {contract.JOB_ID_HEADER: job_id})

    def _answered(
        self, invocation: Invocation, output: bytes, headers: Mapping[str, str] | None = None
    ) -> dict[str, object]:
        return {
            "statusCode": 200,
            "headers": {
                "amz-lambda-request-id": invocation.request_id,
                "amz-log-group-name": self._environ.get("AWS_LAMBDA_LOG_GROUP_NAME", ""),
                "amz-log-stream-name": self._environ.get("AWS_LAMBDA_LOG_STREAM_NAME", ""),
                **(headers or {}),
            },
            "body": base64.b64encode(output).decode(),
            "isBase64Encoded": True,
        }
