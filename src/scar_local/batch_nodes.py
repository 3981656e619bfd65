"""Multi-node parallel jobs: one job, many containers, each with an address of its own.

The job is one row in `batch_jobs` and one attempt; its nodes `<job id>#<index>` have rows here. As
on AWS the main node starts first and its end is the job's: the others are stopped then, and only
its failure is retried. That a child ends sets nothing off.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scar_local.batch_attempts import NOT_STARTED, Attempt, LogStreams, Task, cannot_start
from scar_local.batch_changes import now_ms
from scar_local.batch_jobs import ACTIVE, Job
from scar_local.engines import Engine, EngineError
from scar_local.engines.networks import NODES_LIMIT, JobNetwork
from scar_local.scheduler import Ended

SCHEMA = """
CREATE TABLE IF NOT EXISTS batch_nodes (
    job TEXT NOT NULL,
    node_index INTEGER NOT NULL,
    container TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (job, node_index)
) WITHOUT ROWID;
"""

MAIN_ENDED = "The main node of the multi-node parallel job ended"

_log = logging.getLogger(__name__)

Note = Callable[[int, Mapping[str, Any]], None]
"""Keeps what became of a node: (index, its state)."""


def insert(db: sqlite3.Connection, job_id: str, containers: Sequence[Mapping[str, Any]]) -> None:
    """Add the nodes of a job that was just submitted."""
    db.executemany(
        "INSERT INTO batch_nodes VALUES (?, ?, ?, '{}')",
        [(job_id, index, json.dumps(one)) for index, one in enumerate(containers)],
    )


def containers(db: sqlite3.Connection, job_id: str) -> list[dict[str, Any]]:
    """The container properties of a job's nodes, by index."""
    rows = db.execute(
        "SELECT container FROM batch_nodes WHERE job = ? ORDER BY node_index", (job_id,)
    )
    return [json.loads(row["container"]) for row in rows]


def note(db: sqlite3.Connection, job_id: str, index: int, state: Mapping[str, Any]) -> None:
    """Keep what became of a node; replaces what was known of it."""
    db.execute(
        "UPDATE batch_nodes SET state = ? WHERE job = ? AND node_index = ?",
        (json.dumps(state), job_id, index),
    )


def nodes(db: sqlite3.Connection, job: Job, index: int | None = None) -> list[Job]:
    """The nodes of a job, or one of them, as DescribeJobs shows them."""
    rows = db.execute(
        "SELECT * FROM batch_nodes WHERE job = ? AND node_index = coalesce(?, node_index) "
        "ORDER BY node_index",
        (job["jobId"], index),
    )
    return [_node(job, row) for row in rows]


def shown(job: Job) -> Job:
    """A multi-node job as the API shows it: its containers are those of its nodes."""
    return {key: value for key, value in job.items() if key != "container"}


def forget(db: sqlite3.Connection) -> None:
    """Remove the nodes of jobs that are no more."""
    db.execute("DELETE FROM batch_nodes WHERE job NOT IN (SELECT id FROM batch_jobs)")


def _node(job: Job, row: sqlite3.Row) -> Job:
    index, properties = row["node_index"], job["nodeProperties"]
    container, state = json.loads(row["container"]), json.loads(row["state"])
    own = {"container": {**container, "networkInterfaces": [], **state.pop("container", {})}}
    status = state.get("status", job["status"])
    if status in ACTIVE and job["status"] not in ACTIVE:  # lost with the local cloud
        state = {**state, "status": job["status"], "statusReason": job.get("statusReason", "")}
    hidden = ("nodeProperties", "attempts", "statusReason", "startedAt", "stoppedAt", "dependsOn")
    return {
        **{key: value for key, value in job.items() if key not in hidden},
        **{"attempts": [], "dependsOn": []},
        **own,
        **state,
        "jobId": f"{job['jobId']}#{index}",
        "jobArn": f"{job['jobArn']}#{index}",
        "nodeDetails": {"nodeIndex": index, "isMainNode": index == properties["mainNode"]},
    }


class NodesAttempt:
    """Runs all nodes of a job once. `end` may be called from any thread, at any time."""

    def __init__(
        self, tasks: Sequence[Task], whole: Task, engine: Engine, logs: LogStreams, grace_s: float
    ) -> None:
        """`tasks` are those of the nodes, the main node's first; `whole` is what they need."""
        self.task, self._tasks = whole, tasks
        self._engine, self._logs, self._grace_s = engine, logs, grace_s
        self._changing = threading.Lock()
        self._attempts: list[Attempt] = []
        self._threads: list[threading.Thread] = []
        self._ended_by: Ended | None = None
        self.note: Note = lambda index, state: None

    def run(self, on_running: Callable[[], None]) -> Ended:
        """Start the main node, then the others; its end is theirs. Calls `on_running` between."""
        if self._ended_by:
            return self._ended_by
        try:
            network = self._open()
        except EngineError as exc:
            return Ended(None, NOT_STARTED, cannot_start(str(exc)))
        try:
            return self._run(network, on_running)
        finally:
            self._close(network)

    def end(self, why: Ended) -> None:
        """End the attempt; the first `why` stays. Does not wait."""
        with self._changing:
            self._ended_by = self._ended_by or why
            main = self._attempts[0] if self._attempts else None
        if main:
            main.end(why)

    def kill(self) -> None:
        """End all containers now."""
        for attempt in self._attempts:
            attempt.kill()

    def _open(self) -> JobNetwork:
        count = len(self._tasks)
        if count > NODES_LIMIT:
            raise EngineError(f"{count} nodes: the local cloud runs up to {NODES_LIMIT} in a job")
        endpoint = self._tasks[0].spec.environment["AWS_ENDPOINT_URL"]
        return self._engine.open_network(self._tasks[0].spec.image, count, endpoint)

    def _close(self, network: JobNetwork) -> None:
        try:
            network.close()
        except Exception:  # the job ended as it ended; what is left goes at the next start
            _log.exception("the network of %s stays", self.task.spec.name)

    def _run(self, network: JobNetwork, on_running: Callable[[], None]) -> Ended:
        main = self._attempt(0, network)
        with self._changing:
            if self._ended_by:
                return self._ended_by
            self._attempts.append(main)

        def begun() -> None:
            on_running()
            self._note_running(0)
            for number in range(1, len(self._tasks)):
                self._start_child(number, network)

        try:
            ended = main.run(begun)
            self._note_end(0, ended)
        finally:
            for child in self._attempts[1:]:
                child.end(Ended(None, MAIN_ENDED, final=True))
            for thread in self._threads:
                thread.join()
        return ended

    def _start_child(self, number: int, network: JobNetwork) -> None:
        child = self._attempt(number, network)
        self._attempts.append(child)
        name = child.task.spec.name
        thread = threading.Thread(target=self._run_child, args=(number, child), name=name)
        thread.start()
        self._threads.append(thread)

    def _run_child(self, number: int, child: Attempt) -> None:
        try:
            ended = child.run(lambda: self._note_running(number))
        except Exception as exc:  # the log or the engine is broken: told at the node
            ended = Ended(None, NOT_STARTED, repr(exc)[:255])
        self._note_end(number, ended)

    def _attempt(self, number: int, network: JobNetwork) -> Attempt:
        """The attempt of one node, at its place on the network."""
        task, nodes = self._tasks[number], network.nodes
        variables = {**task.spec.environment, "AWS_ENDPOINT_URL": network.endpoint}
        if number:
            variables["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = nodes[0].ip
        spec = replace(task.spec, environment=variables, address=nodes[number])
        if number:
            task = replace(task, timeout_s=None)  # the main node's ends all
        return Attempt(replace(task, spec=spec), self._engine, self._logs, self._grace_s)

    def _note_running(self, number: int) -> None:
        self._note(number, {"status": "RUNNING", "startedAt": now_ms()}, {})

    def _note_end(self, number: int, ended: Ended) -> None:
        # A child that ends well when the main node has ended did its part.
        succeeded = ended.succeeded or (ended.status_reason == MAIN_ENDED and ended.exit_code == 0)
        status = "SUCCEEDED" if succeeded else "FAILED"
        state = {"status": status, "statusReason": ended.status_reason, "stoppedAt": now_ms()}
        container: dict[str, Any] = {"reason": ended.reason} if ended.reason else {}
        if ended.exit_code is not None:
            container["exitCode"] = ended.exit_code
        self._note(number, state, container)

    def _note(self, number: int, state: dict[str, Any], container: dict[str, Any]) -> None:
        task = self._tasks[number]
        index = int(task.spec.environment["AWS_BATCH_JOB_NODE_INDEX"])
        container["logStreamName"] = task.log_stream
        self.note(index, {**state, "container": container})


def node_variables(index: int, properties: Mapping[str, Any]) -> dict[str, str]:
    """What Batch adds on a node (user guide, "Multi-node parallel job environment variables")."""
    return {
        "AWS_BATCH_JOB_NODE_INDEX": str(index),
        "AWS_BATCH_JOB_NUM_NODES": str(properties["numNodes"]),
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(properties["mainNode"]),
    }
