"""Before a server is started: nothing else may listen where it is going to be asked. Another server there would answer
in its place, be proved and registered: until the own one is seen to have ended since it couldn't have the port, or for
ever where both share the port (SO_REUSEPORT, which gRPC servers set by default)."""

from __future__ import annotations

import asyncio
import logging

from monitor.errors import MonitorError
from monitor.predecessor import answers
from registry.addresses import join_address

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a server which is just ending has for it: one that a supervisor told to stop a moment ago."""
_LOOK = 0.1


async def until_free(host: str, port: int, stop: asyncio.Event) -> bool:
    """Wait until nothing takes a connection there; False if told to `stop` meanwhile. Raises MonitorError if it is
    still taken after PATIENCE seconds."""
    clock = asyncio.get_running_loop().time
    began, told = clock(), False
    while await answers(host, port):
        if clock() - began >= PATIENCE:
            raise MonitorError(
                f"port {port} is taken: something listens at {join_address(host, port)} already, so the server was not "
                f"started; end what listens there, or give the server another port, or, if it is the one to be "
                f"watched, name it with --target and leave out the command"
            )
        if not told:
            log.warning("something listens at %s; waiting %g s for it to end", join_address(host, port), PATIENCE)
            told = True
        try:
            async with asyncio.timeout(_LOOK):
                await stop.wait()
        except TimeoutError:
            continue
        return False
    if told:
        log.info("%s is free now", join_address(host, port))
    return not stop.is_set()
