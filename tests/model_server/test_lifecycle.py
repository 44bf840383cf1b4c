"""The pure core of the version lifecycle: TF Serving's sequences, and its invariants under any order of events."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model_server.errors import Code, ServingError
from model_server.lifecycle import Event, Lifecycle, Load, State, Unload
from tests.support.examples import examples

BROKEN = ServingError(Code.DATA_LOSS, "Can't parse it")


class Recorder:
    """A lifecycle whose actions the test reports the end of, and the states that a client would have seen."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.core = Lifecycle(self._publish)

    def _publish(self, event: Event) -> None:
        code = f"({int(event.error.code)})" if event.error else ""
        self.seen.append(f"{event.model}{event.version}={event.state.name}{code}")

    def aspire(self, *versions: int, model: str = "m") -> None:
        self.core.aspire(model, {version: Path(f"/{model}/{version}") for version in versions})

    def run(self, ticks: int = 20, broken: tuple[int, ...] = ()) -> list[str]:
        """Tick, ending every action at once; what was published."""
        for _ in range(ticks):
            match self.core.tick():
                case Load(model, version, _):
                    self.core.loaded(model, version, BROKEN if version in broken else None)
                case Unload(model, version):
                    self.core.unloaded(model, version)
        seen, self.seen = self.seen, []
        return seen


def test_loads_newest_first_one_per_tick() -> None:
    recorder = Recorder()
    recorder.aspire(1, 2)
    assert recorder.run(1) == ["m2=START", "m1=START"]
    assert recorder.run(1) == ["m2=LOADING", "m2=AVAILABLE"]
    assert recorder.run() == ["m1=LOADING", "m1=AVAILABLE"]


def test_swap_loads_before_it_unloads() -> None:
    recorder = Recorder()
    recorder.aspire(1)
    recorder.run()
    recorder.aspire(3)
    assert recorder.run() == ["m3=START", "m3=LOADING", "m3=AVAILABLE", "m1=UNLOADING", "m1=END"]


def test_broken_new_version_leaves_the_old_one() -> None:
    recorder = Recorder()
    recorder.aspire(2)
    recorder.run()
    recorder.aspire(3)
    assert recorder.run(broken=(3,)) == ["m3=START", "m3=LOADING", "m3=END(15)"]


def test_broken_version_is_only_loaded_again_after_it_was_dropped() -> None:
    recorder = Recorder()
    recorder.aspire(1)
    recorder.run(broken=(1,))
    recorder.aspire(1)
    assert recorder.run() == []
    recorder.aspire()
    recorder.run()
    recorder.aspire(1)
    assert recorder.run() == ["m1=START", "m1=LOADING", "m1=AVAILABLE"]


def test_back_to_a_version_that_is_on_its_way_out() -> None:
    """A load can't be cancelled: v3, wanted again while v2 loads, is unloaded and loaded again."""
    recorder = Recorder()
    recorder.aspire(3)
    recorder.run()
    recorder.aspire(2)
    assert recorder.run(1) == ["m2=START"]
    assert isinstance(recorder.core.tick(), Load)
    recorder.aspire(3)
    recorder.core.tick()
    recorder.core.loaded("m", 2)
    assert recorder.run() == [
        *("m2=LOADING", "m2=AVAILABLE", "m3=UNLOADING", "m3=END"),
        *("m3=START", "m3=LOADING", "m3=AVAILABLE", "m2=UNLOADING", "m2=END"),
    ]


def test_dropped_model_is_unloaded_and_unloads_come_first() -> None:
    recorder = Recorder()
    recorder.aspire(1, model="a")
    recorder.run()
    recorder.aspire(1, model="b")
    recorder.aspire(model="a")
    assert recorder.run() == ["b1=START", "a1=UNLOADING", "a1=END", "b1=LOADING", "b1=AVAILABLE"]


class AnyOrder(RuleBasedStateMachine):
    """Wishes, ticks and ends of actions in any order, several actions at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Lifecycle(self._publish)
        self.states: dict[tuple[str, int], State] = {}
        self.wanted: dict[str, set[int]] = {}
        self.running: list[Load | Unload] = []

    def _publish(self, event: Event) -> None:
        key, before = (event.model, event.version), self.states.get((event.model, event.version), State.END)
        allowed = {
            State.END: {State.START},
            State.START: {State.LOADING, State.START},
            State.LOADING: {State.AVAILABLE, State.END},
            State.AVAILABLE: {State.UNLOADING},
            State.UNLOADING: {State.END},
        }
        assert event.state in allowed[before], f"{key}: {before.name} -> {event.state.name}"
        self.states[key] = event.state

    @rule(model=st.sampled_from("ab"), versions=st.sets(st.integers(1, 4)))
    def aspire(self, model: str, versions: set[int]) -> None:
        self.wanted[model] = versions
        self.core.aspire(model, {version: Path(f"/{version}") for version in versions})

    @rule()
    def tick(self) -> None:
        before = dict(self.states)
        action = self.core.tick()
        if isinstance(action, Unload):
            assert before[action.model, action.version] is State.AVAILABLE
            others = {v for (m, v), s in before.items() if m == action.model and s is State.AVAILABLE}
            aspired = [v for v in range(1, 5) if self.core.is_aspired(action.model, v)]
            assert action.version not in aspired or action.version not in self.wanted[action.model]
            # Availability is preserved: it goes only beside another that answers, or where none is wanted (any more).
            assert others - {action.version} or not aspired or not self.wanted[action.model]
        if action:
            self.running.append(action)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), broken=st.booleans())
    def end(self, data: st.DataObject, broken: bool) -> None:
        action = data.draw(st.sampled_from(self.running))
        self.running.remove(action)
        if isinstance(action, Load):
            self.core.loaded(action.model, action.version, BROKEN if broken else None)
        else:
            self.core.unloaded(action.model, action.version)

    @rule()
    def settle(self) -> None:
        """With every action ended well, exactly the wanted versions answer, or stay failed."""
        for _ in range(60):
            action = self.core.tick()
            for ended in [*self.running, *([action] if action else [])]:
                if isinstance(ended, Load):
                    self.core.loaded(ended.model, ended.version)
                else:
                    self.core.unloaded(ended.model, ended.version)
            self.running.clear()
        for model, versions in self.wanted.items():
            answering = {v for (m, v), state in self.states.items() if m == model and state is State.AVAILABLE}
            failed = {v for v in versions if self.states[model, v] is State.END}
            assert versions - failed <= answering
            # Only where all that is wanted has failed may an old version stay.
            assert answering <= versions or failed == versions

    @invariant()
    def at_most_one_action_per_servable(self) -> None:
        keys = [(action.model, action.version) for action in self.running]
        assert len(keys) == len(set(keys))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=examples(60), stateful_step_count=25, deadline=None)
