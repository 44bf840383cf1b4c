"""Which control plane decides: an election on `leader`, a key on a lease of its own, with fencing.

Invariants: of all replicas at most one can write as the leader at any revision, for every write of one compares the
revision at which its key was created, and the key's value (an etcd restored from a backup may give a revision twice);
once etcd answers, and somebody stands, there is a leader within one lease. A replica that does not know yet that it
leads no more (it was frozen, or etcd was away) writes nothing.

`Candidate` decides, pure; `Election` carries it out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TypeAlias

from registry.etcd import (
    Compare,
    Delete,
    EtcdClient,
    EtcdError,
    Get,
    KeyValue,
    Lease,
    LeaseNotFound,
    Put,
    Target,
    absent,
)
from registry.leaders import LeaderRecord, decode_leader, encode_leader
from registry.records import RecordError

log = logging.getLogger(__name__)

_FIRST_BACKOFF = 0.05
_MAX_BACKOFF = 1.0
_SHORTEST_TIMEOUT = 0.5
_RESIGN_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Term:
    """One time of leading: as long as `key` is as it was when it was taken."""

    key: str
    value: bytes
    created: int

    @property
    def compares(self) -> tuple[Compare, ...]:
        """What every transaction of the leader has to compare."""
        return (
            Compare(self.key, Target.CREATE_REVISION, self.created),
            Compare(self.key, Target.VALUE, self.value),
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """Get a lease."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the lease."""

    lease: int


@dataclass(frozen=True, slots=True)
class Stand:
    """Put the key on the lease if it is not there, else read it."""

    lease: int


@dataclass(frozen=True, slots=True)
class Look:
    """Read the key, to see whether the term still lasts."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`, unless something is heard of the key."""

    until: float


Action: TypeAlias = Grant | Renew | Stand | Look | Wait


class Candidate:
    """Ask `decide` for the next action, do it, and report it with the method named after its result. `now` is in
    monotonic seconds."""

    def __init__(self, key: str, ttl: float) -> None:
        """`ttl`: seconds that the key outlives its writer."""
        self._key, self._ttl = key, ttl
        self.term: Term | None = None
        self.other: bytes | None = None
        """The value of the key as another one has it; None: nobody, or nobody knows."""
        self._lease: int | None = None
        self._deadline = self._renew_at = self._retry_at = self._look_at = 0.0
        self._backoff = _FIRST_BACKOFF
        self._doubted = False

    def leads(self, now: float) -> bool:
        """Whether it leads, as far as it can know."""
        return self.term is not None and now < self._deadline

    def decide(self, now: float) -> Action:
        """The next action."""
        if now < self._retry_at:
            return Wait(self._retry_at)
        if self._lease is None:
            return Grant()
        if now >= min(self._renew_at, self._deadline):
            return Renew(self._lease)
        if self.term is not None:
            return Look() if self._doubted else Wait(self._renew_at)
        if self._doubted or now >= self._look_at:
            return Stand(self._lease)
        return Wait(min(self._look_at, self._renew_at))

    def doubt(self) -> None:
        """The key was heard to change, or a write was refused: look at once."""
        self._doubted = True

    def granted(self, lease: Lease, sent: float) -> None:
        """Grant succeeded."""
        self._lease, self.term = lease.id, None
        self._alive(lease, sent)
        self._look_at = sent

    def renewed(self, lease: Lease, sent: float) -> None:
        """Renew succeeded. The lease is no proof of the key: somebody may have deleted it."""
        self._alive(lease, sent)
        self._doubted = self._doubted or self.term is not None

    def _alive(self, lease: Lease, sent: float) -> None:
        self._deadline = sent + lease.ttl
        self._renew_at = sent + min(lease.ttl, self._ttl) / 3
        self._backoff = _FIRST_BACKOFF

    def elected(self, value: bytes, created: int) -> None:
        """Stand put the key, at the revision `created`."""
        self.term, self.other, self._doubted = Term(self._key, value, created), None, False
        self._backoff = _FIRST_BACKOFF

    def found(self, entry: KeyValue | None, now: float) -> None:
        """The key was read: by a Look, or by a Stand that found it there."""
        self._doubted = False
        self._backoff = _FIRST_BACKOFF
        if entry is not None and entry.lease == self._lease:
            # Its own, though the answer was lost.
            self.term, self.other = Term(self._key, entry.value, entry.create_revision), None
            return
        self.term, self.other = None, entry.value if entry is not None else None
        # One that ends is heard of by the watch; this is for a watch that is late.
        self._look_at = now if entry is None else now + self._ttl / 3

    def lost(self) -> None:
        """etcd does not know the lease."""
        self._lease = self.term = None

    def failed(self, now: float) -> None:
        """An action failed otherwise, and nobody knows whether it took effect."""
        self._doubted = True
        self._retry_at = now + self._backoff
        self._backoff = min(self._backoff * 2, _MAX_BACKOFF)


class Election:
    """Stand as long as `run` runs."""

    def __init__(self, client: EtcdClient, key: str, replica: str, ttl: float) -> None:
        """`ttl`: seconds until another replica may lead in place of one that has died."""
        self._client, self._key, self._replica, self._ttl = client, key, replica, ttl
        self._candidate = Candidate(key, ttl)
        self._timeout = min(client.config.timeout, max(_SHORTEST_TIMEOUT, ttl / 3))
        self._heard = asyncio.Event()
        self._moved = asyncio.Event()
        self._trouble = ""

    @property
    def term(self) -> Term | None:
        """The present term, if this replica leads as far as it can know."""
        return self._candidate.term if self._candidate.leads(time.monotonic()) else None

    @property
    def leader(self) -> str:
        """Who leads, as far as is known; empty: nobody."""
        if self.term is not None:
            return self._replica
        try:
            return decode_leader(self._candidate.other).replica if self._candidate.other is not None else ""
        except RecordError:
            return ""

    def doubt(self) -> None:
        """Look at once: the key was heard to change, or a write as the leader was refused."""
        self._candidate.doubt()
        self._heard.set()

    async def changed(self, term: Term | None) -> Term | None:
        """Wait until the term is another than `term`; the new one."""
        while self.term == term:
            deadline = self._candidate.term is not None
            with contextlib.suppress(TimeoutError):
                # A term ends by time alone where etcd does not answer.
                async with asyncio.timeout(self._ttl / 10 if deadline else None):
                    await self._moved.wait()
        return self.term

    async def run(self) -> None:
        """Stand, and hold the key, until cancelled. etcd's troubles are logged and tried again."""
        while True:
            action = self._candidate.decide(time.monotonic())
            if isinstance(action, Wait):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, action.until - time.monotonic())):
                        await self._heard.wait()
                self._heard.clear()
                continue
            before = self._candidate.term
            await self._perform(action)
            self._tell(before)
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    async def resign(self) -> None:
        """Give the key up, so that another may take it at once. Bounded; `run` must have ended."""
        term, self._candidate.term = self._candidate.term, None
        if term is None:
            return
        try:
            async with asyncio.timeout(_RESIGN_TIMEOUT):
                await self._client.transact(term.compares, [Delete(self._key)], timeout=_RESIGN_TIMEOUT)
                log.info("leads no more: stopping")
        except (EtcdError, TimeoutError) as error:
            log.warning("could not resign as the leader, the lease runs out by itself: %s", error or "no answer")

    async def _perform(self, action: Action) -> None:
        try:
            await self._carry_out(action)
        except LeaseNotFound:
            self._candidate.lost()
        except EtcdError as error:
            if self._trouble != type(error).__name__:
                self._trouble = type(error).__name__
                log.warning("election: %s failed, trying again: %s", type(action).__name__.lower(), error)
            self._candidate.failed(time.monotonic())
        else:
            self._trouble = ""

    async def _carry_out(self, action: Action) -> None:
        candidate, client, sent = self._candidate, self._client, time.monotonic()
        match action:
            case Grant():
                candidate.granted(await client.grant(self._ttl, timeout=self._timeout), sent)
            case Renew(lease):
                candidate.renewed(await client.keep_alive(lease, timeout=self._timeout), sent)
            case Stand(lease):
                value = encode_leader(LeaderRecord(self._replica, round(time.time(), 3)))
                outcome = await client.transact(
                    [absent(self._key)], [Put(self._key, value, lease)], [Get(self._key)], timeout=self._timeout
                )
                if outcome.succeeded:
                    candidate.elected(value, outcome.revision)
                else:
                    candidate.found(next(iter(outcome.results[0].entries), None), time.monotonic())
            case Look():
                outcome = await client.transact((), [Get(self._key)], timeout=self._timeout)
                candidate.found(next(iter(outcome.results[0].entries), None), time.monotonic())

    def _tell(self, before: Term | None) -> None:
        after = self._candidate.term
        if before is None and after is not None:
            log.info("leads from revision %d on", after.created)
        elif before is not None and after is None:
            log.warning("leads no more: %s", self.leader or "the key or its lease is gone")
