"""An Envoy per test, ended with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.echo import EchoServer
from tests.support.fleet import Fleet


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[EchoServer]:
    async with EchoServer("a") as server:
        yield server


@pytest_asyncio.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Not started yet."""
    fleet = Fleet(tmp_path)
    try:
        yield fleet
    finally:
        await fleet.close()
