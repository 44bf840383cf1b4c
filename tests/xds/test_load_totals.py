"""Requests by version and in flight by endpoint, from load reports."""

from __future__ import annotations

from typing import Any

from envoy.service.load_stats.v3 import lrs_pb2

from control_plane.xds.load_totals import LoadTotals
from registry.plane_traffic import VersionTotals

PORT = 8500


def report(**clusters: tuple[int, int, int]) -> Any:
    """Cluster -> requests that ended well, that ended badly, and that are in progress; all zero: idle."""
    message = lrs_pb2.LoadStatsRequest()
    for name, (good, bad, progress) in clusters.items():
        cluster = message.cluster_stats.add(cluster_name=name)
        if good or bad or progress:
            locality = cluster.upstream_locality_stats.add(
                total_successful_requests=good, total_error_requests=bad, total_requests_in_progress=progress
            )
            endpoint = locality.upstream_endpoint_stats.add(total_requests_in_progress=progress)
            endpoint.address.socket_address.address, endpoint.address.socket_address.port_value = "10.0.0.1", PORT
    return message


def take(totals: LoadTotals, reporter: int, *, everything: bool = True, **clusters: tuple[int, int, int]) -> None:
    for _ in totals.reported(reporter, report(**clusters), everything=everything):
        pass


def test_reports_add_up_over_envoys_and_protocols() -> None:
    totals = LoadTotals()
    take(totals, 1, **{"m@3": (4, 1, 2), "m": (7, 0, 0), "@rest/m@3": (1, 0, 0), "@shadow": (9, 9, 9)})
    take(totals, 2, **{"m@3": (5, 0, 1)})
    assert totals.servables() == {
        ("m", 3): VersionTotals(requests=11, errors=1, in_progress=3),
        ("m", None): VersionTotals(requests=7),
    }
    assert totals.in_progress() == {("10.0.0.1", PORT): 3}
    assert totals.clusters == (4, 5)


def test_what_is_in_progress_is_as_of_the_newest_report() -> None:
    totals = LoadTotals()
    take(totals, 1, a=(0, 0, 2), b=(0, 0, 3))
    take(totals, 1, everything=False, a=(0, 0, 0))
    assert {name: one.in_progress for (name, _), one in totals.servables().items()} == {"a": 0, "b": 3}
    take(totals, 1, a=(0, 0, 1))
    assert totals.in_progress() == {("10.0.0.1", PORT): 1}, "a report about everything that does not name b"
    totals.disconnected(1)
    assert not totals.in_progress()
    take(totals, 2, a=(1, 0, 0))
    assert totals.servables()["a", None].requests == 1


def test_a_large_report_lets_others_have_their_turn() -> None:
    message = report(**{f"m{number}": (1, 0, 0) for number in range(1000)})
    totals = LoadTotals()
    steps = totals.reported(1, message, everything=True)
    next(steps)
    assert 0 < len(totals.servables()) < 1000
    assert len(list(steps)) > 1
    assert len(totals.servables()) == 1000
