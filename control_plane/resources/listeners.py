"""The two listeners, gRPC and REST, with their routes inline.

Invariant: they depend on the settings only, so no change of a model ever touches a listener or a client's connection.
The model router filter comes by ECDS and sets the header that the one route per group of methods reads its cluster
from; so routing costs the same whatever the number of models.
"""

from __future__ import annotations

from typing import TypeAlias

from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.on_demand.v3 import on_demand_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2

from control_plane.resources import local_replies
from control_plane.resources.access_logs import logged, observed
from control_plane.resources.clusters import Protocol, seconds
from control_plane.resources.names import (
    CLUSTER_HEADER,
    COMPARER_HEADER,
    GRPC_LISTENER,
    GRPC_ROUTER,
    MIRRORED_HEADER,
    REST_LISTENER,
    REST_ROUTER,
    SHADOW_HEADER,
    TRACING_COLLECTOR,
)
from control_plane.resources.resource import Resource, pack
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.tracing import trace

_LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
_HCM: TypeAlias = http_connection_manager_pb2.HttpConnectionManager
_Route: TypeAlias = route_components_pb2.Route

PREDICTION = "/tensorflow.serving.PredictionService/"
GET_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
SESSION_RUN = "/tensorflow.serving.SessionService/SessionRun"


def listeners(settings: DataPlaneSettings) -> tuple[Resource, ...]:
    """The gRPC listener and, unless its port is 0, the REST listener."""
    grpc = _listener(GRPC_LISTENER, settings.grpc_port, _grpc_manager(settings), settings)
    if not settings.rest_port:
        return (grpc,)
    return grpc, _listener(REST_LISTENER, settings.rest_port, _rest_manager(settings), settings)


def _listener(name: str, port: int, manager: _HCM, settings: DataPlaneSettings) -> Resource:
    listener = listener_pb2.Listener(name=name)
    address = listener.address.socket_address
    address.address, address.port_value = settings.listen_address, port
    listener.enable_reuse_port.value = settings.reuse_port
    network_filter = listener.filter_chains.add().filters.add(name="envoy.filters.network.http_connection_manager")
    network_filter.typed_config.Pack(manager, deterministic=True)
    return pack(name, listener, requires=frozenset({TRACING_COLLECTOR} if settings.tracing_collector else ()))


def _manager(name: str, router: str, settings: DataPlaneSettings) -> _HCM:
    manager = _HCM(stat_prefix=name)
    # Nobody reads request ids or Envoy's name, and every header costs on every request.
    manager.generate_request_id.value = False
    manager.server_header_transformation = _HCM.PASS_THROUGH
    # 0: a model may think for as long as its client waits. A client that stalls while sending is cut off instead.
    manager.stream_idle_timeout.SetInParent()
    manager.request_timeout.CopyFrom(seconds(settings.request_timeout))
    manager.request_headers_timeout.CopyFrom(seconds(10))
    http2 = manager.http2_protocol_options
    http2.max_concurrent_streams.value = settings.max_concurrent_streams
    http2.initial_stream_window_size.value = settings.stream_window_bytes
    http2.initial_connection_window_size.value = settings.connection_window_bytes
    # Without it a client whose machine vanished would hold its connection and what it has buffered for an hour.
    http2.connection_keepalive.interval.CopyFrom(seconds(60))
    http2.connection_keepalive.timeout.CopyFrom(seconds(20))
    _drop_internal_headers(manager)
    _add_filters(manager, router, settings)
    manager.access_log.append(observed(name))
    if settings.access_log:
        manager.access_log.append(logged(name, settings.access_log))
    if settings.tracing_collector:
        trace(manager, settings.tracing_percent)
    return manager


def _drop_internal_headers(manager: _HCM) -> None:
    # Before anything else looks at the request: should the model router ever fail, a client's own word must not choose
    # the cluster, and x-envoy-… would let it set retries and timeouts.
    mutations = header_mutation_pb2.HeaderMutation()
    for prefix in ("x-modelplane-", "x-envoy-"):
        mutation = mutation_rules_pb2.HeaderMutation()
        mutation.remove_on_match.key_matcher.prefix = prefix
        mutations.mutations.append(mutation)
    extension = manager.early_header_mutation_extensions.add(name="envoy.http.early_header_mutation.header_mutation")
    extension.typed_config.Pack(mutations, deterministic=True)


def _add_filters(manager: _HCM, model_router: str, settings: DataPlaneSettings) -> None:
    discovered = manager.http_filters.add(name=model_router).config_discovery
    discovered.config_source.ads.SetInParent()
    discovered.config_source.resource_api_version = config_source_pb2.V3
    # 0: no default, however long it takes: the listener opens when the router is there.
    discovered.config_source.initial_fetch_timeout.SetInParent()
    discovered.type_urls.append(_LUA)
    if settings.on_demand_clusters:
        manager.http_filters.append(_on_demand(settings))
    router = manager.http_filters.add(name="envoy.filters.http.router")
    router.typed_config.Pack(router_pb2.Router(suppress_envoy_headers=True), deterministic=True)


def _on_demand(settings: DataPlaneSettings) -> http_connection_manager_pb2.HttpFilter:
    # After the model router: what that chose is what is asked for, and it lets go of a request only when it has chosen.
    demand = on_demand_pb2.OnDemand()
    demand.odcds.source.ads.SetInParent()
    demand.odcds.source.resource_api_version = config_source_pb2.V3
    demand.odcds.timeout.CopyFrom(seconds(settings.on_demand_timeout))
    http_filter = http_connection_manager_pb2.HttpFilter(name="envoy.filters.http.on_demand")
    http_filter.typed_config.Pack(demand, deterministic=True)
    return http_filter


def _grpc_manager(settings: DataPlaneSettings) -> _HCM:
    manager = _manager(GRPC_LISTENER, GRPC_ROUTER, settings)
    manager.codec_type = _HCM.HTTP2
    routes = manager.route_config.virtual_hosts.add(name=GRPC_LISTENER, domains=["*"]).routes
    # Pure reads, which may be sent twice: what a retry finds is what the first attempt would have found.
    for path in (PREDICTION, GET_MODEL_STATUS):
        route = _route(path, Protocol.GRPC, settings)
        _retry(route, "connect-failure,refused-stream,reset,unavailable", settings)
        if path == PREDICTION:
            routes.append(_mirrored(route))
        routes.append(route)
    # SessionRun may run any op, one that changes state too: it is repeated only where no server has begun it.
    route = _route(SESSION_RUN, Protocol.GRPC, settings)
    _retry(route, "connect-failure,refused-stream", settings)
    routes.append(route)
    manager.route_config.name = GRPC_LISTENER
    manager.local_reply_config.CopyFrom(local_replies.grpc(settings))
    return manager


def _rest_manager(settings: DataPlaneSettings) -> _HCM:
    manager = _manager(REST_LISTENER, REST_ROUTER, settings)
    manager.codec_type = _HCM.AUTO
    manager.route_config.name = REST_LISTENER
    route = _route("/", Protocol.REST, settings)
    # Everything that the REST API offers is a pure read. 503 is TF Serving's UNAVAILABLE.
    _retry(route, "connect-failure,refused-stream,reset,retriable-status-codes", settings)
    route.route.retry_policy.retriable_status_codes.append(503)
    manager.route_config.virtual_hosts.add(name=REST_LISTENER, domains=["*"]).routes.extend((_mirrored(route), route))
    manager.local_reply_config.CopyFrom(local_replies.rest(settings))
    return manager


def _route(prefix: str, protocol: Protocol, settings: DataPlaneSettings) -> _Route:
    route = _Route()
    route.match.prefix = prefix
    # gRPC: the router waits for the whole body. REST: a larger body passes, but without retries.
    route.request_body_buffer_limit.value = settings.max_request_bytes
    action = route.route
    action.cluster_header = CLUSTER_HEADER
    action.cluster_not_found_response_code = route_components_pb2.RouteAction.NOT_FOUND
    # 0: no limit of ours; the client's own deadline holds, for retries and all.
    action.timeout.SetInParent()
    if protocol is Protocol.GRPC:
        action.max_stream_duration.grpc_timeout_header_max.SetInParent()
    return route


def _mirrored(route: _Route) -> _Route:
    """The same route with its mirror policies, for the requests of which the model router wants copies. Not for all: a
    policy copies the headers of every request on its route, wherever its cluster_header points."""
    mirrored = _Route()
    mirrored.CopyFrom(route)
    mirrored.match.headers.add(name=MIRRORED_HEADER, present_match=True)
    # Of a header that is absent, or that names a cluster which this Envoy's bootstrap has not got, nothing comes.
    for header in (SHADOW_HEADER, COMPARER_HEADER):
        mirrored.route.request_mirror_policies.add(cluster_header=header)
    return mirrored


def _retry(route: _Route, conditions: str, settings: DataPlaneSettings) -> None:
    policy = route.route.retry_policy
    policy.retry_on = conditions
    policy.num_retries.value = settings.num_retries  # 0 too: a model's policy may ask for more
    # A dead instance has no requests in flight, so least-request would pick it again and again. With two instances a
    # quarter of all draws give the other one, so many draws are needed to be sure of it, and they are cheap.
    policy.retry_host_predicate.add(name="envoy.retry_host_predicates.previous_hosts").typed_config.Pack(
        previous_hosts_pb2.PreviousHostsPredicate(), deterministic=True
    )
    policy.host_selection_retry_max_attempts = 32
    # The first retry after up to 10 ms, at random: it goes to another instance, which needn't be waited for.
    policy.retry_back_off.base_interval.CopyFrom(seconds(0.01))
    policy.retry_back_off.max_interval.CopyFrom(seconds(0.25))
