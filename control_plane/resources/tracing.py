"""Tracing of requests by Envoy: one span each, sent to an OpenTelemetry collector.

Invariant: without a collector in the settings there is nothing of it in any resource. Envoy takes a `traceparent` that
the client sends, and passes its own on to the server; TensorFlow Serving makes nothing of it.
"""

from __future__ import annotations

from typing import TypeAlias

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.trace.v3 import http_tracer_pb2, opentelemetry_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.tracing.v3 import custom_tag_pb2

from control_plane.resources.clusters import HTTP_OPTIONS, seconds
from control_plane.resources.names import LOGGED_MODEL_HEADER, LOGGED_VERSION_HEADER, TRACING_COLLECTOR
from control_plane.resources.resource import Resource, pack
from control_plane.resources.settings import DataPlaneSettings

_HCM: TypeAlias = http_connection_manager_pb2.HttpConnectionManager

SERVICE = "modelplane-envoy"
"""`service.name` of the spans."""


def trace(manager: _HCM, percent: float) -> None:
    """Have a listener's connection manager trace this share of its requests."""
    # Envoy draws by the request's id.
    manager.generate_request_id.value = True
    tracing = manager.tracing
    tracing.random_sampling.value = percent
    for tag, header in (("model", LOGGED_MODEL_HEADER), ("version", LOGGED_VERSION_HEADER)):
        tracing.custom_tags.append(
            custom_tag_pb2.CustomTag(tag=tag, request_header=custom_tag_pb2.CustomTag.Header(name=header))
        )
    config = opentelemetry_pb2.OpenTelemetryConfig(service_name=SERVICE)
    config.grpc_service.envoy_grpc.cluster_name = TRACING_COLLECTOR
    config.grpc_service.timeout.CopyFrom(seconds(1))
    provider = http_tracer_pb2.Tracing.Http(name="envoy.tracers.opentelemetry")
    provider.typed_config.Pack(config, deterministic=True)
    tracing.provider.CopyFrom(provider)


def collector(settings: DataPlaneSettings) -> tuple[Resource, ...]:
    """The cluster of the collector, if there is one."""
    if settings.collector is None:
        return ()
    cluster = cluster_pb2.Cluster(name=TRACING_COLLECTOR, type=cluster_pb2.Cluster.LOGICAL_DNS)
    # One host, whose addresses of both families are tried one after the other; the default knows only IPv6's, if it has
    # one.
    cluster.dns_lookup_family = cluster_pb2.Cluster.ALL
    cluster.connect_timeout.CopyFrom(seconds(settings.connect_timeout))
    # A cluster whose name has no address yet would keep an Envoy from starting for as long as that is so.
    cluster.wait_for_warm_on_init.value = False
    cluster.load_assignment.cluster_name = TRACING_COLLECTOR
    where = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
    where.address, where.port_value = settings.collector
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.SetInParent()
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].Pack(options, deterministic=True)
    return (pack(TRACING_COLLECTOR, cluster),)
