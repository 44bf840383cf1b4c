"""The monitor's decisions, against the state sequences that TensorFlow Serving really shows."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.core import FAILURES
from monitor.known import KEPT_ENDED, SWAP
from monitor.servables import Outcome, WatchedModel
from registry.keys import InstanceKey, ReadyKey
from registry.records import Condition, InstanceState, Proof, ReadyState, ServableState
from tests.monitor.core_harness import (
    ASKABLE,
    AVAILABLE,
    END,
    ENDPOINT,
    FAILED,
    LOADING,
    PROVED,
    REFUSED,
    SLOW,
    START,
    TRUSTED,
    UNLOADING,
    Harness,
)


def test_a_loading_version_is_announced_then_proved_then_ready() -> None:
    h = Harness()
    assert h.instance.state is InstanceState.STARTING
    h.status((1, START))
    assert h.ready(1) is ReadyState.LOADING
    h.status((1, LOADING))
    h.status((1, AVAILABLE))
    assert h.ready(1) is ReadyState.LOADING
    probe = h.probe(PROVED)
    assert (probe.model.name, probe.version) == ("m", 1)
    assert h.keys[ReadyKey("m", 1, "i")] == ENDPOINT
    (servable,) = h.instance.servables
    assert (servable.state, servable.proof, servable.proof_detail) == (AVAILABLE, Proof.PROVED, "zeros")
    assert h.instance.state is InstanceState.SERVING


def test_one_transaction_per_change_holds_the_instance_record_too() -> None:
    h = Harness()
    changes = h.status((2, AVAILABLE), (1, START))
    assert set(changes) == {ReadyKey("m", 2, "i"), ReadyKey("m", 1, "i"), InstanceKey("i")}
    assert h.status((2, AVAILABLE), (1, START)) == {}, "nothing changed, nothing is written"


@pytest.mark.parametrize("gone", [((1, UNLOADING),), ((1, END),), ()], ids=["UNLOADING", "END", "not listed"])
def test_what_is_unloaded_goes_at_once(gone: tuple[Any, ...]) -> None:
    h = Harness().serving(1)
    h.status(*gone)
    assert h.ready(1) is None


def test_a_failed_probe_is_never_registered_and_tried_again_with_backoff() -> None:
    h = Harness()
    h.status((1, AVAILABLE))
    h.probe(FAILED)
    assert h.ready(1) is ReadyState.LOADING, "known, but no endpoint"
    (servable,) = h.instance.servables
    assert servable.proof is Proof.FAILED
    assert "Could not find variable b" in servable.proof_detail
    waits = []
    for _ in range(9):
        due = h.core.next_due()
        assert due is not None
        assert h.core.due(due - 0.001) == ()
        waits.append(due - h.now)
        h.now = due
        h.probe(FAILED)
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])
    h.probe(PROVED, after=30)
    assert h.ready(1) is ReadyState.READY


def test_a_signature_that_cannot_be_guessed_is_trusted_and_said_so() -> None:
    h = Harness()
    h.status((1, AVAILABLE))
    h.probe(TRUSTED)
    assert h.ready(1) is ReadyState.READY
    assert h.instance.servables[0].proof is Proof.TRUSTED
    assert h.instance.servables[0].proof_detail == "unknown rank"


@pytest.mark.parametrize(
    "between",
    [[END, START, LOADING], [UNLOADING, END, START], [END], [START], [LOADING], [UNLOADING]],
    ids=lambda states: "-".join(states),
)
def test_a_new_load_is_proved_again(between: list[ServableState]) -> None:
    h = Harness().serving(1)
    for state in between:
        h.status((1, state))
    h.status((1, AVAILABLE))
    assert h.ready(1) is ReadyState.LOADING
    h.probe(FAILED)
    assert h.ready(1) is ReadyState.LOADING


def test_the_outcome_of_an_earlier_loads_probe_counts_for_nothing() -> None:
    h = Harness()
    h.status((1, AVAILABLE))
    (old,) = h.core.due(h.now)
    h.status((1, END))
    h.status((1, AVAILABLE))
    (new,) = h.core.due(h.now)
    h.core.probed(old, PROVED, h.now)
    h.apply()
    assert h.ready(1) is ReadyState.LOADING
    h.core.probed(new, FAILED, h.now)
    h.apply()
    assert h.ready(1) is ReadyState.LOADING


@pytest.mark.parametrize("state", [UNLOADING, END])
def test_a_probe_that_ends_after_its_version_was_unloaded(state: ServableState) -> None:
    h = Harness()
    h.status((1, AVAILABLE))
    (probe,) = h.core.due(h.now)
    h.status((1, state))
    h.core.probed(probe, PROVED, h.now)
    h.apply()
    assert h.ready(1) is None


def test_a_swap_that_preserves_availability() -> None:
    h = Harness(WatchedModel("m", several_versions=False)).serving(1)
    h.status((3, START), (1, AVAILABLE))
    h.status((3, LOADING), (1, AVAILABLE))
    assert (h.ready(3), h.ready(1)) == (ReadyState.LOADING, ReadyState.READY)
    h.status((3, AVAILABLE), (1, AVAILABLE))
    h.probe(PROVED)
    assert (h.ready(3), h.ready(1)) == (ReadyState.READY, ReadyState.READY)
    h.status((3, AVAILABLE), (1, END))
    assert (h.ready(3), h.ready(1)) == (ReadyState.READY, None)


@pytest.mark.parametrize(("outcome", "new"), [(PROVED, ReadyState.READY), (FAILED, ReadyState.LOADING)])
def test_a_swap_leaves_no_gap_while_the_new_version_is_proved(outcome: Outcome, new: ReadyState) -> None:
    h = Harness(WatchedModel("m", several_versions=False)).serving(1)
    h.status((2, AVAILABLE), (1, END))
    assert (h.ready(2), h.ready(1)) == (ReadyState.LOADING, ReadyState.READY)
    h.probe(outcome)
    assert (h.ready(2), h.ready(1)) == (new, None)


def test_what_is_pinned_goes_at_once_though_another_version_is_there() -> None:
    h = Harness(WatchedModel("m", several_versions=True)).serving(1)
    h.status((2, AVAILABLE), (1, END))
    assert (h.ready(2), h.ready(1)) == (ReadyState.LOADING, None)


def test_a_broken_new_version_leaves_the_old_one_and_says_why() -> None:
    h = Harness().serving(2)
    h.status((3, START), (2, AVAILABLE))
    h.status((3, END, "DATA_LOSS: Can't parse saved_model.pb"), (2, AVAILABLE))
    assert (h.ready(3), h.ready(2)) == (None, ReadyState.READY)
    assert h.instance.servables[0].error == "DATA_LOSS: Can't parse saved_model.pb"


def test_several_versions_from_the_policy_or_once_seen() -> None:
    h = Harness(WatchedModel("known", several_versions=True), WatchedModel("unknown"))
    h.status((1, START), model="known")
    assert h.keys[ReadyKey("known", 1, "i")].several_versions is True
    h.status((1, AVAILABLE), model="unknown")
    assert h.keys[ReadyKey("unknown", 1, "i")].several_versions is False
    h.status((2, AVAILABLE), (1, AVAILABLE), model="unknown")
    h.now += SWAP / 2
    h.status((2, AVAILABLE), (1, END), model="unknown")
    assert h.keys[ReadyKey("unknown", 2, "i")].several_versions is False, "that was a swap"
    h.status((3, AVAILABLE), (2, AVAILABLE), model="unknown")
    h.now += SWAP
    h.status((3, AVAILABLE), (2, AVAILABLE), model="unknown")
    assert h.keys[ReadyKey("unknown", 3, "i")].several_versions is True


def test_an_unreachable_server_loses_its_endpoints_and_the_record_says_why() -> None:
    h = Harness().serving(1)
    for _ in range(FAILURES - 1):
        h.fail(REFUSED)
    assert h.ready(1) is ReadyState.READY
    h.fail(REFUSED)
    assert h.ready(1) is None
    assert (h.instance.state, h.instance.detail) == (InstanceState.UNREACHABLE, "Connection refused")
    h.status((1, AVAILABLE))
    assert h.ready(1) is ReadyState.LOADING, "what came back is another process for all we know"
    h.probe(PROVED)
    assert h.ready(1) is ReadyState.READY
    assert h.instance.state is InstanceState.SERVING


def test_many_models_failing_within_a_moment_are_not_several_failures_in_a_row() -> None:
    h = Harness(*(WatchedModel(f"m{n}") for n in range(10)))
    h.status((1, AVAILABLE), model="m0")
    h.probe(PROVED)
    for n in range(10):
        h.fail(REFUSED, model=f"m{n}", after=0.001)
    assert h.ready(1, "m0") is ReadyState.READY


def test_a_slow_server_is_given_more_time_than_a_dead_one() -> None:
    h = Harness().serving(1)
    for _ in range(5):
        h.fail(SLOW, after=0.5)
    assert h.ready(1) is ReadyState.READY
    h.fail(SLOW, after=2.0)
    assert h.ready(1) is None


def test_one_models_failing_calls_take_out_that_model_only() -> None:
    h = Harness(WatchedModel("a"), WatchedModel("b"))
    for name in "ab":
        h.status((1, AVAILABLE), model=name)
        h.probe(PROVED)
    for _ in range(FAILURES):
        h.fail(SLOW, model="a")
        h.status((1, AVAILABLE), model="b")
    assert (h.ready(1, "a"), h.ready(1, "b")) == (None, ReadyState.READY)
    assert h.instance.state is InstanceState.SERVING
    assert "model a: its status can't be read: DEADLINE_EXCEEDED" in h.instance.detail


def test_a_short_loss_of_the_connection_proves_again_without_taking_out() -> None:
    h = Harness().serving(1)
    h.fail(REFUSED)
    h.status((1, AVAILABLE))
    assert h.ready(1) is ReadyState.READY
    h.probe(FAILED)
    assert h.ready(1) is ReadyState.READY
    h.probe(FAILED)
    assert h.ready(1) is ReadyState.FAILING


def test_an_owned_server_may_take_its_time_to_open_its_port() -> None:
    h = Harness(patient=True)
    for _ in range(50):
        h.fail(REFUSED)
    assert h.instance.state is InstanceState.STARTING
    assert "Connection refused" in h.instance.detail
    h.core.ended("the server exited with code 255")
    h.apply()
    assert (h.instance.state, h.instance.detail) == (InstanceState.UNREACHABLE, "the server exited with code 255")


def test_a_dead_child_counts_at_once() -> None:
    h = Harness(patient=True).serving(1)
    h.core.ended("the server was ended by SIGKILL")
    changes = h.apply()
    assert changes[ReadyKey("m", 1, "i")] is None
    assert h.instance.detail == "the server was ended by SIGKILL"


def test_drain() -> None:
    h = Harness(WatchedModel("m"), WatchedModel("broken")).serving(2, 1)
    h.status((3, LOADING), (2, AVAILABLE), (1, AVAILABLE))
    h.status((1, AVAILABLE), model="broken")
    h.probe(FAILED)
    assert h.core.drain() is True
    changes = h.apply()
    assert [h.ready(n) for n in (1, 2, 3)] == [ReadyState.DRAINING, ReadyState.DRAINING, None]
    assert h.instance.state is InstanceState.DRAINING
    assert len(changes) == 5, "all of it in one transaction"
    for _ in range(10):
        h.fail(REFUSED)
    assert h.ready(1) is ReadyState.DRAINING, "the control planes still have to see it"
    h.status((3, AVAILABLE), (2, AVAILABLE), (1, END))
    assert [h.ready(n) for n in (1, 2, 3)] == [None, ReadyState.DRAINING, None]
    assert h.core.due(h.now + 100) == ()
    assert h.core.next_due() is None


def test_a_drain_within_a_swap_drains_the_version_that_bridges_it() -> None:
    h = Harness(WatchedModel("m", several_versions=False)).serving(1)
    h.status((2, AVAILABLE), (1, END))
    assert h.ready(1) is ReadyState.READY
    assert h.core.drain() is True
    h.apply()
    assert (h.ready(2), h.ready(1)) == (None, ReadyState.DRAINING)


def test_nothing_to_drain() -> None:
    h = Harness()
    h.status((1, LOADING))
    assert h.core.drain() is False


def test_a_model_that_left_the_config_file_stays_until_the_server_lets_go() -> None:
    h = Harness(WatchedModel("m"), WatchedModel("other")).serving(1)
    h.core.set_models([WatchedModel("other")])
    h.apply()
    assert h.ready(1) is ReadyState.READY
    h.status((1, END))
    assert h.ready(1) is None
    assert [model.name for model in h.core.models] == ["other"]
    assert h.instance.servables == ()


def test_the_record_tells_of_unknown_models_and_of_notices() -> None:
    h = Harness(WatchedModel("m"), WatchedModel("nope"))
    h.status((1, AVAILABLE))
    h.status(model="nope")
    h.core.notice("models.config is broken")
    h.apply()
    assert "models.config is broken" in h.instance.detail
    assert "model nope: the server knows no version of it" in h.instance.detail


def test_versions_that_ended_long_ago_do_not_pile_up_in_the_record() -> None:
    h = Harness()
    h.status((20, AVAILABLE), *((n, END) for n in range(19, 2, -1)), (2, END, "DATA_LOSS: x"))
    assert [s.version for s in h.instance.servables] == [20, *range(19, 19 - KEPT_ENDED, -1), 2]


def test_conditions_of_every_source_stand_in_the_record_while_they_last() -> None:
    h = Harness()
    missing, blocked = Condition("BasePathMissing", "model m", "m"), Condition("ReloadBlocked", "behind m")
    h.core.report("traps", (missing,))
    h.core.report("reload", (blocked,))
    assert h.core.touched
    h.apply()
    assert h.instance.conditions == (missing, blocked)
    h.core.report("traps", (missing,))
    assert not h.core.touched, "nothing new"
    h.core.report("traps", ())
    h.apply()
    assert h.instance.conditions == (blocked,)


def test_what_stops_answering_is_failing_and_the_record_says_why_until_it_is_back() -> None:
    h = Harness()
    h.status((1, AVAILABLE))
    h.probe(ASKABLE)
    assert h.probe(FAILED, after=11.0).question is ASKABLE.question
    assert h.ready(1) is ReadyState.READY
    h.probe(FAILED, after=1.0)
    assert h.ready(1) is ReadyState.FAILING
    (servable,) = h.instance.servables
    assert (servable.proof, servable.proof_detail) == (Proof.FAILED, FAILED.detail)
    h.probe(ASKABLE, after=31.0)
    assert h.ready(1) is ReadyState.FAILING
    h.probe(ASKABLE, after=31.0)
    assert h.ready(1) is ReadyState.READY
    assert h.instance.servables[0].proof is Proof.PROVED


def test_what_fails_is_drained_too() -> None:
    h = Harness()
    h.status((1, AVAILABLE))
    h.probe(ASKABLE)
    for _ in range(2):
        h.probe(FAILED, after=11.0)
    assert h.core.drain() is True
    h.apply()
    assert h.ready(1) is ReadyState.DRAINING, "it may have been the last resort"


def test_a_server_that_hangs_takes_all_its_versions_with_it_and_says_so_once() -> None:
    names = [f"m{n}" for n in range(5)]
    h = Harness(*map(WatchedModel, names))
    for name in names:
        h.status((1, AVAILABLE), model=name)
        h.probe(ASKABLE if name != "m4" else TRUSTED)
    while not h.instance.conditions:
        due = h.core.next_due()
        assert due is not None
        h.now = max(h.now, due)
        for probe in h.core.due(h.now):
            h.core.probed(probe, Outcome(Proof.FAILED, "no answer within 5 s", silent=True), h.now)
        h.apply()
    assert [h.ready(1, name) for name in names] == [ReadyState.FAILING] * 5, "one that can't be asked, too"
    (condition,) = h.instance.conditions
    assert condition.name == "PredictHangs"
    for name in names:
        h.status((1, END), model=name)
    assert h.instance.conditions == ()
