"""Events that failed for good are kept in the bucket that their function names, and none is lost.

https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from scar_local.functions import Settings
from tests.doubles.local_lambda import LocalLambda
from tests.integration.test_local_functions_invoke import enqueue, run_until_killed, states, until

ARN = "arn:aws:lambda:eu-west-1:000000000000:function:echo"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], LocalLambda]]:
    opened: list[LocalLambda] = []

    def begin() -> LocalLambda:
        opened.append(LocalLambda(tmp_path, Settings(8, retry_delays_s=(0.05, 0.05))))
        return opened[-1]

    yield begin
    for local in opened:
        local.close()


@pytest.fixture
def cloud(start: Callable[[], LocalLambda]) -> LocalLambda:
    local = start()
    local.create()
    make_bucket(local, "kept")
    return local


def make_bucket(cloud: LocalLambda, name: str) -> None:
    where: Any = {"LocationConstraint": "eu-west-1"}
    cloud.client_of("s3").create_bucket(Bucket=name, CreateBucketConfiguration=where)


def send_to(cloud: LocalLambda, destination: str, **more: Any) -> dict[str, Any]:
    config: Any = {"OnFailure": {"Destination": destination}}
    answer: dict[str, Any] = cloud.client.put_function_event_invoke_config(
        FunctionName="echo", DestinationConfig=config, **more
    )
    return answer


def records(cloud: LocalLambda) -> dict[str, Any]:
    """What the bucket `kept` holds, by key."""
    s3 = cloud.client_of("s3")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="kept")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {key: json.loads(s3.get_object(Bucket="kept", Key=key)["Body"].read()) for key in keys}


def given_up(cloud: LocalLambda, request_id: str) -> bool:
    return states(cloud)[request_id][0] == "failed"


def test_after_the_last_attempt_the_event_is_an_object_of_the_destination(
    cloud: LocalLambda,
) -> None:
    send_to(cloud, "arn:aws:s3:::kept")
    request_id = enqueue(cloud, {"raise": "never", "é": 1})
    until(lambda: given_up(cloud, request_id))

    [(key, record)] = records(cloud).items()
    uuid = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    day, time = r"\d{4}/\d\d/\d\d", r"\d{4}-\d\d-\d\dT\d\d\.\d\d\.\d\d"
    assert re.fullmatch(f"aws/lambda/async/echo/{day}/{time}-{uuid}", key)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("timestamp"))
    assert record == {
        "version": "1.0",
        "requestContext": {
            "requestId": request_id,
            "functionArn": f"{ARN}:$LATEST",
            "condition": "RetriesExhausted",
            "approximateInvokeCount": 3,
        },
        "requestPayload": {"raise": "never", "é": 1},
        "responseContext": {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": "Unhandled",
        },
        "responsePayload": {"errorMessage": "never", "errorType": "ScriptFailed"},
    }


def test_an_event_that_waited_too_long_is_kept_without_an_answer(cloud: LocalLambda) -> None:
    send_to(cloud, "arn:aws:s3:::kept", MaximumEventAgeInSeconds=60)
    with cloud.store.write() as db:
        request_id = cloud.functions.enqueue(db, "echo", b'{"a": 1}')
        db.execute("UPDATE lambda_invocations SET accepted = accepted - 61")
    cloud.functions.wake()
    until(lambda: given_up(cloud, request_id))

    [record] = records(cloud).values()
    assert record["requestContext"]["condition"] == "EventAgeExceeded"
    assert record["requestContext"]["approximateInvokeCount"] == 0
    assert record["requestPayload"] == {"a": 1}
    assert not record.keys() & {"responseContext", "responsePayload"}


def test_what_succeeds_or_has_no_destination_is_not_kept(cloud: LocalLambda) -> None:
    request_id = enqueue(cloud, {"raise": "never"})
    until(lambda: given_up(cloud, request_id))
    send_to(cloud, "arn:aws:s3:::kept")
    request_id = enqueue(cloud, {})
    until(lambda: states(cloud)[request_id][0] == "succeeded")
    assert records(cloud) == {}


def test_a_record_is_an_object_like_any_other_and_causes_events(cloud: LocalLambda) -> None:
    cloud.create("reader")
    cloud.client.add_permission(
        FunctionName="reader", StatementId="s3", Action="lambda:InvokeFunction",
        Principal="s3.amazonaws.com",
    )  # fmt: skip
    entry: Any = {
        "LambdaFunctionArn": ARN.replace(":echo", ":reader"),
        "Events": ["s3:ObjectCreated:Put"],
    }
    cloud.client_of("s3").put_bucket_notification_configuration(
        Bucket="kept", NotificationConfiguration={"LambdaFunctionConfigurations": [entry]}
    )
    send_to(cloud, "arn:aws:s3:::kept", MaximumRetryAttempts=0)
    enqueue(cloud, {"raise": "never"})
    until(lambda: sorted(state for state, _ in states(cloud).values()) == ["failed", "succeeded"])
    assert len(records(cloud)) == 1


def test_a_destination_is_shown_changed_and_taken_away(cloud: LocalLambda) -> None:
    wanted = {"OnSuccess": {}, "OnFailure": {"Destination": "arn:aws:s3:::kept"}}
    assert send_to(cloud, "arn:aws:s3:::kept")["DestinationConfig"] == wanted
    update = cloud.client.update_function_event_invoke_config
    found = update(FunctionName="echo", MaximumRetryAttempts=1)
    assert (found["DestinationConfig"], found["MaximumRetryAttempts"]) == (wanted, 1)
    none: Any = {"OnFailure": {}}
    found = update(FunctionName="echo", DestinationConfig=none)
    assert found["DestinationConfig"] == {"OnSuccess": {}, "OnFailure": {}}
    assert found["MaximumRetryAttempts"] == 1


@pytest.mark.parametrize(
    ("side", "arn", "says"),
    [
        ("OnFailure", "arn:aws:sqs:eu-west-1:000000000000:q", "keeps what failed in an S3 bucket"),
        ("OnFailure", "arn:aws:s3:::kept/folder", "keeps what failed in an S3 bucket"),
        ("OnFailure", "arn:aws:s3:::nowhere", "does not exist"),
        ("OnSuccess", "arn:aws:s3:::kept", "never an S3 bucket"),
    ],
)
def test_other_destinations_are_refused(cloud: LocalLambda, side: str, arn: str, says: str) -> None:
    config: Any = {side: {"Destination": arn}}
    with pytest.raises(ClientError, match=says) as refused:
        cloud.client.put_function_event_invoke_config(FunctionName="echo", DestinationConfig=config)
    assert refused.value.response["Error"]["Code"] == "InvalidParameterValueException"


def test_a_destination_that_is_gone_holds_nothing_up(
    cloud: LocalLambda, caplog: pytest.LogCaptureFixture
) -> None:
    send_to(cloud, "arn:aws:s3:::kept", MaximumRetryAttempts=0)
    cloud.client_of("s3").delete_bucket(Bucket="kept")
    request_id = enqueue(cloud, {"raise": "never"})
    until(lambda: given_up(cloud, request_id))
    assert f"the failed event {request_id} of echo is lost" in caplog.text


KILLED = """
import pathlib, sys, time
from scar_local.functions import Settings
from tests.doubles.local_lambda import LocalLambda
from tests.integration.test_local_destinations import make_bucket, send_to

cloud = LocalLambda(pathlib.Path(sys.argv[1]), Settings(4))
cloud.create()
make_bucket(cloud, "kept")
send_to(cloud, "arn:aws:s3:::kept", MaximumRetryAttempts=0)
for n in range(30):
    cloud.client.invoke(FunctionName="echo", InvocationType="Event", Payload='{"raise": "never"}')
while cloud.functions.counts().get("invocations_failed", 0) < 10:
    time.sleep(0.001)
print("some have failed", flush=True)
time.sleep(60)
"""


def test_each_failed_event_is_kept_once_across_kill_9(
    start: Callable[[], LocalLambda], tmp_path: Path
) -> None:
    run_until_killed(KILLED, tmp_path, "some have failed")
    cloud = start()
    until(lambda: [state for state, _ in states(cloud).values()] == ["failed"] * 30)
    kept = [record["requestContext"]["requestId"] for record in records(cloud).values()]
    assert sorted(kept) == sorted(states(cloud))
