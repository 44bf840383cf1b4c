"""The catalog: registry updates in, models out; and what it believes of lost leases. No I/O, no sleeping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.catalog import Catalog
from control_plane.model import Health, Model
from control_plane.suspects import Hold, SuspectPolicy, Verdict
from registry.follow import Changes, Connection, Snapshot
from registry.keys import InstanceKey, Keyspace, PlaneKey, PolicyKey, ReadyKey, SuspectsKey, TrafficKey
from registry.lost import encode_lost
from registry.policy.model import API_VERSION, KIND
from registry.policy.stored import StoredPolicy, encode_stored
from registry.records import PlaneRecord, ReadyRecord, ReadyState, encode_plane, encode_ready
from registry.traffic import TrafficRecord, encode_traffic

SPACE = Keyspace()
READY, LOADING, DRAINING = ReadyState.READY, ReadyState.LOADING, ReadyState.DRAINING
FAILING = ReadyState.FAILING


def ready(
    model: str, version: int, instance: str, state: ReadyState = READY, *, several: bool = False
) -> dict[str, bytes]:
    record = ReadyRecord(state, "10.0.0.1", 9000 + ord(instance[-1]), several_versions=several)
    return {SPACE.make(ReadyKey(model, version, instance)): encode_ready(record)}


def instance(name: str) -> dict[str, bytes]:
    return {SPACE.make(InstanceKey(name)): b"{}"}


def policy(model: str, **spec: object) -> dict[str, bytes]:
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": model}, "spec": spec}
    return {SPACE.make(PolicyKey(model)): encode_stored(StoredPolicy(document, 1))}


def traffic(model: str, weights: Mapping[int, int], **more: Any) -> dict[str, bytes]:
    return {SPACE.make(TrafficKey(model)): encode_traffic(TrafficRecord(weights, **more))}


class Registry:
    """Feeds a catalog, one revision per call."""

    def __init__(self, policy: SuspectPolicy | None = None) -> None:
        self.catalog = Catalog(SPACE, policy)
        self.revision = 1
        self.catalog.apply(Snapshot(1, {}), 0.0)

    def put(self, *entries: Mapping[str, bytes], now: float = 0.0) -> frozenset[str]:
        self.revision += 1
        merged = {key: value for entry in entries for key, value in entry.items()}
        return self.catalog.apply(Changes(self.revision, merged, frozenset(), relisted=False), now)

    def delete(self, *entries: Mapping[str, bytes], now: float = 0.0, relisted: bool = False) -> frozenset[str]:
        self.revision += 1
        keys = frozenset(key for entry in entries for key in entry)
        return self.catalog.apply(Changes(self.revision, {}, keys, relisted=relisted), now)

    def hear(self, now: float) -> None:
        """The watch tells of something that has no consequence: a replica's own record."""
        self.put({SPACE.make(PlaneKey("p")): b"{}"}, now=now)

    def model(self, name: str = "m") -> Model:
        return self.catalog.models[name]

    def instances(self, version: int | None = None, name: str = "m") -> list[str]:
        return [endpoint.instance for endpoint in self.model(name).endpoints(version)]


def test_an_announced_model_is_known_without_endpoints() -> None:
    registry = Registry()
    assert registry.put(instance("a"), ready("m", 1, "a", LOADING)) == {"m"}
    assert registry.model() == Model("m", ((1, ()),), None, pinned=False)


def test_ready_makes_an_endpoint_and_explicit_removal_takes_it_at_once() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 1, "a"))
    assert registry.instances(1) == registry.instances() == ["a"]
    assert registry.delete(ready("m", 1, "a")) == {"m"}
    assert "m" not in registry.catalog.models


def test_the_same_record_again_is_no_change() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 1, "a"))
    assert registry.put(instance("a"), ready("m", 1, "a")) == frozenset()
    assert registry.catalog.revision == registry.revision


def test_an_unreadable_record_changes_nothing() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 1, "a"))
    assert registry.put({SPACE.make(ReadyKey("m", 1, "a")): b"nonsense"}) == frozenset()
    assert registry.instances() == ["a"]


@pytest.mark.parametrize(
    ("with_new", "of", "served"), [(1, 4, 1), (2, 4, 2), (1, 2, 2), (1, 1, 2), (1, 3, 1), (2, 3, 2)]
)
def test_the_fleet_switches_once_half_of_it_has_the_new_version(with_new: int, of: int, served: int) -> None:
    registry = Registry()
    names = [f"i{n}" for n in range(of)]
    for name in names:
        registry.put(instance(name), ready("m", 1, name))
    for name in names[:with_new]:
        registry.put(ready("m", 2, name))
    assert registry.model().served == served


def test_a_switch_never_goes_back_while_instances_only_gain_the_new_version() -> None:
    registry = Registry()
    for name in "abcd":
        registry.put(instance(name), ready("m", 1, name))
    seen = []
    for name in "abcd":
        registry.put(ready("m", 2, name, LOADING))
        seen.append(registry.model().served)
        registry.put(ready("m", 2, name))
        seen.append(registry.model().served)
        registry.delete(ready("m", 1, name))
        seen.append(registry.model().served)
    assert seen == sorted(seen)
    assert seen[-1] == 2


def test_pinned_as_soon_as_a_server_may_hold_several_versions() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 1, "a"))
    assert not registry.model().pinned
    registry.put(instance("b"), ready("m", 1, "b", several=True))
    assert registry.model().pinned


def test_draining_endpoints_stay_listed_and_do_not_vote() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 1, "a"), instance("b"), ready("m", 2, "b"))
    registry.put(ready("m", 2, "b", DRAINING))
    assert registry.model().served == 1
    assert [endpoint.health for endpoint in registry.model().endpoints(2)] == [Health.DRAINING]
    assert set(registry.catalog.draining) == {"b"}
    registry.delete(ready("m", 2, "b"))
    assert registry.catalog.draining == {}
    assert [version for version, _ in registry.model().versions] == [1]


def test_a_lost_lease_is_used_on_until_the_grace_time_has_passed() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    for name in "abc":
        registry.put(instance(name), ready("m", 1, name))
    registry.delete(instance("a"), ready("m", 1, "a"), now=100)
    assert [e.health for e in registry.model().endpoints(1)] == [Health.SUSPECT, Health.READY, Health.READY]
    assert registry.catalog.next_deadline(100) == 110
    registry.hear(100.1)
    assert registry.catalog.expire(109.9) == frozenset()
    assert registry.catalog.expire(110) == {"m"}
    assert registry.instances() == ["b", "c"]
    assert registry.catalog.next_deadline(110) is None


def test_the_last_endpoint_is_never_given_up_for_a_lost_lease() -> None:
    registry = Registry(SuspectPolicy(grace=1))
    registry.put(instance("a"), ready("m", 1, "a"), instance("b"))
    registry.delete(instance("a"), ready("m", 1, "a"), now=0)
    registry.hear(1)
    assert registry.catalog.expire(1e6) == frozenset()
    assert registry.instances() == ["a"]
    assert [one.hold for one in registry.catalog.suspicions(1e6)] == [Hold.LAST]


def test_the_last_endpoint_goes_once_it_is_proved_not_to_answer_and_its_time_is_over() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    registry.put(instance("a"), ready("m", 1, "a"), instance("b"))
    registry.delete(instance("a"), ready("m", 1, "a"), now=0)
    registry.hear(1)
    assert registry.catalog.checked({"a": (Verdict.DEAD, "refuses")}) == frozenset(), "there is nowhere else to send to"
    assert registry.catalog.expire(9.9) == frozenset()
    assert registry.catalog.expire(10) == {"m"}
    assert registry.catalog.models == {}


def test_a_suspect_that_fails_its_checks_gets_nothing_new_where_another_answers() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    registry.put(*(instance(name) | ready("m", 1, name) for name in "ab"))
    registry.delete(instance("a"), ready("m", 1, "a"), now=0)
    assert registry.catalog.checked({"a": (Verdict.DEAD, "refuses"), "b": (Verdict.DEAD, "no suspect")}) == {"m"}
    assert [e.health for e in registry.model().endpoints(1)] == [Health.UNANSWERED, Health.READY]
    registry.put(ready("m", 1, "b", DRAINING))
    assert [e.health for e in registry.model().endpoints(1)] == [Health.SUSPECT, Health.DRAINING]
    registry.put(ready("m", 1, "b"))
    assert registry.catalog.checked({"a": (Verdict.ANSWERS, "")}) == {"m"}
    assert [e.health for e in registry.model().endpoints(1)] == [Health.SUSPECT, Health.READY]


def test_versions_whose_instances_do_not_answer_have_no_say_in_what_is_served() -> None:
    registry = Registry()
    registry.put(*(instance(name) | ready("m", 2 if name in "ab" else 1, name) for name in "abcd"))
    registry.delete(*(instance(name) | ready("m", 2, name) for name in "ab"))
    assert registry.model().served == 2
    registry.catalog.checked(dict.fromkeys("ab", (Verdict.DEAD, "refuses")))
    assert registry.model().served == 1


def test_a_suspect_that_answers_is_used_on_and_its_explicit_removal_acts_at_once() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    registry.put(*(instance(name) | ready("m", 1, name) for name in "abc"))
    registry.delete(instance("a"), ready("m", 1, "a"), now=0)
    registry.hear(1)
    registry.catalog.checked({"a": (Verdict.ANSWERS, "")})
    assert registry.catalog.expire(1e6) == frozenset()
    assert [one.hold for one in registry.catalog.suspicions(1e6)] == [Hold.ANSWERS]
    registry.put(instance("a"), ready("m", 1, "a"))
    registry.delete(ready("m", 1, "a"))
    assert registry.instances() == ["b", "c"]


def test_a_replica_that_starts_takes_over_what_others_hold_without_leases() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    registry.put(*(instance(name) | ready("m", 1, name) for name in "abc"))
    registry.delete(*(instance(name) | ready("m", 1, name) for name in "ab"), now=0)
    lost = encode_lost(registry.catalog.suspect_entries)
    peer = {SPACE.make(SuspectsKey("p")): lost, SPACE.make(PlaneKey("p")): encode_plane(PlaneRecord(3, suspects=2))}
    fresh = Catalog(SPACE, SuspectPolicy(grace=10))
    fresh.apply(Snapshot(9, {**instance("c"), **ready("m", 1, "c"), **peer}), 50.0)
    assert dict(fresh.models) == dict(registry.catalog.models)
    assert fresh.suspects == {"a", "b"}
    assert fresh.suspects_elsewhere == 0
    back = Catalog(SPACE)
    back.apply(Snapshot(9, {**instance("a"), **instance("c"), **peer}), 50.0)
    assert back.suspects == {"b"}, "who is back has said itself what it has"
    assert back.suspects_elsewhere == 1


def test_a_suspect_whose_address_another_instance_has_is_given_up() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    registry.put(*(instance(name) | ready("m", 1, name) for name in "ab"))
    registry.delete(instance("a"), ready("m", 1, "a"), now=0)
    registry.put(instance("heir-a"), ready("n", 1, "heir-a"), now=1)  # the address comes from the last letter
    assert registry.instances() == ["b"]
    assert registry.catalog.suspects == frozenset()


def test_an_instances_key_that_goes_before_its_servables_leaves_suspects() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 1, "a"))
    registry.delete(instance("a"))
    registry.delete(ready("m", 1, "a"))
    assert registry.catalog.suspects == {"a"}


def test_leases_lost_in_bulk_are_held_against_the_registry() -> None:
    registry = Registry(SuspectPolicy(grace=10, bulk_hold=60))
    for name in "abc":
        registry.put(instance(name), ready("m", 1, name))
    for name in "ab":
        registry.delete(instance(name), ready("m", 1, name), now=5)
    registry.hear(6)
    assert registry.catalog.expire(20) == frozenset()
    registry.put(instance("a"), ready("m", 1, "a"), now=21)  # one came back: now it is a single loss
    assert registry.catalog.expire(21) == {"m"}
    assert registry.instances() == ["a", "c"]


def test_after_the_bulk_hold_the_loss_is_believed() -> None:
    registry = Registry(SuspectPolicy(grace=10, bulk_hold=60))
    for name in "abc":
        registry.put(instance(name), ready("m", 1, name))
    for name in "ab":
        registry.delete(instance(name), ready("m", 1, name), now=5)
    registry.hear(6)
    assert registry.catalog.expire(64.9) == frozenset()
    assert registry.catalog.expire(65) == {"m"}
    assert registry.instances() == ["c"]


def test_leases_lost_in_bulk_go_at_once_where_the_monitors_said_goodbye() -> None:
    registry = Registry()
    registry.put(*(instance(name) | ready("m", 1, name) for name in "abc"))
    registry.delete(*(ready("m", 1, name) for name in "ab"))
    registry.delete(*(instance(name) for name in "ab"))
    assert registry.instances() == ["c"]
    assert registry.catalog.suspects == frozenset()


def test_nothing_is_given_up_while_the_registry_is_away() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    for name in "abc":
        registry.put(instance(name), ready("m", 1, name))
    registry.delete(instance("a"), ready("m", 1, "a"), now=0)
    registry.catalog.apply(Connection(connected=False, detail=""), 5)
    assert registry.catalog.next_deadline(5) is None
    assert registry.catalog.expire(1000) == frozenset()
    registry.hear(900)
    registry.catalog.apply(Connection(connected=True, detail=""), 1000)
    assert registry.catalog.expire(1010) == frozenset(), "nothing was heard since its return"
    registry.hear(1001)
    assert registry.catalog.expire(1009) == frozenset()
    assert registry.catalog.expire(1010) == {"m"}


def test_what_an_instance_does_not_register_again_is_dropped_though_it_is_the_last() -> None:
    registry = Registry(SuspectPolicy(grace=10, return_grace=2))
    registry.put(instance("a"), ready("m", 1, "a"), ready("n", 1, "a"))
    registry.delete(instance("a"), ready("m", 1, "a"), ready("n", 1, "a"), now=0)
    registry.put(instance("a"), ready("m", 1, "a"), now=5)
    assert registry.catalog.expire(6.9) == frozenset()
    assert registry.catalog.expire(7) == {"n"}
    assert "n" not in registry.catalog.models
    assert registry.catalog.suspects == frozenset()


def test_a_draining_instance_that_loses_its_lease_drains_on() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    draining = (instance("a"), ready("m", 1, "a", DRAINING))
    registry.put(*draining)
    before = registry.model()
    assert registry.delete(*draining, now=0) == frozenset()
    assert registry.model() == before
    assert set(registry.catalog.draining) == {"a"}
    assert registry.put(*draining, now=5) == frozenset()
    registry.delete(*draining, now=20)
    assert registry.catalog.expire(29.9) == frozenset()
    assert registry.catalog.expire(30) == {"m"}


def test_a_draining_instance_whose_monitor_says_that_it_has_ended_goes_at_once() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 1, "a", DRAINING))
    registry.delete(ready("m", 1, "a"))
    assert "m" not in registry.catalog.models
    assert registry.catalog.draining == {}
    assert registry.catalog.suspects == frozenset()


def test_what_drains_stays_through_a_wipe_of_etcd_because_envoy_must_go_on_reporting_it() -> None:
    registry = Registry(SuspectPolicy(grace=10))
    draining = (instance("a"), ready("m", 1, "a", DRAINING))
    registry.put(*draining)
    before = registry.model()
    assert registry.delete(*draining, now=0, relisted=True) == frozenset()
    assert registry.put(*draining, now=5) == frozenset()
    assert registry.model() == before
    assert registry.catalog.suspects == frozenset()
    registry.delete(*draining, now=20, relisted=True)
    assert set(registry.catalog.draining) == {"a"}
    registry.put(instance("b"), now=21)
    assert registry.catalog.expire(30) == {"m"}, "it ended unseen; that it is the last endpoint is no reason to keep it"
    assert registry.catalog.draining == {}
    assert registry.catalog.models == {}


def test_a_wiped_etcd_s_revision_is_taken_though_the_fleet_is_as_it_was() -> None:
    registry = Registry()
    registry.put(instance("a"), ready("m", 1, "a"))
    registry.catalog.apply(Changes(1, {}, frozenset(), relisted=True), 0.0)
    assert registry.catalog.revision == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "lose", "wipe", "apply", "unapply", "share", "unshare"]),
        st.sampled_from("mn"),
        st.integers(1, 3),
        st.sampled_from("abc"),
        st.sampled_from(ReadyState),
        st.booleans(),
    ),
    max_size=40,
)


@given(STEPS)
def test_a_catalog_that_followed_equals_one_that_listed(
    steps: list[tuple[str, str, int, str, ReadyState, bool]],
) -> None:
    """Whatever happened on the way: with no lease in doubt, two replicas hold the same picture."""
    registry = Registry(SuspectPolicy(grace=0, return_grace=0))
    truth: dict[str, bytes] = {}
    for action, model, version, name, state, several in steps:
        entry = ready(model, version, name, state, several=several)
        wanted = (
            policy(model, retries={"attempts": version})
            if action.endswith("apply")
            else traffic(model, {version: 9, 2: 1})
        )
        if action in ("apply", "share"):
            truth |= wanted
            registry.put(wanted)
        elif action in ("unapply", "unshare"):
            registry.delete(wanted)
            truth = {key: value for key, value in truth.items() if key not in wanted}
        elif action == "put":
            truth |= instance(name) | entry
            registry.put(instance(name), entry)
        elif action == "delete":
            registry.delete(entry)
            truth = {key: value for key, value in truth.items() if key not in entry}
        elif action == "wipe":
            registry.delete(truth, relisted=True)
            registry.put(truth)
        else:
            lost = {key: value for key, value in truth.items() if key.endswith(f"/{name}")}
            registry.delete(lost)
            registry.put(lost)  # and it registered again at once
    registry.catalog.expire(1.0)
    fresh = Catalog(SPACE)
    fresh.apply(Snapshot(registry.revision, truth), 0.0)
    assert dict(registry.catalog.models) == dict(fresh.models)
    assert registry.catalog.draining == fresh.draining


def health(registry: Registry, version: int | None = None) -> dict[str, Health]:
    return {endpoint.instance: endpoint.health for endpoint in registry.model().endpoints(version)}


def test_what_fails_is_left_out_while_another_is_ready_and_used_as_the_last_resort() -> None:
    registry = Registry()
    registry.put(instance("a"), instance("b"), ready("m", 1, "a"), ready("m", 1, "b", FAILING))
    assert health(registry) == {"a": Health.READY, "b": Health.DRAINING}
    assert registry.put(ready("m", 1, "a", FAILING)) == {"m"}
    assert health(registry) == {"a": Health.FAILING, "b": Health.FAILING}
    registry.put(ready("m", 1, "b"))
    assert health(registry) == {"a": Health.DRAINING, "b": Health.READY}
    registry.put(ready("m", 1, "b", DRAINING))
    assert health(registry) == {"a": Health.FAILING, "b": Health.DRAINING}, "what drains takes no new request"


def test_what_fails_stays_listed_for_its_drain() -> None:
    registry = Registry()
    registry.put(instance("a"), instance("b"), ready("m", 1, "a"), ready("m", 1, "b", FAILING))
    assert registry.put(ready("m", 1, "b", DRAINING)) == frozenset(), "Envoy goes on counting what it has in flight"
    assert set(registry.catalog.draining) == {"b"}


def test_what_fails_does_not_change_the_version_that_the_fleet_serves() -> None:
    registry = Registry()
    for name in "abc":
        registry.put(instance(name), ready("m", 1, name, several=True), ready("m", 2, name, several=True))
    for name in "ab":
        registry.put(ready("m", 2, name, FAILING, several=True))
        assert (registry.model().served, registry.model().pinned) == (2, True)
    assert health(registry) == {"a": Health.DRAINING, "b": Health.DRAINING, "c": Health.READY}
    registry.put(ready("m", 2, "c", FAILING, several=True))
    assert registry.model().served == 2
    assert set(health(registry).values()) == {Health.FAILING}


def test_lost_leases_do_not_bring_back_what_fails_nor_take_out_the_last_resort() -> None:
    registry = Registry()
    registry.put(instance("a"), instance("b"), ready("m", 1, "a"), ready("m", 1, "b", FAILING))
    registry.delete(instance("a"), ready("m", 1, "a"))
    assert health(registry) == {"a": Health.SUSPECT, "b": Health.DRAINING}
    registry.delete(instance("b"), ready("m", 1, "b"))
    assert health(registry) == {"a": Health.SUSPECT, "b": Health.DRAINING}
    registry.put(instance("a"), ready("m", 1, "a", FAILING))
    assert health(registry) == {"a": Health.FAILING, "b": Health.SUSPECT}
    registry.delete(ready("m", 1, "b"), ready("m", 1, "a"))
    assert health(registry, 1) == {"b": Health.SUSPECT}, "an explicit removal acts at once"
