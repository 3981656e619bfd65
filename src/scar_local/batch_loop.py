"""The loop that moves jobs: one scheduler thread that sleeps until woken, one thread an attempt.

What a crash leaves behind: a job that was STARTING or RUNNING when the process was killed has lost
its container, as on AWS when an instance dies. The attempt counts as failed with AWS's reason
(`Host EC2 (instance i-…) terminated.`) and the retry strategy decides: with one attempt, AWS's
default, the job is FAILED and says why, with more it is RUNNABLE again. Jobs before STARTING go on
as if nothing had happened. So no job is lost, but a job is only run twice when it may be.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from scar_local import batch_jobs as jobs
from scar_local import batch_nodes as nodes
from scar_local.background import Background
from scar_local.batch_attempts import Attempt, LogStreams, Task
from scar_local.batch_changes import now_ms
from scar_local.batch_limits import OVERRIDES_LIMIT_CHARACTERS, Limits, need_of
from scar_local.batch_nodes import NodesAttempt
from scar_local.batch_secrets import Ask, Secrets
from scar_local.engines import ContainerSpec, Engine
from scar_local.protocol import ACCOUNT_ID
from scar_local.scheduler import (
    Decisions,
    Ended,
    Environment,
    Held,
    Queue,
    decide,
    total_need,
)
from scar_local.store import Store

TOO_LONG = f"Container Overrides length must be at most {OVERRIDES_LIMIT_CHARACTERS}"
"""What AWS says of a job that it accepted and whose overrides ECS then refuses."""

INTERNAL_FAULT = "Internal fault of the local cloud, see its daemon.log"
DEFAULT_LOG_GROUP = "/aws/batch/job"
_FORGET_EVERY = 1000
_DAY_MS = 24 * 3600 * 1000
_log = logging.getLogger(__name__)


class Loop:
    """Runs what is RUNNABLE. Call `wake` after anything it should look at was committed."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        logs: LogStreams,
        endpoint: Callable[[], str],
        limits: Limits,
        ask: Ask,
    ) -> None:
        self._store, self._engine, self._logs = store, engine, logs
        self._endpoint, self._limits, self._ask = endpoint, limits, ask
        self._scheduler = Background("batch-scheduler", self._schedule)
        # By container name, not by job: the next attempt may begin before this one is cleared away.
        self._attempts: dict[str, Attempt | NodesAttempt] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._settled = 0
        self._instance = uuid.uuid4().hex
        self._host_lost = f"Host EC2 (instance i-{self._instance[:17]}) terminated."

    def start(self) -> None:
        """Settle what a crash left behind, then run jobs."""
        with self._store.write() as db:
            for job in jobs.in_status(db, jobs.ACTIVE):
                jobs.settle(db, job, self._lost(job), now_ms())
            self._forget(db)
        self._scheduler.start()

    def _lost(self, job: jobs.Job) -> Ended:
        if job["isTerminated"]:
            return Ended(None, job["statusReason"], final=True)
        return Ended(None, self._host_lost)

    def stop(self, grace_s: float = 2.0) -> None:
        """Start nothing more and end the running containers, as if their instance were stopped."""
        self._scheduler.stop()
        attempts, threads = list(self._attempts.values()), list(self._threads.values())
        for attempt in attempts:
            attempt.end(Ended(None, self._host_lost))
        until = time.monotonic() + grace_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        for attempt in attempts:
            attempt.kill()
        for thread in threads:
            thread.join()

    def wake(self) -> None:
        """Look at the jobs again."""
        self._scheduler.wake()

    def end(self, job_id: str, status_reason: str) -> None:
        """End the running attempts of a job, or an array, whose termination is committed."""
        for attempt in list(self._attempts.values()):
            if job_id in (attempt.task.job, attempt.task.job.partition(":")[0]):
                attempt.end(Ended(None, status_reason, final=True))

    def _schedule(self) -> None:
        if jobs.has(self._store.read(), ("SUBMITTED", "RUNNABLE")):
            for attempt in self._place():
                self._launch(attempt)

    def _place(self) -> list[Attempt | NodesAttempt]:
        attempts: dict[str, Attempt | NodesAttempt] = {}
        try:
            with self._store.write() as db:
                jobs.admit(db, now_ms())
                held = [Held(a.task.environment, a.task.need) for a in self._attempts.values()]
                decisions = decide(self._queues(db), held, self._limits.host)
                self._note_stuck(db, decisions)
                begun = [self._begin(db, job_id, where) for job_id, where in decisions.starts]
                attempts = {attempt.task.spec.name: attempt for attempt in begun if attempt}
                # Before the commit: who terminates a job that is STARTING must find its attempt.
                self._attempts.update(attempts)
        except BaseException:
            for name in attempts:
                self._attempts.pop(name, None)
            raise
        return list(attempts.values())

    def _queues(self, db: sqlite3.Connection) -> list[Queue]:
        # A pass can start no more than this: each job takes a quarter of a vCPU at least.
        limit = 4 * self._limits.host.vcpus + 1
        environments = {
            row["arn"]: _environment(json.loads(row["detail"]))
            for row in db.execute("SELECT arn, detail FROM batch_environments")
        }
        queues = []
        for row in db.execute("SELECT arn, detail FROM batch_queues").fetchall():
            detail = json.loads(row["detail"])
            order = sorted(detail["computeEnvironmentOrder"], key=lambda entry: entry["order"])
            usable = tuple(environments[entry["computeEnvironment"]] for entry in order)
            queues.append(Queue(detail["priority"], usable, jobs.heads(db, row["arn"], limit)))
        return queues

    def _note_stuck(self, db: sqlite3.Connection, decisions: Decisions) -> None:
        for job_id, reason in decisions.stuck:
            job = jobs.load(db, job_id)
            if job and job.get("statusReason") != reason:
                jobs.save(db, {**job, "statusReason": reason})

    def _begin(
        self, db: sqlite3.Connection, job_id: str, environment: str
    ) -> Attempt | NodesAttempt | None:
        job = jobs.load(db, job_id)
        if job is None:
            return None
        task_id = uuid.uuid4().hex
        job = _starting(job, environment, task_id, self._instance)
        jobs.save(db, job)
        if jobs.overrides_length(db, job_id) > OVERRIDES_LIMIT_CHARACTERS:
            jobs.fail(db, job, TOO_LONG, now_ms())
            self.wake()
            return None
        if "nodeProperties" in job:
            return self._begin_nodes(db, job, environment)
        task = self._task(job, environment, task_id)
        return Attempt(task, self._engine, self._logs, self._limits.stop_grace_s)

    def _begin_nodes(self, db: sqlite3.Connection, job: jobs.Job, environment: str) -> NodesAttempt:
        job_id, properties = job["jobId"], job["nodeProperties"]
        tasks = []
        for index, container in enumerate(nodes.containers(db, job_id)):
            nodes.note(db, job_id, index, {})
            node = {**job, "jobId": f"{job_id}#{index}", "container": container}
            task = self._task(node, environment, uuid.uuid4().hex)
            variables = {**task.spec.environment, **nodes.node_variables(index, properties)}
            tasks.append(replace(task, spec=replace(task.spec, environment=variables)))
        main = tasks.pop(properties["mainNode"])
        tasks.insert(0, main)
        whole = replace(main, job=job_id, need=total_need([task.need for task in tasks]))
        engine, logs = self._engine, self._logs
        attempt = NodesAttempt(tasks, whole, engine, logs, self._limits.stop_grace_s)
        attempt.note = lambda index, state: self._note_node(job_id, index, state)
        return attempt

    def _task(self, job: jobs.Job, environment: str, task_id: str) -> Task:
        task = _task(job, environment, task_id, self._endpoint())
        wanted = job["container"].get("secrets") or ()
        is_fargate = "FARGATE" in (job.get("platformCapabilities") or ())
        secrets = Secrets(self._ask, _region(environment), is_fargate)
        return replace(task, secrets=lambda: secrets.values(wanted))

    def _note_node(self, job_id: str, index: int, state: Mapping[str, Any]) -> None:
        def note() -> None:
            with self._store.write() as db:
                nodes.note(db, job_id, index, state)

        self._scheduler.insist(f"keeping what became of node {index} of job {job_id}", note)

    def _launch(self, attempt: Attempt | NodesAttempt) -> None:
        name = attempt.task.spec.name

        def begin() -> None:
            thread = threading.Thread(target=self._attempt, args=(attempt,), name=name, daemon=True)
            self._threads[name] = thread
            try:
                thread.start()
            except RuntimeError:  # there are too many threads on the machine
                del self._threads[name]
                raise

        self._scheduler.insist(f"starting {name}", begin)

    def _attempt(self, attempt: Attempt | NodesAttempt) -> None:
        task = attempt.task
        try:
            ended = attempt.run(lambda: self._note_running(task))
        except Exception as exc:  # the log or the engine is broken: the attempt failed, and says so
            _log.exception("%s failed", task.spec.name)
            ended = Ended(None, INTERNAL_FAULT, repr(exc)[:255])

        def settle() -> None:
            with self._store.write() as db:
                self._settle(db, task.job, ended)

        self._scheduler.insist(f"keeping how {task.spec.name} ended", settle)
        del self._attempts[task.spec.name], self._threads[task.spec.name]
        self.wake()

    def _settle(self, db: sqlite3.Connection, job_id: str, ended: Ended) -> None:
        job = jobs.load(db, job_id)
        if job is None:
            return
        if job["isTerminated"]:
            ended = replace(ended, status_reason=job["statusReason"], final=True)
        jobs.settle(db, job, ended, now_ms())
        self._settled += 1
        if self._settled % _FORGET_EVERY == 0:
            self._forget(db)

    def _note_running(self, task: Task) -> None:
        def note() -> None:
            with self._store.write() as db:
                job = jobs.load(db, task.job)
                if job:
                    container = {**job["container"], "logStreamName": task.log_stream}
                    started = {"status": "RUNNING", "startedAt": now_ms(), "container": container}
                    jobs.save(db, {**job, **started})

        self._scheduler.insist(f"keeping that {task.spec.name} runs", note)

    def _forget(self, db: sqlite3.Connection) -> None:
        oldest_ms = now_ms() - int(self._limits.keep_days * _DAY_MS)
        jobs.forget(db, oldest_ms, self._limits.keep_finished)
        nodes.forget(db)


def batch_variables(job: jobs.Job, environment: str) -> dict[str, str]:
    """What Batch adds to the environment of a job (user guide, "Job environment variables")."""
    variables = {
        "AWS_BATCH_JOB_ID": job["jobId"],
        "AWS_BATCH_JOB_ATTEMPT": str(len(job["attempts"]) + 1),
        "AWS_BATCH_JQ_NAME": _name(job["jobQueue"]),
        "AWS_BATCH_CE_NAME": _name(environment),
    }
    array = job.get("arrayProperties") or {}
    if "index" in array:
        variables["AWS_BATCH_JOB_ARRAY_INDEX"] = str(array["index"])
        variables["AWS_BATCH_JOB_ARRAY_SIZE"] = str(array["size"])
    return variables


def _starting(job: jobs.Job, environment: str, task_id: str, instance: str) -> jobs.Job:
    arn, cluster = f"arn:aws:ecs:{_region(environment)}:{ACCOUNT_ID}", _name(environment)
    container = {
        **job["container"],
        "containerInstanceArn": f"{arn}:container-instance/{cluster}/{instance}",
        "taskArn": f"{arn}:task/{cluster}/{task_id}",
    }
    starting = {**job, "status": "STARTING", "container": container}
    starting.pop("statusReason", None)
    return starting


def _task(job: jobs.Job, environment: str, task_id: str, endpoint: str) -> Task:
    container = job["container"]
    need = need_of(container)
    definition = _name(job["jobDefinition"]).split(":")[0]
    log = (container.get("logConfiguration") or {}).get("options") or {}
    attempt = len(job["attempts"]) + 1
    region = _region(environment)
    spec = ContainerSpec(
        name=f"job-{re.sub('[:#]', '-', job['jobId'])}-{attempt}",
        image=container["image"],
        environment={
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_ENDPOINT_URL": endpoint,
            **{entry["name"]: entry.get("value", "") for entry in container["environment"]},
            **batch_variables(job, environment),
        },
        command=[substitute(word, job["parameters"]) for word in container.get("command") or ()],
        memory_mib=need.memory_mib,
        vcpus=need.vcpus,
        read_only_root=bool(container.get("readonlyRootFilesystem")),
    )
    return Task(
        job=job["jobId"],
        environment=environment,
        need=need,
        spec=spec,
        log_group=log.get("awslogs-group", DEFAULT_LOG_GROUP),
        log_stream=f"{log.get('awslogs-stream-prefix', definition)}/default/{task_id}",
        timeout_s=job.get("timeout", {}).get("attemptDurationSeconds"),
    )


def substitute(word: str, parameters: Mapping[str, str]) -> str:
    """`Ref::name` replaced by the parameter of that name; an unknown name stays as it is."""
    return re.sub(r"Ref::([A-Za-z0-9_.-]+)", lambda ref: parameters.get(ref[1], ref[0]), word)


def _environment(detail: Mapping[str, Any]) -> Environment:
    most = (detail.get("computeResources") or {}).get("maxvCpus", math.inf)
    return Environment(detail["computeEnvironmentArn"], most, detail["state"] == "ENABLED")


def _region(arn: str) -> str:
    return arn.split(":")[3]


def _name(arn: str) -> str:
    return arn.rsplit("/", 1)[1]
