"""Restarts, backoff and the order of stopping, without a process and without sleeping."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelplane.local.supervisor import Action, Backoff, Kill, Phase, Start, Supervisor, Terminate
from tests.support.examples import examples

STAGES = {"tfs-0": 0, "tfs-1": 0, "envoy": 1, "control-plane": 2, "etcd": 3}


def running() -> Supervisor:
    supervisor = Supervisor(Backoff(first=1.0, longest=4.0, healthy=60.0))
    for name, stage in STAGES.items():
        assert supervisor.add(name, stage=stage, grace=10.0, now=0.0) == [Start(name)]
    return supervisor


def test_a_child_that_dies_is_started_again_later_and_later() -> None:
    supervisor, now = running(), 10.0
    for wait in (1.0, 2.0, 4.0, 4.0):
        assert supervisor.ended("envoy", now) == []
        assert supervisor.restart_in("envoy", now) == wait
        assert supervisor.tick(now + wait - 0.01) == []
        assert supervisor.next_deadline() == now + wait
        now += wait
        assert supervisor.tick(now) == [Start("envoy")]
        now += 5.0
    assert supervisor.restart_in("envoy", now) is None


def test_a_long_life_is_forgiven() -> None:
    supervisor = running()
    supervisor.ended("envoy", 1.0)
    supervisor.tick(2.0)
    supervisor.ended("envoy", 62.0)
    assert supervisor.restart_in("envoy", 62.0) == 1.0


def test_instances_end_first_and_etcd_last() -> None:
    supervisor = running()
    assert supervisor.stop(100.0) == [Terminate("tfs-0"), Terminate("tfs-1")]
    assert supervisor.waiting_for == ("tfs-0", "tfs-1")
    assert supervisor.ended("tfs-0", 101.0) == []
    assert supervisor.ended("tfs-1", 102.0) == [Terminate("envoy")]
    assert supervisor.ended("envoy", 103.0) == [Terminate("control-plane")]
    assert supervisor.ended("control-plane", 104.0) == [Terminate("etcd")]
    assert not supervisor.done
    assert supervisor.ended("etcd", 105.0) == []
    assert supervisor.done
    assert supervisor.next_deadline() is None


def test_who_does_not_end_in_time_is_killed_and_the_rest_still_waits_for_its_end() -> None:
    supervisor = running()
    supervisor.stop(0.0)
    supervisor.ended("tfs-0", 1.0)
    assert supervisor.next_deadline() == 10.0
    assert supervisor.tick(10.0) == [Kill("tfs-1")]
    assert supervisor.tick(10.1) == []
    assert supervisor.ended("tfs-1", 10.2) == [Terminate("envoy")]


def test_a_child_that_waits_for_its_restart_needs_no_end() -> None:
    supervisor = running()
    supervisor.ended("tfs-0", 1.0)
    supervisor.ended("tfs-1", 1.0)
    assert supervisor.stop(1.5) == [Terminate("envoy")]
    assert supervisor.phases["tfs-0"] is Phase.ENDED
    assert supervisor.tick(100.0) == [Kill("envoy")]


def test_stopping_twice_ends_all_that_is_left_at_once() -> None:
    supervisor = running()
    supervisor.stop(0.0)
    supervisor.ended("tfs-0", 0.5)
    assert set(supervisor.stop(1.0)) == {Terminate(name) for name in STAGES if name != "tfs-0"}
    assert supervisor.next_deadline() == 3.0
    assert set(supervisor.tick(3.0)) == {Kill(name) for name in STAGES if name != "tfs-0"}


def test_nothing_starts_once_stopping_has_begun() -> None:
    supervisor = running()
    supervisor.stop(0.0)
    assert supervisor.add("tfs-2", stage=0, grace=1.0, now=0.0) == []
    assert "tfs-2" not in supervisor.phases


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="tfs-0"):
        running().add("tfs-0", stage=0, grace=1.0, now=0.0)


class Lives(RuleBasedStateMachine):
    """Any order of deaths, time and stop requests: what is carried out must always make sense."""

    def __init__(self) -> None:
        super().__init__()
        self.supervisor = Supervisor(Backoff(first=1.0, longest=8.0, healthy=20.0))
        self.now = 0.0
        self.alive: set[str] = set()
        for name, stage in STAGES.items():
            self.carry_out(self.supervisor.add(name, stage=stage, grace=5.0, now=0.0))

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    assert name not in self.alive
                    assert not self.supervisor.stopping
                    self.alive.add(name)
                case Terminate(name) | Kill(name):
                    assert name in self.alive
                    assert self.supervisor.stopping

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.remove(name)
        self.carry_out(self.supervisor.ended(name, self.now))

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.supervisor.tick(self.now))

    @rule()
    def asked_to_stop(self) -> None:
        self.carry_out(self.supervisor.stop(self.now))

    @invariant()
    def done_means_that_nothing_runs(self) -> None:
        if self.supervisor.done:
            assert not self.alive
        elif self.supervisor.stopping:
            assert self.supervisor.waiting_for
            assert self.supervisor.next_deadline() is not None

    def teardown(self) -> None:
        """Whatever happened, stopping ends, even if every child has to be killed."""
        self.carry_out(self.supervisor.stop(self.now))
        for _ in range(50):
            if self.supervisor.done:
                return
            deadline = self.supervisor.next_deadline()
            assert deadline is not None
            self.now = max(self.now, deadline)
            for action in self.supervisor.tick(self.now):
                if isinstance(action, Kill) and action.name in self.alive:
                    self.alive.remove(action.name)
                    self.supervisor.ended(action.name, self.now)
        raise AssertionError(f"still {self.supervisor.waiting_for}")


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=examples(60), stateful_step_count=25, deadline=None)
