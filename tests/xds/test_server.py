"""The gRPC shell, with a real gRPC channel: readiness, shutdown, errors, Envoys that are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control_plane.xds.events import Connected, Disconnected
from control_plane.xds.limits import Limits
from control_plane.xds.server import SERVER_OPTIONS, XdsServer
from control_plane.xds.table import ResourceTable
from control_plane.xds.view import View
from tests.support.waiting import eventually
from tests.xds.client import CDS, EDS, cluster, endpoints, names, request


@asynccontextmanager
async def serving(table: ResourceTable, **options: object):
    events: list[object] = []
    xds = XdsServer(table, on_event=events.append, **{"settle_seconds": 0.0, **options})
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(xds.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield xds, ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel), events
        finally:
            await xds.close()
            await server.stop(None)


def first(type_url: str, node: str = "envoy-1", **kwargs: object) -> discovery_pb2.DeltaDiscoveryRequest:
    message = request(type_url, **kwargs)
    message.node.id, message.node.cluster = node, "edge"
    return message


def begin(xds: XdsServer, table: ResourceTable, *resources, revision: int = 5) -> None:
    change = table.update(resources, [], revision)
    table.mark_ready()
    xds.publish(change)


async def converged(stream, *type_urls: str) -> None:
    """ACK the first response of each type."""
    for _ in type_urls:
        response = await stream.read()
        await stream.write(request(response.type_url, nonce=response.nonce))


async def test_a_stream_is_served_changes_and_its_status_tells(caplog):
    table = ResourceTable()
    async with serving(table) as (xds, stub, events):
        begin(xds, table, cluster("a"))
        assert xds.converged_revision() == 5, "nobody is connected, so nobody lacks anything"
        stream = stub.DeltaAggregatedResources()
        await stream.write(first(CDS))
        response = await stream.read()
        assert names(response) == ["a"]
        assert xds.converged_revision() == 0
        await stream.write(request(CDS, nonce=response.nonce))
        await eventually(lambda: xds.converged_revision() == 5, "the ACK")
        xds.publish(table.update([cluster("b")], [], 6))
        assert xds.converged_revision() == 5
        await converged(stream, CDS)
        await eventually(lambda: xds.converged_revision() == 6, "the ACK")
        (status,) = xds.streams
        assert (status.node, status.cluster, status.converged_revision) == ("envoy-1", "edge", 6)
        cds = status.types[CDS]
        assert (cds.sent, cds.acked, cds.wildcard) == (2, 2, True)
        assert (cds.sent_revision, cds.acked_revision, cds.nacked_revision) == (6, 6, 0)
        assert [type(event) for event in events] == [Connected]
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        await eventually(lambda: not xds.streams, "the stream to end")
        assert [type(event) for event in events] == [Connected, Disconnected]
        assert xds.totals()[CDS].sent == 2


async def test_a_stream_that_comes_before_the_first_snapshot_waits_for_it():
    table = ResourceTable()
    async with serving(table, ready_seconds=20) as (xds, stub, _):
        stream = stub.DeltaAggregatedResources()
        await stream.write(first(CDS))
        begin(xds, table, cluster("a"))
        assert names(await stream.read()) == ["a"]
        stream.cancel()


async def test_a_stream_is_refused_when_the_registry_stays_unread():
    async with serving(ResourceTable(), ready_seconds=0.05) as (_, stub, _events):
        stream = stub.DeltaAggregatedResources()
        await stream.write(first(CDS))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "has not read the registry" in raised.value.details()


async def test_a_request_against_the_protocol_ends_the_stream_with_a_reason(caplog):
    table = ResourceTable()
    async with serving(table) as (xds, stub, _):
        begin(xds, table)
        stream = stub.DeltaAggregatedResources()
        await stream.write(first(""))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "type_url" in raised.value.details()


async def test_closing_ends_the_streams_so_that_envoys_go_elsewhere():
    table = ResourceTable()
    async with serving(table) as (xds, stub, events):
        begin(xds, table, cluster("a"))
        stream = stub.DeltaAggregatedResources()
        await stream.write(first(CDS))
        await stream.read()
        await xds.close()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert events[-1].detail == "closed by us"


async def test_nothing_is_claimed_before_the_envoys_of_a_restart_had_time_to_come_back():
    table, now, changed = ResourceTable(), [100.0], []
    async with serving(table, settle_seconds=3.0, clock=lambda: now[0], on_change=lambda: changed.append(now[0])) as (
        xds,
        _stub,
        _,
    ):
        assert xds.converged_revision() == 0
        begin(xds, table, cluster("a"))
        now[0] += 2.9
        xds.publish(table.update([], [], 6))
        assert xds.converged_revision() == 0
        now[0] += 0.2
        assert xds.converged_revision() == 6


async def test_an_envoy_that_was_lost_counts_until_it_is_back_or_given_up():
    table, now = ResourceTable(), [100.0]
    # One that asks for nothing but EDS, and isn't waited for to ask for its clusters.
    limits = Limits(away_seconds=0)
    async with serving(table, settle_seconds=3.0, clock=lambda: now[0], limits=limits) as (xds, stub, _):
        begin(xds, table, endpoints("a", 1))
        now[0] += 4
        stream = stub.DeltaAggregatedResources()
        await stream.write(first(EDS, subscribe=["a"]))
        await converged(stream, EDS)
        await eventually(lambda: xds.converged_revision() == 5, "the ACK")
        stream.cancel()
        await eventually(lambda: not xds.streams, "the stream to end")
        xds.publish(table.update([endpoints("a", 2)], [], 6))
        assert xds.converged_revision() == 5, "it is out there with revision 5"
        assert (xds.nodes, xds.expected_nodes) == ((), ("envoy-1",)), "what it has in flight is not known"
        again = stub.DeltaAggregatedResources()
        await again.write(first(EDS, subscribe=["a"], claimed={"a": endpoints("a", 1).version}))
        await converged(again, EDS)
        await eventually(lambda: xds.converged_revision() == 6, "it to be back")
        assert xds.expected_nodes == ("envoy-1",)
        again.cancel()
        await eventually(lambda: not xds.streams, "the stream to end")
        xds.publish(table.update([endpoints("a", 3)], [], 7))
        assert xds.converged_revision() == 6
        now[0] += 3.1
        assert xds.converged_revision() == 7
        assert xds.expected_nodes == ()


async def test_a_client_that_does_not_read_holds_nobody_up_and_gets_the_newest_state():
    table = ResourceTable()
    big = [endpoints(f"m{number}", *range(1, 2000)) for number in range(60)]
    async with serving(table) as (xds, stub, _):
        begin(xds, table, *big)
        slow, quick = stub.DeltaAggregatedResources(), stub.DeltaAggregatedResources()
        subscribe = [resource.name for resource in big]
        await slow.write(first(EDS, "slow", subscribe=subscribe))
        await quick.write(first(EDS, "quick", subscribe=["m0"]))
        await converged(quick, EDS)
        for revision in range(6, 30):
            xds.publish(table.update([endpoints("m0", revision)], [], revision))
            await converged(quick, EDS)
        held: dict[str, str] = {}
        async with asyncio.timeout(20):
            while len(held) < len(big) or xds.converged_revision() < 29:
                response = await slow.read()
                held |= {resource.name: resource.version for resource in response.resources}
                await slow.write(request(EDS, nonce=response.nonce))
                if held.get("m0") == endpoints("m0", 29).version and len(held) == len(big):
                    break
        assert xds.totals()[EDS].sent < 60 + 25 + 10
        slow.cancel()
        quick.cancel()


async def test_a_grpc_client_is_served_from_its_own_table_which_is_filled_as_it_asks():
    table, lazy, asked = ResourceTable(), ResourceTable(), []

    def wanted(type_url: str, names_wanted: Sequence[str]) -> None:
        asked.append((type_url, tuple(names_wanted)))
        xds.publish(lazy.update([endpoints(name, 7) for name in names_wanted], [], 5), view)

    view = View("grpc", lazy, wanted, proxies=False)
    async with serving(table, grpc_view=view, limits=Limits(away_seconds=0)) as (xds, stub, _):
        begin(xds, table, endpoints("a", 1))
        lazy.mark_ready()
        xds.publish(lazy.update([], [], 5), view)
        envoy, client = stub.DeltaAggregatedResources(), stub.DeltaAggregatedResources()
        hello = first(EDS, "client", subscribe=["a"])
        hello.node.user_agent_name = "gRPC C-core linux"
        # One after the other: which of two streams the server takes first is not said.
        await client.write(hello)
        of_client = await client.read()
        await envoy.write(first(EDS, "envoy", subscribe=["a"]))
        got = [await envoy.read(), of_client]
        assert [response.resources[0].version for response in got] == [endpoints("a", n).version for n in (1, 7)]
        assert asked == [(EDS, ("a",))]
        assert xds.nodes == ("envoy",), "a client without a proxy reports no load"
        views = {status.node: (status.view, status.client) for status in xds.streams}
        assert views == {"client": ("grpc", "gRPC C-core linux"), "envoy": ("envoy", "")}
        await envoy.write(request(EDS, nonce=got[0].nonce))
        assert xds.converged_revision() < 5
        await client.write(request(EDS, nonce=got[1].nonce))
        await eventually(lambda: xds.converged_revision() == 5, "both ACKs")
        envoy.cancel()
        client.cancel()
