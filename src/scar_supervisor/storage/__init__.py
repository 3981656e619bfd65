"""Where inputs come from and outputs go to: the protocol of a storage provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

from scar_supervisor.contract import FunctionConfig, StorageProvider
from scar_supervisor.faults import ConfigFault

if TYPE_CHECKING:
    from scar_supervisor.storage.s3 import S3

KINDS = ("s3", "minio", "webdav")
"""Kinds of storage providers that this supervisor knows."""


class Storage(Protocol):
    """One storage provider. Its methods raise StagingFailed; the message names bucket and key."""

    def fetch(self, bucket: str, key: str, path: str, guard: Guard, size: int | None = None) -> int:
        """Copy an object into the new file `path`; its size in bytes. `size`: what it may have."""

    def store(self, bucket: str, key: str, path: str, about: Mapping[str, str]) -> None:
        """Copy the file `path` into an object; `about` it is kept where the provider can."""

    def holds(self, bucket: str, key: str, path: str, known_by: Mapping[str, str]) -> bool:
        """Whether it is surely there already: the same bytes, kept with `known_by`."""


class Guard(Protocol):
    """What a transfer asks before it goes on."""

    def room(self, size_bytes: int) -> None:
        """Raise StagingFailed unless there is room for so many bytes."""

    def time(self) -> None:
        """Raise ScriptTimedOut when the invocation's time is over."""


def check_providers(config: FunctionConfig) -> None:
    """Raise ConfigFault where an input or output is with a provider that we do not know."""
    for side, paths in (("input", config.inputs), ("output", config.outputs)):
        for path in paths:
            if path.provider.partition(".")[0] not in KINDS:
                raise ConfigFault(
                    f"{side} `{path.bucket}`: storage provider `{path.provider}` is not supported "
                    f"yet; use one of the kinds {', '.join(KINDS)}"
                )
            if path.provider != "s3" and path.provider not in config.providers:
                raise ConfigFault(
                    f"{side} `{path.bucket}`: storage provider `{path.provider}` is not in the "
                    "config; deploy the function again"
                )


class Storages:
    """The storage providers, each opened when it is first needed and kept for the next event."""

    def __init__(
        self, environ: Mapping[str, str], providers: Mapping[str, StorageProvider] | None = None
    ) -> None:
        self._openers: dict[str, Callable[[], Storage]] = {"s3": lambda: self.account}
        for name, its in (providers or {}).items():
            self._openers[name] = partial(_open, name, its, environ)
        self._open: dict[str, Storage] = {}
        self._environ = environ
        self._account: S3 | None = None

    @property
    def account(self) -> S3:
        """The account's own S3, whatever the providers are."""
        if self._account is None:
            # Not at start: OpenSSL's library takes time to load, and many events touch no storage.
            from scar_supervisor.storage.s3 import open_s3

            self._account = open_s3(self._environ)
        return self._account

    def __getitem__(self, provider: str) -> Storage:
        """The provider of that name. Raises ConfigFault where there is none."""
        if provider not in self._openers:
            raise ConfigFault(f"storage provider `{provider}` is not in the function's config")
        if provider not in self._open:
            self._open[provider] = self._openers[provider]()
        return self._open[provider]


def _open(name: str, provider: StorageProvider, environ: Mapping[str, str]) -> Storage:
    from scar_supervisor.storage.secret import ProviderSecret

    secret = ProviderSecret(name, provider.secret, environ)
    if name.partition(".")[0] == "webdav":
        from scar_supervisor.storage.webdav import WebDav

        return WebDav(name, provider, secret)
    from scar_supervisor.storage.s3 import open_provider

    return open_provider(name, provider, secret, environ)
