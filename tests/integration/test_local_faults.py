"""What the local cloud does when something under it fails for a moment: it goes on by itself."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from scar_local.batch_attempts import Lines
from scar_local.engines import ContainerSpec, Exit
from scar_local.environments import Environments, Stopping, Target
from scar_local.functions import Settings
from scar_local.runtime_api import Invocation
from scar_local.store import Store
from tests.doubles.batch_world import World, opener
from tests.doubles.local_lambda import LocalLambda
from tests.doubles.local_s3 import LocalS3
from tests.doubles.process_engine import ProcessEngine, RunningProcess


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalLambda]:
    local = LocalLambda(tmp_path, Settings(concurrency=2, retry_delays_s=(0.1, 0.1)))
    local.create()
    yield local
    local.close()


def until(what: Callable[[], Any], timeout_s: float = 10) -> Any:
    """Wait for `what` to be true; its value."""
    end = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return value


@contextmanager
def refused(store: Store, table: str, change: str = "UPDATE", when: str = "true") -> Iterator[None]:
    """The database refuses to change a table, as a full disk makes it."""
    store.read().executescript(
        f"CREATE TRIGGER fault BEFORE {change} ON {table} WHEN {when}"
        " BEGIN SELECT RAISE(ABORT, 'the disk is full'); END;"
    )
    try:
        yield
    finally:
        store.read().execute("DROP TRIGGER fault")


@contextmanager
def unreadable(store: Store, table: str) -> Iterator[None]:
    """A table that cannot be read."""
    store.read().execute(f"ALTER TABLE {table} RENAME TO hidden")
    try:
        yield
    finally:
        store.read().execute(f"ALTER TABLE hidden RENAME TO {table}")


def states(cloud: LocalLambda) -> list[str]:
    rows = cloud.store.read().execute("SELECT state FROM lambda_invocations ORDER BY id")
    return [row["state"] for row in rows]


def invoke_later(cloud: LocalLambda, event: object) -> None:
    cloud.client.invoke(FunctionName="echo", Payload=json.dumps(event), InvocationType="Event")


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[LocalS3]:
    local = LocalS3(tmp_path)
    local.client.create_bucket(Bucket="bucket")
    local.client.put_bucket_notification_configuration(
        Bucket="bucket",
        NotificationConfiguration={
            "LambdaFunctionConfigurations": [
                {
                    "LambdaFunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:f",
                    "Events": ["s3:ObjectCreated:*"],
                }
            ]
        },
    )
    yield local
    local.close()


def test_events_are_delivered_again_after_the_outbox_could_not_be_read(bucket: LocalS3) -> None:
    with unreadable(bucket.store, "s3_outbox"):
        bucket.events.wake()
        time.sleep(0.1)
    bucket.client.put_object(Bucket="bucket", Key="key")
    until(lambda: bucket.events.undelivered() == 0)


def test_a_delivery_that_failed_is_tried_again_without_another_event(bucket: LocalS3) -> None:
    with refused(bucket.store, "s3_outbox", "DELETE"):
        bucket.client.put_object(Bucket="bucket", Key="key")
        time.sleep(0.1)
        assert bucket.events.undelivered() == 1
    until(lambda: bucket.events.undelivered() == 0)


def test_the_end_of_an_invocation_is_kept_once_the_database_can_be_written_again(
    cloud: LocalLambda,
) -> None:
    invoke_later(cloud, {"sleep": 0.3})
    until(lambda: states(cloud) == ["running"])
    with refused(cloud.store, "lambda_invocations"):
        until(lambda: any(line.startswith("END") for line in cloud.messages()))
        time.sleep(0.1)
        assert states(cloud) == ["running"]
    until(lambda: states(cloud) == ["succeeded"])


def test_an_accepted_event_does_not_wait_for_a_clock_that_was_set_back(
    cloud: LocalLambda,
) -> None:
    with cloud.store.write() as db:
        cloud.functions.enqueue(db, "echo", b"{}")
        [row] = db.execute("SELECT due, accepted FROM lambda_invocations").fetchall()
    assert row["due"] == 0 < row["accepted"]
    cloud.functions.wake()
    until(lambda: states(cloud) == ["succeeded"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opener(tmp_path, CommitFails)(min_timeout_s=1) as opened:
        opened.set_up(max_vcpus=1)
        yield opened


class CommitFails(Store):
    """The scheduler's transactions fail at their end, so often."""

    failures = 0

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        with super().write() as db:
            yield db
            if self.failures and threading.current_thread().name == "batch-scheduler":
                self.failures -= 1
                raise sqlite3.OperationalError("the disk is full")


def status(world: World, job_id: str) -> str:
    """Read past the API, whose server needs a thread."""
    query = "SELECT status FROM batch_jobs WHERE id = ?"
    return str(world.store.read().execute(query, (job_id,)).fetchone()["status"])


def test_a_jobs_end_is_kept_once_the_database_can_be_written_again(world: World) -> None:
    world.register("sleep 0.3")
    job_id = world.submit()
    world.running(job_id)
    with refused(world.store, "batch_jobs"):
        time.sleep(0.6)
        assert status(world, job_id) == "RUNNING"
    assert world.finished(job_id)["status"] == "SUCCEEDED"


def test_a_job_goes_on_while_it_cannot_be_kept_that_it_runs(world: World) -> None:
    world.register("echo it ran")
    with refused(world.store, "batch_jobs", when="NEW.status = 'RUNNING'"):
        job_id = world.submit()
        time.sleep(0.3)
        assert world.job(job_id)["status"] == "STARTING"
    job = world.finished(job_id)
    assert (job["status"], world.log(job)) == ("SUCCEEDED", ["it ran"])


def test_a_job_whose_start_could_not_be_committed_holds_nothing(world: World) -> None:
    assert isinstance(world.store, CommitFails)
    world.store.failures = 1
    assert world.run("true")["status"] == "SUCCEEDED"
    assert world.store.failures == 0


def test_a_job_starts_when_there_is_a_thread_for_it_again(world: World) -> None:
    world.register("sleep 0.4")
    first = world.submit()
    world.running(first)
    second = world.submit()
    threading.stack_size(1 << 47)  # more than there is: no thread can be started
    try:
        until(lambda: status(world, second) == "STARTING")
    finally:
        threading.stack_size(0)
    assert world.finished(second)["status"] == "SUCCEEDED"


def test_a_job_whose_log_cannot_be_kept_ends_as_it_ended(world: World) -> None:
    for table in ("logs_streams", "logs_events"):
        with refused(world.store, table, "INSERT"):
            assert world.run("echo lost")["status"] == "SUCCEEDED"


def test_a_job_that_prints_long_lines_is_held_back_not_remembered() -> None:
    go_on, taken = threading.Event(), threading.Semaphore(0)
    kept: list[int] = []

    def keep(batch: Sequence[str]) -> None:
        go_on.wait()
        kept.extend(len(line) for line in batch)

    def produce() -> None:
        for _ in range(100):
            lines.add("x" * 200_000)
            taken.release()

    lines = Lines(keep)
    producer = threading.Thread(target=produce)
    producer.start()
    held_back = 0
    while taken.acquire(timeout=0.3):
        held_back += 1
    go_on.set()
    producer.join()
    lines.close()
    assert held_back * 200_000 < 10 << 20
    assert kept == [200_000] * 100


class LostEngine(ProcessEngine):
    """Its daemon was restarted: it ends containers but cannot say so."""

    def start(self, spec: ContainerSpec, on_output: Callable[[str], None]) -> RunningProcess:
        running = super().start(spec, on_output)
        end = running.stop

        def stop(grace_s: float = 0.0) -> None:
            end(grace_s)
            raise ConnectionError("no daemon answers")

        running.stop = stop  # type: ignore[method-assign]
        return running


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[LocalLambda]:
    local = LocalLambda(tmp_path, Settings(concurrency=1, idle_s=0.3))
    local.engine = LostEngine(local.engine.programs)
    local.restart()
    local.create()
    yield local
    local.close()


def test_an_engine_that_cannot_stop_a_container_costs_neither_a_result_nor_a_place(
    lost: LocalLambda,
) -> None:
    lost.create("other")
    for name in ("echo", "other", "echo"):  # each must make room for the next
        assert "FunctionError" not in lost.client.invoke(FunctionName=name)
    for _ in range(2):  # the thread that ends idle ones goes on
        until(lambda: lost.functions.counts()["environments"] == 0)
        assert "FunctionError" not in lost.client.invoke(FunctionName="echo")


def test_a_functions_log_group_stays_deleted_while_its_last_invocation_ends(
    cloud: LocalLambda,
) -> None:
    event = json.dumps({"sleep": 0.5, "print": ["before"]})
    call = threading.Thread(
        target=cloud.client.invoke, kwargs={"FunctionName": "echo", "Payload": event}
    )
    call.start()
    until(lambda: "before" in cloud.messages())
    cloud.client.delete_function(FunctionName="echo")
    with cloud.store.write() as db:
        for table in ("logs_events", "logs_streams", "logs_groups"):
            db.execute(f"DELETE FROM {table}")
    call.join()
    until(lambda: cloud.functions.counts()["environments"] == 0)
    assert cloud.store.read().execute("SELECT count(*) FROM logs_groups").fetchone()[0] == 0


class SlowLogs:
    """Keeps nothing until it is told to go on."""

    def __init__(self) -> None:
        self.go_on, self.kept = threading.Event(), list[int]()

    def ensure_stream(self, group: str, stream: str) -> None:
        return

    def append(
        self,
        group: str,
        stream: str,
        lines: Sequence[str],
        timestamp_ms: int | None = None,
        create: bool = True,
    ) -> None:
        self.go_on.wait()
        self.kept += [len(line) for line in lines]


class Printer:
    """An engine of one container, which prints long lines and answers nothing."""

    name = "printer"

    def __init__(self) -> None:
        self.printed = threading.Semaphore(0)
        self._ended = threading.Event()

    def start(self, spec: ContainerSpec, on_output: Callable[[str], None]) -> Printer:
        def produce() -> None:
            for _ in range(100):
                on_output("x" * 200_000)
                self.printed.release()

        threading.Thread(target=produce, daemon=True).start()
        return self

    def open_network(self, image: str, count: int, endpoint: str) -> Any:
        raise NotImplementedError

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        return Exit(0) if self._ended.wait(timeout_s) else None

    def stop(self, grace_s: float = 0.0) -> None:
        self._ended.set()


def test_a_function_that_prints_long_lines_is_held_back_not_remembered() -> None:
    logs, engine = SlowLogs(), Printer()
    environments = Environments(engine, logs, lambda: "", 1, 60)
    arn = "arn:aws:lambda:us-east-1:000000000000:function:f"

    def invoke() -> None:
        with suppress(Stopping):
            environments.invoke(Target("f", arn, "any", "1"), Invocation("id", b"{}", arn, ""))

    call = threading.Thread(target=invoke)
    call.start()
    held_back = 0
    while engine.printed.acquire(timeout=0.5):
        held_back += 1
    logs.go_on.set()
    until(lambda: logs.kept.count(200_000) == 100)
    environments.stop()
    call.join()
    assert held_back * 200_000 < 10 << 20
