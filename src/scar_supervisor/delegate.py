"""Hands events over to Batch: one SubmitJob for one event, or for all of a manifest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scar_supervisor import contract
from scar_supervisor.aws import Client, Request, ServiceError, Unreachable, regional_host
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.credentials import Credentials
from scar_supervisor.faults import DelegationFailed
from scar_supervisor.records import to_send
from scar_supervisor.storage import Storages

ENDED = ("SUCCEEDED", "FAILED")
DESCRIBED = 100
"""Jobs that one DescribeJobs takes."""

_REQUEST_ID = contract.REQUEST_ID_VARIABLE


class _Submitted(Exception):
    """The job is there already: its id."""


class Batch:
    """The Batch service as the environment describes it."""

    def __init__(self, environ: Mapping[str, str], storages: Storages) -> None:
        credentials = Credentials(environ)
        self._client = Client("batch", environ, credentials)
        # Its connections are new: on one that was used before, a request is sent again unasked.
        self._submitter = Client("batch", environ, credentials)
        self._storages = storages

    def submit(self, config: FunctionConfig, event: str, request_id: str) -> str:
        """Submit a job for an event; its job id.

        Raises DelegationFailed where Batch refuses, or the event cannot be stored.
        """
        limit = contract.INLINE_EVENT_LIMIT_BYTES
        if not config.deployment_bucket and len(event.encode()) > limit:
            raise DelegationFailed(
                f"the event has {len(event):,} characters, too many for a job's overrides, and the "
                "function has no deployment bucket to keep it in; deploy it again"
            )
        sent, reference = to_send(event.encode(), limit, config.deployment_bucket, config.name)
        if reference is not None:
            self.keep(reference.bucket, reference.key, event.encode())
        return self._submit(config, {contract.EVENT_VARIABLE: sent.decode()}, request_id)

    def submit_array(
        self, config: FunctionConfig, manifest: str, size: int, request_id: str
    ) -> str:
        """Submit one job for `size` events, each a line of a manifest (contract.ARRAY_VARIABLE).

        Raises DelegationFailed where Batch refuses.
        """
        more = {"arrayProperties": {"size": size}} if size > 1 else {}
        return self._submit(config, {contract.ARRAY_VARIABLE: manifest}, request_id, more)

    def keep(self, bucket: str, key: str, data: bytes) -> None:
        """Keep in the deployment bucket what jobs will read. Raises DelegationFailed."""
        try:
            self._storages.account.write(bucket, key, data)
        except (ServiceError, Unreachable) as exc:
            raise DelegationFailed(f"cannot store s3://{bucket}/{key}: {exc}") from exc

    def find(self, config: FunctionConfig, since_ms: int, variable: tuple[str, str]) -> str | None:
        """The job submitted since then (ms since 1970) with that variable, or None.

        Batch has no token that makes SubmitJob safe to repeat: who may have submitted already, and
        broke off before it could say so, looks. Raises DelegationFailed.
        """
        name, value = variable
        ids = list(self._since(config, since_ms))
        for start in range(0, len(ids), DESCRIBED):
            for job in self._described(ids[start : start + DESCRIBED]):
                if {"name": name, "value": value} in _variables(job):
                    return str(job["jobId"]).partition("#")[0]
        return None

    def has_ended(self, job_id: str) -> bool:
        """Whether a job is over, or forgotten. Raises DelegationFailed."""
        return all(job.get("status") in ENDED for job in self._describe([job_id]))

    def _since(self, config: FunctionConfig, since_ms: int) -> Iterator[str]:
        asked: dict[str, Any] = {
            "jobQueue": config.job_queue,
            "filters": [{"name": "JOB_NAME", "values": [config.name]}],
        }
        while True:
            page = self._ask("/v1/listjobs", asked)
            for job in page["jobSummaryList"]:
                # Clocks differ by less than this.
                if job.get("createdAt", since_ms) >= since_ms - 300_000:
                    yield job["jobId"]
            if not page.get("nextToken"):
                return
            asked["nextToken"] = page["nextToken"]

    def _described(self, ids: list[str]) -> Iterator[dict[str, Any]]:
        """Jobs, and main nodes: what a multi-node job was given only its nodes tell."""
        jobs = self._describe(ids)
        yield from jobs
        nodes = [(job["jobId"], job["nodeProperties"]) for job in jobs if "nodeProperties" in job]
        if nodes:
            yield from self._describe([f"{job_id}#{its['mainNode']}" for job_id, its in nodes])

    def _describe(self, ids: list[str]) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self._ask("/v1/describejobs", {"jobs": ids})["jobs"]
        return jobs

    def _submit(
        self,
        config: FunctionConfig,
        variables: Mapping[str, str],
        request_id: str,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        if not config.job_queue or not config.job_definition:
            raise DelegationFailed(
                f"function `{config.name}` has no job queue and job definition in its config; "
                "deploy it again"
            )
        told = {**variables, contract.REQUEST_ID_VARIABLE: request_id}
        body = {
            "jobName": config.name,
            "jobQueue": config.job_queue,
            "jobDefinition": config.job_definition,
            **_overrides(config, told),
            **(more or {}),
        }
        known_by = contract.ARRAY_VARIABLE if contract.ARRAY_VARIABLE in told else _REQUEST_ID
        began_ms, tries = int(time.time() * 1000), 0

        def look_first() -> None:
            """What failed may have been done: its answer was lost, or the job made too late."""
            nonlocal tries
            tries += 1
            if tries > 1 and (job := self.find(config, began_ms, (known_by, told[known_by]))):
                raise _Submitted(job)

        try:
            answer = self._ask("/v1/submitjob", body, self._submitter, look_first)
            return str(answer["jobId"])
        except _Submitted as submitted:
            return str(submitted)
        except DelegationFailed as exc:
            raise DelegationFailed(f"cannot submit a job to `{config.job_queue}`: {exc}") from exc

    def _ask(
        self,
        path: str,
        body: Mapping[str, Any],
        client: Client | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """The answer; `before` comes before every attempt."""
        client = client or self._client
        headers = {"Content-Type": "application/json"}
        request = Request("POST", path, headers=headers, body=json.dumps(body).encode())

        def make_request() -> Request:
            before()
            return request

        url = client.endpoint or f"https://{regional_host('batch', client.region)}"
        try:
            answer: dict[str, Any] = json.loads(client.call(make_request, url).body)
            return answer
        except (ServiceError, Unreachable, ValueError) as exc:
            raise DelegationFailed(str(exc)) from exc


def _variables(job: Mapping[str, Any]) -> list[Any]:
    """The variables of a job, of its first node where it has several."""
    nodes = job.get("nodeProperties", {}).get("nodeRangeProperties", [])
    container = nodes[0].get("container", {}) if nodes else job.get("container", {})
    found: list[Any] = container.get("environment", [])
    return found


def _overrides(config: FunctionConfig, variables: Mapping[str, str]) -> dict[str, object]:
    """What a job gets that its definition does not say; the nodes of one share a secret."""
    if config.is_multi_node:
        variables = {**variables, contract.MNP_SECRET_VARIABLE: os.urandom(32).hex()}
    entries = [{"name": name, "value": value} for name, value in variables.items()]
    if not config.is_multi_node:
        return {"containerOverrides": {"environment": entries}}
    every = {"targetNodes": "0:", "containerOverrides": {"environment": entries}}
    return {"nodeOverrides": {"nodePropertyOverrides": [every]}}
