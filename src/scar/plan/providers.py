"""The storage providers of one function: where they are, and the secrets that open them. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from scar.fdl.schema import (
    AwsFunction,
    MinioProvider,
    S3Provider,
    StorageProviders,
    WebdavProvider,
)
from scar.plan.resources import Secret, secret_name
from scar_supervisor.contract import StorageProvider

_CREDENTIALS = {"access_key", "secret_key", "login", "password", "token"}
"""Keys of a provider that go into its secret and nowhere else."""


def named(function: AwsFunction) -> tuple[str, ...]:
    """The providers that a function's inputs and outputs name; not the account's own S3."""
    parts = (*function.lambda_.input, *function.lambda_.output)
    return tuple(sorted({part.storage_provider for part in parts} - {"s3"}))


def places(function: AwsFunction, providers: StorageProviders) -> Mapping[str, StorageProvider]:
    """What the image is told of the function's providers: nothing secret."""
    return {name: _place(function, name, providers) for name in named(function)}


def secrets(
    function: AwsFunction, providers: StorageProviders, tags: Mapping[str, str]
) -> Iterator[Secret]:
    """One secret for each provider of the function."""
    for name in named(function):
        given = providers.of(name).model_dump(include=_CREDENTIALS)
        value, its_name = json.dumps(given), secret_name(function.lambda_.name, name)
        yield Secret(its_name, _fingerprint(its_name, value), tags, value)


def _place(function: AwsFunction, name: str, providers: StorageProviders) -> StorageProvider:
    secret = secret_name(function.lambda_.name, name)
    match providers.of(name):
        case MinioProvider() as its:
            return StorageProvider(secret, _url(its.endpoint), its.region or "", its.verify)
        case S3Provider() as its:
            return StorageProvider(secret, region=its.region or "")
        case WebdavProvider() as its:
            return StorageProvider(secret, _url(its.hostname).rstrip("/"))
        case its:
            raise TypeError(f"{type(its).__name__} cannot be staged with: a rule refuses it")


def _url(address: str) -> str:
    return address if "://" in address else f"https://{address}"


def _fingerprint(name: str, value: str) -> str:
    """Tells whether the value is another one; slow to make, so that a password is not guessed."""
    raw = hashlib.scrypt(value.encode(), salt=name.encode(), n=2**14, r=8, p=1, dklen=24)
    return raw.hex()
