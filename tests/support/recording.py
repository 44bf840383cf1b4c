"""A delta client that takes all that a control plane has for an Envoy, byte for byte, and goes again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc.aio
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.resources.names import GRPC_ROUTER
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG, LISTENER

DELTA = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


async def everything(address: str, clusters: int, node: str = "recorder") -> dict[tuple[str, str], tuple[str, bytes]]:
    """(type URL, name) -> (version, bytes) of all `clusters` and their endpoints, the listeners and the gRPC router."""
    held: dict[tuple[str, str], tuple[str, bytes]] = {}
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel, asyncio.timeout(30):
        call: Any = channel.stream_stream(
            DELTA,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )()
        await call.write(_request(CLUSTER, node=node))
        await _take(call, held, until=lambda: len(held) >= clusters)
        names = [name for _, name in held]
        await call.write(_request(CLUSTER_LOAD_ASSIGNMENT, names))
        await _take(call, held, until=lambda: len(held) >= 2 * len(names))
        await call.write(_request(LISTENER))
        await _take(call, held, until=lambda: any(kind == LISTENER for kind, _ in held))
        await call.write(_request(EXTENSION_CONFIG, [GRPC_ROUTER]))
        await _take(call, held, until=lambda: (EXTENSION_CONFIG, GRPC_ROUTER) in held)
        call.cancel()
    return held


def _request(kind: str, names: Iterable[str] = (), node: str = "", nonce: str = "") -> Any:
    request = discovery_pb2.DeltaDiscoveryRequest(type_url=kind, resource_names_subscribe=names, response_nonce=nonce)
    request.node.id = node
    return request


async def _take(call: Any, held: dict[tuple[str, str], tuple[str, bytes]], until: Callable[[], bool]) -> None:
    while not until():
        response = await call.read()
        assert response is not grpc.aio.EOF, await call.details()
        for resource in response.resources:
            held[response.type_url, resource.name] = resource.version, resource.resource.SerializeToString()
        await call.write(_request(response.type_url, nonce=response.nonce))
