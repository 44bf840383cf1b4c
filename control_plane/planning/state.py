"""The fleet as the planner sees it, built from the registry's entries as they change. Pure.

Invariants: the state is a function of the entries, whatever the order in which they came, but for `away_since` and
`touched`, which tell of time, and for records of the leader's own that somebody made unreadable: the last that could be
read holds, and is to be written again; an entry costs what it names, never the number of models, unless it changes what
all of them may use (an instance that comes or goes).
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from registry.assignments import FULL, AssignedModel, Assignment, decode_assignment
from registry.drains import DrainRecord, decode_drain
from registry.events import Event
from registry.follow import Changes, Connection, Snapshot
from registry.found import Found, FoundModel, decode_found
from registry.keys import (
    AssignmentKey,
    DiskKey,
    DrainKey,
    InstanceKey,
    Key,
    Keyspace,
    PlaneKey,
    PlaneTrafficKey,
    PolicyKey,
    ReadyKey,
    RolloutKey,
    TrafficKey,
)
from registry.plane_traffic import TrafficSum, decode_plane_traffic
from registry.policy.model import Policy
from registry.policy.stored import read_stored
from registry.records import (
    Condition,
    InstanceRecord,
    PlaneRecord,
    ReadyState,
    RecordError,
    ServableState,
    decode_instance,
    decode_plane,
    decode_ready,
)
from registry.rollouts import RolloutRecord, decode_rollout
from registry.traffic import TrafficRecord, decode_traffic

log = logging.getLogger(__name__)

MEMORY_FACTOR = 1.2
"""Bytes of memory per byte of a version's files: variables are there once more while they are read, and there is the
graph. A guess on the safe side; what an instance may hold at all is said by its monitor."""

_OCCUPIES = (ServableState.START, ServableState.LOADING, ServableState.AVAILABLE, ServableState.UNLOADING)
_UNSERVED = ("ProofFailed", "LoadLate")
_VERSION = re.compile(r" version (\d{1,19}): ")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wish:
    """A policy that can be read."""

    policy: Policy
    generation: int


@dataclass(frozen=True, slots=True)
class Instance:
    """What matters of an instance's record. `memory`: bytes for models, 0: unknown. By model, `held`: the versions that
    take memory on it; `failed`: those that it will not serve unless something changes, and why; `given_up`: those
    of them whose loading failed, and which it does not try again by itself."""

    managed: bool
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    memory: int = 0
    held: Mapping[str, frozenset[int]] = field(default_factory=dict)
    failed: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    given_up: Mapping[str, frozenset[int]] = field(default_factory=dict)


class FleetState:
    """Apply updates in order; `touched` collects the models that have to be planned again."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self.revision = 0
        self.wishes: dict[str, Wish] = {}
        self.unreadable: set[str] = set()
        """The models of whose policies no sense can be made: nothing of them is changed."""
        self.instances: dict[str, Instance] = {}
        self.ready: defaultdict[str, dict[tuple[int, str], ReadyState]] = defaultdict(dict)
        self.disk: dict[str, Found] = {}
        self.assignments: dict[str, Assignment] = {}
        self.holders: defaultdict[str, set[str]] = defaultdict(set)
        """By model, the instances to which it is assigned."""
        self.traffic: dict[str, TrafficRecord] = {}
        self.rollouts: dict[str, RolloutRecord] = {}
        self.drains: dict[str, DrainRecord] = {}
        self.statistics = TrafficSum()
        """What answered how; nothing is planned for its sake but at the time that a canary has set."""
        self.away_since: dict[str, float] = {}
        """When each instance that is lost, or drained whole, was first seen to be so."""
        self.mirrored_by: defaultdict[str, set[str]] = defaultdict(set)
        """By model, the other models whose policies mirror requests to it."""
        self.news: list[Event] = []
        """What was seen to fail for good, and who was seen to go, since this was emptied last."""
        self.touched: set[str] = set()
        self.damaged: set[Key] = set()
        """The leader's own records that can't be read, and have to be written again."""
        self._lost: set[str] = set()
        """Of these, the models whose rollout is not there at all, so that nothing tells when it is deleted."""
        self.planes: dict[str, PlaneRecord] = {}
        self.traffic_revisions: dict[str, int] = {}
        """At which revision each model's traffic was written last; whoever applies a list has to set it, for a list
        does not tell."""
        self.unmoved: set[str] = set()
        """The models whose traffic some Envoy may not know yet, and which wait for that."""
        self._everywhere: set[str] = set()
        """The models that belong on every instance that matches."""
        self.waiting: set[str] = set()
        """The models that want more than they have, so that any change of the instances may help them."""
        self.crowded: set[str] = set()
        """The models of which a zone has several copies, so that an instance elsewhere may be better."""
        self.balancing: set[str] = set()
        """Those of which a copy is on its way to another zone."""
        self.full_at = FULL
        self.spelled: dict[str, int] = {}
        """Bytes of each instance's assignment as it is written."""
        self._sizes: dict[tuple[str, int], int] = {}
        self._used: dict[str, float] = {}

    # -- what comes in

    def apply(self, update: Snapshot | Changes | Connection, now: float) -> None:
        """Take an update in. `now`: Unix seconds, for `away_since`."""
        match update:
            case Snapshot(revision=revision, entries=entries):
                self.revision = revision
                self._take(entries, (), now)
            case Changes(revision=revision, puts=puts, deletes=deletes):
                self.revision = revision
                self._take(puts, deletes, now)

    def _take(self, puts: Mapping[str, bytes], deletes: Iterable[str], now: float) -> None:
        for raw in deletes:
            if (key := self._keyspace.parse(raw)) is not None:
                self._change(key, None, now)
        for raw, value in puts.items():
            if (key := self._keyspace.parse(raw)) is not None:
                self._change(key, value, now)

    def _change(self, key: Key, value: bytes | None, now: float) -> None:
        match key:
            case ReadyKey(model, version, instance):
                self._ready_changed(model, version, instance, value)
            case InstanceKey(instance):
                self._instance_changed(instance, value, now)
            case DiskKey(instance):
                self._disk_changed(instance, value)
            case AssignmentKey(instance):
                self._assignment_changed(instance, value, now)
            case PolicyKey(model):
                self._policy_changed(model, value)
            case TrafficKey(model):
                _keep(self.traffic_revisions, model, self.revision if value is not None else None)
                self._record_changed(self.traffic, model, key, value, decode_traffic)
            case RolloutKey(model):
                self._rollout_changed(model, value)
            case PlaneKey(replica):
                _keep(self.planes, replica, self._decoded(key, value, decode_plane))
                self.touched |= {model for model in self.unmoved if self.moved(model)}
            case PlaneTrafficKey(replica):
                self.statistics.apply(replica, self._decoded(key, value, decode_plane_traffic))
            case DrainKey(instance):
                record = self._decoded(key, value, decode_drain)
                _keep(self.drains, instance, record)
                self._note_away(instance, now)
                self._fleet_changed(instance)

    def _ready_changed(self, model: str, version: int, instance: str, value: bytes | None) -> None:
        record = self._decoded(ReadyKey(model, version, instance), value, decode_ready)
        before = self.ready[model].pop((version, instance), None)
        if record is not None:
            self.ready[model][version, instance] = record.state
        if not self.ready[model]:
            del self.ready[model]
        if (record.state if record else None) != before:
            self.touched.add(model)

    def _instance_changed(self, name: str, value: bytes | None, now: float) -> None:
        record = self._decoded(InstanceKey(name), value, decode_instance)
        before = self.instances.get(name)
        after = instance_of(record) if record is not None else None
        if after == before:
            return
        _keep(self.instances, name, after)
        self._note_away(name, now)
        self._used.pop(name, None)
        if before is None or after is None or _room(before) != _room(after):
            self._fleet_changed(name)
        else:
            self.touched |= _different(before.held, after.held) | _different(before.failed, after.failed)
            self.touched |= _different(before.given_up, after.given_up)
            if before.held != after.held:
                self.touched |= self.waiting
        if before is not None and after is not None:
            self.news += self._failures(name, before, after, now)
        elif after is None and (assignment := self.assignments.get(name)) is not None and assignment.models:
            self.news.append(
                Event(now, "InstanceLost", instance=name, text=f"{len(assignment.models)} models are assigned to it")
            )

    def _failures(self, name: str, before: Instance, after: Instance, now: float) -> Iterator[Event]:
        for model in sorted(_different(before.failed, after.failed) & self.wishes.keys()):
            why = after.failed.get(model, {})
            for version in sorted(why.keys() - before.failed.get(model, {}).keys()):
                yield Event(now, "LoadFailed", model, name, version, why[version])

    def _disk_changed(self, name: str, value: bytes | None) -> None:
        found = self._decoded(DiskKey(name), value, decode_found) or Found()
        before = self.disk.get(name, Found())
        _keep(self.disk, name, found if value is not None else None)
        for model in before.models.keys() | found.models.keys():
            after = found.models.get(model)
            if before.models.get(model) == after:
                continue
            self.touched.add(model)
            for version, size in after.versions.items() if after else ():
                if size > self._sizes.get((model, version), 0):
                    self._sizes[model, version] = size
                    # What lies here may be assigned elsewhere, where its size was not known.
                    self._used.clear()

    def _assignment_changed(self, name: str, value: bytes | None, now: float) -> None:
        key, before = AssignmentKey(name), self.assignments.get(name, Assignment())
        assignment = self._decoded(key, value, decode_assignment)
        if self._is_damaged(key, value, assignment):
            self.touched |= before.models.keys()
            return
        _keep(self.assignments, name, assignment)
        was_full = self.spelled.get(name, 0) >= self.full_at
        _keep(self.spelled, name, len(value) if value is not None else None)
        is_full = self.spelled.get(name, 0) >= self.full_at
        if is_full and not was_full:
            text = f"its assignment is {self.spelled[name]} bytes long and takes no more models, for etcd takes no more"
            self.news.append(Event(now, "AssignmentFull", instance=name, text=text))
        elif was_full and not is_full:
            self.touched |= self.waiting
        after = assignment or Assignment()
        for model in before.models.keys() | after.models.keys():
            if before.models.get(model) != after.models.get(model):
                self.touched.add(model)
                if self._frees(name, model, before, after):
                    self.touched |= self.waiting
                (self.holders[model].add if model in after.models else self.holders[model].discard)(name)
                if not self.holders[model]:
                    del self.holders[model]
        self._used.pop(name, None)
        self._note_away(name, now)

    def _frees(self, name: str, model: str, before: Assignment, after: Assignment) -> bool:
        """Whether memory is free at once, for what is taken out of the assignment was never there."""
        instance, old, new = self.instances.get(name), before.models.get(model), after.models.get(model)
        if instance is None or not instance.memory or old is None:
            return False
        kept = {*(new.versions if new is not None else ()), *instance.held.get(model, ())}
        return not kept.issuperset(old.versions)

    def _policy_changed(self, model: str, value: bytes | None) -> None:
        self.touched.add(model)
        before = self.wishes.pop(model, None)
        if value is None and model in self._lost:
            self._lost.discard(model)
            self.damaged.discard(RolloutKey(model))
            self.rollouts.pop(model, None)
        self.unreadable.discard(model)
        self._everywhere.discard(model)
        if before is not None and before.policy.mirror is not None:
            self._mirrors(before.policy.mirror.model, model, on=False)
        if value is None:
            return
        try:
            stored, policy = read_stored(value, model)
        except RecordError as error:
            log.error("model %s: its policy can't be read, so nothing of it is changed: %s", model, error)
            self.unreadable.add(model)
            return
        self.wishes[model] = Wish(policy, stored.generation)
        if policy.base_path and policy.replicas is None:
            self._everywhere.add(model)
        if policy.mirror is not None:
            self._mirrors(policy.mirror.model, model, on=True)

    def _mirrors(self, target: str, source: str, *, on: bool) -> None:
        if target == source:
            return
        (self.mirrored_by[target].add if on else self.mirrored_by[target].discard)(source)
        if not self.mirrored_by[target]:
            del self.mirrored_by[target]
        self.touched.add(target)

    def _record_changed(
        self, kept: dict[str, T], model: str, key: Key, value: bytes | None, decode: Callable[[bytes], T]
    ) -> None:
        before = kept.get(model)
        after = self._decoded(key, value, decode)
        if self._is_damaged(key, value, after):
            self.touched.add(model)
            return
        _keep(kept, model, after)
        if before != after:
            self.touched.add(model)

    def _rollout_changed(self, model: str, value: bytes | None) -> None:
        """Where somebody took away how far a rollout is, while there is a policy, the last holds: without it a canary
        that has most of the traffic would pass for the version that always answered. The leader deletes it after the
        policy only."""
        key = RolloutKey(model)
        if value is None and model in self.wishes and model in self.rollouts:
            self._lost.add(model)
            self.damaged.add(key)
            self.touched.add(model)
            return
        self._lost.discard(model)
        self._record_changed(self.rollouts, model, key, value, decode_rollout)

    def _is_damaged(self, key: Key, value: bytes | None, record: object) -> bool:
        damaged = value is not None and record is None
        (self.damaged.add if damaged else self.damaged.discard)(key)
        return damaged

    def _decoded(self, key: Key, value: bytes | None, decode: Callable[[bytes], T]) -> T | None:
        if value is None:
            return None
        try:
            return decode(value)
        except RecordError as error:
            log.error("%s: unreadable record, ignored: %s", self._keyspace.make(key), error)
            return None

    def _note_away(self, name: str, now: float) -> None:
        drain = self.drains.get(name)
        away = name not in self.instances or (drain is not None and drain.whole)
        if away and (name in self.instances or name in self.assignments):
            self.away_since.setdefault(name, now)
        else:
            self.away_since.pop(name, None)

    def _fleet_changed(self, name: str) -> None:
        """An instance came, went, or can be used otherwise than before."""
        assignment, instance = self.assignments.get(name), self.instances.get(name)
        if instance is not None and instance.zone:
            self.touched |= self.crowded
        self.touched |= self._everywhere | self.waiting | (assignment.models.keys() if assignment else set())

    # -- what may be asked

    def moved(self, model: str) -> bool:
        """Whether every Envoy goes by the traffic as it is written; one that nobody has at present may not."""
        revision = self.traffic_revisions.get(model, 0)
        return all(plane.converged_revision >= revision and not plane.away for plane in self.planes.values())

    def found(self, instance: str, model: str, base_path: str) -> FoundModel | None:
        """What lies on an instance's disk for a model; None: not told."""
        disk = self.disk.get(instance)
        found = disk.models.get(model) if disk is not None else None
        return found if found is not None and found.base_path == base_path else None

    def size(self, model: str, version: int) -> float:
        """Bytes of memory that a version takes, as far as is known."""
        return MEMORY_FACTOR * self._sizes.get((model, version), 0)

    def used(self, name: str) -> float:
        """Bytes that an instance needs for all that is assigned to it, and for what it holds besides."""
        if name not in self._used:
            instance, assignment = self.instances.get(name), self.assignments.get(name, Assignment())
            there = {(model, version) for model, one in assignment.models.items() for version in one.versions}
            for model, versions in instance.held.items() if instance is not None else ():
                there |= {(model, version) for version in versions}
            self._used[name] = sum(self.size(*servable) for servable in there)
        return self._used[name]

    def assigned(self, instance: str, model: str) -> AssignedModel | None:
        """What is assigned of a model to an instance."""
        assignment = self.assignments.get(instance)
        return assignment.models.get(model) if assignment is not None else None

    def known_models(self) -> set[str]:
        """All that the planner may have to do with."""
        return self.wishes.keys() | self.holders.keys() | self.traffic.keys() | self.rollouts.keys()


def _keep(kept: dict[str, T], name: str, value: T | None) -> None:
    if value is None:
        kept.pop(name, None)
    else:
        kept[name] = value


def _room(one: Instance) -> tuple[object, ...]:
    return one.managed, one.zone, one.labels, one.memory


def _different(before: Mapping[str, T], after: Mapping[str, T]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def instance_of(record: InstanceRecord) -> Instance:
    """What matters of a record."""
    held: defaultdict[str, set[int]] = defaultdict(set)
    failed: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for one in record.servables:
        if one.state in _OCCUPIES:
            held[one.model].add(one.version)
        elif one.error and not record.managed:
            failed[one.model][one.version] = one.error
    given_up: defaultdict[str, set[int]] = defaultdict(set)
    for condition in record.conditions:
        version, final = _version(condition), _is_final(condition)
        if version is None or not (final or condition.name in _UNSERVED):
            continue
        failed[condition.model][version] = condition.text
        if final:
            given_up[condition.model].add(version)
    return Instance(
        record.managed, record.zone, dict(record.labels), record.memory,
        _frozen(held), dict(failed), _frozen(given_up),
    )  # fmt: skip


def _version(condition: Condition) -> int | None:
    if condition.version is not None:
        return condition.version
    # A monitor older than that field names it in its text alone.
    found = _VERSION.search(condition.text)
    return int(found[1]) if found is not None else None


def _is_final(condition: Condition) -> bool:
    return condition.name == "LoadFailed" and (condition.final or "given up after " in condition.text)


def _frozen(versions: Mapping[str, set[int]]) -> dict[str, frozenset[int]]:
    return {model: frozenset(some) for model, some in versions.items()}
