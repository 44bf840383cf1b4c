"""The control plane's picture of the registry. Pure: updates and `now` in, changed models out; knows nothing of Envoy.

Invariants: a `Model` (serving.py) is a function of the registry's records and of which leases are in doubt, whatever
the order in which they arrived; an update costs what it changes, never the number of models; a model's last endpoints
are not removed for lease loss alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

from control_plane.intents import Intents
from control_plane.model import Model
from control_plane.serving import IN_USE, NO_ENDPOINT, serving_model
from control_plane.suspects import Belief, Hold, SuspectPolicy, Suspects, Suspicion, Verdict
from registry.follow import Changes, Connection, Snapshot
from registry.keys import (
    AssignmentKey,
    ClaimKey,
    DiskKey,
    DrainKey,
    EventKey,
    HistoryKey,
    InstanceKey,
    Keyspace,
    LeaderKey,
    LoadKey,
    OfPlane,
    PlaneKey,
    PolicyKey,
    ReadyKey,
    RolloutKey,
    SuspectsKey,
    TrafficKey,
)
from registry.lost import decode_lost
from registry.policy.model import Difference
from registry.records import ReadyRecord, ReadyState, RecordError, decode_plane, decode_ready, encode_ready

log = logging.getLogger(__name__)

_OF_ROLLOUTS = RolloutKey | HistoryKey | EventKey | LeaderKey
_WITHOUT_CONSEQUENCE = OfPlane | LoadKey | DiskKey | DrainKey | ClaimKey | AssignmentKey | _OF_ROLLOUTS


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
        self._intents = Intents()
        self._models: dict[str, Model] = {}
        self._instances: set[str] = set()
        self._draining: dict[str, dict[ReadyKey, Address]] = {}
        self._used: Counter[str] = Counter()
        """How many of its servables each instance may be sent requests for."""
        self._addresses: dict[str, Address] = {}
        self.suspects_elsewhere = 0
        """How many more suspects than it took over the replicas said that they hold, in the first list."""
        self._suspects = Suspects(policy or SuspectPolicy())
        self.revision = 0
        """The newest registry revision with a consequence for this picture; 0 before the first snapshot. The replicas'
        own keys have none, unless they came in a new list: else writing `converged_revision` would make a new revision
        to converge on, without end. Nor have what operators want drained, which monitor has claimed an instance and
        what it shall hold, for it is monitors that act on them, nor what is kept for people and for the leader. Of what
        operators want of a model, and of the leader, `models/` and `traffic/` count."""

    @property
    def models(self) -> Mapping[str, Model]:
        """Every known model."""
        return MappingProxyType(self._models)

    def difference(self, model: str) -> Difference | None:
        """What the model's policy says of answers that differ; None if nobody compares them."""
        return self._intents.difference(model)

    @property
    def instances(self) -> frozenset[str]:
        """The instances that hold their leases."""
        return frozenset(self._instances)

    @property
    def suspects(self) -> frozenset[str]:
        """The instances whose leases are lost and whose endpoints are used all the same."""
        return frozenset(self._suspect_keys)

    @property
    def suspect_entries(self) -> Mapping[str, bytes]:
        """What is in doubt, as it stood in the registry."""
        keys = (key for keys in self._suspect_keys.values() for key in keys)
        return {
            self._keyspace.make(key): encode_ready(self._records[key.model][key.version, key.instance]) for key in keys
        }

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
                touched = self._take(entries, (), now) | self._take_over(entries, now)
            case Changes(revision=revision, puts=puts, deletes=deletes, relisted=relisted):
                # A wiped etcd counts from the beginning again, even if the fleet has registered just as it was.
                if relisted and revision < self.revision:
                    deletes = self._outlive(deletes)
                keys = map(self._keyspace.parse, chain(puts, deletes))
                if relisted or not all(isinstance(key, _WITHOUT_CONSEQUENCE) for key in keys):
                    self.revision = revision
                touched = self._take(puts, deletes, now)
                # A new list is no proof that the watch goes on, and what it brings was written before it.
                if not relisted:
                    of_monitor = any(isinstance(self._keyspace.parse(key), InstanceKey | ReadyKey) for key in puts)
                    self._suspects.heard(now, monitor=of_monitor)
        return self._rebuild(touched)

    def expire(self, now: float) -> frozenset[str]:
        """Give up the instances whose loss is now believed; return the names of the models that this changed."""
        touched: set[str] = set()
        for instance, belief in self._suspects.believed(now, present=len(self._instances)).items():
            for key in sorted(self._suspect_keys[instance], key=lambda key: (key.model, key.version)):
                # What drains was kept for the sake of its requests in flight only.
                if self._is_draining(key) or belief is Belief.PROVED:
                    spare = True
                else:
                    spare = belief is Belief.UNPROVEN and self._has_other_endpoint(key)
                if spare:
                    log.info("model %s version %d on %s: lease lost, given up", key.model, key.version, instance)
                    self._drop(key)
                    touched.add(key.model)
            self._tidy((instance,))
        return self._rebuild(touched)

    def checked(self, verdicts: Mapping[str, tuple[Verdict, str]]) -> frozenset[str]:
        """Take in what the checks of suspects say, and why; return the names of the models that this changed."""
        touched: set[str] = set()
        for instance, (verdict, detail) in verdicts.items():
            if self._suspects.checked(instance, verdict, detail):
                touched.update(key.model for key in self._doubted(instance))
        return self._rebuild(touched)

    def suspicions(self, now: float) -> list[Suspicion]:
        """Each suspect with the reason for which it is held."""
        found = self._suspects.suspicions(now, present=len(self._instances))
        # What its time would let go and is there all the same is kept as a last endpoint.
        return [replace(one, hold=Hold.LAST) if one.hold is None else one for one in found]

    @property
    def suspect_keys(self) -> Mapping[str, frozenset[ReadyKey]]:
        """What is in doubt, by instance."""
        return {instance: frozenset(keys) for instance, keys in self._suspect_keys.items()}

    @property
    def evidence_asked(self) -> int:
        """How often evidence of the registry's health was needed anew: a write that tells it makes the watch speak."""
        return self._suspects.asked

    def address(self, instance: str) -> Address | None:
        """Where an instance with an endpoint is, as far as it is known."""
        return self._addresses.get(instance)

    def next_deadline(self, now: float) -> float | None:
        """When to call `expire` next; None if nothing is in doubt."""
        return self._suspects.next_deadline(now, present=len(self._instances))

    def _take(self, puts: Mapping[str, bytes], deletes: Iterable[str], now: float) -> set[str]:
        touched: set[str] = set()
        removed: list[ReadyKey] = []
        gone: set[str] = set()
        for raw in deletes:
            match self._keyspace.parse(raw):
                case InstanceKey(instance):
                    self._instances.discard(instance)
                    self._suspects.left(instance, now)
                    gone.add(instance)
                case ReadyKey() as key:
                    removed.append(key)
                case PolicyKey(model) | TrafficKey(model) as key:
                    self._intents.remove(key)
                    touched.add(model)
        for raw, value in puts.items():
            match self._keyspace.parse(raw):
                case InstanceKey(instance):
                    self._instances.add(instance)
                    self._suspects.returned(instance, now)
                case ReadyKey() as key:
                    self._put(key, value)
                    touched.add(key.model)
                case PolicyKey(model) | TrafficKey(model) as key:
                    self._intents.put(key, value)
                    touched.add(model)
        # Judged last: whether the instance's own key went with it tells a lost lease from the monitor's own word.
        for key in removed:
            self._remove(key, now)
            touched.add(key.model)
        touched |= self._supersede()
        self._tidy(gone)
        return touched

    def _outlive(self, deletes: Iterable[str]) -> frozenset[str]:
        """Without the policies and traffic of a registry that has lost its data or was put back to an older state: no
        operator took them away, and without them the fleet would answer with other versions."""
        kept = {key for key in deletes if isinstance(self._keyspace.parse(key), PolicyKey | TrafficKey)}
        if kept:
            log.warning(
                "the registry's revision went back, and %d policies and traffic records are gone from it: going on "
                "with them until they are written again or this control plane ends; restore them from a backup, or "
                "apply the policies again",
                len(kept),
            )
        return frozenset(deletes) - kept

    def _tidy(self, instances: Iterable[str]) -> None:
        """Forget the addresses of those that are gone for good."""
        for instance in instances:
            if instance not in self._instances and instance not in self._suspect_keys:
                self._addresses.pop(instance, None)

    def _take_over(self, entries: Mapping[str, bytes], now: float) -> set[str]:
        """Go on with what a replica that was there before holds without leases: a list of the registry can't tell."""
        told, touched = [0], set()
        for raw, value in entries.items():
            if not raw.startswith(self._keyspace.planes):
                continue
            with contextlib.suppress(RecordError):
                match self._keyspace.parse(raw):
                    case PlaneKey():
                        told.append(decode_plane(value).suspects)
                    case SuspectsKey():
                        for lost, record in decode_lost(value).items():
                            key = self._keyspace.parse(lost)
                            if isinstance(key, ReadyKey) and key.instance not in self._instances:
                                self._put(key, record)
                                self._remove(key, now)
                                touched.add(key.model)
        self.suspects_elsewhere = max(0, max(told) - len(self._suspect_keys))
        return touched

    def _supersede(self) -> set[str]:
        """Give up the suspects at whose addresses other instances have registered since: the server that answers there
        is another one now."""
        if not self._suspect_keys:
            return set()
        taken = {self._addresses[one]: one for one in self._instances if one in self._addresses}
        touched: set[str] = set()
        for instance in self._suspect_keys.keys() - self._instances:
            heir = taken.get(self._addresses[instance])
            if heir is not None:
                log.info("%s: lease lost, and %s is at its address now; given up", instance, heir)
                for key in tuple(self._suspect_keys[instance]):
                    self._drop(key)
                    touched.add(key.model)
                self._tidy((instance,))
        return touched

    def _put(self, key: ReadyKey, value: bytes) -> None:
        try:
            record = decode_ready(value)
        except RecordError as error:
            log.error("model %s version %d on %s: unreadable record, ignored: %s", *_names(key), error)
            return
        self._forget(key)
        self._records[key.model][key.version, key.instance] = record
        if record.state in IN_USE:
            self._used[key.instance] += 1
        self._addresses[key.instance] = _address(record)
        if record.state is ReadyState.DRAINING:
            self._draining.setdefault(key.instance, {})[key] = _address(record)

    def _remove(self, key: ReadyKey, now: float) -> None:
        record = self._records[key.model].get((key.version, key.instance))
        if record is None:
            return
        # One that drains too: its monitor's own word would have come before the instance's key went. An endpoint that
        # Envoy is told to drop is left out of its load reports, requests in flight or not, and its server is stopped.
        if record.state not in NO_ENDPOINT and key.instance not in self._instances:
            # One line per instance is the service's to say (guard.py): it may hold a thousand models.
            log.debug("model %s version %d on %s: lease lost, used on under suspicion", *_names(key))
            self._suspect_keys[key.instance].add(key)
            # Forgotten if its instance's key went before, in a revision of its own.
            self._addresses[key.instance] = _address(record)
            self._suspects.lost(key.instance, now)
        else:
            self._drop(key)

    def _drop(self, key: ReadyKey) -> None:
        self._forget(key)
        self._records[key.model].pop((key.version, key.instance), None)

    def _forget(self, key: ReadyKey) -> None:
        """Undo what this key's present record counts for outside its model."""
        record = self._records[key.model].get((key.version, key.instance))
        if record is not None and record.state in IN_USE:
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
            model = self._model(name)
            if not self._records[name]:
                del self._records[name]
            if model != self._models.get(name):
                changed.add(name)
                if model is None:
                    del self._models[name]
                else:
                    self._models[name] = model
        return frozenset(changed)

    def _model(self, name: str) -> Model | None:
        def doubted(version: int, instance: str) -> bool:
            return ReadyKey(name, version, instance) in self._doubted(instance)

        intent = self._intents.of(name)
        return serving_model(name, self._records[name], doubted, self._suspects.dead, intent)


def _address(record: ReadyRecord) -> Address:
    return Address(record.address, record.grpc_port, record.rest_port)


def _names(key: ReadyKey) -> tuple[str, int, str]:
    return key.model, key.version, key.instance
