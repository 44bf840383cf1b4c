"""What drains, since when, and where its requests in flight are to be looked for."""

from __future__ import annotations

from control_plane.catalog import Catalog
from control_plane.drains import Drain, Place, draining_keys, draining_places
from control_plane.model import Endpoint, Health
from control_plane.replica import DrainLedger, held_back_drains
from control_plane.resources.clusters import Protocol
from control_plane.resources.endpoints import load_assignment, serialised_endpoints
from control_plane.resources.resource import Resource
from control_plane.xds.load_reports import interval
from control_plane.xds.quarantine import Blame
from control_plane.xds.table import ResourceTable
from registry.follow import Changes
from registry.keys import InstanceKey, Keyspace, ReadyKey
from registry.records import ReadyRecord, ReadyState, encode_ready

SPACE = Keyspace()
KEYS: dict[Drain, frozenset[object]] = {"i": frozenset("m")}
PLACES: dict[Drain, frozenset[Place]] = {"i": frozenset({("m", "10.0.0.1", 9000)})}
READY, DRAINING, DRAINED = ReadyState.READY, ReadyState.DRAINING, ReadyState.DRAINED


def test_a_drain_is_acknowledged_once_all_are_at_the_revision_of_its_beginning() -> None:
    ledger = DrainLedger()
    ledger.update(KEYS, 10)
    ledger.update(KEYS, 12)  # it began at 10 and goes on
    assert ledger.acknowledged(PLACES, 9) == {}
    assert ledger.since("i") == 10
    assert ledger.acknowledged(PLACES, 10) == PLACES
    assert ledger.since("i") is None
    ledger.update({}, 13)
    ledger.update(KEYS, 14)  # drained, came back, and drains again
    assert ledger.acknowledged(PLACES, 12) == {}


def test_a_client_that_comes_during_a_drain_does_not_take_back_what_all_acknowledged() -> None:
    ledger = DrainLedger()
    ledger.update(KEYS, 10)
    assert ledger.acknowledged(PLACES, 10) == PLACES
    assert ledger.acknowledged(PLACES, 0) == PLACES
    ledger.update({"i": frozenset("mn")}, 20)
    assert ledger.acknowledged(PLACES, 19) == {}, "until 20 all of them sent requests to the rest"
    ledger.update(KEYS, 21)
    assert ledger.acknowledged(PLACES, 20) == PLACES


def test_a_drain_goes_on_in_an_etcd_that_counts_from_the_beginning_again() -> None:
    ledger = DrainLedger()
    ledger.update(KEYS, 5000)
    assert ledger.acknowledged(PLACES, 12) == {}
    ledger.update(KEYS, 12)
    assert ledger.acknowledged(PLACES, 11) == {}
    assert ledger.acknowledged(PLACES, 12) == PLACES


def test_a_drain_that_is_quarantined_is_not_acknowledged() -> None:
    def assignment(state: Health) -> Resource:
        endpoints = (Endpoint("i", "10.0.0.1", 9000, 0, health=state),)
        return load_assignment("m", serialised_endpoints(endpoints, Protocol.GRPC), "m")

    table = ResourceTable()
    table.update([assignment(Health.READY)], [], 9)
    draining = assignment(Health.DRAINING)
    table.update([draining], [], 10)
    ledger = DrainLedger()
    ledger.update(KEYS, 10)
    assert held_back_drains([table], {"m"}) == frozenset()
    table.quarantine(draining.type_url, "m", draining.version, Blame("e", "", "", "", 0.0))
    assert held_back_drains([table], {"another"}) == frozenset()
    held_back = held_back_drains([ResourceTable(), table], {"m"})
    assert held_back == {("m", "10.0.0.1", 9000)}
    assert ledger.acknowledged(PLACES, 10, held_back) == {}
    table.update([assignment(Health.READY)], [], 11)
    assert ledger.acknowledged(PLACES, 11, held_back_drains([table], {"m"})) == PLACES


class World:
    """A catalog, told of instances one revision at a time."""

    def __init__(self) -> None:
        self.catalog = Catalog(SPACE)
        self.revision = 0

    def put(self, model: str, version: int, instance: str, state: ReadyState, rest: int = 0) -> None:
        self.revision += 1
        record = ReadyRecord(state, "10.0.0.1", ord(instance), rest)
        key = SPACE.make(ReadyKey(model, version, instance))
        puts = {SPACE.make(InstanceKey(instance)): b"{}", key: encode_ready(record)}
        self.catalog.apply(Changes(self.revision, puts, frozenset()), 0.0)

    def places(self) -> dict[Drain, set[str]]:
        """The clusters that are looked at, per drain."""
        return {drain: {cluster for cluster, _, _ in found} for drain, found in draining_places(self.catalog).items()}


def test_an_instance_that_drains_as_a_whole_is_one_drain() -> None:
    world = World()
    world.put("m", 1, "i", DRAINING, rest=80)
    world.put("n", 2, "i", DRAINING)
    assert draining_places(world.catalog) == {
        "i": {
            *(("m", "10.0.0.1", 105), ("m@1", "10.0.0.1", 105)),
            *(("@rest/m", "10.0.0.1", 80), ("@rest/m@1", "10.0.0.1", 80)),
            *(("n", "10.0.0.1", 105), ("n@2", "10.0.0.1", 105)),
        }
    }
    keys = frozenset({ReadyKey("m", 1, "i"), ReadyKey("n", 2, "i")})
    assert draining_keys(world.catalog, ["i"]) == {"i": keys}


def test_each_servable_of_an_instance_that_goes_on_is_a_drain() -> None:
    world = World()
    one, two = ReadyKey("m", 1, "i"), ReadyKey("m", 2, "i")
    world.put("m", 2, "j", READY)
    world.put("m", 1, "i", READY)
    world.put("m", 2, "i", DRAINING)
    assert world.places() == {"i": {"m", "m@2"}, two: {"m", "m@2"}}
    world.put("m", 2, "i", READY)
    world.put("m", 1, "i", DRAINING)
    # What is in flight in the cluster of those that name no version is version 2's.
    assert world.places() == {"i": {"m@1"}, one: {"m@1"}}
    assert draining_keys(world.catalog, ["i", one]) == {"i": {one}, one: {one}}
    world.put("m", 2, "i", DRAINING)
    assert world.places() == {"i": {"m", "m@1", "m@2"}}
    world.put("m", 2, "i", DRAINED)
    world.put("m", 1, "i", DRAINED)
    assert world.places() == {}


def test_reports_are_frequent_but_not_for_a_crowd() -> None:
    assert interval(2, 8) == 0.01
    assert interval(100, 8) == 0.05
    assert interval(2, 4000) == 0.1
    assert interval(100_000, 4) == 1.0
