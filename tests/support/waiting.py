"""Waiting for a condition, never for a number of seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(condition: Callable[[], T | Awaitable[T]], what: str, timeout: float = 30.0) -> T:
    """Poll until `condition()` is truthy and return its value; it may be async. An AssertionError that it raises
    counts as "not yet" and is shown when time runs out. `what` completes the sentence "waited for …"."""
    deadline = time.monotonic() + timeout
    last: object = None
    while time.monotonic() < deadline:
        try:
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited {timeout:.0f} s for {what}; last seen: {last!r}")
