"""etcd broken in every way that we know, with short leases: the small form of `python -m bench.outages`. Each test is a
row of docs/outages.md; a row says in bench/outages/rows.py what is done, and what it waits for is always the same: that
the registry and both Envoys are right, and stay so for a lease's time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bench.outages.fleet import Fleet
from bench.outages.rows import ROWS
from bench.outages.world import World

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

TTL = GRACE = 2.0
LONG = 1.5
"""Leases: as good as three, for one is what must be lost."""
SLACK = 6.0
"""Seconds more than the leases account for, on a busy machine."""


class Fleets:
    """One fleet with one etcd, one with three; a row that failed leaves its fleet to nobody."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._fleets: dict[bool, Fleet] = {}

    async def take(self, *, cluster: bool) -> Fleet:
        fleet = self._fleets.pop(cluster, None)
        if fleet is None:
            # The other one would only take the machine's time.
            await self.close()
            self._started += 1
            folder = self._folder / f"{self._started}"
            fleet = await Fleet(folder, cluster=cluster, ttl=TTL, grace=GRACE, instances=3).__aenter__()
        return fleet

    def put_back(self, fleet: Fleet) -> None:
        self._fleets[fleet.cluster] = fleet

    async def close(self) -> None:
        for fleet in self._fleets.values():
            await fleet.__aexit__(None, None, None)
        self._fleets.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleets(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleets]:
    fleets = Fleets(tmp_path_factory.mktemp("outages"))
    try:
        yield fleets
    finally:
        await fleets.close()


@pytest.mark.parametrize("name", ROWS)
async def test_an_outage_costs_no_request_and_leaves_the_registry_right(fleets: Fleets, name: str) -> None:
    """Waits for registry and Envoys to be right; in how long is bounded by the lease, and the grace after it."""
    row = ROWS[name]
    fleet = await fleets.take(cluster=row.cluster)
    try:
        seen = await World(fleet, f"1 {name}", LONG).run(name, row.fault)
    except BaseException as error:
        await fleet.__aexit__(type(error), error, error.__traceback__)
        raise
    fleets.put_back(fleet)
    assert not seen.errors, seen.said
    assert seen.requests > 100
    # What a dead monitor wrote stands for one lease, which an etcd that starts gives anew. Members that come back late
    # in a row may end leases once more.
    outage = LONG * TTL if row.cluster else 0.0
    assert seen.registry <= TTL + SLACK + outage, seen
    assert seen.envoys <= TTL + GRACE + SLACK + outage, seen
