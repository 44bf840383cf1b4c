"""All that the registry says about models, decoded. Pure: updates in.

Invariant: who answers is decided by the control plane's own catalog, so that what is explained is what happens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from control_plane.catalog import Catalog
from modelplane.policies.view import PolicyView
from registry.assignments import Assignment, decode_assignment
from registry.drains import DrainRecord, decode_drain
from registry.follow import Changes, Snapshot, Update
from registry.found import Found, decode_found
from registry.keys import (
    AssignmentKey,
    DiskKey,
    DrainKey,
    InstanceKey,
    Key,
    Keyspace,
    LeaderKey,
    PlaneKey,
    ReadyKey,
    RolloutKey,
    SuspectsKey,
    TrafficKey,
)
from registry.leaders import LeaderRecord, decode_leader
from registry.lost import decode_lost
from registry.records import (
    InstanceRecord,
    PlaneRecord,
    ReadyRecord,
    RecordError,
    decode_instance,
    decode_plane,
    decode_ready,
)
from registry.rollouts import decode_rollout
from registry.traffic import decode_traffic

K = TypeVar("K")
T = TypeVar("T")


@dataclass(slots=True)
class Facts:
    """By instance, by model, by replica. `suspects`: what the control planes go on with without leases. `unreadable`:
    the keys whose values are no records, with the reason."""

    keyspace: Keyspace
    instances: dict[str, InstanceRecord] = field(default_factory=dict)
    disks: dict[str, Found] = field(default_factory=dict)
    assignments: dict[str, Assignment] = field(default_factory=dict)
    drains: dict[str, DrainRecord] = field(default_factory=dict)
    ready: dict[ReadyKey, ReadyRecord] = field(default_factory=dict)
    suspects: dict[str, frozenset[ReadyKey]] = field(default_factory=dict)
    planes: dict[str, PlaneRecord] = field(default_factory=dict)
    leader: LeaderRecord | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    policies: PolicyView = field(init=False)
    catalog: Catalog = field(init=False)

    def __post_init__(self) -> None:
        self.policies = PolicyView(self.keyspace)
        self.catalog = Catalog(self.keyspace)

    def apply(self, update: Update) -> None:
        """Take one update in."""
        self.policies.apply(update)
        self.catalog.apply(update, time.monotonic())
        match update:
            case Snapshot(entries=puts):
                self._take(puts)
            case Changes(puts=puts, deletes=deletes):
                self._take(dict.fromkeys(deletes))
                self._take(puts)

    def models(self) -> set[str]:
        """Every model that the registry names."""
        held = {one.model for record in self.instances.values() for one in record.servables}
        return {*self.policies.kept, *self.policies.traffic, *self.policies.rollouts, *self.catalog.models, *held}

    def suspected(self, key: ReadyKey) -> bool:
        """Whether it is used although its lease is lost."""
        return any(key in held for held in self.suspects.values())

    def _take(self, entries: Mapping[str, bytes | None]) -> None:
        for raw, value in entries.items():
            key = self.keyspace.parse(raw)
            self.unreadable.pop(raw, None)
            try:
                if key is not None:
                    self._one(key, value)
            except RecordError as error:
                self.unreadable[raw] = str(error)

    def _one(self, key: Key, value: bytes | None) -> None:
        match key:
            case InstanceKey(name):
                _keep(self.instances, name, value, decode_instance)
            case DiskKey(name):
                _keep(self.disks, name, value, decode_found)
            case AssignmentKey(name):
                _keep(self.assignments, name, value, decode_assignment)
            case DrainKey(name):
                _keep(self.drains, name, value, decode_drain)
            case PlaneKey(name):
                _keep(self.planes, name, value, decode_plane)
            case ReadyKey():
                _keep(self.ready, key, value, decode_ready)
            case LeaderKey():
                self.leader = None if value is None else decode_leader(value)
            case SuspectsKey(name):
                _keep(self.suspects, name, value, self._lost)
            case TrafficKey() if value is not None:
                # The view keeps them; here only whether they can be read.
                decode_traffic(value)
            case RolloutKey() if value is not None:
                decode_rollout(value)

    def _lost(self, value: bytes) -> frozenset[ReadyKey]:
        keys = map(self.keyspace.parse, decode_lost(value))
        return frozenset(key for key in keys if isinstance(key, ReadyKey))


def _keep(kept: dict[K, T], name: K, value: bytes | None, decode: Callable[[bytes], T]) -> None:
    with contextlib.suppress(KeyError):
        del kept[name]
    if value is not None:
        kept[name] = decode(value)
