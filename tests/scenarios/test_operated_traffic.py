"""Operators' words reach the data path: etcd, a real control plane and Envoy, instances that are echo upstreams."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from registry.keys import PolicyKey, TrafficKey
from registry.policy.model import API_VERSION, KIND
from registry.policy.stored import StoredPolicy, encode_stored
from registry.records import ReadyState
from registry.traffic import TrafficRecord, encode_traffic
from tests.support.fleet import PREDICT
from tests.support.registered import SPACE, Registered, registered_in
from tests.support.requests import field, request
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Nobody leads, so that the records of traffic are what the test writes."""
    stack = Stack(tmp_path, ("--no-leader",))
    try:
        yield stack
    finally:
        stack.close()


class Clients:
    """Clients that ask one after the other, naming no version: which versions answered, and what failed."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.versions: Counter[int] = Counter()
        self.failures: list[str] = []

    @asynccontextmanager
    async def running(self, number: int = 6) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask()) for _ in range(number)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _ask(self) -> None:
        sent = request("m")
        pins = {sent + field(1, field(2, b"\x08" + bytes([version]))): version for version in range(3, 6)}
        async with grpc.aio.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(PREDICT)
            while True:
                try:
                    self.versions[pins[await call(sent, timeout=20)]] += 1
                except grpc.aio.AioRpcError as error:
                    self.failures.append(f"{error.code().name} {error.details()}")
                await asyncio.sleep(0.002)

    async def answered_by(self, *versions: int) -> None:
        """Wait until 100 requests in a row were answered by these and no others: Envoy's workers take a change over a
        moment after it is acknowledged."""

        async def only_these() -> bool:
            self.versions.clear()
            await eventually(lambda: self.versions.total() >= 100, "100 answers", 30)
            return set(self.versions) == set(versions)

        await eventually(only_these, f"answers of {versions}", 30)


async def share(fleet: Registered, weights: dict[int, int], **more: Any) -> None:
    key = SPACE.make(TrafficKey("m"))
    await fleet.converged(await fleet.etcd.put(key, encode_traffic(TrafficRecord(weights, **more))))


async def apply(fleet: Registered, **spec: Any) -> None:
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "m"}, "spec": spec}
    key = SPACE.make(PolicyKey("m"))
    await fleet.converged(await fleet.etcd.put(key, encode_stored(StoredPolicy(document, 1))))


def clusters(stack: Stack) -> dict[str, dict[str, Any]]:
    """What Envoy holds, by name."""
    dump = json.loads(stack.envoy.admin("/config_dump?resource=dynamic_active_clusters"))
    return {one["cluster"]["name"]: one for one in dump["configs"]}


async def test_traffic_and_clusters_change_under_load(stack: Stack) -> None:
    """Waits until Envoy has acknowledged each change; no request fails, and none is answered from elsewhere."""
    async with registered_in(stack, "a", "b") as fleet:
        for name in "ab":
            for version in (3, 4, 5):
                await fleet.register(name, version)
            revision = await fleet.register(name, 1, model="n")
        await fleet.converged(revision)
        clients = Clients(stack.grpc)
        async with clients.running():
            await clients.answered_by(5)  # the newest, without a record of traffic
            for weights in ({3: 1}, {3: 90, 4: 10}, {3: 20, 4: 80}, {4: 1}, {3: 1}):
                await share(fleet, weights)
                await clients.answered_by(*weights)

            before = clusters(stack)
            clients.versions.clear()
            # Requests that take longer than it takes to make a cluster anew.
            upstreams = fleet.upstreams.values()
            for upstream in upstreams:
                upstream.delay = 2.0
            await eventually(lambda: sum(upstream.active for upstream in upstreams) >= 4, "slow requests in flight")
            for upstream in upstreams:
                upstream.delay = 0.0
            for number in range(5):
                await apply(
                    fleet,
                    balancing=("random", "roundRobin")[number % 2],
                    circuitBreaking={"maxRequests": 100 + number},
                    outlierDetection={"consecutiveErrors": 7, "ejectionTime": "3s", "maxEjectionPercent": 20},
                )
                assert number or sum(upstream.active for upstream in upstreams) >= 4
            await clients.answered_by(3)
            after = clusters(stack)
            assert {name for name, one in after.items() if one != before[name]} == {"m", "m@3", "m@4", "m@5"}
            assert after["m@3"]["cluster"]["lb_policy"] == "RANDOM"
            await apply(fleet, timeout="1s")
            assert {name: one["cluster"] for name, one in clusters(stack).items()} == {
                name: one["cluster"] for name, one in before.items()
            }
            await clients.answered_by(3)
        assert clients.failures == []


async def test_a_version_s_last_instance_drains_without_a_failure(stack: Stack) -> None:
    """Waits until its share has gone to the other version, and back, five times: no request may be drawn for a version
    whose endpoints Envoy has been told to leave already."""
    async with registered_in(stack, "a", "b") as fleet:
        for name in "ab":
            await fleet.register(name, 3)
        await fleet.register("b", 4)
        await share(fleet, {3: 1, 4: 1})
        clients = Clients(stack.grpc)
        async with clients.running():
            for _ in range(5):
                await clients.answered_by(3, 4)
                await fleet.converged(await fleet.register("b", 4, state=ReadyState.DRAINING))
                await clients.answered_by(3)
                await fleet.converged(await fleet.register("b", 4))
        assert clients.failures == []
