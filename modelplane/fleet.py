"""The fleet as the registry tells it, for people. Pure: registry updates in, an immutable picture out.

Invariant: which version is served is decided by the control plane's own catalog, so the table can't tell another story
than the routing does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from control_plane.catalog import Catalog
from control_plane.model import Health, Model
from registry.follow import Changes, Connection, Snapshot, Update
from registry.keys import InstanceKey, Keyspace, LeaderKey, LoadKey, PlaneKey, PlaneTrafficKey, ReadyKey
from registry.leaders import LeaderRecord, decode_leader
from registry.loads import LoadRecord, decode_load
from registry.plane_traffic import PlaneTraffic, decode_plane_traffic
from registry.records import (
    InstanceRecord,
    PlaneRecord,
    Proof,
    ReadyState,
    RecordError,
    Servable,
    ServableState,
    decode_instance,
    decode_plane,
    decode_ready,
)


class State(StrEnum):
    """One version of one model on one instance, in a person's words."""

    READY = "ready"
    LOADING = "loading"
    PROVING = "being tried"
    DRAINING = "draining"
    DRAINED = "drained"
    SUSPECT = "lease lost"
    FAILING = "failing"
    """It answered before; asked only where no other instance is ready for the version."""
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Holding:
    """What one instance says of one version; `reason` tells why it isn't ready, where there is one, `proof` what it
    answered when it was asked."""

    state: State
    reason: str = ""
    proof: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one model across the fleet; `served`: requests that name no version get it."""

    model: str
    version: int
    served: bool
    holdings: Mapping[str, Holding]


@dataclass(frozen=True, slots=True)
class Picture:
    """The fleet at `revision`; versions by model, newest first."""

    revision: int = 0
    connected: bool = False
    versions: tuple[Version, ...] = ()
    instances: Mapping[str, InstanceRecord] = field(default_factory=dict)
    planes: Mapping[str, PlaneRecord] = field(default_factory=dict)
    loads: Mapping[str, LoadRecord] = field(default_factory=dict)
    traffic: Mapping[str, PlaneTraffic] = field(default_factory=dict)
    """By control plane."""

    leader: LeaderRecord | None = None
    """The control plane that carries out policies."""

    @property
    def converged(self) -> bool:
        """Whether some Envoy is connected and all of them have been brought to `revision`."""
        planes = self.planes.values()
        return any(plane.envoys for plane in planes) and all(
            plane.converged_revision >= self.revision for plane in planes
        )

    def holdings(self, instance: str, model: str) -> list[Holding]:
        """What an instance says of a model, all versions."""
        return [row.holdings[instance] for row in self.versions if row.model == model and instance in row.holdings]


class Fleet:
    """Takes the registry's updates in, in order."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._catalog = Catalog(keyspace)
        self._instances: dict[str, InstanceRecord] = {}
        self._planes: dict[str, PlaneRecord] = {}
        self._loads: dict[str, LoadRecord] = {}
        self._traffic: dict[str, PlaneTraffic] = {}
        self._leader: LeaderRecord | None = None
        self._special: dict[ReadyKey, State] = {}
        """What may be no endpoint and is more than its servable tells."""
        self._connected = False

    def apply(self, update: Update, now: float) -> None:
        """Take one update in; `now` is monotonic seconds."""
        self._catalog.apply(update, now)
        match update:
            case Connection(connected=connected):
                self._connected = connected
            case Snapshot(entries=entries):
                self._connected = True
                self._take(entries)
            case Changes(puts=puts, deletes=deletes):
                self._connected = True
                for raw in deletes:
                    self._drop(raw)
                self._take(puts)

    def picture(self, now: float) -> Picture:
        """The fleet at `now`: instances whose leases were lost long enough ago are given up."""
        self._catalog.expire(now)
        return Picture(
            revision=self._catalog.revision,
            connected=self._connected,
            versions=_versions(self._catalog.models, self._instances, self._special),
            instances=dict(sorted(self._instances.items())),
            planes=dict(self._planes),
            loads=dict(self._loads),
            leader=self._leader,
            traffic=dict(self._traffic),
        )

    def _take(self, entries: Mapping[str, bytes]) -> None:
        for raw, value in entries.items():
            try:
                match self._keyspace.parse(raw):
                    case InstanceKey(instance):
                        self._instances[instance] = decode_instance(value)
                    case LoadKey(instance):
                        self._loads[instance] = decode_load(value)
                    case PlaneKey(replica):
                        self._planes[replica] = decode_plane(value)
                    case LeaderKey():
                        self._leader = decode_leader(value)
                    case PlaneTrafficKey(replica):
                        self._traffic[replica] = decode_plane_traffic(value)
                    case ReadyKey() as key:
                        state = _SPECIAL.get(decode_ready(value).state)
                        if state is not None:
                            self._special[key] = state
                        else:
                            self._special.pop(key, None)
            except RecordError:
                # Somebody wrote nonsense; the last good record is the better thing to show.
                continue

    def _drop(self, raw: str) -> None:
        match self._keyspace.parse(raw):
            case InstanceKey(instance):
                self._instances.pop(instance, None)
            case LoadKey(instance):
                self._loads.pop(instance, None)
            case PlaneKey(replica):
                self._planes.pop(replica, None)
            case LeaderKey():
                self._leader = None
            case PlaneTrafficKey(replica):
                self._traffic.pop(replica, None)
            case ReadyKey() as key:
                self._special.pop(key, None)


_SPECIAL = {ReadyState.FAILING: State.FAILING, ReadyState.DRAINED: State.DRAINED}
_HEALTH = {
    Health.READY: State.READY,
    Health.DRAINING: State.DRAINING,
    Health.SUSPECT: State.SUSPECT,
    Health.UNANSWERED: State.SUSPECT,
    Health.FAILING: State.FAILING,
}


def _versions(
    models: Mapping[str, Model], instances: Mapping[str, InstanceRecord], special: Mapping[ReadyKey, State]
) -> tuple[Version, ...]:
    rows: defaultdict[tuple[str, int], dict[str, Holding]] = defaultdict(dict)
    for instance, record in instances.items():
        for servable in record.servables:
            holding = _holding(servable, special.get(ReadyKey(servable.model, servable.version, instance)))
            if holding is not None:
                rows[servable.model, servable.version][instance] = holding
    for model in models.values():
        for version, endpoints in model.versions:
            for endpoint in endpoints:
                # The readiness key is what routing goes by, so it has the last word.
                held = rows[model.name, version]
                told, state = held.get(endpoint.instance, _UNTOLD), _HEALTH[endpoint.health]
                if state is State.DRAINING:  # what fails is listed like that too
                    state = special.get(ReadyKey(model.name, version, endpoint.instance), state)
                held[endpoint.instance] = replace(told, state=state, reason=told.reason if told.state is state else "")
    ordered = sorted(rows.items(), key=lambda row: (row[0][0], -row[0][1]))
    return tuple(
        Version(name, version, name in models and models[name].served == version, dict(sorted(holdings.items())))
        for (name, version), holdings in ordered
    )


_UNTOLD = Holding(State.PROVING)


def _holding(servable: Servable, special: State | None) -> Holding | None:
    match servable.state:
        case ServableState.AVAILABLE if special is State.DRAINED:
            return Holding(State.DRAINED)
        case ServableState.START | ServableState.LOADING:
            return Holding(State.LOADING, servable.error)
        case ServableState.UNLOADING:
            return Holding(State.UNLOADING)
        case ServableState.END:
            # Without an error it was unloaded because nobody wants it any more: nothing to tell.
            return Holding(State.FAILED, servable.error) if servable.error else None
        case ServableState.AVAILABLE if servable.proof is Proof.FAILED:
            # TF Serving says this of a model without its variables folder, too.
            reason = "it is AVAILABLE, but doesn't answer a Predict"
            state = special or State.FAILED
            return Holding(state, f"{reason}: {servable.proof_detail}" if servable.proof_detail else reason)
        case _:
            proof = f"{servable.proof.lower()}: {servable.proof_detail}" if servable.proof_detail else ""
            return Holding(State.PROVING, proof=proof)
