"""grpcio's own xDS client beside Envoy, on one registry and control plane, before the same upstreams."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

import grpc
import pytest

from registry.keys import ReadyKey
from registry.records import ReadyState
from tests.support import requests
from tests.support.fleet import PREDICT
from tests.support.registered import SPACE, registered_in
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

BODY = requests.request("m", payload=b"x")
SLACK = 0.3
"""Seconds: a client's picker and Envoy's workers take up an update a moment after it is acknowledged, a starved process
some moments."""


async def through_envoy(channel: grpc.aio.Channel) -> list[object]:
    """One request, as proxyless_child.Client.once tells it."""
    started = time.monotonic()
    call = channel.unary_unary(PREDICT)(BODY, timeout=20)
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return [started, error.code().name, error.details()]
    return [started, "OK", dict(await call.trailing_metadata())["identity"]]


def shares(outcomes: list[list[object]], since: float = 0.0) -> Counter[object]:
    """Instance -> answers of requests that began since then; every request must have succeeded."""
    failed = [outcome for outcome in outcomes if outcome[1] != "OK"]
    assert not failed, f"{len(failed)} of {len(outcomes)}: {failed[:3]}"
    return Counter(outcome[2] for outcome in outcomes if float(str(outcome[0])) >= since)


def assert_binomial(counts: Mapping[object, int], weights: Mapping[str, int], what: str) -> None:
    """Each count is within 5 standard deviations of its share: wrong by chance once in a million runs."""
    total, whole = sum(counts.values()), sum(weights.values())
    assert counts.keys() <= weights.keys(), what
    for name, weight in weights.items():
        share = weight / whole
        spread = 5 * (total * share * (1 - share)) ** 0.5
        assert abs(counts.get(name, 0) - total * share) <= spread, f"{what}: {counts} of weights {weights}"


async def test_clients_without_a_proxy_send_the_shares_that_envoy_sends(stack: Stack) -> None:
    """1,500 requests of each over three instances of unequal capacity; then an unknown model, and its appearance."""
    weights = {"a": 1, "b": 2, "c": 5}
    async with registered_in(stack, *weights) as fleet, grpc.aio.insecure_channel(stack.grpc) as channel:
        for name, capacity in weights.items():
            revision = await fleet.register(name, 1, capacity=capacity)
        await fleet.converged(revision)
        async with fleet.client("xds:///m") as client, fleet.client("xds:///late") as late:
            direct = shares(await client.do("requests", body=BODY, count=1500, timeout=20))
            by_envoy = shares([await through_envoy(channel) for _ in range(1500)])
            assert_binomial(direct, weights, "without a proxy")
            assert_binomial(by_envoy, weights, "Envoy")

            ((began, code, _),) = await late.do("requests", body=BODY, count=1, timeout=20)
            assert (code, time.monotonic() - began < 5) == ("NOT_FOUND", True)
            written = time.monotonic()
            await fleet.register("a", 1, model="late")
            while (answer := (await late.do("requests", body=BODY, count=1, timeout=20))[0])[1] != "OK":
                assert answer[1] == "NOT_FOUND", answer
                assert time.monotonic() - written < 10, answer
            print(f"registry write to the first answer: {1000 * (time.monotonic() - written):.1f} ms")
            other = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
            ((_, code, _),) = await late.do("requests", body=b"", count=1, timeout=20, method=other)
            assert code == "UNIMPLEMENTED"


async def test_a_new_version_and_a_drain_move_both(stack: Stack) -> None:
    """Under steady load of both: no request fails; soon after all have acknowledged, nobody asks another than
    the instances of the served version; a drain ends after the requests in flight, and an idle client doesn't hold it
    up."""
    async with registered_in(stack, "a", "b", "c") as fleet, grpc.aio.insecure_channel(stack.grpc) as channel:
        await fleet.register("a", 1)
        await fleet.converged(await fleet.register("b", 1))
        stop, outcomes = asyncio.Event(), list[list[object]]()

        async def load() -> None:
            while not stop.is_set():
                outcomes.append(await through_envoy(channel))
                await asyncio.sleep(0.002)

        async with fleet.client("xds:///m") as client, fleet.client("xds:///m@2") as idle, asyncio.TaskGroup() as tasks:
            tasks.create_task(load())
            await client.do("start", body=BODY, threads=2)
            moments = {"both": time.monotonic()}
            await eventually(lambda: len(outcomes) > 200, "some requests")
            moments["switched"] = await fleet.converged(await fleet.register("b", 2))
            await asyncio.sleep(0.5)
            await fleet.converged(await fleet.register("c", 2, capacity=20))
            shares(await idle.do("requests", body=BODY, count=1, timeout=20))
            fleet.upstreams["c"].delay = 3.0
            await client.do("begin", body=BODY, count=6)
            await eventually(lambda: fleet.upstreams["c"].active >= 3, "requests in flight")
            began = time.monotonic()
            revision = await fleet.register("c", 2, capacity=20, state=ReadyState.DRAINING)
            moments["drained"] = await fleet.converged(revision)

            async def idle_now() -> bool:
                (plane,) = (await stack.registry()).planes.values()
                return plane.draining.get("c") == 0

            await eventually(idle_now, "nothing in flight on c", timeout=20)
            # What the upstream itself has is the truth; its own loop is this one, so nothing can end in between.
            assert fleet.upstreams["c"].active == 0
            print(f"drained in {time.monotonic() - began:.1f} s, of which the requests took 3")
            assert await client.do("finish") == ["OK"] * 6
            await fleet.etcd.delete(SPACE.make(ReadyKey("m", 2, "c")))
            await asyncio.sleep(0.5)
            stop.set()
            direct = await client.do("stop")

        for which, answers in (("without a proxy", direct), ("Envoy", outcomes)):
            assert shares(answers, moments["both"]).keys() == {"a", "b", "c"}, which
            assert shares(answers, moments["switched"] + SLACK).keys() == {"b", "c"}, which
            assert shares(answers, moments["drained"] + SLACK).keys() == {"b"}, which
