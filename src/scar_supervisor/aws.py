"""Signed requests to an AWS service, with bounded retries: the door to S3 and Batch."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from scar_supervisor import sigv4
from scar_supervisor.contract import StorageProvider
from scar_supervisor.credentials import KeySource, instance_metadata, metadata
from scar_supervisor.faults import ConfigFault
from scar_supervisor.transport import BROKEN, Body, FilePart, Origin, Receive, Reply

ATTEMPTS = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0

_TRANSIENT_TEXT = """
    RequestTimeout RequestTimeoutException SlowDown Throttling ThrottlingException
    ThrottledException TooManyRequestsException RequestLimitExceeded InternalError
    PriorRequestNotComplete BandwidthLimitExceeded RequestThrottled ConditionalRequestConflict
"""
_TRANSIENT = frozenset(_TRANSIENT_TEXT.split())
_STALE_TEXT = """
    ExpiredToken ExpiredTokenException RequestExpired InvalidAccessKeyId SignatureDoesNotMatch
"""
_STALE = frozenset(_STALE_TEXT.split())
"""The keys were good once, and may have been replaced."""
_ENDPOINT_NAMES = {"secretsmanager": "SECRETS_MANAGER"}
"""How AWS's variables call a service, where it is not its signing name (SDKs reference guide)."""


@dataclass(frozen=True)
class Request:
    """One request to a service; `path` is percent-encoded."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = b""


class ServiceError(Exception):
    """The service refused: HTTP `status`, AWS's error `code` and its message."""

    def __init__(self, reply: Reply) -> None:
        self.status, self.headers = reply.status, reply.headers
        self.code, message = _code_and_message(reply)
        super().__init__(f"{message} ({self.code})" if message else self.code)

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.status >= 500 or self.status == 429 or self.code in _TRANSIENT


class Unreachable(Exception):
    """The service did not answer, or its connections break."""


class Client:
    """Sends requests to one service of one region. Safe to use from several threads."""

    def __init__(
        self,
        service: str,
        environ: Mapping[str, str],
        credentials: KeySource,
        pause: Callable[[float], None] = time.sleep,
        provider: StorageProvider | None = None,
    ) -> None:
        self.service = service
        self.endpoint = configured_endpoint(service, environ)
        """Address from the environment or of the provider, or None: AWS's own."""
        self._environ, self._credentials, self._pause = environ, credentials, pause
        self._origins: dict[str, Origin] = {}
        self._region: str | None = None
        self._verify = True
        if provider:
            self.endpoint, self._verify = provider.endpoint or self.endpoint, provider.verify
            self._region = provider.region or ("us-east-1" if provider.endpoint else None)

    @property
    def region(self) -> str:
        """The region to ask. Raises ConfigFault where nothing says which."""
        if self._region is None:
            self._region = find_region(self._environ)
        return self._region

    def call(
        self,
        make_request: Callable[[], Request],
        base_url: str,
        region: str | None = None,
        receiver: Callable[[Reply], Receive | None] | None = None,
    ) -> Reply:
        """The answer to a request, which is made anew for every attempt.

        Raises ServiceError when the service refuses, Unreachable when it cannot be asked.
        """
        renewed = False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = self._once(make_request(), base_url, region or self.region, receiver)
            except BROKEN as exc:
                if attempt == ATTEMPTS:
                    raise Unreachable(f"{base_url}: {exc or type(exc).__name__}") from exc
            else:
                if reply.status < 300:
                    return reply
                error = ServiceError(reply)
                if error.code in _STALE and not renewed and self._credentials.forget():
                    renewed = True
                    continue
                if not error.transient or attempt == ATTEMPTS:
                    raise error
            self._pause(backoff_s(attempt))
        raise Unreachable(f"{base_url}: the credentials are refused")

    def _once(
        self,
        request: Request,
        base_url: str,
        region: str,
        receiver: Callable[[Reply], Receive | None] | None,
    ) -> Reply:
        origin = self._origins.get(base_url)
        if origin is None:
            origin = self._origins.setdefault(base_url, Origin(base_url, verify=self._verify))
        path = origin.base_path + request.path
        query = sigv4.encode_query(request.query)
        unsigned = sigv4.Unsigned(
            request.method,
            path,
            query,
            {"Host": origin.netloc, **request.headers},
            self._payload_digest(request.body),
        )
        timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = sigv4.Scope(self.service, region, timestamp)
        headers = sigv4.signed_headers(unsigned, self._credentials.keys(), scope)
        target = f"{path}?{query}" if query else path
        return origin.exchange(request.method, target, headers, request.body, _only_good(receiver))

    def _payload_digest(self, body: Body) -> str:
        if isinstance(body, FilePart):
            return sigv4.UNSIGNED_PAYLOAD
        return hashlib.sha256(body).hexdigest() if body else sigv4.EMPTY_SHA256


def configured_endpoint(service: str, environ: Mapping[str, str]) -> str | None:
    """The service's address as AWS's own variables give it; None: AWS's regional one.

    Raises ConfigFault where it is no address.
    """
    own = _ENDPOINT_NAMES.get(service, service.upper())
    for name in (f"AWS_ENDPOINT_URL_{own}", "AWS_ENDPOINT_URL"):
        if url := environ.get(name):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigFault(f"{name}: `{url}` is not an http or https address")
            return url
    return None


def regional_host(service: str, region: str) -> str:
    """AWS's own host of a service in a region."""
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{service}.{region}.{suffix}"


def find_region(environ: Mapping[str, str]) -> str:
    """The region we run in. A Batch job on EC2 is told by the container agent or the instance."""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if region:
        return region
    if task := environ.get("ECS_CONTAINER_METADATA_URI_V4"):
        parts = urlsplit(task)
        text = metadata(f"{parts.scheme}://{parts.netloc}", "GET", f"{parts.path}/task", {})
        arn = str(json.loads(text).get("TaskARN", "")).split(":")
        if len(arn) > 3 and arn[3]:
            return arn[3]
    if configured_endpoint("s3", environ):
        return "us-east-1"
    return instance_metadata("/latest/meta-data/placement/region", environ)


def _only_good(
    receiver: Callable[[Reply], Receive | None] | None,
) -> Callable[[Reply], Receive | None]:
    def choose(reply: Reply) -> Receive | None:
        return receiver(reply) if receiver and reply.status < 300 else None

    return choose


def backoff_s(attempt: int) -> float:
    """How long to wait after an attempt that failed."""
    from random import random  # imports more than all of this module; needed only in trouble

    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempt - 1))
    return longest * (0.5 + random() / 2)  # noqa: S311


def _code_and_message(reply: Reply) -> tuple[str, str]:
    text = reply.body.decode(errors="replace")
    if text.lstrip().startswith("<"):
        return xml_value(text, "Code") or f"HTTP {reply.status}", xml_value(text, "Message")
    code = reply.headers.get("x-amzn-errortype", "")
    message = ""
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
            code = code or str(data.get("__type") or data.get("code") or "")
            message = str(data.get("message") or data.get("Message") or "")
        except ValueError:
            message = text[:200]
    return code.split(":")[0].split("#")[-1] or f"HTTP {reply.status}", message


def xml_value(text: str, name: str) -> str:
    """The text of the first element of that name; empty where there is none."""
    found = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
    if not found:
        return ""
    value = found.group(1)
    for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'")):
        value = value.replace(entity, char)
    return value.replace("&amp;", "&")
