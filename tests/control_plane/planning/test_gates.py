"""The gates: what they find soon, and what they let pass."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.planning.evidence import CERTAIN, certain, evidence
from control_plane.planning.gates import Finding, judge, latency_limit, quantile, slower_than
from registry.plane_traffic import LATENCY_BOUNDS, VersionTotals
from registry.policy.model import Difference, Gates

GATES = Gates(error_rate=0.01, min_requests=50)
SLOW = Gates(error_rate=0.01, latency_quantile=0.9, latency_ratio=2.0, latency_at_least=0.02, min_requests=20)


def took(*times: float) -> tuple[int, ...]:
    """Buckets of these latencies, in seconds."""
    counts = [0] * (len(LATENCY_BOUNDS) + 1)
    for time in times:
        counts[next((at for at, bound in enumerate(LATENCY_BOUNDS) if time <= bound), len(LATENCY_BOUNDS))] += 1
    return tuple(counts)


def worst(
    gates: Gates, new: VersionTotals, old: VersionTotals | None = None, reference: float | None = None
) -> Finding:
    return max(one.finding for one in judge(gates, new, old or VersionTotals(), reference))


def caught(share: float, bound: float, within: int, least: int) -> float:
    """The probability that a version which fails with `share` is found within so many requests, looked at after each:
    exact, by the distribution of the failures of what was not found yet."""
    alive, found, limit = [1.0], 0.0, 0
    for asked in range(1, within + 1):
        grown = [0.0] * (len(alive) + 1)
        for failed, chance in enumerate(alive):
            grown[failed] += chance * (1 - share)
            grown[failed + 1] += chance * share
        alive = grown
        if asked >= least:
            while limit <= asked and not certain(limit, asked, bound):
                limit += 1
            found += sum(alive[limit:])
            alive = alive[:limit]
    return found


@pytest.mark.parametrize(("share", "within"), [(1.0, 50), (0.5, 50), (0.2, 67), (0.1, 180), (0.05, 593), (0.03, 1771)])
def test_a_fault_is_found_within_the_requests_that_the_docs_state(share: float, within: int) -> None:
    assert caught(share, 0.01, within, least=50) >= 0.99


def test_what_is_allowed_is_taken_back_once_in_a_thousand_steps_at_most_and_noise_never() -> None:
    assert caught(0.01, 0.01, 2000, least=50) < 1 / CERTAIN
    assert caught(0.001, 0.01, 2000, least=50) < 1e-9


@given(st.integers(0, 5000), st.integers(0, 5000), st.floats(0, 1))
def test_evidence_is_a_number_whatever_was_seen(failed: int, more: int, bound: float) -> None:
    found = evidence(failed, failed + more, bound)
    assert found >= 0
    assert not math.isnan(found)


@given(st.integers(1, 500), st.integers(0, 500), st.sampled_from([0.0, 0.001, 0.01, 0.2]))
def test_another_failure_is_never_less_evidence(failed: int, good: int, bound: float) -> None:
    assert evidence(failed + 1, failed + 1 + good, bound) >= evidence(failed, failed + good, bound) * 0.999999


def test_nothing_is_judged_before_the_least_number_of_requests() -> None:
    assert worst(GATES, VersionTotals(requests=49, errors=49)) is Finding.WAITS
    assert worst(GATES, VersionTotals(requests=50, errors=50)) is Finding.FAILS


def test_one_error_above_the_bound_may_be_chance() -> None:
    assert worst(GATES, VersionTotals(requests=60, errors=1)) is Finding.WAITS
    assert worst(GATES, VersionTotals(requests=100, errors=1)) is Finding.PASSES


def test_a_bound_of_nothing_fails_with_the_first_error() -> None:
    assert worst(Gates(error_rate=0.0, min_requests=50), VersionTotals(requests=500, errors=1)) is Finding.FAILS


def test_errors_that_the_old_version_has_too_are_not_the_new_ones_fault() -> None:
    old = VersionTotals(requests=1000, errors=50, observed=1000, observed_errors=50)
    assert worst(GATES, VersionTotals(requests=200, errors=11), old) is Finding.PASSES
    assert worst(GATES, VersionTotals(requests=200, errors=60), old) is Finding.FAILS
    assert worst(GATES, VersionTotals(requests=200, errors=60), VersionTotals(requests=3, errors=3)) is Finding.FAILS


def test_answers_that_are_not_ok_count_although_they_are_no_server_errors() -> None:
    """A new version that no longer knows an input answers INVALID_ARGUMENT to all."""
    new = VersionTotals(requests=200, errors=0, observed=200, observed_errors=200)
    assert worst(GATES, new, VersionTotals(requests=900, observed=900, observed_errors=2)) is Finding.FAILS
    assert worst(GATES, new, VersionTotals(requests=900, observed=900, observed_errors=890)) is Finding.PASSES


def test_a_few_observed_answers_hold_nobody_up() -> None:
    assert worst(GATES, VersionTotals(requests=200, observed=3, observed_errors=1)) is Finding.PASSES


def totals(*times: float) -> VersionTotals:
    return VersionTotals(requests=len(times), observed=len(times), latency=took(*times))


def test_a_slow_version_fails_and_an_equal_one_passes() -> None:
    old = totals(*[0.02] * 90, *[0.04] * 10)
    assert worst(SLOW, totals(*[0.02] * 45, *[0.04] * 5), old) is Finding.PASSES
    assert worst(SLOW, totals(*[0.15] * 20), old) is Finding.FAILS


def test_what_is_faster_than_the_floor_is_never_too_slow() -> None:
    old = totals(*[0.001] * 100)
    assert latency_limit(SLOW, old, None) == 0.02
    assert worst(SLOW, totals(*[0.015] * 100), old) is Finding.PASSES


def test_latency_waits_for_the_old_versions_or_takes_what_was_known_of_it() -> None:
    new, few = totals(*[0.5] * 50), totals(0.1)
    assert worst(SLOW, new, few) is Finding.WAITS
    assert worst(SLOW, new, few, 0.1) is Finding.FAILS
    assert judge(SLOW, new, None, None)[-1].finding is Finding.PASSES


def test_a_few_slow_answers_of_the_old_version_are_no_excuse_of_many() -> None:
    """Its quantile is taken for higher than measured as long as little is known: not for the slowest of hundreds."""
    old = totals(*[0.02] * 495, *[5.0] * 5)
    assert (latency_limit(SLOW, old, None) or 0) < 0.1


@given(st.lists(st.floats(0, 300), min_size=1, max_size=60), st.floats(0.5, 0.9999))
def test_a_quantile_is_a_bound_of_at_least_its_share(times: list[float], share: float) -> None:
    counts = took(*times)
    bound = quantile(counts, share)
    assert bound is not None
    assert sum(time <= bound for time in times) >= share * len(times) - 1e-6
    assert slower_than(counts, bound) <= sum(time >= bound for time in times)


def test_answers_that_differ_fail_and_need_to_have_been_compared() -> None:
    gates = Gates(difference=Difference(at_most=0.01), min_requests=20)
    asked = VersionTotals(requests=100)
    assert worst(gates, asked) is Finding.WAITS
    assert worst(gates, VersionTotals(requests=100, compared=40, differed=0)) is Finding.PASSES
    found = judge(gates, VersionTotals(requests=100, compared=20, differed=20, difference="y: 1.0 is 2.0"), None)
    assert found[-1].finding is Finding.FAILS
    assert "20 of 20" in found[-1].text
    assert "such as y: 1.0 is 2.0" in found[-1].text
