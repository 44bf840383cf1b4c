"""From exec to the first configuration that an Envoy gets, and the memory that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.xds import plane
from bench.xds.client import connected
from bench.xds.figures import Figure
from bench.xds.fleet import Fleet
from registry.etcd import EtcdClient, EtcdConfig
from tests.support.etcd import Etcd

SECONDS, MEMORY = 3.0, 400.0
"""The budget of design.md, for 10,000 models with 4 endpoints each."""
_AT_MOST = 120.0


async def measure(folder: Path, models: int, rounds: int, progress: Callable[[str], None]) -> list[Figure]:
    """Start a control plane on the same registry again and again, with an Envoy that waits for it."""
    fleet = Fleet(models)
    etcd = Etcd(folder)
    try:
        async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
            progress(f"cold start: writing {models * fleet.endpoints:,} endpoints to etcd")
            await fleet.register(client)
        seen = []
        for number in range(rounds):
            seen.append(await _start(folder, etcd.endpoint, models))
            answered, cpu, everything, resident, peak = seen[-1]
            progress(
                f"cold start {number + 1}/{rounds}: {answered:.2f} s ({cpu:.2f} s of CPU), {resident:.0f} MiB; "
                f"everything acknowledged after {everything:.2f} s, peak {peak:.0f} MiB"
            )
    finally:
        etcd.close()
    answered, cpu, everything, resident, peak = zip(*seen, strict=True)
    return [
        Figure(f"cold start with {models:,} models, exec to an Envoy's first answer", answered, "s", SECONDS),
        Figure("… CPU time of the control plane until then", cpu, "s"),
        Figure("… until an Envoy holds everything", everything, "s"),
        Figure("… memory at the first answer", resident, "MiB", MEMORY),
        Figure("… peak of the memory", peak, "MiB", MEMORY),
    ]


async def _start(folder: Path, etcd: str, models: int) -> tuple[float, float, float, float, float]:
    with plane.start(folder, etcd) as control_plane:
        async with connected(control_plane.address, _AT_MOST) as envoy:
            cpu, resident = control_plane.cpu_seconds(), control_plane.memory()
            assert envoy.began is not None
            await envoy.until_everything(models, _AT_MOST)
            everything = time.monotonic() - control_plane.started
            answered = envoy.began - control_plane.started
            return answered, cpu, everything, resident, control_plane.peak_memory()
