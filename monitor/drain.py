"""When an instance that stopped being ready may be stopped: DrainWait decides, without I/O, and Drain asks it.

Invariant: `waiting()` is empty only if every control-plane replica that the registry knows says that all of its Envoys
have acknowledged `revision`, at which the instance was written as DRAINING, and that none of them has a request in
flight on it. A replica without Envoys has nothing in flight. The Envoys of a replica whose record goes before it could
say so (it was stopped, its lease ended, or etcd was wiped) have not gone: they find another one, or it comes back, and
what they have in flight is known then. They are given RETURN seconds for that. If there is no replica at all, they are
waited for as long as the list of them (`planes/<replica>/nodes`) outlives it, also by a drain that begins only then: a
control plane that hangs loses its record, and its Envoys go on sending.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import aclosing
from typing import cast

from registry.etcd import EtcdClient
from registry.follow import Changes, Connection, Snapshot, Update, follow
from registry.keys import Keyspace, NodesKey, PlaneKey, ReadyKey
from registry.leased import LeasedKeys
from registry.records import PlaneRecord, RecordError, decode_plane, read_document

log = logging.getLogger(__name__)

RETURN = 15.0
"""Seconds: one lease, within which a control plane registers again in a wiped etcd, and the start of a process."""


class DrainWait:
    """One instance's drain, or that of some of its servables while it goes on with others. `apply` takes what follow()
    tells of the `planes/` prefix; `now` is in monotonic seconds.

    `revision` may be changed: a wiped etcd, in which the instance is registered anew, counts from the beginning again.
    """

    def __init__(self, instance: str, revision: int, keyspace: Keyspace, servables: Collection[ReadyKey] = ()) -> None:
        self._instance = instance
        self._servables = tuple(f"{key.model}@{key.version}" for key in servables)
        self.revision = revision
        self._keyspace = keyspace
        self._planes: dict[str, PlaneRecord | None] = {}
        self._gone: dict[str, float] = {}
        self._left: dict[str, int] = {}
        """By replica, how many Envoys its list names."""
        self._most_envoys = 0
        self._expected = 0
        """How many there must be for all to have been heard that were missed at some time."""
        self._doubted_until: float | None = None
        self.listed = False
        """Whether the list of replicas has been read; before that nobody can be known to be waited for."""

    def apply(self, puts: Mapping[str, bytes], deletes: Iterable[str], now: float) -> None:
        """Take in changed and deleted records; the first call brings the whole list."""
        self.listed = True
        for raw in deletes:
            key = self._keyspace.parse(raw)
            if isinstance(key, NodesKey):
                left = self._left.pop(key.replica, 0)
                if not self._planes:
                    # They had their time.
                    self._expected = max(self._expected, left)
            if not isinstance(key, PlaneKey) or key.replica not in self._planes:
                continue
            envoys, plane = self._envoys(), self._planes.pop(key.replica)
            if self._reason(plane):
                self._gone[key.replica] = now + RETURN
                # Those that it waited for are waited for by the other replicas, but these have yet to say so.
                self._most_envoys = max(self._most_envoys, envoys + (plane.away if plane is not None else 0))
        for raw, value in puts.items():
            if isinstance(key := self._keyspace.parse(raw), NodesKey):
                self._left[key.replica] = _listed(value)
            elif isinstance(key, PlaneKey):
                self._gone.pop(key.replica, None)
                self._doubted_until = None
                try:
                    self._planes[key.replica] = decode_plane(value)
                except RecordError:
                    # Not to be understood is not the same as converged.
                    self._planes[key.replica] = None
        self._most_envoys = max(self._most_envoys, self._envoys())
        if away := self._away():
            self._expected = max(self._expected, self._envoys() + away)

    def doubt(self, now: float) -> None:
        """etcd lost its data during this drain, or just before, and so maybe the control planes' records: that it lists
        none is no news until they had their time to register again."""
        self._doubted_until = now + RETURN

    def waiting(self) -> tuple[str, ...]:
        """Who is waited for and why, one phrase each; empty: the server may be stopped."""
        if not self.listed:
            return ("etcd, for the list of control planes",)
        if self._doubted_until is not None and not self._planes:
            return ("the control planes, to register again in an etcd that lost its data",)
        if not self._planes and any(self._left.values()):
            return tuple(
                f"control plane {replica}: it has gone, and {_envoys(left, *_OF_IT)} not found another one yet"
                for replica, left in sorted(self._left.items())
                if left
            )
        reasons = [(replica, self._reason(plane)) for replica, plane in sorted(self._planes.items())]
        if (missing := self._most_envoys - self._envoys() - self._away()) > 0:
            reasons += [
                (replica, f"it has gone, and {_envoys(missing, 'has', 'have')} not found another one yet")
                for replica in sorted(self._gone)
            ]
        return tuple(f"control plane {replica}: {reason}" for replica, reason in reasons if reason)

    def turned_away(self) -> bool:
        """Whether all that is waited for is what is in flight: nobody sends anything new there."""
        busy = {
            f"control plane {name}: {self._reason(plane)}" for name, plane in self._planes.items() if self._told(plane)
        }
        return bool(self._planes) and busy.issuperset(self.waiting())

    @property
    def nobody(self) -> bool:
        """Whether there is no control plane that could say anything."""
        return self.listed and not self._planes

    def give_up(self, now: float) -> None:
        """Forget the replicas that had their time."""
        if any(until <= now for until in self._gone.values()):
            self._expected = max(self._expected, self._most_envoys)
        self._gone = {replica: until for replica, until in self._gone.items() if now < until}
        if self._doubted_until is not None and now >= self._doubted_until:
            self._doubted_until = None

    def unheard(self) -> str:
        """Why it is not known that nothing is in flight, though nobody is waited for; empty: all have said so."""
        missing = max(0, self._expected - self._envoys() - self._away())
        given_up = f"{_envoys(missing, *_LOST)} not heard of again" if missing else ""
        if not self._planes:
            return f"no control plane is registered{f', and {given_up}' if given_up else ''}"
        return given_up

    def next_deadline(self) -> float | None:
        """When to call `give_up` if nothing else happens; None: no need."""
        doubted = () if self._doubted_until is None else (self._doubted_until,)
        return min((*self._gone.values(), *doubted), default=None)

    def _envoys(self) -> int:
        return sum(plane.envoys for plane in self._planes.values() if plane is not None)

    def _away(self) -> int:
        # They may all wait for the same ones.
        return max((plane.away for plane in self._planes.values() if plane is not None), default=0)

    def _reason(self, plane: PlaneRecord | None) -> str:
        if plane is None:
            return "its record can't be read"
        named = f" ({', '.join(plane.behind)})" if plane.behind else ""
        if plane.converged_revision < self.revision:
            away = f"and {plane.away} that {'is' if plane.away == 1 else 'are'} away are" if plane.away else ""
            verbs = (away, away) if away else ("is", "are")
            return (
                f"its {_envoys(plane.envoys, *verbs)} at revision {plane.converged_revision} of {self.revision}{named}"
            )
        if plane.envoys == 0 and plane.away == 0:
            return ""
        in_flight = self._in_flight(plane)
        if in_flight is None:
            away = f", and {plane.away} {'is' if plane.away == 1 else 'are'} away" if plane.away else ""
            return f"its Envoys have not reported their load yet{away}{named}"
        return f"{in_flight} request{'s' * (in_flight != 1)} in flight" if in_flight else ""

    def _told(self, plane: PlaneRecord | None) -> bool:
        """Whether all of its Envoys have acknowledged the drain and said what is in flight."""
        if plane is None or plane.converged_revision < self.revision:
            return False
        return self._in_flight(plane) is not None or (plane.envoys == 0 and plane.away == 0)

    def _in_flight(self, plane: PlaneRecord) -> int | None:
        """What is known of these servables; else of all that drains of the instance, which these are among. (All that
        there is where the control plane is older, and more than that on an instance that goes on.)"""
        counts = (plane.servables or {}).get(self._instance, {})
        if self._servables and all(one in counts for one in self._servables):
            return sum(counts[one] for one in self._servables)
        return plane.draining.get(self._instance)


_OF_IT = ("of it has", "of it have")
_LOST = ("that had lost its control plane was", "that had lost their control plane were")


def _envoys(count: int, one: str, many: str) -> str:
    """So many Envoys and what they do: `1 Envoy is`, `2 Envoys are`."""
    return f"1 Envoy {one}" if count == 1 else f"{count} Envoys {many}"


def _listed(value: bytes) -> int:
    """How many Envoys a list names; what can't be read names one."""
    try:
        document = read_document(value)
        return len(document.get("connected") or ()) + len(document.get("away") or ())
    except (RecordError, TypeError):
        return 1


class Drain:
    """Waits until a drain that the registered keys already tell of is complete."""

    def __init__(
        self,
        etcd: EtcdClient,
        leased: LeasedKeys,
        instance: str,
        keyspace: Keyspace,
        servables: Collection[ReadyKey] = (),
    ) -> None:
        """`servables`: those that drain while the instance goes on with others; none: it drains as a whole."""
        self._etcd = etcd
        self._servables = servables
        self._leased = leased
        self._instance = instance
        self._keyspace = keyspace
        self._wait: DrainWait | None = None

    def waiting(self) -> tuple[str, ...]:
        """Who is waited for and why, at this moment."""
        return self._wait.waiting() if self._wait else ("etcd, to take the news",)

    def unheard(self) -> str:
        """Why it is not known that nothing is in flight, once `run` has returned; empty: all have said so."""
        return self._wait.unheard() if self._wait else ""

    async def run(self) -> None:
        """Returns when it is complete; as long as etcd is away it is not. Bound it by cancellation."""
        self._wait = wait = DrainWait(self._instance, await self._leased.flush(), self._keyspace, self._servables)
        now = asyncio.get_running_loop().time()
        if self._leased.regranted_at is not None and now < self._leased.regranted_at + RETURN:
            wait.doubt(now)
        moved = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self._follow(wait, moved), name="control planes")
            while self.waiting():
                moved.clear()
                try:
                    async with asyncio.timeout_at(wait.next_deadline()):
                        await moved.wait()
                except TimeoutError:
                    wait.give_up(asyncio.get_running_loop().time())
            following.cancel()

    async def _follow(self, wait: DrainWait, moved: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        following = cast(AsyncGenerator[Update, None], follow(self._etcd, self._keyspace.planes))
        async with aclosing(following) as updates:
            async for update in updates:
                match update:
                    case Snapshot(revision=revision, entries=entries):
                        if revision < wait.revision:
                            wait.doubt(clock())
                        wait.apply(entries, (), clock())
                    case Changes(puts=puts, deletes=deletes):
                        wait.revision = await self._leased.flush()
                        wait.apply(puts, deletes, clock())
                    case Connection(connected=connected, detail=detail):
                        log.info("etcd %s while draining: %s", "is back" if connected else "is away", detail)
                moved.set()
