"""Hands an event over to Batch: one SubmitJob, the event inline or by reference."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from scar_supervisor import contract
from scar_supervisor.aws import Client, Request, ServiceError, Unreachable, regional_host
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.credentials import Credentials
from scar_supervisor.faults import DelegationFailed, EventFault, StagingFailed
from scar_supervisor.storage import Storages

REFERENCE_PREFIX = ".scar/events"


@dataclass(frozen=True)
class Reference:
    """Where an event lies that is too large for a job's overrides."""

    bucket: str
    key: str
    sha256: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}#sha256={self.sha256}"


def parse_reference(text: str) -> Reference:
    """The reference that `str(reference)` wrote. Raises EventFault where it is none."""
    address, _, digest = text.partition("#sha256=")
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket or not key or len(digest) != 64:
        raise EventFault(
            f"{contract.EVENT_REFERENCE_VARIABLE}: `{text}` is not s3://bucket/key#sha256=<hex>"
        )
    return Reference(bucket, key, digest)


class Batch:
    """The Batch service as the environment describes it."""

    def __init__(self, environ: Mapping[str, str], storages: Storages) -> None:
        self._client = Client("batch", environ, Credentials(environ))
        self._storages = storages

    def submit(self, config: FunctionConfig, event: str, request_id: str) -> str:
        """Submit a job for an event; its job id.

        Raises DelegationFailed where Batch refuses, or the event cannot be stored.
        """
        if not config.job_queue or not config.job_definition:
            raise DelegationFailed(
                f"function `{config.name}` has no job queue and job definition in its config; "
                "deploy it again"
            )
        name, value = self._event_variable(config, event)
        variables = {name: value, contract.REQUEST_ID_VARIABLE: request_id}
        body = {
            "jobName": config.name,
            "jobQueue": config.job_queue,
            "jobDefinition": config.job_definition,
            **_overrides(config, variables),
        }
        request = Request(
            "POST",
            "/v1/submitjob",
            headers={"Content-Type": "application/json"},
            body=json.dumps(body).encode(),
        )
        url = self._client.endpoint or f"https://{regional_host('batch', self._client.region)}"
        try:
            reply = self._client.call(lambda: request, url)
            return str(json.loads(reply.body)["jobId"])
        except (ServiceError, Unreachable, ValueError, KeyError) as exc:
            raise DelegationFailed(f"cannot submit a job to `{config.job_queue}`: {exc}") from exc

    def _event_variable(self, config: FunctionConfig, event: str) -> tuple[str, str]:
        data = event.encode()
        if len(data) <= contract.INLINE_EVENT_LIMIT_BYTES:
            return contract.EVENT_VARIABLE, event
        if not config.deployment_bucket:
            raise DelegationFailed(
                f"the event has {len(data):,} bytes, too many for a job's overrides, and the "
                "function has no deployment bucket to keep it in; deploy it again"
            )
        sha256 = hashlib.sha256(data).hexdigest()
        key = f"{REFERENCE_PREFIX}/{sha256}"
        try:
            self._storages["s3"].store_bytes(config.deployment_bucket, key, data)
        except StagingFailed as exc:
            raise DelegationFailed(f"cannot store the event: {exc}") from exc
        reference = Reference(config.deployment_bucket, key, sha256)
        return contract.EVENT_REFERENCE_VARIABLE, str(reference)


def _overrides(config: FunctionConfig, variables: Mapping[str, str]) -> dict[str, object]:
    """What a job gets that its definition does not say; the nodes of one share a secret."""
    if config.is_multi_node:
        variables = {**variables, contract.MNP_SECRET_VARIABLE: os.urandom(32).hex()}
    entries = [{"name": name, "value": value} for name, value in variables.items()]
    if not config.is_multi_node:
        return {"containerOverrides": {"environment": entries}}
    every = {"targetNodes": "0:", "containerOverrides": {"environment": entries}}
    return {"nodeOverrides": {"nodePropertyOverrides": [every]}}
