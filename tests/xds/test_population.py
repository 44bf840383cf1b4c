"""How many Envoys a set of streams belongs to."""

from __future__ import annotations

from control_plane.xds.population import population
from tests.xds.client import CDS, EDS, LDS


def test_streams_of_one_type_each_are_one_envoy():
    assert population([("e", CDS), ("e", EDS), ("e", LDS)]) == ("e",)


def test_several_streams_of_one_type_are_several():
    assert population([("e", CDS), ("e", EDS), ("e", EDS)]) == ("e", "e")


def test_aggregated_streams_come_on_top_and_names_are_kept_apart():
    streams = [("e", None), ("e", None), ("e", CDS), ("f", EDS)]
    assert sorted(population(streams)) == ["e", "e", "e", "f"]
