"""A copy that can't be loaded on one instance goes to another; what is broken everywhere doesn't wander."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.planning.state import instance_of
from registry.records import Condition, InstanceRecord, decode_instance, encode_instance
from registry.rollouts import Phase
from tests.support.planned_fleet import PlannedFleet, document

NAMES = [f"i{number}" for number in range(5)]


def a_fleet(versions: tuple[int, ...] = (1,), names: list[str] = NAMES, **how: Any) -> PlannedFleet:
    fleet = PlannedFleet()
    for name in names:
        fleet.add(name, {"m": versions}, **how)
    return fleet


def tried(fleet: PlannedFleet) -> Mapping[str, tuple[int, ...]]:
    return fleet.state.rollouts["m"].tried


def test_a_copy_that_fails_on_one_instance_is_placed_on_another() -> None:
    fleet = a_fleet()
    fleet.apply(document("m", instances={"replicas": 2}))
    fleet.settle(bad={("i0", "m", 1)})
    assert fleet.ready("m", 1) == {"i1", "i2"} == set(fleet.assigned("m"))
    assert tried(fleet) == {"i0": (1,)}
    assert fleet.state.rollouts["m"].phase is Phase.DONE
    (moved,) = (event for event in fleet.events if event.kind == "CopyMoved")
    assert moved.instance == "i0"
    assert moved.text.startswith("version 1 can't be loaded here; this copy goes elsewhere")


def test_what_is_broken_everywhere_is_tried_once_on_each_until_its_policy_changes() -> None:
    fleet = a_fleet()
    bad = {(name, "m", 1) for name in NAMES}
    fleet.apply(document("m", instances={"replicas": 2}))
    fleet.settle(bad=bad)
    assert set(fleet.tries.values()) == {1}
    assert len(fleet.tries) == 5
    assert len(fleet.assigned("m")) == 2
    # Neither another leader nor time makes it wander.
    fleet.another_leader()
    fleet.pass_time(100.0)
    fleet.settle(bad=bad)
    assert set(fleet.tries.values()) == {1}
    # A new version is tried anywhere, and a new policy forgets.
    fleet.copy_files("m", 2)
    fleet.settle(bad=bad)
    assert len(fleet.ready("m", 2)) == 2
    fleet.apply(document("m", instances={"replicas": 2}))
    fleet.settle()
    assert not tried(fleet)


def test_an_older_version_serves_before_anything_is_moved() -> None:
    fleet = a_fleet((1, 2))
    fleet.apply(document("m", instances={"replicas": 2}))
    fleet.settle(bad={(name, "m", 2) for name in NAMES})
    assert fleet.ready("m", 1) == {"i0", "i1"}
    assert not tried(fleet)


def test_nobody_leaves_who_answers() -> None:
    """In an upgrade the one that fails keeps the old version until traffic is with the new one."""
    fleet = a_fleet()
    fleet.apply(document("m", instances={"replicas": 2}))
    fleet.settle()
    fleet.copy_files("m", 2)
    for _ in range(100):
        assert len(fleet.ready("m", 1)) >= 2 or fleet.weights("m") == {2: 1}
        decisions = fleet.step()
        moved = fleet.obey()
        for one in fleet.loading():
            fleet.finish(*one, good=one != ("i0", "m", 2))
        if not (decisions or moved or fleet.state.touched):
            break
    assert fleet.ready("m", 2) == {"i1", "i2"}
    assert tried(fleet) == {"i0": (2,)}


def test_paused_it_stays() -> None:
    fleet = a_fleet()
    fleet.apply(document("m", instances={"replicas": 2}))
    fleet.step()
    fleet.obey()
    fleet.apply(document("m", instances={"replicas": 2}, paused=True))
    fleet.settle(bad={("i0", "m", 1), ("i1", "m", 1)})
    assert not tried(fleet)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 5), st.sets(st.tuples(st.sampled_from(NAMES), st.just("m"), st.just(1))),
    st.sampled_from(["aaaaa", "abcab", "aabbb"]),
)  # fmt: skip
def test_as_many_are_ready_as_can_be_with_one_try_each(
    count: int, replicas: int, bad: set[tuple[str, str, int]], zones: str
) -> None:
    fleet = PlannedFleet()
    for name, zone in zip(NAMES[:count], zones, strict=False):
        fleet.add(name, {"m": (1,)}, zone=zone)
    fleet.apply(document("m", instances={"replicas": replicas}))
    fleet.settle(bad=bad)
    good = {name for name in NAMES[:count] if (name, "m", 1) not in bad}
    assert len(fleet.ready("m", 1)) == min(replicas, len(good))
    assert len(fleet.assigned("m")) == min(replicas, count)
    assert all(times == 1 for times in fleet.tries.values())
    fleet.pass_time(1.0)
    assert not fleet.step()


def test_conditions_of_older_monitors_are_read_by_their_text() -> None:
    text = "model m version 7: no such op; given up after 5 tries; it is tried again when its files change"
    record = InstanceRecord("127.0.0.1", 1, managed=True, conditions=(Condition("LoadFailed", text, "m"),))
    raw = encode_instance(record)
    assert b"final" not in raw
    assert b'version":7' not in raw
    assert decode_instance(raw) == record
    assert instance_of(record).given_up == {"m": {7}}
    told = Condition("LoadFailed", "whatever", "m", 8, final=True)
    assert instance_of(InstanceRecord("127.0.0.1", 1, conditions=(told,))).given_up == {"m": {8}}
    again = Condition("LoadFailed", "model m version 7: it is tried again", "m", 7)
    assert instance_of(InstanceRecord("127.0.0.1", 1, conditions=(again,))).failed == {}
