"""Golden files are written anew with MODELPLANE_REGENERATE_GOLDEN=1; read the difference before committing it."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,  # noqa: F401 - registers what an Any may hold
)
from google.protobuf import any_pb2, json_format
from hypothesis import given
from hypothesis import strategies as st

from control_plane.model import Endpoint, Handling, Health, Model, Traffic, Tuning
from control_plane.resources.clusters import Protocol, cluster, cluster_message, cluster_template
from control_plane.resources.endpoints import load_assignment, serialised_endpoints
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG, Resource, pack
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.traffic import Routing, routing_of
from control_plane.resources.translate import fleet_resources, has_rest, model_resources
from registry.policy.model import Balancing, CircuitBreaking, OutlierDetection
from registry.traffic import Mirror

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = DataPlaneSettings()
DRAINING = health_check_pb2.DRAINING

A = Endpoint("a", "10.0.0.1", 8500, 8501, zone="east", capacity=2)
B = Endpoint("b", "10.0.0.2", 8500, 0, zone="west", health=Health.DRAINING)
C = Endpoint("c", "fd00::3", 8500, 8501, zone="west", health=Health.SUSPECT)
MODEL = Model("digits/ü", ((1, (A, B)), (2, (A, C)), (3, ())), 2, pinned=True)


def unpack(resource: Resource, message: Any) -> Any:
    assert any_pb2.Any.FromString(resource.body).Unpack(message)
    return message


def by_name(resources: tuple[Resource, ...], type_url: str) -> dict[str, Resource]:
    return {resource.name: resource for resource in resources if resource.type_url == type_url}


def assignment(endpoints: tuple[Endpoint, ...]) -> endpoint_pb2.ClusterLoadAssignment:
    resource = load_assignment("m", serialised_endpoints(endpoints, Protocol.GRPC), "m")
    message = endpoint_pb2.ClusterLoadAssignment()
    unpack(resource, message)
    return message


def members(message: endpoint_pb2.ClusterLoadAssignment) -> list[endpoint_components_pb2.LbEndpoint]:
    return [entry for group in message.endpoints for entry in group.lb_endpoints]


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("MODELPLANE_REGENERATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{name} differs; see this module's docstring"


def as_json(resource: Resource) -> str:
    wrapped = any_pb2.Any.FromString(resource.body)
    return f"// {resource.name}\n{json_format.MessageToJson(wrapped, indent=1, ensure_ascii=False)}\n"


def test_golden_model() -> None:
    resources = model_resources(MODEL, SETTINGS)
    assignments = by_name(resources, CLUSTER_LOAD_ASSIGNMENT).values()
    compare("load_assignments.txt", "".join(map(as_json, assignments)))
    clusters = by_name(resources, CLUSTER)
    compare("clusters.txt", as_json(clusters["digits/%C3%BC"]) + as_json(clusters["@rest/digits/%C3%BC"]))


def test_golden_listeners() -> None:
    for listener in fleet_resources({}, SETTINGS)[:2]:
        compare(f"listener_{listener.name}.txt", as_json(listener))


def test_a_model_has_a_pair_for_each_version_and_one_for_none() -> None:
    resources = model_resources(MODEL, SETTINGS)
    names = {f"digits/%C3%BC{version}" for version in ("", "@1", "@2", "@3")}
    expected = names | {f"@rest/{name}" for name in names}
    assert set(by_name(resources, CLUSTER)) == set(by_name(resources, CLUSTER_LOAD_ASSIGNMENT)) == expected
    assert {resource.model for resource in resources} == {"digits/ü"}


def test_requests_without_a_version_go_to_the_served_one() -> None:
    assignments = by_name(model_resources(MODEL, SETTINGS), CLUSTER_LOAD_ASSIGNMENT)

    def endpoints(name: str) -> Any:
        message = unpack(assignments[name], endpoint_pb2.ClusterLoadAssignment())
        assert message.cluster_name == name
        return message.endpoints

    def hosts(name: str, *, drained: bool = False) -> set[str]:
        rows = [entry for locality in endpoints(name) for entry in locality.lb_endpoints]
        return {row.endpoint.hostname for row in rows if (row.health_status == health_check_pb2.DRAINING) == drained}

    assert hosts("digits/%C3%BC") == hosts("digits/%C3%BC@2") != hosts("digits/%C3%BC@1")
    # Load reports name what is listed only, and it may still have requests from when its version was the served one.
    assert hosts("digits/%C3%BC", drained=True) == {"b"}
    assert len(endpoints("digits/%C3%BC@3")) == 0


def test_a_model_that_only_loads_is_known_and_has_no_endpoint() -> None:
    resources = model_resources(Model("m", ((1, ()),), None, pinned=False), SETTINGS)
    # REST too: nobody knows yet whether it will have any, and UNAVAILABLE is truer than NOT_FOUND.
    assert set(by_name(resources, CLUSTER)) == {"m", "m@1", "@rest/m", "@rest/m@1"}


def test_cluster_definitions_do_not_change_in_a_models_life() -> None:
    one = by_name(model_resources(Model("m", ((1, (A,)),), 1, pinned=False), SETTINGS), CLUSTER)
    other = by_name(model_resources(Model("m", ((1, (B, C)), (2, (A,))), 2, pinned=True), SETTINGS), CLUSTER)
    for name, resource in one.items():
        assert other[name] == resource


def test_models_without_rest_have_no_rest_clusters() -> None:
    grpc_only = Model("m", ((1, (B,)),), 1, pinned=False)
    assert not has_rest(grpc_only)
    assert set(by_name(model_resources(grpc_only, SETTINGS), CLUSTER)) == {"m", "m@1"}


def test_a_model_without_a_name_gives_nothing() -> None:
    assert model_resources(Model("", ((1, (A,)),), 1, pinned=False), SETTINGS) == ()


def test_an_address_that_envoy_would_refuse_costs_one_endpoint_only(caplog: pytest.LogCaptureFixture) -> None:
    named = Endpoint("by-name", "server.example", 8500)
    scoped = Endpoint("link-local", "fe80::1%eth0", 8500)
    assert [entry.endpoint.hostname for entry in members(assignment((named, scoped, A)))] == ["a"]
    assert "instance by-name left out: its address 'server.example' is no IP address" in caplog.text


def test_what_is_not_to_be_used_weighs_next_to_nothing_and_alone_is_refused() -> None:
    """Envoy chooses from all by weight when it has ejected all that are usable."""
    heavy = [replace(A, instance=f"a{number}", capacity=1_000_000) for number in range(4000)]
    for used in ([A], [A, C], heavy):
        message = assignment((*used, B))
        (drains,) = (one.load_balancing_weight.value for one in members(message) if one.health_status == DRAINING)
        weights = [one.load_balancing_weight.value for one in members(message) if one.health_status != DRAINING]
        assert drains == 1
        assert min(weights) >= 1000
        assert [weight / weights[0] for weight in weights] == [one.capacity / used[0].capacity for one in used]
        assert sum(weights) < 2**32, "Envoy refuses more"
        assert not message.HasField("policy")
    assert [one.load_balancing_weight.value for one in members(assignment((A, C)))] == [2, 1]
    (drop,) = assignment((B, replace(A, health=Health.UNANSWERED))).policy.drop_overloads
    assert (drop.drop_percentage.numerator, drop.drop_percentage.denominator) == (100, 0)
    assert not assignment(()).HasField("policy")


endpoints = st.builds(
    Endpoint,
    instance=st.text("abc", min_size=1, max_size=3),
    address=st.ip_addresses().map(str),
    grpc_port=st.integers(1, 65535),
    rest_port=st.integers(0, 65535),
    zone=st.sampled_from(["", "east", "west"]),
    capacity=st.integers(1, 1_000_000),
    health=st.sampled_from(Health),
)
models = st.builds(
    lambda name, versions: Model(name, tuple(sorted(versions.items())), max(versions, default=None), pinned=False),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=200),
    st.dictionaries(st.integers(0, 2**63 - 1), st.lists(endpoints, max_size=4).map(tuple), max_size=3),
)


@given(models)
def test_spliced_bytes_are_what_protobuf_serialises(model: Model) -> None:
    """Also that equal content has equal bytes: parsed and serialised again, nothing changes."""
    kinds: dict[str, Any] = {CLUSTER: cluster_pb2.Cluster, CLUSTER_LOAD_ASSIGNMENT: endpoint_pb2.ClusterLoadAssignment}
    for resource in model_resources(model, SETTINGS):
        message = unpack(resource, kinds[resource.type_url]())
        assert pack(resource.name, message, model=model.name) == resource
        wrapped = any_pb2.Any()
        wrapped.Pack(message, deterministic=True)
        assert wrapped.SerializeToString(deterministic=True) == resource.body


@pytest.mark.parametrize("protocol", Protocol)
def test_the_template_is_the_message(protocol: Protocol) -> None:
    expected = pack("m@1", cluster_message("m@1", protocol, SETTINGS), model="m")
    assert cluster("m@1", cluster_template(protocol, SETTINGS), "m") == expected


@given(st.lists(endpoints, max_size=6, unique_by=lambda endpoint: endpoint.instance), st.randoms())
def test_the_order_of_endpoints_does_not_matter(known: list[Endpoint], chance: Any) -> None:
    shuffled = list(known)
    chance.shuffle(shuffled)
    assert serialised_endpoints(tuple(known), Protocol.GRPC) == serialised_endpoints(tuple(shuffled), Protocol.GRPC)


def test_routers_hold_their_pins_and_wait_for_their_clusters() -> None:
    pins = {"m": 2, "a b": 2**63 - 1}
    routers = by_name(fleet_resources(pins, SETTINGS), EXTENSION_CONFIG)
    assert routers["model_router_grpc"].requires == {"m@2", f"a%20b@{2**63 - 1}"}
    assert routers["model_router_rest"].requires == {"@rest/m@2", f"@rest/a%20b@{2**63 - 1}"}
    for resource in routers.values():
        lua = unpack(resource, extension_pb2.TypedExtensionConfig()).typed_config
        assert lua.Unpack(message := lua_pb2.Lua())
        start = f"local PINNED = [==[\na%20b {2**63 - 1}\nm 2\n]==]\n"
        assert message.default_source_code.inline_string.startswith(start)
    assert fleet_resources(dict(reversed(pins.items())), SETTINGS) == fleet_resources(pins, SETTINGS)


def test_rest_can_be_left_out() -> None:
    names = [resource.name for resource in fleet_resources({}, DataPlaneSettings(rest_port=0))]
    assert names == ["grpc", "model_router_grpc"]


def test_ten_thousand_models_are_translated_in_seconds() -> None:
    """CPU seconds, so that a busy machine changes nothing; some 1.5 on the slow machine that this was written on."""
    members = tuple(Endpoint(f"i{number}", f"10.0.0.{number}", 8500, 8501) for number in range(4))
    fleet = [Model(f"model-{number}", ((1, members),), 1, pinned=False) for number in range(10_000)]
    began = time.process_time()
    count = sum(len(model_resources(model, SETTINGS)) for model in fleet)
    assert count == 80_000
    assert time.process_time() - began < 5


def test_a_policy_tunes_the_clusters_of_its_model_and_nothing_else() -> None:
    tuning = Tuning(Balancing.RANDOM, CircuitBreaking(7, 8), OutlierDetection(9, 2.5, 11))
    tuned = model_resources(replace(MODEL, handling=Handling(tuning=tuning)), SETTINGS)
    plain = model_resources(MODEL, SETTINGS)
    changed = [one for one, before in zip(tuned, plain, strict=True) if one != before]
    assert {one.type_url for one in changed} == {CLUSTER}
    assert len(changed) == len(by_name(plain, CLUSTER))
    for resource in changed:
        message = unpack(resource, cluster_pb2.Cluster())
        (limits,) = message.circuit_breakers.thresholds
        assert message.lb_policy == cluster_pb2.Cluster.RANDOM
        assert (limits.max_requests.value, limits.max_pending_requests.value, limits.max_connections.value) == (7, 7, 8)
        outliers = message.outlier_detection
        assert (outliers.consecutive_5xx.value, outliers.max_ejection_percent.value) == (9, 11)
        assert outliers.base_ejection_time.ToTimedelta().total_seconds() == 2.5
    for handling in (Handling(1.0, 2, 3), Handling(tuning=Tuning(circuit_breaking=CircuitBreaking()))):
        assert model_resources(replace(MODEL, handling=handling), SETTINGS) == plain


def test_the_routers_grow_only_with_what_the_models_need() -> None:
    plain = fleet_resources({"m": 2}, SETTINGS)
    routing = Routing("weights=3*9,4*1", frozenset({3, 4}))
    routed = fleet_resources({"m": 2}, SETTINGS, {"a b": routing})
    assert [one.name for one, before in zip(routed, plain, strict=True) if one != before] == [
        "model_router_grpc",
        "model_router_rest",
    ]
    grpc, rest = routed[2:]
    assert grpc.requires == {"m@2", "a%20b@3", "a%20b@4"}
    assert rest.requires == {"@rest/m@2", "@rest/a%20b@3", "@rest/a%20b@4"}
    assert len(grpc.body) - len(plain[2].body) == len("a%20b weights=3*9,4*1\n")


@given(
    st.builds(
        Traffic,
        st.dictionaries(st.integers(0, 2**63 - 1), st.integers(1, 2**31), max_size=3).map(lambda d: tuple(d.items())),
        st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3).map(lambda d: tuple(d.items())),
        st.text(max_size=5),
        st.lists(st.builds(Mirror, st.floats(0, 100), st.text(max_size=5), st.none() | st.integers(0, 9))).map(tuple),
        st.floats(0, 1),
        st.floats(0, 1),
        st.none() | st.just((3, 4)),
    ),
    st.booleans(),
)
def test_no_record_can_break_out_of_its_line(traffic: Traffic, pinned: bool) -> None:
    routing = routing_of(replace(MODEL, traffic=traffic, pinned=pinned), lambda _: 1)
    if routing is not None:
        assert re.fullmatch(r"(\w+=[!-~]+)(;\w+=[!-~]+)*", routing.line)
        assert "]" not in routing.line
