"""The monitor's decisions in histories that nobody thought of."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from monitor.servables import Outcome, PollFailure, Probe, VersionStatus, WatchedModel
from registry.keys import InstanceKey, ReadyKey
from registry.records import ReadyState, ServableState
from tests.monitor.core_harness import AVAILABLE, FAILED, PROVED, REFUSED, SLOW, TRUSTED, Harness
from tests.support.examples import examples


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens, a key is READY only for a version that was AVAILABLE in the latest answer and was proved in its
    present load; `seen` and `proved` are that rule kept by other means."""

    def __init__(self) -> None:
        super().__init__()
        self.h = Harness(WatchedModel("a"), WatchedModel("b"))
        self.seen: set[tuple[str, int]] = set()
        self.proved: set[tuple[str, int]] = set()
        self.outstanding: list[tuple[Probe, bool]] = []  # the flag: its load is still the present one
        self.drained = False
        self.bridging: set[tuple[str, int]] = set()  # READY when the drain began, for a swap that was under way

    def void(self, servable: tuple[str, int]) -> None:
        self.seen.discard(servable)
        self.proved.discard(servable)
        self.outstanding = [(p, ok and (p.model.name, p.version) != servable) for p, ok in self.outstanding]

    @rule(seconds=st.sampled_from([0.01, 0.1, 3.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.h.now += seconds

    @rule(name=st.sampled_from("ab"), states=st.dictionaries(st.integers(1, 3), st.sampled_from(ServableState)))
    def status(self, name: str, states: dict[int, ServableState]) -> None:
        self.h.core.status(name, tuple(VersionStatus(*item) for item in states.items()), self.h.now)
        for version in (1, 2, 3):
            if states.get(version) is AVAILABLE:
                self.seen.add((name, version))
            else:
                self.void((name, version))

    @rule(name=st.sampled_from("ab"), failure=st.sampled_from([REFUSED, SLOW]))
    def fail(self, name: str, failure: PollFailure) -> None:
        self.h.core.failed(name, failure, self.h.now)

    @precondition(lambda self: self.outstanding)
    @rule(data=st.data(), outcome=st.sampled_from([PROVED, TRUSTED, FAILED]))
    def probed(self, data: st.DataObject, outcome: Outcome) -> None:
        item = data.draw(st.sampled_from(self.outstanding))
        self.outstanding.remove(item)
        probe, current = item
        self.h.core.probed(probe, outcome, self.h.now)
        if current and not self.drained:
            servable = (probe.model.name, probe.version)
            self.proved.discard(servable) if outcome is FAILED else self.proved.add(servable)

    @rule(names=st.sets(st.sampled_from("ab")))
    def models(self, names: set[str]) -> None:
        self.h.core.set_models([WatchedModel(name) for name in names])

    @rule()
    def end(self) -> None:
        self.h.core.ended("gone")
        for servable in list(self.seen):
            self.void(servable)

    @rule()
    def drain(self) -> None:
        if not self.drained:
            ready = {(key.model, key.version) for key in self.h.keys if self.is_ready(key)}
            self.bridging = ready - (self.proved & self.seen)
        self.h.core.drain()
        self.drained = True

    def is_ready(self, key: InstanceKey | ReadyKey) -> bool:
        return isinstance(key, ReadyKey) and self.h.keys[key].state is ReadyState.READY

    @invariant()
    def holds(self) -> None:
        self.outstanding += [(probe, True) for probe in self.h.core.due(self.h.now)]
        touched = self.h.core.touched
        assert self.h.apply() == {} or touched
        assert self.h.core.changes() == {}
        for key, record in self.h.keys.items():
            assert key.instance == "i"
            if isinstance(key, ReadyKey):
                if record.state is ReadyState.LOADING:
                    assert not self.drained
                    continue
                if not self.drained and any(other == key.model for other, _ in self.seen - self.proved):
                    continue  # it may be the old key of a swap whose new version is being proved
                assert (key.model, key.version) in (self.proved & self.seen) | self.bridging
                assert record.state is (ReadyState.DRAINING if self.drained else ReadyState.READY)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=examples(100), stateful_step_count=40, deadline=None)
