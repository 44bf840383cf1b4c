"""All keys of one writer on one lease. Invariant: what was set is in etcd, or on its way there, for ever: a lost lease,
a wiped or restored etcd, or a long sleep of this process is mended within one TTL of etcd's return. With a claimant
that holds only as long as no newer writer has claimed the same keys, and those of a newer one are never touched.

The decisions are LeaseMachine's; here they are carried out, one at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from registry.claims import Claim, Claimant, ReadClaim, SupersededError, TakeClaim
from registry.etcd import (
    Compare,
    DeadlineExceeded,
    Delete,
    EtcdClient,
    EtcdError,
    Get,
    KeyValue,
    LeaseNotFound,
    Operation,
    Outcome,
    Put,
    Target,
    absent,
)
from registry.lease_machine import Action, Audit, Grant, Idle, LeaseMachine, Renew, SpotCheck, Write
from registry.transactions import MAX_OPERATIONS, split

log = logging.getLogger(__name__)

_SHORTEST_TIMEOUT = 0.5
_CLOSE_TIMEOUT = 3.0


class LeasedKeys:
    """Keys that live as long as this process says so. `set` and `flush` from the event loop's thread only."""

    def __init__(
        self,
        client: EtcdClient,
        ttl: float,
        claimant: Claimant | None = None,
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`ttl`: seconds that the keys outlive their writer; etcd rounds up to whole ones, at least 2. `refresh` is
        awaited before everything is written again on a new lease, for this process may have slept through the old one's
        end: it returns when what was set is known to be true still."""
        if ttl <= 0:
            raise ValueError(f"ttl: {ttl} s is not a lease; give at least 1")
        self._client = client
        self._machine = LeaseMachine(ttl, claimant)
        self._claimant = claimant
        self._refresh = refresh
        self._patience = self._timeout = min(client.config.timeout, max(_SHORTEST_TIMEOUT, ttl / 3))
        self._wanted = asyncio.Event()
        self._moved = asyncio.Event()
        self._acting = asyncio.Lock()
        self._closed = False
        self._trouble = ""
        self._granted = False
        self._regranted_at: float | None = None
        self.renewals = 0
        self.regrants = 0
        """Leases granted in place of lost ones."""

    @property
    def regranted_at(self) -> float | None:
        """When, in monotonic seconds, a lease was last granted in place of a lost one; None: that never happened. etcd
        may have lost other writers' keys then too."""
        return self._regranted_at

    @property
    def held(self) -> bool:
        """Whether the lease is alive as far as we can know; false before `run` got one."""
        return self._machine.held(time.monotonic())

    @property
    def superseded_by(self) -> Claim | None:
        """The claim of the newer writer because of which this one has stopped for good; None: it goes on."""
        return self._claimant.superseded_by if self._claimant is not None else None

    async def claimed(self) -> None:
        """Wait until the claim is held for the first time: nobody older writes from then on. Raises SupersededError."""
        while self._claimant is not None and not self._claimant.claim.generation:
            await self._next_move()

    async def superseded(self) -> Claim:
        """Wait until a newer writer is known to have claimed the keys; its claim."""
        while (by := self.superseded_by) is None:
            await self._moved.wait()
        return by

    def set(self, changes: Mapping[str, bytes | None]) -> None:
        """Change the desired keys: bytes puts, None deletes. Those of one call go out in one transaction, if etcd's
        limits (128 operations, 1.5 MB) allow. Raises ValueError for a value that etcd can't take."""
        self._machine.set(changes)
        self._wanted.set()

    def doubt(self) -> None:
        """Look at once whether all is still there, and repair it: who follows the registry may have seen a key go."""
        self._machine.doubt()
        self._wanted.set()

    async def flush(self) -> int:
        """Wait until all that was set so far is in etcd; a revision at which all of it was. 0: nothing was ever set.

        Waits as long as etcd is away: bound it by `asyncio.timeout`. Needs `run` to be running. Raises RuntimeError
        after `close`, SupersededError once a newer writer is known to have claimed the keys.
        """
        number = self._machine.number
        while not self._machine.settled(number):
            await self._next_move()
        return self._machine.revision

    async def _next_move(self) -> None:
        if self._closed:
            raise RuntimeError("flush after close: what was not written by then never will be")
        if (by := self.superseded_by) is not None:
            raise SupersededError(by)
        await self._moved.wait()

    async def run(self) -> None:
        """Make etcd hold the desired keys, until cancelled. etcd's troubles are logged and tried again."""
        while True:
            action = Idle(None) if self._closed else self._machine.decide(time.monotonic())
            if isinstance(action, Idle):
                await self._wait(action.until)
                continue
            if isinstance(action, Grant) and self._granted and self._refresh is not None:
                await self._refresh()
            async with self._acting:
                if not self._closed:
                    await self._perform(action)
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    async def close(self) -> None:
        """Revoke the lease, so that the keys vanish at once. Bounded; if etcd is away they expire by themselves.
        Nothing is written afterwards. Where a newer writer has claimed the keys they are left to it."""
        self._closed = True
        self._wanted.set()
        self._moved.set()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT), self._acting:
                lease = self._machine.lease
                if lease is not None and await self._withdrawn():
                    await self._client.revoke(lease, timeout=_CLOSE_TIMEOUT)
        except (EtcdError, TimeoutError) as error:
            log.warning("lease not revoked, its keys expire by themselves: %s", error or "etcd did not answer")

    async def _withdrawn(self) -> bool:
        """Delete the keys as long as the claim is ours, and the claim with the last of them: a revoked lease would take
        those along that a newer writer has not yet written again. Whether nothing on the lease is another's."""
        if self._claimant is None:
            return True
        claim, held = self._claimant.key, self._compares()
        for group in split(dict.fromkeys([*sorted(self._machine.keys), claim])):
            deletions = [Delete(key) for key in group]
            outcome = await self._client.transact(held, deletions, [Get(claim)], timeout=_CLOSE_TIMEOUT)
            if not outcome.succeeded:
                # Without any claim there is nobody else, and what is left was brought back by a backup.
                return not outcome.results[0].entries
        return True

    def _compares(self) -> list[Compare]:
        """What has to hold of the claim for anything to be written."""
        claimant = self._claimant
        return [Compare(claimant.key, Target.VALUE, claimant.value)] if claimant is not None else []

    async def _wait(self, until: float | None) -> None:
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                await self._wanted.wait()
        except TimeoutError:
            pass
        self._wanted.clear()

    async def _perform(self, action: Action) -> None:
        began = time.monotonic()
        try:
            await self._carry_out(action)
        except LeaseNotFound as error:
            log.warning("lease lost, registering everything again: %s", error)
            self._machine.lost()
        except EtcdError as error:
            if isinstance(error, DeadlineExceeded):
                # Asked to hurry, an etcd that is slow would never be heard.
                self._timeout = min(self._client.config.timeout, 2 * self._timeout)
            # Said once, not at every attempt.
            if self._trouble != type(error).__name__:
                self._trouble = type(error).__name__
                log.warning("%s to etcd failed, trying again: %s", type(action).__name__.lower(), error)
            self._machine.failed(time.monotonic())
        else:
            if time.monotonic() - began < self._patience:
                self._timeout = self._patience
            if self._trouble:
                log.info("etcd answers again")
                self._trouble = ""

    async def _carry_out(self, action: Action) -> None:
        machine, sent = self._machine, time.monotonic()
        match action:
            case Grant(ttl):
                machine.granted(sent, await self._client.grant(ttl, timeout=self._timeout))
                self.regrants += self._granted
                self._regranted_at, self._granted = (sent if self._granted else None), True
            case Renew(lease):
                machine.renewed(sent, await self._client.keep_alive(lease, timeout=self._timeout))
                self.renewals += 1
            case ReadClaim() | TakeClaim():
                await self._claim(action)
            case Write(lease, changes):
                operations = [_operation(key, value, lease) for key, value in changes.items()]
                otherwise = [Get(self._claimant.key)] if self._claimant is not None else []
                outcome = await self._client.transact(self._compares(), operations, otherwise, timeout=self._timeout)
                if outcome.succeeded:
                    effective = any(value is not None for value in changes.values())
                    effective = effective or any(result.deleted for result in outcome.results)
                    machine.written(action, outcome.header, effective=effective)
                else:
                    self._claim_found(outcome)
            case Audit(lease, keys):
                revision, found = await self._read(keys)
                attached = (await self._client.time_to_live(lease, timeout=self._timeout)).keys
                repaired = machine.audited(action, found, attached, revision)
                if repaired:
                    log.warning("etcd held something else than was written; repairing %s", _shortened(repaired))
            case SpotCheck(lease, expected):
                compares = [Compare(key, Target.VALUE, value) for key, value in expected.items()]
                compares += [Compare(key, Target.LEASE, lease) for key in expected]
                if self._claimant is not None:
                    compares += [*self._compares(), Compare(self._claimant.key, Target.LEASE, lease)]
                outcome = await self._client.transact(compares, (), timeout=self._timeout)
                machine.looked(action, good=outcome.succeeded)

    async def _claim(self, action: ReadClaim | TakeClaim) -> None:
        read = [Get(action.key)]
        match action:
            case ReadClaim():
                self._claim_found(await self._client.transact((), read, timeout=self._timeout))
            case TakeClaim(lease, key, expected, value):
                same = absent(key) if expected is None else Compare(key, Target.VALUE, expected)
                outcome = await self._client.transact([same], [Put(key, value, lease)], read, timeout=self._timeout)
                if outcome.succeeded:
                    self._machine.claim_taken(action, outcome.header)
                else:
                    self._claim_found(outcome)

    def _claim_found(self, outcome: Outcome) -> None:
        claimant = self._claimant
        assert claimant is not None
        entry = next(iter(outcome.results[0].entries), None)
        before, known = claimant.rival, claimant.claim.generation
        self._machine.claim_found(entry, outcome.revision, outcome.header, time.monotonic())
        if (by := claimant.superseded_by) is not None:
            log.error("%s: superseded by %s, whose claim still stands", claimant.key, by)
        elif claimant.rival is not None and claimant.rival != before:
            log.warning("%s: claimed by %s, which is newer; writing nothing more", claimant.key, claimant.rival)
        elif before is not None and claimant.rival is None:
            log.warning("%s: the claim of %s has gone; going on", claimant.key, before)
        elif known and entry is None:
            log.info("%s: the claim is gone, as with a lost lease or a wiped etcd; claiming again", claimant.key)

    async def _read(self, keys: Collection[str]) -> tuple[int, list[KeyValue]]:
        """These keys, as far as they exist, and the store's revision when the first of them was read."""
        gets = [Get(key) for key in sorted(keys)]
        first, found = 0, list[KeyValue]()
        for start in range(0, max(1, len(gets)), MAX_OPERATIONS):
            outcome = await self._client.transact((), gets[start : start + MAX_OPERATIONS], timeout=self._timeout)
            first = first or outcome.revision
            found.extend(entry for result in outcome.results for entry in result.entries)
        return first, found


def _operation(key: str, value: bytes | None, lease: int) -> Operation:
    return Delete(key) if value is None else Put(key, value, lease)


def _shortened(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
