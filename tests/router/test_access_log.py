"""Envoy tells of observed requests, and of no others: real Envoy, real gRPC and HTTP, through the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from control_plane.model import Model, Traffic
from control_plane.xds.access_log import AccessLogServer
from registry.plane_traffic import Servable, VersionTotals
from tests.support.echo import EchoRest, EchoServer
from tests.support.fleet import STATUS, Fleet, model
from tests.support.requests import request
from tests.support.waiting import eventually


@asynccontextmanager
async def control_plane(fleet: Fleet, logs: AccessLogServer) -> AsyncIterator[None]:
    """What Envoy's cluster @xds leads to, with nothing else there."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(logs.handlers())
    fleet.plane = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


def observed(base: Model, share: float, weights: Mapping[int, int]) -> Model:
    return replace(base, pinned=True, traffic=Traffic(tuple(sorted(weights.items())), observe=share))


def counts(totals: Mapping[Servable, VersionTotals]) -> dict[Servable, tuple[int, int, int]]:
    return {name: (one.observed, one.observed_errors, sum(one.latency)) for name, one in totals.items()}


async def test_the_control_plane_learns_how_observed_requests_ended(fleet: Fleet, echo: EchoServer) -> None:
    """Waits for Envoy to flush its log. A client's own header makes nothing observed."""
    logs = AccessLogServer()
    async with EchoServer("bad") as bad, EchoServer("slow", delay=30.0) as slow, EchoRest("r") as rest:
        bad.fail_with = grpc.StatusCode.INTERNAL
        base = model("m", {3: [echo.port], 4: [bad.port], 5: [slow.port]}, served=3, rest=rest.port)
        other = model("other", {1: [echo.port]})
        async with control_plane(fleet, logs):
            await fleet.start([observed(base, 1.0, {3: 1}), other])
            for _ in range(5):
                await fleet.call(request("m"))
                await fleet.call(request("other"), **{"x-modelplane-observe": "1"})
            await fleet.call(request("m", 4))
            await fleet.call(request("m", 5), timeout=0.3)
            await fleet.call(request("m"), STATUS)
            path = "/v1/models/m/versions/3:predict"
            assert (await asyncio.to_thread(fleet.rest, path, b"{}"))[0] == 200
            expected = {("m", 3): (6, 0, 6), ("m", 4): (1, 1, 1), ("m", 5): (1, 1, 1)}

            def told() -> bool:
                assert counts(logs.totals()) == expected
                return True

            await eventually(told, "all to be logged", 20)
            assert all("x-modelplane-observe" not in seen for seen in echo.metadata[1:10:2])


async def test_a_share_is_observed(fleet: Fleet, echo: EchoServer) -> None:
    """Waits for a flush; 30 of 200 and of 170 would be eight standard deviations off."""
    logs = AccessLogServer()
    async with control_plane(fleet, logs):
        await fleet.start([observed(model("m", {3: [echo.port]}), 0.5, {3: 1})])
        await asyncio.gather(*(fleet.call(request("m")) for _ in range(200)))

        def seen() -> int:
            return sum(one.observed for one in logs.totals().values())

        await eventually(lambda: seen() > 30, "some to be logged", 20)
        sent: dict[str, Any] = fleet.envoy.stats("access_logs.grpc_access_log")
        assert 30 < sent["access_logs.grpc_access_log.logs_written"] < 170, sent


async def test_requests_go_on_without_a_control_plane(fleet: Fleet, echo: EchoServer) -> None:
    """Nothing listens where it should be: no request fails or waits for its log."""
    await fleet.start([observed(model("m", {3: [echo.port]}), 1.0, {3: 1})])
    answers = [await asyncio.gather(*(fleet.call(request("m"), timeout=5) for _ in range(100))) for _ in range(3)]
    assert {answer.code for round_ in answers for answer in round_} == {grpc.StatusCode.OK}
