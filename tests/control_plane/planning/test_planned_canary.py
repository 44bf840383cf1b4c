"""Canaries as the planner leads them, on fleets in memory: from the files of a new version to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from control_plane.planning.view import heaviest
from registry.keys import PlaneTrafficKey, ReadyKey
from registry.plane_traffic import PlaneTraffic, Servable, VersionTotals, encode_plane_traffic
from registry.records import ReadyRecord, ReadyState, encode_ready
from registry.rollouts import Phase, RolloutRecord
from tests.support.planned_fleet import PlannedFleet, document

CANARY = {
    "strategy": "canary",
    "steps": [{"percent": 10, "requests": 100}, {"percent": 50, "requests": 100}],
    "gates": {"minRequests": 20},
}
ALL = {"i0", "i1", "i2", "i3"}


class Canaried:
    """A fleet with version 1, and a canary of version 2 once its files are there."""

    def __init__(self, *, errors: Mapping[int, float] | None = None, **spec: Any) -> None:
        self.errors = errors or {}
        self.fleet = PlannedFleet()
        for name in sorted(ALL):
            self.fleet.add(name, {"m": (1,)})
        self.apply(**spec)
        self.fleet.settle()
        self.fleet.copy_files("m", 2)
        self.used: set[int] = set()
        self.totals: dict[Servable, VersionTotals] = {}

    def apply(self, **spec: Any) -> None:
        self.fleet.apply(document("m", **{"rollout": CANARY, **spec}))

    @property
    def rollout(self) -> RolloutRecord:
        return self.fleet.state.rollouts["m"]

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.fleet.events]

    def second(self, requests: int = 100) -> None:
        """Plans, obeys, loads; then requests come, as the weights say."""
        fleet = self.fleet
        fleet.step()
        fleet.obey()
        for one in fleet.loading():
            fleet.finish(*one)
        weights = fleet.weights("m")
        totals = self.totals
        for version, parts in weights.items():
            share = round(requests * parts / sum(weights.values()))
            if share and fleet.ready("m", version):
                before = totals.get(("m", version), VersionTotals())
                bad = round(share * self.errors.get(version, 0.0))
                totals["m", version] = VersionTotals(before.requests + share, before.errors + bad)
                self.used.add(version)
        fleet.pass_time(1.0)
        fleet.put({PlaneTrafficKey("plane-0"): encode_plane_traffic(PlaneTraffic("one run", fleet.now, totals))})

    def until(self, *phases: Phase, seconds: int = 200, requests: int = 100) -> None:
        for _ in range(seconds):
            self.second(requests)
            if self.rollout.phase in phases:
                return
        raise AssertionError(f"{self.rollout}")


def test_a_good_version_gets_everything_and_the_old_one_is_unloaded() -> None:
    one = Canaried()
    one.until(Phase.DONE)
    assert one.fleet.weights("m") == {2: 1} or heaviest(one.fleet.weights("m")) == 2
    assert set(one.fleet.assigned("m").values()) == {(2,)}
    assert one.fleet.ready("m", 1) == set()
    assert one.kinds.count("StepAdvanced") == 3
    assert "RolledBack" not in one.kinds


def test_a_bad_version_is_taken_back_unloaded_and_not_tried_again_until_the_policy_changes() -> None:
    one = Canaried(errors={2: 0.5})
    one.until(Phase.ROLLED_BACK)
    assert one.fleet.weights("m") == {1: 1}
    one.used.clear()
    for _ in range(50):
        one.second()
    assert one.used == {1}
    assert set(one.fleet.assigned("m").values()) == {(1,)}
    assert one.rollout.phase is Phase.ROLLED_BACK
    assert one.rollout.refused == (2,)
    assert one.kinds.count("RolledBack") == 1
    one.errors = {}
    one.apply(labels={"stable": 1})
    one.until(Phase.DONE)
    assert heaviest(one.fleet.weights("m")) == 2


def test_a_new_version_after_a_bad_one_is_tried() -> None:
    one = Canaried(errors={2: 0.5})
    one.until(Phase.ROLLED_BACK)
    one.fleet.copy_files("m", 3)
    one.until(Phase.DONE)
    assert heaviest(one.fleet.weights("m")) == 3


def test_another_leader_every_few_seconds_goes_on_with_the_step() -> None:
    one = Canaried()
    for _ in range(40):
        for _ in range(7):
            one.second()
        if one.rollout.phase is Phase.DONE:
            break
        one.fleet.another_leader()
    assert one.rollout.phase is Phase.DONE
    assert one.kinds.count("StepAdvanced") == 3


def test_a_pause_holds_a_canary_where_it_is() -> None:
    one = Canaried()
    one.until(Phase.STEPPING)
    one.apply(paused=True)
    for _ in range(60):
        one.second()
    assert one.rollout.phase is Phase.PAUSED
    assert one.fleet.weights("m") == {1: 90, 2: 10}
    assert set(one.fleet.assigned("m").values()) == {(1, 2)}
    one.apply()
    one.until(Phase.DONE)


def test_without_requests_it_stays_in_its_first_step() -> None:
    one = Canaried()
    one.until(Phase.STEPPING)
    for _ in range(300):
        one.second(requests=0)
    assert (one.rollout.phase, one.rollout.step) == (Phase.STEPPING, 1)
    assert "no traffic" in one.rollout.text


def test_a_last_step_with_all_requests_is_judged_too() -> None:
    rollout = {**CANARY, "steps": [{"percent": 10, "requests": 20}, {"percent": 100, "requests": 2000}]}
    one = Canaried(rollout=rollout)
    one.until(Phase.STEPPING)
    while one.rollout.step < 2:
        one.second()
    one.second()
    assert one.fleet.weights("m") == {1: 0, 2: 100}
    assert set(one.fleet.assigned("m").values()) == {(1, 2)}
    one.errors = {2: 0.5}
    one.until(Phase.ROLLED_BACK)
    assert one.fleet.weights("m") == {1: 1}


def out(one: Canaried, version: int, state: ReadyState) -> None:
    """No instance answers for the version, or all do again."""
    for name, server in one.fleet.servers.items():
        server.held["m", version] = state
        if state is ReadyState.READY:
            one.fleet.finish(name, "m", version)
        else:
            record = ReadyRecord(state, "127.0.0.1", 1, several_versions=True)
            one.fleet.put({ReadyKey("m", version, name): encode_ready(record)})


def test_the_old_version_that_fails_for_a_moment_does_not_make_the_new_one_the_winner() -> None:
    """Neither has passed: when the old one is back the canary goes on where it was."""
    one = Canaried()
    one.until(Phase.STEPPING)
    out(one, 1, ReadyState.FAILING)
    for _ in range(10):
        one.second()
        assert one.rollout.phase is Phase.STEPPING
        assert one.rollout.step == 1
        assert one.fleet.weights("m") == {1: 0, 2: 100}
        assert set(one.fleet.assigned("m").values()) == {(1, 2)}
    out(one, 1, ReadyState.READY)
    one.second()
    assert one.fleet.weights("m") in ({1: 90, 2: 10}, {1: 50, 2: 50})
    one.until(Phase.DONE)


def test_the_new_version_that_fails_for_a_moment_gets_nothing_meanwhile() -> None:
    one = Canaried()
    one.until(Phase.STEPPING)
    out(one, 2, ReadyState.FAILING)
    for _ in range(10):
        one.second()
        assert one.fleet.weights("m") == {1: 100, 2: 0}
        assert one.rollout.phase is Phase.STEPPING
    out(one, 2, ReadyState.READY)
    one.until(Phase.DONE)


def test_a_lost_instance_holds_the_last_step_until_it_is_replaced_or_given_up() -> None:
    one = Canaried()
    one.until(Phase.STEPPING)
    one.fleet.lose("i3")
    one.until(Phase.DONE, seconds=400)
    assert heaviest(one.fleet.weights("m")) == 2


def test_a_canary_back_to_an_older_version_is_one_too() -> None:
    one = Canaried()
    one.until(Phase.DONE)
    one.errors = {1: 0.5}
    one.apply(versions={"specific": [1]})
    one.until(Phase.ROLLED_BACK, Phase.DONE)
    assert one.rollout.phase is Phase.ROLLED_BACK
    assert heaviest(one.fleet.weights("m")) == 2
