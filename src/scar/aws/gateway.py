"""API Gateway: the REST API of a function.

Creating and deleting APIs is slow on purpose (one CreateRestApi in 3 s, one DeleteRestApi in 30 s
an account, API Gateway quotas): what AWS puts off is tried again.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scar.aws.account import Account
from scar.aws.endpoints import Endpoint, endpoints, list_apis
from scar.aws.errors import is_absent, speaking_to
from scar.aws.functions import not_deployed, policy
from scar.aws.waiting import retrying
from scar.errors import CloudError, UserError
from scar.plan.resources import TAG_API, TAG_FUNCTION, RestApi

DESCRIPTION = "API created automatically with SCAR"
STATEMENT_ID = "scar-apigateway"
PUT_OFF_LIMIT_S = 180
"""How long a change that AWS puts off is tried again."""

_HEADER = "request.header.X-Amz-Invocation-Type"


class RestApis:
    """Handler of `RestApi`: the API, what is in it, its stage, and the function's permission.

    An API belongs to the function that its tag names. Nobody is asked for APIs where the function
    shows no sign of one: not every user may see them.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._lock = threading.Lock()
        self._listed: list[Mapping[str, Any]] | None = None

    def read(self, name: str) -> RestApi | None:
        """The function's API as it is, or None."""
        source = self._permitted(name)
        if not source and TAG_API not in (_tags_of(self._account, name) or {}):
            return None
        api = self._find(name)
        if api is None:
            return None
        found = self._content(api["id"])
        stages = self._stages(api["id"])
        stage, deployed = next(
            ((one, what) for one, what in stages.items() if what == _digest(found)),
            next(iter(stages.items()), ("", "")),
        )
        method, uri = found.method, found.uri
        return RestApi(
            name=name,
            api_name=api["name"],
            function_arn=_function_arn(uri),
            stage=stage,
            http_method=method,
            path_part=found.path_part,
            tags=dict(api.get("tags", {})),
            is_ready=bool(uri)
            and source == _source(_function_arn(uri), api["id"])
            and deployed == _digest(found)
            and len(stages) == 1,
        )

    def create(self, wanted: RestApi) -> None:
        """Create and deploy the API; returns when it may invoke the function."""

        def create() -> None:
            with speaking_to("apigateway"):
                api = self._client.create_rest_api(
                    name=wanted.api_name,
                    description=DESCRIPTION,
                    endpointConfiguration={"types": ["REGIONAL"]},
                    tags=wanted.tags,
                )
            ids.append(api["id"])

        ids: list[str] = []
        _patiently(create)
        self._forget()
        self._fill(ids[0], wanted)

    def update(self, wanted: RestApi, found: RestApi) -> None:
        """Change name and tags in place; anything else is made anew within the API."""
        api = self._find(wanted.name)
        if api is None:
            return self.create(wanted)
        api_id = api["id"]
        if wanted.api_name != found.api_name:
            rename: Any = {"op": "replace", "path": "/name", "value": wanted.api_name}
            _patiently(
                lambda: self._client.update_rest_api(restApiId=api_id, patchOperations=[rename])
            )
        if wanted.tags != found.tags:
            self._tag(api_id, wanted, found)
        if _essence(wanted) != _essence(found):
            self._fill(api_id, wanted)
        self._forget()
        return None

    def delete(self, found: RestApi) -> None:
        """Delete the API, then the function's permission for it."""
        while (api := self._find(found.name)) is not None:
            api_id = api["id"]
            try:
                _patiently(lambda: self._client.delete_rest_api(restApiId=api_id))  # noqa: B023
            except CloudError as exc:
                if not is_absent(exc):
                    raise
            self._forget()
        self._forbid(found.name)

    @property
    def _client(self) -> Any:
        return self._account.client("apigateway")

    def _find(self, function: str) -> Mapping[str, Any] | None:
        with self._lock:
            if self._listed is None:
                self._listed = list_apis(self._account)
            apis = self._listed
        return next((api for api in apis if api["tags"][TAG_FUNCTION] == function), None)

    def _forget(self) -> None:
        with self._lock:
            self._listed = None

    def _content(self, api_id: str) -> _Content:
        """The first resource with a method; an empty content where none has one."""
        for resource in self._resources(api_id):
            for name, method in resource.get("resourceMethods", {}).items():
                uri = method.get("methodIntegration", {}).get("uri", "")
                return _Content(resource.get("pathPart", ""), name, uri)
        return _Content("", "", "")

    def _resources(self, api_id: str) -> list[Mapping[str, Any]]:
        with speaking_to("apigateway"):
            pages = self._client.get_paginator("get_resources").paginate(
                restApiId=api_id, embed=["methods"]
            )
            return [resource for page in pages for resource in page["items"]]

    def _stages(self, api_id: str) -> dict[str, str]:
        """The description of what each stage has."""
        with speaking_to("apigateway"):
            stages = self._client.get_stages(restApiId=api_id)["item"]
            return {
                stage["stageName"]: self._client.get_deployment(
                    restApiId=api_id, deploymentId=stage["deploymentId"]
                ).get("description", "")
                for stage in stages
            }

    def _fill(self, api_id: str, wanted: RestApi) -> None:
        """Make resource, method, integration, permission and stage anew."""
        old = self._resources(api_id)
        root = next(resource["id"] for resource in old if resource["path"] == "/")
        for resource in old:
            if resource.get("parentId") == root:
                self._remove_resource(api_id, resource["id"])
        content = _Content(wanted.path_part, wanted.http_method, self._uri(wanted.function_arn))
        self._add_resource(api_id, root, content)
        self._permit(wanted, api_id)
        _patiently(
            lambda: self._client.create_deployment(
                restApiId=api_id, stageName=wanted.stage, description=_digest(content)
            )
        )
        for stage in self._stages(api_id):
            if stage != wanted.stage:
                self._remove_stage(api_id, stage)

    def _add_resource(self, api_id: str, parent: str, content: _Content) -> None:
        made: list[str] = []

        def create() -> None:
            with speaking_to("apigateway"):
                resource = self._client.create_resource(
                    restApiId=api_id, parentId=parent, pathPart=content.path_part
                )
            made.append(resource["id"])

        _patiently(create)
        at = {"restApiId": api_id, "resourceId": made[0], "httpMethod": content.method}
        _patiently(
            lambda: self._client.put_method(
                **at,
                authorizationType="NONE",
                requestParameters={f"method.{_HEADER}": False},
            )
        )
        _patiently(
            lambda: self._client.put_integration(
                **at,
                type="AWS_PROXY",
                integrationHttpMethod="POST",
                uri=content.uri,
                requestParameters={f"integration.{_HEADER}": f"method.{_HEADER}"},
            )
        )

    def _remove_resource(self, api_id: str, resource_id: str) -> None:
        _patiently(lambda: self._client.delete_resource(restApiId=api_id, resourceId=resource_id))

    def _remove_stage(self, api_id: str, stage: str) -> None:
        _patiently(lambda: self._client.delete_stage(restApiId=api_id, stageName=stage))

    def _uri(self, function_arn: str) -> str:
        partition = function_arn.split(":")[1]
        return (
            f"arn:{partition}:apigateway:{self._account.region}:lambda:path/2015-03-31/functions/"
            f"{function_arn}/invocations"
        )

    def _tag(self, api_id: str, wanted: RestApi, found: RestApi) -> None:
        partition = wanted.function_arn.split(":")[1]
        arn = f"arn:{partition}:apigateway:{self._account.region}::/restapis/{api_id}"
        if gone := [key for key in found.tags if key not in wanted.tags]:
            _patiently(lambda: self._client.untag_resource(resourceArn=arn, tagKeys=gone))
        _patiently(lambda: self._client.tag_resource(resourceArn=arn, tags=wanted.tags))

    def _permitted(self, function: str) -> str:
        """The source that our statement lets in; empty where there is no such statement."""
        for statement in policy(self._account.client("lambda"), function):
            if statement.get("Sid") == STATEMENT_ID:
                condition = statement.get("Condition", {})
                return str(condition.get("ArnLike", {}).get("AWS:SourceArn", "*"))
        return ""

    def _permit(self, wanted: RestApi, api_id: str) -> None:
        source = _source(wanted.function_arn, api_id)
        if self._permitted(wanted.name) == source:
            return
        self._forbid(wanted.name)
        with speaking_to("lambda"):
            self._account.client("lambda").add_permission(
                FunctionName=wanted.name,
                StatementId=STATEMENT_ID,
                Action="lambda:InvokeFunction",
                Principal="apigateway.amazonaws.com",
                SourceArn=source,
            )

    def _forbid(self, function: str) -> None:
        try:
            with speaking_to("lambda"):
                self._account.client("lambda").remove_permission(
                    FunctionName=function, StatementId=STATEMENT_ID
                )
        except CloudError as exc:
            if not is_absent(exc):
                raise


@dataclass(frozen=True)
class _Content:
    path_part: str
    method: str
    uri: str


def endpoint_of(account: Account, function: str) -> Endpoint:
    """Where a function is called.

    Raises NotDeployed where it does not exist, UserError where it has no API.
    """
    tags = _tags_of(account, function)
    if tags is None:
        raise not_deployed(account, function)
    found = endpoints(account, {function: tags})
    if function not in found:
        raise UserError(
            f"function `{function}` has no HTTP endpoint",
            "add `api_gateway: {name: …}` to it (or `--api-gateway-name`) and run `scar init`",
        )
    return found[function]


def _tags_of(account: Account, function: str) -> Mapping[str, str] | None:
    """The tags of a function, or None where there is no such function."""
    try:
        with speaking_to("lambda"):
            answer = account.client("lambda").get_function(FunctionName=function)
    except CloudError as exc:
        if is_absent(exc):
            return None
        raise
    return answer.get("Tags", {})


def _function_arn(uri: str) -> str:
    match = re.search(r"/functions/(arn:.+)/invocations$", uri)
    return match[1] if match else ""


def _source(function_arn: str, api_id: str) -> str:
    """What may invoke the function: every stage, method and path of the one API."""
    _, partition, _, region, account, *_ = [*function_arn.split(":"), "", "", "", ""]
    return f"arn:{partition}:execute-api:{region}:{account}:{api_id}/*"


def _digest(content: _Content) -> str:
    """How a deployment of this content is described; deployments cannot be read back."""
    parts: Iterable[str] = (content.path_part, content.method, content.uri)
    return f"scar {hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"


def _essence(api: RestApi) -> tuple[object, ...]:
    """What cannot be changed in place."""
    return (api.function_arn, api.stage, api.http_method, api.path_part, api.is_ready)


def _patiently(call: Callable[[], object]) -> None:
    """Make a call, again where AWS says that there were too many."""

    def once() -> None:
        with speaking_to("apigateway"):
            call()

    retrying(once, lambda error: error.code == "TooManyRequestsException", PUT_OFF_LIMIT_S)
