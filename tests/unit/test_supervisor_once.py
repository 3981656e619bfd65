"""What a claim lets begin, where S3 answers in ways that no test server does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scar_supervisor.aws import ServiceError
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.events import Event, InputObject
from scar_supervisor.log import Log
from scar_supervisor.once import Already, Mark, Once, Owner
from scar_supervisor.records import Lineage
from scar_supervisor.storage.s3 import Found
from scar_supervisor.transport import Reply

ITEM = InputObject("s3", "in", "a", 1, etag="e1", sequencer="01")
REFUSED = Reply(403, {}, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")


class Bucket:
    """A bucket whose absent keys are refused, as to a role that may not list it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.loses_answers = 0

    def write(
        self, bucket: str, key: str, data: bytes, condition: Mapping[str, str] | None = None
    ) -> str | None:
        wanted = dict(condition or {})
        if "If-None-Match" in wanted and key in self.objects:
            return None
        if "If-Match" in wanted and wanted["If-Match"] != _etag(self.objects.get(key)):
            return None
        self.objects[key] = data
        if self.loses_answers:  # written; the request is sent again and its condition fails
            self.loses_answers -= 1
            return None
        return _etag(data)

    def load(self, bucket: str, key: str) -> Found | None:
        if key not in self.objects:
            raise ServiceError(REFUSED)
        return Found(self.objects[key], _etag(self.objects[key]))


def _etag(data: bytes | None) -> str:
    return str(hash(data))


class Storages:
    def __init__(self) -> None:
        self.account = Bucket()


def once(storages: Any, name: str, until_ms: int = 2**50, *, forced: bool = False) -> Once:
    config, owner = FunctionConfig("f", deployment_bucket="kept"), Owner(name, False, until_ms)
    event = Event("{}", forced=forced)
    return Once(config, storages, Log("CRITICAL"), owner, event, lambda job: True)


def test_a_role_that_may_not_list_still_has_each_object_once() -> None:
    storages = Storages()
    assert isinstance(once(storages, "one").begin(ITEM), Mark)
    assert isinstance(once(storages, "two").begin(ITEM), Already)
    again = once(storages, "one").begin(ITEM)
    assert isinstance(again, Mark)
    assert again.claim.attempts == 2


def test_a_claim_whose_answer_was_lost_is_ours_and_no_second_attempt() -> None:
    storages = Storages()
    storages.account.loses_answers = 1
    mark = once(storages, "one").begin(ITEM)
    assert isinstance(mark, Mark)
    assert mark.claim.attempts == 1
    storages.account.loses_answers = 1
    taken = once(storages, "one").begin(ITEM)
    assert isinstance(taken, Mark)
    assert taken.claim.attempts == 2


def test_a_claim_whose_time_is_over_is_taken_over() -> None:
    storages = Storages()
    assert isinstance(once(storages, "one", until_ms=1).begin(ITEM), Mark)
    mark = once(storages, "two").begin(ITEM)
    assert isinstance(mark, Mark)
    assert mark.is_repeated


def test_attempts_of_a_forced_run_are_counted_though_the_work_was_done_before() -> None:
    storages = Storages()
    first = once(storages, "one")
    mark = first.begin(ITEM)
    assert isinstance(mark, Mark)
    first.done(mark, Lineage("f", "v", "invocation:one", 1), ())
    for attempt in (1, 2, 3):
        mark = once(storages, "two", forced=True).begin(ITEM)
        assert isinstance(mark, Mark)
        assert mark.claim.attempts == attempt


def test_a_claim_that_cannot_be_read_is_replaced() -> None:
    storages = Storages()
    once(storages, "one").begin(ITEM)
    [key] = storages.account.objects
    storages.account.objects[key] = b"not a claim"
    assert isinstance(once(storages, "two").begin(ITEM), Mark)
