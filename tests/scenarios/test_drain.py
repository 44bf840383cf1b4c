"""Drains during which something else fails. Envoy would retry a request whose server was stopped under it, so that no
client may tell; therefore it is Envoy's retries that are counted."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.keys import ReadyKey
from tests.support import saved_models
from tests.support.load import Load
from tests.support.processes import ChildProcess
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

SECONDS = 6.0
"""Of one request: longer than a control plane takes to start, so that some are in flight all the while."""


@pytest.fixture
async def draining(stack: Stack, tmp_path: Path) -> AsyncIterator[ChildProcess]:
    """The monitor of one of two instances, just told to stop under requests of SECONDS. In the end none of them may
    have failed or been sent twice."""
    base = tmp_path / "models" / "slow"
    saved_models.slow(base, seconds=SECONDS)
    for name in "ab":
        stack.start_instance(name, {"slow": base})
    await stack.until_ready(*(ReadyKey("slow", 1, name) for name in "ab"))
    async with Load(stack.grpc, saved_models.predict_request("slow", [1.0]), clients=8, rest=0, timeout=60) as load:
        # One of each client has been answered, so each has another in flight.
        await load.more(8)
        monitor = stack.instances["a"].monitor
        monitor.send(signal.SIGTERM)
        await eventually(lambda: "draining, for at most" in monitor.output, "the drain to begin")
        yield monitor
        await eventually(lambda: not monitor.alive(), "the drained monitor to end", 40)
        await load.more(8)
    load.assert_all_ok(at_least=16)
    assert "drained in" in monitor.output
    retries = stack.envoy.stats("upstream_rq_retry")
    assert retries
    assert not [name for name, count in retries.items() if name.endswith("upstream_rq_retry") and count], retries


async def test_the_control_plane_is_restarted_during_a_drain(stack: Stack, draining: ChildProcess) -> None:
    """Waits for the control plane to end and start again; it takes its record away, and so all that is waited for."""
    await asyncio.to_thread(stack.plane.stop)
    assert draining.alive()
    stack.start_plane()


async def test_etcd_is_restarted_empty_during_a_drain(stack: Stack, draining: ChildProcess) -> None:
    """Waits for etcd to start again, without the drain, the instance and the control plane."""
    stack.etcd.kill()
    stack.etcd.restart(empty=True)
    assert draining.alive()
