"""An Envoy that is away for longer than any control plane's settle time: no drain may end without it.

A relay keeps Envoy away, so that it lives and goes on with what it has, as behind a broken network.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.churn.fleet import Fleet, Replica
from bench.churn.probes import ask
from bench.churn.writers import Servable
from bench.messages import METHOD
from registry.records import PlaneRecord
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

SETTLE = 0.5
FLAGS = "--settle-time", f"{SETTLE:g}", "--lease-ttl", "2"


class Away:
    """Envoy is kept away from the control planes while a drain begins, which must not end before it is back."""

    def __init__(self, fleet: Fleet, call: Any) -> None:
        self.fleet, self.call = fleet, call
        self.old, self.new = fleet.writers

    async def begin(self, servable: Servable, *, in_flight: bool) -> asyncio.Task[None]:
        """The model is moved while Envoy is away; done when Envoy sends nothing new to the old instance, and with
        `in_flight` nothing is left there either, for which load reports take some seconds to be back."""
        await self.old.hold(servable)
        self.old.ready(servable)
        await self.fleet.convergence.until(await self.old.flush())
        for tap in self.fleet.taps[0]:
            tap.cut()
        await self.new.hold(servable)
        self.new.ready(servable)
        await self.new.flush()
        self.old.draining(servable)
        revision = await self.old.flush()
        drained = self.old.name if in_flight else ""
        return asyncio.create_task(self.fleet.convergence.until(revision, drained=drained, timeout=60))

    async def record(self, replica: Replica) -> PlaneRecord | None:
        return (await self.fleet.convergence.planes()).get(replica.name)

    async def waits(self, replica: Replica, drain: asyncio.Task[None]) -> None:
        """Wait until this one waits for Envoy, and see that it still does when others would have been given up."""

        async def away() -> bool:
            record = await self.record(replica)
            return record is not None and record.away == 1

        await eventually(away, f"{replica.name} to wait for Envoy")
        end = time.monotonic() + 2 * SETTLE
        while time.monotonic() < end:
            assert not drain.done(), "the drain has ended while an Envoy is away"
            assert await away()
            await asyncio.sleep(0.05)

    async def end(self, servable: Servable, drain: asyncio.Task[None]) -> None:
        """Envoy comes back."""
        for tap in self.fleet.taps[0]:
            tap.mend()
        await drain
        planes = await self.fleet.convergence.planes()
        assert (sum(plane.envoys for plane in planes.values()), *(plane.away for plane in planes.values())) == (
            1, *(0 for _ in planes),
        )  # fmt: skip
        await self.old.drop(servable)
        self.old.gone(servable)
        outcome = await ask(self.call, servable[0])
        assert outcome.code is grpc.StatusCode.OK, outcome.details


async def test_no_drain_ends_while_an_envoy_is_away(tmp_path: Path) -> None:
    """First its control plane is killed and another one is there; then the last one ends and starts again. Waits for
    the killed one's lease of two seconds, for the settle time twice, and for Envoy to come back."""
    async with Fleet(tmp_path, replicas=2, flags=FLAGS) as fleet:
        await fleet.start_envoy()
        async with grpc.aio.insecure_channel(fleet.address) as channel:
            away = Away(fleet, channel.unary_unary(METHOD))

            async def home() -> Replica | None:
                planes = await fleet.convergence.planes()
                return next((one for one in fleet.replicas if planes[one.name].envoys), None)

            had = await eventually(home, "a control plane to have Envoy")
            assert had is not None
            (other,) = (replica for replica in fleet.replicas if replica is not had)
            drain = await away.begin(("first", 1), in_flight=True)
            await away.waits(had, drain)
            fleet.kill(had)
            await away.waits(other, drain)
            await away.end(("first", 1), drain)

            drain = await away.begin(("second", 1), in_flight=False)
            await asyncio.to_thread(other.child.stop)
            assert await away.record(other) is None
            await fleet.restart(other)
            await away.waits(other, drain)
            await away.end(("second", 1), drain)
