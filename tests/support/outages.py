"""Rows of the outage matrix as tests, on one fleet for a whole file: starting one takes as long as a row."""

from __future__ import annotations

from pathlib import Path

from bench.outages.fleet import Fleet
from bench.outages.rows import ROWS
from bench.outages.world import World

TTL = GRACE = 2.0
LONG = 1.5
"""Leases: as good as three, for one is what must be lost."""
SLACK = 6.0
"""Seconds more than the leases account for, on a busy machine."""


class Outages:
    """A fleet for one row after the other; the row after one that failed gets a new one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._fleet: Fleet | None = None

    async def run(self, name: str) -> None:
        """One row. Waits for registry and Envoys to be right; within how long is bounded by the lease and the grace."""
        row = ROWS[name]
        fleet, self._fleet = self._fleet, None
        if fleet is None:
            self._started += 1
            folder = self._folder / f"{self._started}"
            fleet = await Fleet(folder, cluster=row.cluster, ttl=TTL, grace=GRACE, instances=3).__aenter__()
        try:
            seen = await World(fleet, f"1 {name}", LONG).run(name, row.fault)
        except BaseException as error:
            await fleet.__aexit__(type(error), error, error.__traceback__)
            raise
        self._fleet = fleet
        assert not seen.errors, seen.said
        assert seen.requests > 100
        # What a dead monitor wrote stands for one lease, which an etcd that starts gives anew. Members that come back
        # late in a row may end leases once more.
        outage = LONG * TTL if row.cluster else 0.0
        assert seen.registry <= TTL + SLACK + outage, seen
        assert seen.envoys <= TTL + GRACE + SLACK + outage, seen

    async def close(self) -> None:
        if self._fleet is not None:
            await self._fleet.__aexit__(None, None, None)
