"""AWS Batch: compute environments, job queues, job definitions and jobs.

One method an operation, as boto3 names it. The host is the one instance of every compute
environment: an environment is VALID at once, and what it limits is `maxvCpus`. `batch_limits`
checks requests, `batch_jobs` keeps the jobs, `scheduler` decides, `batch_loop` runs.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from scar_local import batch_changes as changes
from scar_local import batch_jobs as jobs
from scar_local import batch_limits as check
from scar_local import batch_nodes as nodes
from scar_local.batch_attempts import LogStreams
from scar_local.batch_changes import now_ms
from scar_local.batch_limits import Limits, refuse, required
from scar_local.batch_listing import children, parse_filter, summary, top_level
from scar_local.batch_loop import Loop, batch_variables
from scar_local.batch_secrets import Ask
from scar_local.engines import Engine
from scar_local.protocol import ACCOUNT_ID, ApiError, Request
from scar_local.scheduler import total_need
from scar_local.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS batch_environments (arn TEXT PRIMARY KEY, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batch_queues (arn TEXT PRIMARY KEY, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batch_definitions (
    arn TEXT PRIMARY KEY,
    family TEXT NOT NULL,
    revision INTEGER NOT NULL,
    status TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS batch_definitions_by_family
    ON batch_definitions (family, status, revision);
"""

_LISTS = (
    *("command", "environment", "mountPoints", "resourceRequirements", "secrets"),
    *("ulimits", "volumes"),
)
"""Members of containerProperties that AWS answers as empty lists where they were not given."""
_PAGE = 100
_JOBS_PAGE = 1000
_MANY = 50
"""Jobs that one CancelJobs or TerminateJobs takes."""
_ENVIRONMENT, _QUEUE = ("batch_environments", "compute-environment"), ("batch_queues", "job-queue")


def _nobody(operation: str, region: str, params: Mapping[str, Any]) -> tuple[int, Any]:
    raise ApiError("NotImplemented", f"there is nobody to answer {operation}", 501)


class Batch:
    """The Batch service of one local cloud. `endpoint` gives the URL that jobs reach it by.

    `ask` gives what jobs ask of Secrets Manager and SSM.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        logs: LogStreams,
        endpoint: Callable[[], str],
        limits: Limits | None = None,
        ask: Ask = _nobody,
    ) -> None:
        self._store = store
        self._limits = limits or Limits()
        store.install(SCHEMA + nodes.SCHEMA)
        jobs.install(store)
        self._loop = Loop(store, engine, logs, endpoint, self._limits, ask)

    def start(self) -> None:
        """Settle the attempts that a crash interrupted and run the jobs that wait."""
        self._loop.start()

    def stop(self) -> None:
        """Run nothing more; containers that run are stopped."""
        self._loop.stop()

    def images(self) -> list[str]:
        """Every image that an active job definition or an unfinished job names."""
        rows = self._store.read().execute(
            "SELECT detail FROM batch_definitions WHERE status = 'ACTIVE' UNION ALL"
            " SELECT detail FROM batch_jobs WHERE status NOT IN (?, ?)",
            jobs.FINISHED,
        )
        return [image for row in rows for image in _images(json.loads(row["detail"]))]

    def tagged(self) -> Iterator[tuple[str, dict[str, str]]]:
        """(ARN, tags) of everything that has tags; of definitions only what is ACTIVE."""
        queries = (
            "SELECT arn, detail FROM batch_environments",
            "SELECT arn, detail FROM batch_queues",
            "SELECT arn, detail FROM batch_definitions WHERE status = 'ACTIVE'",
            "SELECT '' AS arn, detail FROM batch_jobs WHERE parent IS NULL "
            "AND json_extract(detail, '$.tags') != '{}'",
        )
        for query in queries:
            for row in self._store.read().execute(query).fetchall():
                detail = json.loads(row["detail"])
                if detail["tags"]:
                    yield row["arn"] or detail["jobArn"], detail["tags"]

    # Compute environments

    def create_compute_environment(self, request: Request) -> dict[str, Any]:
        """CreateComputeEnvironment: VALID at once."""
        params = request.params
        check.check_environment(params)
        name = params["computeEnvironmentName"]
        arn = _arn(request.region, "compute-environment", name)
        identity = str(uuid.uuid4())
        role = f"arn:aws:iam::{ACCOUNT_ID}:role/aws-service-role/batch.amazonaws.com"
        detail = {
            "computeEnvironmentName": name,
            "computeEnvironmentArn": arn,
            "ecsClusterArn": f"arn:aws:ecs:{request.region}:{ACCOUNT_ID}:cluster/"
            f"AWSBatch-{name}-{identity}",
            "tags": params.get("tags") or {},
            "type": params["type"],
            "state": params.get("state", "ENABLED"),
            "status": "VALID",
            "statusReason": "ComputeEnvironment Healthy",
            "serviceRole": params.get("serviceRole") or f"{role}/AWSServiceRoleForBatch",
            "containerOrchestrationType": "ECS",
            "uuid": identity,
        }
        if params["type"] == "MANAGED":
            detail["computeResources"] = {"minvCpus": 0, **params["computeResources"]}
        with self._store.write() as db:
            _add(db, _ENVIRONMENT, arn, detail, check.ENVIRONMENTS_LIMIT)
        return {"computeEnvironmentName": name, "computeEnvironmentArn": arn}

    def update_compute_environment(self, request: Request) -> dict[str, Any]:
        """UpdateComputeEnvironment: what is given replaces what was."""
        params = request.params
        check.check_state(params)
        with self._store.write() as db:
            detail = _find(db, _ENVIRONMENT, request.region, required(params, "computeEnvironment"))
            for key in ("state", "serviceRole", "unmanagedvCpus", "updatePolicy"):
                if key in params:
                    detail[key] = params[key]
            if params.get("computeResources"):
                detail["computeResources"] = {
                    **detail.get("computeResources", {}),
                    **params["computeResources"],
                }
                check.check_resources(detail["computeResources"])
            _put(db, _ENVIRONMENT, detail["computeEnvironmentArn"], detail)
        self._loop.wake()
        return {key: detail[key] for key in ("computeEnvironmentName", "computeEnvironmentArn")}

    def delete_compute_environment(self, request: Request) -> dict[str, Any]:
        """DeleteComputeEnvironment: only a DISABLED one that no queue uses."""
        with self._store.write() as db:
            reference = required(request.params, "computeEnvironment")
            detail = _find(db, _ENVIRONMENT, request.region, reference)
            arn = detail["computeEnvironmentArn"]
            if detail["state"] != "DISABLED":
                refuse(f"Cannot delete, compute environment {arn} must be DISABLED first")
            if any(arn in _order_of(queue) for queue in _all(db, _QUEUE)):
                refuse("Cannot delete, found existing JobQueue relationship")
            db.execute("DELETE FROM batch_environments WHERE arn = ?", (arn,))
        return {}

    def describe_compute_environments(self, request: Request) -> dict[str, Any]:
        """DescribeComputeEnvironments: by name or ARN, or all of the region."""
        return self._describe(request, _ENVIRONMENT, "computeEnvironments")

    # Job queues

    def create_job_queue(self, request: Request) -> dict[str, Any]:
        """CreateJobQueue: VALID at once."""
        params = request.params
        name = required(params, "jobQueueName")
        check.check_name(name, "jobQueueName")
        check.check_queue(params)
        arn = _arn(request.region, "job-queue", name)
        with self._store.write() as db:
            detail = {
                "jobQueueName": name,
                "jobQueueArn": arn,
                "state": params.get("state", "ENABLED"),
                "status": "VALID",
                "statusReason": "JobQueue Healthy",
                "priority": required(params, "priority"),
                "computeEnvironmentOrder": _order(
                    db, request.region, required(params, "computeEnvironmentOrder")
                ),
                "jobStateTimeLimitActions": [],
                "tags": params.get("tags") or {},
            }
            _add(db, _QUEUE, arn, detail, check.QUEUES_LIMIT)
        return {"jobQueueName": name, "jobQueueArn": arn}

    def update_job_queue(self, request: Request) -> dict[str, Any]:
        """UpdateJobQueue: what is given replaces what was."""
        params = request.params
        check.check_queue(params)
        with self._store.write() as db:
            detail = _find(db, _QUEUE, request.region, required(params, "jobQueue"))
            for key in ("state", "priority"):
                if key in params:
                    detail[key] = params[key]
            if params.get("computeEnvironmentOrder"):
                order = _order(db, request.region, params["computeEnvironmentOrder"])
                detail["computeEnvironmentOrder"] = order
            _put(db, _QUEUE, detail["jobQueueArn"], detail)
        self._loop.wake()
        return {key: detail[key] for key in ("jobQueueName", "jobQueueArn")}

    def delete_job_queue(self, request: Request) -> dict[str, Any]:
        """DeleteJobQueue: only a DISABLED one; its jobs are terminated."""
        with self._store.write() as db:
            detail = _find(db, _QUEUE, request.region, required(request.params, "jobQueue"))
            arn = detail["jobQueueArn"]
            if detail["state"] != "DISABLED":
                refuse(f"Cannot delete, job queue {arn} must be DISABLED first")
            unfinished = jobs.unfinished(db, arn)
            for job in unfinished:
                jobs.terminate(db, job, _QUEUE_DELETED, now_ms())
            db.execute("DELETE FROM batch_queues WHERE arn = ?", (arn,))
        for job in unfinished:
            self._loop.end(job["jobId"], _QUEUE_DELETED)
        return {}

    def describe_job_queues(self, request: Request) -> dict[str, Any]:
        """DescribeJobQueues: by name or ARN, or all of the region."""
        return self._describe(request, _QUEUE, "jobQueues")

    # Job definitions

    def register_job_definition(self, request: Request) -> dict[str, Any]:
        """RegisterJobDefinition: the next revision of the name, ACTIVE."""
        params = request.params
        check.check_definition(params, self._limits)
        name = params["jobDefinitionName"]
        family = _arn(request.region, "job-definition", name)
        given = ("retryStrategy", "timeout", "propagateTags", "platformCapabilities")
        with self._store.write() as db:
            latest = "SELECT coalesce(max(revision), 0) FROM batch_definitions WHERE family = ?"
            revision = db.execute(latest, (family,)).fetchone()[0] + 1
            arn = f"{family}:{revision}"
            detail = {
                "jobDefinitionName": name,
                "jobDefinitionArn": arn,
                "revision": revision,
                "status": "ACTIVE",
                "type": params["type"],
                "parameters": params.get("parameters") or {},
                **_what_runs(params),
                "containerOrchestrationType": "ECS",
                "tags": params.get("tags") or {},
                **{key: params[key] for key in given if params.get(key) is not None},
            }
            db.execute(
                "INSERT INTO batch_definitions VALUES (?, ?, ?, 'ACTIVE', ?)",
                (arn, family, revision, json.dumps(detail)),
            )
        return {"jobDefinitionName": name, "jobDefinitionArn": arn, "revision": revision}

    def deregister_job_definition(self, request: Request) -> dict[str, Any]:
        """DeregisterJobDefinition: one revision becomes INACTIVE."""
        reference = required(request.params, "jobDefinition")
        family, revision = _definition_reference(request.region, reference)
        if revision is None:
            refuse(f"jobDefinition `{reference}` must name a revision: `name:revision` or its ARN")
        with self._store.write() as db:
            arn = f"{family}:{revision}"
            detail = _get(db, "batch_definitions", arn)
            if detail is None:
                refuse(f"JobDefinition {reference} not found")
            db.execute(
                "UPDATE batch_definitions SET status = 'INACTIVE', detail = ? WHERE arn = ?",
                (json.dumps({**detail, "status": "INACTIVE"}), arn),
            )
        return {}

    def describe_job_definitions(self, request: Request) -> dict[str, Any]:
        """DescribeJobDefinitions: newest revision of a name first."""
        params, db = request.params, self._store.read()
        if params.get("jobDefinitions"):
            families = [_definition_reference(request.region, r) for r in params["jobDefinitions"]]
            found = [d for family, revision in families for d in _revisions(db, family, revision)]
        elif params.get("jobDefinitionName"):
            name = params["jobDefinitionName"]
            family, revision = _definition_reference(request.region, name)
            found = _revisions(db, family, revision)
        else:
            prefix = _arn(request.region, "job-definition", "")
            rows = db.execute(
                "SELECT detail FROM batch_definitions WHERE substr(arn, 1, ?) = ? "
                "ORDER BY family, revision DESC",
                (len(prefix), prefix),
            )
            found = [json.loads(row["detail"]) for row in rows]
        if params.get("status"):
            found = [detail for detail in found if detail["status"] == params["status"]]
        return _page("jobDefinitions", found, params)

    # Jobs

    def submit_job(self, request: Request) -> dict[str, Any]:
        """SubmitJob: SUBMITTED; the scheduler takes it from there."""
        params = request.params
        check.check_submission(params, self._limits)
        with self._store.write() as db:
            queue = _find(db, _QUEUE, request.region, required(params, "jobQueue"))
            if queue["state"] != "ENABLED":
                refuse(f"Cannot submit job. {queue['jobQueueArn']} is not in state ENABLED.")
            definition = _active(db, request.region, required(params, "jobDefinition"))
            job = _new_job(request, queue, definition)
            for dependency in job["dependsOn"]:
                _check_dependency(db, job, dependency)
            environment = queue["computeEnvironmentOrder"][0]["computeEnvironment"]
            if "nodeProperties" in definition:
                _check_instances(db, queue)
                _insert_nodes(db, job, params.get("nodeOverrides") or {}, definition)
            else:
                length = check.overrides_length(
                    params.get("containerOverrides") or {},
                    batch_variables(_last(job), environment),
                )
                jobs.insert(db, job, check.need_of(job["container"]), length)
        self._loop.wake()
        return {key: job[key] for key in ("jobArn", "jobName", "jobId")}

    def describe_jobs(self, request: Request) -> dict[str, Any]:
        """DescribeJobs: up to 100; unknown ids are left out."""
        ids = required(request.params, "jobs")
        if len(ids) > _PAGE:
            refuse(f"{len(ids)} jobs: DescribeJobs takes up to {_PAGE}")
        db = self._store.read()
        region = f":{request.region}:"
        found = (_described(db, job_id.rsplit("/", 1)[-1]) for job_id in ids)
        shown = (job for job in found if job and region in job["jobArn"])
        return {"jobs": list(shown)}

    def list_jobs(self, request: Request) -> dict[str, Any]:
        """ListJobs: of one queue or array, newest first; RUNNING ones unless asked for others."""
        params, db = request.params, self._store.read()
        if params.get("multiNodeJobId"):
            return {"jobSummaryList": _nodes_of(db, params)}
        filters = params.get("filters")
        if params.get("arrayJobId"):
            search = children(_job(db, params["arrayJobId"])["jobId"], params.get("jobStatus"))
            filters = None
        else:
            queue = _find(db, _QUEUE, request.region, required(params, "jobQueue"))
            wanted = parse_filter(filters) if filters else None
            search = top_level(queue["jobQueueArn"], wanted, params.get("jobStatus"))
        most = _PAGE if filters else _JOBS_PAGE
        size = min(params.get("maxResults") or most, most)
        token = params.get("nextToken")
        if token is not None and not token.isdigit():
            refuse("nextToken is not one that ListJobs gave")
        before = int(token) if token else None
        found = jobs.search(db, search, before, size + 1)
        shown = (jobs.shown(db, job) for _, job in found[:size])
        answer: dict[str, Any] = {"jobSummaryList": [summary(job) for job in shown]}
        if len(found) > size:
            answer["nextToken"] = str(found[size - 1][0])
        return answer

    def cancel_job(self, request: Request) -> dict[str, Any]:
        """CancelJob: ends what has not come to STARTING; to the rest nothing happens."""
        self._cancel(required(request.params, "jobId"), _reason(request))
        return {}

    def cancel_jobs(self, request: Request) -> dict[str, Any]:
        """CancelJobs: up to 50 jobs, each as CancelJob does."""
        return _each(request, self._cancel)

    def terminate_job(self, request: Request) -> dict[str, Any]:
        """TerminateJob: ends a job in any state; answers before its container is gone."""
        self._terminate(required(request.params, "jobId"), _reason(request))
        return {}

    def terminate_jobs(self, request: Request) -> dict[str, Any]:
        """TerminateJobs: up to 50 jobs, each as TerminateJob does."""
        return _each(request, self._terminate)

    def get_job_queue_snapshot(self, request: Request) -> dict[str, Any]:
        """GetJobQueueSnapshot: the first 100 RUNNABLE jobs, and the vCPUs in use."""
        db = self._store.read()
        queue = _find(db, _QUEUE, request.region, required(request.params, "jobQueue"))
        front = []
        for waiting in jobs.heads(db, queue["jobQueueArn"], _PAGE):
            since = changes.runnable_since(db, waiting.job)
            if job := jobs.load(db, waiting.job):
                at = {"earliestTimeAtPosition": since or job["createdAt"]}
                front.append({"jobArn": job["jobArn"], **at})
        return {"frontOfQueue": {"jobs": front, "lastUpdatedAt": now_ms()}}

    def changes(self, after: int, job_id: str | None, limit: int = 1000) -> dict[str, Any]:
        """What became of jobs, as EventBridge would tell it: the next events after a number."""
        db = self._store.read()
        events, last = [], after
        for row in changes.after(db, after, job_id, limit):
            last = row["number"]
            if job := jobs.load(db, row["job"]):
                events.append(changes.event(row, job))
        return {"events": events, "last": last}

    def _cancel(self, job_id: str, reason: str) -> None:
        with self._store.write() as db:
            jobs.cancel(db, _job(db, job_id), reason, now_ms())
        self._loop.wake()

    def _terminate(self, job_id: str, reason: str) -> None:
        job_id = job_id.partition("#")[0]
        with self._store.write() as db:
            jobs.terminate(db, _job(db, job_id), reason, now_ms())
        self._loop.end(job_id, reason)
        self._loop.wake()

    # Tags

    def tag_resource(self, request: Request) -> dict[str, Any]:
        """TagResource: of a compute environment, queue, definition or job."""
        with self._store.write() as db:
            kept = _tagged(db, required(request.params, "resourceArn"))
            tags = {**kept.detail["tags"], **required(request.params, "tags")}
            check.check_tags(tags)
            kept.save(db, tags)
        return {}

    def untag_resource(self, request: Request) -> dict[str, Any]:
        """UntagResource; a key that is not there is no error."""
        with self._store.write() as db:
            kept = _tagged(db, required(request.params, "resourceArn"))
            gone = set(required(request.params, "tagKeys"))
            kept.save(db, {k: v for k, v in kept.detail["tags"].items() if k not in gone})
        return {}

    def list_tags_for_resource(self, request: Request) -> dict[str, Any]:
        """ListTagsForResource."""
        arn = required(request.params, "resourceArn")
        return {"tags": _tagged(self._store.read(), arn).detail["tags"]}

    def _describe(self, request: Request, kind: tuple[str, str], member: str) -> dict[str, Any]:
        db, params = self._store.read(), request.params
        if params.get(member):
            arns = [_arn_of(request.region, kind[1], reference) for reference in params[member]]
            found = [detail for arn in arns if (detail := _get(db, kind[0], arn))]
        else:
            prefix = _arn(request.region, kind[1], "")
            found = [d for d in _all(db, kind) if d[_ARN_KEY[kind]].startswith(prefix)]
        return _page(member, found, params)


_QUEUE_DELETED = "Job queue deleted"
_ARN_KEY = {_ENVIRONMENT: "computeEnvironmentArn", _QUEUE: "jobQueueArn"}


def _images(detail: Any) -> Iterator[str]:
    """Every value of the key `image`: of a container's, or of any node range's."""
    if isinstance(detail, list):
        for item in detail:
            yield from _images(item)
    elif isinstance(detail, dict):
        if isinstance(image := detail.get("image"), str):
            yield image
        for value in detail.values():
            yield from _images(value)


def _arn(region: str, kind: str, name: str) -> str:
    return f"arn:aws:batch:{region}:{ACCOUNT_ID}:{kind}/{name}"


def _arn_of(region: str, kind: str, reference: str) -> str:
    return reference if reference.startswith("arn:") else _arn(region, kind, reference)


def _get(db: sqlite3.Connection, table: str, arn: str) -> dict[str, Any] | None:
    row = db.execute(f"SELECT detail FROM {table} WHERE arn = ?", (arn,)).fetchone()  # noqa: S608
    return json.loads(row["detail"]) if row else None


def _all(db: sqlite3.Connection, kind: tuple[str, str]) -> list[dict[str, Any]]:
    rows = db.execute(f"SELECT detail FROM {kind[0]} ORDER BY arn")  # noqa: S608
    return [json.loads(row["detail"]) for row in rows]


def _find(
    db: sqlite3.Connection, kind: tuple[str, str], region: str, reference: str
) -> dict[str, Any]:
    detail = _get(db, kind[0], _arn_of(region, kind[1], reference))
    if detail is None:
        refuse(f"{'JobQueue' if kind == _QUEUE else 'ComputeEnvironment'} {reference} not found")
    return detail


def _put(db: sqlite3.Connection, kind: tuple[str, str], arn: str, detail: object) -> None:
    db.execute(
        f"INSERT OR REPLACE INTO {kind[0]} VALUES (?, ?)",  # noqa: S608
        (arn, json.dumps(detail)),
    )


def _add(
    db: sqlite3.Connection, kind: tuple[str, str], arn: str, detail: object, limit: int
) -> None:
    if _get(db, kind[0], arn):
        refuse("Object already exists")
    prefix = arn.rsplit("/", 1)[0]
    count = sum(1 for other in _all(db, kind) if other[_ARN_KEY[kind]].startswith(prefix))
    if count >= limit:
        refuse(f"{count} of {kind[1]} exist in this region already: the limit is {limit}")
    _put(db, kind, arn, detail)


def _order(
    db: sqlite3.Connection, region: str, order: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    found = [
        {
            "order": entry["order"],
            "computeEnvironment": _find(db, _ENVIRONMENT, region, entry["computeEnvironment"])[
                "computeEnvironmentArn"
            ],
        }
        for entry in order
    ]
    return sorted(found, key=lambda entry: int(entry["order"]))


def _order_of(queue: Mapping[str, Any]) -> list[str]:
    return [entry["computeEnvironment"] for entry in queue["computeEnvironmentOrder"]]


def _definition_reference(region: str, reference: str) -> tuple[str, int | None]:
    arn = _arn_of(region, "job-definition", reference)
    family, _, revision = arn.rpartition(":")
    if "/" in family and revision.isdigit():
        return family, int(revision)
    return arn, None


def _revisions(db: sqlite3.Connection, family: str, revision: int | None) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT detail FROM batch_definitions WHERE family = ? AND revision = "
        "coalesce(?, revision) ORDER BY revision DESC",
        (family, revision),
    )
    return [json.loads(row["detail"]) for row in rows]


def _active(db: sqlite3.Connection, region: str, reference: str) -> dict[str, Any]:
    family, revision = _definition_reference(region, reference)
    found = _revisions(db, family, revision)
    active = [detail for detail in found if detail["status"] == "ACTIVE"]
    if not active:
        what = "is INACTIVE" if found else "not found"
        refuse(f"JobDefinition {reference} {what}")
    return active[0]


def _what_runs(params: Mapping[str, Any]) -> dict[str, Any]:
    """A definition's containers, with the empty lists that AWS answers."""

    def filled(container: Mapping[str, Any]) -> dict[str, Any]:
        return {**{key: [] for key in _LISTS}, **container}

    if params["type"] == "container":
        return {"containerProperties": filled(params["containerProperties"])}
    properties = params["nodeProperties"]
    ranges = [
        {**one, "container": filled(one["container"])} for one in properties["nodeRangeProperties"]
    ]
    return {"nodeProperties": {**properties, "nodeRangeProperties": ranges}}


def _check_instances(db: sqlite3.Connection, queue: Mapping[str, Any]) -> None:
    """Multi-node jobs run on EC2 only; AWS leaves them RUNNABLE for ever elsewhere."""
    for arn in _order_of(queue):
        detail = _get(db, _ENVIRONMENT[0], arn) or {}
        kind = (detail.get("computeResources") or {}).get("type", detail.get("type"))
        if kind != "EC2":
            refuse(
                "multi-node parallel jobs run in managed compute environments of type EC2 only; "
                f"{arn} is {kind}"
            )


def _insert_nodes(
    db: sqlite3.Connection,
    job: jobs.Job,
    overrides: Mapping[str, Any],
    definition: Mapping[str, Any],
) -> None:
    containers = check.node_containers(definition, overrides)
    needs = [check.need_of(container) for container in containers]
    environment = job["jobQueue"]
    lengths = [
        check.overrides_length(
            one.get("containerOverrides") or {}, batch_variables(job, environment)
        )
        for one in overrides.get("nodePropertyOverrides") or ()
    ]
    jobs.insert(db, job, total_need(needs), max(lengths, default=0))
    nodes.insert(db, job["jobId"], containers)


def _described(db: sqlite3.Connection, job_id: str) -> jobs.Job | None:
    parent, _, index = job_id.partition("#")
    job = jobs.load(db, parent)
    if job is None or "nodeProperties" not in job:
        return jobs.shown(db, job) if job and not index else None
    if not index:
        return nodes.shown(job)
    found = nodes.nodes(db, job, int(index)) if index.isdigit() else []
    return found[0] if found else None


def _nodes_of(db: sqlite3.Connection, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a job in one state, RUNNING unless another is given."""
    job = _job(db, params["multiNodeJobId"])
    if "nodeProperties" not in job:
        refuse(f"Job {job['jobId']} is not a multi-node parallel job")
    status = params.get("jobStatus", "RUNNING")
    return [summary(node) for node in nodes.nodes(db, job) if node["status"] == status]


def _containers(definition: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """What a job runs: its container (of a multi-node job the main node's), and its nodes."""
    properties = definition.get("nodeProperties")
    if properties is None:
        if params.get("nodeOverrides"):
            refuse("nodeOverrides are for job definitions of type multinode")
        container = check.merge(definition, params.get("containerOverrides") or {})
        return {"container": {**container, "networkInterfaces": []}}
    for key in ("containerOverrides", "arrayProperties"):
        if params.get(key):
            refuse(f"{key} cannot be used with a job definition of type multinode")
    containers = check.node_containers(definition, params.get("nodeOverrides") or {})
    main = containers[properties["mainNode"]]
    return {
        "container": {**main, "networkInterfaces": []},
        "nodeProperties": {**properties, "numNodes": len(containers)},
    }


def _new_job(request: Request, queue: Mapping[str, Any], definition: Mapping[str, Any]) -> jobs.Job:
    params, job_id = request.params, str(uuid.uuid4())
    retries = params.get("retryStrategy") or definition.get("retryStrategy") or {}
    job = {
        "jobArn": _arn(request.region, "job", job_id),
        "jobName": params["jobName"],
        "jobId": job_id,
        "jobQueue": queue["jobQueueArn"],
        "status": "SUBMITTED",
        "attempts": [],
        "createdAt": now_ms(),
        "retryStrategy": {"attempts": 1, "evaluateOnExit": [], **retries},
        "dependsOn": params.get("dependsOn") or [],
        "jobDefinition": definition["jobDefinitionArn"],
        "parameters": {**definition["parameters"], **(params.get("parameters") or {})},
        **_containers(definition, params),
        "tags": params.get("tags") or {},
        "platformCapabilities": definition.get("platformCapabilities") or [],
        "isCancelled": False,
        "isTerminated": False,
    }
    timeout = params.get("timeout") or definition.get("timeout")
    if timeout:
        job["timeout"] = timeout
    if definition.get("propagateTags") is not None or params.get("propagateTags") is not None:
        job["propagateTags"] = params.get("propagateTags", definition.get("propagateTags"))
    size = (params.get("arrayProperties") or {}).get("size")
    if size is not None:
        job["arrayProperties"] = {"size": size}
    return job


def _last(job: jobs.Job) -> jobs.Job:
    """A job, or the child of an array with the longest variables."""
    array = job.get("arrayProperties")
    if not array:
        return job
    index = array["size"] - 1
    properties = {**array, "index": index}
    return {**job, "jobId": f"{job['jobId']}:{index}", "arrayProperties": properties}


def _check_dependency(db: sqlite3.Connection, job: jobs.Job, dependency: Mapping[str, Any]) -> None:
    kind = dependency.get("type")
    if kind and not jobs.is_array(job):
        refuse(f"dependsOn: type {kind} is for array jobs; give arrayProperties")
    if kind == "SEQUENTIAL":
        return
    other = jobs.load(db, dependency["jobId"])
    if other is None:
        refuse(f"Job {dependency['jobId']} in dependsOn not found")
    if kind == "N_TO_N":
        size = job["arrayProperties"]["size"]
        if not jobs.is_array(other) or other["arrayProperties"]["size"] != size:
            refuse(f"dependsOn: for N_TO_N job {dependency['jobId']} must be an array of {size}")


def _reason(request: Request) -> str:
    reason: str = required(request.params, "reason")
    if len(reason) > 1024:
        refuse(f"reason is {len(reason)} characters long, at most 1024 are possible")
    return reason


def _each(request: Request, action: Callable[[str, str], None]) -> dict[str, Any]:
    wanted, reason = required(request.params, "jobs"), _reason(request)
    if len(wanted) > _MANY:
        refuse(f"{len(wanted)} jobs: at most {_MANY} are possible")
    successful, errors = [], []
    for job_id in wanted:
        try:
            action(job_id, reason)
        except ApiError as error:
            errors.append({"job": job_id, "code": error.code, "message": str(error)})
        else:
            successful.append(job_id)
    return {"successful": successful, "errors": errors}


def _job(db: sqlite3.Connection, job_id: str) -> jobs.Job:
    job = jobs.load(db, job_id)
    if job is None:
        refuse(f"Job {job_id} not found")
    return job


class _Tagged:
    def __init__(self, table: str, key: str, value: str, detail: dict[str, Any]) -> None:
        self._table, self._key, self._value, self.detail = table, key, value, detail

    def save(self, db: sqlite3.Connection, tags: Mapping[str, str]) -> None:
        db.execute(
            f"UPDATE {self._table} SET detail = ? WHERE {self._key} = ?",  # noqa: S608
            (json.dumps({**self.detail, "tags": tags}), self._value),
        )


def _tagged(db: sqlite3.Connection, arn: str) -> _Tagged:
    kind = arn.split(":", 5)[-1].split("/")[0]
    if kind == "job":
        job_id = arn.rsplit("/", 1)[-1]
        if ":" in job_id:
            refuse(f"{arn} is a child of an array job: its tags are those of the array")
        return _Tagged("batch_jobs", "id", job_id, _job(db, job_id))
    tables = {
        "compute-environment": "batch_environments",
        "job-queue": "batch_queues",
        "job-definition": "batch_definitions",
    }
    table = tables.get(kind)
    detail = _get(db, table, arn) if table else None
    if table is None or detail is None:
        refuse(f"resource {arn} not found")
    return _Tagged(table, "arn", arn, detail)


def _page(
    member: str, found: Iterable[dict[str, Any]], params: Mapping[str, Any]
) -> dict[str, Any]:
    found, token = list(found), params.get("nextToken") or "0"
    if not token.isdigit():
        refuse("nextToken is not one that this operation gave")
    start, size = int(token), min(params.get("maxResults") or _PAGE, _PAGE)
    answer: dict[str, Any] = {member: found[start : start + size]}
    if start + size < len(found):
        answer["nextToken"] = str(start + size)
    return answer
