"""What can go wrong with one event, by the names that its caller sees.

    Fault
    ├── ConfigFault        the function's config or image cannot do what is asked of it
    ├── EventFault         the event is not what it claims to be
    ├── StagingFailed      an input or output could not be copied
    ├── ScriptFailed       the user's script said no: its exit code
    ├── ScriptTimedOut     the user's script needed more time than the invocation has
    ├── DelegationFailed   the event could not be handed over to Batch
    └── NodesFailed        another node of a multi-node job failed

`Stopped` is no fault: the platform asked the supervisor to end.
"""

from __future__ import annotations

TAIL_LIMIT_BYTES = 4096


class Fault(Exception):
    """Base of all faults; the class's name is the `errorType` of the answer."""

    tail: bytes = b""
    """The end of the script's output, where there is one."""

    @property
    def report(self) -> str:
        """One line what, then the end of the script's output (at most 4 KiB)."""
        tail = self.tail[-TAIL_LIMIT_BYTES:].decode(errors="replace").strip("\n")
        return f"{self}\n\n{tail}" if tail else str(self)


class ConfigFault(Fault):
    """The function's config or image cannot do what is asked of it."""


class EventFault(Fault):
    """The event is not what it claims to be."""


class StagingFailed(Fault):
    """An input or output could not be copied."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


class ScriptFailed(Fault):
    """The user's script ended with an exit code other than 0; 128+n stands for signal n."""

    def __init__(self, exit_code: int, tail: bytes = b"") -> None:
        super().__init__(f"the script ended with exit code {exit_code}")
        self.exit_code, self.tail = exit_code, tail


class ScriptTimedOut(Fault):
    """The time of the invocation was over before the script was done."""

    def __init__(self, limit_s: float, tail: bytes = b"", doing: str = "the script was") -> None:
        super().__init__(f"{doing} still running after {limit_s:.1f} s, the time it may take")
        self.limit_s, self.tail = limit_s, tail


class DelegationFailed(Fault):
    """The event could not be handed over to Batch."""


class NodesFailed(Fault):
    """Another node of a multi-node job failed; `exit_code` is the job's."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("the job's nodes did not all succeed")
        self.exit_code = exit_code


class Stopped(BaseException):
    """The platform sent SIGTERM: end what runs, then exit 143."""
