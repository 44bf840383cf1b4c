"""From the write of a new model's endpoint to the first request for it that is answered, through a real Envoy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench import upstream
from bench.errors import BenchError
from bench.figures import percentile
from bench.messages import METHOD, predict_request
from bench.xds import plane
from bench.xds.figures import Figure
from bench.xds.fleet import Fleet
from control_plane.envoy_files import render_bootstrap
from registry.etcd import EtcdClient, EtcdConfig
from registry.records import ReadyRecord, ReadyState
from tests.support.envoy import Envoy
from tests.support.etcd import Etcd
from tests.support.processes import free_port

P50, P99 = 10.0, 30.0
"""The budget of design.md in milliseconds, for 1,000 models."""
_AT_MOST = 30.0
_BETWEEN_PROBES = 0.0005
_BETWEEN_MODELS = 0.03


async def measure(folder: Path, models: int, requests: int, progress: Callable[[str], None]) -> list[Figure]:
    """Add so many models, one after the other, to a fleet of `models`."""
    fleet = Fleet(models)
    with ExitStack() as stack:
        etcd = Etcd(folder)
        stack.callback(etcd.close)
        instance = await asyncio.to_thread(stack.enter_context, upstream.start("envoy", folder, (), 64))
        async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
            progress(f"first request: starting etcd, a control plane and Envoy with {models:,} models")
            await fleet.register(client)
            control_plane = stack.enter_context(plane.start(folder, etcd.endpoint))
            admin = free_port()
            envoy = Envoy(folder, render_bootstrap([control_plane.address], admin=f"127.0.0.1:{admin}"), admin)
            stack.callback(envoy.close)
            await envoy.ready(_AT_MOST)
            record = ReadyRecord(ReadyState.READY, "127.0.0.1", instance.port, instance.port)
            seen = []
            async with grpc.aio.insecure_channel(f"127.0.0.1:{control_plane.grpc_port}") as channel:
                for number in range(requests + 10):
                    put = fleet.endpoint(f"new-{number:05d}", "serving-new", record)
                    seconds = await _until_routed(client, put.key, put.value, channel, f"new-{number:05d}")
                    if number >= 10:  # the first ones only warm up
                        seen.append(seconds * 1e3)
                    if number % 50 == 49:
                        progress(f"first request: {number + 1} models added, the last in {seconds * 1e3:.1f} ms")
                    await asyncio.sleep(_BETWEEN_MODELS)
    ordered = sorted(seen)
    between = f"{ordered[0]:.1f} – {ordered[-1]:.1f} ms, {len(seen):,} models"
    return [
        Figure(f"registry write to first routed request, {models:,} models, p50", [percentile(ordered, 50)], "ms", P50),
        Figure("… p99", [percentile(ordered, 99)], "ms", P99, between),
    ]


async def _until_routed(client: EtcdClient, key: str, value: bytes, channel: grpc.aio.Channel, model: str) -> float:
    """Ask for the model again and again from the moment at which it is written. The time that the write itself takes
    is in it."""
    call: Any = channel.unary_unary(METHOD)
    request = predict_request(model, 200)
    if await _code(call, request) is not grpc.StatusCode.NOT_FOUND:
        raise BenchError(f"{model} was there before it was registered")
    began = time.monotonic()
    writing = asyncio.create_task(client.put(key, value))
    try:
        while (code := await _code(call, request)) is not grpc.StatusCode.OK:
            if code is not grpc.StatusCode.NOT_FOUND:
                raise BenchError(f"{model} got {code.name}, which no model may get that is being added")
            if time.monotonic() - began > _AT_MOST:
                raise BenchError(f"{model} was not routed within {_AT_MOST:.0f} s")
            await asyncio.sleep(_BETWEEN_PROBES)
        return time.monotonic() - began
    finally:
        await writing


async def _code(call: Any, request: bytes) -> grpc.StatusCode:
    try:
        await call(request, timeout=_AT_MOST)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
