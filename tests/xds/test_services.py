"""Every service in both variants over a real gRPC channel."""

from __future__ import annotations

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.resources.resource import Resource
from control_plane.xds.server import SERVER_OPTIONS, XdsServer
from control_plane.xds.services import AGGREGATED, METHODS, SOTW, Method
from control_plane.xds.table import ResourceTable
from tests.support.waiting import eventually
from tests.xds import client, sotw_client
from tests.xds.client import CDS, ECDS, EDS, LDS, cluster, endpoints, listener, router
from tests.xds.sotw_client import RDS, route

NAMES = {LDS: "grpc", RDS: "r", CDS: "a", EDS: "a", ECDS: "router"}
RESOURCES: tuple[Resource, ...] = (listener(), route("r"), cluster("a"), endpoints("a", 1), router())
SEPARATE = [method for method in METHODS if method.only_type is not None]


@pytest.fixture
async def xds():
    table = ResourceTable()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    xds = XdsServer(table, settle_seconds=0.0)
    server.add_generic_rpc_handlers(xds.handlers())
    xds.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    change = table.update(RESOURCES, [], 5)
    table.mark_ready()
    xds.publish(change)
    yield xds
    await xds.close()
    await server.stop(None)


def call(channel: grpc.aio.Channel, method: Method):
    response = discovery_pb2.DiscoveryResponse if method.variant is SOTW else discovery_pb2.DeltaDiscoveryResponse
    return channel.stream_stream(
        f"/{method.service}/{method.name}",
        request_serializer=method.variant.request.SerializeToString,
        response_deserializer=response.FromString,
    )()


def request(method: Method, type_url: str, *names: str, **more: str):
    make = sotw_client.request if method.variant is SOTW else client.request
    message = make(type_url, names, **more)
    message.node.id = "envoy-1"
    return message


def names(method: Method, response) -> list[str]:
    return sotw_client.names(response) if method.variant is SOTW else client.names(response)


@pytest.mark.parametrize("method", SEPARATE, ids=lambda method: method.name)
async def test_a_separate_service_needs_no_type_and_converges_by_itself(xds, method):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{xds.port}") as channel:
        stream = call(channel, method)
        await stream.write(request(method, "", NAMES[method.only_type]))
        response = await stream.read()
        assert (response.type_url, names(method, response)) == (method.only_type, [NAMES[method.only_type]])
        assert xds.converged_revision() < 5
        await stream.write(request(method, "", *([NAMES[method.only_type]] * (method.variant is SOTW)), nonce="1"))
        await eventually(lambda: xds.converged_revision() == 5, "the ACK")
        (status,) = xds.streams
        assert (status.only_type, status.variant) == (method.only_type, method.variant.name)
        stream.cancel()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_type_that_the_service_does_not_serve_ends_the_stream(xds, method):
    wrong = "" if method.service == AGGREGATED else EDS if method.only_type == CDS else CDS
    async with grpc.aio.insecure_channel(f"127.0.0.1:{xds.port}") as channel:
        stream = call(channel, method)
        await stream.write(request(method, wrong, "a"))
        assert await stream.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_supersedes_the_one_before_it_without_a_nonce(xds):
    """What grpcio's own xDS client does when a second channel asks for a listener while the first one's is on its way:
    the names of both, before it has any nonce. Then it ACKs whatever comes with the names of both."""
    method = next(each for each in METHODS if each.service == AGGREGATED and each.variant is SOTW)
    xds.publish(xds.envoy_view.table.update([listener("m1"), listener("m2")], [], 6))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{xds.port}") as channel:
        stream = call(channel, method)
        await stream.write(request(method, LDS, "m1"))
        await stream.write(request(method, LDS, "m1", "m2"))
        seen: list[list[str]] = []
        while not seen or seen[-1] != ["m1", "m2"]:
            response = await stream.read()
            seen.append(names(method, response))
            last = request(method, LDS, "m1", "m2", version=response.version_info, nonce=response.nonce)
            await stream.write(last)
        assert seen in ([["m1", "m2"]], [["m1"], ["m1", "m2"]])
        await eventually(lambda: xds.streams[0].types[LDS].unanswered == 0, "the ACK")
        assert xds.streams[0].types[LDS].responses == len(seen)
        stream.cancel()
