"""The gRPC services of xDS: their methods, and the machine that serves each.

A generic handler without a response serializer lets a stream write bytes that were serialised once, and one without a
request deserializer lets it read its requests when it is their turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE_CONFIGURATION,
)
from control_plane.xds.delta import DeltaStream
from control_plane.xds.sotw import SotwStream
from control_plane.xds.stream import Stream
from control_plane.xds.turns import Decoded, Turns


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of the protocol."""

    name: str
    machine: type[Stream]
    request: Any


DELTA = Variant("delta", DeltaStream, discovery_pb2.DeltaDiscoveryRequest)
SOTW = Variant("sotw", SotwStream, discovery_pb2.DiscoveryRequest)


@dataclass(frozen=True, slots=True)
class Method:
    """One streaming method. `only_type`: the service's own type; None where a stream carries all of them."""

    service: str
    name: str
    variant: Variant
    only_type: str | None = None


AGGREGATED = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_SERVICES = (
    (AGGREGATED, "AggregatedResources", None),
    ("envoy.service.listener.v3.ListenerDiscoveryService", "Listeners", LISTENER),
    ("envoy.service.route.v3.RouteDiscoveryService", "Routes", ROUTE_CONFIGURATION),
    ("envoy.service.cluster.v3.ClusterDiscoveryService", "Clusters", CLUSTER),
    ("envoy.service.endpoint.v3.EndpointDiscoveryService", "Endpoints", CLUSTER_LOAD_ASSIGNMENT),
    ("envoy.service.extension.v3.ExtensionConfigDiscoveryService", "ExtensionConfigs", EXTENSION_CONFIG),
)
METHODS = tuple(
    Method(service, prefix + name, variant, only_type)
    for service, name, only_type in _SERVICES
    for prefix, variant in (("Delta", DELTA), ("Stream", SOTW))
)

Serve = Callable[[Method, Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[None]]


def handlers(serve: Serve) -> Sequence[grpc.GenericRpcHandler]:
    """What to hand to `grpc.aio.Server.add_generic_rpc_handlers`; `serve` is called for each stream."""
    turns = Turns()
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method in METHODS:
        services.setdefault(method.service, {})[method.name] = _handler(method, serve, turns)
    return tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items())


def _handler(method: Method, serve: Serve, turns: Turns) -> grpc.RpcMethodHandler[Any, Any]:
    async def behave(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await serve(method, Decoded(requests, method.variant.request.FromString, turns), context)

    return grpc.stream_stream_rpc_method_handler(behave)
