"""Lambda of the local cloud, driven by boto3: invocations, environments, logs."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from scar_local.functions import Settings
from tests.doubles.local_lambda import IMAGE, LocalLambda

OTHER_IMAGE = IMAGE.replace(":echo", ":other")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., LocalLambda]]:
    opened: list[LocalLambda] = []

    def begin(**settings: Any) -> LocalLambda:
        settings = {"concurrency": 8, "retry_delays_s": (0.1, 0.2), **settings}
        opened.append(LocalLambda(tmp_path, Settings(**settings)))
        return opened[-1]

    yield begin
    for local in opened:
        local.close()


@pytest.fixture
def cloud(start: Callable[..., LocalLambda]) -> LocalLambda:
    local = start()
    local.create()
    return local


def invoke(cloud: LocalLambda, event: object = None, **changes: Any) -> dict[str, Any]:
    """One invocation; its answer with the payload decoded."""
    request = {"FunctionName": "echo", "Payload": json.dumps(event or {}), **changes}
    answer: dict[str, Any] = cloud.client.invoke(**request)
    body = answer["Payload"].read()
    return {**answer, "Payload": json.loads(body) if body else None}


def enqueue(cloud: LocalLambda, event: object) -> str:
    """One asynchronous invocation; its request id."""
    answer = invoke(cloud, event, InvocationType="Event")
    assert answer["StatusCode"] == 202
    return str(answer["ResponseMetadata"]["RequestId"])


def until(what: Callable[[], Any], timeout_s: float = 10) -> Any:
    """Wait for `what` to be true; its value."""
    end = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return value


def states(cloud: LocalLambda) -> dict[str, tuple[str, int]]:
    """State and attempts of each asynchronous invocation."""
    rows = cloud.store.read().execute("SELECT * FROM lambda_invocations ORDER BY id")
    return {row["request_id"]: (row["state"], row["attempt"]) for row in rows}


def test_an_environment_is_reused_and_knows_its_function(cloud: LocalLambda) -> None:
    cloud.client.update_function_configuration(
        FunctionName="echo",
        Environment={"Variables": {"NAME": "value", "TZ": "Europe/Madrid"}},
        MemorySize=256,
    )
    names = [
        "NAME",
        "TZ",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        "HOME",
    ]
    context = base64.b64encode(b'{"custom": {"a": "b"}}').decode()
    first = invoke(cloud, {"environment": names}, ClientContext=context)
    second = invoke(cloud, {"a": [1, "ü"]})
    assert (first["Payload"]["served"], second["Payload"]["served"]) == (1, 2)
    assert first["Payload"]["pid"] == second["Payload"]["pid"]
    assert second["Payload"]["event"] == {"a": [1, "ü"]}
    environment = first["Payload"]["environment"]
    stream = environment.pop("AWS_LAMBDA_LOG_STREAM_NAME")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", stream)
    assert environment == {
        "NAME": "value",
        "TZ": "Europe/Madrid",
        "AWS_LAMBDA_FUNCTION_NAME": "echo",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/echo",
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": cloud.url,
        "HOME": None,
    }
    headers = {name.lower(): value for name, value in first["Payload"]["headers"].items()}
    assert headers["lambda-runtime-aws-request-id"] == first["ResponseMetadata"]["RequestId"]
    assert headers["lambda-runtime-invoked-function-arn"].endswith(":function:echo")
    assert headers["lambda-runtime-trace-id"].startswith("Root=1-")
    assert json.loads(headers["lambda-runtime-client-context"]) == {"custom": {"a": "b"}}
    left_ms = int(headers["lambda-runtime-deadline-ms"]) - time.time() * 1000
    assert 0 < left_ms <= 3000
    assert first["ExecutedVersion"] == "$LATEST"
    assert "FunctionError" not in first


def test_four_invocations_run_at_the_same_time(cloud: LocalLambda) -> None:
    with ThreadPoolExecutor(4) as pool:
        invoke(cloud)
        began = time.monotonic()
        answers = list(pool.map(lambda _: invoke(cloud, {"sleep": 0.5}), range(4)))
        elapsed = time.monotonic() - began
    assert len({answer["Payload"]["pid"] for answer in answers}) == 4
    assert elapsed < 1.6  # 2 s one after the other


def test_at_the_limit_callers_wait_and_an_idle_environment_of_another_function_makes_room(
    start: Callable[..., LocalLambda],
) -> None:
    cloud = start(concurrency=1)
    cloud.create()
    cloud.create("other")
    assert invoke(cloud, FunctionName="other")["StatusCode"] == 200
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: invoke(cloud, {"sleep": 0.1}), range(3)))
    assert len({answer["Payload"]["pid"] for answer in answers}) == 1
    assert cloud.functions.counts()["environments"] == 1


def test_an_idle_environment_ends_after_its_time(start: Callable[..., LocalLambda]) -> None:
    cloud = start(idle_s=0.3)
    cloud.create()
    first = invoke(cloud)
    until(lambda: cloud.functions.counts()["environments"] == 0)
    assert invoke(cloud)["Payload"]["pid"] != first["Payload"]["pid"]


def test_a_dry_run_runs_nothing(cloud: LocalLambda) -> None:
    assert invoke(cloud, InvocationType="DryRun")["StatusCode"] == 204
    assert cloud.engine.started == []


def test_a_function_that_takes_too_long_is_killed_and_says_so(cloud: LocalLambda) -> None:
    cloud.client.update_function_configuration(FunctionName="echo", Timeout=1)
    pid = invoke(cloud)["Payload"]["pid"]
    answer = invoke(cloud, {"sleep": 60}, LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert answer["FunctionError"] == "Unhandled"
    assert answer["Payload"] == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {request_id} Error: Task timed out after 1.00 seconds",
    }
    assert not Path(f"/proc/{pid}").exists()
    tail = base64.b64decode(answer["LogResult"]).decode()
    assert f"Z {request_id} Task timed out after 1.00 seconds" in tail
    assert "Status: timeout" in tail
    assert invoke(cloud)["Payload"]["served"] == 1


@pytest.mark.parametrize(("code", "how"), [(3, "exit status 3"), (137, "signal: killed")])
def test_a_runtime_that_dies_fails_its_invocation_and_is_replaced(
    cloud: LocalLambda, code: int, how: str
) -> None:
    answer = invoke(cloud, {"exit": code, "print": ["last words"]}, LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert answer["Payload"] == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {request_id} Error: Runtime exited with error: {how}",
    }
    assert "last words" in base64.b64decode(answer["LogResult"]).decode()
    assert invoke(cloud)["Payload"]["served"] == 1


def test_a_runtime_that_dies_while_idle_is_replaced_unnoticed(cloud: LocalLambda) -> None:
    pid = invoke(cloud)["Payload"]["pid"]

    os.kill(pid, signal.SIGKILL)
    until(lambda: cloud.functions.counts()["environments"] == 0)
    assert "FunctionError" not in invoke(cloud)


def test_an_error_of_the_function_reaches_the_caller_as_it_is(cloud: LocalLambda) -> None:
    answer = invoke(cloud, {"raise": "the script ended with exit code 7"})
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    assert answer["Payload"] == {
        "errorMessage": "the script ended with exit code 7",
        "errorType": "ScriptFailed",
    }
    assert invoke(cloud)["Payload"]["served"] == 2


def test_failures_at_init_are_told_with_their_type(cloud: LocalLambda) -> None:
    for command, error_type, words in (
        ("init-error", "ConfigFault", "no config"),
        ("init-exit", "Runtime.ExitError", "Runtime exited with error: exit status 3"),
    ):
        cloud.client.update_function_configuration(
            FunctionName="echo", ImageConfig={"Command": [command]}
        )
        answer = invoke(cloud)
        assert answer["FunctionError"] == "Unhandled"
        assert answer["Payload"]["errorType"] == error_type
        assert words in answer["Payload"]["errorMessage"]
    assert "cannot begin" in cloud.messages()


def test_an_image_that_cannot_be_started_fails_the_invocation_with_the_reason(
    cloud: LocalLambda,
) -> None:
    cloud.create("broken", Code={"ImageUri": OTHER_IMAGE})
    answer = invoke(cloud, FunctionName="broken")
    assert answer["FunctionError"] == "Unhandled"
    assert (
        f"CannotPullContainerError: no such image: {OTHER_IMAGE}"
        in (answer["Payload"]["errorMessage"])
    )
    assert cloud.functions.counts()["environments"] == 0
    assert any("CannotPullContainerError" in line for line in cloud.messages("broken"))


def test_payloads_are_limited_both_ways_and_must_be_json(cloud: LocalLambda) -> None:
    with pytest.raises(ClientError, match=r"limit 6291456 bytes") as caught:
        invoke(cloud, "x" * 6_291_456)
    assert caught.value.response["Error"]["Code"] == "RequestEntityTooLargeException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    with pytest.raises(ClientError, match=r"limit 1048576 bytes"):
        invoke(cloud, "x" * 1_048_576, InvocationType="Event")
    with pytest.raises(cloud.client.exceptions.InvalidRequestContentException):
        invoke(cloud, Payload=b"{not json")
    answer = invoke(cloud, {"size": 6_300_000})
    assert answer["Payload"] == {
        "errorType": "Function.ResponseSizeTooLarge",
        "errorMessage": "Response payload size exceeded maximum allowed payload size "
        "(6291556 bytes).",
    }
    assert len(invoke(cloud, {"size": 6_200_000})["Payload"]["padding"]) == 6_200_000
    assert invoke(cloud, Payload=b"")["Payload"]["event"] == {}


def test_the_log_of_an_invocation_stands_between_its_start_and_its_end(
    cloud: LocalLambda,
) -> None:
    ids = [
        invoke(cloud, {"print": [f"line {n}", "second"]})["ResponseMetadata"]["RequestId"]
        for n in range(5)
    ]
    lines = cloud.messages()
    reports = [lines.pop(4 + 4 * n) for n in range(5)]
    expected: list[str] = []
    for n, request_id in enumerate(ids):
        expected += [f"START RequestId: {request_id} Version: $LATEST"]
        expected += [f"line {n}", "second", f"END RequestId: {request_id}"]
    assert lines == expected
    for n, request_id in enumerate(ids):
        assert re.fullmatch(
            rf"REPORT RequestId: {request_id}\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms"
            r"\tMemory Size: 128 MB" + (r"\tInit Duration: \d+\.\d\d ms" if n == 0 else ""),
            reports[n],
        )
    streams = cloud.store.read().execute("SELECT count(*) FROM logs_streams").fetchone()[0]
    assert streams == 1


def test_lines_reach_the_log_while_the_function_still_runs(cloud: LocalLambda) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(invoke, cloud, {"print": ["at work"], "sleep": 1.5})
        until(lambda: "at work" in cloud.messages())
        assert not running.done()


def test_a_function_that_writes_much_loses_no_line(cloud: LocalLambda) -> None:
    numbers = [str(n) for n in range(20_000)]
    invoke(cloud, {"print": numbers})
    assert cloud.messages()[1:-2] == numbers


def test_the_tail_is_the_last_4_kb_of_the_invocation(cloud: LocalLambda) -> None:
    invoke(cloud, {"print": ["of another invocation"]})
    answer = invoke(cloud, {"print": [f"{n:099}" for n in range(100)]}, LogType="Tail")
    tail = base64.b64decode(answer["LogResult"]).decode()
    assert len(tail) == 4096
    assert f"{99:099}\nEND RequestId: {answer['ResponseMetadata']['RequestId']}\nREPORT" in tail
    short = invoke(cloud, {"print": ["only this"]}, LogType="Tail")
    assert base64.b64decode(short["LogResult"]).startswith(b"START RequestId: ")
    assert b"another" not in base64.b64decode(short["LogResult"])


def test_changed_code_or_configuration_runs_in_a_new_environment(cloud: LocalLambda) -> None:
    first = invoke(cloud)["Payload"]["pid"]
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(invoke, cloud, {"sleep": 0.5})
        time.sleep(0.2)
        cloud.client.update_function_configuration(FunctionName="echo", MemorySize=256)
        second = invoke(cloud)["Payload"]["pid"]
        assert busy.result()["Payload"]["pid"] == first  # ended undisturbed
    assert second != first
    until(lambda: cloud.functions.counts() | {"environments": 1} == cloud.functions.counts())
    cloud.engine.programs[OTHER_IMAGE] = cloud.engine.programs[IMAGE]
    cloud.client.update_function_code(FunctionName="echo", ImageUri=OTHER_IMAGE)
    assert cloud.functions.counts()["environments"] == 0
    invoke(cloud)
    assert cloud.engine.started[-1].image == OTHER_IMAGE


def test_a_function_can_be_deleted_while_it_runs(cloud: LocalLambda) -> None:
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(invoke, cloud, {"sleep": 0.5})
        until(lambda: cloud.functions.counts()["environments"] == 1)
        cloud.client.delete_function(FunctionName="echo")
        with pytest.raises(cloud.client.exceptions.ResourceNotFoundException):
            invoke(cloud)
        assert "FunctionError" not in busy.result()
    until(lambda: cloud.functions.counts()["environments"] == 0)


def test_an_asynchronous_invocation_is_retried_with_the_same_request_id(
    cloud: LocalLambda, tmp_path: Path
) -> None:
    request_id = enqueue(cloud, {"fail_until": [str(tmp_path / "tries"), 3]})
    until(lambda: states(cloud)[request_id] == ("succeeded", 3))
    assert cloud.messages().count(f"START RequestId: {request_id} Version: $LATEST") == 3


def test_an_asynchronous_invocation_is_given_up_after_its_retries(cloud: LocalLambda) -> None:
    request_id = enqueue(cloud, {"raise": "never"})
    until(lambda: states(cloud)[request_id][0] == "failed")
    assert states(cloud)[request_id] == ("failed", 3)
    cloud.client.put_function_event_invoke_config(FunctionName="echo", MaximumRetryAttempts=0)
    request_id = enqueue(cloud, {"raise": "never"})
    until(lambda: states(cloud)[request_id][0] == "failed")
    assert states(cloud)[request_id] == ("failed", 1)


def test_invocations_committed_with_other_changes_run_or_vanish_with_them(
    cloud: LocalLambda,
) -> None:
    with cloud.store.write() as db:
        arn = "arn:aws:lambda:eu-west-1:000000000000:function:echo"
        request_id = cloud.functions.enqueue(db, arn, b"{}")
    cloud.functions.wake()
    until(lambda: states(cloud)[request_id] == ("succeeded", 1))

    def fail() -> None:
        with cloud.store.write() as db:
            cloud.functions.enqueue(db, "echo", b"{}")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(states(cloud)) == [request_id]


def test_what_ran_when_the_local_cloud_stopped_runs_again_with_the_same_request_id(
    cloud: LocalLambda, tmp_path: Path
) -> None:
    marker = tmp_path / "tries"
    request_id = enqueue(cloud, {"sleep": 1.5, "fail_until": [str(marker), 1]})
    until(lambda: states(cloud)[request_id] == ("running", 1))
    until(lambda: cloud.functions.counts()["environments"] == 1)
    began = time.monotonic()
    cloud.restart()
    assert time.monotonic() - began < 1.4  # it was not waited for
    assert states(cloud)[request_id][0] in ("queued", "running")
    until(lambda: states(cloud)[request_id] == ("succeeded", 1))
    assert marker.read_text() == "x"


KILLED = """
import pathlib, sys, time
from scar_local.functions import Settings
from tests.doubles.local_lambda import LocalLambda

cloud = LocalLambda(pathlib.Path(sys.argv[1]), Settings(concurrency=2))
cloud.create()
for _ in range(3):
    cloud.client.invoke(FunctionName="echo", InvocationType="Event", Payload='{"sleep": 0.5}')
while cloud.functions.counts().get("invocations_running") != 2:
    time.sleep(0.01)
print("two of three are running", flush=True)
time.sleep(60)
"""


def run_until_killed(program: str, directory: Path, says: str) -> None:
    """Run a Python program on `directory` and `kill -9` it when it has said that."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{says}\n".encode()
        process.kill()


def test_what_was_accepted_before_kill_9_runs_after_it(
    start: Callable[..., LocalLambda], tmp_path: Path
) -> None:
    run_until_killed(KILLED, tmp_path, "two of three are running")
    cloud = start()
    until(lambda: list(states(cloud).values()) == [("succeeded", 1)] * 3)
    starts = [line for line in cloud.messages() if line.startswith("START")]
    assert {f"START RequestId: {i} Version: $LATEST" for i in states(cloud)} <= set(starts)


def test_a_burst_of_events_runs_in_a_few_environments_and_none_is_lost(
    start: Callable[..., LocalLambda],
) -> None:
    cloud = start(concurrency=4)
    cloud.create()
    with cloud.store.write() as db:
        for n in range(200):
            cloud.functions.enqueue(db, "echo", json.dumps({"n": n}).encode())
    cloud.functions.wake()
    until(lambda: {state for state, _ in states(cloud).values()} == {"succeeded"}, 30)
    assert len(cloud.engine.started) <= 4
    lines = cloud.messages()
    assert sum(line.startswith("END RequestId") for line in lines) == 200
    payloads = cloud.store.read().execute("SELECT count(payload) FROM lambda_invocations")
    assert payloads.fetchone()[0] == 0


def test_the_runtime_api_refuses_answers_to_another_invocation_and_other_paths(
    cloud: LocalLambda,
) -> None:
    address = invoke(cloud, {"environment": ["AWS_LAMBDA_RUNTIME_API"]})["Payload"]["environment"]
    host, _, port = address["AWS_LAMBDA_RUNTIME_API"].partition(":")
    assert host == "127.0.0.1"
    api = http.client.HTTPConnection(host, int(port))
    for path, status, error_type in (
        ("invocation/8476a536-e9f4-11e8-9739-2dfe598c3fcd/response", 400, "InvalidRequestID"),
        ("other", 404, "InvalidPath"),
    ):
        api.request("POST", f"/2018-06-01/runtime/{path}", b"{}")
        answer = api.getresponse()
        assert answer.status == status
        assert json.loads(answer.read())["errorType"] == error_type
    api.close()
