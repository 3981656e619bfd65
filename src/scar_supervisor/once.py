"""One effect for each version of an object, however often its event comes.

Who begins to work on an object claims it in the deployment bucket, by a conditional write; who is
done leaves a record of it there. An event that comes again finds one or the other. A claim ends
with the time of its invocation or the life of its job, so that work that broke off is done again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from scar_supervisor import records
from scar_supervisor.aws import ServiceError, Unreachable
from scar_supervisor.contract import FunctionConfig
from scar_supervisor.events import Event, InputObject
from scar_supervisor.faults import StagingFailed
from scar_supervisor.log import Log
from scar_supervisor.records import Done, Lineage
from scar_supervisor.storage import Storages

TRIES = 10
"""To write a claim while others write it too; then something else is wrong."""

_UNUSABLE = frozenset(("AccessDenied", "NoSuchBucket", "AllAccessDisabled"))


@dataclass(frozen=True)
class Owner:
    """Who works on an object: an invocation until `until_ms` (since 1970), or a job."""

    id: str
    is_job: bool = False
    until_ms: int = 0


@dataclass(frozen=True)
class Claim:
    """That somebody works on an object's version."""

    owner: str
    is_job: bool
    until_ms: int
    attempts: int
    """How often this owner has begun."""
    sequencer: str
    version: str
    """What is done: records.work_version."""
    began_ms: int
    nonce: str
    """Tells a claim from the same owner's next one."""
    is_given_up: bool = False

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> Claim:
        """What `dump` gave. Raises ValueError where it is not that."""
        try:
            return cls(**json.loads(data))
        except TypeError as exc:
            raise ValueError(f"not a claim: {exc}") from exc


@dataclass(frozen=True)
class Already:
    """The object needs no work: it is done, or is being worked on."""

    item: InputObject
    is_done: bool
    by: str
    is_job: bool

    def __str__(self) -> str:
        state = "is done already" if self.is_done else "is being worked on"
        kind = "job" if self.is_job else "invocation"
        return f"{self.item.address} {state}, by {kind} {self.by}"


@dataclass
class Mark:
    """Our claim on an object. Without `etag` nothing is kept: there is nothing to know it by."""

    item: InputObject
    claim: Claim
    object_id: str = ""
    etag: str = ""
    is_repeated: bool = False
    """Whether somebody has begun with the same work before and may have left outputs."""


class Once:
    """What one event's owner may work on."""

    def __init__(
        self,
        config: FunctionConfig,
        storages: Storages,
        log: Log,
        owner: Owner,
        event: Event,
        job_has_ended: Callable[[str], bool],
    ) -> None:
        self._config, self._storages, self._log = config, storages, log
        self.owner, self._forced = owner, event.forced
        self._version = records.work_version(config.version, event.own_program)
        self._job_has_ended = job_has_ended
        self._marks: dict[InputObject, Mark | Already] = {}

    @property
    def held(self) -> list[Mark]:
        """What we work on and have not ended."""
        return [its for its in self._marks.values() if isinstance(its, Mark)]

    @property
    def attempts(self) -> int:
        """The most often that we have begun with one of the objects; 0 before the first."""
        return max((its.claim.attempts for its in self.held), default=0)

    def begin(self, item: InputObject) -> Mark | Already:
        """Claim an object, unless somebody else has. Raises StagingFailed where S3 is not there."""
        if item not in self._marks:
            try:
                self._marks[item] = self._begin(item)
            except ServiceError as error:
                if error.code not in _UNUSABLE:
                    raise StagingFailed(self._bucket, f"cannot claim the input: {error}") from error
                self._log.warning(
                    f"{self._bucket}: {error}: what was done cannot be kept there, so an event "
                    "that comes twice may have its effect twice"
                )
                self._marks[item] = Mark(item, self._claim(item))
            except Unreachable as exc:
                raise StagingFailed(self._bucket, f"cannot claim the input: {exc}") from exc
        return self._marks[item]

    def known(self, item: InputObject) -> Already | None:
        """As `begin`; None where the object is ours to work on."""
        its = self.begin(item)
        return its if isinstance(its, Already) else None

    def mark(self, item: InputObject) -> Mark | None:
        """Our claim on an object, if we hold one."""
        its = self._marks.get(item)
        return its if isinstance(its, Mark) else None

    def hand_over(self, job_id: str) -> None:
        """A job goes on with everything that we hold."""
        for mark in self.held:
            theirs = replace(mark.claim, owner=job_id, is_job=True, until_ms=0, attempts=0)
            self._replace(mark, theirs)
        self._marks.clear()

    def give_up(self) -> None:
        """We end without being done: whoever comes next may begin."""
        for mark in self.held:
            self._replace(mark, replace(mark.claim, is_given_up=True))

    def done(self, mark: Mark, lineage: Lineage, outputs: Sequence[str]) -> None:
        """Keep what was done. That it cannot be kept is no failure: the outputs are there."""
        del self._marks[mark.item]
        if not mark.etag:
            return
        item = mark.item
        record = Done(
            lineage,
            item.address,
            item.size,
            item.sequencer,
            tuple(outputs[: records.OUTPUTS_LISTED]),
            len(outputs),
            records.instant(time.time()),
        )
        try:
            key = self.done_key(mark)
            self._storages.account.write(self._bucket, key, record.dump().encode())
        except (ServiceError, Unreachable) as exc:
            self._log.warning(f"cannot keep in {self._bucket} that {item.address} is done: {exc}")

    def done_key(self, mark: Mark) -> str:
        """Where `done` keeps its record; empty where it keeps none."""
        return self._done_prefix(mark.claim) + mark.object_id if mark.etag else ""

    @property
    def _bucket(self) -> str:
        return self._config.deployment_bucket

    def _done_prefix(self, claim: Claim) -> str:
        return records.done_prefix(self._config.name, claim.version)

    def _begin(self, item: InputObject) -> Mark | Already:
        mine = self._claim(item)
        if not self._bucket or not item.version:
            return Mark(item, mine)
        its_id = records.object_id(item.place, item.key, item.version)
        key = records.claim_key(self._config.name, its_id)
        account = self._storages.account
        for _ in range(TRIES):
            etag = account.write(self._bucket, key, mine.dump(), {"If-None-Match": "*"})
            if etag is not None:
                return Mark(item, mine, its_id, etag)
            found = account.load(self._bucket, key)
            if found is None:
                continue
            theirs = _read(found.data)
            if theirs is None:
                next_ = mine
            elif theirs.nonce == mine.nonce:  # written, but the answer was lost
                return Mark(item, theirs, its_id, found.etag)
            else:
                verdict = self._judge(item, its_id, theirs, mine)
                if isinstance(verdict, Already):
                    return verdict
                next_ = verdict
            etag = account.write(self._bucket, key, next_.dump(), {"If-Match": found.etag})
            if etag is not None:
                return Mark(item, next_, its_id, etag, self._repeats(theirs, item))
        raise StagingFailed(f"s3://{self._bucket}/{key}", f"is written by others {TRIES} times")

    def _judge(self, item: InputObject, its_id: str, theirs: Claim, mine: Claim) -> Claim | Already:
        """The claim to write over theirs, or why we may not."""
        ours_again = theirs.owner == self.owner.id
        if _is_newer(item.sequencer, theirs.sequencer):
            return mine
        done = self._done(theirs, its_id)
        if done is not None:
            kind, _, by = done.lineage.run.partition(":")
            # What an event of S3 told is done; what a user asks for is what the function does now.
            same = bool(item.sequencer) or theirs.version == self._version
            if by == self.owner.id or (same and not self._forced):
                return Already(item, True, by, kind == "job")
        if ours_again:
            return replace(mine, attempts=theirs.attempts + 1, began_ms=theirs.began_ms)
        if done is None and not self._may_take(theirs):
            return Already(item, False, theirs.owner, theirs.is_job)
        return mine

    def _repeats(self, theirs: Claim | None, item: InputObject) -> bool:
        # A claim without an attempt was handed over by who did not upload anything.
        if theirs is None or self._forced or not theirs.attempts:
            return False
        return not _is_newer(item.sequencer, theirs.sequencer)

    def _may_take(self, theirs: Claim) -> bool:
        """Whether who holds the claim has ended, or has handed it on to us."""
        if theirs.is_given_up:
            return True
        if theirs.is_job:
            return self._job_has_ended(theirs.owner)
        return self.owner.is_job or theirs.until_ms < time.time() * 1000

    def _done(self, claim: Claim, its_id: str) -> Done | None:
        try:
            found = self._storages.account.load(self._bucket, self._done_prefix(claim) + its_id)
        except ServiceError as error:
            # What S3 answers for an absent key to a role that may not list the bucket; the claim
            # could be read.
            if error.code != "AccessDenied":
                raise
            found = None
        try:
            its = Done.load(found.data.decode()) if found else None
        except ValueError:
            return None
        # Of an earlier upload of the same bytes.
        return None if its and _is_newer(claim.sequencer, its.sequencer) else its

    def _claim(self, item: InputObject) -> Claim:
        now_ms = int(time.time() * 1000)
        return Claim(
            *(self.owner.id, self.owner.is_job, self.owner.until_ms, 1),
            *(item.sequencer, self._version, now_ms, os.urandom(8).hex()),
        )

    def _replace(self, mark: Mark, claim: Claim) -> None:
        if not mark.etag:
            return
        key = records.claim_key(self._config.name, mark.object_id)
        try:
            condition: Mapping[str, str] = {"If-Match": mark.etag}
            # Where it does not hold somebody has taken it over: the job, before we could say so.
            self._storages.account.write(self._bucket, key, claim.dump(), condition)
        except (ServiceError, Unreachable) as exc:
            self._log.warning(f"s3://{self._bucket}/{key}: {exc}")


def _read(data: bytes) -> Claim | None:
    try:
        return Claim.load(data)
    except ValueError:
        return None


def _is_newer(one: str, other: str) -> bool:
    """Whether sequencer `one` is of a later write than `other`.

    They are hexadecimal; the shorter one is filled up with zeros at its right (S3 user guide,
    "Event message structure").
    """
    width = max(len(one), len(other))
    return one.upper().ljust(width, "0") > other.upper().ljust(width, "0")
