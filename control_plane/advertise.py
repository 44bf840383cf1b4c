"""At which addresses others find this replica. Invariant: it names one host, never `0.0.0.0`."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from registry.addresses import join_address, source_address, split_address


async def advertised(wanted: str, listen: str, etcd_addresses: Sequence[str]) -> str:
    """`wanted`, else the address listened on; where that is every address of this host, the one from which it reaches
    etcd, and for want of a way there the host's name."""
    if wanted:
        return wanted
    host, port = split_address(listen)
    return listen if not _every(host) else join_address(await _own_address(etcd_addresses), port)


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
