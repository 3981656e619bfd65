"""Observe an account, and carry out a plan: independent steps at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Literal, TypeAlias

from scar.aws.handlers import Handler
from scar.errors import ApplyError, ScarError
from scar.plan.diff import Observed, Plan, Step, Verb, waits_for
from scar.plan.resources import Resource, ResourceId

PARALLEL = 8
"""Reads, or steps, at a time."""

OnStep: TypeAlias = Callable[[Step, Literal["start", "done"]], None]


def observe(ids: Iterable[ResourceId], handlers: Mapping[str, Handler]) -> Observed:
    """What the account holds of `ids`. Reads only, in parallel."""

    def read(rid: ResourceId) -> tuple[ResourceId, Resource | None]:
        return rid, handlers[rid.kind].read(rid.name)

    with ThreadPoolExecutor(PARALLEL) as pool:
        found = list(pool.map(read, dict.fromkeys(ids)))
    return {rid: resource for rid, resource in found if resource is not None}


def apply(plan: Plan, handlers: Mapping[str, Handler], on_step: OnStep) -> None:
    """Run every step, each as soon as those it needs are done.

    `on_step` is called from this thread only. Raises ApplyError where a step fails: steps that run
    are finished, no more begin.
    """
    before = waits_for(plan)
    done: list[int] = []
    running: dict[Future[None], int] = {}
    failed: tuple[int, Exception] | None = None
    todo = list(range(len(plan.steps)))
    with ThreadPoolExecutor(PARALLEL) as pool:
        while todo or running:
            ready = [] if failed else [n for n in todo if before[n] <= set(done)]
            for n in ready[: PARALLEL - len(running)]:
                todo.remove(n)
                on_step(plan.steps[n], "start")
                running[pool.submit(_run, plan.steps[n], handlers)] = n
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                n = running.pop(future)
                if error := future.exception():
                    failed = failed or (n, _ours(error))
                else:
                    done.append(n)
                    on_step(plan.steps[n], "done")
    if failed:
        raise _stopped(plan, failed, done) from failed[1]


def _run(step: Step, handlers: Mapping[str, Handler]) -> None:
    handler = handlers[step.resource.kind]
    match step.verb:
        case Verb.CREATE:
            handler.create(step.resource)
        case Verb.UPDATE:
            handler.update(step.resource, step.found)
        case Verb.DELETE:
            handler.delete(step.resource)


def _ours(error: BaseException) -> Exception:
    """The error of a step; a bug is not dressed up as the cloud's refusal."""
    if isinstance(error, ScarError):
        return error
    raise error


def _stopped(plan: Plan, failed: tuple[int, Exception], done: list[int]) -> ApplyError:
    step, why = plan.steps[failed[0]], failed[1]
    left = [str(s) for n, s in enumerate(plan.steps) if n not in done and n != failed[0]]
    text = f"{why}\n{hint}" if (hint := getattr(why, "hint", "")) else str(why)
    return ApplyError(str(step), text, [str(plan.steps[n]) for n in done], left)
