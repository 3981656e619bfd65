"""API Gateway: REST APIs whose methods are proxied to Lambda functions.

What clients call is `gateway_endpoint`. As on AWS, calls see the deployment of their stage: a
change shows after the next CreateDeployment.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from scar_local.gateway_proxy import Place
from scar_local.protocol import ACCOUNT_ID, ApiError, Request
from scar_local.store import Store

LIMIT_MS = 29_000
"""Longest `timeoutInMillis` of an integration (REST API quotas)."""

_PAGE = 25
"""Items of a page where no `limit` is given (GetRestApis, GetResources, GetDeployments)."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS gateway_apis (
    id TEXT PRIMARY KEY,
    created REAL NOT NULL,
    record TEXT NOT NULL
);
"""
_METHODS = frozenset(["ANY", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"])
_PART = re.compile(r"[a-zA-Z0-9._\-:]+|\{[a-zA-Z0-9._\-:]+\+?\}")
_STAGE = re.compile(r"[A-Za-z0-9_-]{1,128}")
_FUNCTION = re.compile(
    r"arn:aws[a-z-]*:apigateway:[a-z0-9-]+:lambda:path/2015-03-31/functions/"
    r"(arn:aws[a-z-]*:lambda:[a-z0-9-]+:\d{12}:function:[A-Za-z0-9_-]+(?::[A-Za-z0-9_$-]+)?)"
    r"/invocations"
)
_API_REFUSED = (
    *("cloneFrom", "policy", "minimumCompressionSize", "disableExecuteApiEndpoint"),
    *("securityPolicy", "endpointAccessMode"),
)
_METHOD_REFUSED = (
    *("authorizerId", "apiKeyRequired", "requestValidatorId", "requestModels"),
    "authorizationScopes",
)
_INTEGRATION_REFUSED = (
    *("connectionId", "requestTemplates", "cacheKeyParameters", "contentHandling", "tlsConfig"),
    "integrationTarget",
)
_STAGE_REFUSED = (
    *("cacheClusterEnabled", "cacheClusterSize", "canarySettings", "tracingEnabled"),
    "documentationVersion",
)

_Record = dict[str, Any]
"""One API: `api` as it is shown, its `region`, `resources`, `deployments` (each with a snapshot of
what it deploys) and `stages`."""


@dataclass(frozen=True)
class Deployed:
    """What a stage serves."""

    place: Place
    resources: tuple[Mapping[str, Any], ...]


class Gateway:
    """The service `apigateway`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.install(_SCHEMA)

    def deployed(self, api_id: str, stage: str) -> Deployed | None:
        """What calls to a stage of an API get; None where there is no such stage."""
        record = self._read(api_id)
        its = record["stages"].get(stage) if record else None
        if record is None or its is None:
            return None
        snapshot = record["deployments"][its["deploymentId"]]["snapshot"]
        place = Place(
            api_id,
            record["region"],
            stage,
            its["deploymentId"],
            its.get("variables", {}),
            snapshot["binaryMediaTypes"],
        )
        return Deployed(place, tuple(snapshot["resources"]))

    def tagged(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Every API's ARN and tags."""
        for record in self._all():
            api = record["api"]
            yield f"arn:aws:apigateway:{record['region']}::/restapis/{api['id']}", api["tags"]

    def counts(self) -> dict[str, int]:
        """Numbers for `scar local status`."""
        row = self._store.read().execute("SELECT count(*) FROM gateway_apis").fetchone()
        return {"rest_apis": row[0]}

    # APIs

    def create_rest_api(self, request: Request) -> dict[str, Any]:
        """CreateRestApi: with its root resource, `/`."""
        params = request.params
        _refuse(params, _API_REFUSED)
        if params.get("apiKeySource", "HEADER") != "HEADER":
            raise _bad("apiKeySource is not in the local cloud: leave it out")
        root, api_id = _new_id(10), _new_id(10)
        api: dict[str, Any] = {
            "id": api_id,
            "name": _name(params["name"]),
            "createdDate": int(time.time()),
            "apiKeySource": "HEADER",
            "endpointConfiguration": params.get("endpointConfiguration", {"types": ["EDGE"]}),
            "disableExecuteApiEndpoint": False,
            "rootResourceId": root,
            "tags": _tags(params.get("tags", {})),
        }
        api |= {key: params[key] for key in ("description", "version") if key in params}
        if params.get("binaryMediaTypes"):
            api["binaryMediaTypes"] = params["binaryMediaTypes"]
        record: _Record = {
            "api": api,
            "region": request.region,
            "resources": {root: {"id": root, "path": "/", "resourceMethods": {}}},
            "deployments": {},
            "stages": {},
        }
        with self._store.write() as db:
            db.execute(
                "INSERT INTO gateway_apis (id, created, record) VALUES (?, ?, ?)",
                (api_id, time.time(), json.dumps(record)),
            )
        return api

    def get_rest_api(self, request: Request) -> dict[str, Any]:
        """GetRestApi."""
        return dict(self._existing(request)["api"])

    def get_rest_apis(self, request: Request) -> dict[str, Any]:
        """GetRestApis, in order of their creation."""
        apis = [record["api"] for record in self._all()]
        return _page(request, apis, lambda api: str(api["id"]))

    def update_rest_api(self, request: Request) -> dict[str, Any]:
        """UpdateRestApi: name, description and binary media types."""
        with self._changing(request) as record:
            for operation in request.params.get("patchOperations", ()):
                _patch(record["api"], operation)
            return dict(record["api"])

    def delete_rest_api(self, request: Request) -> None:
        """DeleteRestApi, with all that is in it."""
        with self._store.write() as db:
            api_id = self._existing(request)["api"]["id"]
            db.execute("DELETE FROM gateway_apis WHERE id = ?", (api_id,))

    # Resources

    def create_resource(self, request: Request) -> dict[str, Any]:
        """CreateResource."""
        part = request.params["pathPart"]
        if not _PART.fullmatch(part):
            raise _bad(
                "Resource's path part only allow a-zA-Z0-9._-: or a valid greedy path variable"
                " and curly braces at the beginning and the end."
            )
        with self._changing(request) as record:
            parent = _resource(record, request.params["parentId"])
            if parent.get("pathPart", "").endswith("+}"):
                raise _bad(
                    f"Cannot create a child of a resource with a greedy path variable: {part}"
                )
            resource = {
                "id": _new_id(6),
                "parentId": parent["id"],
                "pathPart": part,
                "path": f"{parent['path'].rstrip('/')}/{part}",
                "resourceMethods": {},
            }
            for other in record["resources"].values():
                _check_sibling(resource, other)
            record["resources"][resource["id"]] = resource
        return _shown(resource, methods=False)

    def get_resources(self, request: Request) -> dict[str, Any]:
        """GetResources, by path; `embed=methods` shows the methods whole."""
        params = request.params
        embeds = "methods" in params.get("embed", ())
        resources = sorted(
            self._existing(request)["resources"].values(), key=lambda one: str(one["path"])
        )
        shown = [_shown(resource, methods=embeds) for resource in resources]
        return _page(request, shown, lambda resource: str(resource["id"]))

    def get_resource(self, request: Request) -> dict[str, Any]:
        """GetResource."""
        params = request.params
        resource = _resource(self._existing(request), params["resourceId"])
        return _shown(resource, methods="methods" in params.get("embed", ()))

    def delete_resource(self, request: Request) -> None:
        """DeleteResource, with all below it."""
        with self._changing(request) as record:
            resources = record["resources"]
            gone = _resource(record, request.params["resourceId"])
            if "parentId" not in gone:
                raise _bad("Root resource cannot be deleted")
            inside = f"{gone['path']}/"
            record["resources"] = {
                key: its
                for key, its in resources.items()
                if key != gone["id"] and not its["path"].startswith(inside)
            }

    # Methods and their integrations

    def put_method(self, request: Request) -> dict[str, Any]:
        """PutMethod."""
        params = request.params
        _refuse(params, _METHOD_REFUSED)
        name = params["httpMethod"]
        if name not in _METHODS:
            raise _bad(f"Invalid HTTP method specified: {name}")
        if params["authorizationType"] != "NONE":
            raise _bad("the local cloud authorizes nobody: give authorizationType=NONE")
        method = {"httpMethod": name, "authorizationType": "NONE", "apiKeyRequired": False}
        if params.get("requestParameters"):
            method["requestParameters"] = params["requestParameters"]
        if params.get("operationName"):
            method["operationName"] = params["operationName"]
        with self._changing(request) as record:
            methods = _resource(record, params["resourceId"])["resourceMethods"]
            if name in methods:
                raise ApiError("ConflictException", "Method already exists for this resource", 409)
            methods[name] = method
        return method

    def get_method(self, request: Request) -> dict[str, Any]:
        """GetMethod."""
        return _method(self._existing(request), request)

    def delete_method(self, request: Request) -> None:
        """DeleteMethod."""
        with self._changing(request) as record:
            _method(record, request)
            resource = _resource(record, request.params["resourceId"])
            del resource["resourceMethods"][request.params["httpMethod"]]

    def put_integration(self, request: Request) -> dict[str, Any]:
        """PutIntegration: AWS_PROXY to a Lambda function."""
        integration = _integration(request.params)
        with self._changing(request) as record:
            _method(record, request)["methodIntegration"] = integration
        return integration

    def get_integration(self, request: Request) -> dict[str, Any]:
        """GetIntegration."""
        integration: dict[str, Any] | None = _method(self._existing(request), request).get(
            "methodIntegration"
        )
        if integration is None:
            raise _absent("Invalid Integration identifier specified")
        return integration

    def delete_integration(self, request: Request) -> None:
        """DeleteIntegration."""
        self.get_integration(request)
        with self._changing(request) as record:
            del _method(record, request)["methodIntegration"]

    # Deployments and stages

    def create_deployment(self, request: Request) -> dict[str, Any]:
        """CreateDeployment: of the API as it is now, onto a stage where one is named."""
        params = request.params
        _refuse(params, _STAGE_REFUSED)
        with self._changing(request) as record:
            resources = list(record["resources"].values())
            _check_deployable(resources)
            deployment = {
                "id": _new_id(6),
                "description": params.get("description", ""),
                "createdDate": int(time.time()),
                "snapshot": {
                    "resources": copy.deepcopy(resources),
                    "binaryMediaTypes": record["api"].get("binaryMediaTypes", []),
                },
            }
            record["deployments"][deployment["id"]] = deployment
            if params.get("stageName"):
                stages = record["stages"]
                stage = stages.get(params["stageName"]) or _stage(params)
                given = {"deploymentId": deployment["id"], "lastUpdatedDate": int(time.time())}
                if "variables" in params:
                    given["variables"] = params["variables"]
                stages[params["stageName"]] = {**stage, **given}
        return _of_deployment(deployment)

    def get_deployment(self, request: Request) -> dict[str, Any]:
        """GetDeployment."""
        return _of_deployment(_deployment(self._existing(request), request))

    def get_deployments(self, request: Request) -> dict[str, Any]:
        """GetDeployments, oldest first."""
        deployments = self._existing(request)["deployments"].values()
        shown = [_of_deployment(one) for one in deployments]
        return _page(request, shown, lambda one: str(one["id"]))

    def delete_deployment(self, request: Request) -> None:
        """DeleteDeployment: one that no stage has."""
        with self._changing(request) as record:
            deployment = _deployment(record, request)
            stages = record["stages"].values()
            if any(stage["deploymentId"] == deployment["id"] for stage in stages):
                raise _bad("Active stages pointing to this deployment must be moved or deleted")
            del record["deployments"][deployment["id"]]

    def create_stage(self, request: Request) -> dict[str, Any]:
        """CreateStage: of a deployment that is there."""
        params = request.params
        _refuse(params, (*_STAGE_REFUSED, "tags"))
        with self._changing(request) as record:
            deployment = _deployment(record, request)
            if params["stageName"] in record["stages"]:
                raise ApiError("ConflictException", "Stage already exists", 409)
            stage = {**_stage(params), "deploymentId": deployment["id"]}
            stage["variables"] = params.get("variables", {})
            record["stages"][params["stageName"]] = stage
        return stage

    def get_stage(self, request: Request) -> dict[str, Any]:
        """GetStage."""
        return _stage_of(self._existing(request), request)

    def get_stages(self, request: Request) -> dict[str, Any]:
        """GetStages, or those of one deployment."""
        wanted = request.params.get("deploymentId")
        stages = self._existing(request)["stages"].values()
        return {"item": [s for s in stages if wanted in (None, s["deploymentId"])]}

    def delete_stage(self, request: Request) -> None:
        """DeleteStage."""
        with self._changing(request) as record:
            _stage_of(record, request)
            del record["stages"][request.params["stageName"]]

    # Tags

    def tag_resource(self, request: Request) -> None:
        """TagResource."""
        with self._changing(request, _tagged_api(request)) as record:
            tags = {**record["api"]["tags"], **request.params["tags"]}
            record["api"]["tags"] = _tags(tags)

    def untag_resource(self, request: Request) -> None:
        """UntagResource; a tag that is not there is no error."""
        with self._changing(request, _tagged_api(request)) as record:
            for key in request.params["tagKeys"]:
                record["api"]["tags"].pop(key, None)

    def get_tags(self, request: Request) -> dict[str, Any]:
        """GetTags."""
        return {"tags": self._existing(request, _tagged_api(request))["api"]["tags"]}

    def _all(self) -> list[_Record]:
        rows = self._store.read().execute("SELECT record FROM gateway_apis ORDER BY created, id")
        return [json.loads(row["record"]) for row in rows]

    def _read(self, api_id: str) -> _Record | None:
        rows = self._store.read().execute("SELECT record FROM gateway_apis WHERE id = ?", (api_id,))
        row = rows.fetchone()
        return None if row is None else json.loads(row["record"])

    def _existing(self, request: Request, api_id: str | None = None) -> _Record:
        wanted = api_id or request.params["restApiId"]
        record = self._read(wanted)
        if record is None:
            raise _absent(f"Invalid API identifier specified {ACCOUNT_ID}:{wanted}")
        return record

    @contextmanager
    def _changing(self, request: Request, api_id: str | None = None) -> Iterator[_Record]:
        """The record of one API, saved when the block ends without an error."""
        with self._store.write() as db:
            record = self._existing(request, api_id)
            yield record
            db.execute(
                "UPDATE gateway_apis SET record = ? WHERE id = ?",
                (json.dumps(record), record["api"]["id"]),
            )


def _new_id(length: int) -> str:
    letters = string.ascii_lowercase + string.digits
    return "".join(secrets.choice(letters) for _ in range(length))


def _bad(text: str) -> ApiError:
    return ApiError("BadRequestException", text, 400)


def _absent(text: str) -> ApiError:
    return ApiError("NotFoundException", text, 404)


def _refuse(params: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        if params.get(key):
            raise _bad(f"{key} is not in the local cloud: leave it out")


def _name(name: str) -> str:
    if not 1 <= len(name) <= 1024:
        raise _bad("an API's name has 1 to 1024 characters")
    return name


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > 50:
        raise _bad(f"an API has at most 50 tags, not {len(tags)}")
    for key, value in tags.items():
        if not 1 <= len(key) <= 128 or len(value) > 256 or key.startswith("aws:"):
            raise _bad(f"tag `{key}`: keys have 1 to 128 characters, values up to 256")
    return dict(tags)


def _tagged_api(request: Request) -> str:
    arn = unquote(request.params["resourceArn"])
    match = re.fullmatch(r"arn:aws[a-z-]*:apigateway:[a-z0-9-]+::/restapis/([a-z0-9]+)", arn)
    if match is None:
        raise _bad(f"only REST APIs carry tags in the local cloud, not {arn}")
    return match[1]


def _patch(api: dict[str, Any], operation: Mapping[str, Any]) -> None:
    verb, path, value = (operation.get(key, "") for key in ("op", "path", "value"))
    first, _, rest = path.lstrip("/").partition("/")
    if verb == "replace" and first in ("name", "description") and not rest:
        api[first] = _name(value) if first == "name" else value
    elif verb in ("add", "remove") and first == "binaryMediaTypes" and rest:
        name = rest.replace("~1", "/").replace("~0", "~")
        kept = [known for known in api.get("binaryMediaTypes", []) if known != name]
        api["binaryMediaTypes"] = [*kept, name] if verb == "add" else kept
    else:
        raise _bad(f"Invalid patch path {path} for {verb} in the local cloud")


def _page(
    request: Request, items: list[dict[str, Any]], key: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """The items after `position`; it is the id of the last one given."""
    size = request.params.get("limit", _PAGE)
    if not 1 <= size <= 500:
        raise _bad("limit must be between 1 and 500")
    position = request.params.get("position")
    ids = [key(item) for item in items]
    if position and position not in ids:
        raise _bad("Invalid position parameter")
    start = ids.index(position) + 1 if position else 0
    page = items[start : start + size]
    more = start + size < len(items)
    return {"items": page, "position": key(page[-1]) if more else None}


def _resource(record: _Record, resource_id: str) -> dict[str, Any]:
    resource: dict[str, Any] | None = record["resources"].get(resource_id)
    if resource is None:
        raise _absent("Invalid Resource identifier specified")
    return resource


def _check_sibling(new: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    if other.get("parentId") != new["parentId"]:
        return
    if other["pathPart"] == new["pathPart"]:
        text = f"Another resource with the same parent already has this name: {new['pathPart']}"
        raise ApiError("ConflictException", text, 409)
    variable = [part for part in (other["pathPart"], new["pathPart"]) if part.startswith("{")]
    if len(variable) == 2 and variable[0].endswith("+}") == variable[1].endswith("+}"):
        raise _bad(
            f"A sibling ({variable[0]}) of this resource already has a variable path part"
            " -- only one is allowed"
        )


def _shown(resource: Mapping[str, Any], *, methods: bool) -> dict[str, Any]:
    shown = dict(resource)
    found = shown.pop("resourceMethods")
    if found:
        shown["resourceMethods"] = found if methods else {name: {} for name in found}
    return shown


def _method(record: _Record, request: Request) -> dict[str, Any]:
    methods = _resource(record, request.params["resourceId"])["resourceMethods"]
    method: dict[str, Any] | None = methods.get(request.params["httpMethod"])
    if method is None:
        raise _absent("Invalid Method identifier specified")
    return method


def _integration(params: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(params, _INTEGRATION_REFUSED)
    if params["type"] != "AWS_PROXY":
        raise _bad(
            f"integrations of type {params['type']} are not in the local cloud: AWS_PROXY is"
        )
    if not _FUNCTION.fullmatch(params.get("uri", "")):
        raise _bad(
            "Invalid ARN specified in the request: the uri of an AWS_PROXY integration is arn:aws:"
            "apigateway:REGION:lambda:path/2015-03-31/functions/FUNCTION-ARN/invocations"
        )
    if params.get("integrationHttpMethod") != "POST":
        raise _bad("Lambda is invoked with POST: give integrationHttpMethod=POST")
    timeout_ms = params.get("timeoutInMillis", LIMIT_MS)
    if not 50 <= timeout_ms <= LIMIT_MS:
        raise _bad(f"Timeout should be between 50 ms and {LIMIT_MS} ms")
    integration = {
        "type": "AWS_PROXY",
        "httpMethod": "POST",
        "uri": params["uri"],
        "passthroughBehavior": params.get("passthroughBehavior", "WHEN_NO_MATCH"),
        "timeoutInMillis": timeout_ms,
        "cacheNamespace": params.get("cacheNamespace", params["resourceId"]),
        "cacheKeyParameters": [],
    }
    for key in ("requestParameters", "credentials"):
        if params.get(key):
            integration[key] = params[key]
    return integration


def function_of(integration: Mapping[str, Any]) -> str:
    """The ARN of the function that an integration invokes."""
    match = _FUNCTION.fullmatch(integration["uri"])
    assert match is not None, "PutIntegration checks it"
    return match[1]


def _check_deployable(resources: Iterable[Mapping[str, Any]]) -> None:
    methods = [method for one in resources for method in one["resourceMethods"].values()]
    if not methods:
        raise _bad("The REST API doesn't contain any methods")
    if any("methodIntegration" not in method for method in methods):
        raise _bad("No integration defined for method")


def _deployment(record: _Record, request: Request) -> dict[str, Any]:
    deployment: dict[str, Any] | None = record["deployments"].get(request.params["deploymentId"])
    if deployment is None:
        raise _absent("Invalid Deployment identifier specified")
    return deployment


def _of_deployment(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """A deployment as the API shows it: without what it deploys."""
    return {key: value for key, value in deployment.items() if key != "snapshot" and value != ""}


def _stage(params: Mapping[str, Any]) -> dict[str, Any]:
    name = params["stageName"]
    if not _STAGE.fullmatch(name):
        raise _bad("Stage name only allows a-zA-Z0-9_-")
    now = int(time.time())
    stage = {"stageName": name, "createdDate": now, "lastUpdatedDate": now}
    description = params.get("stageDescription") or params.get("description", "")
    return {
        **stage,
        "cacheClusterEnabled": False,
        "cacheClusterStatus": "NOT_AVAILABLE",
        "methodSettings": {},
        "tracingEnabled": False,
        **({"description": description} if description else {}),
    }


def _stage_of(record: _Record, request: Request) -> dict[str, Any]:
    stage: dict[str, Any] | None = record["stages"].get(request.params["stageName"])
    if stage is None:
        raise _absent("Invalid stage identifier specified")
    return stage
