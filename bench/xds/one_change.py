"""What one endpoint's change costs the control plane, in fleets of different size.

Invariant: the fleets take turns, and each figure is divided by the smallest fleet's of the same round, so that a
machine that is busy for a while slows all of them down alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.xds import plane
from bench.xds.client import Envoy, connected
from bench.xds.figures import Figure
from bench.xds.fleet import Fleet
from registry.etcd import EtcdClient, EtcdConfig
from tests.support.etcd import Etcd
from tests.support.waiting import eventually

RATIO = 1.2
"""The budget of design.md: equal within 20 %."""
_AT_MOST = 120.0


@dataclass
class _Side:
    """One fleet with a control plane of its own and one Envoy, which holds everything."""

    fleet: Fleet
    plane: plane.Plane
    envoy: Envoy
    changes: int = 0

    async def round(self, client: EtcdClient, changes: int) -> tuple[float, float]:
        """Change one endpoint after the other, each when the Envoy has the one before; CPU seconds and bytes of each
        change."""
        cpu, received = self.plane.cpu_seconds(), self.envoy.received
        for _ in range(changes):
            await self._change(client)
        return (self.plane.cpu_seconds() - cpu) / changes, (self.envoy.received - received) / changes

    async def _change(self, client: EtcdClient) -> None:
        self.changes += 1
        number = self.changes % 10 * self.fleet.models // 10
        instance = self.fleet.instances_of(number)[0]
        arrived, before = asyncio.Event(), self.envoy.assignments
        self.envoy.on_assignments = arrived.set
        # Always three digits, so that every change has the same length.
        put = self.fleet.ready(number, instance, capacity=100 + self.changes % 900)
        await client.put(put.key, put.value)
        async with asyncio.timeout(_AT_MOST):
            await arrived.wait()
        assert self.envoy.assignments == before + 1


async def measure(
    folder: Path, sizes: Sequence[int], rounds: int, changes: int, progress: Callable[[str], None]
) -> list[Figure]:
    """All sizes at once, in turns."""
    etcd = Etcd(folder)
    try:
        async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client, AsyncExitStack() as stack:
            sides = [await _side(stack, folder, etcd, client, size, progress) for size in sizes]
            seen: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
            for number in range(rounds + 1):
                shift = number % len(sides)
                for side in (*sides[shift:], *sides[:shift]):
                    cost = await side.round(client, changes)
                    if number:  # the first round only warms up
                        seen[side.fleet.models].append(cost)
                        progress(
                            f"one change, round {number}/{rounds}, {side.fleet.models:,} models: "
                            f"{cost[0] * 1e3:.2f} ms of CPU, {cost[1]:.0f} B"
                        )
    finally:
        etcd.close()
    return _figures(sizes, seen)


async def _side(
    stack: AsyncExitStack,
    folder: Path,
    etcd: Etcd,
    client: EtcdClient,
    models: int,
    progress: Callable[[str], None],
) -> _Side:
    progress(f"one change: starting a control plane with {models:,} models")
    fleet = Fleet(models, prefix=f"/bench-{models}/")
    await fleet.register(client)
    control_plane = stack.enter_context(plane.start(folder, etcd.endpoint, "--prefix", fleet.prefix))
    envoy = await stack.enter_async_context(connected(control_plane.address, _AT_MOST))
    await envoy.until_everything(models, _AT_MOST)
    await eventually(lambda: len(envoy.held) == 4, "every type", _AT_MOST)
    return _Side(fleet, control_plane, envoy)


def _figures(sizes: Sequence[int], seen: dict[int, list[tuple[float, float]]]) -> list[Figure]:
    figures = []
    smallest = sizes[0]
    for size in sizes:
        cpu, received = zip(*seen[size], strict=True)
        figures.append(Figure(f"one endpoint's change at {size:,} models, CPU", [each * 1e3 for each in cpu], "ms"))
        if size != smallest:
            less, shorter = zip(*seen[smallest], strict=True)
            against = [mine / other for mine, other in zip(cpu, less, strict=True)]
            figures.append(Figure(f"… against {smallest:,} models", against, "", RATIO))
        figures.append(Figure("… bytes to each Envoy", received, "B"))
        if size != smallest:
            against = [mine / other for mine, other in zip(received, shorter, strict=True)]
            figures.append(Figure(f"… against {smallest:,} models", against, "", RATIO))
    return figures
