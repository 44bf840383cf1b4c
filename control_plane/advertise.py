"""At which addresses others find this replica. Invariant: it names one host, never `0.0.0.0`."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence

from registry.addresses import is_here, join_address, source_address, split_address

_LOOK = 2.0
"""Seconds between two looks at whether this host still has the address that is advertised."""


class Advertised:
    """One address, found when etcd answers, and again when this host has it no longer: a network that was taken away
    and given back may come with another one."""

    def __init__(self, wanted: str, listen: str, etcd_addresses: Sequence[str]) -> None:
        self._asked = (wanted, listen, etcd_addresses)
        self._may_change = not wanted and _every(split_address(listen)[0])
        self.address = ""
        """HOST:PORT; empty before the first look."""

    async def look(self) -> bool:
        """Find it, if it isn't known or no longer this host's; whether it has changed."""
        if self.address and not self._gone():
            return False
        found = await advertised(*self._asked)
        if found == self.address or (self.address and not _is_number(split_address(found)[0])):
            # For want of a way to etcd: what others know is no worse.
            return False
        self.address = found
        return True

    def _gone(self) -> bool:
        host = split_address(self.address)[0]
        return self._may_change and not (_is_number(host) and is_here(host))


async def follow(addresses: Sequence[Advertised], changed: Callable[[], None]) -> None:
    """Look again and again, and tell of each change of those that have been found."""
    while True:
        await asyncio.sleep(_LOOK)
        if any([await one.look() for one in addresses if one.address]):
            changed()


async def advertised(wanted: str, listen: str, etcd_addresses: Sequence[str]) -> str:
    """`wanted`, else the address listened on; where that is every address of this host, the one from which it reaches
    etcd, and for want of a way there the host's name."""
    if wanted:
        return wanted
    host, port = split_address(listen)
    return listen if not _every(host) else join_address(await _own_address(etcd_addresses), port)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _every(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


async def _own_address(etcd_addresses: Sequence[str]) -> str:
    loop = asyncio.get_running_loop()
    for address in etcd_addresses:
        host, port = split_address(address)
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError:
            continue
        for *_, where in found:
            if own := source_address(str(where[0]), port):
                return own
    return socket.gethostname()
