"""An instance's capacity is its share of Envoy's requests, and its zone does not change that."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import pytest

from tests.scenarios.test_proxyless import assert_binomial, shares, through_envoy
from tests.support.registered import registered_in
from tests.support.stack import Stack

pytestmark = pytest.mark.scenario

WEIGHTS = {"a": 1, "b": 2, "c": 5}
ZONES = {"a": "east", "b": "west", "c": "west"}


async def test_the_share_follows_capacity_across_zones_and_under_load_what_is_in_flight(stack: Stack) -> None:
    """Waits for Envoy to acknowledge three instances in two zones. 1,500 requests one after another: the shares are the
    capacities'. Then 24 at a time, of which the largest instance takes ten times as long to answer as the others: it
    gets less than its share, for much is in flight there."""
    async with registered_in(stack, *WEIGHTS) as fleet, grpc.aio.insecure_channel(stack.grpc) as channel:
        for name, capacity in WEIGHTS.items():
            revision = await fleet.register(name, 1, capacity=capacity, zone=ZONES[name])
        await fleet.converged(revision)
        assert_binomial(shares([await through_envoy(channel) for _ in range(1500)]), WEIGHTS, "one at a time")

        for name, upstream in fleet.upstreams.items():
            upstream.delay = 0.2 if name == "c" else 0.02
        counts: Counter[object] = Counter()

        async def worker() -> None:
            for _ in range(25):
                counts.update(shares([await through_envoy(channel)]))

        await asyncio.gather(*(worker() for _ in range(24)))
        assert counts["c"] / counts.total() < 5 / 8 - 0.1, counts
        assert counts["b"] > counts["a"], counts
