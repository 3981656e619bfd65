"""CloudWatch Logs through real boto3 clients and a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from scar_local.door import Control, Door
from scar_local.http import Exchange, Server
from scar_local.logs import DAY_MS, Logs, pattern
from scar_local.protocol import ApiError
from scar_local.store import Store

NOW = 1_790_000_000_000


class Nobody:
    def handle(self, exchange: Exchange, region: str = "") -> None:
        raise AssertionError("not for this service")


class Cloud:
    """Logs behind a door, with a clock that tests turn."""

    def __init__(self, directory: Path) -> None:
        self.now_ms = NOW
        self.logs = Logs(Store(directory), lambda: self.now_ms / 1000)
        nobody = Nobody()
        door = Door({"logs": self.logs}, nobody, nobody, nobody, Control(dict, lambda: None))
        self.server = Server(0, door.answer)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def client(self) -> Any:
        return boto3.client(
            "logs",
            region_name="eu-west-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            endpoint_url=f"http://127.0.0.1:{self.server.server_port}",
        )


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.server.shutdown()
    cloud.server.server_close()


@pytest.fixture
def client(cloud: Cloud) -> Any:
    return cloud.client()


def messages(events: list[dict[str, Any]]) -> list[str]:
    return [event["message"] for event in events]


def test_groups_are_created_listed_tagged_and_deleted(client: Any) -> None:
    for name in ("/aws/lambda/b", "/aws/lambda/a", "/aws/batch/a"):
        client.create_log_group(logGroupName=name, tags={"owner": "me"})
    with pytest.raises(client.exceptions.ResourceAlreadyExistsException):
        client.create_log_group(logGroupName="/aws/lambda/a")
    client.put_retention_policy(logGroupName="/aws/lambda/a", retentionInDays=30)
    groups = client.describe_log_groups(logGroupNamePrefix="/aws/lambda/")["logGroups"]
    assert [(g["logGroupName"], g.get("retentionInDays")) for g in groups] == [
        ("/aws/lambda/a", 30),
        ("/aws/lambda/b", None),
    ]
    arn = "arn:aws:logs:eu-west-1:000000000000:log-group:/aws/lambda/a"
    assert (groups[0]["arn"], groups[0]["logGroupArn"]) == (f"{arn}:*", arn)
    client.tag_resource(resourceArn=arn, tags={"x": "1"})
    client.untag_resource(resourceArn=arn, tagKeys=["owner"])
    assert client.list_tags_for_resource(resourceArn=arn)["tags"] == {"x": "1"}
    client.tag_log_group(logGroupName="/aws/lambda/a", tags={"y": "2"})
    assert client.list_tags_log_group(logGroupName="/aws/lambda/a")["tags"] == {"x": "1", "y": "2"}
    client.delete_retention_policy(logGroupName="/aws/lambda/a")
    client.delete_log_group(logGroupName="/aws/lambda/a")
    left = client.get_paginator("describe_log_groups").paginate(PaginationConfig={"PageSize": 1})
    names = [g["logGroupName"] for page in left for g in page["logGroups"]]
    assert names == ["/aws/batch/a", "/aws/lambda/b"]
    assert client.describe_log_groups(logGroupNamePattern="lambda")["logGroups"][0]["arn"]


@pytest.mark.parametrize(
    ("operation", "params", "code"),
    [
        ("delete_log_group", {"logGroupName": "no"}, "ResourceNotFound"),
        ("create_log_stream", {"logGroupName": "no", "logStreamName": "s"}, "ResourceNotFound"),
        ("create_log_stream", {"logGroupName": "g", "logStreamName": "a:b"}, "InvalidParameter"),
        ("create_log_group", {"logGroupName": "a b"}, "InvalidParameter"),
        ("put_retention_policy", {"logGroupName": "g", "retentionInDays": 2}, "InvalidParameter"),
        ("get_log_events", {"logGroupName": "g", "logStreamName": "no"}, "ResourceNotFound"),
        ("filter_log_events", {"logGroupName": "g", "logStreamNames": ["no"]}, "ResourceNotFound"),
        (
            "filter_log_events",
            {"logGroupName": "g", "filterPattern": "{ $.a = 1 }"},
            "InvalidParameter",
        ),
        ("filter_log_events", {"logGroupName": "g", "nextToken": "x"}, "InvalidParameter"),
        ("filter_log_events", {}, "InvalidParameter"),
    ],
)
def test_wrong_requests_are_refused_as_aws_does(
    client: Any, operation: str, params: dict[str, Any], code: str
) -> None:
    client.create_log_group(logGroupName="g")
    with pytest.raises(ClientError) as caught:
        getattr(client, operation)(**params)
    assert caught.value.response["Error"]["Code"] == f"{code}Exception"


def test_a_stream_is_read_from_its_head_and_from_its_tail(cloud: Cloud, client: Any) -> None:
    for second in range(5):
        cloud.logs.append("g", "s", [f"{second}a", f"{second}b"], NOW + second * 1000)
    ask = {"logGroupName": "g", "logStreamName": "s"}
    first = client.get_log_events(**ask, limit=3, startFromHead=True)
    assert messages(first["events"]) == ["0a", "0b", "1a"]
    second = client.get_log_events(**ask, limit=3, nextToken=first["nextForwardToken"])
    assert messages(second["events"]) == ["1b", "2a", "2b"]
    back = client.get_log_events(**ask, limit=3, nextToken=second["nextBackwardToken"])
    assert messages(back["events"]) == ["0a", "0b", "1a"]
    tail = client.get_log_events(**ask, limit=2)
    assert messages(tail["events"]) == ["4a", "4b"]
    end = client.get_log_events(**ask, nextToken=tail["nextForwardToken"])
    assert (end["events"], end["nextForwardToken"]) == ([], tail["nextForwardToken"])
    again = client.get_log_events(**ask, limit=1, nextToken=end["nextBackwardToken"])
    assert messages(again["events"]) == ["4b"]
    cloud.logs.append("g", "s", ["5"], NOW + 5000)
    assert messages(client.get_log_events(**ask, nextToken=end["nextForwardToken"])["events"]) == [
        "5"
    ]
    span = client.get_log_events(**ask, startTime=NOW + 1000, endTime=NOW + 2000)
    assert messages(span["events"]) == ["1a", "1b"]


def test_following_an_empty_stream_meets_its_first_event(cloud: Cloud, client: Any) -> None:
    cloud.logs.ensure_stream("g", "s")
    ask = {"logGroupName": "g", "logStreamName": "s", "startFromHead": True}
    token = client.get_log_events(**ask)["nextForwardToken"]
    assert client.get_log_events(**ask, nextToken=token)["nextForwardToken"] == token
    cloud.logs.append("g", "s", ["hello"])
    assert messages(client.get_log_events(**ask, nextToken=token)["events"]) == ["hello"]


def test_a_page_holds_a_megabyte_and_the_next_goes_on(cloud: Cloud, client: Any) -> None:
    cloud.logs.append("g", "s", [str(n) * 300_000 for n in range(5)], NOW)
    ask = {"logGroupName": "g", "logStreamName": "s"}
    page = client.get_log_events(**ask)
    assert [m[0] for m in messages(page["events"])] == ["2", "3", "4"]
    page = client.get_log_events(**ask, nextToken=page["nextBackwardToken"])
    assert [m[0] for m in messages(page["events"])] == ["0", "1"]
    pages = client.get_paginator("filter_log_events").paginate(logGroupName="g")
    assert [len(p["events"]) for p in pages] == [3, 2]


def test_filtering_interleaves_streams_by_time(cloud: Cloud, client: Any) -> None:
    cloud.logs.append("g", "b/1", ["b first", "b ERROR"], NOW)
    cloud.logs.append("g", "a/1", ["a first"], NOW - 5)
    cloud.logs.append("g", "a/2", ["a last ERROR"], NOW + 5)
    cloud.logs.append("other", "a/1", ["not here"], NOW)
    ask: dict[str, Any] = {"logGroupName": "g"}
    every = client.filter_log_events(**ask)["events"]
    assert messages(every) == ["a first", "b first", "b ERROR", "a last ERROR"]
    assert [e["logStreamName"] for e in every] == ["a/1", "b/1", "b/1", "a/2"]
    assert len({e["eventId"] for e in every}) == 4

    def found(**more: Any) -> list[str]:
        return messages(client.filter_log_events(**ask, **more)["events"])

    assert found(filterPattern="ERROR") == ["b ERROR", "a last ERROR"]
    assert found(logStreamNamePrefix="a/") == ["a first", "a last ERROR"]
    assert found(logStreamNames=["b/1", "a/2"], filterPattern="-first") == [
        "b ERROR",
        "a last ERROR",
    ]
    assert found(startTime=NOW, endTime=NOW + 5) == ["b first", "b ERROR", "a last ERROR"]
    assert found(startFromHead=False) == messages(every)[::-1]
    for forward in (True, False):
        pages = client.get_paginator("filter_log_events").paginate(
            **ask, startFromHead=forward, filterPattern="ERROR", PaginationConfig={"PageSize": 1}
        )
        texts = [m for page in pages for m in messages(page["events"])]
        assert texts == ["b ERROR", "a last ERROR"][:: 1 if forward else -1]


def test_put_log_events_refuses_by_index_what_is_out_of_time(cloud: Cloud, client: Any) -> None:
    client.create_log_group(logGroupName="g")
    client.create_log_stream(logGroupName="g", logStreamName="s")
    events = [
        {"timestamp": NOW - 15 * DAY_MS, "message": "old"},
        {"timestamp": NOW, "message": "ü now"},
        {"timestamp": NOW + DAY_MS, "message": "new"},
    ]
    ask = {"logGroupName": "g", "logStreamName": "s"}
    answer = client.put_log_events(**ask, logEvents=events)
    assert answer["rejectedLogEventsInfo"] == {
        "tooOldLogEventEndIndex": 1,
        "tooNewLogEventStartIndex": 2,
    }
    assert messages(client.get_log_events(**ask)["events"]) == ["ü now"]
    stream = client.describe_log_streams(logGroupName="g")["logStreams"][0]
    assert (stream["firstEventTimestamp"], stream["lastIngestionTime"]) == (NOW, NOW)
    assert client.describe_log_groups()["logGroups"][0]["storedBytes"] == 6
    with pytest.raises(client.exceptions.InvalidParameterException, match="chronological"):
        client.put_log_events(**ask, logEvents=events[::-1])


def test_events_older_than_the_retention_are_hidden_and_swept(cloud: Cloud, client: Any) -> None:
    cloud.logs.append("g", "s", ["old"], NOW - 2 * DAY_MS)
    cloud.logs.append("g", "s", ["young"], NOW)
    client.put_retention_policy(logGroupName="g", retentionInDays=3)
    assert messages(client.filter_log_events(logGroupName="g")["events"]) == ["old", "young"]
    cloud.now_ms += 2 * DAY_MS
    assert messages(client.filter_log_events(logGroupName="g")["events"]) == ["young"]
    tail = client.get_log_events(logGroupName="g", logStreamName="s")
    assert messages(tail["events"]) == ["young"]
    assert (cloud.logs.sweep(), cloud.logs.sweep()) == (1, 0)
    assert client.describe_log_groups()["logGroups"][0]["storedBytes"] == len("young")


def test_streams_are_listed_by_name_and_by_their_last_event(cloud: Cloud, client: Any) -> None:
    for number, name in enumerate(["c", "a", "b"]):
        cloud.logs.append("g", name, ["x"], NOW + number)
    cloud.logs.ensure_stream("g", "empty")
    pages = client.get_paginator("describe_log_streams")

    def names(**more: Any) -> list[str]:
        asked = pages.paginate(logGroupName="g", PaginationConfig={"PageSize": 2}, **more)
        return [s["logStreamName"] for page in asked for s in page["logStreams"]]

    assert names() == ["a", "b", "c", "empty"]
    assert names(descending=True) == ["empty", "c", "b", "a"]
    assert names(orderBy="LastEventTime", descending=True) == ["b", "a", "c", "empty"]
    assert names(orderBy="LastEventTime") == ["empty", "c", "a", "b"]
    assert names(logStreamNamePrefix="e") == ["empty"]
    client.delete_log_stream(logGroupName="g", logStreamName="a")
    assert messages(client.filter_log_events(logGroupName="g")["events"]) == ["x", "x"]


def test_what_was_logged_is_there_after_a_restart(tmp_path: Path) -> None:
    Logs(Store(tmp_path)).append("g", "s", ["kept", "broken \udcff bytes"])
    cloud = Cloud(tmp_path)
    events = cloud.client().filter_log_events(logGroupName="g")["events"]
    assert messages(events) == ["kept", "broken ? bytes"]
    assert [arn for arn, _ in cloud.logs.tagged()] == [
        "arn:aws:logs:us-east-1:000000000000:log-group:g"
    ]
    cloud.server.shutdown()
    cloud.server.server_close()


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("", ["", "anything"], []),
        ("ERROR", ["an ERROR here"], ["error"]),
        ("ERROR exit", ["exit with ERROR"], ["ERROR"]),
        ("?ERROR ?WARN", ["ERROR", "WARN"], ["fine"]),
        ('"exit code" -0', ["exit code 7"], ["exit code 0", "code exit 7"]),
        ('"1234-ab\\"c"', ['id 1234-ab"c'], ["1234"]),
    ],
)
def test_filter_patterns_of_plain_terms(text: str, yes: list[str], no: list[str]) -> None:
    matches = pattern(text)
    assert all(matches(message) for message in yes)
    assert not any(matches(message) for message in no)


@pytest.mark.parametrize("text", ["[a, b]", "{ $.x = 1 }", "%re%", "a-b", "?a b", '"open'])
def test_patterns_that_are_not_there_are_refused_clearly(text: str) -> None:
    with pytest.raises(ApiError, match="filterPattern"):
        pattern(text)
