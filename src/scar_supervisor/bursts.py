"""Many events become one array job: they wait in the deployment bucket until somebody submits it.

Every invocation keeps its event under `waiting/` and then tries to lead. Who leads waits for the
window's end, submits what waits, and gives the lead back; then it looks once more, since an event
that came while it led relied on it. Leading is a lease: who dies is followed by its own retry, or
by the next event.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from scar_supervisor import contract, records
from scar_supervisor.aws import ServiceError, Unreachable
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.delegate import Batch
from scar_supervisor.events import Event
from scar_supervisor.faults import DelegationFailed
from scar_supervisor.log import Log
from scar_supervisor.once import Mark
from scar_supervisor.parallel import for_each
from scar_supervisor.storage import Storages

LOOK_S = 1.0
"""Between two looks at how many events wait."""

THREADS = 16


@dataclass(frozen=True)
class _Lead:
    """Who leads until `until_ms`, and what it is about to submit."""

    owner: str
    until_ms: int
    began_ms: int
    manifest: str = ""
    """contract.ARRAY_VARIABLE of the job that may have been submitted; empty before."""
    names: tuple[str, ...] = ()
    """The events of the manifest."""


class Bursts:
    """The waiting events of one function. Every method raises DelegationFailed where it cannot."""

    def __init__(self, config: FunctionConfig, storages: Storages, batch: Batch, log: Log) -> None:
        assert config.burst is not None
        self._config, self._burst = config, config.burst
        self._account, self._batch, self._log = storages.account, batch, log
        self._bucket = config.deployment_bucket
        self._waiting = records.waiting_prefix(config.name)
        self._lead_key = records.lead_key(config.name)

    def add(self, event: Event, mark: Mark) -> None:
        """Let one object's event wait."""
        data = json.loads(event.text)
        data["Records"] = [data["Records"][event.objects.index(mark.item)]]
        item = mark.item
        name = records.object_id(item.place, item.key, f"{item.version}/{item.sequencer}")
        self._batch.keep(self._bucket, self._waiting + name, json.dumps(data).encode())

    def lead(self, request_id: str, deadline_ms: int) -> list[str]:
        """Submit what waits, unless somebody else will; the jobs' ids."""
        jobs: list[str] = []
        try:
            while (taken := self._take(request_id, deadline_ms)) is not None:
                lead, etag = taken
                if not jobs and not lead.manifest:
                    self._wait(deadline_ms)
                jobs += self._submit(lead, etag)
                if not self._account.names(self._bucket, self._waiting, 1):
                    break
        except (ServiceError, Unreachable) as exc:
            raise DelegationFailed(f"cannot gather the events of a burst: {exc}") from exc
        return jobs

    def _take(self, request_id: str, deadline_ms: int) -> tuple[_Lead, str] | None:
        """The lead, with what whoever had it left unfinished; None while somebody else leads."""
        now_ms = int(time.time() * 1000)
        mine = _Lead(request_id, deadline_ms, now_ms)
        etag = self._write(mine, {"If-None-Match": "*"})
        if etag is not None:
            return mine, etag
        found = self._account.load(self._bucket, self._lead_key)
        if found is None:
            return self._take(request_id, deadline_ms)
        theirs = _Lead(**json.loads(found.data))
        if theirs.owner != request_id and theirs.until_ms > now_ms:
            self._log.info(f"the event waits for the burst that invocation {theirs.owner} gathers")
            return None
        mine = replace(theirs, owner=request_id, until_ms=deadline_ms)
        if not theirs.manifest:
            mine = replace(mine, began_ms=now_ms)
        etag = self._write(mine, {"If-Match": found.etag})
        return (mine, etag) if etag is not None else None

    def _wait(self, deadline_ms: int) -> None:
        """Until the window ends, enough events wait, or there is just time left to submit them."""
        burst, left_s = self._burst, deadline_ms / 1000 - time.time()
        end = time.monotonic() + min(float(burst.window_s), left_s / 2)
        while (rest_s := end - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, rest_s))
            waiting = self._account.names(self._bucket, self._waiting, burst.max_events)
            if len(waiting) >= burst.max_events:
                return

    def _submit(self, lead: _Lead, etag: str) -> list[str]:
        """Submit what waits, a job for every `max_events`, and give the lead back; their ids."""
        jobs: list[str] = []
        if lead.manifest:  # whoever led may have submitted it, and broke off
            found = self._batch.find(
                self._config, lead.began_ms, (contract.ARRAY_VARIABLE, lead.manifest)
            )
            jobs.append(found or self._array(lead))
            self._account.remove(self._bucket, [self._waiting + name for name in lead.names])
        while keys := self._account.names(self._bucket, self._waiting, self._burst.max_events):
            lead = self._prepared(lead, keys)
            etag = self._write(lead, {"If-Match": etag}) or ""
            if not etag:
                raise DelegationFailed("another invocation has taken over the burst")
            jobs.append(self._array(lead))
            self._account.remove(self._bucket, [self._waiting + name for name in lead.names])
            if len(keys) < self._burst.max_events:
                break
        self._write(replace(lead, until_ms=0, manifest="", names=()), {"If-Match": etag})
        return jobs

    def _prepared(self, lead: _Lead, keys: Sequence[str]) -> _Lead:
        """With the manifest of these events, which is stored."""
        events: dict[str, object] = {}

        def read(key: str) -> None:
            found = self._account.load(self._bucket, key)
            if found is not None:
                events[key] = json.loads(found.data)

        for_each(keys, read, THREADS).check()
        here = [key for key in keys if key in events]
        data, width = records.manifest([events[key] for key in here])
        manifest_key = records.manifest_key(data, self._config.name)
        self._batch.keep(self._bucket, manifest_key, data)
        return replace(
            lead,
            began_ms=int(time.time() * 1000),
            manifest=f"s3://{self._bucket}/{manifest_key}#width={width}",
            names=tuple(key.removeprefix(self._waiting) for key in here),
        )

    def _array(self, lead: _Lead) -> str:
        size = len(lead.names)
        job_id = self._batch.submit_array(self._config, lead.manifest, size, lead.owner)
        self._log.info(f"{size} events are delegated to Batch job {job_id}")
        return job_id

    def _write(self, lead: _Lead, condition: dict[str, str]) -> str | None:
        data = json.dumps(asdict(lead)).encode()
        return self._account.write(self._bucket, self._lead_key, data, condition)
