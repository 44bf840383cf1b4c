"""The table for gRPC clients is filled as it is asked, and not a resource more."""

from __future__ import annotations

from typing import Any

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import any_pb2

from control_plane.model import Endpoint, Health, Model
from control_plane.proxyless_view import ProxylessView
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER
from control_plane.resources.settings import DataPlaneSettings

A = Endpoint("a", "10.0.0.1", 8500)


def model(name: str, *versions: int, health: Health = Health.READY) -> Model:
    endpoint = Endpoint("a", "10.0.0.1", 8500, health=health)
    return Model(name, tuple((version, (endpoint,)) for version in versions), max(versions), pinned=False)


def names(view: ProxylessView, kind: str = LISTENER) -> set[str]:
    return set(view.table.entries(kind)) - {"@nowhere"}


def leads_to(view: ProxylessView, name: str) -> str:
    resource = view.table.get(LISTENER, name)
    assert resource is not None
    wrapped, listener = any_pb2.Any.FromString(resource.body), listener_pb2.Listener()
    assert wrapped.Unpack(listener)
    manager: Any = http_connection_manager_pb2.HttpConnectionManager()
    assert listener.api_listener.api_listener.Unpack(manager)
    return str(manager.route_config.virtual_hosts[0].routes[0].route.cluster)


class World:
    def __init__(self, **limits: int) -> None:
        self.models: dict[str, Model] = {}
        self.view = ProxylessView(self.models, DataPlaneSettings(), **limits)
        self.revision = 0

    def put(self, *models: Model) -> int:
        self.revision += 1
        self.models.update({model.name: model for model in models})
        return len(self.view.update([model.name for model in models], self.revision).changes)

    def remove(self, name: str) -> None:
        self.revision += 1
        del self.models[name]
        self.view.update([name], self.revision)

    def ask(self, *asked: str, kind: str = LISTENER) -> bool:
        return self.view.ask(kind, asked, self.revision) is not None


def test_nothing_is_made_of_what_nobody_asked_for() -> None:
    world = World()
    assert world.put(*(model(f"m{number}", 1) for number in range(100))) == 0
    assert names(world.view) == set()
    assert world.ask("m1")
    assert names(world.view) == {"m1", "m1@1"}
    assert names(world.view, CLUSTER) == names(world.view, CLUSTER_LOAD_ASSIGNMENT) == {"m1", "m1@1"}
    assert world.put(*(model(f"m{number}", 1, health=Health.DRAINING) for number in range(100))) == 2
    assert world.view.table.revision == world.revision


def test_what_was_asked_once_is_no_news() -> None:
    world = World()
    world.put(model("m", 1))
    assert world.ask("m", "m@1")
    assert not world.ask("m")
    assert not world.ask("m", kind=CLUSTER)
    assert not world.ask("*")


def test_a_client_that_begins_with_what_it_holds_is_known() -> None:
    world = World()
    world.put(model("m", 1))
    assert world.ask("m@1", kind=CLUSTER_LOAD_ASSIGNMENT)
    assert names(world.view) == {"m", "m@1"}
    assert not world.ask("nope", "@nowhere", kind=CLUSTER)


def test_an_unknown_model_has_a_listener_that_leads_nowhere_until_it_appears() -> None:
    world = World()
    assert world.ask("m", "m@2", "n")
    assert {name: leads_to(world.view, name) for name in names(world.view)} == dict.fromkeys(
        ("m", "m@2", "n"), "@nowhere"
    )
    world.put(model("m", 1))
    assert leads_to(world.view, "m") == "m"
    assert leads_to(world.view, "m@2") == "@nowhere"
    world.put(model("m", 2))
    assert leads_to(world.view, "m@2") == "m@2"
    assert names(world.view) == {"m", "m@2", "n"}


def test_a_model_that_goes_takes_all_but_the_names_asked_for() -> None:
    world = World()
    world.put(model("m", 1, 2))
    world.ask("m")
    world.remove("m")
    assert names(world.view) == {"m"}
    assert leads_to(world.view, "m") == "@nowhere"
    assert names(world.view, CLUSTER) == names(world.view, CLUSTER_LOAD_ASSIGNMENT) == set()
    world.put(model("m", 1))
    assert leads_to(world.view, "m") == "m"


def test_a_name_may_be_spelled_plainly() -> None:
    world = World()
    world.put(model("digits/ü", 1))
    world.ask("digits/ü", "digits/ü@1", "digits/ü@01")
    assert leads_to(world.view, "digits/ü") == "digits/%C3%BC"
    assert leads_to(world.view, "digits/ü@1") == "digits/%C3%BC@1"
    assert leads_to(world.view, "digits/ü@01") == "@nowhere"
    world.remove("digits/ü")
    assert leads_to(world.view, "digits/ü@1") == "@nowhere"


def test_unknown_names_are_forgotten_when_there_are_too_many() -> None:
    world = World(most_unknown=3)
    world.put(model("m", 1))
    for number in range(10):
        world.ask(f"nope-{number}", f"m@{number}")
    # m@1 is known, and stays.
    assert names(world.view) == {"m", "m@1", "nope-8", "nope-9", "m@9"}
    assert world.ask("nope-0")
    assert "nope-0" in names(world.view)
    assert "nope-8" not in names(world.view)
    world.put(model("nope-0", 1))
    assert leads_to(world.view, "nope-0") == "nope-0"
