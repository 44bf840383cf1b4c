"""`modelplane top`, of what control planes write."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelplane.cli import main
from modelplane.rates import Rates
from modelplane.top import documents, lines
from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import Keyspace, PlaneTrafficKey
from registry.plane_traffic import LATENCY_BOUNDS, PlaneTraffic, Servable, VersionTotals, encode_plane_traffic
from tests.support.etcd import Etcd

M3, M4 = ("m", 3), ("m", 4)


def said(at: float, *, since: float = 0.0, epoch: str = "e", **counts: int) -> PlaneTraffic:
    rows: dict[Servable, VersionTotals] = {("m", int(name[1:])): VersionTotals(n) for name, n in counts.items()}
    return PlaneTraffic(epoch, at, rows, since=since)


def per_second(rates: Rates, now: float) -> dict[Servable, float]:
    return {one: row.requests for one, row in rates.usage(now).items()}


def test_rates_are_summed_over_control_planes_and_end_with_them() -> None:
    rates = Rates()
    rates.apply("a", said(100.0, v3=1000), 0.0)
    rates.apply("b", said(50.0, v3=10, v4=1), 0.0)
    assert per_second(rates, 0.0) == {M4: 0.0, M3: 0.0}
    rates.apply("a", said(105.0, since=100.0, v3=1050), 5.0)
    rates.apply("b", said(52.0, since=51.0, v3=10, v4=5), 5.0)
    assert per_second(rates, 5.0) == {M3: 10.0, M4: 4.0}
    assert rates.usage(5.0)[M3].totals.requests == 1060
    # Another run of it, which begins from nothing, tells of no rate at first.
    rates.apply("a", said(106.0, epoch="f", v3=3), 6.0)
    assert per_second(rates, 6.0) == {M4: 4.0, M3: 0.0}
    rates.apply("b", None, 7.0)
    assert per_second(rates, 7.0) == {M3: 0.0}


def test_a_rate_is_of_the_time_in_which_something_happened_and_ends_when_nothing_does() -> None:
    rates = Rates()
    rates.apply("a", said(0.0, v3=0), 0.0)
    # Ten idle minutes, in which nothing is written.
    rates.apply("a", said(605.0, since=600.0, v3=50), 605.0)
    assert per_second(rates, 606.0) == {M3: 10.0}
    rates.apply("a", said(610.0, since=605.0, v3=150), 610.0)
    assert per_second(rates, 611.0) == {M3: 15.0}
    assert per_second(rates, 624.0) == {M3: 0.0}


def test_who_looks_once_looks_as_long_as_a_control_plane_takes() -> None:
    rates = Rates()
    rates.apply("a", said(100.0, v3=1), 0.0)
    assert rates.longest_step == 0.0
    rates.apply("b", said(100.0, since=80.0, v3=1), 0.0)
    assert rates.longest_step == 20.0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1000)), min_size=1, max_size=20))
def test_a_rate_is_never_more_than_the_busiest_step_s(steps: list[tuple[int, int]]) -> None:
    rates, at, count = Rates(), 0.0, 0
    rates.apply("a", said(at, v3=count), at)
    for seconds, requests in steps:
        since, at, count = at, at + seconds, count + requests
        rates.apply("a", said(at, since=since, v3=count), at)
    most = max(requests / seconds for seconds, requests in steps)
    assert 0 <= per_second(rates, at)[M3] <= most + 1e-6


def test_lines_of_eighty_characters() -> None:
    rates = Rates()
    name = "a-model-with-a-name-that-goes-on-and-on-and-on-until-nobody-reads-it-any-more"
    slow = VersionTotals(20_000, 500, 100, 3, (0,) * 30 + (98, 2), in_progress=12)
    rows: dict[Servable, VersionTotals] = {("m", 3): VersionTotals(1), (name, 1_700_000_000): VersionTotals()}
    rates.apply("a", PlaneTraffic("e", 0.0, {**rows, ("m", None): VersionTotals()}), 0.0)
    rows = {("m", 3): VersionTotals(3), (name, 1_700_000_000): slow, ("m", None): VersionTotals(in_progress=1)}
    rates.apply("a", PlaneTraffic("e", 5.0, rows), 5.0)
    usage = rates.usage(5.0)
    texts = [line.text for line in lines(usage)]
    assert max(map(len, texts)) <= 80
    assert [text.split() for text in texts[1:]] == [
        [texts[1].split()[0], "1700000000", "4,000", "100", "100", "ms", "126", "ms", "12"],
        ["m", "3", "0.4", "0", "-", "-", "0"],
        ["m", "-", "0", "0", "-", "-", "1"],
    ]
    assert lines(usage, whole=True)[1].text.startswith(name)
    first = documents(usage)[0]
    assert (first["p50Seconds"], first["p99Seconds"]) == (LATENCY_BOUNDS[30], LATENCY_BOUNDS[31])
    assert first["total"] == {"requests": 20_000, "errors": 500, "observed": 100, "notOk": 3}


async def test_the_command_reads_what_is_written(etcd: Etcd, capsys: pytest.CaptureFixture[str]) -> None:
    def top(*flags: str) -> int:
        return main(["top", "--etcd", etcd.endpoint, "--seconds", "0.2", *flags])

    assert await asyncio.to_thread(top) == 1
    assert "no control plane tells of requests" in capsys.readouterr().err
    async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
        key = Keyspace().make(PlaneTrafficKey("a"))
        await client.put(key, encode_plane_traffic(said(1.0, v3=7)))
        assert await asyncio.to_thread(top, "m", "-o", "json") == 0
        [one] = json.loads(capsys.readouterr().out)["servables"]
        assert (one["model"], one["version"], one["total"]["requests"]) == ("m", 3, 7)
        assert await asyncio.to_thread(top, "other") == 0
        assert capsys.readouterr().out == "No requests so far.\n"
