"""Logins that `docker login` left: in Docker's config.json, or kept by its credential helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scar.errors import ImageError
from scar.images.reference import DOCKER_HUB

HELPER_LIMIT_S = 60
"""How long a credential helper may take: it may ask for a password."""

IDENTITY_TOKEN = "<token>"
"""The user name of a login that is an OAuth2 refresh token."""

_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = ("index.docker.io", "docker.io", DOCKER_HUB)


@dataclass(frozen=True)
class Login:
    """User and password for a registry; a refresh token where the user is IDENTITY_TOKEN."""

    user: str
    password: str = field(repr=False)


def docker_login(host: str, environment: Mapping[str, str] = os.environ) -> Login | None:
    """The login of Docker's user for `host`, if there is one.

    In Docker's order: the host's own helper, the helper for all, the file. Raises ImageError where
    the file cannot be read or a helper does not work.
    """
    path = _config_path(environment)
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ImageError(host, f"cannot read {path}: {exc}") from exc
    if not isinstance(config, dict):
        raise ImageError(host, f"cannot read {path}: it is no JSON object")
    helper = next(_matching(config.get("credHelpers"), host), None) or config.get("credsStore")
    if helper and (found := _helped(str(helper), host, environment)):
        return found
    return next(
        (login for login in map(_kept, _matching(config.get("auths"), host)) if login), None
    )


def _config_path(environment: Mapping[str, str]) -> Path:
    folder = environment.get("DOCKER_CONFIG")
    home = environment.get("HOME")
    return (Path(folder) if folder else Path(home or "~").expanduser() / ".docker") / "config.json"


def _matching(entries: Any, host: str) -> Iterator[Any]:
    """The values of `entries` whose key is `host`, as a name or as a URL."""
    names = _HUB_NAMES if host in _HUB_NAMES else (host,)
    for key, value in entries.items() if isinstance(entries, dict) else ():
        if (urlsplit(key).netloc if "://" in key else key.partition("/")[0]) in names:
            yield value


def _kept(entry: Any) -> Login | None:
    if not isinstance(entry, dict):
        return None
    if token := entry.get("identitytoken"):
        return Login(IDENTITY_TOKEN, str(token))
    try:
        coded = base64.b64decode(str(entry.get("auth") or "")).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    user, colon, password = coded.partition(":")
    return Login(user, password.rstrip("\0")) if colon else None


def _helped(helper: str, host: str, environment: Mapping[str, str]) -> Login | None:
    """What `docker-credential-<helper>` knows: the server's name in, JSON out."""
    program = f"docker-credential-{helper}"
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None or os.sep in helper:
        raise ImageError(
            host, f"the credential helper `{program}` that Docker's config names is not installed"
        )
    server = _HUB_KEY if host in _HUB_NAMES else host
    try:
        done = subprocess.run(
            [found, "get"], input=server, capture_output=True, text=True,
            timeout=HELPER_LIMIT_S, env=dict(environment),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as exc:
        raise ImageError(host, f"`{program}` does not work: {exc}") from exc
    if done.returncode != 0:
        said = (done.stdout or done.stderr).strip().partition("\n")[0]
        if "credentials not found" in said.lower():
            return None
        raise ImageError(host, f"`{program}` does not work: {said}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ImageError(host, f"`{program}` gives no user and secret") from exc
    return Login(user, secret) if secret else None
