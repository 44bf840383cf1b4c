"""An Envoy whose two streams are with different control planes, as they are after every other start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.churn.fleet import Fleet
from control_plane.envoy_files import render_bootstrap
from tests.support.envoy import Envoy, reporting_to
from tests.support.processes import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


async def test_drains_end_whichever_control_plane_envoy_reports_to(tmp_path: Path) -> None:
    """Envoy is configured by one control plane and reports to the other only. It is killed and started again; then the
    one that it reports to is killed, so that nobody can tell what is in flight until it is back. Waits for the drains,
    for Envoy to be named as the one that holds one up, and for the five seconds after which Envoy tries again."""
    async with Fleet(tmp_path, replicas=2, tapped=False, flags=("--settle-time", "0.5")) as fleet:
        configures, hears = fleet.replicas
        old, new = fleet.writers
        for writer in (new, old):
            await writer.hold(("m", 1))
            writer.ready(("m", 1))
            await writer.flush()
        admin = free_port()
        bootstrap = render_bootstrap([configures.address], admin=f"127.0.0.1:{admin}", node_id="envoy-0")

        async def start() -> Envoy:
            envoy = await asyncio.to_thread(Envoy, tmp_path, reporting_to(bootstrap, hears.xds_port), admin)
            await envoy.ready()
            return envoy

        async def drain() -> None:
            old.draining(("m", 1))
            await fleet.convergence.until(await old.flush(), drained=old.name, timeout=60)

        async def back() -> None:
            old.ready(("m", 1))
            await fleet.convergence.until(await old.flush())

        async def named() -> bool:
            return (await fleet.convergence.planes())[configures.name].behind == ("envoy-0",)

        envoy = await start()
        try:
            await drain()
            await back()
            envoy.child.kill()
            envoy.close()
            envoy = await start()
            await drain()
            await back()
            fleet.kill(hears)
            draining = asyncio.create_task(drain())
            await eventually(named, "Envoy to be named")
            assert not draining.done(), "it has ended though nobody can tell what is in flight"
            await fleet.restart(hears)
            await draining
        finally:
            await asyncio.to_thread(envoy.close)
