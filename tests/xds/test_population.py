"""How many Envoys a set of streams belongs to."""

from __future__ import annotations

from control_plane.xds.population import StreamKey, population
from tests.xds.client import CDS, EDS, LDS


def envoys(*streams: tuple[str, str, str | None]) -> list[str]:
    return sorted(population(StreamKey(*stream) for stream in streams))


def test_nobody():
    assert envoys() == []


def test_streams_of_one_type_each_are_one_envoy():
    assert envoys(("e", "p", CDS), ("e", "p", EDS), ("e", "p", LDS)) == ["e"]


def test_a_stream_of_endpoints_for_each_cluster_is_still_one():
    assert envoys(("e", "p", CDS), *[("e", "p", EDS)] * 5) == ["e"]
    assert envoys(*[("e", "p", EDS)] * 5) == ["e"]
    assert envoys(("e", "p", None), ("e", "q", EDS), ("e", "q", EDS)) == ["e"]


def test_an_envoy_may_mix_an_aggregated_stream_with_separate_ones():
    assert envoys(("e", "p", None), ("e", "p", LDS)) == ["e"]


def test_envoys_of_one_name_are_told_apart_by_their_connections_or_their_streams():
    assert envoys(("e", "p", None), ("e", "q", None), ("f", "q", EDS)) == ["e", "e", "f"]
    assert envoys(("e", "proxy", None), ("e", "proxy", None)) == ["e", "e"]
    assert envoys(("e", "p", CDS), ("e", "p", LDS), ("e", "q", CDS), ("e", "q", LDS)) == ["e", "e"]
    assert envoys(("e", "p", EDS), ("e", "q", EDS)) == ["e", "e"]
