"""The planner against whatever may happen to a fleet: instances come and go, loads fail, policies change.

By its own doing there are never fewer ready copies than there shall and can be, never more assigned than there is
memory, never anything taken away that traffic names; and once nothing changes any more it comes to rest.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from control_plane.planning.plan import Decisions, plan
from registry.records import ReadyState
from registry.rollouts import Phase
from tests.support.planned_fleet import PlannedFleet, document

MODELS = ("a", "b")
NAMES = ("i0", "i1", "i2", "i3", "i4")
SIZE = 100
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "versions": st.sampled_from([{"latest": 1}, {"latest": 2}, {"all": True}, {"specific": [1, 2]}]),
        "instances": st.sampled_from(
            [
                *({"replicas": count} for count in (1, 2, 3)),
                {"selector": {"gpu": "yes"}},
                {"replicas": 1, "selector": {"gpu": "yes"}},
            ]
        ),
        "traffic": st.sampled_from([{"follow": "latest"}, {"weights": {"1": 90, "2": 10}}, {"weights": {"1": 1}}]),
        "labels": st.sampled_from([{"stable": 1}, {"stable": 2}, {"stable": 1, "new": 2}]),
        "mirror": st.sampled_from([{"version": 1, "percent": 5}, {"model": "a", "version": 2, "percent": 5}]),
        "rollout": st.sampled_from(
            [
                {"strategy": "rolling", "maxLoading": "100%"},
                {"strategy": "rolling", "switchAt": "50%"},
                {"strategy": "rolling", "maxLoading": "50%", "switchAt": "75%"},
            ]
        ),
        "paused": st.booleans(),
    },
)


class Histories(RuleBasedStateMachine):
    """Rules change the fleet; each plan is checked against what it was made of."""

    @initialize(memory=st.sampled_from([0, 0, 300, 600]), zones=st.sampled_from(["aaaaa", "aabbc"]))
    def begin(self, memory: int, zones: str) -> None:
        self.fleet = PlannedFleet()
        self.memory = memory
        for name, zone in zip(NAMES, zones, strict=True):
            labels = {"gpu": "yes"} if name in ("i0", "i1", "i4") else {}
            self.fleet.add(name, dict.fromkeys(MODELS, (1, 2)), SIZE, zone=zone, memory=memory, labels=labels)

    @rule(model=st.sampled_from(MODELS), spec=POLICIES)
    def apply(self, model: str, spec: dict[str, Any]) -> None:
        self.fleet.apply(document(model, **spec))
        self.plan()

    @rule(model=st.sampled_from(MODELS))
    def delete(self, model: str) -> None:
        self.fleet.delete(model)
        self.plan()

    @rule(model=st.sampled_from(MODELS), version=st.integers(1, 4), only=st.none() | st.sets(st.sampled_from(NAMES)))
    def copy_files(self, model: str, version: int, only: set[str] | None) -> None:
        alive = {name for name, server in self.fleet.servers.items() if server.alive}
        self.fleet.copy_files(model, version, SIZE, sorted(alive if only is None else only & alive))
        self.plan()

    @rule(name=st.sampled_from(NAMES))
    def lose_or_return(self, name: str) -> None:
        if self.fleet.servers[name].alive:
            self.fleet.lose(name)
        else:
            self.fleet.come_back(name)
        self.plan()

    @rule(name=st.sampled_from(NAMES), on=st.booleans())
    def drain(self, name: str, on: bool) -> None:
        self.fleet.drain(name, on=on)
        self.plan()

    @rule()
    def obey(self) -> None:
        self.fleet.obey()
        self.plan()

    @precondition(lambda self: self.fleet.loading())
    @rule(data=st.data(), good=st.sampled_from([True, True, True, False]))
    def finish(self, data: st.DataObject, good: bool) -> None:
        self.fleet.finish(*data.draw(st.sampled_from(self.fleet.loading())), good=good)
        self.plan()

    @rule(seconds=st.sampled_from([1.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.fleet.pass_time(seconds)
        self.plan()

    @rule()
    def another_leader(self) -> None:
        away = self.fleet.state.away_since
        self.fleet.another_leader()
        self.fleet.state.away_since |= away
        self.plan()

    @rule()
    def settle(self) -> None:
        self.fleet.settle()

    def plan(self) -> None:
        """What was touched; nothing else is then found to be due."""
        decisions = self.fleet.decide()
        self.check(decisions)
        self.fleet.write(decisions)
        pending = self.fleet.state.touched
        rest = plan(self.fleet.state, self.fleet.now, self.fleet.state.known_models() - pending)
        # But for the reasons that are told, which others' use of the memory may have changed.
        missed = {**rest.assignments, **rest.traffic}
        assert not missed, f"missed by looking only at what was touched: {missed}"

    def check(self, decisions: Decisions) -> None:
        for model in MODELS:
            wish = self.fleet.state.wishes.get(model)
            if wish is not None:
                self.check_copies(decisions, model)
                self.check_traffic(decisions, model)
        for name, assignment in decisions.assignments.items():
            before = self.fleet.needed(name, self.fleet.state.assignments.get(name))
            after = self.fleet.needed(name, assignment)
            assert not self.memory or after <= max(before, self.memory)

    def check_copies(self, decisions: Decisions, model: str) -> None:
        fleet, wish = self.fleet, self.fleet.state.wishes[model]
        record = fleet.state.traffic.get(model)
        named = {v for v, parts in record.weights.items() if parts} if record is not None else set[int]()
        for version in named:
            before = {name for name in fleet.ready(model, version) if self.holds(name, model, version)}
            after = {name for name in before if self.holds(name, model, version, decisions)}
            serving = {name for name in after if not self.drained(name)}
            if len(after) == len(before) or not {name for name in before if not self.drained(name)}:
                continue
            possible = [name for name in NAMES if self.possible(name, model, version)]
            shall = min(wish.policy.replicas or len(possible), len(possible))
            if self.memory:
                # One after the other may give up the old version to make room.
                shall = 1
            lost = {name for name in before - after if not self.drained(name)}
            assert not lost or len(serving) >= max(1, shall), (version, before, after, possible)

    def holds(self, name: str, model: str, version: int, decisions: Decisions | None = None) -> bool:
        assignment = self.fleet.state.assignments.get(name)
        if decisions is not None and name in decisions.assignments:
            assignment = decisions.assignments[name]
        one = assignment.models.get(model) if assignment is not None else None
        return one is not None and version in one.versions

    def drained(self, name: str) -> bool:
        return name in self.fleet.state.drains

    def possible(self, name: str, model: str, version: int) -> bool:
        server, wish = self.fleet.servers[name], self.fleet.state.wishes[model]
        fits = all(server.labels.get(label) == value for label, value in wish.policy.selector.items())
        return (
            server.alive
            and fits
            and not self.drained(name)
            and version in server.disk.get(model, {})
            and (model, version) not in server.failed
        )

    def check_traffic(self, decisions: Decisions, model: str) -> None:
        fleet, wish = self.fleet, self.fleet.state.wishes[model]
        before, after = fleet.state.traffic.get(model), decisions.traffic.get(model)
        if before is None or after is None:
            return
        for version in after.weights.keys() - before.weights.keys():
            anybody = any(fleet.ready(model, v) for v, parts in before.weights.items() if parts)
            assert fleet.ready(model, version) or not anybody or wish.policy.weights
        old, new = max(before.weights), max(after.weights)
        if wish.policy.follow_latest and not wish.policy.versions.specific and len(before.weights) == 1 and new < old:
            assert not {name for name in fleet.ready(model, old) if fleet.servers[name].alive}

    def teardown(self) -> None:
        fleet = getattr(self, "fleet", None)
        if fleet is None:
            return
        for name, server in fleet.servers.items():
            if not server.alive:
                fleet.come_back(name)
            fleet.drain(name, on=False)
            server.failed.clear()
            for files in server.disk.values():
                files.update(dict.fromkeys((1, 2, 3, 4), SIZE))
            fleet.tell(name)
        for model in MODELS:
            if model in fleet.state.wishes:
                # So that what could not be loaded somewhere is tried there again.
                fleet.apply(fleet.documents[model])
        fleet.settle()
        for model in MODELS:
            if (wish := fleet.state.wishes.get(model)) is not None and not wish.policy.paused and not self.memory:
                fit = [name for name in NAMES if self.possible(name, model, 1) or self.possible(name, model, 2)]
                assert len(fleet.assigned(model)) == min(wish.policy.replicas or len(fit), len(fit))
                assert fleet.state.rollouts[model].phase is Phase.DONE, fleet.state.rollouts[model]
        assert all(state is ReadyState.READY for server in fleet.servers.values() for state in server.held.values())


Histories.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase
