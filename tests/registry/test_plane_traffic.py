"""Statistics of several control planes, summed over their restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.plane_traffic import (
    LATENCY_BOUNDS,
    MOST_BYTES,
    MOST_SERVABLES,
    PlaneTraffic,
    TrafficSum,
    VersionTotals,
    added,
    bounded,
    decode_plane_traffic,
    encode_plane_traffic,
    latency_bucket,
    quantile,
)
from registry.records import RecordError

_COUNT = st.integers(0, 2**40)
_LATENCY = st.lists(_COUNT, max_size=len(LATENCY_BOUNDS) + 1).map(tuple)
_TOTALS = st.builds(
    VersionTotals, _COUNT, _COUNT, _COUNT, _COUNT, _LATENCY, _COUNT, _COUNT, _COUNT, st.sampled_from(["", "y: 1 and 2"])
)
_SERVABLE = st.tuples(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.none() | st.integers(0, 2**63 - 1)
)
_RECORDS = st.builds(
    PlaneTraffic,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(0, 2e9),
    st.dictionaries(_SERVABLE, _TOTALS, max_size=4),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _COUNT, max_size=3),
)


@given(_RECORDS)
def test_it_reads_what_it_spells(record: PlaneTraffic) -> None:
    assert decode_plane_traffic(encode_plane_traffic(record)) == record


def test_what_cannot_be_is_refused_by_its_field() -> None:
    with pytest.raises(RecordError, match="requests"):
        decode_plane_traffic(b'{"epoch": "e", "servables": [{"model": "m", "requests": -1}]}')


def _said(epoch: str, requests: int, **more: int) -> PlaneTraffic:
    return PlaneTraffic(epoch, 0.0, {("m", 1): VersionTotals(requests=requests, **more)})


def test_a_restarted_control_plane_counts_from_nothing_and_the_sum_goes_on() -> None:
    total = TrafficSum()
    total.apply("a", _said("first", 10, in_progress=2))
    total.apply("b", _said("other", 5, in_progress=1))
    assert total.of("m")[1] == VersionTotals(requests=15, in_progress=3)
    total.apply("a", _said("first", 14))
    total.apply("b", None)
    assert total.of("m")[1] == VersionTotals(requests=19)
    assert total.apply("a", _said("second", 3)) == {"m"}
    assert total.apply("a", _said("second", 3)) == frozenset()
    assert total.all() == {("m", 1): VersionTotals(requests=22)}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 50), st.booleans()), max_size=30))
def test_the_sum_is_all_that_was_counted_whoever_restarts(steps: list[tuple[str, int, int, bool]]) -> None:
    total, counts, epochs, expected = TrafficSum(), {"a": 0, "b": 0}, {"a": 0, "b": 0}, 0
    for replica, restart, more, gone in steps:
        if restart == 0:
            epochs[replica] += 1
            counts[replica] = 0
        if gone and restart == 0:
            total.apply(replica, None)
        counts[replica] += more
        expected += more
        total.apply(replica, _said(str(epochs[replica]), counts[replica]))
    assert total.of("m").get(1, VersionTotals()).requests == expected


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.sampled_from(["all", "a part", "lost"])), max_size=30
    )
)
def test_a_lost_lease_and_a_part_of_a_record_count_nothing_twice(steps: list[tuple[str, int, str]]) -> None:
    total, counts = TrafficSum(), {"a": 0, "b": 0}
    for replica, more, what in steps:
        counts[replica] += more
        part = PlaneTraffic("same", 0.0, {("other", None): VersionTotals(requests=1)})
        total.apply(replica, {"all": _said("same", counts[replica]), "a part": part, "lost": None}[what])
    for replica, count in counts.items():
        total.apply(replica, _said("same", count))
    assert total.of("m")[1].requests == sum(counts.values())


@given(_TOTALS, _TOTALS)
def test_a_sum_does_not_depend_on_the_order_but_for_the_example(one: VersionTotals, other: VersionTotals) -> None:
    assert replace(added(one, other), difference="") == replace(added(other, one), difference="")


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    assert quantile((), 0.5) is None
    assert quantile((0, 0), 0.5) is None
    assert quantile((99, 0, 1), 0.5) == LATENCY_BOUNDS[0]
    assert quantile((99, 0, 1), 1.0) == LATENCY_BOUNDS[2]
    assert quantile((*[0] * 61, 1), 0.5) == LATENCY_BOUNDS[-1]


@given(st.floats(0, 1000))
def test_a_bucket_holds_what_its_bounds_say(seconds: float) -> None:
    at = latency_bucket(seconds)
    assert at == len(LATENCY_BOUNDS) or seconds <= LATENCY_BOUNDS[at]
    assert not at or seconds > LATENCY_BOUNDS[at - 1]


def test_a_record_is_cut_to_what_etcd_takes_and_keeps_the_busiest_and_the_observed() -> None:
    rows = {(f"m{number}", 1): VersionTotals(number) for number in range(MOST_SERVABLES + 500)}
    kept = bounded(PlaneTraffic("x", 1.0, {**rows, ("watched", None): VersionTotals(observed=1)})).servables
    assert len(kept) == MOST_SERVABLES
    assert kept.pop(("watched", None)) == VersionTotals(observed=1)
    assert min(one.requests for one in kept.values()) == 501
    long = {("m" * 4000 + str(number), 1): VersionTotals(number) for number in range(500)}
    cut = bounded(PlaneTraffic("x", 1.0, long, {"i" * 3000: 1}))
    assert 100 < len(cut.servables) < 500
    assert len(encode_plane_traffic(cut)) <= MOST_BYTES
