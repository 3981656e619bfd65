"""Which notifications match and overlap; what an event's record says."""

from __future__ import annotations

import pytest

from scar_local.events import CreatedObject, Notification, function_name, record_of


def a_notification(
    *events: str, prefix: str | None = None, suffix: str | None = None
) -> Notification:
    rules = tuple((n, v) for n, v in (("Prefix", prefix), ("suffix", suffix)) if v is not None)
    return Notification("id", "arn", events or ("s3:ObjectCreated:*",), rules)


@pytest.mark.parametrize(
    ("notification", "event", "key", "expected"),
    [
        (a_notification(), "ObjectCreated:Put", "k", True),
        (a_notification(), "ObjectRemoved:Delete", "k", False),
        (a_notification("s3:ObjectCreated:Put"), "ObjectCreated:Copy", "k", False),
        (a_notification("s3:ObjectCreated:Put", "s3:ObjectCreated:Copy"), "ObjectCreated:Copy",
         "k", True),
        (a_notification(prefix="in/"), "ObjectCreated:Put", "in/k", True),
        (a_notification(prefix="in/"), "ObjectCreated:Put", "In/k", False),
        (a_notification(prefix="a+b/"), "ObjectCreated:Put", "a b/k", True),
        (a_notification(prefix="a+b/"), "ObjectCreated:Put", "a+b/k", False),
        (a_notification(prefix="a%2Bb/"), "ObjectCreated:Put", "a+b/k", True),
        (a_notification(prefix="%C3%BC/"), "ObjectCreated:Put", "ü/k", True),
        (a_notification(suffix=".txt"), "ObjectCreated:Put", "k.txt", True),
        (a_notification(prefix="in/", suffix=".txt"), "ObjectCreated:Put", "in/k.jpg", False),
    ],
)  # fmt: skip
def test_a_notification_matches_event_prefix_and_suffix(
    notification: Notification, event: str, key: str, expected: bool
) -> None:
    assert notification.matches(event, key) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (a_notification(), a_notification(prefix="in/"), True),
        (a_notification(prefix="a/"), a_notification(prefix="b/"), False),
        (a_notification(prefix="a/", suffix=".x"), a_notification(prefix="a/", suffix=".y"), False),
        (a_notification(prefix="a/"), a_notification("s3:ObjectRemoved:*", prefix="a/"), False),
        (a_notification(prefix="a/"), a_notification("s3:ObjectCreated:Put", prefix="a/b"), True),
    ],
)
def test_notifications_overlap_when_one_event_could_match_both(
    one: Notification, other: Notification, expected: bool
) -> None:
    assert one.overlaps(other) is expected
    assert other.overlaps(one) is expected


def test_a_record_has_the_key_encoded_and_a_rising_sequencer() -> None:
    created = CreatedObject(
        "bucket", "a b/ü+%.txt", "ObjectCreated:Put", "eu-west-1", 5, "etag", "REQUEST",
        "127.0.0.1", 1700000000.25,
    )  # fmt: skip
    record = record_of(created, "mine", 10)
    assert record["s3"]["object"] == {
        "key": "a+b/%C3%BC%2B%25.txt",
        "size": 5,
        "eTag": "etag",
        "sequencer": "00000000000000000A",
    }
    assert record["eventTime"] == "2023-11-14T22:13:20.250Z"
    assert record["eventName"] == "ObjectCreated:Put"


def test_the_functions_name_is_in_its_arn() -> None:
    arn = "arn:aws:lambda:us-east-1:000000000000:function:f-1"
    assert function_name(arn) == function_name(arn + ":LATEST") == "f-1"
