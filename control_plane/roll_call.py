"""Where each Envoy of the fleet is: connected here, with another replica, or away. Pure.

A replica answers for the Envoys that it has and for those that it lost: it lists both in `planes/<replica>/nodes`
(`Roll`). When a replica vanishes, all others answer for what it listed; one that starts answers for what its
predecessor listed. An Envoy that is away is waited for until some replica has it, which then answers for it, or until
its grace is over.

Invariant: within its grace an Envoy that was listed is connected here, or listed by a living replica, or `away` here.
What it acknowledged last stays with it.

Node ids need not be unique: losses and arrivals of one id are counted. But an Envoy may be back before its old
connection is missed (the lease of its killed control plane goes on, its network was cut). So an arrival that is newer
than what was lost, and not older than `overlap`, is taken for its return, once; and what several replicas that are gone
listed at the start of this one, for one Envoy that had gone from one to the other.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from registry.follow import Changes, Connection, Snapshot
from registry.keys import Keyspace, NodesKey, PlaneKey
from registry.records import RecordError, Roll, decode_plane, decode_roll

log = logging.getLogger(__name__)

_LONG_AGO = float("-inf")


@dataclass(slots=True, eq=False)
class _Presence:
    """A connection; it did not begin before `after`. `arrival`: when the Envoy arrived, if that was not taken for a
    return: it may have been one from a connection that is missed only later."""

    node: str
    number: int
    after: float
    arrival: float | None


@dataclass(frozen=True, slots=True)
class Away:
    """An Envoy that no replica has. `revision`: it has acknowledged at least this; 0: unknown. Waited for until
    `until`, in monotonic seconds. `ours`: this replica's own, or its predecessor's, which nobody else lists."""

    node: str
    revision: int
    until: float
    ours: bool
    last: _Presence = field(repr=False, compare=False)


@dataclass(slots=True)
class _Replica:
    """Another replica. `converged` is None without its record: then it is not there, and neither are its Envoys.
    `xds`: where it serves them."""

    converged: int | None = None
    xds: str = ""
    roll: Roll = field(default_factory=Roll)
    connected: Mapping[int, _Presence] = field(default_factory=dict)


class RollCall:
    """Tell it of the connections here (`arrived`, `lost`) and of the registry (`apply`). Times in monotonic seconds."""

    def __init__(
        self, grace: float, *, overlap: float | None = None, replica: str = "", keyspace: Keyspace | None = None
    ) -> None:
        """`overlap`: how long an old connection may be believed in while the Envoy has a new one; by default the
        grace."""
        self._grace = grace
        self._overlap = grace if overlap is None else overlap
        self._replica = replica
        self._keyspace = keyspace or Keyspace()
        self._numbers = itertools.count(1)
        self._here: dict[tuple[str, str], _Presence] = {}
        self._others: dict[str, _Replica] = {}
        self._away: list[Away] = []
        self._begun = False

    def arrived(self, node: str, peer: str, now: float) -> None:
        """An Envoy has a connection to this replica, from `peer`."""
        if (node, peer) not in self._here:
            self._here[node, peer] = self._return(_Presence(node, next(self._numbers), now, now), now)

    def lost(self, node: str, peer: str, revision: int, now: float) -> None:
        """That connection is gone; `revision` is the newest that the Envoy has acknowledged."""
        if (presence := self._here.pop((node, peer), None)) is not None:
            self._missed(presence, revision, now, ours=True)

    def apply(self, update: Snapshot | Changes | Connection, now: float) -> bool:
        """Take in an update of the registry; whether `away` is different after it."""
        before = self.away
        match update:
            case Snapshot(entries=entries):
                self._take(entries, frozenset(), now)
                self._begin(now)
            case Changes(puts=puts, deletes=deletes, relisted=relisted):
                if relisted:
                    # A wiped etcd counts from the beginning again: a number from before would be too high.
                    self._away = [replace(one, revision=0) for one in self._away]
                    for other in self._others.values():
                        other.converged = None if other.converged is None else 0
                self._take(puts, deletes, now)
        return self.away != before

    def expire(self, now: float) -> tuple[str, ...]:
        """Give up those whose grace is over, and say who they are."""
        given_up = tuple(one.node for one in self._away if one.until <= now)
        if given_up:
            self._away = [one for one in self._away if one.until > now]
        return given_up

    def next_deadline(self) -> float | None:
        """When to call `expire`; None: nobody is away."""
        return min((one.until for one in self._away), default=None)

    @property
    def away(self) -> tuple[Away, ...]:
        """Those that this replica waits for."""
        return tuple(self._away)

    def elsewhere(self, node: str) -> str:
        """HOST:PORT at which another replica serves this Envoy; empty if none does, if several Envoys go by this name,
        or if it is not known where."""
        found = [other.xds for other in self._others.values() for one in other.connected.values() if one.node == node]
        return found[0] if len(found) == 1 else ""

    def roll(self) -> Roll:
        """What this replica is to list."""
        connected = {presence.number: presence.node for presence in self._here.values()}
        return Roll(connected, tuple(sorted(one.node for one in self._away if one.ours)))

    # The registry

    def _take(self, puts: Mapping[str, bytes], deletes: frozenset[str], now: float) -> None:
        touched: set[str] = set()
        vanished: list[_Replica] = []
        for raw in deletes:
            match self._keyspace.parse(raw):
                case PlaneKey(name) if name in self._others:
                    vanished.append(replace(self._others[name]))
                    self._others[name].converged = None
                    touched.add(name)
                case NodesKey(name) if name in self._others:
                    touched.add(name)
        for raw, value in puts.items():
            match self._keyspace.parse(raw):
                case PlaneKey(name) if name != self._replica:
                    other = self._other(name)
                    other.converged, other.xds = _converged(name, value)
                    touched.add(name)
                # Its own is what its predecessor listed, and later what it says itself.
                case NodesKey(name) if name != self._replica or not self._begun:
                    self._other(name).roll = _roll(name, value)
                    touched.add(name)
        for name in sorted(touched):
            self._enter(name, now, listed=self._keyspace.make(NodesKey(name)) not in deletes)
        # Last, since who is missed in one place may have arrived in another at the same revision.
        for other in vanished:
            self._inherit(other, now, ours=False)

    def _other(self, name: str) -> _Replica:
        return self._others.setdefault(name, _Replica())

    def _enter(self, name: str, now: float, *, listed: bool) -> None:
        """Bring what a replica is known to have up to its list. For who is no longer on it, it answers itself."""
        other = self._others[name]
        if other.converged is None:
            other.connected = {}
            if not listed:
                del self._others[name]
            return
        before, connected = other.connected, dict[int, _Presence]()
        for number, node in other.roll.connected.items():
            presence = before.get(number)
            if presence is None or presence.node != node:
                after = now if self._begun else _LONG_AGO
                presence = self._return(_Presence(node, number, after, now), now)
            connected[number] = presence
        other.connected = connected

    def _begin(self, now: float) -> None:
        """Answer for the Envoys of those replicas that are gone already, this one's predecessor among them."""
        self._begun = True
        own = self._others.pop(self._replica, _Replica())
        for other in (own, *self._others.values()):
            if other.converged is None:
                self._inherit(other, now, ours=other is own)
                # Only now: of one list all are different.
                for one in self._away:
                    one.last.arrival = now

    def _inherit(self, other: _Replica, now: float, *, ours: bool) -> None:
        nodes = [*other.roll.away, *(() if other.connected else other.roll.connected.values())]
        lost = [*other.connected.values(), *(_Presence(node, 0, _LONG_AGO, None) for node in nodes)]
        for presence in lost:
            self._missed(presence, other.converged or 0, now, ours=ours)

    # Who is where

    def _return(self, presence: _Presence, now: float) -> _Presence:
        """An Envoy has arrived somewhere. Of several that are away by this name it is the one that knows most."""
        away = (one for one in self._away if one.node == presence.node and one.until > now)
        back = max(away, key=lambda one: one.revision, default=None)
        if back is not None:
            self._away.remove(back)
            presence.arrival = back.last.arrival
        return presence

    def _missed(self, lost: _Presence, revision: int, now: float, *, ours: bool) -> None:
        newer = (
            (one.arrival, one)
            for one in self._present()
            if one.node == lost.node and one.arrival is not None
            if one.arrival > lost.after and one.arrival >= now - self._overlap
        )  # fmt: skip
        _, back = min(newer, key=lambda pair: pair[0], default=(0.0, None))
        if back is not None:
            back.arrival = lost.arrival
        else:
            self._away.append(Away(lost.node, revision, now + self._grace, ours, lost))

    def _present(self) -> Iterator[_Presence]:
        yield from self._here.values()
        for other in self._others.values():
            yield from other.connected.values()
        # It may have been back, and gone again.
        yield from (one.last for one in self._away)


def names(nodes: Iterable[str], most: int = 3) -> str:
    """A few names of many, for a log."""
    listed = sorted(nodes)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")


def _converged(name: str, value: bytes) -> tuple[int, str]:
    try:
        record = decode_plane(value)
        return record.converged_revision, record.xds
    except RecordError as error:
        log.error("control plane %s: unreadable record: %s", name, error)
        return 0, ""


def _roll(name: str, value: bytes) -> Roll:
    try:
        return decode_roll(value)
    except RecordError as error:
        log.error("control plane %s: unreadable list of Envoys, ignored: %s", name, error)
        return Roll()
