"""Lambda: functions, who may invoke them, and invoking them."""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from scar.aws.account import Account
from scar.aws.endpoints import endpoints
from scar.aws.errors import is_absent, speaking_to
from scar.aws.waiting import retrying
from scar.errors import CloudError, NotDeployed
from scar.plan.resources import (
    CREATED_BY,
    TAG_CREATED_BY,
    TAG_IMAGE,
    TAG_MODE,
    TAG_OWNER,
    TAG_SUPERVISOR,
    FailureDestination,
    Function,
    Permission,
)

ANSWER_LIMIT_S = 960
"""How long to wait for a synchronous answer: a function's 900 s, and a cold start."""


@dataclass(frozen=True)
class FunctionInfo:
    """One line of `scar ls`."""

    name: str
    memory_mb: int
    timeout_s: int
    image: str
    api_url: str
    supervisor_version: str
    execution_mode: str


@dataclass(frozen=True)
class Invoked:
    """What Lambda answered."""

    status_code: int
    payload: bytes
    request_id: str
    error: str
    """Lambda's word for a failed invocation (`Unhandled`); empty for a good one."""
    log_tail: str


class Functions:
    """Handler of `Function`."""

    def __init__(self, account: Account) -> None:
        self._client = account.client("lambda")

    def read(self, name: str) -> Function | None:
        """The function as it is, or None."""
        try:
            with speaking_to("lambda"):
                answer = self._client.get_function(FunctionName=name)
        except CloudError as exc:
            if is_absent(exc):
                return None
            raise
        its = answer["Configuration"]
        tags = answer.get("Tags", {})
        network = its.get("VpcConfig", {})
        return Function(
            name=name,
            image_uri=answer["Code"].get("ImageUri", ""),
            role_arn=its["Role"],
            memory_mb=its["MemorySize"],
            timeout_s=its["Timeout"],
            ephemeral_storage_mb=its.get("EphemeralStorage", {"Size": 512})["Size"],
            architecture=its.get("Architectures", ["x86_64"])[0],
            description=its.get("Description", ""),
            environment=its.get("Environment", {}).get("Variables", {}),
            tags={key: value for key, value in tags.items() if not key.startswith("aws:")},
            subnets=tuple(sorted(network.get("SubnetIds", []))),
            security_group_ids=tuple(sorted(network.get("SecurityGroupIds", []))),
            file_systems=tuple(
                (one["Arn"], one["LocalMountPath"]) for one in its.get("FileSystemConfigs", [])
            ),
        )

    def create(self, wanted: Function) -> None:
        """Create the function; returns when it is active."""

        def create() -> None:
            with speaking_to("lambda"):
                self._client.create_function(
                    FunctionName=wanted.name,
                    PackageType="Image",
                    Code={"ImageUri": wanted.image_uri},
                    Architectures=[_architecture(wanted)],
                    Tags=wanted.tags,
                    **_configuration(wanted),
                    **_surroundings(wanted),
                )

        retrying(create, _role_is_too_new)
        self._settle(wanted.name, "function_active_v2")

    def update(self, wanted: Function, found: Function) -> None:
        """Change configuration, then code, then tags; returns when Lambda runs the new ones."""
        if _whole(wanted) != _whole(found):

            def update() -> None:
                with speaking_to("lambda"):
                    self._client.update_function_configuration(
                        FunctionName=wanted.name,
                        **_configuration(wanted),
                        **_surroundings(wanted, found),
                    )

            retrying(update, _role_is_too_new)
            self._settle(wanted.name, "function_updated_v2")
        if (wanted.image_uri, wanted.architecture) != (found.image_uri, found.architecture):
            with speaking_to("lambda"):
                self._client.update_function_code(
                    FunctionName=wanted.name,
                    ImageUri=wanted.image_uri,
                    Architectures=[_architecture(wanted)],
                )
            self._settle(wanted.name, "function_updated_v2")
        if wanted.tags != found.tags:
            self._tag(wanted, found)

    def delete(self, found: Function) -> None:
        """Delete the function; its permissions go with it."""
        try:
            with speaking_to("lambda"):
                self._client.delete_function(FunctionName=found.name)
        except CloudError as exc:
            if not is_absent(exc):
                raise

    def _settle(self, name: str, waiter: Any) -> None:
        with speaking_to("lambda"):
            self._client.get_waiter(waiter).wait(FunctionName=name)

    def _tag(self, wanted: Function, found: Function) -> None:
        with speaking_to("lambda"):
            its = self._client.get_function_configuration(FunctionName=wanted.name)
            arn = its["FunctionArn"]
            if gone := [key for key in found.tags if key not in wanted.tags]:
                self._client.untag_resource(Resource=arn, TagKeys=gone)
            if wanted.tags:
                self._client.tag_resource(Resource=arn, Tags=wanted.tags)


_ASYNCHRONOUS = ("MaximumRetryAttempts", "MaximumEventAgeInSeconds")
"""A function's other asynchronous settings."""


class FailureDestinations:
    """Handler of `FailureDestination`: one value among a function's asynchronous settings."""

    def __init__(self, account: Account) -> None:
        self._client = account.client("lambda")

    def read(self, name: str) -> FailureDestination | None:
        """Where failed events go, or None."""
        try:
            with speaking_to("lambda"):
                its = self._client.get_function_event_invoke_config(FunctionName=name)
        except CloudError as exc:
            if is_absent(exc):
                return None
            raise
        arn = its.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
        return FailureDestination(name, arn) if arn else None

    def create(self, wanted: FailureDestination) -> None:
        """Set the destination and leave the other settings as they are."""

        def write() -> None:
            try:
                self._update(wanted.name, wanted.destination)
            except CloudError as exc:
                if not is_absent(exc):
                    raise
                with speaking_to("lambda"):
                    self._client.put_function_event_invoke_config(
                        FunctionName=wanted.name,
                        DestinationConfig={"OnFailure": {"Destination": wanted.destination}},
                    )

        retrying(write, _policy_is_too_new)

    def update(self, wanted: FailureDestination, found: FailureDestination) -> None:
        """Set the other destination."""
        self.create(wanted)

    def delete(self, found: FailureDestination) -> None:
        """Set none: write what is left. AWS does not say how an update would clear it."""
        try:
            with speaking_to("lambda"):
                its: Any = self._client.get_function_event_invoke_config(FunctionName=found.name)
            left = {key: its[key] for key in _ASYNCHRONOUS if key in its}
            if success := its.get("DestinationConfig", {}).get("OnSuccess"):
                left["DestinationConfig"] = {"OnSuccess": success}
            with speaking_to("lambda"):
                if left:
                    self._client.put_function_event_invoke_config(FunctionName=found.name, **left)
                else:
                    self._client.delete_function_event_invoke_config(FunctionName=found.name)
        except CloudError as exc:
            if not is_absent(exc):
                raise

    def _update(self, name: str, arn: str) -> None:
        with speaking_to("lambda"):
            self._client.update_function_event_invoke_config(
                FunctionName=name, DestinationConfig={"OnFailure": {"Destination": arn}}
            )


class Permissions:
    """Handler of `Permission`."""

    def __init__(self, account: Account) -> None:
        self._client = account.client("lambda")

    def read(self, name: str) -> Permission | None:
        """The statement for one bucket, or None."""
        function, _, bucket = name.partition("/")
        for statement in policy(self._client, function):
            if statement.get("Sid") == statement_id(bucket):
                owner = _condition(statement, "aws:SourceAccount")
                return Permission(name, function, bucket, owner)
        return None

    def create(self, wanted: Permission) -> None:
        """Let S3 invoke the function for the bucket."""
        with speaking_to("lambda"):
            self._client.add_permission(
                FunctionName=wanted.function,
                StatementId=statement_id(wanted.bucket),
                Action="lambda:InvokeFunction",
                Principal="s3.amazonaws.com",
                SourceArn=f"arn:aws:s3:::{wanted.bucket}",
                SourceAccount=wanted.account_id,
            )

    def update(self, wanted: Permission, found: Permission) -> None:
        """Replace the statement."""
        self.delete(found)
        self.create(wanted)

    def delete(self, found: Permission) -> None:
        """Remove the statement."""
        try:
            with speaking_to("lambda"):
                self._client.remove_permission(
                    FunctionName=found.function, StatementId=statement_id(found.bucket)
                )
        except CloudError as exc:
            if not is_absent(exc):
                raise


def list_functions(account: Account) -> list[FunctionInfo]:
    """The functions that the caller made with SCAR, by name."""
    tags = owned(account)
    urls = {name: endpoint.url for name, endpoint in endpoints(account, tags).items()}
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: _info(account, name, tags[name], urls.get(name, "")), tags)
        return [info for info in found if info is not None]


def owned(account: Account) -> dict[str, Mapping[str, str]]:
    """Names and tags of the functions that the caller made with SCAR, sorted."""
    return _tagged(account, {TAG_CREATED_BY: CREATED_BY, TAG_OWNER: account.owner})


def using(account: Account, tag: str, value: str) -> list[str]:
    """Names of all functions that carry a tag, whoever made them."""
    return list(_tagged(account, {tag: value}))


def buckets_of(account: Account, function: str) -> list[str]:
    """The buckets that may invoke a function by a statement of ours."""
    found = []
    for statement in policy(account.client("lambda"), function):
        bucket = _condition(statement, "AWS:SourceArn").rpartition(":::")[2]
        if bucket and statement.get("Sid") == statement_id(bucket):
            found.append(bucket)
    return found


def not_deployed(account: Account, name: str) -> NotDeployed:
    """The error for a function that is not there, with the name that was perhaps meant."""
    near = difflib.get_close_matches(name, owned(account), 1)
    hint = f"did you mean `{near[0]}`?" if near else "`scar ls` shows what is deployed"
    return NotDeployed(f"function `{name}` does not exist in {account.region}", hint)


def invoke(account: Account, name: str, payload: bytes, *, asynchronous: bool) -> Invoked:
    """Invoke a function once; a synchronous call waits for its answer.

    Raises CloudError; the code is ResourceNotFoundException where there is no such function.
    """
    client = account.client("lambda", ANSWER_LIMIT_S)
    with speaking_to("lambda"):
        if asynchronous:
            answer = client.invoke(FunctionName=name, InvocationType="Event", Payload=payload)
        else:
            answer = client.invoke(FunctionName=name, LogType="Tail", Payload=payload)
        body = answer["Payload"].read()
    return Invoked(
        status_code=answer["StatusCode"],
        payload=body,
        request_id=answer["ResponseMetadata"]["RequestId"],
        error=answer.get("FunctionError", ""),
        log_tail=base64.b64decode(answer.get("LogResult", "")).decode(errors="replace"),
    )


def policy(client: Any, function: str) -> list[dict[str, Any]]:
    """The statements of a function's resource policy; none where it has no policy."""
    try:
        with speaking_to("lambda"):
            text = client.get_policy(FunctionName=function)["Policy"]
    except CloudError as exc:
        if is_absent(exc):
            return []
        raise
    statements: list[dict[str, Any]] = json.loads(text)["Statement"]
    return statements


def statement_id(bucket: str) -> str:
    """Id of our statement for a bucket: letters, digits, `-` and `_` only, at most 100."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", bucket):
        return f"scar-{bucket}"
    return f"scar-{hashlib.sha256(bucket.encode()).hexdigest()[:32]}"


def _info(
    account: Account, name: str, tags: Mapping[str, str], api_url: str
) -> FunctionInfo | None:
    try:
        with speaking_to("lambda"):
            its = account.client("lambda").get_function_configuration(FunctionName=name)
    except CloudError as exc:
        if is_absent(exc):  # the tagging API still tells of functions deleted a while ago
            return None
        raise
    return FunctionInfo(
        name=name,
        memory_mb=its["MemorySize"],
        timeout_s=its["Timeout"],
        image=tags.get(TAG_IMAGE, ""),
        api_url=api_url,
        supervisor_version=tags.get(TAG_SUPERVISOR, ""),
        execution_mode=tags.get(TAG_MODE, "lambda"),
    )


def _tagged(account: Account, tags: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    filters: Any = [{"Key": key, "Values": [value]} for key, value in tags.items()]
    found: dict[str, Mapping[str, str]] = {}
    with speaking_to("resourcegroupstaggingapi"):
        client = account.client("resourcegroupstaggingapi")
        pages = client.get_paginator("get_resources").paginate(
            TagFilters=filters, ResourceTypeFilters=["lambda:function"]
        )
        for page in pages:
            for mapping in page["ResourceTagMappingList"]:
                name = mapping["ResourceARN"].rpartition(":function:")[2]
                found[name] = {tag["Key"]: tag["Value"] for tag in mapping["Tags"]}
    return dict(sorted(found.items()))


def _configuration(function: Function) -> dict[str, Any]:
    """What creating and updating have in common."""
    return {
        "Role": function.role_arn,
        "MemorySize": function.memory_mb,
        "Timeout": function.timeout_s,
        "EphemeralStorage": {"Size": function.ephemeral_storage_mb},
        "Description": function.description,
        "Environment": {"Variables": dict(function.environment)},
    }


def _whole(function: Function) -> dict[str, Any]:
    return {**_configuration(function), **_surroundings(function)}


def _surroundings(function: Function, before: Function | None = None) -> dict[str, Any]:
    """Network and file systems, where the function has or had any: empty lists take them away."""
    told: dict[str, Any] = {}
    if function.subnets or (before and before.subnets):
        told["VpcConfig"] = {
            "SubnetIds": list(function.subnets),
            "SecurityGroupIds": list(function.security_group_ids),
        }
    if function.file_systems or (before and before.file_systems):
        told["FileSystemConfigs"] = [
            {"Arn": arn, "LocalMountPath": path} for arn, path in function.file_systems
        ]
    return told


def _architecture(function: Function) -> Any:
    return function.architecture


def _role_is_too_new(error: CloudError) -> bool:
    """IAM tells Lambda of a new role, and of what it allows, some seconds after it has told us.

    In Lambda's words (hashicorp/terraform#15067): "The role defined for the function cannot be
    assumed by Lambda", "The provided execution role does not have permissions to call …".
    """
    words = ("cannot be assumed", "execution role does not have permissions")
    return error.code == "InvalidParameterValueException" and any(w in str(error) for w in words)


def _policy_is_too_new(error: CloudError) -> bool:
    """Lambda tests what the role allows at once, which may not have reached it yet."""
    return error.code == "InvalidParameterValueException" and "does not have perm" in str(error)


def _condition(statement: Mapping[str, Any], key: str) -> str:
    """The value of a condition key, in whatever case and operator AWS gives it back."""
    for values in statement.get("Condition", {}).values():
        for name, value in values.items():
            if name.lower() == key.lower():
                return str(value)
    return ""
