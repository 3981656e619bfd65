"""Which job starts now, which can never start, and what follows when an attempt ends. Pure.

First in, first out in a queue; queues in order of priority. As on AWS the head of a queue is never
overtaken: a job that waits, or that no compute environment can hold, keeps those behind it waiting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOO_LARGE = (
    "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - CE(s) associated with the job queue "
    "cannot meet the CPU requirement of the job."
)
"""The user guide's words, "Jobs stuck in a RUNNABLE status"."""

NOT_HERE = (
    "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement (vCPU/memory/GPU) "
    "is higher than that can be met by the CE(s) attached to the job queue."
)
"""As above. The only thing that this host cannot give at all is a GPU."""


@dataclass(frozen=True)
class Need:
    """What a job asks for."""

    vcpus: float
    memory_mib: int
    gpus: int = 0


def total_need(needs: Sequence[Need]) -> Need:
    """What the nodes of a multi-node job ask for together."""
    return Need(
        sum(need.vcpus for need in needs),
        sum(need.memory_mib for need in needs),
        sum(need.gpus for need in needs),
    )


@dataclass(frozen=True)
class Host:
    """What this machine has for jobs."""

    vcpus: int
    memory_mib: int
    gpus: int = 0


def this_host() -> Host:
    """The vCPUs this process may use, and the machine's memory. GPUs are not offered yet."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Host(len(os.sched_getaffinity(0)), pages * page_bytes >> 20)


@dataclass(frozen=True)
class Environment:
    """A compute environment as the scheduler sees it."""

    arn: str
    max_vcpus: float
    enabled: bool = True


@dataclass(frozen=True)
class Waiting:
    """A RUNNABLE job. `number` rises with the time of submission."""

    job: str
    number: int
    need: Need


@dataclass(frozen=True)
class Queue:
    """A queue with its environments in order of preference and its RUNNABLE jobs, oldest first."""

    priority: int
    environments: tuple[Environment, ...]
    jobs: Sequence[Waiting]


@dataclass(frozen=True)
class Held:
    """What a STARTING or RUNNING job holds in its compute environment and on the host."""

    environment: str
    need: Need


@dataclass(frozen=True)
class Decisions:
    """What to do now."""

    starts: tuple[tuple[str, str], ...] = ()
    """(job, ARN of the compute environment it starts in)."""
    stuck: tuple[tuple[str, str], ...] = ()
    """(head of a queue, why it never starts)."""


def decide(queues: Sequence[Queue], held: Sequence[Held], host: Host) -> Decisions:
    """The jobs to start now.

    A job larger than the host, but not than its compute environment, runs when nothing else does.
    What a waiting head waits for (its compute environments, or the host) is kept for it: queues of
    less priority, or as old, take none of it.
    """
    room = _Room(held, host)
    starts: list[tuple[str, str]] = []
    stuck: list[tuple[str, str]] = []
    ordered = sorted(
        (queue for queue in queues if queue.jobs),
        key=lambda queue: (-queue.priority, queue.jobs[0].number),
    )
    for queue in ordered:
        for waiting in queue.jobs:
            if reason := _never(waiting.need, queue.environments, host):
                stuck.append((waiting.job, reason))
                break
            environment = room.environment_for(waiting.need, queue.environments)
            if environment is None:
                room.keep_for(waiting.need, queue.environments)
                break
            if not room.on_host(waiting.need):
                return Decisions(tuple(starts), tuple(stuck))
            room.take(Held(environment, waiting.need))
            starts.append((waiting.job, environment))
    return Decisions(tuple(starts), tuple(stuck))


def _never(need: Need, environments: Sequence[Environment], host: Host) -> str | None:
    if all(environment.max_vcpus < need.vcpus for environment in environments):
        return TOO_LARGE
    return NOT_HERE if need.gpus > host.gpus else None


class _Room:
    def __init__(self, held: Sequence[Held], host: Host) -> None:
        self._host, self._jobs, self._vcpus, self._memory_mib, self._gpus = host, 0, 0.0, 0, 0
        self._in: dict[str, float] = {}
        self._kept: set[str] = set()
        for one in held:
            self.take(one)

    def take(self, held: Held) -> None:
        self._jobs += 1
        self._vcpus += held.need.vcpus
        self._memory_mib += held.need.memory_mib
        self._gpus += held.need.gpus
        self._in[held.environment] = self._in.get(held.environment, 0) + held.need.vcpus

    def environment_for(self, need: Need, environments: Sequence[Environment]) -> str | None:
        for environment in environments:
            used = self._in.get(environment.arn, 0)
            free = environment.enabled and environment.arn not in self._kept
            if free and used + need.vcpus <= environment.max_vcpus:
                return environment.arn
        return None

    def keep_for(self, need: Need, environments: Sequence[Environment]) -> None:
        self._kept.update(e.arn for e in environments if e.max_vcpus >= need.vcpus)

    def on_host(self, need: Need) -> bool:
        return self._jobs == 0 or (
            self._vcpus + need.vcpus <= self._host.vcpus
            and self._memory_mib + need.memory_mib <= self._host.memory_mib
            and self._gpus + need.gpus <= self._host.gpus
        )


@dataclass(frozen=True)
class Ended:
    """How an attempt ended. `exit_code` is None where no container ran to its end."""

    exit_code: int | None
    status_reason: str
    reason: str = ""
    final: bool = False
    """Terminated or timed out: failed whatever the exit code, and not retried."""

    @property
    def succeeded(self) -> bool:
        """Whether the job is done."""
        return self.exit_code == 0 and not self.final


def retries(strategy: Mapping[str, Any], attempts: int, ended: Ended) -> bool:
    """Whether a failed attempt, the `attempts`-th, is followed by another.

    The first rule whose every condition matches decides; where none matches, the job is retried
    (API reference, RetryStrategy). A missing exit code or reason is matched as the empty text, so
    that a last rule `onReason: "*"` catches everything, as the user guide's examples use it.
    """
    if ended.final or attempts >= strategy.get("attempts", 1):
        return False
    seen = {
        "onExitCode": "" if ended.exit_code is None else str(ended.exit_code),
        "onReason": ended.reason,
        "onStatusReason": ended.status_reason,
    }
    for rule in strategy.get("evaluateOnExit") or ():
        if all(_matches(rule[key], text) for key, text in seen.items() if key in rule):
            return str(rule["action"]).upper() == "RETRY"
    return True


def _matches(pattern: str, text: str) -> bool:
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text == pattern
