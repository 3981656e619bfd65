"""Where functions are called over HTTP: the REST APIs of API Gateway that SCAR made for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scar.aws.account import Account
from scar.aws.errors import speaking_to
from scar.plan.resources import CREATED_BY, TAG_API, TAG_CREATED_BY, TAG_FUNCTION


@dataclass(frozen=True)
class Endpoint:
    """Where a function is called."""

    url: str
    http_method: str
    """ANY, or the only one that is answered."""


def endpoints(account: Account, tags: Mapping[str, Mapping[str, str]]) -> dict[str, Endpoint]:
    """Where functions are called, of those that have an API; `tags` of each function by name."""
    if not any(TAG_API in its for its in tags.values()):
        return {}
    ids = {api["tags"][TAG_FUNCTION]: api["id"] for api in reversed(list_apis(account))}
    return {
        name: _endpoint(account, ids[name], its[TAG_API])
        for name, its in tags.items()
        if TAG_API in its and name in ids
    }


def list_apis(account: Account) -> list[Mapping[str, Any]]:
    """The REST APIs that SCAR made for functions, as AWS tells of them."""
    with speaking_to("apigateway"):
        pages = account.client("apigateway").get_paginator("get_rest_apis").paginate()
        apis: list[Mapping[str, Any]] = [api for page in pages for api in page["items"]]
    return [api for api in apis if _is_ours(api.get("tags", {}))]


def _is_ours(tags: Mapping[str, str]) -> bool:
    return tags.get(TAG_CREATED_BY) == CREATED_BY and TAG_FUNCTION in tags


def _endpoint(account: Account, api_id: str, call: str) -> Endpoint:
    """`call` is what the function's tag says: `ANY scar/launch`."""
    method, _, path = call.partition(" ")
    if account.endpoint_url is not None:
        return Endpoint(f"{account.endpoint_url}/_aws/execute-api/{api_id}/{path}", method)
    suffix = "amazonaws.com.cn" if account.region.startswith("cn-") else "amazonaws.com"
    return Endpoint(f"https://{api_id}.execute-api.{account.region}.{suffix}/{path}", method)
