"""Large requests one at a time, so that a thousand Envoys that come back at once hold up nothing else.

Invariant: between two large requests everything else that is ready to run does run. An Envoy that reconnects names all
that it holds, which takes milliseconds to read; a thousand of those in one round of the event loop took longer than
this replica's own lease lasts. Until its turn comes a request stays the bytes that it came as.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Generic, TypeVar

Request = TypeVar("Request")

LARGE = 16 << 10
"""Bytes of a request that names some hundred resources; reading it takes half a millisecond."""


class Turns:
    """What all streams of one server take turns by."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Wait for one's turn, and then until everything else that is ready has run."""
        async with self._turn:
            await asyncio.sleep(0)


class Decoded(Generic[Request]):
    """A stream's requests, decoded when they are asked for."""

    def __init__(self, raw: AsyncIterable[bytes], decode: Callable[[bytes], Request], turns: Turns) -> None:
        self._raw = aiter(raw)
        self._decode = decode
        self._turns = turns

    def __aiter__(self) -> Decoded[Request]:
        return self

    async def __anext__(self) -> Request:
        raw = await anext(self._raw)
        if len(raw) >= LARGE:
            await self._turns.wait()
        return self._decode(raw)
