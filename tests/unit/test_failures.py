"""What is read of records of failed events, whoever wrote them."""

import json

import pytest

from scar.failures import _of_lambda, exit_code_in, objects_of

LAMBDAS = {
    "version": "1.0",
    "timestamp": "2019-11-14T18:16:05.568Z",
    "requestContext": {
        "requestId": "e4b46cbf-b738-xmpl-8880-a18cdf61200e",
        "functionArn": "arn:aws:lambda:us-east-2:123456789012:function:my-function:$LATEST",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 3,
    },
    "requestPayload": {"ORDER_IDS": ["9e07af03"]},
    "responseContext": {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": "Unhandled",
    },
    "responsePayload": {"errorMessage": "RequestId: e4b46cbf Process exited before completing"},
}
"""The example of the Lambda developer guide (invocation-async-retain-records.html)."""


def test_the_record_of_lambdas_guide_is_read():
    found = _of_lambda("f", json.dumps(LAMBDAS))
    assert (found.run_id, found.time) == (
        "e4b46cbf-b738-xmpl-8880-a18cdf61200e",
        "2019-11-14T18:16:05Z",
    )
    assert (found.kind, found.attempts, found.exit_code) == ("invocation", 3, None)
    assert found.reason == "RequestId: e4b46cbf Process exited before completing"
    assert json.loads(found.event) == {"ORDER_IDS": ["9e07af03"]}


def test_what_a_supervisor_answered_is_taken_apart():
    said = {"errorType": "ScriptFailed", "errorMessage": "the script ended with exit code 7\n\noh"}
    found = _of_lambda("f", json.dumps({**LAMBDAS, "responsePayload": said}))
    assert (found.error_type, found.exit_code, found.log_tail) == ("ScriptFailed", 7, "oh")


def test_an_event_that_was_never_tried_has_its_condition_as_reason():
    context = {**LAMBDAS["requestContext"], "condition": "EventAgeExceeded"}
    record = {**LAMBDAS, "requestContext": context}
    del record["responsePayload"], record["responseContext"]
    assert _of_lambda("f", json.dumps(record)).reason == "EventAgeExceeded"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"requestContext": 1}', "not JSON"])
def test_what_is_no_record_is_said_to_be_none(text):
    with pytest.raises(ValueError, match=r"\S"):
        _of_lambda("f", text)


@pytest.mark.parametrize(
    ("event", "objects"),
    [
        (
            {"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": "a+b%2B"}}}]},
            ("b/a b+",),
        ),
        ({"Records": []}, ()),
        ({"Records": [{"Sns": {}}]}, ()),
        ({"Records": {"s3": 1}}, ()),
        ({}, ()),
        ("text", ()),
        ([1], ()),
        (None, ()),
    ],
)
def test_objects_are_those_of_storage_events(event, objects):
    assert objects_of(event) == objects


def test_exit_codes_are_read_of_what_supervisors_say():
    assert exit_code_in("the script ended with exit code 137") == 137
    assert exit_code_in("exit code 3 was before") is None
