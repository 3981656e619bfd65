"""Lambda: functions from images, their permissions and tags, and their invocations."""

from __future__ import annotations

import base64
import binascii
import copy
import json
import os
import re
import secrets
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from scar_local.destinations import Buckets, Destinations
from scar_local.engines import Engine, EngineError
from scar_local.environments import Environments, LogSink, Outcome, Stopping, Target
from scar_local.function_limits import (
    bare_name,
    check_architectures,
    check_configuration,
    check_image,
    check_payload,
    check_tags,
    invalid,
    not_found,
    split_name,
)
from scar_local.invocations import Invocations, Queued, Verdict
from scar_local.protocol import ACCOUNT_ID, ApiError, Request
from scar_local.runtime_api import Invocation
from scar_local.store import Store

MAX_RETRIES = 2
"""Of a failed asynchronous invocation, unless its function's event invoke config says fewer."""

MAX_EVENT_AGE_S = 21_600

_PAGE = 50
"""ListFunctions gives at most 50 functions a call, whatever MaxItems says."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS lambda_functions (
    name TEXT PRIMARY KEY,
    record TEXT NOT NULL
);
"""

_Record = dict[str, Any]
"""One function: `configuration` as the API shows it, `image` and its `digest` (or ""),
`generation`, `tags`, `statements` of its resource policy and their `policy_revision`, and `events`,
its event invoke config (or None)."""


@dataclass(frozen=True)
class Settings:
    """How much runs at once and how patient the local cloud is."""

    concurrency: int
    """Environments of all functions together."""
    idle_s: float = 300.0
    """After this time without an invocation an environment ends."""
    retry_delays_s: tuple[float, ...] = (1.0, 2.0)
    """Before the first and the second retry; AWS waits 60 s and 120 s."""

    @staticmethod
    def read(environ: Mapping[str, str]) -> Settings:
        """From SCAR_LOCAL_CONCURRENCY, SCAR_LOCAL_IDLE_S and SCAR_LOCAL_RETRY_DELAYS_S ("1,2").

        Raises ValueError that names the variable where one is no number.
        """
        cores = os.cpu_count() or 1
        return Settings(
            max(1, int(_number(environ, "SCAR_LOCAL_CONCURRENCY", max(8, 4 * cores)))),
            _number(environ, "SCAR_LOCAL_IDLE_S", 300.0),
            _numbers(environ, "SCAR_LOCAL_RETRY_DELAYS_S", (1.0, 2.0)),
        )


class Functions:
    """The service `lambda`.

    `endpoint` gives the local cloud's URL for the containers. `resolve`, where given, turns an
    image URI into its digest and raises EngineError when there is no such image: CreateFunction
    then refuses it, and the function keeps the very image that the tag meant at that time.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        logs: LogSink,
        endpoint: Callable[[], str],
        *,
        settings: Settings | None = None,
        resolve: Callable[[str], str] | None = None,
    ) -> None:
        self._store, self._resolve = store, resolve
        self._settings = settings or Settings.read(os.environ)
        store.install(_SCHEMA)
        self._environments = Environments(
            engine, logs, endpoint, self._settings.concurrency, self._settings.idle_s
        )
        self._invocations = Invocations(store, self._run_queued, self._settings.concurrency, self)

    def start(self, buckets: Buckets) -> None:
        """Run again what was running when the last process ended, and what is queued.

        `buckets` is S3, where events are kept that failed for good.
        """
        self._destinations = Destinations(buckets)
        self._invocations.start()

    def stop(self) -> None:
        """End every environment. Asynchronous invocations under way run again after `start`."""
        self._invocations.halt()
        self._environments.stop()
        self._invocations.stop()

    def enqueue(
        self, db: sqlite3.Connection, name: str, payload: bytes, source: str = "invoke"
    ) -> str:
        """Queue an asynchronous invocation in the caller's transaction; gives its request id.

        `name` may be an ARN. Call `wake` after the commit. Raises ApiError
        ResourceNotFoundException when there is no such function.
        """
        if self._read(bare_name(name)) is None:
            raise not_found(name)
        return self._invocations.add(db, bare_name(name), payload, source)

    def wake(self) -> None:
        """Look at the queue: something was committed."""
        self._invocations.wake()

    def give_up(self, db: sqlite3.Connection, queued: Queued, verdict: Verdict) -> None:
        """An event failed for good: send it to its function's destination."""
        record = self._read(queued.function)
        if record is not None:
            self._destinations.send(db, record, queued, verdict)

    def gave_up(self) -> None:
        """That is committed."""
        self._destinations.sent()

    def counts(self) -> dict[str, int]:
        """Numbers for `scar local status`."""
        functions = self._store.read().execute("SELECT count(*) FROM lambda_functions").fetchone()
        queue = {f"invocations_{state}": n for state, n in self._invocations.counts().items()}
        return {"functions": functions[0], **self._environments.counts(), **queue}

    def images(self) -> list[str]:
        """The image of every function, by digest."""
        return [_pinned(record) for record in self._all()]

    def tagged(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Every function's ARN and tags."""
        for record in self._all():
            yield record["configuration"]["FunctionArn"], record["tags"]

    def can_be_invoked_by(self, bucket: str, function_arn: str) -> bool:
        """Whether the function exists and its policy lets S3 invoke it for this bucket."""
        record = self._read(bare_name(function_arn))
        return record is not None and any(
            _lets_s3_in(statement, f"arn:aws:s3:::{bucket}") for statement in record["statements"]
        )

    # Functions

    def create_function(self, request: Request) -> dict[str, Any]:
        """CreateFunction."""
        params = request.params
        name, arn = split_name(params["FunctionName"], None, request.region)
        image = check_image(params["Code"], params.get("PackageType"))
        given = check_configuration(params)
        configuration: dict[str, Any] = {
            "FunctionName": name,
            "FunctionArn": arn,
            "Description": "",
            "Timeout": 3,
            "MemorySize": 128,
            "Version": "$LATEST",
            "PackageType": "Image",
            "Architectures": check_architectures(params.get("Architectures")),
            "EphemeralStorage": {"Size": 512},
            "TracingConfig": {"Mode": "PassThrough"},
            "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
            "State": "Active",
            "LastUpdateStatus": "Successful",
        }
        record: _Record = {
            "configuration": configuration,
            "tags": check_tags(params.get("Tags", {})),
            "statements": [],
            "policy_revision": "",
            "events": None,
        }
        _configure(record, given)
        _set_image(record, image, self._digest(image))
        with self._store.write() as db:
            if self._read(name) is not None:
                raise ApiError("ResourceConflictException", f"Function already exist: {name}", 409)
            self._changed(db, record)
        self._environments.retire(name, record["generation"])
        return dict(configuration)

    def update_function_code(self, request: Request) -> dict[str, Any]:
        """UpdateFunctionCode."""
        params = request.params
        image = check_image(params)
        architectures = check_architectures(params.get("Architectures"))
        if params.get("Publish"):
            raise invalid("Publish is not in the local cloud: it keeps no versions")
        digest = self._digest(image)
        with self._store.write() as db:
            record = self._existing(request)
            _check_revision(params, record["configuration"]["RevisionId"])
            _set_image(record, image, digest)
            record["configuration"]["Architectures"] = architectures
            if params.get("DryRun"):
                return dict(record["configuration"])
            self._changed(db, record)
        self._retire_old(record)
        return dict(record["configuration"])

    def update_function_configuration(self, request: Request) -> dict[str, Any]:
        """UpdateFunctionConfiguration: only what is given changes."""
        given = check_configuration(request.params)
        with self._store.write() as db:
            record = self._existing(request)
            _check_revision(request.params, record["configuration"]["RevisionId"])
            _configure(record, given)
            self._changed(db, record)
        self._retire_old(record)
        return dict(record["configuration"])

    def get_function(self, request: Request) -> dict[str, Any]:
        """GetFunction."""
        record = self._existing(request)
        code = {"RepositoryType": "ECR", "ImageUri": record["image"]}
        if record["digest"]:
            code["ResolvedImageUri"] = _pinned(record)
        answer = {"Configuration": record["configuration"], "Code": code}
        return {**answer, "Tags": record["tags"]} if record["tags"] else answer

    def get_function_configuration(self, request: Request) -> dict[str, Any]:
        """GetFunctionConfiguration."""
        return dict(self._existing(request)["configuration"])

    def list_functions(self, request: Request) -> dict[str, Any]:
        """ListFunctions, by name."""
        size = min(request.params.get("MaxItems") or _PAGE, _PAGE)
        after = _decode_marker(request.params.get("Marker"))
        rows = self._store.read().execute(
            "SELECT record FROM lambda_functions WHERE name > ? ORDER BY name LIMIT ?",
            (after, size + 1),
        )
        found = [json.loads(row["record"])["configuration"] for row in rows]
        answer: dict[str, Any] = {"Functions": found[:size]}
        if len(found) > size:
            last = found[size - 1]["FunctionName"]
            answer["NextMarker"] = base64.urlsafe_b64encode(last.encode()).decode()
        return answer

    def delete_function(self, request: Request) -> dict[str, Any]:
        """DeleteFunction; an invocation under way ends undisturbed."""
        with self._store.write() as db:
            name = self._existing(request)["configuration"]["FunctionName"]
            db.execute("DELETE FROM lambda_functions WHERE name = ?", (name,))
        self._environments.retire(name, None)
        return {"StatusCode": 204}

    # Invocations

    def invoke(self, request: Request) -> dict[str, Any]:
        """Invoke; the answer's request id is the invocation's, as on Lambda."""
        params = request.params
        kind = params.get("InvocationType", "RequestResponse")
        record = self._existing(request)
        payload = check_payload(params.get("Payload", b""), kind)
        if kind == "DryRun":
            return {"StatusCode": 204}
        if kind == "Event":
            return self._invoke_later(record, payload)
        context = _client_context(params.get("ClientContext"))
        request_id = str(uuid.uuid4())
        try:
            outcome = self._run(record, request_id, payload, context)
        except Stopping:
            raise ApiError("ServiceException", "the local cloud is stopping", 500) from None
        answer = {
            "StatusCode": 200,
            "Payload": outcome.payload,
            "ExecutedVersion": "$LATEST",
            "ResponseMetadata": {"RequestId": request_id},
        }
        if outcome.error_type is not None:
            answer["FunctionError"] = "Unhandled"
        if params.get("LogType") == "Tail":
            answer["LogResult"] = base64.b64encode(outcome.log_tail).decode()
        return answer

    def put_function_event_invoke_config(self, request: Request) -> dict[str, Any]:
        """PutFunctionEventInvokeConfig: replaces what was set."""
        return self._set_events(request, {})

    def update_function_event_invoke_config(self, request: Request) -> dict[str, Any]:
        """UpdateFunctionEventInvokeConfig: changes what is given."""
        return self._set_events(request, self._events(self._existing(request)))

    def get_function_event_invoke_config(self, request: Request) -> dict[str, Any]:
        """GetFunctionEventInvokeConfig."""
        return self._events(self._existing(request))

    def list_function_event_invoke_configs(self, request: Request) -> dict[str, Any]:
        """ListFunctionEventInvokeConfigs: the one of $LATEST, where set."""
        record = self._existing(request)
        return {"FunctionEventInvokeConfigs": [record["events"]] if record["events"] else []}

    def delete_function_event_invoke_config(self, request: Request) -> None:
        """DeleteFunctionEventInvokeConfig."""
        with self._store.write() as db:
            record = self._existing(request)
            self._events(record)
            record["events"] = None
            _save(db, record)

    # Permissions

    def add_permission(self, request: Request) -> dict[str, Any]:
        """AddPermission."""
        params = request.params
        for key in ("FunctionUrlAuthType", "InvokedViaFunctionUrl", "EventSourceToken"):
            if params.get(key):
                raise invalid(f"{key} is not in the local cloud: leave it out")
        with self._store.write() as db:
            record = self._existing(request)
            _check_revision(params, record["policy_revision"])
            statement = _statement(params, record["configuration"]["FunctionArn"])
            if any(known["Sid"] == statement["Sid"] for known in record["statements"]):
                raise ApiError(
                    "ResourceConflictException",
                    f"The statement id ({statement['Sid']}) provided already exists. Please provide"
                    " a new statement id, or remove the existing statement.",
                    409,
                )
            record["statements"].append(statement)
            record["policy_revision"] = str(uuid.uuid4())
            _save(db, record)
        return {"Statement": json.dumps(statement, separators=(",", ":"))}

    def remove_permission(self, request: Request) -> None:
        """RemovePermission."""
        wanted = request.params["StatementId"]
        with self._store.write() as db:
            record = self._existing(request)
            statements = _policy(record)
            _check_revision(request.params, record["policy_revision"])
            left = [statement for statement in statements if statement["Sid"] != wanted]
            if len(left) == len(statements):
                text = f"Statement {wanted} is not found in resource policy."
                raise ApiError("ResourceNotFoundException", text, 404)
            record["statements"] = left
            record["policy_revision"] = str(uuid.uuid4())
            _save(db, record)

    def get_policy(self, request: Request) -> dict[str, Any]:
        """GetPolicy."""
        record = self._existing(request)
        policy = {"Version": "2012-10-17", "Id": "default", "Statement": _policy(record)}
        return {
            "Policy": json.dumps(policy, separators=(",", ":")),
            "RevisionId": record["policy_revision"],
        }

    # Tags

    def tag_resource(self, request: Request) -> None:
        """TagResource."""
        with self._store.write() as db:
            record = self._existing(request, "Resource")
            record["tags"] = check_tags({**record["tags"], **request.params["Tags"]})
            _save(db, record)

    def untag_resource(self, request: Request) -> None:
        """UntagResource; a tag that is not there is no error."""
        with self._store.write() as db:
            record = self._existing(request, "Resource")
            for key in request.params["TagKeys"]:
                record["tags"].pop(key, None)
            _save(db, record)

    def list_tags(self, request: Request) -> dict[str, Any]:
        """ListTags."""
        return {"Tags": self._existing(request, "Resource")["tags"]}

    def _all(self) -> Iterator[_Record]:
        rows = self._store.read().execute("SELECT record FROM lambda_functions ORDER BY name")
        return (json.loads(row["record"]) for row in rows.fetchall())

    def _read(self, name: str) -> _Record | None:
        row = (
            self._store.read()
            .execute("SELECT record FROM lambda_functions WHERE name = ?", (name,))
            .fetchone()
        )
        return None if row is None else json.loads(row["record"])

    def _existing(self, request: Request, key: str = "FunctionName") -> _Record:
        params = request.params
        name, arn = split_name(params[key], params.get("Qualifier"), request.region)
        record = self._read(name)
        if record is None:
            raise not_found(arn)
        return record

    def _changed(self, db: sqlite3.Connection, record: _Record) -> None:
        """Save a new or changed function: its environments are of a new generation."""
        record["generation"] = uuid.uuid4().hex
        configuration = record["configuration"]
        configuration["RevisionId"] = str(uuid.uuid4())
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        configuration["LastModified"] = f"{now}+0000"
        _save(db, record)

    def _retire_old(self, record: _Record) -> None:
        self._environments.retire(record["configuration"]["FunctionName"], record["generation"])

    def _digest(self, image: str) -> str:
        """The image's digest; empty where nobody was given to ask."""
        if self._resolve is None:
            return ""
        try:
            return self._resolve(image)
        except EngineError as exc:
            text = f"Source image {image} does not exist. Provide a valid source image. ({exc})"
            raise invalid(text) from exc

    def _invoke_later(self, record: _Record, payload: bytes) -> dict[str, Any]:
        with self._store.write() as db:
            request_id = self.enqueue(db, record["configuration"]["FunctionName"], payload)
        self.wake()
        return {"StatusCode": 202, "ResponseMetadata": {"RequestId": request_id}}

    def _run(
        self, record: _Record, request_id: str, payload: bytes, context: str | None = None
    ) -> Outcome:
        trace = f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)}"
        invocation = Invocation(
            request_id,
            payload,
            record["configuration"]["FunctionArn"],
            f"{trace};Parent={secrets.token_hex(8)};Sampled=0",
            context,
        )
        return self._environments.invoke(_target(record), invocation)

    def _run_queued(self, queued: Queued) -> Verdict:
        record = self._read(queued.function)
        if record is None:
            return Verdict(f"function {queued.function} does not exist")
        events = record["events"] or {}
        max_age_s = events.get("MaximumEventAgeInSeconds", MAX_EVENT_AGE_S)
        if time.time() - queued.accepted > max_age_s:
            return Verdict(f"older than {max_age_s} s", is_too_old=True)
        outcome = self._run(record, queued.request_id, queued.payload)
        if outcome.error_type is None:
            return Verdict()
        error = outcome.payload[:1000].decode("utf-8", "replace")
        if queued.attempt > events.get("MaximumRetryAttempts", MAX_RETRIES):
            return Verdict(error, response=outcome.payload)
        delays = self._settings.retry_delays_s
        return Verdict(error, delays[min(queued.attempt, len(delays)) - 1])

    def _events(self, record: _Record) -> dict[str, Any]:
        if record["events"] is None:
            arn = record["configuration"]["FunctionArn"]
            text = f"The function {arn}:$LATEST doesn't have an EventInvokeConfig"
            raise ApiError("ResourceNotFoundException", text, 404)
        return dict(record["events"])

    def _set_events(self, request: Request, config: dict[str, Any]) -> dict[str, Any]:
        params = request.params
        for key, low, high in (
            ("MaximumRetryAttempts", 0, 2),
            ("MaximumEventAgeInSeconds", 60, MAX_EVENT_AGE_S),
        ):
            if key in params:
                if not low <= params[key] <= high:
                    raise invalid(f"{key} must be {low} to {high}, not {params[key]}")
                config[key] = params[key]
        given = params.get("DestinationConfig")
        if given is not None or "DestinationConfig" not in config:
            config["DestinationConfig"] = self._destinations.checked(given or {})
        with self._store.write() as db:
            record = self._existing(request)
            config["FunctionArn"] = f"{record['configuration']['FunctionArn']}:$LATEST"
            config["LastModified"] = time.time()
            record["events"] = config
            _save(db, record)
        return config


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    return _numbers(environ, name, (default,))[0]


def _numbers(
    environ: Mapping[str, str], name: str, default: tuple[float, ...]
) -> tuple[float, ...]:
    text = environ.get(name)
    if not text:
        return default
    try:
        return tuple(max(0.0, float(part)) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name}: `{text}` is not a number (of seconds or things)") from None


def _save(db: sqlite3.Connection, record: _Record) -> None:
    db.execute(
        "INSERT INTO lambda_functions (name, record) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET record = excluded.record",
        (record["configuration"]["FunctionName"], json.dumps(record)),
    )


def _set_image(record: _Record, image: str, digest: str) -> None:
    record["image"], record["digest"] = image, digest
    if digest:
        record["configuration"]["CodeSha256"] = digest.partition(":")[2]


def _configure(record: _Record, given: dict[str, Any]) -> None:
    """Put checked parameters into the configuration, in the shape in which the API shows them."""
    configuration = record["configuration"]
    given = copy.deepcopy(given)
    image_config = given.pop("ImageConfig", None)
    if image_config is not None:
        configuration["ImageConfigResponse"] = {"ImageConfig": image_config}
    configuration.update(given)
    logging = {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{configuration['FunctionName']}"}
    configuration["LoggingConfig"] = {**logging, **configuration.get("LoggingConfig", {})}


def _target(record: _Record) -> Target:
    configuration = record["configuration"]
    image_config = configuration.get("ImageConfigResponse", {}).get("ImageConfig", {})
    return Target(
        name=configuration["FunctionName"],
        arn=configuration["FunctionArn"],
        image=_pinned(record) if record["digest"] else record["image"],
        generation=record["generation"],
        command=tuple(image_config.get("Command", ())),
        environment=configuration.get("Environment", {}).get("Variables", {}),
        memory_mb=configuration["MemorySize"],
        timeout_s=configuration["Timeout"],
        log_group=configuration["LoggingConfig"]["LogGroup"],
    )


def _pinned(record: _Record) -> str:
    """The image by digest: `host/repository@sha256:…`."""
    image = str(record["image"]).partition("@")[0]
    host, slash, path = image.rpartition("/")
    return f"{host}{slash}{path.partition(':')[0]}@{record['digest']}"


def _check_revision(params: Mapping[str, Any], current: str) -> None:
    if params.get("RevisionId") and params["RevisionId"] != current:
        raise ApiError(
            "PreconditionFailedException",
            "The RevisionId provided does not match the latest RevisionId. Call the GetFunction/"
            "GetAlias API to retrieve the latest Revision Id",
            412,
        )


def _decode_marker(marker: str | None) -> str:
    try:
        return base64.urlsafe_b64decode(marker or "").decode()
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise invalid(f"Marker `{marker}` is not one that ListFunctions gave") from exc


def _client_context(encoded: str | None) -> str | None:
    """The client context as JSON text in one line, as an HTTP header needs it."""
    if not encoded:
        return None
    try:
        return json.dumps(json.loads(base64.b64decode(encoded)))
    except ValueError as exc:
        raise ApiError("InvalidRequestContentException", f"ClientContext: {exc}", 400) from exc


def _statement(params: Mapping[str, Any], resource: str) -> dict[str, Any]:
    """One statement of a resource policy, as Lambda writes it."""
    principal: str = params["Principal"]
    who: Any = {"Service": principal}
    if principal == "*":
        who = principal
    elif re.fullmatch(r"\d{12}", principal):
        who = {"AWS": f"arn:aws:iam::{principal}:root"}
    elif principal.startswith("arn:"):
        who = {"AWS": principal}
    statement = {
        "Sid": params["StatementId"],
        "Effect": "Allow",
        "Principal": who,
        "Action": params["Action"],
        "Resource": resource,
    }
    equals = {}
    if params.get("SourceAccount"):
        equals["AWS:SourceAccount"] = params["SourceAccount"]
    if params.get("PrincipalOrgID"):
        equals["aws:PrincipalOrgID"] = params["PrincipalOrgID"]
    condition: dict[str, Any] = {"StringEquals": equals} if equals else {}
    if params.get("SourceArn"):
        condition["ArnLike"] = {"AWS:SourceArn": params["SourceArn"]}
    return {**statement, "Condition": condition} if condition else statement


def _policy(record: _Record) -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = record["statements"]
    if not statements:
        text = "No policy is associated with the given resource."
        raise ApiError("ResourceNotFoundException", text, 404)
    return statements


def _lets_s3_in(statement: Mapping[str, Any], bucket_arn: str) -> bool:
    if statement["Principal"] not in ("*", {"Service": "s3.amazonaws.com"}):
        return False
    if statement["Action"] not in ("*", "lambda:*", "lambda:InvokeFunction"):
        return False
    condition = statement.get("Condition", {})
    account = condition.get("StringEquals", {}).get("AWS:SourceAccount", ACCOUNT_ID)
    source = condition.get("ArnLike", {}).get("AWS:SourceArn", "*")
    pattern = re.escape(source).replace(r"\*", ".*").replace(r"\?", ".")
    return account == ACCOUNT_ID and re.fullmatch(pattern, bucket_arn) is not None
