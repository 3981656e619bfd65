"""Who asks, and what is tagged: STS and the Resource Groups Tagging API."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from scar_local.protocol import ACCOUNT_ID, ApiError, Request

USER_ID = "AIDALOCALUSER0000000"
USER_ARN = f"arn:aws:iam::{ACCOUNT_ID}:user/local"


class Sts:
    """Everybody is the one local user; credentials are handed out but never checked."""

    def get_caller_identity(self, request: Request) -> dict[str, Any]:
        """GetCallerIdentity."""
        return {"Account": ACCOUNT_ID, "UserId": USER_ID, "Arn": USER_ARN}

    def assume_role(self, request: Request) -> dict[str, Any]:
        """AssumeRole: any role of any name, as the local cloud enforces no IAM."""
        params = request.params
        session, role_arn = params["RoleSessionName"], params["RoleArn"]
        role = role_arn.rpartition("/")[2]
        role_id = "AROA" + secrets.token_hex(8).upper()
        lifetime = timedelta(seconds=params.get("DurationSeconds", 3600))
        return {
            "Credentials": {
                "AccessKeyId": "ASIA" + secrets.token_hex(8).upper(),
                "SecretAccessKey": secrets.token_hex(20),
                "SessionToken": secrets.token_urlsafe(64),
                "Expiration": datetime.now(UTC) + lifetime,
            },
            "AssumedRoleUser": {
                "AssumedRoleId": f"{role_id}:{session}",
                "Arn": f"arn:aws:sts::{ACCOUNT_ID}:assumed-role/{role}/{session}",
            },
        }


class Tagged(Protocol):
    """A service whose resources carry tags."""

    def tagged(self) -> Iterable[tuple[str, dict[str, str]]]:
        """ARN and tags of every resource, also of those without tags."""


class Tagging:
    """Finds resources of all own services by their tags."""

    def __init__(self, services: Sequence[Tagged]) -> None:
        self._services = services

    def get_resources(self, request: Request) -> dict[str, Any]:
        """GetResources, sorted by ARN; untagged resources are left out.

        AWS also shows resources that lost all their tags; here these are as if never tagged.
        """
        params = request.params
        _check(params)
        arns = set(params.get("ResourceARNList", ()))
        kinds = params.get("ResourceTypeFilters", ())
        filters = params.get("TagFilters", ())
        found = sorted(
            (arn, tags)
            for arn, tags in self._all()
            if (not arns or arn in arns)
            and (not kinds or any(_is_kind(arn, kind) for kind in kinds))
            and all(_has(tags, wanted) for wanted in filters)
        )
        start = params.get("PaginationToken", "")
        size = params.get("ResourcesPerPage", 100)
        rest = [(arn, tags) for arn, tags in found if arn > start]
        page = rest[:size]
        return {
            "ResourceTagMappingList": [
                {
                    "ResourceARN": arn,
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                }
                for arn, tags in page
            ],
            "PaginationToken": page[-1][0] if len(rest) > size else "",
        }

    def get_tag_keys(self, request: Request) -> dict[str, Any]:
        """GetTagKeys."""
        keys = sorted({key for _, tags in self._all() for key in tags})
        return {"TagKeys": keys, "PaginationToken": ""}

    def get_tag_values(self, request: Request) -> dict[str, Any]:
        """GetTagValues of one key."""
        key = request.params["Key"]
        values = sorted({tags[key] for _, tags in self._all() if key in tags})
        return {"TagValues": values, "PaginationToken": ""}

    def _all(self) -> Iterable[tuple[str, dict[str, str]]]:
        pairs = (pair for service in self._services for pair in service.tagged())
        return ((arn, tags) for arn, tags in pairs if tags)


def _check(params: Mapping[str, Any]) -> None:
    if "ResourceARNList" in params and params.keys() - {"ResourceARNList"}:
        raise _invalid("ResourceARNList cannot be combined with filters or pagination")
    if "TagsPerPage" in params:
        raise _invalid("TagsPerPage is not in the local cloud; use ResourcesPerPage")
    if not 1 <= params.get("ResourcesPerPage", 100) <= 100:
        raise _invalid("ResourcesPerPage must be between 1 and 100")


def _invalid(text: str) -> ApiError:
    return ApiError("InvalidParameterException", text)


def _is_kind(arn: str, kind: str) -> bool:
    """Whether `lambda` or `lambda:function` fits an ARN such as `arn:aws:lambda:r:a:function:n`."""
    _, _, service, _, _, resource = arn.split(":", 5)
    wanted, _, wanted_type = kind.partition(":")
    found_type = resource.lstrip("/").replace("/", ":").partition(":")[0]
    return wanted == service and wanted_type in ("", found_type)


def _has(tags: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    value = tags.get(wanted["Key"])
    return value is not None and (not wanted.get("Values") or value in wanted["Values"])
