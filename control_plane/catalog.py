"""The control plane's picture of the registry. Pure: updates and `now` in, changed models out; knows nothing of Envoy.

Invariants: a `Model` is a function of the registry's records and of which leases are in doubt, whatever the order in
which they arrived; an update costs what it changes, never the number of models; a model's last endpoints are not
removed for lease loss alone.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

from control_plane.model import Endpoint, Health, Model
from control_plane.suspects import SuspectPolicy, Suspects
from registry.follow import Changes, Connection, Snapshot
from registry.keys import ClaimKey, DrainKey, InstanceKey, Keyspace, NodesKey, PlaneKey, ReadyKey
from registry.records import ReadyRecord, ReadyState, RecordError, decode_ready

log = logging.getLogger(__name__)

_HEALTH = {
    ReadyState.READY: Health.READY,
    ReadyState.FAILING: Health.FAILING,
    ReadyState.DRAINING: Health.DRAINING,
}
_IN_USE = (ReadyState.READY, ReadyState.FAILING)


@dataclass(frozen=True, slots=True)
class Address:
    """Where one instance's endpoints are, as load reports name them. Ports are TCP; `rest_port` is 0 without REST."""

    address: str
    grpc_port: int
    rest_port: int

    @property
    def ports(self) -> frozenset[tuple[str, int]]:
        """Each of its ports with the address."""
        return frozenset((self.address, port) for port in (self.grpc_port, self.rest_port) if port)


class Catalog:
    """Apply registry updates in order; read models by name."""

    def __init__(self, keyspace: Keyspace, policy: SuspectPolicy | None = None) -> None:
        self._keyspace = keyspace
        self._records: defaultdict[str, dict[tuple[int, str], ReadyRecord]] = defaultdict(dict)
        self._suspect_keys: defaultdict[str, set[ReadyKey]] = defaultdict(set)
        self._models: dict[str, Model] = {}
        self._instances: set[str] = set()
        self._draining: dict[str, dict[ReadyKey, Address]] = {}
        self._used: Counter[str] = Counter()
        """How many of its servables each instance may be sent requests for."""
        self._suspects = Suspects(policy or SuspectPolicy())
        self.revision = 0
        """The newest registry revision with a consequence for this picture; 0 before the first snapshot. The replicas'
        own keys have none, unless they came in a new list: else writing `converged_revision` would make a new revision
        to converge on, without end. Nor have what operators want drained and which monitor
        has claimed an instance, for it is monitors that act on them."""

    @property
    def models(self) -> Mapping[str, Model]:
        """Every known model."""
        return MappingProxyType(self._models)

    @property
    def instances(self) -> frozenset[str]:
        """The instances that hold their leases."""
        return frozenset(self._instances)

    @property
    def suspects(self) -> frozenset[str]:
        """The instances whose leases are lost and whose endpoints are used all the same."""
        return frozenset(self._suspect_keys)

    @property
    def draining(self) -> Mapping[str, Mapping[ReadyKey, Address]]:
        """The draining instances, with what of each of them drains and where to watch for its requests in flight."""
        return MappingProxyType(self._draining)

    def is_used(self, instance: str) -> bool:
        """Whether an instance may be sent requests for anything."""
        return self._used[instance] > 0

    @property
    def draining_versions(self) -> frozenset[tuple[str, int]]:
        """The models and versions that have a draining endpoint."""
        return frozenset((key.model, key.version) for held in self._draining.values() for key in held)

    def apply(self, update: Snapshot | Changes | Connection, now: float) -> frozenset[str]:
        """Take an update in; return the names of the models that are different after it."""
        match update:
            case Connection(connected=connected):
                self._suspects.connection(connected=connected, now=now)
                return frozenset()
            case Snapshot(revision=revision, entries=entries):
                self.revision = revision
                touched = self._take(entries, (), now)
            case Changes(revision=revision, puts=puts, deletes=deletes, relisted=relisted):
                # A wiped etcd counts from the beginning again, even if the fleet has registered just as it was.
                keys = map(self._keyspace.parse, chain(puts, deletes))
                if relisted or not all(isinstance(key, PlaneKey | NodesKey | DrainKey | ClaimKey) for key in keys):
                    self.revision = revision
                touched = self._take(puts, deletes, now)
        return self._rebuild(touched)

    def expire(self, now: float) -> frozenset[str]:
        """Give up the instances whose loss is now believed; return the names of the models that this changed."""
        touched: set[str] = set()
        for instance in self._suspects.believed(now, present=len(self._instances)):
            for key in sorted(self._suspect_keys[instance], key=lambda key: (key.model, key.version)):
                spare = self._has_other_endpoint(key)
                if spare:
                    log.info("model %s version %d on %s: lease lost, given up", key.model, key.version, instance)
                # An instance that came back and did not register this one again has given its word, which is more than
                # a lost lease. And what drains was kept for the sake of its requests in flight only.
                if spare or instance in self._instances or self._is_draining(key):
                    self._drop(key)
                    touched.add(key.model)
        return self._rebuild(touched)

    def next_deadline(self, now: float) -> float | None:
        """When to call `expire` next; None if nothing is in doubt."""
        return self._suspects.next_deadline(now)

    def _take(self, puts: Mapping[str, bytes], deletes: Iterable[str], now: float) -> set[str]:
        touched: set[str] = set()
        removed: list[ReadyKey] = []
        for raw in deletes:
            match self._keyspace.parse(raw):
                case InstanceKey(instance):
                    self._instances.discard(instance)
                case ReadyKey() as key:
                    removed.append(key)
        for raw, value in puts.items():
            match self._keyspace.parse(raw):
                case InstanceKey(instance):
                    self._instances.add(instance)
                    self._suspects.returned(instance, now)
                case ReadyKey() as key:
                    self._put(key, value)
                    touched.add(key.model)
        # Judged last: whether the instance's own key went with it tells a lost lease from the monitor's own word.
        for key in removed:
            self._remove(key, now)
            touched.add(key.model)
        return touched

    def _put(self, key: ReadyKey, value: bytes) -> None:
        try:
            record = decode_ready(value)
        except RecordError as error:
            log.error("model %s version %d on %s: unreadable record, ignored: %s", *_names(key), error)
            return
        self._forget(key)
        self._records[key.model][key.version, key.instance] = record
        if record.state in _IN_USE:
            self._used[key.instance] += 1
        if record.state is ReadyState.DRAINING:
            self._draining.setdefault(key.instance, {})[key] = _address(record)

    def _remove(self, key: ReadyKey, now: float) -> None:
        record = self._records[key.model].get((key.version, key.instance))
        if record is None:
            return
        # One that drains too: its monitor's own word would have come before the instance's key went. An endpoint that
        # Envoy is told to drop is left out of its load reports, requests in flight or not, and its server is stopped.
        if record.state is not ReadyState.LOADING and key.instance not in self._instances:
            log.warning("model %s version %d on %s: lease lost, used on under suspicion", *_names(key))
            self._suspect_keys[key.instance].add(key)
            self._suspects.lost(key.instance, now)
        else:
            self._drop(key)

    def _drop(self, key: ReadyKey) -> None:
        self._forget(key)
        self._records[key.model].pop((key.version, key.instance), None)

    def _forget(self, key: ReadyKey) -> None:
        """Undo what this key's present record counts for outside its model."""
        record = self._records[key.model].get((key.version, key.instance))
        if record is not None and record.state in _IN_USE:
            self._used[key.instance] -= 1
            if not self._used[key.instance]:
                del self._used[key.instance]
        held = self._draining.get(key.instance)
        if held is not None and held.pop(key, None) is not None and not held:
            del self._draining[key.instance]
        if keys := self._suspect_keys.get(key.instance):
            keys.discard(key)
            if not keys:
                del self._suspect_keys[key.instance]
                self._suspects.forget(key.instance)

    def _has_other_endpoint(self, key: ReadyKey) -> bool:
        """Whether the model has an endpoint left that nobody doubts."""
        return any(
            record.state is ReadyState.READY and ReadyKey(key.model, version, instance) not in self._doubted(instance)
            for (version, instance), record in self._records[key.model].items()
        )

    def _is_draining(self, key: ReadyKey) -> bool:
        return key in self._draining.get(key.instance, ())

    def _doubted(self, instance: str) -> set[ReadyKey]:
        return self._suspect_keys.get(instance) or set()

    def _rebuild(self, touched: Iterable[str]) -> frozenset[str]:
        changed = set()
        for name in touched:
            records = self._records[name]
            if not records:
                del self._records[name]
            model = self._model(name, records) if records else None
            if model != self._models.get(name):
                changed.add(name)
                if model is None:
                    del self._models[name]
                else:
                    self._models[name] = model
        return frozenset(changed)

    def _model(self, name: str, records: Mapping[tuple[int, str], ReadyRecord]) -> Model:
        versions: defaultdict[int, list[Endpoint]] = defaultdict(list)
        failing: defaultdict[int, set[str]] = defaultdict(set)
        several: set[int] = set()
        for (version, instance), record in sorted(records.items()):
            endpoints = versions[version]
            if record.state in (ReadyState.LOADING, ReadyState.DRAINED):
                continue
            doubted = ReadyKey(name, version, instance) in self._doubted(instance)
            health = Health.SUSPECT if doubted and record.state in _IN_USE else _HEALTH[record.state]
            where = (record.address, record.grpc_port, record.rest_port)
            endpoints.append(Endpoint(instance, *where, record.zone, record.capacity, health))
            if record.state is ReadyState.FAILING:
                failing[version].add(instance)
            if record.several_versions:
                several.add(version)
        # By what the instances hold, failing or not: else a version that overloads half of the fleet would be taken
        # from the other half as well.
        served = _served(tuple((version, tuple(endpoints)) for version, endpoints in versions.items()))
        used = tuple((version, _used(endpoints, failing[version])) for version, endpoints in versions.items())
        return Model(name, used, served, pinned=served in several)


def _used(endpoints: Iterable[Endpoint], failing: Container[str]) -> tuple[Endpoint, ...]:
    """Without the instances on which it fails, unless it is READY on no other. One whose lease was lost counts as READY
    here: an etcd that loses its leases must not bring back what does not answer."""
    others = tuple(endpoint for endpoint in endpoints if endpoint.instance not in failing)
    return others if any(endpoint.health is not Health.DRAINING for endpoint in others) else tuple(endpoints)


def _served(versions: tuple[tuple[int, tuple[Endpoint, ...]], ...]) -> int | None:
    """The version that the whole fleet answers with when a request names none: the newest that at least half of the
    model's instances have, so that a switch neither waits for the last instance nor throws the whole load on the
    first; while no version has that, the commonest, newest first."""
    usable = {
        version: {endpoint.instance for endpoint in endpoints if endpoint.health is not Health.DRAINING}
        for version, endpoints in versions
    }
    instances = set().union(*usable.values())
    if not instances:
        # Only draining endpoints, or none: name the newest that has any, for its cluster keeps the model known.
        return max((version for version, endpoints in versions if endpoints), default=None)
    enough = [version for version, held in usable.items() if 2 * len(held) >= len(instances)]
    return max(enough) if enough else max(usable, key=lambda version: (len(usable[version]), version))


def _address(record: ReadyRecord) -> Address:
    return Address(record.address, record.grpc_port, record.rest_port)


def _names(key: ReadyKey) -> tuple[str, int, str]:
    return key.model, key.version, key.instance
