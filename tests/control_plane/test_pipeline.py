"""registry -> catalog -> resources -> table as one pure step, and what a replica says of itself."""

from __future__ import annotations

import os
import subprocess
import sys

from control_plane.catalog import Catalog
from control_plane.pipeline import Pipeline
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG, LISTENER
from control_plane.resources.settings import DataPlaneSettings
from control_plane.xds.table import ResourceTable, TableChange
from registry.follow import Changes, Snapshot
from registry.keys import InstanceKey, Keyspace, PlaneKey, ReadyKey
from registry.records import PlaneRecord, ReadyRecord, ReadyState, encode_plane, encode_ready

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


def test_a_registry_of_which_a_replica_says_that_leases_are_lost_is_not_believed_at_once() -> None:
    table = ResourceTable()
    pipeline = Pipeline(Catalog(SPACE), table, DataPlaneSettings(), empty_grace=10.0)
    peer = {SPACE.make(PlaneKey("peer")): encode_plane(PlaneRecord(5, suspects=3))}
    pipeline.apply(Snapshot(1, {**entries("m", 1, "a"), **peer}), 100.0)
    assert not table.ready
    assert pipeline.implausible == "another control plane says that 3 more instances lost their leases"
    pipeline.expire(110.0)
    assert (table.ready, pipeline.implausible) == (True, "")


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
    change = feed.put({SPACE.prefix + name: b"{}" for name in ("planes/p", "planes/p/nodes", "drains/a")})
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
