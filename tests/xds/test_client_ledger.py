"""What gRPC clients without a proxy have in flight, from reports that an idle client doesn't make."""

from __future__ import annotations

from envoy.service.load_stats.v3 import lrs_pb2

from control_plane.xds.client_ledger import ClientLedger, requests_in_progress
from control_plane.xds.view import Client

HERE, THERE = ("10.0.0.1", 8500), ("fd00::2", 8500)
ON_I, ON_J = frozenset({("m", *HERE)}), frozenset({("m", *THERE)})
OLD, ME = 100.0, "ipv4:10.0.0.9:40000"
CLIENTS = (Client(ME, OLD),)


def report(*rows: tuple[str, str, int]) -> lrs_pb2.LoadStatsRequest:
    message = lrs_pb2.LoadStatsRequest()
    for cluster, sub_zone, count in rows:
        stats = message.cluster_stats.add(cluster_name=cluster).upstream_locality_stats.add()
        stats.locality.sub_zone, stats.total_requests_in_progress = sub_zone, count
    return message


def busy(count: int) -> lrs_pb2.LoadStatsRequest:
    return report(("m", "10.0.0.1:8500", count))


def ledger_of_one() -> ClientLedger:
    """A client that has been there for long, and a drain at 200."""
    ledger = ClientLedger()
    ledger.connected(1, ME, OLD)
    ledger.drain({"i": ON_I}, 200.0)
    return ledger


def test_localities_are_endpoints() -> None:
    counts = requests_in_progress(
        report(("m", "10.0.0.1:8500", 2), ("m@1", "10.0.0.1:8500", 1), ("n", "[fd00::2]:8500", 4), ("n", "east", 9))
    )
    assert counts == {("m", *HERE): 2, ("m@1", *HERE): 1, ("n", *THERE): 4}


def test_a_client_that_reports_is_believed_at_its_second_report() -> None:
    ledger = ledger_of_one()
    for count in (3, 2):
        assert ledger.in_flight("i", CLIENTS, 200.5) is None
        ledger.reported(1, busy(count))
    assert ledger.in_flight("i", CLIENTS, 202.0) == 2
    assert not ledger.overdue(202.0)
    ledger.reported(1, busy(0))
    assert ledger.in_flight("i", CLIENTS, 203.0) == 0
    assert ledger.in_flight("j", CLIENTS, 203.0) is None


def test_a_silent_client_is_asked_by_ending_its_stream() -> None:
    ledger = ledger_of_one()
    assert ledger.overdue(200.0) == {1}
    ledger.disconnected(1, 200.0, asked=True)
    assert ledger.in_flight("i", CLIENTS, 201.0) is None, "it is on its way back"
    assert ledger.in_flight("i", (), 201.0) is None, "even if it asks for nothing any longer"
    ledger.connected(2, ME, 201.0)
    assert ledger.in_flight("i", CLIENTS, 201.5) is None
    assert not ledger.overdue(203.9), "its first report takes a second"
    assert ledger.overdue(204.0) == {2}
    ledger.reported(2, busy(1))
    assert ledger.in_flight("i", CLIENTS, 204.0) == 1
    assert not ledger.overdue(204.0)


def test_a_client_that_is_gone_is_waited_for_no_longer_than_it_takes_to_come_back() -> None:
    ledger = ledger_of_one()
    ledger.disconnected(1, 200.0)
    assert ledger.in_flight("i", (), 203.9) is None
    assert ledger.in_flight("i", (), 204.0) == 0


def test_a_client_without_load_reports_is_not_taken_for_idle() -> None:
    ledger = ClientLedger()
    ledger.drain({"i": ON_I}, 200.0)
    assert ledger.in_flight("i", CLIENTS, 201.0) is None
    assert ledger.in_flight("i", (), 201.0) == 0
    ledger = ledger_of_one()
    for _ in range(2):
        ledger.reported(1, busy(0))
    assert ledger.in_flight("i", CLIENTS, 202.0) == 0
    assert ledger.in_flight("i", CLIENTS * 2, 202.0) is None, "two channels of one process"


def test_clients_that_come_during_a_drain_do_not_hold_it_up() -> None:
    ledger = ledger_of_one()
    for _ in range(2):
        ledger.reported(1, busy(0))
    newcomer = Client("ipv4:10.0.0.9:40001", 201.0)
    assert ledger.in_flight("i", (*CLIENTS, newcomer), 201.0) == 0
    ledger.connected(2, newcomer.peer, 201.0)
    assert ledger.in_flight("i", (*CLIENTS, newcomer), 201.0) == 0
    ledger.reported(2, busy(5))
    assert ledger.in_flight("i", (*CLIENTS, newcomer), 202.0) == 5, "it was somebody else's connection before"
    ledger.disconnected(2, 202.0)
    assert ledger.in_flight("i", CLIENTS, 202.0) == 0


def test_drains_one_after_the_other_do_not_starve_each_other() -> None:
    """Each stream that begins anew settles all drains of before."""
    ledger = ClientLedger()
    ledger.connected(1, ME, OLD)
    ledger.drain({"i": ON_I}, 200.0)
    ledger.disconnected(1, 200.0, asked=True)
    ledger.connected(2, ME, 201.0)
    ledger.drain({"i": ON_I, "j": ON_J}, 201.5)
    ledger.reported(2, busy(0))
    assert ledger.in_flight("i", CLIENTS, 202.0) == 0
    assert ledger.in_flight("j", CLIENTS, 202.0) is None
    assert ledger.overdue(204.0) == {2}
    ledger.drain({"j": ON_J}, 204.0)
    assert ledger.in_flight("i", CLIENTS, 204.0) is None, "a drain that begins again is a new one"


def test_channels_that_come_and_go_on_a_shared_connection_do_not_hold_a_drain_up() -> None:
    """A channel is opened every half second and closed before it could have reported."""
    ledger = ledger_of_one()
    ledger.connected(2, ME, 199.8)
    ledger.disconnected(1, 200.0, asked=True)
    ledger.disconnected(2, 200.3)
    for number in range(3, 12):
        began = 200.3 + 0.5 * (number - 3)
        ledger.connected(number, ME, began)
        if number == 5:
            ledger.connected(1, ME, 201.4)
        if number == 7:
            ledger.reported(1, busy(3))
        ledger.disconnected(number, began + 0.5)
    assert ledger.in_flight("i", CLIENTS, 204.8) == 3


def test_another_channel_is_not_taken_for_the_one_that_is_on_its_way_back() -> None:
    ledger = ledger_of_one()
    ledger.disconnected(1, 200.0, asked=True)
    ledger.connected(2, ME, 200.2)
    ledger.disconnected(2, 200.9)
    assert ledger.in_flight("i", CLIENTS, 200.9) is None
    ledger.connected(3, ME, 200.9)
    ledger.connected(4, ME, 201.1)
    ledger.reported(3, busy(0))
    assert ledger.in_flight("i", CLIENTS, 202.0) is None, "this one may be the one, too"
    ledger.reported(4, busy(2))
    assert ledger.in_flight("i", CLIENTS, 202.1) == 2
