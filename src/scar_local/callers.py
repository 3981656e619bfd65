"""Who may call: programs, not the web pages that a browser of this machine shows.

Nobody signs here for real, so a page of any site could have its browser call the port: to make it
do something (a POST of text/plain needs nobody's leave), or, where the site's name is pointed to
127.0.0.1 after the page was loaded (DNS rebinding), to read the answers. Browsers say in `Origin`
and `Sec-Fetch-Site` whose page asks, and in `Host` by which name. A name under `localhost` and the
names of API Gateway are nobody's to point elsewhere, and an address is no name.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from scar_local.http import Exchange

_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]+)?")
_OWN_NAME = re.compile(
    r"(?:.+\.)?localhost|.+\.127\.0\.0\.1"
    r"|[a-z0-9-]+\.execute-api\.[a-z0-9-]+\.amazonaws\.com(?:\.cn)?"
)


def refusal(exchange: Exchange) -> str:
    """Why this request is refused; empty where it may come in."""
    host = (exchange.headers.get("Host") or "").lower()
    if not _is_ours(host):
        return f"`{host[:100]}` is no name of the local cloud: ask 127.0.0.1 or localhost"
    origin = exchange.headers.get("Origin")
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        return f"the local cloud does not talk to web pages of `{origin[:100]}`"
    if (exchange.headers.get("Sec-Fetch-Site") or "").lower() == "cross-site":
        return "the local cloud does not talk to web pages of other sites"
    return ""


def _is_ours(host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["name"] or ""
    if _OWN_NAME.fullmatch(name):
        return True
    try:
        return not ip_address(match["ipv6"] or name).is_unspecified
    except ValueError:
        return False
