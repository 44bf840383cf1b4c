"""What is in flight, from the reports of several Envoys."""

from __future__ import annotations

from envoy.service.load_stats.v3 import lrs_pb2

from control_plane.xds.load_ledger import REPORTS, LoadLedger, requests_in_progress
from registry.keys import ReadyKey

HERE, THERE = ("10.0.0.1", 8500), ("10.0.0.2", 8500)
ON_I = frozenset({("a", *HERE), ("a@1", *HERE)})
ON_J = frozenset({("a", *THERE)})


def report(*rows: tuple[str, tuple[str, int], int]) -> lrs_pb2.LoadStatsRequest:
    message = lrs_pb2.LoadStatsRequest()
    for cluster, (address, port), count in rows:
        endpoint = message.cluster_stats.add(cluster_name=cluster).upstream_locality_stats.add().upstream_endpoint_stats
        entry = endpoint.add(total_requests_in_progress=count)
        entry.address.socket_address.address, entry.address.socket_address.port_value = address, port
    return message


def report_often(ledger: LoadLedger, reporter: int, *rows: tuple[str, tuple[str, int], int]) -> None:
    for _ in range(REPORTS):
        ledger.reported(reporter, report(*rows))


def test_requests_are_counted_by_cluster_and_endpoint():
    counts = requests_in_progress(report(("a", HERE, 2), ("a@1", HERE, 3), ("b", THERE, 1), ("c", THERE, 0)))
    assert counts == {("a", *HERE): 2, ("a@1", *HERE): 3, ("b", *THERE): 1}


def test_only_the_places_of_a_drain_count():
    ledger = LoadLedger()
    ledger.connected(1, "one")
    version_1 = ReadyKey("a", 1, "i")
    ledger.drain({"i": ON_I | {("b", *HERE)}, version_1: frozenset({("a@1", *HERE)})})
    for _ in range(REPORTS):
        ledger.reported(1, report(("a", HERE, 2), ("a@1", HERE, 3), ("a@1", THERE, 7), ("b", HERE, 1), ("c", HERE, 5)))
    assert (ledger.in_flight("i"), ledger.in_flight(version_1)) == (6, 3)


def test_a_drain_that_gets_more_places_is_looked_at_anew():
    ledger = LoadLedger()
    ledger.connected(1, "one")
    ledger.drain({"i": ON_J})
    report_often(ledger, 1, ("a", HERE, 2))
    assert ledger.in_flight("i") == 0
    ledger.drain({"i": ON_I | ON_J})
    assert ledger.in_flight("i") is None
    assert ledger.silent("i") == ["one"]
    ledger.drain({"i": ON_J})
    assert ledger.silent("i") == ["one"], "it was in doubt"


def test_several_reports_of_every_envoy_are_needed_and_their_sum_counts():
    ledger = LoadLedger()
    ledger.connected(1, "one")
    ledger.connected(2, "two")
    ledger.reported(1, report(("a", HERE, 9)))
    assert ledger.drain({"i": ON_I})
    assert not ledger.drain({"i": ON_I})
    for _ in range(REPORTS):
        assert ledger.in_flight("i") is None
        ledger.reported(1, report(("a", HERE, 2)))
    assert ledger.in_flight("i") is None
    report_often(ledger, 2, ("a", HERE, 1))
    assert ledger.in_flight("i") == 3
    ledger.reported(1, report())
    assert ledger.in_flight("i") == 1, "an endpoint that a report leaves out is idle"
    ledger.disconnected(2)
    assert ledger.in_flight("i") == 0


def test_a_second_drain_does_not_disturb_the_first():
    ledger = LoadLedger()
    ledger.connected(1, "one")
    ledger.drain({"i": ON_I})
    report_often(ledger, 1)
    ledger.drain({"i": ON_I, "j": ON_J})
    assert ledger.in_flight("i") == 0
    assert ledger.in_flight("j") is None
    ledger.drain({"j": ON_J})
    assert ledger.in_flight("i") is None
    ledger.drain({"i": ON_I})
    assert ledger.in_flight("i") is None, "a drain that begins again is a new one"


def test_an_envoy_that_should_report_and_does_not_is_waited_for():
    ledger = LoadLedger()
    ledger.drain({"i": ON_I})
    assert ledger.in_flight("i") == 0
    assert ledger.in_flight("i", ["one"]) is None
    assert ledger.silent("i", ["one", "two"]) == ["one", "two"]
    ledger.connected(1, "one")
    report_often(ledger, 1)
    assert ledger.in_flight("i", ["one"]) == 0
    assert ledger.in_flight("i", ["one", "one"]) is None, "two Envoys of one name, one of them silent"


def test_an_envoy_that_comes_during_a_drain_is_waited_for():
    ledger = LoadLedger()
    ledger.drain({"i": ON_I})
    ledger.connected(1, "one")
    ledger.reported(1, report(("a", HERE, 4)))
    assert ledger.in_flight("i") is None
    report_often(ledger, 1, ("a", HERE, 4))
    assert ledger.in_flight("i") == 4


def test_an_envoy_that_is_configured_elsewhere_is_a_stray():
    ledger = LoadLedger()
    ledger.connected(1, "one")
    ledger.connected(2, "two")
    ledger.connected(3, "one")
    assert ledger.strays(["one", "two", "one"]) == set()
    assert ledger.strays(["two", "one"]) == {3}, "of two Envoys of one name the newest"
    assert ledger.strays(["three"]) == {1, 2, 3}
