"""Where inputs come from and outputs go to: the protocol of a storage provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from scar_supervisor.contract import FunctionConfig
from scar_supervisor.faults import ConfigFault

PROVIDERS = ("s3",)
"""Storage providers that this supervisor knows."""


class Storage(Protocol):
    """One storage provider. Its methods raise StagingFailed; the message names bucket and key."""

    def fetch(self, bucket: str, key: str, path: str, guard: Guard, size: int | None = None) -> int:
        """Copy an object into the new file `path`; its size in bytes. `size`: what it may have."""

    def store(self, bucket: str, key: str, path: str) -> None:
        """Copy the file `path` into an object."""

    def store_bytes(self, bucket: str, key: str, data: bytes) -> None:
        """Make an object of `data`."""


class Guard(Protocol):
    """What a transfer asks before it goes on."""

    def room(self, size_bytes: int) -> None:
        """Raise StagingFailed unless there is room for so many bytes."""

    def time(self) -> None:
        """Raise ScriptTimedOut when the invocation's time is over."""


def check_providers(config: FunctionConfig) -> None:
    """Raise ConfigFault where an input or output is with a provider that we do not know."""
    for kind, paths in (("input", config.inputs), ("output", config.outputs)):
        for path in paths:
            if path.provider not in PROVIDERS:
                raise ConfigFault(
                    f"{kind} `{path.bucket}`: storage provider `{path.provider}` is not supported "
                    f"yet; use one of {', '.join(PROVIDERS)}"
                )


class Storages:
    """The storage providers, each opened when it is first needed and kept for the next event."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._openers: dict[str, Callable[[], Storage]] = {"s3": lambda: _open_s3(environ)}
        self._open: dict[str, Storage] = {}

    def __getitem__(self, provider: str) -> Storage:
        """The provider of that name. Raises ConfigFault where there is none."""
        if provider not in self._openers:
            raise ConfigFault(f"storage provider `{provider}` is not supported yet")
        if provider not in self._open:
            self._open[provider] = self._openers[provider]()
        return self._open[provider]


def _open_s3(environ: Mapping[str, str]) -> Storage:
    # Not at start: OpenSSL's library takes time to load, and many events touch no storage.
    from scar_supervisor.storage.s3 import open_s3

    return open_s3(environ)
