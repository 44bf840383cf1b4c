"""What policies and traffic records make of a model. No I/O."""

from __future__ import annotations

import logging
from itertools import permutations

import pytest

from control_plane.catalog import Catalog
from control_plane.model import Handling, Traffic, Tuning
from control_plane.routes import Routes
from registry.follow import Changes, Snapshot
from registry.keys import PolicyKey, TrafficKey
from registry.policy.model import Balancing
from registry.records import ReadyState
from registry.traffic import Mirror
from tests.control_plane.test_catalog import SPACE, Registry, instance, policy, ready, traffic

READY, LOADING, DRAINING, FAILING = (ReadyState[name] for name in ("READY", "LOADING", "DRAINING", "FAILING"))


def weights(registry: Registry) -> dict[int, int]:
    shared = registry.model().traffic
    assert shared is not None
    return dict(shared.weights)


def test_weights_hold_for_the_versions_that_can_answer_and_never_for_another() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 3, "a"), ready("m", 4, "a"), ready("m", 5, "a"))
    assert registry.put(traffic("m", {3: 90, 4: 10, 6: 50})) == {"m"}
    assert weights(registry) == {3: 90, 4: 10}
    assert (registry.model().served, registry.model().pinned) == (3, True)
    registry.put(ready("m", 3, "a", DRAINING))
    assert weights(registry) == {4: 10}, "its share goes to the others"
    registry.put(ready("m", 4, "a", FAILING))
    assert weights(registry) == {4: 10}, "an instance's own error is better than none"
    registry.put(ready("m", 4, "a", LOADING))
    assert weights(registry) == {}
    assert registry.model().pinned is False, "else an unpinned version would answer"
    assert [one.health.name for one in registry.model().endpoints(None)] == ["DRAINING"]
    assert registry.delete(traffic("m", {})) == {"m"}
    assert (registry.model().served, registry.model().traffic) == (5, None)


def test_one_known_version_needs_no_pin_unless_a_server_may_hold_several() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 3, "a"), traffic("m", {3: 1}))
    assert not registry.model().pinned
    registry.put(ready("m", 4, "a", LOADING))
    assert registry.model().pinned
    registry.delete(ready("m", 4, "a"))
    registry.put(ready("m", 3, "a", several=True))
    assert registry.model().pinned


def test_a_model_that_only_its_traffic_tells_of_is_known() -> None:
    registry = Registry()
    assert registry.put(traffic("m", {3: 1})) == {"m"}
    assert (registry.model().versions, registry.model().pinned) == ((), False)
    assert registry.put(policy("n", retries={"attempts": 1})) == frozenset(), "a policy alone makes none"


def test_a_policy_changes_how_requests_are_handled() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 3, "a"))
    spec = {"timeout": "2s", "retries": {"attempts": 1}, "maxRequestBytes": "1MiB", "balancing": "random"}
    assert registry.put(policy("m", **spec)) == {"m"}
    assert registry.model().handling == Handling(2.0, 1, 1024 * 1024, Tuning(Balancing.RANDOM))
    assert registry.put(policy("m", **spec, labels={"stable": 3})) == frozenset(), "labels are the leader's to resolve"


def test_an_unreadable_policy_counts_as_absent_and_traffic_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 3, "a"), policy("m", retries={"attempts": 1}), traffic("m", {3: 1}))
    bad = {SPACE.make(PolicyKey("m")): b"{", SPACE.make(TrafficKey("m")): b'{"weights":{"3":0}}'}
    with caplog.at_level(logging.ERROR):
        assert registry.put(bad) == {"m"}
        assert registry.put(bad) == frozenset()
    assert registry.model().handling == Handling()
    assert weights(registry) == {3: 1}
    assert [record.getMessage().split(" in the")[0] for record in caplog.records] == [
        "model m: its policy",
        "model m: its traffic",
    ]


def test_a_registry_that_lost_its_data_takes_no_traffic_away() -> None:
    registry = Registry()
    wanted = traffic("m", {3: 1})
    registry.put(instance("a"), ready("m", 3, "a"), ready("m", 4, "a"), wanted)
    fleet = instance("a") | ready("m", 3, "a") | ready("m", 4, "a")
    registry.catalog.apply(Changes(1, fleet, frozenset(wanted), relisted=True), 0.0)
    assert weights(registry) == {3: 1}
    registry.catalog.apply(Changes(2, {}, frozenset(wanted), relisted=False), 0.0)
    assert registry.model().traffic is None, "but an operator does"


def test_the_order_of_the_records_does_not_matter() -> None:
    entries = [ready("m", 3, "a"), ready("m", 4, "a", LOADING), policy("m", timeout="1s"), traffic("m", {3: 1, 4: 1})]
    pictures = []
    for order in permutations(entries):
        catalog = Catalog(SPACE)
        catalog.apply(Snapshot(1, instance("a")), 0.0)
        for revision, entry in enumerate(order, 2):
            catalog.apply(Changes(revision, entry, frozenset(), relisted=False), 0.0)
        pictures.append(dict(catalog.models))
    assert all(picture == pictures[0] for picture in pictures)
    assert pictures[0]["m"].traffic == Traffic(((3, 1),), between=(3, 4))


def test_the_routers_are_told_of_changes_that_concern_them_only() -> None:
    registry, routes = Registry(), Routes()

    def follow(*entries: dict[str, bytes]) -> bool:
        return routes.update(registry.put(*entries), registry.catalog.models)

    assert not follow(instance("a"), ready("m", 3, "a"), ready("n", 1, "a"))
    assert not follow(traffic("m", {3: 1}))
    assert follow(ready("m", 4, "a"))
    assert follow(traffic("m", {3: 9, 4: 1}, labels={"a b": 4, "": 3}, sticky_by="x-user"))
    assert routes.routings["m"].line == "weights=3*9,4*1;sticky=x-user;labels=a%20b*4"
    assert routes.routings["m"].versions == {3, 4}
    assert follow(traffic("m", {3: 9, 4: 1}, mirrors=(Mirror(0.5, "n"), Mirror(5, "m", 4)), sticky_by="no header"))
    assert routes.routings["m"].line == "weights=3*9,4*1;mirrors=n@1*0.005,m@4*0.05"
    assert follow(ready("n", 2, "a")), "a mirror follows the version that its model serves"
    assert routes.routings["m"].line == "weights=3*9,4*1;mirrors=n@2*0.005,m@4*0.05"
    assert follow(traffic("m", {3: 1}, observe=1, compare=0.25))
    assert not follow(ready("n", 3, "a"))
    assert follow(policy("m", timeout="1.5s", retries={"attempts": 0}, maxRequestBytes=10))
    assert routes.routings["m"].line == "weights=3*1;observe=1;timeout=1500;retries=0;largest=10"
    registry.delete(traffic("m", {}), policy("m"))
    assert routes.update(["m"], registry.catalog.models)
    assert (routes.pins, routes.routings) == ({}, {})
