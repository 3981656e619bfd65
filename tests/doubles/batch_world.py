"""Batch on a directory as boto3 sees it: the real Logs service, jobs as real processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from scar_local.batch import Batch
from scar_local.batch_limits import Limits
from scar_local.codec import codec
from scar_local.door import scope
from scar_local.http import Exchange, Server
from scar_local.logs import Logs
from scar_local.protocol import Call
from scar_local.scheduler import Host
from scar_local.store import Store
from tests.doubles.job_engine import JobEngine

TIMEOUT_S = 10
FINISHED = ("SUCCEEDED", "FAILED")


class World:
    """One Batch on a data directory, its clients and the engine under it."""

    def __init__(self, directory: Path, limits: Limits, store: type[Store] = Store) -> None:
        self.store = store(directory)
        self.logs, self.engine = Logs(self.store), JobEngine()
        self.secrets: dict[str, str] = {}
        """SSM parameters that jobs may ask for."""
        self.batch = Batch(
            self.store, self.engine, self.logs, lambda: "http://here:1", limits, self._ask
        )
        self.server = Server(0, self._answer)
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        session = _session()
        once = Config(retries={"total_max_attempts": 1})
        self.client: Any = session.client("batch", endpoint_url=url, config=once)
        self.log_client: Any = session.client("logs", endpoint_url=url, config=once)

    def _answer(self, exchange: Exchange) -> None:
        service, region = scope(exchange)
        implementation = {"batch": self.batch, "logs": self.logs}[service]
        body = exchange.body.read()
        headers: Any = exchange.headers
        call = Call(exchange.method, exchange.path, exchange.raw_query, headers, body)
        answer = codec(service).serve(implementation, call, region)
        exchange.reply(answer.status, answer.body, answer.headers)

    def _ask(self, operation: str, region: str, params: Any) -> tuple[int, Any]:
        assert operation == "AmazonSSM.GetParameters"
        found = [name for name in params["Names"] if name in self.secrets]
        told = [{"Name": name, "Value": self.secrets[name]} for name in found]
        return 200, {"Parameters": told}

    def set_up(self, max_vcpus: int = 4) -> None:
        """A compute environment `ce`, a queue `jq`."""
        self.client.create_compute_environment(
            computeEnvironmentName="ce", type="MANAGED", computeResources=resources(max_vcpus)
        )
        self.client.create_job_queue(
            jobQueueName="jq", priority=1, computeEnvironmentOrder=[order("ce")]
        )

    def register(self, script: str = "true", name: str = "jd", **more: Any) -> str:
        """The ARN of a new revision of a definition that runs a shell script."""
        container = a_container(script, **more.pop("container", {}))
        answer = self.client.register_job_definition(
            jobDefinitionName=name, type="container", containerProperties=container, **more
        )
        return str(answer["jobDefinitionArn"])

    def submit(self, definition: str = "jd", **more: Any) -> str:
        answer = self.client.submit_job(
            jobName="job", jobQueue="jq", jobDefinition=definition, **more
        )
        return str(answer["jobId"])

    def run(self, script: str, **more: Any) -> dict[str, Any]:
        """The finished job that ran a shell script."""
        self.register(script, **more.pop("definition", {}))
        return self.finished(self.submit(**more))

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.client.describe_jobs(jobs=[job_id])["jobs"][0]
        return job

    def finished(self, job_id: str) -> dict[str, Any]:
        return self.when(job_id, lambda job: job["status"] in FINISHED)

    def when(self, job_id: str, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        until = time.monotonic() + TIMEOUT_S
        while not ready(job := self.job(job_id)):
            assert time.monotonic() < until, job
            time.sleep(0.01)
        return job

    def running(self, job_id: str) -> dict[str, Any]:
        return self.when(job_id, lambda job: job["status"] == "RUNNING")

    def log(self, job: dict[str, Any], group: str = "/aws/batch/job") -> list[str]:
        answer = self.log_client.get_log_events(
            logGroupName=group,
            logStreamName=job["container"]["logStreamName"],
            startFromHead=True,
        )
        return [event["message"] for event in answer["events"]]


@cache
def _session() -> boto3.Session:
    """One for all tests: a session reads the service models once."""
    return boto3.Session("local", "local", region_name="eu-west-1")


def resources(max_vcpus: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "type": "EC2",
        "minvCpus": 0,
        "maxvCpus": max_vcpus,
        "instanceTypes": ["optimal"],
        "instanceRole": "ecsInstanceRole",
        "subnets": ["subnet-local"],
        "securityGroupIds": ["sg-local"],
        **more,
    }


def order(environment: str) -> dict[str, Any]:
    return {"order": 1, "computeEnvironment": environment}


def needs(vcpus: int = 1, memory_mib: int = 64, gpus: int = 0) -> list[dict[str, str]]:
    asked = {"VCPU": vcpus, "MEMORY": memory_mib, "GPU": gpus}
    return [{"type": kind, "value": str(value)} for kind, value in asked.items() if value]


def a_container(script: str = "true", **more: Any) -> dict[str, Any]:
    command = ["sh", "-c", script]
    return {"image": "any:1", "command": command, "resourceRequirements": needs(), **more}


Opener = Callable[..., AbstractContextManager[World]]


def opener(directory: Path, store: type[Store] = Store) -> Opener:
    """Opens the cloud on a directory; a second time: the cloud after a restart."""

    @contextmanager
    def opened(start: bool = True, **limits: Any) -> Iterator[World]:
        defaults = {"stop_grace_s": 0.5, "host": Host(4, 8000)}
        world = World(directory, Limits(**{**defaults, **limits}), store)
        with world.server:
            thread = threading.Thread(target=world.server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            if start:
                world.batch.start()
            try:
                yield world
            finally:
                world.batch.stop()
                world.server.shutdown()
                thread.join()

    return opened
