"""CloudWatch Logs: log groups, and the events in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scar.aws.account import Account
from scar.aws.errors import is_absent, speaking_to
from scar.errors import CloudError
from scar.plan.resources import LogGroup

if TYPE_CHECKING:
    from types_boto3_logs.type_defs import LogGroupTypeDef


@dataclass(frozen=True)
class StoredEvent:
    """One event as CloudWatch keeps it. `id` is unique in its group."""

    timestamp_ms: int
    stream: str
    message: str
    id: str


class LogGroups:
    """Handler of `LogGroup`."""

    def __init__(self, account: Account) -> None:
        self._client = account.client("logs")

    def read(self, name: str) -> LogGroup | None:
        """The group as it is, or None."""
        group = self._find(name)
        if group is None:
            return None
        with speaking_to("logs"):
            tags = self._client.list_tags_for_resource(resourceArn=_arn(group))["tags"]
        return LogGroup(name, group.get("retentionInDays", 0), dict(tags))

    def create(self, wanted: LogGroup) -> None:
        """Create the group with its retention and tags."""
        with speaking_to("logs"):
            self._client.create_log_group(logGroupName=wanted.name, tags=wanted.tags)
            self._client.put_retention_policy(
                logGroupName=wanted.name, retentionInDays=wanted.retention_days
            )

    def update(self, wanted: LogGroup, found: LogGroup) -> None:
        """Change retention and tags; the events stay."""
        with speaking_to("logs"):
            self._client.put_retention_policy(
                logGroupName=wanted.name, retentionInDays=wanted.retention_days
            )
        group = self._find(wanted.name)
        if group is None or wanted.tags == found.tags:
            return
        with speaking_to("logs"):
            if gone := [key for key in found.tags if key not in wanted.tags]:
                self._client.untag_resource(resourceArn=_arn(group), tagKeys=gone)
            if wanted.tags:
                self._client.tag_resource(resourceArn=_arn(group), tags=wanted.tags)

    def delete(self, found: LogGroup) -> None:
        """Delete the group and all its events."""
        try:
            with speaking_to("logs"):
                self._client.delete_log_group(logGroupName=found.name)
        except CloudError as exc:
            if not is_absent(exc):
                raise

    def _find(self, name: str) -> LogGroupTypeDef | None:
        with speaking_to("logs"):
            pages = self._client.get_paginator("describe_log_groups").paginate(
                logGroupNamePrefix=name
            )
            for page in pages:
                for group in page["logGroups"]:
                    if group.get("logGroupName") == name:
                        return group
        return None


def events(
    account: Account,
    group: str,
    *,
    streams: Sequence[str] = (),
    pattern: str = "",
    since_ms: int = 0,
) -> Iterator[StoredEvent]:
    """Events of a group, oldest first; none where the group or a stream does not exist.

    `pattern` is a filter pattern of CloudWatch: a text in double quotes means events holding it.
    """
    asked: dict[str, Any] = {"logGroupName": group}
    if streams:
        asked["logStreamNames"] = list(streams)
    if pattern:
        asked["filterPattern"] = pattern
    if since_ms:
        asked["startTime"] = since_ms
    try:
        with speaking_to("logs"):
            pages = account.client("logs").get_paginator("filter_log_events").paginate(**asked)
            for page in pages:
                for event in page["events"]:
                    yield StoredEvent(
                        event["timestamp"],
                        event["logStreamName"],
                        event["message"],
                        event["eventId"],
                    )
    except CloudError as exc:
        if not is_absent(exc):
            raise


def tail(account: Account, group: str, stream: str, lines: int) -> str:
    """The last lines of a stream; empty where it does not exist."""
    try:
        with speaking_to("logs"):
            answer = account.client("logs").get_log_events(
                logGroupName=group, logStreamName=stream, limit=lines, startFromHead=False
            )
    except CloudError as exc:
        if not is_absent(exc):
            raise
        return ""
    return "\n".join(event.get("message", "").rstrip("\n") for event in answer["events"])


def exists(account: Account, group: str) -> bool:
    """Whether there is such a log group."""
    with speaking_to("logs"):
        answer = account.client("logs").describe_log_groups(logGroupNamePrefix=group)
    return any(found.get("logGroupName") == group for found in answer["logGroups"])


def _arn(group: LogGroupTypeDef) -> str:
    """The ARN that tagging takes: without the `:*` of `arn`."""
    return group["arn"].removesuffix(":*")
