"""What an earlier monitor left, as a core with a clock of its own takes it over."""

from __future__ import annotations

from dataclasses import replace

from monitor.inherited import Inherited
from registry.drains import DrainRecord
from registry.keys import ReadyKey
from registry.records import InstanceState, ReadyState
from tests.monitor.core_harness import (
    AVAILABLE,
    ENDPOINT,
    FAILED,
    LOADING,
    PROVED,
    REFUSED,
    Harness,
)

READY = ReadyState.READY
KEY = ReadyKey("m", 1, "i")
OTHER = replace(ENDPOINT, address="10.0.0.9")


def taking_over(*, here: bool) -> Harness:
    harness = Harness(inherited=Inherited({KEY: ENDPOINT}) if here else Inherited(elsewhere={KEY: OTHER}))
    assert harness.keys[KEY] == (ENDPOINT if here else OTHER), "its own words, on this monitor's lease"
    return harness


def test_of_the_same_server_it_stands_until_the_first_probe_has_ended() -> None:
    for outcome, state in ((PROVED, READY), (FAILED, ReadyState.LOADING)):
        harness = taking_over(here=True)
        harness.status((1, AVAILABLE))
        assert harness.ready(1) is READY
        harness.probe(outcome)
        assert harness.ready(1) is state


def test_of_the_same_server_it_goes_if_the_server_does_not_hold_it() -> None:
    for versions in ([], [(2, AVAILABLE)], [(1, LOADING)]):
        harness = taking_over(here=True)
        harness.status(*versions)
        assert harness.ready(1) is not READY
        harness.status((1, AVAILABLE))
        assert harness.ready(1) is not READY, "it does not come back"


def test_of_the_same_server_it_goes_with_the_server() -> None:
    harness = taking_over(here=True)
    for _ in range(4):
        harness.fail(REFUSED)
    assert harness.instance.state is InstanceState.UNREACHABLE
    assert harness.ready(1) is None


def test_of_another_server_it_stands_until_the_version_is_proved_here() -> None:
    harness = taking_over(here=False)
    assert "10.0.0.9:8500" in harness.instance.detail
    harness.status((1, LOADING))
    harness.status((1, AVAILABLE))
    harness.probe(FAILED)
    assert harness.keys[KEY] == OTHER
    harness.probe(PROVED, after=60)
    assert harness.keys[KEY] == ENDPOINT
    assert harness.instance.detail == ""


def test_of_another_server_it_goes_with_that_server() -> None:
    harness = taking_over(here=False)
    harness.status((1, LOADING))
    assert harness.core.inherited_places == {("10.0.0.9", 8500)}
    harness.core.release()
    harness.apply()
    assert harness.ready(1) is ReadyState.LOADING
    assert not harness.core.inherited_places


def test_what_an_operator_wants_drained_is_not_taken_over_as_ready() -> None:
    harness = taking_over(here=True)
    harness.core.wish(DrainRecord())
    harness.apply()
    assert harness.ready(1) is None
    harness.status((1, AVAILABLE))
    assert harness.ready(1) is ReadyState.DRAINING


def test_nothing_inherited_is_drained() -> None:
    harness = taking_over(here=False)
    assert harness.core.drain() is False
    harness.apply()
    assert harness.ready(1) is None
