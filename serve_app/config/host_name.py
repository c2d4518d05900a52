"""The host names and addresses that a configuration may list for a server."""

import re
from ipaddress import ip_address
from typing import Annotated, Final

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

ANY: Final = "*"

_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")


def _check_host_name(written: str) -> str:
    name = written.lower()
    if name == ANY or _NAME.fullmatch(name) or _is_address(name):
        return name
    message = "{name} is no host: write a name, an address without its port, `*.example.com` or `*`"
    raise PydanticCustomError("host", message, {"name": repr(written)})


HostName = Annotated[str, AfterValidator(_check_host_name)]
"""A name or an address, without a port; `*.example.com` for everything below a name, `*` for any."""


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
