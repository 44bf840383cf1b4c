"""envoy-data-plane is an independent implementation of the same messages: what we emit must read the same there."""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpConnectionManager
from google.protobuf import any_pb2

from control_plane.model import Endpoint, Health, Model
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG, LISTENER
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.translate import fleet_resources, model_resources

KINDS: dict[str, tuple[Any, Any]] = {
    CLUSTER: (cluster_pb2.Cluster, Cluster),
    CLUSTER_LOAD_ASSIGNMENT: (endpoint_pb2.ClusterLoadAssignment, ClusterLoadAssignment),
    LISTENER: (listener_pb2.Listener, Listener),
    EXTENSION_CONFIG: (extension_pb2.TypedExtensionConfig, TypedExtensionConfig),
}


def test_both_read_the_same() -> None:
    east = Endpoint("a", "10.0.0.1", 8500, 8501, zone="east", capacity=3)
    west = Endpoint("b", "10.0.0.2", 8500, 8501, zone="west", health=Health.DRAINING)
    model = Model("digits/ü", ((1, (east, west)), (2, (east,))), 2, pinned=True)
    settings = DataPlaneSettings()
    for resource in (*model_resources(model, settings), *fleet_resources({"digits/ü": 2}, settings)):
        wrapped = any_pb2.Any.FromString(resource.body)
        google_type, other_type = KINDS[resource.type_url]
        google, other = google_type.FromString(wrapped.value), other_type.parse(wrapped.value)
        # Written by the one and read by the other again, so that nothing was lost on the way.
        assert google_type.FromString(bytes(other)) == google, resource.name
        assert getattr(other, "name", "") or other.cluster_name == resource.name


def test_the_fields_mean_the_same() -> None:
    endpoint = Endpoint("a", "10.0.0.1", 8500, zone="east", capacity=3, health=Health.DRAINING)
    resources = model_resources(Model("m", ((7, (endpoint,)),), 7, pinned=False), DataPlaneSettings())
    assignment = next(item for item in resources if item.type_url == CLUSTER_LOAD_ASSIGNMENT and item.name == "m@7")
    read = ClusterLoadAssignment.parse(any_pb2.Any.FromString(assignment.body).value)
    member = read.endpoints[0].lb_endpoints[0]
    assert (read.cluster_name, read.endpoints[0].locality.zone) == ("m@7", "east")
    assert member.endpoint.address.socket_address.address == "10.0.0.1"
    assert member.endpoint.address.socket_address.port_value == 8500
    assert (member.health_status.name, member.load_balancing_weight) == ("DRAINING", 3)

    listener = fleet_resources({}, DataPlaneSettings())[0]
    manager = Listener.parse(any_pb2.Any.FromString(listener.body).value).filter_chains[0].filters[0].typed_config
    read_manager = HttpConnectionManager.parse(manager.value)
    assert read_manager.route_config.virtual_hosts[0].routes[0].route.cluster_header == "x-modelplane-cluster"
    google_manager = http_connection_manager_pb2.HttpConnectionManager.FromString(manager.value)
    assert len(read_manager.local_reply_config.mappers) == len(google_manager.local_reply_config.mappers)
