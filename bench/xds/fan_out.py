"""How long one change takes to reach every stream, and what a stream costs."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.xds import plane
from bench.xds.figures import Figure
from bench.xds.fleet import Fleet
from registry.etcd import EtcdClient, EtcdConfig
from tests.support.etcd import Etcd
from tests.support.waiting import eventually

SECONDS = 1.0
"""The budget of design.md, for 1,000 streams."""
_STREAMS = 1000
_AT_MOST = 300.0
_ENDED = "the simulated Envoys ended; what they said stands above"


async def measure(
    folder: Path, models: int, streams: int, rounds: int, progress: Callable[[str], None]
) -> list[Figure]:
    """One control plane, so many streams in another process, one change after the other."""
    what = f"{streams:,} streams with {models:,} models each"
    fleet = Fleet(models)
    etcd = Etcd(folder)
    try:
        async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
            await fleet.register(client)
            progress(f"fan-out: connecting {what}")
            with plane.start(folder, etcd.endpoint) as control_plane:
                async with _crowd(control_plane.address, models, streams) as process:
                    crowd = process.stdout
                    assert crowd is not None
                    await _next(crowd)
                    alone = control_plane.memory()
                    await _all_subscribed(control_plane, process, streams)
                    seen = []
                    for number in range(rounds + 1):
                        seconds, cpu = await _round(client, fleet, control_plane, crowd, number)
                        if number:  # the first round only warms up
                            seen.append((seconds, cpu))
                            progress(f"fan-out to {what}, {number}/{rounds}: {seconds:.3f} s, {cpu:.3f} s of CPU")
                    memory = control_plane.memory() - alone
    finally:
        etcd.close()
    times, cpu = zip(*seen, strict=True)
    return [
        Figure(f"fan-out of one change to {what}", times, "s", SECONDS if streams == _STREAMS else None),
        Figure("… CPU time of the control plane, acknowledgements included", cpu, "s"),
        Figure("… memory per stream", [memory * 1024 / (streams - 1)], "KiB"),
    ]


async def _round(
    client: EtcdClient, fleet: Fleet, control_plane: plane.Plane, crowd: asyncio.StreamReader, number: int
) -> tuple[float, float]:
    """From the write to the last stream's response; and the CPU seconds until everything has come to rest."""
    cpu = control_plane.cpu_seconds()
    put = fleet.ready(number % fleet.models, fleet.instances_of(number % fleet.models)[0], capacity=100 + number)
    began = time.monotonic()
    await client.put(put.key, put.value)
    while (line := await _next(crowd)).get("round", 0) < number + 1:
        pass
    seconds = line["last"] - began
    await _at_rest(control_plane)
    return seconds, control_plane.cpu_seconds() - cpu


async def _at_rest(control_plane: plane.Plane) -> None:
    """Wait until the control plane does nothing any more."""
    async with asyncio.timeout(_AT_MOST):
        before = -1.0
        while (now := control_plane.cpu_seconds()) - before > 0.01:
            before = now
            await asyncio.sleep(0.25)


async def _all_subscribed(control_plane: plane.Plane, process: asyncio.subprocess.Process, streams: int) -> None:
    def connected() -> bool:
        if process.returncode is not None:
            raise BenchError(_ENDED)
        return control_plane.metric("modelplane_envoys") >= streams

    await eventually(connected, f"{streams} streams", _AT_MOST)
    await _at_rest(control_plane)


async def _next(crowd: asyncio.StreamReader) -> dict[str, Any]:
    async with asyncio.timeout(_AT_MOST):
        line = await crowd.readline()
    if not line:
        raise BenchError(_ENDED)
    return dict(json.loads(line))


@asynccontextmanager
async def _crowd(address: str, models: int, streams: int) -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "bench.xds.crowd", address, "--streams", str(streams), "--models", str(models))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
