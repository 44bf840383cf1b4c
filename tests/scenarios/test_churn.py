"""Models that come, move and go under load while control planes are killed: the small form of `python -m bench.churn`.

What clients may see is in bench/churn/verdict.py; what may be sent to an Envoy that comes back is in
bench/churn/audit.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bench.churn.direct import DirectProbes
from bench.churn.fleet import Fleet
from bench.churn.probes import Probes
from bench.churn.scenarios import Course, add, kill_each, move, name, read_own_writes, remove
from bench.churn.verdict import codes, violations
from bench.messages import METHOD
from tests.support.recording import everything
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

MODELS, RATE = 150, 100.0


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    """Two control planes, with the flags that the test names, and two instances; no Envoy yet."""
    async with Fleet(tmp_path, replicas=2, flags=getattr(request, "param", ())) as fleet:
        yield fleet


async def test_models_come_move_and_go_while_control_planes_are_killed(fleet: Fleet) -> None:
    """Each control plane is killed in turn, then both at once, and each time waited for; so are the Envoys'
    acknowledgements of every step. Beside Envoy's clients one without a proxy asks for the same."""
    await fleet.start_envoy()
    course = Course(MODELS)
    planes, kept = [replica.address for replica in fleet.replicas], [name(number) for number in range(0, MODELS, 15)]
    async with (
        Probes(fleet.address, course.choose, streams=2, rest=0.002) as probes,
        DirectProbes(fleet.folder, planes, course.choose, kept, visits=2, rest=0.02) as direct,
    ):
        killing = asyncio.create_task(kill_each(fleet, 0.3))
        await add(fleet, course, RATE)
        await killing
        await move(fleet, course, RATE)
        await remove(fleet, course, RATE, MODELS // 2)
        await asyncio.gather(probes.more(100), direct.more(100))
    for outcomes in (probes.outcomes, direct.outcomes):
        wrong = violations(outcomes, served=course.served, removed=course.removed)
        assert wrong == [], Counter((outcome.code.name, outcome.details) for outcome in wrong).most_common(3)
        assert codes(outcomes)["OK"] > 300
        assert codes(outcomes)["NOT_FOUND"] > 50

    streams = list(fleet.audits())
    assert len(streams) > 2, "Envoy was to lose its control plane more than once"
    assert sum(one.sent for _, _, one in streams) >= 4 * MODELS
    assert [(number, one.names[:5]) for number, _, one in streams if one.again] == []
    assert sum(one.refused for _, _, one in streams) == 0

    # Byte for byte the same, from processes with hash seeds of their own that read the registry at different times.
    count = int(fleet.replicas[0].metric('modelplane_resources{type="CDS"}'))
    one, other = [await everything(replica.address, count) for replica in fleet.replicas]
    assert one == other
    assert len(one) == 2 * count + 3 > MODELS


@pytest.mark.parametrize("fleet", [("--lost-envoy-grace", "3")], indirect=True)
async def test_what_is_said_to_have_converged_has(fleet: Fleet) -> None:
    """Two Envoys; one is stopped like a machine that hangs. Waits until it is declared dead, which the log must say
    before anything is claimed without it, and after it was woken, until it is back."""
    async with AsyncExitStack() as stack:

        async def connect() -> Any:
            channel = grpc.aio.insecure_channel(fleet.address, [("grpc.use_local_subchannel_pool", 1)])
            await stack.enter_async_context(channel)
            await channel.channel_ready()
            return channel.unary_unary(METHOD)

        awake = await fleet.start_envoy()
        calls = [await connect()]
        hung = await fleet.start_envoy()
        # They share the port, and the kernel chooses.
        while not hung.stats("downstream_cx_total").get("http.grpc.downstream_cx_total"):
            calls[1:] = [await connect()]
        assert awake.stats("downstream_cx_active")["http.grpc.downstream_cx_active"] >= 1
        assert await read_own_writes(fleet, calls, 15) == []

        hung.child.freeze()
        frozen = time.monotonic()
        model = "while-it-hangs", 1
        writer = fleet.writers[0]
        await writer.hold(model)
        writer.ready(model)
        revision = await writer.flush()

        def declared_dead() -> list[str]:
            lines = [line for replica in fleet.replicas for line in replica.child.output.splitlines()]
            return [line for line in lines if "Envoy envoy-1" in line and "no longer answers" in line]

        async def converged() -> bool:
            planes = await fleet.convergence.planes()
            done = all(plane.converged_revision >= revision for plane in planes.values())
            assert declared_dead() or not done, "convergence was claimed of an Envoy that hangs"
            return done

        try:
            await eventually(converged, "the hanging Envoy to be given up", 40)
        finally:
            hung.child.thaw()
        # A ping is sent every 10 s, and the first one after the stop is given 3 s; then comes the grace.
        assert 5.9 <= time.monotonic() - frozen < 30
        await eventually(lambda: hung.stats("connected_state")["control_plane.connected_state"] == 1, "it to be back")
        assert await read_own_writes(fleet, calls, 3, "again") == []
