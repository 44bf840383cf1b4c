"""What clients are asked to report, and when: a real gRPC connection to the server, and a client that says what it is
told to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest_asyncio
from envoy.service.load_stats.v3 import lrs_pb2
from google.protobuf import json_format

from control_plane.xds.load_reports import SERVICE, LoadReportServer
from registry.plane_traffic import VersionTotals
from tests.support.waiting import eventually

ENVOY = {"id": "envoy", "clientFeatures": ["envoy.lrs.supports_send_all_clusters"]}
GRPC = {"id": "client", "userAgentName": "gRPC C-core linux", "clientFeatures": ENVOY["clientFeatures"]}


def counts(cluster: str, good: int, bad: int, running: int) -> dict[str, Any]:
    endpoint = {
        "address": {"socketAddress": {"address": "10.0.0.1", "portValue": 8500}},
        "totalRequestsInProgress": running,
        "totalIssuedRequests": good + bad,
    }
    locality = {
        "totalSuccessfulRequests": good,
        "totalErrorRequests": bad,
        "totalRequestsInProgress": running,
        "totalIssuedRequests": good + bad,
        "upstreamEndpointStats": [endpoint],
    }
    return {"clusterName": cluster, "upstreamLocalityStats": [locality], "loadReportInterval": "1s"}


class Client:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = channel.stream_stream(
            f"/{SERVICE}/StreamLoadStats",
            request_serializer=lrs_pb2.LoadStatsRequest.SerializeToString,
            response_deserializer=lrs_pb2.LoadStatsResponse.FromString,
        )()

    async def say(self, node: dict[str, Any] | None = None, *clusters: dict[str, Any]) -> None:
        document = {"node": node or {}, "clusterStats": list(clusters)}
        await self.send(json_format.ParseDict(document, lrs_pb2.LoadStatsRequest()))

    async def send(self, report: lrs_pb2.LoadStatsRequest) -> None:
        await self._call.write(report)

    async def asked(self) -> tuple[bool, list[str], float]:
        """Whether for all clusters, else for which, and every how many seconds."""
        async with asyncio.timeout(10):
            response = await self._call.read()
        seconds = response.load_reporting_interval.ToNanoseconds() / 1e9
        return response.send_all_clusters, list(response.clusters), seconds


@pytest_asyncio.fixture
async def loads() -> AsyncIterator[LoadReportServer]:
    yield LoadReportServer(nodes=lambda: ["envoy"])


@asynccontextmanager
async def connected(loads: LoadReportServer) -> AsyncIterator[Client]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(loads.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel)
        await loads.close()
    await server.stop(None)


async def test_an_envoy_tells_of_all_clusters_and_of_those_that_matter_while_something_drains(
    loads: LoadReportServer,
) -> None:
    async with connected(loads) as client:
        # What it counted before its stream broke is not lost.
        await client.say(ENVOY, counts("m@3", 5, 1, 2))
        assert await client.asked() == (True, [], 5.0)
        await eventually(lambda: loads.totals.servables() == {("m", 3): VersionTotals(6, 1, in_progress=2)}, "it")
        loads.observe({"m@3"})
        assert await client.asked() == (True, [], 1.0)
        # At once, though the report that was asked for is not there yet.
        loads.ask_about({"n"})
        assert await client.asked() == (False, ["m@3", "n"], 0.01)
        await client.say(None, counts("m@3", 1, 0, 1), counts("n", 2, 0, 1))
        expected = {("m", 3): VersionTotals(7, 1, in_progress=1), ("n", None): VersionTotals(2, in_progress=1)}
        await eventually(lambda: loads.totals.servables() == expected, "the report")
        loads.ask_about(())
        assert await client.asked() == (True, [], 1.0)
        loads.observe(())
        assert await client.asked() == (True, [], 5.0)


async def test_a_grpc_client_is_asked_for_nothing_while_nothing_drains(loads: LoadReportServer) -> None:
    async with connected(loads) as client:
        await client.say(GRPC)
        assert await client.asked() == (False, [], 60.0)
        loads.observe({"m@3"})
        loads.ask_about({"n"})
        assert await client.asked() == (False, ["n"], 0.01)


async def test_the_more_clusters_there_are_the_less_often_they_are_told(loads: LoadReportServer) -> None:
    async with connected(loads) as client:
        await client.say(ENVOY)
        assert await client.asked() == (True, [], 5.0)
        report = lrs_pb2.LoadStatsRequest()
        for number in range(40_000):
            report.cluster_stats.add(cluster_name=f"m{number}")
        await client.send(report)
        assert await client.asked() == (True, [], 20.0)


async def test_an_envoy_is_asked_for_nothing_where_nobody_wants_statistics() -> None:
    loads = LoadReportServer(nodes=lambda: ["envoy"], statistics_seconds=0.0)
    async with connected(loads) as client:
        await client.say(ENVOY)
        assert await client.asked() == (False, [], 60.0)
        assert loads.pause == 0.0
