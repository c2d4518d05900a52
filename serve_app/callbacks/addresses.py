"""Decides which addresses this server calls because a caller says so (OWASP: server-side request forgery).

A URL is checked when it is given, without a look-up. Its name is looked up when it is called, once, and the connection
goes to the very address that was checked: what the name means a moment later (DNS rebinding) does not matter.
"""

import asyncio
import re
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore

from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.host_name import ANY

MAX_URL: Final = 2048

NEXT_S: Final = 2.0
"""How long an address may say nothing before the name's next one is called: a lost packet is sent anew after one."""

Address = IPv4Address | IPv6Address

# RFC 3986: all that may stand in a URL. Parsers differ in what they make of anything else.
_URL: Final = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")

_PORTS: Final = {"https": 443, "http": 80}

# All of IPv6 that anybody in the internet has (RFC 4291). Python knows some of the rest only, and no site-local ones.
_GLOBAL_V6: Final = IPv6Network("2000::/3")

# What some versions of Python take for public: protocols' own addresses (RFC 6890), and examples' (RFC 9637); and
# what is public by its number and yet the cloud's own: Azure's WireServer hands out its machines' configuration.
_INTERNAL: Final = (ip_network("192.0.0.0/24"), ip_network("3fff::/20"), ip_network("168.63.129.16/32"))

# Addresses that stand for an IPv4 address behind a translator (RFC 6052).
_NAT64: Final = IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """This server does not call that address; the message is the rule that it breaks."""


class AddressRules:
    """The rules of `config`. Names are looked up on threads of their own, as many as there are tries at a time."""

    def __init__(self, config: CallbacksConfig) -> None:
        self._schemes = {"https", "http"} if config.allow_http else {"https"}
        self._ports, self._hosts, self._networks = config.ports, config.hosts, config.allow_networks
        # Not the event loop's: a name server that does not answer would hold up all else that runs on threads.
        self._threads = ThreadPoolExecutor(2 * config.in_flight, "darkroom-look-up")

    def check_url(self, url: str) -> None:
        """Raises AddressRefused for a URL that would not be called, whatever its name means."""
        if len(url) > MAX_URL:
            raise AddressRefused(f"must have at most {MAX_URL} characters")
        try:
            if not _URL.fullmatch(url):
                raise ValueError
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise AddressRefused("must be a URL, with every other character percent-encoded") from None
        if parts.scheme not in self._schemes:
            raise AddressRefused(f"must begin with {' or '.join(f'{each}://' for each in sorted(self._schemes))}")
        if not host or parts.username is not None or parts.password is not None or parts.fragment:
            raise AddressRefused("must have a host, and neither a user nor a fragment")
        self.check_port(_PORTS[parts.scheme] if port is None else port)
        self.check_host(host)
        with suppress(ValueError):
            self.check_address(ip_address(host))

    def check_port(self, port: int) -> None:
        """Raises AddressRefused for a port that is not called."""
        if port not in self._ports:
            raise AddressRefused(f"must have one of the ports {', '.join(map(str, self._ports))}")

    def check_host(self, host: str) -> None:
        """Raises AddressRefused for a host that is not one of those that are called, if only some are."""
        name = host.lower().removesuffix(".")
        if self._hosts and not any(_is_named(name, each) for each in self._hosts):
            raise AddressRefused("must have a host that this server may call")

    def check_address(self, address: Address) -> None:
        """Raises AddressRefused for an address that is neither public nor allowed."""
        for each in _stands_for(address):
            if not _is_public(each) and not any(each in network for network in self._networks):
                raise AddressRefused("must have a public address")

    async def look_up(self, host: str, port: int) -> Sequence[str]:
        """Returns the addresses of `host`. Raises AddressRefused unless all may be called, and OSError for none."""
        self.check_port(port)
        self.check_host(host)
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        addresses = list(dict.fromkeys(str(where[0]).partition("%")[0] for *_, where in found))
        for address in addresses:
            self.check_address(ip_address(address))
        return addresses

    def close(self) -> None:
        """Lets its threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that `rules` allow. Raises AddressRefused for others, and OSError for unknown names.

    A name's addresses are called one after another; each but the last has its share of the time, and at most `NEXT_S`.
    """

    def __init__(self, rules: AddressRules) -> None:
        self._rules = rules
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        last: Exception = httpcore.ConnectError("no address")
        addresses = await self._rules.look_up(host, port)
        share = NEXT_S if timeout is None else min(NEXT_S, timeout / max(1, len(addresses)))
        for place, address in enumerate(addresses, start=1):
            own = share if place < len(addresses) else timeout
            try:
                return await self._network.connect_tcp(address, port, own, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


def _is_named(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and name != pattern[2:]
    return pattern in (ANY, name)


def _stands_for(address: Address) -> Sequence[Address]:
    """Returns where a packet to the address may end up: there, or at the IPv4 address in it."""
    if isinstance(address, IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (IPv4Address(address.packed[-4:]),)
    tunnelled = (address.sixtofour, *(address.teredo or ()))
    return (address, *(each for each in tunnelled if each is not None))


def _is_public(address: Address) -> bool:
    special = address.is_multicast or address.is_reserved or address.is_unspecified
    own = any(address in network for network in _INTERNAL)
    return address.is_global and not special and not own and (address.version == 4 or address in _GLOBAL_V6)
