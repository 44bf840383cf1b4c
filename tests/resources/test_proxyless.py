"""What gRPC clients without a proxy are told. Golden files: see test_translate.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from hypothesis import given
from hypothesis import strategies as st

from control_plane.model import Endpoint, Handling, Health, Model, Tuning
from control_plane.resources.names import encode_model, grpc_cluster, grpc_target, read_name
from control_plane.resources.proxyless import (
    MAX_WEIGHTS,
    answering,
    common_resources,
    listener_message,
    load_assignment_message,
    proxyless_resources,
    unknown_listener,
)
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER
from control_plane.resources.settings import DataPlaneSettings
from registry.policy.model import CircuitBreaking
from tests.resources.test_translate import MODEL, as_json, by_name, compare, endpoints, models, unpack

SETTINGS = DataPlaneSettings()
A, B, C = (Endpoint(name, f"10.0.0.{number}", 8500) for number, name in enumerate("abc", 1))


def test_golden() -> None:
    resources = proxyless_resources(MODEL, SETTINGS)
    name = "digits/%C3%BC"
    one = "".join(as_json(by_name(resources, kind)[name]) for kind in (LISTENER, CLUSTER))
    assignments = "".join(map(as_json, by_name(resources, CLUSTER_LOAD_ASSIGNMENT).values()))
    none = as_json(unknown_listener("nope", "nope")) + "".join(map(as_json, common_resources(SETTINGS)))
    compare("proxyless.txt", one + assignments + none)


def test_each_name_has_a_listener_a_cluster_and_a_load_assignment() -> None:
    resources = proxyless_resources(MODEL, SETTINGS)
    names = {f"digits/%C3%BC{version}" for version in ("", "@1", "@2", "@3")}
    for kind in (LISTENER, CLUSTER, CLUSTER_LOAD_ASSIGNMENT):
        assert set(by_name(resources, kind)) == names
    assert {resource.model for resource in resources} == {MODEL.name}
    assert proxyless_resources(Model("", ((1, (A,)),), 1, pinned=False), SETTINGS) == ()


@given(models)
def test_equal_models_give_equal_bytes_and_only_load_assignments_vary(model: Model) -> None:
    resources = proxyless_resources(model, SETTINGS)
    assert resources == proxyless_resources(model, SETTINGS)
    empty = Model(model.name, tuple((version, ()) for version, _ in model.versions), None, pinned=False)
    fixed = {resource for resource in resources if resource.type_url != CLUSTER_LOAD_ASSIGNMENT}
    assert fixed < set(proxyless_resources(empty, SETTINGS))


@given(st.lists(endpoints, max_size=6, unique_by=lambda endpoint: endpoint.instance), st.randoms())
def test_grpc_takes_every_load_assignment(known: list[Endpoint], chance: Any) -> None:
    """What C-core's parser refuses: an address or a locality twice, weights that are 0 or too much together."""
    message = load_assignment_message("m", known)
    addresses = [
        entry.endpoint.address.SerializeToString() for group in message.endpoints for entry in group.lb_endpoints
    ]
    localities = [group.locality.SerializeToString() for group in message.endpoints]
    assert len(set(addresses)) == len(addresses) == len(set(localities)) == len(localities)
    weights = [group.load_balancing_weight.value for group in message.endpoints]
    assert all(weights)
    assert sum(weights) <= MAX_WEIGHTS
    chance.shuffle(known)
    assert load_assignment_message("m", known) == message


def test_weights_that_add_up_to_too_much_are_scaled() -> None:
    many = [Endpoint(str(number), f"10.0.0.{number}", 1, capacity=2**31 * (1 + number % 2)) for number in range(8)]
    weights = [group.load_balancing_weight.value for group in load_assignment_message("m", many).endpoints]
    assert sum(weights) <= MAX_WEIGHTS
    assert max(weights) == pytest.approx(2 * min(weights), rel=0.01)


def test_of_two_instances_at_one_address_the_better_one_counts() -> None:
    old, new = Endpoint("old", "10.0.0.1", 1, health=Health.DRAINING), Endpoint("new", "10.0.0.1", 1, capacity=5)
    (group,) = load_assignment_message("m", (old, new)).endpoints
    assert (group.lb_endpoints[0].endpoint.hostname, group.load_balancing_weight.value) == ("new", 5)


def _endpoints(model: Model, name: str) -> list[str]:
    resource = by_name(proxyless_resources(model, SETTINGS), CLUSTER_LOAD_ASSIGNMENT)[name]
    message = unpack(resource, endpoint_pb2.ClusterLoadAssignment())
    return [entry.endpoint.hostname for group in message.endpoints for entry in group.lb_endpoints]


def test_without_a_version_only_instances_that_would_answer_with_the_served_one_are_asked() -> None:
    switching = Model("m", ((1, (A, B, C)), (2, (C,))), 1, pinned=True)
    assert _endpoints(switching, "m") == ["a", "b"]
    assert _endpoints(switching, "m@1") == ["a", "b", "c"], "who names the version may go anywhere"
    switched = Model("m", ((1, (A, B, C)), (2, (B, C))), 2, pinned=True)
    assert _endpoints(switched, "m") == ["b", "c"]


def test_an_answer_of_a_newer_version_is_better_than_none() -> None:
    model = Model("m", ((1, (A, B)), (2, (A,)), (3, (B,))), 1, pinned=True)
    assert answering(model) == (A, B)
    draining = Endpoint("a", "10.0.0.1", 8500, health=Health.DRAINING)
    model = Model("m", ((1, (draining, B)), (2, (B,))), 1, pinned=True)
    assert answering(model) == (draining, B), "what drains answers nobody"
    assert answering(Model("m", ((1, ()),), None, pinned=False)) == ()


def test_targets_for_awkward_names() -> None:
    assert grpc_target("half_plus_two") == "xds:///half_plus_two"
    assert grpc_target("digits", 2) == "xds:///digits@2"
    assert grpc_target("a@b/ü", 1) == "xds:///a%2540b/%25C3%25BC@1"


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), st.none() | st.integers(0, 2**63 - 1))
def test_a_target_names_its_cluster(model: str, version: int | None) -> None:
    asked = unquote(grpc_target(model, version).removeprefix("xds:///"))
    assert asked == grpc_cluster(model, version)
    assert read_name(asked) == (model, asked)
    if "@" not in model and "%" not in model:
        assert read_name(grpc_cluster(model, version).replace(encode_model(model), model)) == (model, asked)


def test_a_policy_reaches_these_clients_as_far_as_they_can_be_told() -> None:
    handling = Handling(1.5, 0, 100, Tuning(circuit_breaking=CircuitBreaking(max_requests=7)))
    plain = {(one.type_url, one.name): one for one in proxyless_resources(MODEL, SETTINGS)}
    for resource in proxyless_resources(replace(MODEL, handling=handling), SETTINGS):
        before = plain[resource.type_url, resource.name]
        assert (resource == before) == (resource.type_url == CLUSTER_LOAD_ASSIGNMENT)
    name = "digits"
    message = listener_message(name, name, DataPlaneSettings(num_retries=0), 1.5)
    manager = http_connection_manager_pb2.HttpConnectionManager()
    assert message.api_listener.api_listener.Unpack(manager)
    routes = manager.route_config.virtual_hosts[0].routes
    durations = [one.route.max_stream_duration.max_stream_duration.ToTimedelta().total_seconds() for one in routes]
    assert durations == [1.5, 0, 1.5, 0], "a status and what is refused have no limit"
    assert not any(one.route.HasField("retry_policy") for one in routes)
