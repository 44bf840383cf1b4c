"""A look at every model at once, after this process stood still. Invariant: when it returns, what the core says of the
server was seen after it was called, or the server has been found unreachable, or has had ROUNDS chances to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from monitor.client import CallError, ServerClient, read_status, status_request
from monitor.core import FAILURES, MonitorCore
from monitor.poller import PING

ROUNDS = FAILURES + 2
_AT_ONCE = 32


async def look_again(client: ServerClient, core: MonitorCore, *, interval: float, deadline: float) -> None:
    """Tell the core what the server says now; `interval` seconds between two attempts, `deadline` for one call."""
    clock = asyncio.get_running_loop().time
    slots = asyncio.Semaphore(_AT_ONCE)

    async def look(name: str) -> bool:
        async with slots:
            try:
                answer = await client.status(status_request(name), deadline)
            except CallError as error:
                core.failed(name, error.as_failure(), clock())
                return False
        core.status(name, read_status(answer), clock())
        return True

    missing: Collection[str] = [model.name for model in core.models] or [PING]
    for _ in range(ROUNDS):
        answered = await asyncio.gather(*map(look, missing))
        missing = [name for name, good in zip(missing, answered, strict=True) if not good]
        if not missing or not core.reachable:
            return
        await asyncio.sleep(interval)
