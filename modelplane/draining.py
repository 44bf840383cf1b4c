"""What `modelplane drain` and `undrain` decide. Pure: records and pictures of the fleet in, words and records out."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from modelplane.errors import OptionError, UserError
from modelplane.fleet import Picture, State
from modelplane.table import listed
from monitor.drain import DrainWait
from registry.drains import UNHEARD, DrainRecord, DrainTarget, decode_drain, parse_target
from registry.follow import Changes, Snapshot, Update
from registry.keys import DrainKey, InstanceKey, Keyspace, NodesKey, PlaneKey, ReadyKey
from registry.records import (
    InstanceRecord,
    InstanceState,
    ReadyState,
    RecordError,
    decode_instance,
    decode_ready,
)

_USABLE = (State.READY, State.SUSPECT, State.FAILING)
_IN_USE = (ReadyState.READY, ReadyState.FAILING)


def targets_of(texts: Iterable[str]) -> tuple[DrainTarget, ...]:
    """What --model says. Raises OptionError."""
    try:
        return tuple(map(parse_target, texts))
    except ValueError as error:
        raise OptionError(f"--model {error}") from None


def check_known(picture: Picture, instance: str, targets: Iterable[DrainTarget]) -> None:
    """Raise UserError, with names that are close, unless the registry knows the instance, and that it has these."""
    if instance not in picture.instances:
        if any(instance in row.holdings for row in picture.versions):
            raise UserError(
                f"instance {instance} has lost its lease, so there is no monitor to drain it; start that again, "
                "or end the server: Envoys turn away from what refuses connections"
            )
        raise UserError(_unknown(f"the registry knows no instance {instance!r}", instance, picture.instances))
    for target in targets:
        there = [row for row in picture.versions if instance in row.holdings]
        models = sorted({row.model for row in there})
        if target.model not in models:
            raise UserError(_unknown(f"instance {instance} has no model {target.model!r}", target.model, models))
        versions = [row.version for row in there if row.model == target.model]
        if target.version is not None and target.version not in versions:
            has = listed([str(version) for version in versions])
            raise UserError(f"instance {instance} has no version {target.version} of {target.model}; it has {has}")


def _unknown(said: str, name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"{said}; did you mean {' or '.join(close)}?"
    return f"{said}; there are {listed(sorted(names))}" if names else f"{said}; there are none"


@dataclass(frozen=True, slots=True)
class Spares:
    """What remains if something is drained: per model an instance that goes on with it, and what has none: models, and
    versions where it was a version that was to be drained."""

    instances: frozenset[str]
    without: tuple[str, ...]


def spares(picture: Picture, instance: str, wish: DrainRecord, drains: Mapping[str, DrainRecord]) -> Spares:
    """Who goes on answering for the models that `wish` takes from an instance. What others want drained does not."""
    taken, left = set[str](), dict[str, str]()
    named = {(one.model, one.version) for one in wish.targets if one.version is not None}
    versions = set[str]()
    for row in picture.versions:
        goes_on = False
        for name, held in row.holdings.items():
            if held.state not in _USABLE:
                continue
            wanted = wish if name == instance else drains.get(name)
            if wanted is None or not wanted.covers(row.model, row.version):
                left.setdefault(row.model, name)
                goes_on = True
            elif name == instance:
                taken.add(row.model)
        here = row.holdings.get(instance)
        if not goes_on and (row.model, row.version) in named and here is not None and here.state in _USABLE:
            versions.add(f"version {row.version} of {row.model}")
    kept = frozenset(left[model] for model in taken if model in left)
    without = taken - left.keys()
    versions = {said for said in versions if said.partition(" of ")[2] not in without}
    return Spares(kept - {instance}, (*sorted(without), *sorted(versions)))


def refuse_last(instance: str, spares: Spares) -> None:
    """Raise UserError that names the models of which nothing would be left."""
    if spares.without:
        models = listed(spares.without)
        raise UserError(
            f"no other instance is ready for {models}, so draining {instance} would leave clients without an answer; "
            "bring up another one first, or say --force"
        )


def refuse_unheard(picture: Picture, instance: str) -> None:
    """Raise UserError if a server is to be stopped and nobody could tell when nothing is in flight on it."""
    if not picture.planes:
        raise UserError(
            f"the registry names no control plane, so nobody can tell when nothing is in flight on {instance}, and to "
            "stop it may cut requests off; start a control plane first, or say --force"
        )


def unheard_of(record: InstanceRecord) -> str:
    """Why its monitor doesn't know that nothing is in flight; empty if it does, or hasn't drained."""
    return next((one.text for one in record.conditions if one.name == UNHEARD), "")


def unheard_before(picture: Picture, instance: str) -> str:
    """What is to be said of a server that is gone before its monitor has said anything."""
    record = picture.instances.get(instance)
    told = "" if record is None else unheard_of(record)
    return told or ("" if picture.planes else "no control plane is registered")


class Goal(StrEnum):
    """What is waited for."""

    DRAINED = "drained"
    STOPPED = "stopped"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class Progress:
    """`done`: the goal is reached; else `waiting` says what for, one phrase each."""

    done: bool
    waiting: tuple[str, ...] = ()


@dataclass(slots=True)
class Follower:
    """Follows one instance's drain in the registry. `apply` takes all updates of the fleet's prefix; `revisions`, from
    a list made after the first of them, tells when each key was last written."""

    instance: str
    wish: DrainRecord
    goal: Goal
    keyspace: Keyspace
    _record: InstanceRecord | None = None
    _states: dict[ReadyKey, ReadyState] = field(default_factory=dict)
    _written: dict[ReadyKey, int] = field(default_factory=dict)
    _wait: DrainWait | None = None
    _planes: dict[str, bytes] = field(default_factory=dict)
    unheard: str = ""
    """Why its monitor doesn't know that nothing is in flight, though it calls it drained. A server that is stopped may
    be gone before its record is seen here, so what was known when the wish was written stands until a record says
    otherwise."""

    def apply(self, update: Update, now: float) -> None:
        """Take an update in; `now` in monotonic seconds."""
        match update:
            case Snapshot(revision=revision, entries=entries):
                self._take(entries, (), revision)
            case Changes(revision=revision, puts=puts, deletes=deletes):
                self._take(puts, deletes, revision)
                if self._wait is not None:
                    self._wait.apply(puts, deletes, now)

    def revisions(self, written: Mapping[str, int]) -> None:
        """When keys were last written; a snapshot does not tell."""
        for key in self._states:
            self._written[key] = written.get(self.keyspace.make(key), self._written.get(key, 0))

    def _take(self, puts: Mapping[str, bytes], deletes: Iterable[str], revision: int) -> None:
        for raw in deletes:
            match self.keyspace.parse(raw):
                case InstanceKey(self.instance):
                    self._record = None
                case PlaneKey() | NodesKey():
                    self._planes.pop(raw, None)
                case ReadyKey() as key:
                    self._states.pop(key, None)
        for raw, value in puts.items():
            try:
                match self.keyspace.parse(raw):
                    case InstanceKey(self.instance):
                        self._record = record = decode_instance(value)
                        told = unheard_of(record)
                        if told or self.goal is not Goal.STOPPED or record.state is InstanceState.DRAINED:
                            self.unheard = told
                    case PlaneKey() | NodesKey():
                        self._planes[raw] = value
                    case ReadyKey(model, version, self.instance) as key if self.wish.covers(model, version):
                        self._states[key] = decode_ready(value).state
                        self._written[key] = revision
            except RecordError:
                continue

    def progress(self, now: float) -> Progress:
        """How far it is."""
        record, states = self._record, set(self._states.values())
        if record is None:
            if self.goal is Goal.DRAINED:
                return Progress(False, (f"instance {self.instance}, which has gone from the registry, to come back",))
            return Progress(True)
        asked = any(condition.name == "DrainAsked" for condition in record.conditions)
        if self.goal is Goal.BACK:
            kept = states & {ReadyState.DRAINING, ReadyState.DRAINED}
            return Progress(not kept, ("its monitor, to take it in",) if kept else ())
        if not asked or states & set(_IN_USE):
            return Progress(False, ("its monitor, to take it in",))
        if ReadyState.DRAINING in states:
            return Progress(False, self._waiting(now))
        if self.wish.whole and record.state is not InstanceState.DRAINED:
            return Progress(False, (f"instance {self.instance}, which is {record.state.lower()}",))
        if self.goal is Goal.STOPPED:
            if self.unheard and not self.wish.force:
                raise UserError(
                    f"instance {self.instance} is not stopped, since nobody could say that nothing is in flight on it: "
                    f"{self.unheard}; say --force"
                )
            for condition in record.conditions:
                if condition.name == "StopNotPossible":
                    raise UserError(f"instance {self.instance} is drained, but {condition.text}")
            return Progress(False, ("the server to stop",))
        return Progress(True)

    def _waiting(self, now: float) -> tuple[str, ...]:
        keys = [key for key, state in self._states.items() if state is ReadyState.DRAINING]
        revision = max(self._written.get(key, 0) for key in keys)
        if self._wait is None or self._wait.revision != revision:
            self._wait = DrainWait(self.instance, revision, self.keyspace, () if self.wish.whole else keys)
            self._wait.apply(self._planes, (), now)
        return self._wait.waiting() or ("its monitor, to say so",)


def drain_records(entries: Mapping[str, bytes], keyspace: Keyspace) -> dict[str, DrainRecord]:
    """What is wanted drained, per instance; what can't be read is taken for all of it."""
    found = {}
    for raw, value in entries.items():
        if isinstance(key := keyspace.parse(raw), DrainKey):
            try:
                found[key.instance] = decode_drain(value)
            except RecordError:
                found[key.instance] = DrainRecord()
    return found
