"""Sees one drain through: what an operator wants drained, and an instance's end, alike."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from monitor.drain import Drain

log = logging.getLogger(__name__)

_FIRST, _PROGRESS = 1.0, 5.0
"""Seconds after which it is said who is waited for, the first time and from then on."""


async def see_through(
    drain: Drain, instance: str, what: str, given_up: Coroutine[Any, Any, None], limit: float | None = None
) -> bool:
    """Run a drain and say how far it is, until it is complete, `given_up` returns, or `limit` seconds have passed;
    whether it is complete. `what`: of the instance, for the log; empty: as a whole, because it ends. `drain.unheard()`
    then tells whether that is known. Raises what the drain does."""
    clock = asyncio.get_running_loop().time
    draining = f"draining {what}" if what else "draining"
    log.info("instance %s: %s%s", instance, draining, "" if limit is None else f", for at most {limit:g} s")
    work = asyncio.create_task(drain.run(), name="drain")
    other = asyncio.create_task(given_up, name="drain given up")
    started, pause = clock(), _FIRST
    ends = None if limit is None else started + limit
    try:
        while not (work.done() or other.done()) and (ends is None or clock() < ends):
            timeout = pause if ends is None else min(pause, ends - clock())
            done, _ = await asyncio.wait({work, other}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            pause = _PROGRESS
            if not done:
                log.info("instance %s: %s, waiting for %s", instance, draining, "; ".join(drain.waiting()))
    finally:
        for task in (work, other):
            task.cancel()
        await asyncio.wait({work, other})
    if work.cancelled():
        return False
    work.result()
    drained = f"drained {what}" if what else "drained"
    log.info("instance %s: %s in %.2f s", instance, drained, clock() - started)
    if unheard := drain.unheard():
        log.warning("instance %s: %s, but nobody could say that nothing is in flight: %s", instance, drained, unheard)
    return True
