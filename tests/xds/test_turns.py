"""Large requests one at a time, and everything else in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

from control_plane.xds.turns import LARGE, Decoded, Turns


async def arriving(*requests: bytes) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


async def test_everything_else_runs_between_two_large_requests() -> None:
    turns, taken, seen = Turns(), 0, [0]

    async def stream() -> None:
        nonlocal taken
        async for size in Decoded(arriving(b"x" * LARGE, b"y", b"z" * LARGE), len, turns):
            taken += size >= LARGE

    async def lease() -> None:
        while taken < 100:
            await asyncio.sleep(0)
            seen.append(taken)

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(lease())
        for _ in range(50):
            tasks.create_task(stream())
    assert max(after - before for before, after in pairwise(seen)) == 1


async def test_small_requests_wait_for_nobody() -> None:
    turns = Turns()
    async with turns._turn:
        assert [request async for request in Decoded(arriving(b"a", b"b"), bytes, turns)] == [b"a", b"b"]


async def test_one_that_goes_while_it_waits_lets_the_others_pass() -> None:
    turns = Turns()
    async with turns._turn:
        gone = asyncio.create_task(anext(Decoded(arriving(b"x" * LARGE), len, turns)))
        stays = asyncio.create_task(anext(Decoded(arriving(b"x" * LARGE), len, turns)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    assert await stays == LARGE
