"""The secrets of a job: what their values are when one of its attempts starts.

Neither the database nor a log has the values. What is said of one that cannot be had is what the
container agent says on instances, and Fargate on Fargate (ECS developer guide, "Stopped task error
messages"; source of amazon-ecs-agent, `taskresource/asmsecret` and `ssmsecret`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scar_local.protocol import ApiError

Ask = Callable[[str, str, Mapping[str, Any]], tuple[int, Any]]
"""Asks Secrets Manager or SSM: (operation, region, parameters) -> (status, answer)."""

_ON_FARGATE = (
    "ResourceInitializationError: unable to pull secrets or registry auth: execution resource "
    "retrieval failed: unable to retrieve {what}: service call has been retried 1 time(s): {why}"
)


class SecretsFailed(Exception):
    """Why the secrets of a job cannot be had, in AWS's words."""


class Secrets:
    """The secrets that the containers of a region ask for."""

    def __init__(self, ask: Ask, region: str, is_fargate: bool) -> None:
        self._ask, self._region, self._is_fargate = ask, region, is_fargate

    def values(self, wanted: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """The variables of a container's `secrets`. Raises SecretsFailed."""
        return {one["name"]: self._value(one["valueFrom"]) for one in wanted}

    def _value(self, value_from: str) -> str:
        if value_from.startswith("arn:") and value_from.split(":")[2] == "secretsmanager":
            return self._secret(value_from)
        return self._parameter(value_from)

    def _secret(self, arn: str) -> str:
        parts = arn.split(":")
        if len(parts) not in (7, 10):
            raise SecretsFailed(
                f"trying to retrieve secret with value {arn} resulted in error: an invalid ARN "
                "format for the AWS Secrets Manager secret was specified. Specify a valid ARN and "
                "try again."
            )
        full, (key, stage, version) = ":".join(parts[:7]), parts[7:] or ("", "", "")
        params = {"SecretId": full, "VersionStage": stage, "VersionId": version}
        given = {name: value for name, value in params.items() if value}
        status, answer = self._asked("secretsmanager.GetSecretValue", parts[3], given)
        if status != 200:
            raise self._secret_failed(parts[3], full, _told(answer))
        text = answer.get("SecretString")
        if text is None:
            raise self._secret_failed(parts[3], full, "it is binary, which is not supported")
        return str(text) if not key else self._json_value(str(text), key, parts[3])

    def _json_value(self, text: str, key: str, region: str) -> str:
        try:
            value = json.loads(text)[key]
        except (ValueError, KeyError, TypeError):  # without the cause: it may quote the value
            why = f"retrieved secret from Secrets Manager did not contain json key {key}"
            raise self._failed(
                "secret from asm", f"AWS Secrets Manager in region {region}", why
            ) from None
        return value if isinstance(value, str) else json.dumps(value)

    def _parameter(self, value_from: str) -> str:
        region, name = self._region, value_from
        if value_from.startswith("arn:"):
            region, name = value_from.split(":")[3], value_from.partition(":parameter")[2]
        # An ARN has the same slash before `/a/b` and before `a`.
        names = [name] if name == value_from or "/" in name[1:] else [name[1:], name]
        params = {"Names": names, "WithDecryption": True}
        status, answer = self._asked("AmazonSSM.GetParameters", region, params)
        if status == 200 and answer["Parameters"]:
            return str(answer["Parameters"][0]["Value"])
        why = f"invalid parameters: {value_from}" if status == 200 else _told(answer)
        raise self._failed("secrets from ssm", f"SSM Parameter Store in {region}", why)

    def _asked(self, operation: str, region: str, params: Mapping[str, Any]) -> tuple[int, Any]:
        try:
            return self._ask(operation, region, params)
        except ApiError as error:  # moto is not installed
            return error.status, {"__type": error.code, "message": error.message}

    def _secret_failed(self, region: str, arn: str, why: str) -> SecretsFailed:
        told = f"failed to fetch secret {arn} from secrets manager: {why}"
        if not self._is_fargate:
            told = f"secret {arn}: {why}"
        return self._failed("secret from asm", f"AWS Secrets Manager in region {region}", told)

    def _failed(self, what: str, where: str, why: str) -> SecretsFailed:
        if self._is_fargate:
            return SecretsFailed(_ON_FARGATE.format(what=what, why=why))
        return SecretsFailed(f"Fetching secret data from {where}: {why}")


def _told(answer: Any) -> str:
    return f"{answer.get('__type', '')}: {answer.get('message') or answer.get('Message', '')}"
