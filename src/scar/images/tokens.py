"""The Authorization header of one repository: Basic, or a Bearer token of the registry's server."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from scar.errors import ImageError
from scar.images.connect import RegistryError, is_loopback
from scar.images.login import IDENTITY_TOKEN, Login

_TOKEN_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Challenged:
    """What a registry said beside 401, and the URL it was said at."""

    header: str
    url: str

    @property
    def scheme(self) -> str:
        """`basic` or `bearer`."""
        return self.header.partition(" ")[0].lower()

    @property
    def parameters(self) -> dict[str, str]:
        """`realm`, `service`, `scope`."""
        return dict(re.findall(r'(\w+)="([^"]*)"', self.header))


class Authorization:
    """What to say to one registry about one repository; renewed when it says 401."""

    def __init__(
        self, host: str, repository: str, named: str, login: Callable[[], Login | None]
    ) -> None:
        self._host, self._named, self._ask = host, named, login
        self._asked: tuple[Login | None] | None = None
        # All that was ever wanted: one token serves for reading, writing and mounting.
        self._scopes: dict[str, None] = {}
        self._first_scope = f"repository:{repository}:pull"
        self.header = ""
        """The value of the header; empty before the first challenge."""
        self._trouble = ""

    def renew(
        self, challenged: Challenged, http: urllib3.PoolManager, retries: urllib3.Retry
    ) -> None:
        """A new header that answers the challenge. Raises ImageError where none can be had."""
        login = self._login()
        if challenged.scheme == "basic":
            if login is None:
                hint = "log in with `docker login`"
                why = self._trouble or f"`{self._host}` wants a login"
                raise RegistryError(self._named, why, hint, status=401)
            self.header = _basic(login)
            return
        said = challenged.parameters
        if challenged.scheme != "bearer" or "realm" not in said:
            raise ImageError(
                self._named, f"`{self._host}` asks for unknown login `{challenged.header}`"
            )
        for scope in (said.get("scope") or self._first_scope).split():
            self._scopes[scope] = None
        realm = urlsplit(said["realm"])
        if login and realm.scheme != "https" and not is_loopback(realm.netloc):
            raise ImageError(
                self._named, f"`{self._host}` wants the login sent in the clear to {realm.netloc}"
            )
        answer = self._token_answer(said["realm"], said.get("service", ""), login, http, retries)
        self.header = f"Bearer {self._token(answer)}"

    def hint(self) -> str:
        """How to mend a refusal."""
        if self._asked and self._asked[0]:
            return "the image does not exist, or the login is not right or may not do this"
        hint = "the image does not exist or is private; log in with `docker login`"
        return f"{hint}; {self._trouble}" if self._trouble else hint

    def _login(self) -> Login | None:
        if self._asked is None:
            try:
                self._asked = (self._ask(),)
            except ImageError as exc:  # a public image can be had without
                self._trouble = str(exc)
                self._asked = (None,)
        return self._asked[0]

    def _token_answer(
        self, realm: str, service: str, login: Login | None,
        http: urllib3.PoolManager, retries: urllib3.Retry,
    ) -> urllib3.BaseHTTPResponse:  # fmt: skip
        scopes = list(self._scopes)
        if login and login.user == IDENTITY_TOKEN:
            form = {
                "grant_type": "refresh_token", "service": service, "client_id": "scar",
                "scope": " ".join(scopes), "refresh_token": login.password,
            }  # fmt: skip
            return http.request(
                "POST", realm, body=urlencode(form), retries=retries, redirect=False,
                headers={"Content-Type": "application/x-www-form-urlencoded"},
            )  # fmt: skip
        query = urlencode({"service": service, "scope": scopes}, doseq=True)
        headers = {"Authorization": _basic(login)} if login else {}
        url = f"{realm}{'&' if '?' in realm else '?'}{query}"
        return http.request("GET", url, headers=headers, retries=retries, redirect=False)

    def _token(self, answer: urllib3.BaseHTTPResponse) -> str:
        if answer.status != 200:
            why = f"`{self._host}` gives no token: HTTP {answer.status}"
            raise RegistryError(self._named, why, self.hint(), answer.status)
        try:
            said: Any = json.loads(answer.data[:_TOKEN_LIMIT_BYTES])
            return str(said.get("token") or said["access_token"])
        except (ValueError, KeyError, AttributeError) as exc:
            raise ImageError(self._named, f"`{self._host}` gives no token: no JSON") from exc


def _basic(login: Login) -> str:
    pair = f"{login.user}:{login.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
