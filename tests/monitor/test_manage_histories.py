"""Random assignments, faults and restarts against a model of TensorFlow Serving's reloads: nothing is unloaded while it
may have requests, nothing is loaded that nobody asked for, and in the end the server holds what is assigned."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.manage import Manage
from monitor.manager import configuration
from monitor.reload import Reload, ReloadTiming
from monitor.servables import HeldVersion
from monitor.told import Told
from registry.assignments import AssignedModel, Assignment
from registry.records import Condition, Proof, ServableState
from tests.monitor.reload_sim import STEP, Request, Sim
from tests.support.examples import examples

NAMES = "ab"
AVAILABLE = ServableState.AVAILABLE
Wish = dict[str, tuple[int, ...]]
PROOF, FLIGHT = 3, 5
"""Steps that a proof takes, and that requests stay in flight after nobody is sent there any more."""


@dataclass
class Load:
    """One load of one version: what a monitor's core knows of it, and what is true."""

    proving: int = 0
    retired: int = 0
    drained: bool = False
    in_flight: bool = False
    """It was an endpoint, and was not drained since."""
    inherited: bool = False
    """It was one of the monitor before, which stands until this one has asked it."""


@dataclass
class World:
    """A server, and a monitor beside it that is told what to hold."""

    sim: Sim = field(default_factory=lambda: Sim({}, {f"/{name}": {1, 2, 3} for name in NAMES}))
    mute: set[tuple[str, int]] = field(default_factory=set)
    loads: dict[tuple[str, int], Load] = field(default_factory=dict)
    asked: set[tuple[str, int]] = field(default_factory=set)
    call: tuple[Request, float] | None = None
    now: float = 0.0
    down: int = 0
    wish: Wish = field(default_factory=dict)
    stamp: int = 0
    served: set[str] = field(default_factory=set)
    """Models that had an endpoint and are assigned ever since, without anything that would excuse them."""

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A monitor starts; one that was there is gone, and what it knew, but for its endpoints."""
        ready = {key for key in self.loads if self.ready(*key)}
        self.manage, self.reload = Manage(), Reload(Told("i"), {}, ReloadTiming(deadline=2.0, last=8.0))
        self.targets: Any = None
        self.call = None
        self.manage.found({name: f"/{name}" for name in NAMES}, frozenset(ready), self.now)
        self.assign(self.wish)
        for key, load in self.loads.items():
            load.proving = load.retired = 0
            load.drained, load.inherited = False, key in ready

    def take_over(self) -> None:
        """The monitor is killed, and another one starts. What its calls bring about is over by then: a call that waits
        in the server for a new model tells nobody of itself."""
        quiet = 0
        while quiet < 40:
            quiet = 0 if self.sim.queue else quiet + 1
            self.now, self.down = round(self.now + STEP, 3), max(0, self.down - 1)
            self.sim.step()
            self.look()
        self.begin()

    def assign(self, wish: Wish) -> None:
        self.wish = wish
        self.served -= {name for name in NAMES if not wish.get(name)}
        self.asked |= {(name, version) for name, versions in wish.items() for version in versions}
        models = {name: AssignedModel(f"/{name}", versions) for name, versions in wish.items() if versions}
        self.manage.assign(Assignment(models), self.now)

    def restart(self) -> None:
        self.sim.start()
        self.down = 5
        self.loads.clear()
        self.served.clear()
        if self.call is not None:
            self.call = None
            self.reload.answered("UNAVAILABLE", "Socket closed", self.now)
        self.reload.lost()

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.now = round(self.now + STEP, 3)
            self.down = max(0, self.down - 1)
            if not self.down:
                self.sim.step()
                self.look()
            self.decide()
            self.serve()

    def look(self) -> None:
        """What the server says, and what becomes of requests."""
        for name in NAMES:
            there = self.sim.available(name)
            for version in (1, 2, 3, 7):
                load = self.loads.get((name, version))
                if version not in there:
                    assert load is None or not load.in_flight, f"{name} {version} went while it had requests"
                    self.loads.pop((name, version), None)
                    continue
                load = self.loads.setdefault((name, version), Load())
                load.proving += 1
                retired = (name, version) in self.manage.retired
                load.retired = load.retired + 1 if retired else 0
                load.drained = load.retired > FLIGHT
                load.in_flight = (load.in_flight or self.ready(name, version)) and not load.drained

    def serve(self) -> None:
        for name in NAMES:
            ready = any(self.ready(name, version) for version in (1, 2, 3))
            assert ready or name not in self.served, f"{name} has no endpoint any more"
            # One that an earlier monitor left as an endpoint, and that does not answer any more, goes for that reason.
            answers = any(self.ready(name, version) and (name, version) not in self.mute for version in (1, 2, 3))
            if answers and self.wish.get(name):
                self.served.add(name)

    def ready(self, name: str, version: int) -> bool:
        load = self.loads.get((name, version))
        inherited = load is not None and load.inherited and load.proving <= PROOF
        return (inherited or self.answers(name, version)) and (name, version) not in self.manage.retired

    def answers(self, name: str, version: int) -> bool:
        load = self.loads.get((name, version))
        return load is not None and load.proving > PROOF and (name, version) not in self.mute

    def held(self, name: str) -> dict[int, HeldVersion] | None:
        if self.down:
            return None
        found = {}
        for one in self.sim.statuses(name):
            load = self.loads.get((name, one.version))
            proof = Proof.PENDING if load is None or load.proving <= PROOF else Proof.PROVED
            if (name, one.version) in self.mute and proof is Proof.PROVED:
                proof = Proof.FAILED
            answers = self.answers(name, one.version) and one.state is AVAILABLE
            found[one.version] = HeldVersion(
                one.state, one.error, answers, proof, "", load is not None and load.drained
            )
        return found

    def decide(self) -> None:
        if self.down:
            self.manage.restarted()
        else:
            for name in self.reload.names:
                self.reload.status(name, self.sim.statuses(name), self.now)
            self.reload.disk({path: self.sim.look(path) for path in ("/a", "/b", "/other")})
        self.finish_call()
        files = {(f"/{name}", version): (self.stamp, version) for name in NAMES for version in (1, 2, 3)}
        held = {name: self.held(name) for name in self.manage.models}
        self.manage.step(held, self.reload.certain(), self.reload.possible(), files, self.now)
        self.manage.conditions(held, self.now)
        targets = self.manage.targets(self.now)
        if targets is not None and targets != self.targets:
            self.targets = targets
            self.reload.want(configuration({}, targets))
        call = None if self.down or self.call is not None else self.reload.next_call(self.now)
        if call is not None:
            for one in call.config.model_config_list.config:
                for version in one.model_version_policy.specific.versions:
                    assert (one.name, version) in self.asked, f"{one.name} {version} was never asked for"
            self.call = self.sim.ask(call.config), self.now + call.deadline

    def conditions(self) -> list[Condition]:
        return list(self.manage.conditions({name: self.held(name) for name in NAMES}, self.now).values())

    def finish_call(self) -> None:
        if self.call is None:
            return
        request, deadline = self.call
        if request.answer is not None or self.now >= deadline:
            self.call = None
            self.reload.answered(*(request.answer or ("DEADLINE_EXCEEDED", "")), self.now)


VERSIONS = st.sampled_from([(), (1,), (2,), (3,), (1, 2), (2, 3), (1, 2, 3)])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("assign"), st.fixed_dictionaries(dict.fromkeys(NAMES, VERSIONS))),
        st.tuples(st.just("run"), st.sampled_from([0.1, 0.2, 0.4, 1.0, 3.0, 12.0])),
        st.tuples(
            st.sampled_from(["break", "mend", "mute", "unmute"]), st.tuples(st.sampled_from(NAMES), st.integers(1, 3))
        ),
        st.tuples(st.sampled_from(["restart", "monitor"]), st.none()),
        st.tuples(st.just("busy"), st.sampled_from([0.0, 2.0])),
    ),
    max_size=14,
)


def carry_out(world: World, event: str, what: Any) -> None:
    match event:
        case "assign":
            world.assign(what)
        case "run":
            world.run(what)
        case "break":
            world.sim.broken.add((f"/{what[0]}", what[1]))
        case "mend":
            world.sim.broken.discard((f"/{what[0]}", what[1]))
            world.stamp += 1
        case "mute":
            world.mute.add(what)
            world.served.discard(what[0])
        case "unmute":
            world.mute.discard(what)
        case "restart":
            world.restart()
        case "monitor":
            world.take_over()
        case "busy":
            world.sim.busy = what


def differences(world: World) -> list[str]:
    found = []
    for name, versions in world.wish.items():
        broken = {version for version in versions if (f"/{name}", version) in world.sim.broken}
        there = world.sim.available(name)
        replaced = not versions or any(world.answers(name, version) for version in versions)
        if set(versions) - broken - there or (replaced and there - set(versions)):
            found.append(f"{name}: {versions} assigned, {there} there")
    return found


def test_what_fails_is_tried_again_with_pauses_and_given_up_until_its_files_change() -> None:
    world = World()
    world.sim.broken.add(("/a", 1))
    world.assign({"a": (1,), "b": (1,)})
    tries = []
    for _ in range(300):
        before = world.sim.statuses("a")
        world.run(1.0)
        if before and before[0].error and not world.sim.statuses("a")[0].error:
            tries.append(world.now)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert len(tries) == 4, "five in all"
    assert pauses == sorted(pauses)
    assert pauses[0] >= 5
    assert pauses[-1] >= 40
    assert [one.name for one in world.conditions()] == ["LoadFailed"]
    assert "given up after 5 tries" in world.conditions()[0].text
    assert world.conditions()[0].final
    assert world.conditions()[0].version is not None
    assert world.sim.available("b") == {1}
    world.sim.broken.clear()
    world.run(30.0)
    assert world.sim.available("a") == set()
    world.stamp += 1
    world.run(8.0)
    assert world.sim.available("a") == {1}
    assert world.conditions() == []


def test_the_old_version_is_kept_as_long_as_no_new_one_answers() -> None:
    world = World(mute={("a", 2)})
    world.assign({"a": (1,), "b": (1,)})
    world.run(5.0)
    world.assign({"a": (2,), "b": (2,)})
    world.run(10.0)
    assert (world.sim.available("a"), world.sim.available("b")) == ({1, 2}, {2})
    assert sorted(one.name for one in world.conditions()) == ["OldVersionsKept", "ProofFailed"]
    world.mute.clear()
    world.run(5.0)
    assert world.sim.available("a") == {2}
    assert world.conditions() == []


@pytest.mark.parametrize("steps", range(1, 22))
def test_a_version_that_is_assigned_again_while_it_goes_is_ready_only_once_it_stays(steps: int) -> None:
    """Whether its reload is on the way, in force, or seen by the server: no endpoint vanishes."""
    world = World()
    world.assign({"a": (1, 2)})
    world.run(5.0)
    world.assign({"a": (2,)})
    world.run(steps * STEP)
    world.assign({"a": (1,)})
    world.run(12.0)
    assert world.sim.available("a") == {1}


def test_another_folder_is_refused_while_something_of_the_old_one_is_there() -> None:
    world = World()
    world.sim.disk["/other"] = {7}
    world.assign({"a": (1,)})
    world.run(5.0)
    world.manage.assign(Assignment({"a": AssignedModel("/other", (7,))}), world.now)
    world.run(5.0)
    assert world.sim.available("a") == {1}
    assert [one.name for one in world.conditions()] == ["BasePathChanged"]
    world.assign({})
    world.run(5.0)
    world.manage.assign(Assignment({"a": AssignedModel("/other", (7,))}), world.now)
    world.asked.add(("a", 7))
    world.run(5.0)
    assert world.sim.available("a") == {7}


@pytest.mark.parametrize("steps", range(0, 16, 3))
def test_another_folder_for_what_is_on_its_way_out_waits_until_that_has_gone(steps: int) -> None:
    """Deleted and applied anew, however soon."""
    world = World()
    world.sim.disk["/other"] = {1, 7}
    world.assign({"a": (1,), "b": (1,)})
    world.run(5.0)
    world.assign({"b": (1,)})
    world.run(steps * STEP)
    world.manage.assign(Assignment({"a": AssignedModel("/other", (1, 7)), "b": AssignedModel("/b", (1,))}), world.now)
    world.asked |= {("a", 1), ("a", 7)}
    world.run(15.0)
    assert world.sim.available("a") == {1, 7}
    assert world.sim.paths("a") == {"/other"}
    assert world.sim.available("b") == {1}
    assert world.conditions() == []


def test_a_model_of_the_servers_own_configuration_is_not_touched() -> None:
    manage = Manage(frozenset({"own"}))
    manage.assign(Assignment({"own": AssignedModel("/own", (1,)), "a": AssignedModel("/a", (1,))}), 0.0)
    manage.step({"a": {}}, {}, {}, {}, 0.0)
    assert set(manage.targets(0.0) or ()) == {"a"}
    assert [(one.name, one.model) for one in manage.conditions({}, 0.0).values()] == [("OwnedByServer", "own")]


def test_nothing_is_said_before_it_is_known_what_is_assigned_and_what_is_there() -> None:
    manage = Manage()
    manage.found({"a": "/a", "lost": ""}, frozenset(), 0.0)
    held = {"a": {1: HeldVersion(AVAILABLE, answers=True)}, "lost": {1: HeldVersion(AVAILABLE, answers=True)}}
    manage.step(held, {}, {}, {}, 0.0)
    assert (manage.targets(0.0), manage.retired) == (None, frozenset())
    manage.assign(Assignment({"a": AssignedModel("/a", (1, 2))}), 0.0)
    manage.step({"a": held["a"]}, {}, {}, {}, 0.0)
    assert manage.targets(0.0) is None, "of one it is not known what the server holds"
    manage.step(held, {}, {}, {}, 0.0)
    # A model without a base path can't be kept in the configuration, so it is drained before there is a reload.
    assert manage.retired == {("lost", 1)}
    assert manage.targets(1.0) is None
    manage.step(held | {"lost": {1: HeldVersion(AVAILABLE, drained=True)}}, {}, {}, {}, 2.0)
    assert {name: one.versions for name, one in (manage.targets(2.0) or {}).items()} == {"a": {1, 2}}


@settings(max_examples=examples(80), deadline=None)
@given(EVENTS)
def test_nothing_is_unloaded_that_has_requests_and_what_is_assigned_is_there_in_the_end(events: list[Any]) -> None:
    world = World()
    world.run(1.0)
    for event, what in events:
        carry_out(world, event, what)
        world.run(0.2)
    world.stamp += 1
    calm = 0
    for _ in range(50):
        world.run(3.0)
        calm = 0 if differences(world) else calm + 1
        if calm == 4:
            break
    assert differences(world) == []
