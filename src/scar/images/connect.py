"""Connections to registries: TLS with the authorities the user trusts, proxies, loopback."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from scar.errors import ImageError, UserError

PARALLEL_BLOBS = 4
"""Blobs of one image that are moved at a time."""

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Authorities to trust beside the system's; SSL_CERT_FILE and SSL_CERT_DIR replace the system's."""

DOCKER_CERTIFICATES = Path("/etc/docker/certs.d")
"""`<host>/*.crt`: the authorities that Docker trusts for one registry."""

_HANDSHAKE_LIMIT_S = 3


class RegistryError(ImageError):
    """A registry said no, or nothing. `status` is HTTP's; 0 where it did not answer."""

    def __init__(self, reference: str, why: str, hint: str = "", status: int = 0) -> None:
        super().__init__(reference, why, hint)
        self.status = status

    @property
    def is_passing(self) -> bool:
        """Whether another try may go better."""
        return self.status in (0, 408, 429) or self.status >= 500

    @property
    def is_absence(self) -> bool:
        """Whether the image cannot be had there, now: it may be had elsewhere."""
        return self.is_passing or self.status in (401, 403, 404)


def pool(url: str) -> urllib3.PoolManager:
    """Connections to `url`, through the proxy that the environment names for it."""
    parts = urlsplit(url)
    options: dict[str, Any] = {
        "maxsize": PARALLEL_BLOBS,
        "blocksize": 1 << 18,
        "timeout": urllib3.Timeout(connect=10, read=120),
    }
    if parts.scheme == "https":
        options["ssl_context"] = tls(parts.netloc)
    proxy = getproxies().get(parts.scheme)
    if proxy and not is_loopback(parts.netloc) and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def tls(host: str, environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """TLS to `host`, verified. Raises UserError where a named file of authorities is none."""
    names = (*CA_VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR")
    given = tuple((name, environment.get(name, "")) for name in names)
    return _tls(given, tuple(sorted((DOCKER_CERTIFICATES / host).glob("*.crt"))))


def is_loopback(host: str) -> bool:
    """Whether `host`, with or without a port, is this machine by its name or address alone."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def speaks_tls(host: str) -> bool:
    """Whether what listens on loopback at `host` speaks TLS; yes where nothing listens."""
    parts = urlsplit(f"//{host}")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said to it
    try:
        plain = socket.create_connection((parts.hostname, parts.port or 443), _HANDSHAKE_LIMIT_S)
    except OSError:
        return True
    try:
        with plain, context.wrap_socket(plain):
            return True
    except OSError:  # ssl.SSLError is one
        return False


@cache
def _tls(given: tuple[tuple[str, str], ...], own: tuple[Path, ...]) -> ssl.SSLContext:
    """Made once: reading all authorities takes longer than most requests."""
    context = ssl.create_default_context()
    for name, path in given:
        if path and name in CA_VARIABLES:
            try:
                folder = path if os.path.isdir(path) else None
                context.load_verify_locations(None if folder else path, folder)
            except (OSError, ssl.SSLError) as exc:
                raise UserError(
                    f"{name}: `{path}` holds no certificates: {exc}", "name a PEM file"
                ) from exc
    for file in own:
        context.load_verify_locations(file)
    return context
