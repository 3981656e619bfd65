"""The account and region that commands speak to: AWS's, or the local cloud's."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from scar import __version__
from scar.aws.errors import speaking_to
from scar.plan.desired import AccountFacts

if TYPE_CHECKING:
    from boto3.session import Session
    from types_boto3_apigateway.client import APIGatewayClient
    from types_boto3_batch.client import BatchClient
    from types_boto3_ecr.client import ECRClient
    from types_boto3_iam.client import IAMClient
    from types_boto3_lambda.client import LambdaClient
    from types_boto3_logs.client import CloudWatchLogsClient
    from types_boto3_resourcegroupstaggingapi.client import ResourceGroupsTaggingAPIClient
    from types_boto3_s3.client import S3Client
    from types_boto3_secretsmanager.client import SecretsManagerClient
    from types_boto3_sts.client import STSClient
    from types_boto3_sts.type_defs import GetCallerIdentityResponseTypeDef

DEFAULT_REGION = "us-east-1"
CONNECTIONS = 32
"""Kept open to one service: 16 transfers and what plans read beside them."""


@dataclass(frozen=True)
class Target:
    """Where to: `aws` as the profile says, or the local cloud at `endpoint_url`.

    `region` None: the profile's, or us-east-1. `on_answer` is told of every answer.
    """

    kind: Literal["aws", "local"]
    endpoint_url: str | None
    profile: str | None
    region: str | None
    on_answer: Callable[[dict[str, Any]], None] | None = None


class Account:
    """One account in one region. Nothing is asked before it is needed; threads may share it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.RLock()
        self._clients: dict[tuple[str, float | None], Any] = {}
        self._exclusive: dict[str, threading.Lock] = {}

    @property
    def is_local(self) -> bool:
        """Whether this is the local cloud."""
        return self._target.kind == "local"

    @property
    def endpoint_url(self) -> str | None:
        """Where the local cloud is; None for AWS."""
        return self._target.endpoint_url

    @property
    def region(self) -> str:
        """The region of every call."""
        return self._target.region or self._session.region_name or DEFAULT_REGION

    @property
    def account_id(self) -> str:
        """The 12 digits."""
        return self._identity["Account"]

    @property
    def owner(self) -> str:
        """The caller's unique id (STS UserId): the value of the tag `owner`."""
        return self._identity["UserId"]

    @contextmanager
    def exclusive(self, what: str) -> Iterator[None]:
        """Change one shared thing of the account alone: no thread and no process of this user."""
        with self._lock:
            lock = self._exclusive.setdefault(what, threading.Lock())
        place = f"{self._target.endpoint_url} {self.region} {what}"
        name = f"scar-{os.getuid()}-{hashlib.sha256(place.encode()).hexdigest()[:16]}.lock"
        path = Path(tempfile.gettempdir()) / name
        with lock:
            file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
            finally:
                os.close(file)

    def in_region(self, region: str) -> Account:
        """The same account in another region."""
        return Account(replace(self._target, region=region))

    def facts(self) -> AccountFacts:
        """The account as planning sees it."""
        return AccountFacts(self.account_id, self.region, self.owner, self.is_local)

    @overload
    def client(self, service: Literal["apigateway"]) -> APIGatewayClient: ...
    @overload
    def client(self, service: Literal["batch"]) -> BatchClient: ...
    @overload
    def client(self, service: Literal["ecr"]) -> ECRClient: ...
    @overload
    def client(self, service: Literal["iam"]) -> IAMClient: ...
    @overload
    def client(self, service: Literal["lambda"], wait_s: float | None = None) -> LambdaClient: ...
    @overload
    def client(self, service: Literal["logs"]) -> CloudWatchLogsClient: ...
    @overload
    def client(
        self, service: Literal["resourcegroupstaggingapi"]
    ) -> ResourceGroupsTaggingAPIClient: ...
    @overload
    def client(self, service: Literal["ec2", "service-quotas"]) -> Any: ...
    @overload
    def client(self, service: Literal["s3"]) -> S3Client: ...
    @overload
    def client(self, service: Literal["secretsmanager"]) -> SecretsManagerClient: ...
    @overload
    def client(self, service: Literal["sts"]) -> STSClient: ...

    def client(self, service: str, wait_s: float | None = None) -> Any:
        """The client of `service`, made once.

        With `wait_s` it waits that long for an answer and never sends a request twice.
        """
        with self._lock:
            key = (service, wait_s)
            if key not in self._clients:
                self._clients[key] = self._made(service, wait_s)
            return self._clients[key]

    def _made(self, service: str, wait_s: float | None) -> Any:
        from botocore.config import Config

        options: dict[str, Any] = {
            "retries": {"mode": "standard", "max_attempts": 5 if wait_s is None else 1},
            "max_pool_connections": CONNECTIONS,
            "tcp_keepalive": True,
            # Our own also spares botocore making its long one anew for every request.
            "user_agent": f"scar/{__version__}",
        }
        if wait_s is not None:
            options["read_timeout"] = wait_s
        if self.is_local:
            options |= {
                "proxies": {},
                "s3": {"addressing_style": "path"},
                "use_fips_endpoint": False,
                "use_dualstack_endpoint": False,
            }
        with speaking_to(service):
            client = self._session.client(
                service,  # type: ignore[call-overload]  # a literal for every caller of `client`
                region_name=self.region,
                endpoint_url=self._target.endpoint_url,
                config=Config(**options),
            )
        if self._target.on_answer is not None:
            client.meta.events.register("after-call", self._tell)
        return client

    def _tell(self, model: Any, parsed: Any, **_: Any) -> None:
        assert self._target.on_answer is not None
        service = model.service_model.service_name
        if model.name == "GetAuthorizationToken":  # a password of the registry
            parsed = {"authorizationData": "not shown"}
        told = {"Service": service, "Operation": model.name, "Answer": parsed}
        self._target.on_answer(told)

    @cached_property
    def _session(self) -> Session:
        import boto3

        with self._lock, speaking_to("sts"):
            if self.is_local:
                return boto3.Session(
                    aws_access_key_id="local",
                    aws_secret_access_key="local",
                    region_name=self._target.region or DEFAULT_REGION,
                    botocore_session=_session_without_files(),
                )
            return boto3.Session(profile_name=self._target.profile, region_name=self._target.region)

    @cached_property
    def _identity(self) -> GetCallerIdentityResponseTypeDef:
        with self._lock, speaking_to("sts"):
            return self.client("sts").get_caller_identity()


def connect(target: Target) -> Account:
    """The account of `target`. Makes no call yet."""
    return Account(target)


def _session_without_files() -> Any:
    """A session that knows nothing of the user's profiles: not their files, not AWS_PROFILE."""
    from botocore.session import Session

    nothing = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
        "ca_bundle": (None, None, None, None),
    }
    return Session(session_vars=nothing)
