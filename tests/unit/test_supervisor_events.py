"""What arrived, as the supervisor understands it."""

import base64
import json
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scar_supervisor import events
from scar_supervisor.faults import EventFault
from tests.doubles.supervised import s3_event

names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


def parsed(data):
    return events.parse(json.dumps(data).encode())


@given(names)
def test_a_key_comes_back_as_it_was_before_s3_encoded_it(key):
    (item,) = parsed(s3_event(("b", key, 1))).objects
    assert item.key == key


def test_minio_records_are_storage_events_of_minio():
    (item,) = parsed(s3_event(("b", "k", 1), source="minio:s3")).objects
    assert item.provider == "minio"


def test_records_of_another_service_are_a_body_not_objects():
    event = parsed({"Records": [{"eventSource": "aws:sqs", "body": "x"}]})
    assert event.objects == ()
    assert json.loads(event.body)["Records"][0]["body"] == "x"


@pytest.mark.parametrize("data", [[1, 2], "text", 3, {"any": "thing"}, {"Records": []}])
def test_any_other_json_is_the_input_file(data):
    assert json.loads(parsed(data).body) == data


@pytest.mark.parametrize("data", [{}, {"script": ""}, {"cmd_args": '["ls"]'}])
def test_a_run_without_data_has_no_input_file(data):
    assert parsed(data).body is None


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 200_000])
def test_what_is_not_json_is_an_event_fault(raw):
    with pytest.raises(EventFault, match="not JSON"):
        events.parse(raw)


@pytest.mark.parametrize("arguments", ["[]", "{}", '[""', '["a\\u0000b"]', '["\\ud800"]', 5, None])
def test_arguments_that_no_program_could_get_are_event_faults(arguments):
    with pytest.raises(EventFault, match="cmd_args"):
        parsed({"cmd_args": arguments})


@pytest.mark.parametrize("key", ["", "\ud800", "%ff"])
def test_a_key_that_s3_cannot_have_is_an_event_fault(key):
    record = s3_event(("b", "k", 1))
    record["Records"][0]["s3"]["object"]["key"] = key
    with pytest.raises(EventFault, match="Records"):
        parsed(record)


@pytest.mark.parametrize(
    ("content_type", "body", "declared", "raw"),
    [
        ("application/json", "aGk=", False, b"aGk="),
        ("text/plain; charset=utf-8", "aGk=", False, b"aGk="),
        ("application/octet-stream", "aGk=", False, b"hi"),
        ("application/x-www-form-urlencoded", "aG\nk=", False, b"hi"),
        ("application/x-www-form-urlencoded", "a=b&c=d", False, b"a=b&c=d"),
        ("application/json", "e30=", True, b"{}"),
        (None, "é", False, "é".encode()),
    ],
)
def test_the_body_of_a_request_is_decoded_by_its_type(content_type, body, declared, raw):
    headers = {"Content-Type": content_type} if content_type else None
    event = parsed(
        {"httpMethod": "POST", "headers": headers, "body": body, "isBase64Encoded": declared}
    )
    assert event.body == raw
    assert event.body_name == "api_event_file"


def test_a_request_with_a_declared_body_that_is_no_base64_is_an_event_fault():
    with pytest.raises(EventFault, match="body"):
        parsed({"httpMethod": "POST", "body": "%%", "isBase64Encoded": True})


def test_a_request_never_brings_a_script_or_a_command():
    stolen = {"script": base64.b64encode(b"x").decode(), "cmd_args": '["x"]'}
    event = parsed({"requestContext": {"http": {}}, "body": json.dumps(stolen), **stolen})
    assert (event.script, event.arguments) == (None, ())


def test_a_folder_marker_is_known_by_its_slash_and_its_emptiness():
    objects = parsed(s3_event(("b", "d/", 0), ("b", "d/", 5), ("b", "d", 0))).objects
    assert [item.is_folder_marker for item in objects] == [True, False, False]


def test_plus_and_percent_are_decoded_once():
    record = s3_event(("b", "k", 1))
    record["Records"][0]["s3"]["object"]["key"] = quote_plus(quote_plus("a+b c"))
    assert parsed(record).objects[0].key == "a%2Bb+c"
