"""Invoke a function through its HTTP endpoint."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from scar import state, storage
from scar.aws.account import Account
from scar.aws.gateway import endpoint_of
from scar.errors import CloudError, FunctionFailed, UserError
from scar.invoke import RunResult
from scar.plan.limits import URL_LIMIT_BYTES, body_fits
from scar_supervisor.contract import BODY_REFERENCE_HEADER, JOB_ID_HEADER
from scar_supervisor.records import Reference

if TYPE_CHECKING:
    import urllib3

ANSWER_LIMIT_S = 960
"""API Gateway gives up after 29 s, or after what a regional API's raised quota says."""

_BAD_GATEWAY, _TIMED_OUT = 502, 504


@dataclass(frozen=True)
class Call:
    """What to send."""

    body: bytes | Path | None = None
    """Or the file that holds it. Sent with POST; None: nothing, with GET."""
    is_json: bool = False
    """Whether `body` is sent as it is; anything else goes as base64 text, as the reference
    implementation has it: API Gateway would spoil bytes that are no text."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the query string; a list is sent once for each of its values."""
    asynchronous: bool = False


def call(account: Account, name: str, wanted: Call) -> RunResult:
    """Call the endpoint of function `name`.

    A body that is too large for API Gateway or Lambda travels through the deployment bucket.
    Raises UserError where it has none or the parameters are too long, NotDeployed, CloudError where
    it cannot be reached, FunctionFailed where it answers with an error.
    """
    query = urlencode([*_pairs(wanted.parameters)])
    if len(query) > URL_LIMIT_BYTES:
        raise UserError(
            f"the parameters take {len(query)} bytes of the URL, {URL_LIMIT_BYTES} fit",
            "send them as JSON: `--json-data`",
        )
    endpoint = endpoint_of(account, name)
    method = endpoint.http_method
    if method == "ANY":
        method = "GET" if wanted.body is None else "POST"
    headers = {"Accept": "*/*"}
    if wanted.body is not None:
        kind = "json" if wanted.is_json else "octet-stream"
        headers["Content-Type"] = f"application/{kind}"
    body = _body(wanted)
    if body is None and wanted.body is not None:
        headers[BODY_REFERENCE_HEADER] = str(_kept(account, name, wanted.body))
    if wanted.asynchronous:
        headers["X-Amz-Invocation-Type"] = "Event"
    url = f"{endpoint.url}?{query}" if query else endpoint.url
    answer = _ask(method, url, body, headers)
    if wanted.asynchronous and _is_launched(answer.status):
        return RunResult(202, b"", "", "", "", None)
    if not 200 <= answer.status < 300:
        raise _failure(name, answer)
    its = answer.headers
    return RunResult(
        status_code=answer.status,
        output=_output(answer),
        request_id=its.get("amz-lambda-request-id", its.get("x-amzn-RequestId", "")),
        log_group=its.get("amz-log-group-name", ""),
        log_stream=its.get("amz-log-stream-name", ""),
        job_id=its.get(JOB_ID_HEADER),
    )


def _pairs(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in parameters.items():
        for item in value if isinstance(value, list) else [value]:
            found.append((key, item if isinstance(item, str) else json.dumps(item)))
    return found


def _body(wanted: Call) -> bytes | None:
    """The body as it is sent; None where there is none, or it is too large."""
    body = wanted.body
    if isinstance(body, Path):
        size = -(-body.stat().st_size // 3) * 4
        if not body_fits(size, size + 2, asynchronous=wanted.asynchronous):
            return None
        body = body.read_bytes()
    if body is None:
        return None
    sent = body if wanted.is_json else base64.b64encode(body)
    # It travels in the event as a JSON string, where quotes and others take more bytes.
    inside = len(json.dumps(sent.decode(errors="replace")))
    return sent if body_fits(len(sent), inside, asynchronous=wanted.asynchronous) else None


def _kept(account: Account, name: str, body: bytes | Path) -> Reference:
    """Where the body is kept in the function's deployment bucket, and its supervisor reads it."""
    target = state.target_of(account, name)
    if isinstance(body, bytes):
        reference = Reference.to(body, target.bucket, name)
        state.store(account, target, reference.key, body)
        return reference
    with body.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    reference = Reference.of(sha256, target.bucket, name)
    with state.in_bucket_of(target):
        storage.store(account, target.bucket, reference.key, body)
    return reference


def _ask(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str]
) -> urllib3.BaseHTTPResponse:
    from urllib3 import PoolManager, ProxyManager, Timeout
    from urllib3.exceptions import HTTPError

    options: dict[str, Any] = {
        "timeout": Timeout(connect=10, read=ANSWER_LIMIT_S),
        "retries": False,  # the function may have run
    }
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    direct = parts.hostname == "127.0.0.1" or proxy_bypass(parts.hostname or "")
    pool = PoolManager(**options) if direct or not proxy else ProxyManager(proxy, **options)
    try:
        return pool.request(method, url, body=body, headers=headers)
    except HTTPError as exc:
        why = " ".join(str(exc).split())
        raise CloudError("execute-api", method, type(exc).__name__, why) from exc


def _is_launched(status: int) -> bool:
    """Whether an asynchronous call was taken.

    Lambda answers such a call with nothing, which API Gateway's proxy integration takes for a
    malformed answer: 502, although the function runs.
    """
    return 200 <= status < 300 or status == _BAD_GATEWAY


def _output(answer: urllib3.BaseHTTPResponse) -> bytes:
    """The body, decoded where it is our supervisor's: that is always base64 text."""
    if "amz-lambda-request-id" not in answer.headers:
        return answer.data
    try:
        return base64.b64decode(answer.data, validate=True)
    except binascii.Error:
        return answer.data


def _failure(name: str, answer: urllib3.BaseHTTPResponse) -> FunctionFailed:
    said = _message(answer.data)
    hint = f"`scar log -n {name}` shows why"
    if answer.status == _TIMED_OUT:
        hint = (
            f"API Gateway waits 29 seconds and the function goes on: `scar log -n {name}` shows "
            f"how it ends; `scar run -n {name}` waits longer, `-a` does not wait"
        )
    request_id = answer.headers.get("amz-lambda-request-id", "")
    status = f"HTTP status {answer.status}"
    text = f"function `{name}` answers {status}: {said}" if said else f"function `{name}`: {status}"
    return FunctionFailed(text, request_id, "", hint)


def _message(body: bytes) -> str:
    """What an error's body says, in one line."""
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if isinstance(said, dict) and isinstance(said.get("message"), str):
        text = said["message"]
    return " ".join(text.split())[:300]
