"""What is in flight, from the reports of several Envoys."""

from __future__ import annotations

from envoy.service.load_stats.v3 import lrs_pb2

from control_plane.xds.load_ledger import ENOUGH, LoadLedger, requests_in_progress
from registry.keys import ReadyKey

HERE, THERE = ("10.0.0.1", 8500), ("10.0.0.2", 8500)
ON_I = frozenset({("a", *HERE), ("a@1", *HERE)})
ON_J = frozenset({("a", *THERE)})


ASKED = 0.01
REPORTS = 4
"""Of 10 ms: one that may have been made before the drain, and three that make 25 ms."""


def report(*rows: tuple[str, tuple[str, int], int], took: float = ASKED, issued: int = 0) -> lrs_pb2.LoadStatsRequest:
    """Rows of (cluster, endpoint, requests in progress); an old cluster is among them, that was asked for long ago."""
    message = lrs_pb2.LoadStatsRequest()
    message.cluster_stats.add(cluster_name="old").load_report_interval.FromMilliseconds(60_000)
    for cluster, (address, port), count in rows or [("a", HERE, 0)]:
        stats = message.cluster_stats.add(cluster_name=cluster)
        stats.load_report_interval.FromMicroseconds(int(took * 1e6))
        endpoint = stats.upstream_locality_stats.add().upstream_endpoint_stats
        entry = endpoint.add(total_requests_in_progress=count, total_issued_requests=issued)
        entry.address.socket_address.address, entry.address.socket_address.port_value = address, port
    return message


def report_often(ledger: LoadLedger, reporter: int, *rows: tuple[str, tuple[str, int], int]) -> None:
    for _ in range(REPORTS):
        ledger.reported(reporter, report(*rows), ASKED)


def one_drain() -> LoadLedger:
    """One Envoy, whose first report since the drain, which does not count, has come."""
    ledger = LoadLedger()
    ledger.connected(1, "one")
    ledger.drain({"i": ON_I})
    ledger.reported(1, report(took=3.0), ASKED)
    return ledger


def reports_until_known(ledger: LoadLedger, took: float = ASKED, asked: float = ASKED) -> int:
    count = 0
    while ledger.in_flight("i") is None:
        ledger.reported(1, report(took=took), asked)
        count += 1
    return count


def test_requests_are_counted_by_cluster_and_endpoint():
    counts = requests_in_progress(report(("a", HERE, 2), ("a@1", HERE, 3), ("b", THERE, 1), ("c", THERE, 0)))
    assert counts == {("a", *HERE): 2, ("a@1", *HERE): 3, ("b", *THERE): 1}


def test_only_the_places_of_a_drain_count():
    ledger = LoadLedger()
    ledger.connected(1, "one")
    version_1 = ReadyKey("a", 1, "i")
    ledger.drain({"i": ON_I | {("b", *HERE)}, version_1: frozenset({("a@1", *HERE)})})
    for _ in range(REPORTS):
        ledger.reported(
            1, report(("a", HERE, 2), ("a@1", HERE, 3), ("a@1", THERE, 7), ("b", HERE, 1), ("c", HERE, 5)), ASKED
        )
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
    ledger.reported(1, report(("a", HERE, 9)), ASKED)
    assert ledger.drain({"i": ON_I})
    assert not ledger.drain({"i": ON_I})
    for _ in range(REPORTS):
        assert ledger.in_flight("i") is None
        ledger.reported(1, report(("a", HERE, 2)), ASKED)
    assert ledger.in_flight("i") is None
    report_often(ledger, 2, ("a", HERE, 1))
    assert ledger.in_flight("i") == 3
    ledger.reported(1, report(), ASKED)
    assert ledger.in_flight("i") == 1, "an endpoint that a report leaves out is idle"
    ledger.disconnected(2)
    assert ledger.in_flight("i") == 0


def test_reports_that_come_on_time_count_for_as_long_as_they_took():
    assert reports_until_known(one_drain()) == REPORTS - 1
    assert reports_until_known(one_drain(), took=0.02) == 2
    assert reports_until_known(one_drain(), took=0.5, asked=0.5) == 1, "of a thousand Envoys each is asked seldom"


def test_a_late_report_begins_the_count_again_and_makes_it_as_long_as_the_delay():
    ledger = one_drain()
    ledger.reported(1, report(), ASKED)
    ledger.reported(1, report(), ASKED)
    ledger.reported(1, report(took=0.021), ASKED)
    assert reports_until_known(ledger) == 3
    ledger = one_drain()
    ledger.reported(1, report(took=0.05), ASKED)
    assert reports_until_known(ledger, took=0.02) == 3
    ledger.reported(1, report(took=0.5), ASKED)
    assert ledger.in_flight("i") == 0, "who has been seen to run on time has taken the drain over"


def test_an_envoy_that_is_always_late_is_believed_in_the_end():
    assert reports_until_known(one_drain(), took=ENOUGH / 9.5) == 10


def test_what_is_issued_after_the_acknowledgement_begins_the_count_again_and_counts():
    ledger = one_drain()
    for _ in range(3):
        ledger.reported(1, report(("a", THERE, 0), issued=1), ASKED)
    assert ledger.in_flight("i") == 0, "to another endpoint"
    ledger = one_drain()
    for _ in range(20):
        ledger.reported(1, report(("a", HERE, 0), issued=1), ASKED)
        assert ledger.in_flight("i") is None
    assert reports_until_known(ledger) == 3
    ledger.reported(1, report(("a", HERE, 1), issued=3), ASKED)
    assert ledger.in_flight("i") == 3


def test_an_envoy_that_has_none_of_the_clusters_counts_as_on_time():
    ledger = one_drain()
    for _ in range(3):
        assert ledger.in_flight("i") is None
        ledger.reported(1, lrs_pb2.LoadStatsRequest(), ASKED)
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
    ledger.reported(1, report(("a", HERE, 4)), ASKED)
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
