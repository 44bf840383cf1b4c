"""Clusters on demand, with the real processes: an Envoy that holds the clusters that were asked for, and no others."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bench.churn.fleet import Fleet
from bench.churn.instances import version_of
from bench.churn.probes import Probes, ask
from bench.messages import METHOD
from control_plane.resources.settings import DataPlaneSettings

pytestmark = pytest.mark.scenario

OK, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND
TIMEOUT = DataPlaneSettings().on_demand_timeout


@pytest_asyncio.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """One control plane and two instances; the second's models are pinned."""
    flags, bootstrap = ("--on-demand-clusters",), {"on_demand_clusters": True}
    async with Fleet(tmp_path, replicas=1, flags=flags, bootstrap=bootstrap) as fleet:
        fleet.writers[1].several_versions = True
        yield fleet


def clusters(fleet: Fleet) -> set[str]:
    of_the_bootstrap = {"@xds", "@shadow", "@compare"}
    return {line.split("::")[0] for line in fleet.envoys[0].admin("/clusters").splitlines()} - of_the_bootstrap


async def test_a_request_brings_its_cluster(fleet: Fleet) -> None:
    """Waits for what was written to be acknowledged, each time before it asks."""
    plain, pinned = fleet.writers
    for writer, model in ((plain, "plain"), (plain, "unused"), (pinned, "pinned")):
        await writer.hold((model, 1))
        writer.ready((model, 1))
    await plain.flush()
    await pinned.flush()
    started = time.monotonic()
    await fleet.start_envoy()
    assert time.monotonic() - started < 8, "its listener waited for clusters that nobody asks for before it is open"
    async with grpc.aio.insecure_channel(fleet.address) as channel:
        call: Any = channel.unary_unary(METHOD)
        for model in ("plain", "pinned", "plain", "pinned"):
            assert (await ask(call, model)).code is OK
        assert clusters(fleet) == {"plain", "pinned@1"}
        # The second of these is the one that waits: Envoy asks once, and from then on is told when there is something.
        for _ in range(2):
            outcome = await ask(call, "later")
            assert (outcome.code, outcome.details) == (NOT_FOUND, "Servable not found for request: Latest(later)")
        assert outcome.ended - outcome.started >= 0.9 * TIMEOUT

        await plain.hold(("later", 1))
        plain.ready(("later", 1))
        await fleet.convergence.until(await plain.flush())
        assert (await ask(call, "later")).code is OK
        plain.gone(("later", 1))
        await fleet.convergence.until(await plain.flush())
        assert (await ask(call, "later")).code is NOT_FOUND
        assert clusters(fleet) == {"plain", "pinned@1"}


async def test_a_version_switch_under_load(fleet: Fleet) -> None:
    """Two instances that hold both versions for a while, one after the other. Waits until clients get the new one,
    and until the old one is acknowledged to be gone."""
    for writer in fleet.writers:
        writer.several_versions = True
        await writer.hold(("m", 1))
        writer.ready(("m", 1))
        await writer.flush()
    await fleet.start_envoy()
    async with Probes(fleet.address, lambda: "m", connections=4, rest=0.002) as probes:
        await probes.more(50)
        for version in (2, 3, 4):
            for writer in fleet.writers:
                await writer.hold(("m", version))
                writer.ready(("m", version))
                await fleet.convergence.until(await writer.flush())
            for writer in fleet.writers:
                old = ("m", version - 1)
                writer.draining(old)
                await fleet.convergence.until(await writer.flush(), drained=writer.name)
                await writer.drop(old)
                writer.gone(old)
            await probes.more(50)
            assert version_of(probes.outcomes[-1].answer) == version
    assert [outcome for outcome in probes.outcomes if outcome.code is not OK] == []
    newest: dict[int, int] = {}
    for outcome in probes.outcomes:
        version = version_of(outcome.answer)
        assert version >= newest.get(outcome.connection, 0), (
            "a connection has one request in flight, and never goes back"
        )
        newest[outcome.connection] = version
