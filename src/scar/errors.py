"""Everything SCAR can say went wrong.

ScarError                                                                 exit 1: a bug that escaped
├── UserError            the request cannot be right; nothing was touched     exit 2
│   ├── FdlError         one or more faults in the FDL, scar.cfg or a flag
│   ├── NotDeployed      the named function is not in this account and region
│   └── Missing          a script, file or folder that was named does not exist
├── CloudError           AWS (or the local cloud) refused or failed a call    exit 3
├── ImageError           a registry or an image archive said no               exit 3
├── ApplyError           a plan stopped half way; says what is done and left  exit 4
├── TransferFailed       some files were copied, others could not be          exit 4
└── FunctionFailed       the user's function said no                          exit 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and position, or a flag.

    line and column count from 1; both are 0 where the origin has no lines (a flag).
    """

    origin: str
    line: int = 0
    column: int = 0
    text: str = ""
    """The whole line, for showing it under the message."""

    def __str__(self) -> str:
        return f"{self.origin}:{self.line}:{self.column}" if self.line else self.origin


@dataclass(frozen=True)
class Diagnostic:
    """One fault, worded for the person who wrote the file."""

    summary: str
    path: str = ""
    """Dotted path of the value, such as `functions.aws[0].lambda.timeout`."""
    place: Place | None = None
    hint: str = ""
    """How to mend it."""
    severity: Literal["error", "warning"] = "error"


class ScarError(Exception):
    """Base of every error SCAR raises on purpose. `hint` says how to mend it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UserError(ScarError):
    """The request cannot be right; nothing was touched."""

    exit_code = 2


class FdlError(UserError):
    """The description of the functions is wrong; carries every fault found, not just the first."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__("; ".join(d.summary for d in diagnostics))
        self.diagnostics = tuple(diagnostics)


class NotDeployed(UserError):
    """The named function is not in this account and region."""


class Missing(UserError):
    """A script, file or folder that was named does not exist."""


class CloudError(ScarError):
    """AWS refused or failed a call. `code` is AWS's own error code."""

    exit_code = 3

    def __init__(
        self, service: str, operation: str, code: str, message: str, hint: str = ""
    ) -> None:
        super().__init__(f"{service}.{operation}: {message} ({code})", hint)
        self.service, self.operation, self.code = service, operation, code


class ImageError(ScarError):
    """A registry or an image archive said no; `reference` is the image as the user named it."""

    exit_code = 3

    def __init__(self, reference: str, why: str, hint: str = "") -> None:
        super().__init__(f"image `{reference}`: {why}", hint)
        self.reference = reference


class ApplyError(ScarError):
    """A plan stopped half way. Running the same command again continues from there."""

    exit_code = 4

    def __init__(self, failed: str, why: str, done: Sequence[str], left: Sequence[str]) -> None:
        super().__init__(f"could not {failed}")
        self.why, self.done, self.left = why, tuple(done), tuple(left)


class TransferFailed(ScarError):
    """Some files of `put` or `get` were not copied; `faults` names each and says why.

    Running the same command again copies what is left.
    """

    exit_code = 4

    def __init__(self, message: str, faults: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint)
        self.faults = tuple(faults)


class FunctionFailed(ScarError):
    """The user's function said no."""

    exit_code = 5

    def __init__(self, message: str, request_id: str, log_tail: str = "", hint: str = "") -> None:
        super().__init__(message, hint)
        self.request_id, self.log_tail = request_id, log_tail
