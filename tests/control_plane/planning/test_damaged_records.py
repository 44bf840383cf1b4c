"""What the leader wrote, made unreadable or taken away past the commands: nothing moves, and it is written again."""

from __future__ import annotations

import pytest

from control_plane.intents import Intents
from registry.assignments import decode_assignment
from registry.keys import AssignmentKey, Key, PolicyKey, RolloutKey, TrafficKey
from registry.rollouts import Phase, decode_rollout
from registry.traffic import TrafficRecord, decode_traffic, encode_traffic
from tests.control_plane.planning.test_planned_canary import Canaried
from tests.support.planned_fleet import SPACE

NONSENSE = [b"\xff\x00", b"[]", b"null", b'{"weights": "x", "phase": 7, "models": 3}', b'{"version": 99}']
READERS = {
    TrafficKey("m"): decode_traffic,
    RolloutKey("m"): decode_rollout,
    AssignmentKey("i0"): decode_assignment,
}


def until(canaried: Canaried, phase: Phase, step: int | None = None) -> None:
    """Let seconds pass until the canary is there."""
    for _ in range(300):
        rollout = canaried.fleet.state.rollouts.get("m")
        there = rollout is not None and (rollout.to_version, rollout.phase) == (2, phase)
        if rollout is not None and there and step in (None, rollout.step):
            return
        canaried.second()
    raise AssertionError(f"never {phase}: {canaried.rollout}")


@pytest.mark.parametrize("raw", NONSENSE)
@pytest.mark.parametrize("key", READERS)
def test_a_canary_stays_at_its_step(key: Key, raw: bytes) -> None:
    canaried = Canaried()
    until(canaried, Phase.STEPPING, 2)
    fleet = canaried.fleet
    weights, assigned = fleet.weights("m"), dict(fleet.state.assignments)
    fleet.put({key: raw})
    canaried.second(requests=10)
    assert (canaried.rollout.phase, canaried.rollout.step) == (Phase.STEPPING, 2)
    assert fleet.weights("m") == weights
    assert {name: one.models for name, one in fleet.state.assignments.items()} == {
        name: one.models for name, one in assigned.items()
    }
    # It is written again, and that is the end of it.
    READERS[key](fleet.entries[SPACE.make(key)])
    assert not fleet.state.damaged
    until(canaried, Phase.DONE)


@pytest.mark.parametrize("raw", [*NONSENSE, None])
def test_what_was_taken_back_is_not_tried_again(raw: bytes | None) -> None:
    canaried = Canaried(errors={2: 0.5})
    until(canaried, Phase.ROLLED_BACK)
    canaried.fleet.put({RolloutKey("m"): raw})
    for _ in range(10):
        canaried.second()
    assert canaried.rollout.refused == (2,)
    assert canaried.fleet.weights("m") == {1: 1}


@pytest.mark.parametrize("phase", [Phase.STEPPING, Phase.DONE])
@pytest.mark.parametrize("raw", [None, b"nonsense"])
def test_a_new_leader_finds_no_traffic(phase: Phase, raw: bytes | None) -> None:
    """Deleted, or unreadable since before it led: the rollout tells where it was."""
    canaried = Canaried()
    until(canaried, phase)
    weights, step = canaried.fleet.weights("m"), canaried.rollout.step
    canaried.fleet.put({TrafficKey("m"): raw})
    canaried.fleet.another_leader()
    canaried.fleet.state.touched.add("m")
    canaried.second(requests=10)
    assert (canaried.rollout.phase, canaried.rollout.step) == (phase, step)
    shares = canaried.fleet.weights("m")
    assert {v: n / sum(shares.values()) for v, n in shares.items()} == {
        v: n / sum(weights.values()) for v, n in weights.items()
    }


@pytest.mark.parametrize("raw", NONSENSE)
def test_the_traffic_that_was_in_force_stays_so_at_every_control_plane(raw: bytes) -> None:
    intents, record = Intents(), TrafficRecord({1: 90, 2: 10})
    intents.put(TrafficKey("m"), encode_traffic(record))
    intents.put(TrafficKey("m"), raw)
    assert intents.of("m").traffic == record
    intents.remove(TrafficKey("m"))
    assert intents.of("m").traffic is None


STEEP = {"strategy": "canary", "steps": [{"percent": 25, "requests": 200}, {"percent": 75, "requests": 2000}]}


@pytest.mark.parametrize("step", [1, 2])
def test_a_canary_whose_rollout_was_deleted_stays_at_its_step(step: int) -> None:
    canaried = Canaried(rollout=STEEP)
    until(canaried, Phase.STEPPING, step)
    weights = canaried.fleet.weights("m")
    canaried.fleet.put({RolloutKey("m"): None})
    canaried.second(requests=10)
    assert (canaried.rollout.phase, canaried.rollout.step) == (Phase.STEPPING, step)
    assert canaried.fleet.weights("m") == weights
    assert decode_rollout(canaried.fleet.entries[SPACE.make(RolloutKey("m"))]) == canaried.rollout
    assert not canaried.fleet.state.damaged
    until(canaried, Phase.DONE)


@pytest.mark.parametrize("step", [1, 2])
def test_a_new_leader_begins_a_canary_anew_whose_rollout_was_deleted(step: int) -> None:
    """Nothing tells how far it was, and what has most of the traffic was not proved: it can still be taken back."""
    canaried = Canaried(rollout=STEEP)
    until(canaried, Phase.STEPPING, step)
    canaried.fleet.put({RolloutKey("m"): None})
    canaried.fleet.another_leader()
    canaried.fleet.state.touched.add("m")
    canaried.errors = {2: 0.5}
    canaried.second(requests=10)
    assert (canaried.rollout.phase, canaried.rollout.from_version) == (Phase.STEPPING, 1)
    assert canaried.fleet.weights("m").get(1)
    until(canaried, Phase.ROLLED_BACK)
    assert canaried.fleet.weights("m") == {1: 1}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_rollout_and_its_policy_that_are_deleted_stay_away(at_once: bool) -> None:
    canaried = Canaried()
    until(canaried, Phase.STEPPING)
    gone: dict[Key, bytes | None] = {RolloutKey("m"): None, PolicyKey("m"): None}
    for changes in [gone] if at_once else [{key: None} for key in gone]:
        canaried.fleet.put(changes)
    for _ in range(10):
        canaried.second()
    assert "m" not in canaried.fleet.state.rollouts
    assert SPACE.make(RolloutKey("m")) not in canaried.fleet.entries
    assert not canaried.fleet.state.damaged
