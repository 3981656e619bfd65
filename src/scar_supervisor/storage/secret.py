"""The credentials of a storage provider: a secret of Secrets Manager, read at first need."""

from __future__ import annotations

import json
from collections.abc import Mapping

from scar_supervisor.aws import Client, Request, ServiceError, Unreachable, regional_host
from scar_supervisor.credentials import Credentials
from scar_supervisor.faults import ConfigFault, StagingFailed
from scar_supervisor.sigv4 import Keys


class ProviderSecret:
    """The value of a secret, kept in memory only. No message of its says what the value is."""

    def __init__(self, provider: str, name: str, environ: Mapping[str, str]) -> None:
        self._provider, self._name = provider, name
        self._client = Client("secretsmanager", environ, Credentials(environ))
        self._values: dict[str, str] | None = None

    def value(self, key: str) -> str:
        """One value. Raises ConfigFault where it cannot be had, StagingFailed without an answer."""
        if self._values is None:
            self._values = self._read()
        if key not in self._values:
            raise self._fault(f"has no `{key}`", "deploy the function again")
        return self._values[key]

    def keys(self) -> Keys:
        """Its keys of S3."""
        return Keys(self.value("access_key"), self.value("secret_key"), None)

    def forget(self) -> bool:
        """Read it again next time: it may have been replaced since."""
        had, self._values = self._values, None
        return had is not None

    def _read(self) -> dict[str, str]:
        request = Request(
            "POST",
            "/",
            headers={
                "Content-Type": "application/x-amz-json-1.1",
                "X-Amz-Target": "secretsmanager.GetSecretValue",
            },
            body=json.dumps({"SecretId": self._name}).encode(),
        )
        url = self._client.endpoint
        url = url or f"https://{regional_host('secretsmanager', self._client.region)}"
        try:
            reply = self._client.call(lambda: request, url)
        except Unreachable as exc:
            raise StagingFailed(f"secret `{self._name}`", str(exc)) from exc
        except ServiceError as exc:
            if exc.transient:
                raise StagingFailed(f"secret `{self._name}`", str(exc)) from exc
            if exc.code.startswith("AccessDenied"):
                mend = "allow the role of the function `secretsmanager:GetSecretValue` for it"
            else:
                mend = "deploy the function again"
            raise self._fault(f"cannot be read: {exc}", mend) from exc
        try:
            values = json.loads(json.loads(reply.body)["SecretString"])
            return {str(key): str(value) for key, value in values.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            # Without the cause: it may quote what was read.
            raise self._fault("is not a JSON object", "deploy the function again") from None

    def _fault(self, what: str, mend: str) -> ConfigFault:
        return ConfigFault(
            f"storage provider `{self._provider}`: secret `{self._name}` {what}; {mend}"
        )
