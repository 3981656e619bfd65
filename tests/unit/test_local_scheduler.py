"""Which jobs start, which wait, which never start, and which are retried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from scar_local.scheduler import (
    NOT_HERE,
    TOO_LARGE,
    Ended,
    Environment,
    Held,
    Host,
    Need,
    Queue,
    Waiting,
    decide,
    retries,
)

HOST = Host(vcpus=4, memory_mib=8000)
SMALL = Environment("small", max_vcpus=1)
LARGE = Environment("large", max_vcpus=16)
OFF = Environment("off", max_vcpus=16, enabled=False)


def a_queue(
    *jobs: tuple[str, float],
    number: int = 1,
    priority: int = 1,
    environments: tuple[Environment, ...] = (LARGE,),
    memory_mib: int = 100,
    gpus: int = 0,
) -> Queue:
    """Jobs are (name, vCPUs), numbered from `number` on."""
    waiting = [
        Waiting(name, number + n, Need(vcpus, memory_mib, gpus))
        for n, (name, vcpus) in enumerate(jobs)
    ]
    return Queue(priority, environments, waiting)


def held(environment: str, vcpus: float, memory_mib: int = 100) -> Held:
    return Held(environment, Need(vcpus, memory_mib))


CASES: dict[str, tuple[list[Queue], list[Held], list[str], dict[str, str]]] = {
    "nothing waits": ([], [], [], {}),
    "jobs that fit start in order": ([a_queue(("a", 1), ("b", 2))], [], ["a", "b"], {}),
    "the environment's maxvCpus holds the second back": (
        [a_queue(("a", 1), ("b", 1), environments=(SMALL,))],
        [],
        ["a"],
        {},
    ),
    "what runs in the environment already counts": (
        [a_queue(("a", 1), environments=(SMALL,))],
        [held("small", 1)],
        [],
        {},
    ),
    "a full first environment gives way to the second": (
        [a_queue(("a", 1), ("b", 1), environments=(SMALL, LARGE))],
        [],
        ["a@small", "b@large"],
        {},
    ),
    "a disabled environment starts nothing": ([a_queue(("a", 1), environments=(OFF,))], [], [], {}),
    "the host's vCPUs hold jobs back": (
        [a_queue(("a", 2), ("b", 2), ("c", 1))],
        [],
        ["a", "b"],
        {},
    ),
    "the host's memory holds jobs back": (
        [a_queue(("a", 1), ("b", 1), memory_mib=5000)],
        [],
        ["a"],
        {},
    ),
    "a job larger than the host runs when nothing else does": (
        [a_queue(("a", 8), ("b", 1))],
        [],
        ["a"],
        {},
    ),
    "a job larger than the host waits for the others to end": (
        [a_queue(("a", 8))],
        [held("large", 1)],
        [],
        {},
    ),
    "while a job waits for the whole host nothing overtakes it": (
        [a_queue(("a", 8)), a_queue(("b", 1), number=5)],
        [held("large", 1)],
        [],
        {},
    ),
    "the head of a queue is not overtaken": (
        [a_queue(("a", 2), ("b", 1), environments=(Environment("two", 2),))],
        [held("two", 1)],
        [],
        {},
    ),
    "queues of higher priority come first": (
        [
            a_queue(("low", 1), environments=(SMALL,)),
            a_queue(("high", 1), number=9, priority=5, environments=(SMALL,)),
        ],
        [],
        ["high"],
        {},
    ),
    "of equal queues the one whose head is older comes first": (
        [
            a_queue(("new", 1), number=7, environments=(SMALL,)),
            a_queue(("old", 1), number=2, environments=(SMALL,)),
        ],
        [],
        ["old"],
        {},
    ),
    "a low queue does not take what a high head waits for": (
        [
            a_queue(("low", 1), environments=(Environment("two", 2),)),
            a_queue(("high", 2), number=9, priority=5, environments=(Environment("two", 2),)),
        ],
        [held("two", 1)],
        [],
        {},
    ),
    "a job beyond every maxvCpus is stuck and blocks its queue, not another": (
        [
            a_queue(("a", 2), ("b", 1), environments=(SMALL,)),
            a_queue(("c", 1), number=9, environments=(SMALL,)),
        ],
        [],
        ["c"],
        {"a": TOO_LARGE},
    ),
    "a GPU is nothing this host has": ([a_queue(("a", 1), gpus=1)], [], [], {"a": NOT_HERE}),
    "an unmanaged environment has no limit but the host": (
        [a_queue(("a", 3), environments=(Environment("any", math.inf),))],
        [],
        ["a"],
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_scheduler_decides(case: str) -> None:
    queues, running, starts, stuck = CASES[case]

    decisions = decide(queues, running, HOST)

    places = any("@" in start for start in starts)
    assert [f"{job}@{place}" if places else job for job, place in decisions.starts] == starts
    assert dict(decisions.stuck) == stuck


EXIT_7 = Ended(7, "Essential container in task exited")
NO_IMAGE = Ended(None, "Task failed to start", "CannotPullContainerError: no such image")
LOST = Ended(None, "Host EC2 (instance i-0) terminated.")
KILLED = Ended(137, "stop it", final=True)


def rule(action: str, **conditions: str) -> dict[str, str]:
    return {"action": action, **conditions}


@pytest.mark.parametrize(
    ("strategy", "attempts", "ended", "again"),
    [
        ({}, 1, EXIT_7, False),
        ({"attempts": 2}, 1, EXIT_7, True),
        ({"attempts": 2}, 2, EXIT_7, False),
        ({"attempts": 9}, 1, KILLED, False),
        ({"attempts": 2}, 1, LOST, True),
        ({"attempts": 2, "evaluateOnExit": [rule("EXIT", onExitCode="7")]}, 1, EXIT_7, False),
        ({"attempts": 2, "evaluateOnExit": [rule("exit", onExitCode="7*")]}, 1, EXIT_7, False),
        ({"attempts": 2, "evaluateOnExit": [rule("EXIT", onExitCode="70")]}, 1, EXIT_7, True),
        ({"attempts": 2, "evaluateOnExit": [rule("EXIT", onExitCode="1*")]}, 1, EXIT_7, True),
        (
            {
                "attempts": 2,
                "evaluateOnExit": [
                    rule("RETRY", onStatusReason="Host EC2*"),
                    rule("EXIT", onReason="*"),
                ],
            },
            1,
            EXIT_7,
            False,
        ),
        (
            {
                "attempts": 2,
                "evaluateOnExit": [
                    rule("RETRY", onStatusReason="Host EC2*"),
                    rule("EXIT", onReason="*"),
                ],
            },
            1,
            LOST,
            True,
        ),
        (
            {"attempts": 2, "evaluateOnExit": [rule("EXIT", onReason="CannotPull*")]},
            1,
            NO_IMAGE,
            False,
        ),
        (
            {
                "attempts": 2,
                "evaluateOnExit": [rule("EXIT", onExitCode="7", onReason="something else")],
            },
            1,
            EXIT_7,
            True,
        ),
    ],
)
def test_a_failed_attempt_is_retried_as_its_rules_say(
    strategy: Mapping[str, Any], attempts: int, ended: Ended, again: bool
) -> None:
    assert retries(strategy, attempts, ended) is again


def test_only_exit_code_zero_of_a_job_nobody_ended_is_success() -> None:
    assert Ended(0, "Essential container in task exited").succeeded
    assert not EXIT_7.succeeded
    assert not LOST.succeeded
    assert not Ended(0, "stop it", final=True).succeeded
