"""Invoke a function once, and wait for what comes of it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scar import state
from scar.aws.account import Account
from scar.aws.batch import follow_job
from scar.aws.errors import is_absent
from scar.aws.functions import Invoked, invoke, not_deployed
from scar.errors import CloudError, FunctionFailed
from scar.plan.resources import lambda_log_group
from scar_supervisor.contract import EXIT_CONFIG, EXIT_STAGING, JOB_ID_HEADER

LOG_TAIL_LINES = 30
"""Lines of a job's log that come with its failure."""


@dataclass(frozen=True)
class RunResult:
    """What an invocation gave. An asynchronous one gives a request id and nothing more."""

    status_code: int
    output: bytes
    request_id: str
    log_group: str
    log_stream: str
    job_id: str | None


def run(  # noqa: PLR0913  # one flag of the command each
    account: Account,
    name: str,
    *,
    script: bytes | None,
    arguments: Sequence[str],
    asynchronous: bool,
    on_delegated: Callable[[str], None],
    on_log: Callable[[str], None],
) -> RunResult:
    """Invoke function `name` with a script, or with a command and its arguments, or with neither.

    Where it hands the event to Batch, `on_delegated` gets the job's id, `on_log` every line of its
    log, and the answer comes when the job has ended. Raises NotDeployed, FunctionFailed.
    """
    event = json.dumps(event_of(script, arguments)).encode()
    payload = state.payload(account, name, event, asynchronous=asynchronous)
    try:
        answer = invoke(account, name, payload, asynchronous=asynchronous)
    except CloudError as exc:
        if is_absent(exc):
            raise not_deployed(account, name) from exc
        raise
    result = result_of(name, answer, asynchronous)
    if result.job_id is not None:
        on_delegated(result.job_id)
        _wait(account, result.job_id, result.request_id, on_log)
    return result


def result_of(name: str, answer: Invoked, asynchronous: bool) -> RunResult:
    """What an answer of function `name` says. Raises FunctionFailed where it tells of a failure."""
    if answer.error:
        raise _failure(name, answer)
    return _result(name, answer, asynchronous)


def event_of(script: bytes | None, arguments: Sequence[str]) -> dict[str, str]:
    """The event that runs a script, or a command, or neither."""
    if arguments:
        return {"cmd_args": json.dumps(list(arguments))}
    return {} if script is None else {"script": base64.b64encode(script).decode()}


def _result(name: str, answer: Invoked, asynchronous: bool) -> RunResult:
    said: Any = {}
    if not asynchronous:
        try:
            said = json.loads(answer.payload or b"{}")
        except ValueError as exc:
            raise FunctionFailed(
                f"function `{name}` answers what is no JSON", answer.request_id, answer.log_tail
            ) from exc
    if not isinstance(said, dict):
        said = {"body": json.dumps(said)}
    headers: Mapping[str, str] = said.get("headers") or {}
    return RunResult(
        status_code=int(said.get("statusCode", answer.status_code)),
        output=_output(said),
        request_id=headers.get("amz-lambda-request-id", answer.request_id),
        log_group=headers.get("amz-log-group-name", lambda_log_group(name)),
        log_stream=headers.get("amz-log-stream-name", ""),
        job_id=headers.get(JOB_ID_HEADER),
    )


def _output(said: Mapping[str, Any]) -> bytes:
    body = str(said.get("body", ""))
    if not said.get("isBase64Encoded"):
        return body.encode()
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:  # cut where Lambda's limit was: what is left is still worth showing
        return body.encode()


def _failure(name: str, answer: Invoked) -> FunctionFailed:
    try:
        said = json.loads(answer.payload)
        message, kind = str(said.get("errorMessage", "")), str(said.get("errorType", ""))
    except (ValueError, AttributeError):
        message, kind = answer.payload.decode(errors="replace"), ""
    what, _, tail = message.partition("\n")
    return FunctionFailed(
        f"function `{name}`: {what or kind or answer.error}",
        answer.request_id,
        tail.strip("\n") or answer.log_tail,
        f"scar log -n {name} -ri {answer.request_id}",
    )


def _wait(account: Account, job_id: str, request_id: str, on_log: Callable[[str], None]) -> None:
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        del lines[:-LOG_TAIL_LINES]
        on_log(line)

    its = follow_job(account, job_id, keep)
    if its is None:
        raise CloudError("batch", "DescribeJobs", "NotFound", f"job {job_id} does not exist")
    if its.status == "FAILED":
        said = {EXIT_STAGING: " (staging failed)", EXIT_CONFIG: " (its config cannot be read)"}
        code = its.exit_code
        what = f"exit code {code}{said.get(code, '')}" if code is not None else its.reason
        if code is not None and its.reason and "essential container" not in its.reason.lower():
            what += f": {its.reason}"
        raise FunctionFailed(
            f"job {job_id} of function `{its.name}` failed with {what or 'no reason given'}",
            request_id,
            "\n".join(lines),
            f"scar log -n {its.name} -ri {job_id}",
        )
