"""Under which names a server is served, and which web pages may make it work.

A browser takes requests from any page to servers on its own machine or network, by forms, by scripts, or by a name that
its owner lets point there. Where keys are asked for no page has one. Where none are, the name that the browser asked
for, and the page that it says it comes from, must be the server's own.
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
    """`named` are served besides the names of loopback. With `checks_origins` other pages' requests are refused, too."""

    named: tuple[str, ...] = ()
    checks_origins: bool = True

    def is_allowed_host(self, host: str) -> bool:
        """Whether requests to `host`, as the Host header has it, are for this server."""
        name, _ = _split_port(host)
        return is_loopback_name(name) or ANY in self.named or self._is_named(name)

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether pages of `origin` come from a host that is named."""
        match = _ORIGIN.fullmatch(origin.lower())
        return match is not None and self._is_named(_split_port(match[2])[0])

    def _is_named(self, name: str) -> bool:
        below = (f".{name}".endswith(each[1:]) and name != each[2:] for each in self.named if each.startswith("*."))
        return name in self.named or any(below)


def is_own_origin(origin: str, host: str) -> bool:
    """Whether a page of `origin` comes from the server that is asked as `host`, to the port."""
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        return False
    usual = _USUAL_PORTS[match[1]]
    (name, port), (asked, asked_port) = _split_port(match[2]), _split_port(host)
    return (name, port or usual) == (asked, asked_port or usual)


def hosts_of(named: Sequence[str], *, keys: bool) -> AllowedHosts | None:
    """What holds for a server with `keys` or without; None where nothing does: the key says who asks."""
    if keys and not named:
        return None
    return AllowedHosts(tuple(named), checks_origins=not keys)


def is_loopback_name(name: str) -> bool:
    """Whether a name or address, in small letters, is always this machine's own."""
    if name == "localhost":
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _split_port(host: str) -> tuple[str, str]:
    """Name, in small letters and without brackets and the root's dot, and port."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name.lower(), rest.removeprefix(":")
    name, _, port = host.lower().partition(":")
    return name.removesuffix("."), port
