"""etcd broken in every way that we know.

Each test is a row of docs/outages.md, with short leases: the small form of `python -m bench.outages`. What is done in a
row is in bench/outages/rows.py; what it waits for is always the same, that the registry and both Envoys are right, and
stay so for a lease's time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bench.outages.rows import ROWS
from tests.support.outages import Outages

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outages(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Outages]:
    outages = Outages(tmp_path_factory.mktemp("outages"))
    try:
        yield outages
    finally:
        await outages.close()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.cluster])
async def test_it_costs_no_request_and_leaves_the_registry_right(outages: Outages, name: str) -> None:
    """Runs the row on the file's own fleet."""
    await outages.run(name)
