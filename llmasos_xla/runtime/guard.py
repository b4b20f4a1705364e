"""Who may look at the engine's page, and who may change things with it.

A browser sends requests for whichever page it shows, so an address of this machine alone keeps nobody out: another
site's page may post here, or have its name resolved to here (DNS rebinding).
"""

import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Mapping

from llmasos_xla.runtime.home import Home

_SHORTEST = 32


def own_token(home: Home) -> str:
    """The token of a home, made if there is none yet: by the engine alone, which is one."""
    path = home.token
    found = path.read_text() if path.exists() else ""
    # Nothing shorter was ever made here; an empty one would let everybody in.
    if len(found) < _SHORTEST:
        found = secrets.token_urlsafe(_SHORTEST)
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(found)
        beside.replace(path)
    return found


def why_not_look(headers: Mapping[str, str], bound: str) -> str | None:
    """Why nobody may look by such a request to a server that is bound to a host; None if one may.

    Args:
        headers: of the request, names in lower case.
        bound: the host that the server listens on.
    """
    host = headers.get("host", "")
    if not _ours(_name(host), bound):
        return f"host {host[:100]!r} is none of this server's names; use its address"
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "another site's page has sent this"
    return None


def why_not_change(headers: Mapping[str, str], bound: str, token: str) -> str | None:
    """Why nothing may be changed by such a request; None if it may."""
    if reason := why_not_look(headers, bound):
        return reason
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers['host']}":
        return f"origin {origin[:100]!r} is another site"
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), token.encode()):
        return "this wants the token; `llmasos up` prints the address that has it"
    return None


def _name(host: str) -> str:
    """A Host header without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _ours(name: str, bound: str) -> bool:
    """A name that nobody else can have resolved to here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in ("localhost", bound.lower(), socket.gethostname().lower())
    return True
