"""Resources for gRPC clients without a proxy: `grpc.insecure_channel("xds:///MODEL")`, gRPC's own xDS client.

Invariants: a model's listeners and clusters depend on its name, the settings and its policy only, and all that varies
by itself is in its load assignments; a client and an Envoy that hold the same registry revision send the same shares
to the same instances.

What gRPC makes of these messages: gRFC A27 (listener, cluster, load assignment, load reports), A28 (routes), A32 (limit
of requests in flight), A33 (answers of its own), A44 (retries). It has no filter that could read a request's body, so a
client says by its target which model its requests are for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

from control_plane.model import Endpoint, Handling, Health, Model
from control_plane.resources.clusters import Protocol, seconds
from control_plane.resources.endpoints import HEALTH, port_of, usable_endpoints
from control_plane.resources.listeners import GET_MODEL_STATUS, PREDICTION, SESSION_RUN
from control_plane.resources.local_replies import NOT_FOUND, UNIMPLEMENTED
from control_plane.resources.names import NOWHERE, grpc_cluster
from control_plane.resources.resource import Resource, pack
from control_plane.resources.settings import DataPlaneSettings
from registry.addresses import join_address

_HCM: TypeAlias = http_connection_manager_pb2.HttpConnectionManager
_FAULT = "envoy.filters.http.fault"

MAX_WEIGHTS = 2**32 - 1
"""gRFC A27: a client refuses a load assignment of which the localities' weights add up to more."""

_PREFERENCE = (Health.READY, Health.SUSPECT, Health.FAILING, Health.UNANSWERED, Health.DRAINING)


def proxyless_resources(model: Model, settings: DataPlaneSettings) -> tuple[Resource, ...]:
    """A listener, a cluster and a load assignment of one name for `MODEL`, and three for each `MODEL@VERSION`.

    `MODEL` is for requests that name no version, `MODEL@VERSION` for those that name this one. Names are those of the
    Envoy's clusters (names.py), so both data planes' load reports and errors speak of the same things.
    """
    if not model.name:
        return ()
    settings = _settings_of(model.handling, settings)
    resources: list[Resource] = []
    for version in (None, *(version for version, _ in model.versions)):
        name = grpc_cluster(model.name, version)
        endpoints = answering(model) if version is None else model.endpoints(version)
        resources.append(_listener_resource(name, name, model, settings))
        resources += _pair(name, endpoints, settings, model.name)
    return tuple(resources)


def _pair(
    name: str, endpoints: Iterable[Endpoint], settings: DataPlaneSettings, model: str = ""
) -> tuple[Resource, Resource]:
    assignment = load_assignment_message(name, endpoints)
    return pack(name, cluster_message(name, settings), model=model), pack(name, assignment, model=model)


def common_resources(settings: DataPlaneSettings) -> tuple[Resource, ...]:
    """What all of these clients share: the cluster that has no instance."""
    return _pair(NOWHERE, (), settings)


def listener(name: str, cluster: str, model: Model, settings: DataPlaneSettings) -> Resource:
    """A listener by any name that leads to a model's cluster."""
    return _listener_resource(name, cluster, model, _settings_of(model.handling, settings))


def _listener_resource(name: str, cluster: str, model: Model, settings: DataPlaneSettings) -> Resource:
    message = listener_message(name, cluster, settings, model.handling.timeout)
    return pack(name, message, model=model.name)


@lru_cache(maxsize=1024)
def _settings_of(handling: Handling, settings: DataPlaneSettings) -> DataPlaneSettings:
    """The fleet's settings with what the model's policy says instead, of what these clients know."""
    breaking = handling.tuning.circuit_breaking
    if breaking is not None and breaking.max_requests is not None:
        settings = replace(settings, max_requests=breaking.max_requests)
    return settings if handling.retries is None else replace(settings, num_retries=handling.retries)


def unknown_listener(name: str, model: str) -> Resource:
    """A listener for a name that nothing stands behind."""
    return pack(name, unknown_listener_message(name), model=model)


def answering(model: Model) -> tuple[Endpoint, ...]:
    """The endpoints of the served version that answer with it a request which names none.

    Envoy writes the served version into such a request where an instance may hold several. Nobody can for a client
    without a proxy, and TensorFlow Serving then answers with the newest version that the instance has. So it is sent
    only to instances that have nothing newer; to any that has the served version if there is none such, for an answer
    of a newer version, which that instance has ready too, is better than none.
    """
    served = model.endpoints(None)
    newer = {
        endpoint.instance
        for version, endpoints in model.versions
        if model.served is not None and version > model.served
        for endpoint in endpoints
    }
    exact = tuple(endpoint for endpoint in served if endpoint.instance not in newer)
    if any(endpoint.health not in (Health.DRAINING, Health.UNANSWERED) for endpoint in exact):
        return exact
    return served


def load_assignment_message(name: str, endpoints: Iterable[Endpoint]) -> endpoint_pb2.ClusterLoadAssignment:
    """One locality per address, which its `sub_zone` names as HOST:PORT.

    gRPC's round robin knows no weights of endpoints, but weights of localities (gRFC A27): with one instance in each,
    its capacity is its share, as with Envoy. And a client reports its load per locality, so it says how many requests
    it has in flight on an instance (load_ledger.py).
    """
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    members = _one_per_address(endpoints)
    total = sum(_weight(member) for member in members)
    scale = total // MAX_WEIGHTS + 1
    for member in members:
        port = port_of(member, Protocol.GRPC)
        locality = assignment.endpoints.add()
        locality.locality.zone = member.zone
        locality.locality.sub_zone = join_address(member.address, port)
        # Without a weight the client would leave the locality out.
        locality.load_balancing_weight.value = max(1, _weight(member) // scale)
        entry = locality.lb_endpoints.add()
        address = entry.endpoint.address.socket_address
        address.address, address.port_value = member.address, port
        entry.endpoint.hostname = member.instance
        entry.health_status = HEALTH[member.health]
    return assignment


def _one_per_address(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    # gRPC refuses an assignment that names an address twice. It happens when an instance is started again under another
    # name and its old lease has not run out.
    best: dict[tuple[str, int], Endpoint] = {}
    for endpoint in sorted(usable_endpoints(endpoints, Protocol.GRPC), key=lambda one: _PREFERENCE.index(one.health)):
        best.setdefault((endpoint.address, endpoint.grpc_port), endpoint)
    return sorted(best.values(), key=lambda endpoint: (endpoint.zone, endpoint.instance, endpoint.address))


def _weight(endpoint: Endpoint) -> int:
    return max(1, endpoint.capacity)


def cluster_message(name: str, settings: DataPlaneSettings) -> cluster_pb2.Cluster:
    """A cluster whose load assignment has its name."""
    cluster = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS)
    eds = cluster.eds_cluster_config.eds_config
    eds.ads.SetInParent()
    eds.resource_api_version = config_source_pb2.V3
    # Of what C-core, Go and Java all have (C-core has no least request): localities by weight, at random. No outlier
    # detection: gRPC's counts every status but OK as the instance's failure (gRFC A50), a client's own broken input
    # too. A connection that fails is left out without it.
    cluster.lb_policy = cluster_pb2.Cluster.ROUND_ROBIN
    # Without it 1024 (gRFC A32).
    cluster.circuit_breakers.thresholds.add().max_requests.value = settings.max_requests
    # Load reports to the control plane that the cluster came from.
    cluster.lrs_server.self.SetInParent()
    return cluster


def listener_message(
    name: str, cluster: str, settings: DataPlaneSettings, timeout: float | None = None
) -> listener_pb2.Listener:
    """What a client's target names: the routes to a cluster. `timeout`: seconds that a request may take."""
    manager = _HCM()
    routes = manager.route_config.virtual_hosts.add(name=name, domains=["*"]).routes
    for path, repeatable in ((PREDICTION, True), (GET_MODEL_STATUS, True), (SESSION_RUN, False)):
        route = routes.add()
        route.match.prefix = path
        route.route.cluster = cluster
        if timeout is not None and path != GET_MODEL_STATUS:
            route.route.max_stream_duration.max_stream_duration.CopyFrom(seconds(timeout))  # gRFC A31
        if repeatable and settings.num_retries:
            _retry(route.route.retry_policy, settings)
    # As with Envoy: a reload of one instance's config, say, is no request to a model.
    rest = routes.add()
    rest.match.prefix = ""
    rest.route.cluster = cluster
    rest.typed_per_filter_config[_FAULT].Pack(_answer(UNIMPLEMENTED), deterministic=True)
    return _listener(name, manager, fault_pb2.HTTPFault())


def unknown_listener_message(name: str) -> listener_pb2.Listener:
    """One that answers every request with NOT_FOUND."""
    manager = _HCM()
    route = manager.route_config.virtual_hosts.add(name=name, domains=["*"]).routes.add()
    route.match.prefix = ""
    # There must be a cluster, and a client that asked in vain for one would wait for it.
    route.route.cluster = NOWHERE
    return _listener(name, manager, _answer(NOT_FOUND))


def _answer(code: int) -> fault_pb2.HTTPFault:
    # gRPC has no other way to answer by itself. The text is always "Fault injected".
    fault = fault_pb2.HTTPFault()
    fault.abort.grpc_status = code
    fault.abort.percentage.numerator = 100
    return fault


def _listener(name: str, manager: _HCM, fault: fault_pb2.HTTPFault) -> listener_pb2.Listener:
    manager.route_config.name = name
    manager.http_filters.add(name=_FAULT).typed_config.Pack(fault, deterministic=True)
    manager.http_filters.add(name="envoy.filters.http.router").typed_config.Pack(router_pb2.Router())
    message = listener_pb2.Listener(name=name)
    message.api_listener.api_listener.Pack(manager, deterministic=True)
    return message


def _retry(policy: route_components_pb2.RetryPolicy, settings: DataPlaneSettings) -> None:
    # gRFC A44 knows this condition of those that Envoy is given; a connection that breaks is UNAVAILABLE too.
    policy.retry_on = "unavailable"
    policy.num_retries.value = settings.num_retries
    policy.retry_back_off.base_interval.CopyFrom(seconds(0.01))
    policy.retry_back_off.max_interval.CopyFrom(seconds(0.25))
