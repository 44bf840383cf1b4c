"""Load reports that come to a control plane which does not configure the Envoy: passed on to the one that does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from envoy.service.load_stats.v3 import lrs_pb2

from control_plane.xds.load_relay import Asking
from control_plane.xds.load_reports import LoadReportServer
from control_plane.xds.server import SERVER_OPTIONS
from registry.plane_traffic import VersionTotals
from tests.support.envoy import reporting_to
from tests.support.processes import free_port
from tests.support.waiting import eventually
from tests.xds.test_load_reports import ENVOY, Client, counts
from tests.xds.world import Backend, Plane, ask, assignment, eds_cluster, listener, plane_and_envoy, router


def response(*clusters: str) -> lrs_pb2.LoadStatsResponse:
    return lrs_pb2.LoadStatsResponse(clusters=clusters, send_all_clusters=not clusters)


def report(*clusters: str) -> lrs_pb2.LoadStatsRequest:
    made = lrs_pb2.LoadStatsRequest()
    for name in clusters:
        made.cluster_stats.add(cluster_name=name)
    return made


def wanted(asking: Asking) -> list[str]:
    assert asking.wanted is not None
    return list(asking.wanted.clusters)


def test_a_report_counts_from_the_moment_that_envoy_was_asked_for_it() -> None:
    asking = Asking()
    assert not asking.answers(report("m"), 0.0), "nobody has asked"
    asking.told(response("m"), 0.0)
    first = wanted(asking)
    assert first[0] == "m"
    assert len(first) == 2
    for made_before in (report(), report("m"), report("n"), report("m", "n", *first[1:])):
        assert not asking.answers(made_before, 0.1)
    assert asking.answers(report(*first), 0.2)
    # Idle clusters that Envoy does not have are left out, and what comes after is for the same list.
    assert asking.answers(report(), 0.3)
    assert not asking.deaf


def test_each_list_is_told_from_the_one_before() -> None:
    asking = Asking()
    asking.told(response("m"), 0.0)
    first = wanted(asking)
    assert asking.answers(report(*first), 0.1)
    asking.told(response("m", "n"), 0.2)
    assert not asking.answers(report(*first), 0.3), "it says nothing of n, which may have requests in flight"
    assert asking.answers(report("m", *wanted(asking)[2:]), 0.4), "this Envoy has no n"


def test_what_is_asked_about_all_clusters_is_no_evidence_and_always_counts() -> None:
    asking = Asking()
    asking.told(response(), 0.0)
    assert wanted(asking) == []
    assert asking.answers(report("m"), 0.1)
    asking.told(response("m"), 0.2)
    assert not asking.answers(report("m", "n", "@xds", "@shadow"), 0.3)


def test_an_envoy_that_does_not_do_as_it_is_asked_is_known_after_a_while() -> None:
    asking = Asking()
    asking.told(response("m"), 0.0)
    assert not asking.answers(report("m"), 1.0)
    assert not asking.deaf
    assert not asking.answers(report("m"), 3.0)
    assert asking.deaf


@asynccontextmanager
async def serving(loads: LoadReportServer) -> AsyncIterator[str]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(loads.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    running = asyncio.create_task(loads.run())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        running.cancel()
        await asyncio.wait({running})
        await loads.close()
        await server.stop(None)


async def test_an_envoy_is_asked_by_the_control_plane_that_configures_it() -> None:
    """Waits for each asking: by the one that Envoy came to, by the one that configures it, and by the first one again
    when it configures Envoy itself."""
    here: list[str] = []
    configuring = LoadReportServer(nodes=lambda: ["envoy"], statistics_seconds=3.0)
    async with serving(configuring) as address:
        other = LoadReportServer(nodes=lambda: here, elsewhere=lambda node: address, stray_seconds=0.1)
        async with serving(other) as wrong, grpc.aio.insecure_channel(wrong) as channel:
            client = Client(channel)
            await client.say(ENVOY, counts("m@3", 5, 1, 2))
            assert await client.asked() in ((True, [], 3.0), (True, [], 5.0))
            await eventually(lambda: not configuring.silent("i"), "it to be known there")
            configuring.ask_about({"m@3"})
            configuring.set_draining({"i": frozenset({("m@3", "10.0.0.1", 8500)})})
            while not (asked := await client.asked())[1]:
                pass
            _, clusters, seconds = asked
            assert (clusters[0], len(clusters), seconds) == ("m@3", 2, 0.01)
            # Made before: it is no evidence. What it counts counts here.
            await client.say(None, counts("m@3", 7, 0, 3))
            await eventually(lambda: other.totals.servables() == {("m", 3): VersionTotals(13, 1)}, "it to be counted")
            assert configuring.in_flight("i") is None
            await client.say(None, counts("m@3", 1, 0, 1), {"clusterName": clusters[1], "loadReportInterval": "0.01s"})
            idle = {"clusterName": "m@3", "loadReportInterval": "0.01s"}
            for _ in range(4):
                assert configuring.in_flight("i") is None
                await client.say(None, idle)
            await eventually(lambda: configuring.in_flight("i") == 0, "the evidence")
            assert other.totals.servables() == {("m", 3): VersionTotals(13, 1)}
            here.append("envoy")
            other.roll_called()
            assert await client.asked() == (True, [], 5.0)
            await eventually(lambda: configuring.in_flight("i") is None, "nothing to be known there any more")


async def test_an_envoy_whose_control_plane_can_not_be_reached_is_sent_on() -> None:
    """Waits for its stream to be ended."""
    nowhere = f"127.0.0.1:{free_port()}"
    loads = LoadReportServer(elsewhere=lambda node: nowhere, stray_seconds=0.1)
    async with serving(loads) as address, grpc.aio.insecure_channel(address) as channel:
        client = Client(channel)
        await client.say(ENVOY)
        await client.asked()
        with pytest.raises(grpc.aio.AioRpcError, match="another control plane configures this Envoy"):
            await client.asked()


async def test_requests_in_flight_of_an_envoy_that_reports_elsewhere(tmp_path: Path) -> None:
    """Waits for the reports of a real Envoy that come to another control plane only; nothing is known without that."""
    port = free_port()
    async with Backend().running() as one, Backend().running() as two:
        resources = (eds_cluster("a"), assignment("a", one.port, two.port), router("a"), listener(port))
        address = ""
        other = Plane(elsewhere=lambda node: address)
        await other.start()
        edit = lambda bootstrap: reporting_to(bootstrap, other.port)  # noqa: E731
        async with plane_and_envoy(tmp_path, *resources, edit_bootstrap=edit) as (plane, _):
            address = f"127.0.0.1:{plane.port}"
            other.loads.roll_called()
            slow: list[asyncio.Task[int]] = []
            # As many as it takes: each of Envoy's threads takes its own turns.
            while not (one.waiting and two.waiting):
                slow.append(asyncio.create_task(ask(port, "/slow")))
                await eventually(lambda: one.waiting + two.waiting == len(slow), "a request to be in flight")
            waiting = one.waiting
            revision = plane.change(assignment("a", one.port, two.port, draining=[one.port]))
            plane.loads.ask_about(["a"])
            await eventually(lambda: plane.converged(revision), "Envoy to know of the drain")
            plane.loads.set_draining({"i": frozenset({("a", "127.0.0.1", one.port)})})
            await eventually(lambda: plane.loads.in_flight("i") == waiting, "what is in flight")
            one.release.set()
            await eventually(lambda: plane.loads.in_flight("i") == 0, "the drain to end")
            two.release.set()
            assert await asyncio.gather(*slow) == [200] * len(slow)
            await other.stop()
            await eventually(lambda: plane.loads.in_flight("i") is None, "nothing to be known")
