import threading

import pytest

from scar.apply import apply, observe
from scar.errors import ApplyError, CloudError
from scar.plan.diff import Verb, to_reach, to_remove
from scar.plan.resources import Function, JobQueue, LogGroup, Repository, id_of

LOGS = LogGroup("/aws/lambda/f", 30)
FUNCTION = Function("f", "host/other:f", "role", 128, 3)


class HeldInADict:
    """A cloud for one kind of resource."""

    def __init__(self, refuse=(), meet=None):
        self.held, self.refuse, self.meet = {}, set(refuse), meet

    def read(self, name):
        return self.held.get(name)

    def create(self, wanted):
        if self.meet:
            self.meet.wait(5)
        if wanted.name in self.refuse:
            raise CloudError("fake", "create", "AccessDenied", "no", "ask the admin")
        self.held[wanted.name] = wanted

    def update(self, wanted, found):
        assert found == self.held[wanted.name]
        self.create(wanted)

    def delete(self, found):
        del self.held[found.name]


def cloud(**given):
    return {
        kind.kind: given.get(kind.__name__, HeldInADict())
        for kind in (LogGroup, Function, Repository, JobQueue)
    }


def ignore(step, state):
    pass


def test_after_a_plan_ran_nothing_is_left_to_do():
    handlers = cloud()
    apply(to_reach([LOGS, FUNCTION], {}), handlers, ignore)
    observed = observe(map(id_of, [LOGS, FUNCTION]), handlers)
    assert to_reach([LOGS, FUNCTION], observed).steps == ()
    apply(to_remove(observed), handlers, ignore)
    assert observe(map(id_of, [LOGS, FUNCTION]), handlers) == {}


def test_a_failure_says_why_what_is_done_and_what_is_left():
    handlers = cloud(Function=HeldInADict(refuse=["f"]))
    with pytest.raises(ApplyError) as caught:
        apply(to_reach([LOGS, FUNCTION, JobQueue("q", "q")], {}), handlers, ignore)
    assert str(caught.value) == "could not create function 'f'"
    assert caught.value.why == "fake.create: no (AccessDenied)\nask the admin"
    assert "create log group '/aws/lambda/f'" in caught.value.done
    assert "create function 'f'" not in (*caught.value.done, *caught.value.left)


def test_what_needs_a_failed_step_does_not_begin():
    handlers, told = cloud(LogGroup=HeldInADict(refuse=[LOGS.name])), []
    with pytest.raises(ApplyError) as caught:
        apply(
            to_reach([LOGS, FUNCTION], {}),
            handlers,
            lambda step, state: told.append((str(step), state)),
        )
    assert caught.value.left == ("create function 'f'",)
    assert told == [("create log group '/aws/lambda/f'", "start")]


def test_running_again_after_a_failure_continues():
    handlers = cloud(Function=HeldInADict(refuse=["f"]))
    with pytest.raises(ApplyError):
        apply(to_reach([LOGS, FUNCTION], {}), handlers, ignore)
    handlers["function"].refuse.clear()
    plan = to_reach([LOGS, FUNCTION], observe(map(id_of, [LOGS, FUNCTION]), handlers))
    assert [(s.verb, s.resource) for s in plan.steps] == [(Verb.CREATE, FUNCTION)]


def test_independent_steps_run_at_the_same_time():
    meet = threading.Barrier(2)
    handlers = cloud(LogGroup=HeldInADict(meet=meet), Repository=HeldInADict(meet=meet))
    apply(to_reach([LOGS, Repository("scar")], {}), handlers, ignore)
    assert not meet.broken
