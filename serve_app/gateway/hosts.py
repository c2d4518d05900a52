"""The host names that a server answers to, and the web pages that may send it requests.

A browser sends requests from any page to servers on its own machine or network: by forms, by scripts, or by a name that
its owner points there. Where keys are required, such a page has none. Where they are not, the Host that the browser
asked for and the Origin that it reports must be the server's own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from serve_app.config.host_name import ANY

EVERY_ADDRESS: Final = frozenset(("", "0.0.0.0", "::"))

_ORIGIN = re.compile(r"(https?)://([^/?#@]+)")
_USUAL_PORTS: Final = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """`named` hosts are served besides loopback names. With `checks_origins`, other sites' pages are refused."""

    named: tuple[str, ...] = ()
    checks_origins: bool = True

    def is_allowed_host(self, host: str) -> bool:
        """Whether requests to `host`, a Host header's value, are for this server."""
        name, _ = _split_port(host)
        return is_loopback_name(name) or ANY in self.named or self._is_named(name)

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether pages of `origin` come from a named host."""
        match = _ORIGIN.fullmatch(origin.lower())
        return match is not None and self._is_named(_split_port(match[2])[0])

    def _is_named(self, name: str) -> bool:
        below = (f".{name}".endswith(each[1:]) and name != each[2:] for each in self.named if each.startswith("*."))
        return name in self.named or any(below)


def is_own_origin(origin: str, host: str) -> bool:
    """Whether a page of `origin` comes from the server that is addressed as `host`, port included."""
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        return False
    usual = _USUAL_PORTS[match[1]]
    (name, port), (asked, asked_port) = _split_port(match[2]), _split_port(host)
    return (name, port or usual) == (asked, asked_port or usual)


def hosts_of(named: Sequence[str], *, keys: bool) -> AllowedHosts | None:
    """The rules for a server with or without `keys`; None if there are none, because keys identify the caller."""
    if keys and not named:
        return None
    return AllowedHosts(tuple(named), checks_origins=not keys)


def is_loopback_name(name: str) -> bool:
    """Whether a name or address, in lower case, always means this machine."""
    if name == "localhost":
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _split_port(host: str) -> tuple[str, str]:
    """Returns the name, in lower case and without brackets or the root's dot, and the port."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name.lower(), rest.removeprefix(":")
    name, _, port = host.lower().partition(":")
    return name.removesuffix("."), port
