"""The canary's machine: forwards, back, held, and over restarts."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from control_plane.planning.canary import CanaryMove, parts, step_canary
from registry.plane_traffic import VersionTotals
from registry.policy.model import Canary, Difference, Gates, Policy, Step
from registry.rollouts import Phase, RolloutRecord, decode_rollout, encode_rollout
from tests.control_plane.planning.test_gates import took

OLD, NEW = 3, 4
STEPS = (Step(5, requests=200), Step(25, duration=60.0), Step(50))
BOTH = {OLD: 4, NEW: 4}


def policy(*, paused: bool = False, steps: tuple[Step, ...] = STEPS, **gates: Any) -> Policy:
    return Policy("digits", rollout=Canary(steps, Gates(**gates)), paused=paused)


LOADING = RolloutRecord(Phase.LOADING, OLD, NEW, generation=7)


class Traffic:
    """A fleet's requests, spread as the move says; looked at once a second."""

    def __init__(self, policy: Policy, *, per_second: int = 100, seed: int = 1, **faults: float) -> None:
        self.policy, self.per_second, self.faults = policy, per_second, faults
        self.now, self.totals, self.source = 1000.0, {OLD: VersionTotals(), NEW: VersionTotals()}, "one"
        self.move = CanaryMove(LOADING, {OLD: 1})
        self.asked = 0
        self.kinds: list[str] = []
        self._random = random.Random(seed)

    def look(self, ready: dict[int, int] | None = None) -> CanaryMove:
        record = decode_rollout(encode_rollout(self.move.rollout))
        self.move = step_canary(
            self.policy, record, BOTH if ready is None else ready, 4, self.totals, self.now, self.source
        )
        self.kinds += [event.kind for event in self.move.events]
        return self.move

    def second(self) -> None:
        weights = self.move.weights
        drawn = self._random.choices(list(weights), list(weights.values()), k=self.per_second)
        for version in (OLD, NEW):
            asked = drawn.count(version)
            bad = version == NEW
            failed = sum(self._random.random() < (self.faults.get("errors", 0.0) if bad else 0) for _ in range(asked))
            times = [self.faults.get("slow", 0.01) if bad else 0.01] * asked
            compared = round(self.per_second * self.move.compare) if bad else 0
            differed = sum(self._random.random() < self.faults.get("wrong", 0.0) for _ in range(compared))
            self.asked += asked if bad else 0
            one = self.totals[version]
            latency = tuple(a + b for a, b in zip(one.latency or took(), took(*times), strict=True))
            self.totals[version] = VersionTotals(
                one.requests + asked,
                one.errors + failed,
                one.observed + asked,
                one.observed_errors + failed,
                latency,
                compared=one.compared + compared,
                differed=one.differed + differed,
            )
        self.now += 1

    def run(self, seconds: int = 2000) -> Phase:
        for _ in range(seconds):
            if self.look().rollout.phase in (Phase.UNLOADING, Phase.ROLLING_BACK):
                break
            self.second()
        return self.move.rollout.phase


ALL_GATES: dict[str, Any] = {"latency_ratio": 2.0, "difference": Difference(share=0.05)}


def test_a_good_version_goes_through_all_steps() -> None:
    traffic = Traffic(policy(**ALL_GATES), errors=0.001)
    assert traffic.run() is Phase.UNLOADING
    assert traffic.kinds == ["StepAdvanced"] * 4
    assert traffic.move.weights == {NEW: 100}
    assert (traffic.move.observe, traffic.move.compare) == (0, 0)


def test_a_good_version_with_noise_is_never_taken_back() -> None:
    for seed in range(8):
        assert Traffic(policy(), seed=seed, errors=0.001).run() is Phase.UNLOADING


def test_each_planted_fault_is_taken_back_within_the_stated_number_of_requests() -> None:
    for fault, within in (({"errors": 1.0}, 60), ({"errors": 0.2}, 80), ({"slow": 0.1}, 60), ({"wrong": 1.0}, 200)):
        traffic = Traffic(policy(**ALL_GATES), seed=5, **fault)
        assert traffic.run() is Phase.ROLLING_BACK, fault
        assert traffic.asked <= within, fault
        assert traffic.move.weights == {OLD: 1}
        assert traffic.move.rollout.refused == (NEW,)
        assert traffic.kinds[-1] == "RolledBack"
        assert traffic.move.events[0].text == traffic.move.rollout.text


def test_the_text_of_a_rollback_has_the_figures() -> None:
    traffic = Traffic(policy(), errors=1.0)
    traffic.run()
    text = traffic.move.rollout.text
    assert text.startswith("version 4 was taken back at step 1 of 3: errors: ")
    assert "where at most 1 % may be; the old version: 0 of " in text


def test_a_refused_version_never_gets_weight_again() -> None:
    traffic = Traffic(policy(), errors=1.0)
    traffic.run()
    for phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.LOADING, Phase.STEPPING, Phase.PAUSED):
        record = replace(traffic.move.rollout, phase=phase, step=2)
        assert step_canary(policy(), record, BOTH, 4, traffic.totals, traffic.now).weights == {OLD: 1}


def test_without_traffic_it_waits_and_says_so_once() -> None:
    traffic = Traffic(policy(), per_second=0)
    assert traffic.run(300) is Phase.STEPPING
    written = traffic.move.rollout
    assert "no traffic, version 4 has had no request since 00:16:40 UTC" in written.text
    assert traffic.run(300) is Phase.STEPPING
    assert traffic.move.rollout == written


def test_a_step_lasts_as_long_as_it_is_to() -> None:
    traffic = Traffic(policy(steps=(Step(50, duration=60, requests=1000),)))
    traffic.run(59)
    assert traffic.move.rollout.phase is Phase.STEPPING
    assert traffic.run(3) is Phase.UNLOADING


def test_a_paused_canary_stays_where_it_is_and_begins_its_step_anew() -> None:
    traffic = Traffic(policy())
    traffic.run(30)
    before = traffic.move.weights
    traffic.policy = policy(paused=True)
    assert traffic.run(300) is Phase.PAUSED
    assert traffic.move.weights == before
    traffic.policy = policy()
    assert traffic.look().rollout.phase is Phase.STEPPING
    assert traffic.move.rollout.since == traffic.now
    assert traffic.run() is Phase.UNLOADING
    assert "RolloutPaused" in traffic.kinds
    assert "RolloutResumed" in traffic.kinds


def test_a_new_leader_goes_on_with_what_was_written() -> None:
    """Of 200 requests at 5 a second, with a new accumulator each 10 s: only what was not written down is lost."""
    traffic = Traffic(policy(steps=(Step(5, requests=200),), min_requests=20))
    for leader in range(30):
        if traffic.run(10) is Phase.UNLOADING:
            break
        traffic.source, traffic.totals = f"leader {leader}", {OLD: VersionTotals(requests=10**6), NEW: VersionTotals()}
    assert traffic.move.rollout.phase is Phase.UNLOADING
    assert 200 <= traffic.asked <= 450


def test_lost_statistics_only_lengthen_a_step() -> None:
    traffic = Traffic(policy(), errors=0.2)
    traffic.run(7)
    step = traffic.move.rollout
    traffic.totals = {}
    assert traffic.look().rollout.step == step.step
    traffic.totals = {OLD: VersionTotals(), NEW: VersionTotals()}
    assert traffic.run() is Phase.ROLLING_BACK


def test_it_waits_for_as_many_instances_as_the_next_step_takes() -> None:
    traffic = Traffic(policy(steps=(Step(10), Step(60))))
    for _ in range(100):
        traffic.look({OLD: 4, NEW: 2})
        traffic.second()
    assert traffic.move.rollout.step == 1
    assert "2 of 3 instances are ready for version 4" in traffic.move.rollout.text
    assert traffic.run() is Phase.UNLOADING


def test_a_version_that_no_instance_has_ready_gets_nothing_meanwhile() -> None:
    traffic = Traffic(policy())
    traffic.run(5)
    assert traffic.look({OLD: 4}).weights == {OLD: 100, NEW: 0}
    assert traffic.look({NEW: 4}).weights == {OLD: 0, NEW: 100}
    assert traffic.look({}).weights == {OLD: 100, NEW: 0}
    assert traffic.look().weights == {OLD: 95, NEW: 5}


def test_a_failing_version_stays_while_nobody_else_could_answer() -> None:
    traffic = Traffic(policy(), errors=1.0)
    for _ in range(30):
        traffic.look({NEW: 4})
        traffic.second()
        if traffic.move.rollout.phase is Phase.LOADING:
            traffic.look()
    assert traffic.move.weights == {OLD: 0, NEW: 100}
    assert "fails, but no instance is ready for version 3, so it stays" in traffic.move.rollout.text


def test_parts_of_a_hundred_unless_that_is_too_coarse() -> None:
    assert parts(3, 4, 5) == {3: 95, 4: 5}
    assert parts(3, 4, 0.5) == {3: 9950, 4: 50}
    assert parts(3, 4, 0) == {3: 100}
    assert parts(3, 4, 100) == {3: 0, 4: 100}


def test_much_traffic_is_observed_in_part() -> None:
    traffic = Traffic(policy(steps=(Step(50, duration=60),)), per_second=2000)
    traffic.run(40)
    assert 0.05 <= traffic.move.observe <= 0.2


counts = st.integers(0, 300)
looks = st.fixed_dictionaries(
    {
        "ready": st.dictionaries(st.sampled_from([OLD, NEW]), st.integers(0, 4)),
        "wanted": st.integers(0, 4),
        "requests": counts,
        "errors": st.integers(0, 10),
        "lost": st.booleans(),
        "paused": st.booleans(),
        "source": st.sampled_from(["a", "b"]),
        "seconds": st.floats(0, 100),
        "steps": st.sampled_from([STEPS, STEPS[:1]]),
    }
)


@given(st.lists(looks, max_size=40))
def test_whatever_happens_somebody_answers_and_steps_rise(happened: list[dict[str, Any]]) -> None:
    record, now = LOADING, 1000.0
    totals = {OLD: VersionTotals(), NEW: VersionTotals()}
    step, refused = 0, False
    for one in happened:
        now += one["seconds"]
        if one["lost"]:
            totals = {}
        for version, errors in ((OLD, 0), (NEW, one["errors"])):
            before = totals.get(version, VersionTotals())
            requests = before.requests + one["requests"]
            totals[version] = VersionTotals(requests, before.errors + min(errors, one["requests"]))
        wanted = policy(paused=one["paused"], steps=one["steps"])
        move = step_canary(wanted, record, one["ready"], one["wanted"], totals, now, one["source"])
        ready = {version for version, count in one["ready"].items() if count}
        assert sum(move.weights.values()) > 0
        assert all(parts >= 0 for parts in move.weights.values())
        used = {version for version, weight in move.weights.items() if weight}
        refused = refused or NEW in move.rollout.refused
        assert not (refused and NEW in used)
        if ready and not refused:
            assert used <= ready
        if len(one["steps"]) == len(STEPS) == move.rollout.steps:
            assert move.rollout.step >= min(step, record.step)
        assert move.rollout.step in (record.step, record.step + 1, min(record.step, len(one["steps"])))
        step = move.rollout.step
        record = decode_rollout(encode_rollout(move.rollout))
