"""Under which address Envoy is to reach the server. Invariant: what is advertised is an IP address, for Envoy's
endpoint discovery takes no names; and unless asked for, a loopback one only if the registry is on this machine too."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Sequence

from registry.addresses import is_here, source_address, split_address

log = logging.getLogger(__name__)

_RETRY = 1.0


_LOOK = 2.0
"""Seconds between two looks at an address that may change."""


async def advertised_address(wanted: str | None, target_host: str, etcd_addresses: Sequence[str]) -> str:
    """`wanted`, else the target's host; a loopback one becomes the address from which this machine reaches etcd, which
    is loopback again if etcd is here. A name that does not resolve (yet), and a way to etcd, are waited for."""
    if wanted:
        return (await _resolve(wanted))[0]
    address = (await _resolve(target_host))[0]
    if not ipaddress.ip_address(address).is_loopback:
        return address
    host, port = split_address(etcd_addresses[0])
    said = False
    while True:
        own = source_address((await _resolve(host))[0], port)
        if own is not None:
            return own
        if not said:
            log.warning("no way to etcd at %s, so no address to advertise; waiting for one", etcd_addresses[0])
            said = True
        await asyncio.sleep(_RETRY)


async def moved(address: str, wanted: str | None, target_host: str, etcd_addresses: Sequence[str]) -> str:
    """Wait until what `advertised_address` said is no longer so, and return what it says instead: a network that was
    taken away and given back may come with another address, a container that was made anew behind the same name too.
    One of this machine's is good for as long as it is; a name's, as long as it is among the name's."""
    name = wanted or target_host
    if _is_number(name) and (wanted or not ipaddress.ip_address(name).is_loopback):
        await asyncio.Event().wait()
    while True:
        await asyncio.sleep(_LOOK)
        # The most common case asks no resolver.
        if (not wanted and is_here(address)) or address in await _resolve(name):
            continue
        now = await advertised_address(wanted, target_host, etcd_addresses)
        if now != address:
            return now


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _resolve(host: str) -> list[str]:
    """The IP addresses of a name; IPv4 first, as TensorFlow Serving listens on 0.0.0.0."""
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
        addresses = {(family is not socket.AF_INET, str(address[0])) for family, _, _, _, address in found}
        return [address for _, address in sorted(addresses)]
