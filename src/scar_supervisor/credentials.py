"""Whose requests we sign: environment, container credentials or the instance's role."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from scar_supervisor.faults import ConfigFault
from scar_supervisor.sigv4 import Keys
from scar_supervisor.transport import BROKEN, Origin

REFRESH_BEFORE_S = 600.0
"""Temporary credentials are replaced this long before they expire."""

CONTAINER_HOST = "http://169.254.170.2"
INSTANCE_HOST = "http://169.254.169.254"
# The hosts AWS's clients allow for AWS_CONTAINER_CREDENTIALS_FULL_URI over plain http.
_PLAIN_HOSTS = frozenset(
    ("localhost", "127.0.0.1", "::1", "169.254.170.2", "169.254.170.23", "fd00:ec2::23")
)


@dataclass(frozen=True)
class Lease:
    """Keys and when they expire (seconds since 1970); None: never."""

    keys: Keys
    expires: float | None = None


class KeySource(Protocol):
    """Whose requests they are."""

    def keys(self) -> Keys:
        """Keys to sign a request with."""

    def forget(self) -> bool:
        """The service refused them: fetch anew next time; False when that cannot help."""


class Credentials:
    """Keys that are valid now, fetched again before they expire."""

    def __init__(self, environ: Mapping[str, str], clock: Callable[[], float] = time.time) -> None:
        self._environ, self._clock = environ, clock
        self._lease: Lease | None = None

    def keys(self) -> Keys:
        """Keys to sign a request with. Raises ConfigFault where there are none."""
        lease = self._lease
        if lease is None or self._left_s(lease) < REFRESH_BEFORE_S:
            try:
                lease = self._lease = self._fetch()
            except ConfigFault:
                if lease is None or self._left_s(lease) <= 0:
                    raise
        return lease.keys

    def forget(self) -> bool:
        """Fetch anew next time, AWS says they have expired; False when that cannot help."""
        had, self._lease = self._lease, None
        return had is not None and had.expires is not None

    def _left_s(self, lease: Lease) -> float:
        return float("inf") if lease.expires is None else lease.expires - self._clock()

    def _fetch(self) -> Lease:
        environ = self._environ
        if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
            token = environ.get("AWS_SESSION_TOKEN") or None
            return Lease(
                Keys(environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"], token)
            )
        relative = environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        full = environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        if relative or full:
            return _from_container(
                f"{CONTAINER_HOST}{relative}" if relative else full or "", environ
            )
        if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            raise ConfigFault("no AWS credentials: give the function or job a role")
        return _from_instance(environ)


def _from_container(url: str, environ: Mapping[str, str]) -> Lease:
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _PLAIN_HOSTS:
        raise ConfigFault(
            f"AWS_CONTAINER_CREDENTIALS_FULL_URI: `{url}` is neither https nor a loopback address"
        )
    headers = {}
    if token := _container_token(environ):
        headers["Authorization"] = token
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    answer = metadata(f"{parts.scheme}://{parts.netloc}", "GET", target, headers)
    return _lease(answer, "container credentials")


def _container_token(environ: Mapping[str, str]) -> str | None:
    path = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    if not path:
        return environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as exc:
        raise ConfigFault(f"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: {exc}") from exc


def _from_instance(environ: Mapping[str, str]) -> Lease:
    path = "/latest/meta-data/iam/security-credentials/"
    role = instance_metadata(path, environ).split("\n")[0].strip()
    return _lease(instance_metadata(path + role, environ), "instance credentials")


def instance_metadata(path: str, environ: Mapping[str, str]) -> str:
    """A value of the EC2 instance's metadata (IMDSv2). Raises ConfigFault where there is none."""
    host = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", INSTANCE_HOST)
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
    token = metadata(host, "PUT", "/latest/api/token", ttl)
    return metadata(host, "GET", path, {"X-aws-ec2-metadata-token": token})


def metadata(host: str, method: str, target: str, headers: Mapping[str, str]) -> str:
    """A text from a metadata address near us; one retry. Raises ConfigFault where none answers."""
    origin = Origin(host, timeout_s=2.0)
    why: object = None
    for _ in range(2):
        try:
            reply = origin.exchange(
                method, origin.base_path + target, {"Host": origin.netloc, **headers}
            )
        except BROKEN as exc:
            why = exc
        else:
            if reply.status == 200:
                return reply.body.decode()
            why = f"HTTP status {reply.status}"
    raise ConfigFault(f"no AWS credentials or region: {host} answers {why}; give the job a role")


def _lease(text: str, source: str) -> Lease:
    from datetime import datetime  # not needed where the environment has the keys

    try:
        data: dict[str, Any] = json.loads(text)
        keys = Keys(data["AccessKeyId"], data["SecretAccessKey"], data.get("Token"))
        expires = data.get("Expiration")
        return Lease(keys, datetime.fromisoformat(expires).timestamp() if expires else None)
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigFault(f"{source} cannot be read: {type(exc).__name__}") from exc
