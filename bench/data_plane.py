"""The measured Envoy: the real bootstrap and the real resources, and beside the product's own listener one that routes
by header.

Invariant: the two listeners differ in how they find the cluster and in nothing else (same filters otherwise, same
retries, buffers and timeouts, same clusters, same process), so the difference in CPU is the model router's price.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import any_pb2

from bench.errors import BenchError
from bench.fixed_xds import FixedXds
from bench.machine import cpu_seconds
from control_plane.envoy_files import render_bootstrap
from control_plane.model import Endpoint, Model
from control_plane.resources.names import GRPC_LISTENER, GRPC_ROUTER
from control_plane.resources.resource import LISTENER, Resource, pack
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.translate import fleet_resources, model_resources
from tests.support.envoy import Envoy
from tests.support.processes import free_port

ROUTED, PINNED = "bench_routed", "bench_pinned"
"""The models: one that needs no pin, one whose version the router writes into every request."""
HEADER = "x-bench-model"
HEADER_LISTENER = "bench_header"
_OTHERS = ("bench_a", "bench_b", "bench_c", "bench_d")
"""Header routes that are tried before the right one: a handful, as a fleet of five models would have."""


@dataclass(frozen=True)
class DataPlane:
    """A running Envoy."""

    grpc_port: int
    header_port: int
    envoy: Envoy

    def cpu_seconds(self) -> float:
        """What it has used so far."""
        return cpu_seconds(self.envoy.child.pid)

    def completed(self, cluster: str) -> tuple[int, int]:
        """Requests that a cluster's instances have answered so far, and retries among them."""
        stats = self.envoy.stats(f"^cluster.{cluster}.upstream_rq_(completed|retry)$")
        prefix = f"cluster.{cluster}.upstream_rq_"
        return stats.get(f"{prefix}completed", 0), stats.get(f"{prefix}retry", 0)


def resources(upstream_port: int, version: int, settings: DataPlaneSettings, header_port: int) -> list[Resource]:
    """Everything that Envoy is told: two models on one instance, the product's listener, and the baseline's."""
    endpoint = Endpoint("bench", "127.0.0.1", upstream_port)
    models = [
        Model(name, versions=((version, (endpoint,)),), served=version, pinned=name == PINNED)
        for name in (ROUTED, PINNED)
    ]
    pins = {model.name: version for model in models if model.pinned}
    fleet = fleet_resources(pins, settings)
    product = next(one for one in fleet if one.type_url == LISTENER and one.name == GRPC_LISTENER)
    everything = [resource for model in models for resource in model_resources(model, settings)]
    return [*everything, *fleet, header_listener(product, header_port)]


def header_listener(product: Resource, port: int) -> Resource:
    """The product's gRPC listener without its model router: a route per model that matches a header instead."""
    wrapped, listener = any_pb2.Any(), listener_pb2.Listener()
    wrapped.ParseFromString(product.body)
    wrapped.Unpack(listener)
    listener.name = HEADER_LISTENER
    listener.address.socket_address.port_value = port
    packed = listener.filter_chains[0].filters[0].typed_config
    manager = http_connection_manager_pb2.HttpConnectionManager()
    packed.Unpack(manager)
    manager.stat_prefix = HEADER_LISTENER
    router = next(one for one in manager.http_filters if one.name == GRPC_ROUTER)
    manager.http_filters.remove(router)
    host = manager.route_config.virtual_hosts[0]
    like = next(route for route in host.routes if not route.match.headers)  # not that of requests with copies
    routes = []
    for model in (*_OTHERS, ROUTED):
        route = type(like)()
        route.CopyFrom(like)
        route.route.cluster = model  # a oneof: no cluster_header any more
        route.match.headers.add(name=HEADER).string_match.exact = model
        routes.append(route)
    del host.routes[:]
    host.routes.extend(routes)
    # The other models' clusters don't exist, which is no concern of a route that is never taken.
    manager.route_config.validate_clusters.value = False
    packed.Pack(manager, deterministic=True)
    return pack(HEADER_LISTENER, listener)


@contextmanager
def start(folder: Path, upstream_port: int, version: int, workers: int) -> Iterator[DataPlane]:
    """Start Envoy with `workers` threads and wait until it serves. Raises BenchError if it refuses what it is told."""
    grpc_port, header_port, admin = free_port(), free_port(), free_port()
    settings = DataPlaneSettings(listen_address="127.0.0.1", grpc_port=grpc_port, rest_port=0, reuse_port=False)
    with FixedXds(resources(upstream_port, version, settings, header_port)) as xds:
        bootstrap = render_bootstrap([xds.address], admin=f"127.0.0.1:{admin}", node_id="bench")
        envoy = Envoy(folder, bootstrap, admin, workers=workers)
        try:
            try:
                asyncio.run(envoy.ready())
            except AssertionError as error:
                raise BenchError(f"Envoy was not ready in time; {xds.rejected or error}") from error
            if xds.rejected:
                raise BenchError(f"Envoy refused a resource: {xds.rejected}")
            yield DataPlane(grpc_port, header_port, envoy)
        finally:
            envoy.close()
