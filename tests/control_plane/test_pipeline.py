"""registry -> catalog -> resources -> table as one pure step, and what a replica says of itself."""

from __future__ import annotations

import os
import subprocess
import sys

from control_plane.catalog import Address, Catalog
from control_plane.model import Endpoint, Health
from control_plane.pipeline import Pipeline
from control_plane.replica import DrainLedger, held_back_drains, requests_in_flight
from control_plane.resources.clusters import Protocol
from control_plane.resources.endpoints import load_assignment, serialised_endpoints
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG, LISTENER, Resource
from control_plane.resources.settings import DataPlaneSettings
from control_plane.xds.quarantine import Blame
from control_plane.xds.table import ResourceTable, TableChange
from registry.follow import Changes, Snapshot
from registry.keys import InstanceKey, Keyspace, ReadyKey
from registry.records import ReadyRecord, ReadyState, encode_ready

SPACE = Keyspace()


def entries(model: str, version: int, instance: str, **fields: object) -> dict[str, bytes]:
    record = ReadyRecord(ReadyState.READY, "10.0.0.1", 9000 + ord(instance), rest_port=9500, **fields)  # type: ignore[arg-type]
    return {
        SPACE.make(InstanceKey(instance)): b"{}",
        SPACE.make(ReadyKey(model, version, instance)): encode_ready(record),
    }


class Feed:
    """Drives a pipeline, one revision per call."""

    def __init__(self) -> None:
        self.table = ResourceTable()
        self.pipeline = Pipeline(Catalog(SPACE), self.table, DataPlaneSettings())
        self.revision = 1
        self.first = self.pipeline.apply(Snapshot(1, {}), 0.0)

    def put(self, *puts: dict[str, bytes]) -> TableChange:
        self.revision += 1
        merged = {key: value for put in puts for key, value in put.items()}
        return self.pipeline.apply(Changes(self.revision, merged, frozenset()), 0.0)

    def delete(self, *deletes: dict[str, bytes]) -> TableChange:
        self.revision += 1
        keys = frozenset(key for delete in deletes for key in delete if "/ready/" in key)
        return self.pipeline.apply(Changes(self.revision, {}, keys), 0.0)


def touched(change: TableChange, type_url: str) -> list[str]:
    return sorted(one.name for one in change.changes if one.type_url == type_url)


def test_an_empty_registry_still_has_listeners_and_routers() -> None:
    feed = Feed()
    assert feed.table.ready
    assert touched(feed.first, LISTENER) == ["grpc", "rest"]
    assert touched(feed.first, EXTENSION_CONFIG) == ["model_router_grpc", "model_router_rest"]


def test_an_empty_registry_is_not_believed_at_once() -> None:
    table = ResourceTable()
    pipeline = Pipeline(Catalog(SPACE), table, DataPlaneSettings(), empty_grace=10.0)
    pipeline.apply(Snapshot(1, {}), 100.0)
    assert (table.ready, pipeline.next_deadline(100.0)) == (False, 110.0)
    pipeline.apply(Changes(2, entries("m", 1, "a"), frozenset()), 105.0)
    pipeline.expire(109.9)
    assert not table.ready, "the others may be on their way too"
    pipeline.expire(110.0)
    assert (table.ready, pipeline.next_deadline(110.0)) == (True, None)


def test_a_registry_with_an_instance_is_believed_at_once() -> None:
    table = ResourceTable()
    pipeline = Pipeline(Catalog(SPACE), table, DataPlaneSettings(), empty_grace=10.0)
    pipeline.apply(Snapshot(1, entries("m", 1, "a")), 100.0)
    assert table.ready


def test_an_endpoint_touches_its_own_models_assignments_only() -> None:
    feed = Feed()
    feed.put(entries("m", 1, "a"), entries("other", 1, "a"))
    change = feed.put(entries("m", 1, "b"))
    assert {one.type_url for one in change.changes} == {CLUSTER_LOAD_ASSIGNMENT}
    assert touched(change, CLUSTER_LOAD_ASSIGNMENT) == ["@rest/m", "@rest/m@1", "m", "m@1"]


def test_a_model_that_goes_leaves_nothing_behind() -> None:
    feed = Feed()
    before = set(feed.table.entries(CLUSTER))
    feed.put(entries("m", 1, "a"))
    change = feed.delete(entries("m", 1, "a"))
    assert touched(change, CLUSTER) == touched(change, CLUSTER_LOAD_ASSIGNMENT) == ["@rest/m", "@rest/m@1", "m", "m@1"]
    assert all(one.new is None for one in change.changes)
    assert set(feed.table.entries(CLUSTER)) == before


def test_a_pin_changes_the_routers_and_requires_its_cluster() -> None:
    feed = Feed()
    change = feed.put(entries("m", 1, "a", several_versions=True))
    assert touched(change, EXTENSION_CONFIG) == ["model_router_grpc", "model_router_rest"]
    router = feed.table.get(EXTENSION_CONFIG, "model_router_grpc")
    assert router is not None
    assert router.requires == {"m@1"}
    assert touched(feed.put(entries("m", 1, "b", several_versions=True)), EXTENSION_CONFIG) == []
    assert touched(feed.put(entries("m", 2, "a"), entries("m", 2, "b")), EXTENSION_CONFIG) != []
    assert feed.table.get(EXTENSION_CONFIG, "model_router_grpc") != router


def test_the_replicas_own_record_is_no_consequence() -> None:
    feed = Feed()
    feed.put(entries("m", 1, "a"))
    revision = feed.table.revision
    change = feed.put({SPACE.prefix + "planes/p": b"{}", SPACE.prefix + "planes/p/nodes": b"{}"})
    assert change.changes == ()
    assert feed.table.revision == revision


_VERSIONS = """
from tests.control_plane.test_pipeline import *
feed = Feed()
feed.put(*(entries(f"m{n}", 1 + n % 3, i, several_versions=n % 2 == 0) for n in range(20) for i in "abc"))
for type_url in sorted(feed.table.types()):
    for name, entry in sorted(feed.table.entries(type_url).items()):
        print(type_url, name, entry.resource.version)
"""


def test_two_replicas_hold_equal_bytes_whatever_their_hash_seed() -> None:
    outputs = set()
    for seed in ("0", "1", "271828"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        outputs.add(subprocess.check_output([sys.executable, "-c", _VERSIONS], env=environment))
    assert len(outputs) == 1
    assert outputs.pop().count(b"\n") > 100


HERE = {"i": frozenset({Address("10.0.0.1", 9000, 9500)})}


def test_a_draining_instance_is_listed_only_after_convergence_and_load_reports() -> None:
    ledger = DrainLedger()
    ledger.update(HERE, 10)
    ledger.update(HERE, 12)  # it began at 10 and goes on

    def record(converged: int, counts: dict[int, int | None]) -> dict[str, int]:
        return requests_in_flight(ledger.acknowledged(HERE, converged), lambda _, port: counts[port])

    assert record(9, {9000: 0, 9500: 0}) == {}
    assert record(10, {9000: 0, 9500: None}) == {}
    assert record(10, {9000: 2, 9500: 1}) == {"i": 3}
    assert record(11, {9000: 0, 9500: 0}) == {"i": 0}
    ledger.update({}, 13)
    ledger.update(HERE, 14)  # drained, came back, and drains again
    assert record(12, {9000: 0, 9500: 0}) == {}


def test_a_client_that_comes_during_a_drain_does_not_take_back_what_all_acknowledged() -> None:
    ledger = DrainLedger()
    ledger.update(HERE, 10)
    assert ledger.acknowledged(HERE, 10) == HERE
    assert ledger.acknowledged(HERE, 0) == HERE
    more = {"i": HERE["i"] | {Address("10.0.0.1", 9001, 0)}}
    ledger.update(more, 20)
    assert ledger.acknowledged(more, 19) == {}, "until 20 all of them sent requests to the rest"
    ledger.update(HERE, 21)
    assert ledger.acknowledged(HERE, 20) == HERE


def test_a_drain_goes_on_in_an_etcd_that_counts_from_the_beginning_again() -> None:
    ledger = DrainLedger()
    ledger.update(HERE, 5000)
    assert ledger.acknowledged(HERE, 12) == {}
    ledger.update(HERE, 12)
    assert ledger.acknowledged(HERE, 11) == {}
    assert ledger.acknowledged(HERE, 12) == HERE


def test_an_instance_whose_drain_is_quarantined_is_not_listed() -> None:
    def assignment(state: Health) -> Resource:
        endpoints = (Endpoint("i", "10.0.0.1", 9000, 0, health=state),)
        return load_assignment("m", serialised_endpoints(endpoints, Protocol.GRPC), "m")

    table = ResourceTable()
    table.update([assignment(Health.READY)], [], 9)
    draining = assignment(Health.DRAINING)
    table.update([draining], [], 10)
    ledger = DrainLedger()
    ledger.update(HERE, 10)
    assert held_back_drains([table], {"m"}) == frozenset()
    table.quarantine(draining.type_url, "m", draining.version, Blame("e", "", "", "", 0.0))
    assert held_back_drains([table], {"another"}) == frozenset()
    held_back = held_back_drains([ResourceTable(), table], {"m"})
    assert held_back == {("10.0.0.1", 9000)}
    assert ledger.acknowledged(HERE, 10, held_back) == {}
    table.update([assignment(Health.READY)], [], 11)
    assert ledger.acknowledged(HERE, 11, held_back_drains([table], {"m"})) == HERE
