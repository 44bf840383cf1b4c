"""Under which address Envoy is to reach the server. Invariant: what is advertised is an IP address, for Envoy's
endpoint discovery takes no names; and unless asked for, a loopback one only if the registry is on this machine too."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Sequence

from registry.addresses import source_address, split_address

log = logging.getLogger(__name__)

_RETRY = 1.0


async def advertised_address(wanted: str | None, target_host: str, etcd_addresses: Sequence[str]) -> str:
    """`wanted`, else the target's host; a loopback one becomes the address from which this machine reaches etcd, which
    is loopback again if etcd is here. A name that does not resolve (yet) is tried for ever."""
    if wanted:
        return await _resolve(wanted)
    address = await _resolve(target_host)
    if not ipaddress.ip_address(address).is_loopback:
        return address
    host, port = split_address(etcd_addresses[0])
    return source_address(await _resolve(host), port) or address


async def _resolve(host: str) -> str:
    """The first IP address of a name; IPv4 first, as TensorFlow Serving listens on 0.0.0.0."""
    said = False
    while True:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            if not said:
                log.warning("address %s can't be resolved, trying again: %s", host, error.strerror or error)
                said = True
            await asyncio.sleep(_RETRY)
            continue
        addresses = sorted((family is not socket.AF_INET, str(address[0])) for family, _, _, _, address in found)
        return addresses[0][1]
