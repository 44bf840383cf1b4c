"""What to do next so that etcd holds the desired keys on a living lease. Invariant: once etcd answers, the actions lead
to exactly the desired keys within one TTL, whatever etcd forgot or remembers wrongly meanwhile. Pure: no I/O, no clock.

The lease is believed alive until `deadline`, counted from before the renewal was sent. Any doubt (a failed call, a new
term of the leader, a revision that went back) leads to a renewal, and then to an audit of what hangs on the lease,
before anything else is written. Besides, every renewal is followed by a look at some of the keys, in turn.

With a claimant (registry/claims.py) nothing is written before the claim is held, every transaction is to compare it,
and all that gives reason to doubt the keys gives reason to read it again first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from registry.claims import Claimant, ReadClaim, TakeClaim
from registry.etcd.model import Header, KeyValue, Lease
from registry.transactions import MAX_OPERATIONS, merge, split

MAX_BACKOFF = 1.0
_FIRST_BACKOFF = 0.05
_SPOT_CHECK = MAX_OPERATIONS // 2 - 1
"""Keys per look: each takes two comparisons, value and lease, and so does the claim."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Get a new lease of `ttl` seconds."""

    ttl: float


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the lease."""

    lease: int


@dataclass(frozen=True, slots=True)
class Write:
    """One transaction: bytes are put on the lease, None deletes."""

    lease: int
    changes: Mapping[str, bytes | None]
    groups: int


@dataclass(frozen=True, slots=True)
class Audit:
    """Read `keys`, and find out which keys hang on the lease."""

    lease: int
    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class SpotCheck:
    """Find out whether all of `expected` have their value and hang on the lease."""

    lease: int
    expected: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do before `until` (None: at all), unless something is set."""

    until: float | None


Action: TypeAlias = Grant | Renew | ReadClaim | TakeClaim | Write | Audit | SpotCheck | Idle


@dataclass(slots=True)
class _Pending:
    """Changes not yet known to be in etcd, and the number of the set() that they came with; 0: a repair."""

    number: int
    changes: dict[str, bytes | None]


class LeaseMachine:
    """Ask `decide` for the next action, do it, and report it with the method named after its result."""

    def __init__(self, ttl: float, claimant: Claimant | None = None) -> None:
        self.ttl = ttl
        self.claimant = claimant
        self.lease: int | None = None
        self.revision = 0
        """The revision of the last write that changed anything."""
        self._deadline = self._renew_at = self._retry_at = 0.0
        self._backoff = _FIRST_BACKOFF
        self._desired: dict[str, bytes] = {}
        self._pending: list[_Pending] = []
        self._number = 0
        self._doubted = False
        self._renewed_last = False
        self._unaudited = False
        self._look_due = False
        self._looked_at = 0
        self._look_again_at = 0.0
        self._header: Header | None = None

    # -- what the caller wants

    def set(self, changes: Mapping[str, bytes | None]) -> None:
        """Change the desired state. Raises ValueError for a value larger than etcd takes; nothing is changed then."""
        groups = split(self._news(changes))
        self._number += 1
        for group in groups:
            self._pending.append(_Pending(self._number, group))
            for key, value in group.items():
                if value is None:
                    self._desired.pop(key, None)
                else:
                    self._desired[key] = value

    def _news(self, changes: Mapping[str, bytes | None]) -> Mapping[str, bytes | None]:
        # A key's deletion is never skipped: a former process of the same name may have left the key behind.
        return {key: value for key, value in changes.items() if value is None or self._desired.get(key) != value}

    def doubt(self) -> None:
        """Somebody saw that etcd holds something else: audit before anything else is believed to be there."""
        self._distrust()

    @property
    def number(self) -> int:
        """The number of the last set()."""
        return self._number

    @property
    def keys(self) -> frozenset[str]:
        """All that may be in etcd by this writer's doing, the claim apart."""
        return self._unwritten() | self._desired.keys()

    def settled(self, number: int) -> bool:
        """Whether all up to set() `number` is in etcd, and nothing gives reason to doubt it."""
        if self._doubted or self._unaudited or (self.claimant is not None and not self.claimant.held):
            return False
        return all(item.number > number for item in self._pending)

    def held(self, now: float) -> bool:
        """Whether the lease is alive as far as we can know."""
        return self.lease is not None and now < self._deadline

    # -- what to do

    def decide(self, now: float) -> Action:
        """The next action."""
        if self.claimant is not None and self.claimant.superseded_by is not None:
            return Idle(None)
        if now < self._retry_at:
            return Idle(self._retry_at)
        if self.claimant is not None and self.claimant.rival is not None:
            # The lease is left to run out: what the newer writer wants of its keys it has on a lease of its own.
            return Idle(self._look_again_at) if now < self._look_again_at else ReadClaim(self.claimant.key)
        if self.lease is None:
            return Grant(self.ttl)
        due = now >= self._renew_at
        # Where a renewal takes longer than the time to the next one, something else must have its turn in between.
        if self._doubted or now >= self._deadline or (due and not self._renewed_last):
            return Renew(self.lease)
        if self.claimant is not None and not self.claimant.held:
            return self.claimant.next(self.lease)
        if self._unaudited:
            return Audit(self.lease, frozenset(self._desired.keys() - self._unwritten()))
        if self._pending:
            changes, groups = merge([item.changes for item in self._pending[: MAX_OPERATIONS + 1]])
            return Write(self.lease, changes, groups)
        if self._look_due and (self._desired or self.claimant is not None):
            return SpotCheck(self.lease, self._next_look())
        return Renew(self.lease) if due else Idle(self._renew_at)

    def _unwritten(self) -> frozenset[str]:
        return frozenset(key for item in self._pending for key in item.changes)

    def _next_look(self) -> dict[str, bytes]:
        start = self._looked_at if self._looked_at < len(self._desired) else 0
        return dict(islice(self._desired.items(), start, start + _SPOT_CHECK))

    # -- what came of it

    def granted(self, sent: float, lease: Lease) -> None:
        """Grant succeeded; `sent` is when it was sent."""
        self.lease = lease.id
        self._doubted = self._unaudited = False
        self._doubt_claim()
        self._header = lease.header
        # A wiped etcd: a revision of its former life may never be reached again.
        self.revision = min(self.revision, lease.header.revision)
        self._alive(sent, lease.ttl)

    def renewed(self, sent: float, lease: Lease) -> None:
        """Renew succeeded."""
        if self._doubted:
            self._distrust()
        self._doubted = False
        self._note(lease.header)
        self._look_due = True
        self._alive(sent, lease.ttl)

    def _alive(self, sent: float, ttl: int) -> None:
        self._renewed_last = True
        self._deadline = sent + ttl
        # etcd may grant more than was asked for; the repair of what got lost is promised within the TTL asked for.
        self._renew_at = sent + min(ttl, self.ttl) / 3

    def _note(self, header: Header) -> None:
        known, self._header = self._header, header
        if known is not None and (
            header.cluster_id != known.cluster_id
            or header.raft_term != known.raft_term
            or header.revision < known.revision
        ):
            self._distrust()

    def _distrust(self) -> None:
        self._unaudited = True
        self._doubt_claim()

    def _doubt_claim(self) -> None:
        if self.claimant is not None:
            self.claimant.doubt()

    def claim_found(self, entry: KeyValue | None, revision: int, header: Header, now: float) -> None:
        """The claim's key was read, at the store's `revision`: by a ReadClaim, or by a TakeClaim or a Write whose
        comparison failed, so that nothing was written."""
        assert self.claimant is not None
        # Before the claim is noted: what makes the store doubtful makes what is read now no less true.
        self._note(header)
        if self.claimant.held or self.claimant.rival is not None:
            self._unaudited = True
        value, lease = (entry.value, entry.lease) if entry is not None else (None, 0)
        self.claimant.found(value, lease, self.lease or 0, revision, now)
        self._look_again_at = now + self.ttl / 3
        self._backoff = _FIRST_BACKOFF

    def claim_taken(self, take: TakeClaim, header: Header) -> None:
        """TakeClaim succeeded."""
        assert self.claimant is not None
        self._note(header)
        self.claimant.taken(take)
        self._backoff = _FIRST_BACKOFF

    def written(self, write: Write, header: Header, *, effective: bool) -> None:
        """Write succeeded; `effective`: it changed anything, so that the header's revision is its own."""
        del self._pending[: write.groups]
        self._renewed_last = False
        self._note(header)
        self._backoff = _FIRST_BACKOFF
        if effective:
            self.revision = header.revision

    def audited(self, audit: Audit, found: Collection[KeyValue], attached: Collection[str], revision: int) -> list[str]:
        """Audit found these entries when the store was at `revision` or later, and these keys on the lease; returns the
        keys that are to be repaired."""
        self._unaudited = self._look_due = self._renewed_last = False
        unwritten = self._unwritten()
        good = {kv.key for kv in found if kv.lease == audit.lease and kv.value == self._desired.get(kv.key)}
        repair: dict[str, bytes | None] = {
            key: value
            for key, value in self._desired.items()
            if key in audit.keys and key not in good and key not in unwritten
        }
        # Deleted long ago, but an old backup brought them back, and our own renewals would keep them alive.
        claim = {self.claimant.key} if self.claimant is not None else set()
        repair.update(dict.fromkeys(sorted(frozenset(attached) - self._desired.keys() - unwritten - claim)))
        self._pending[:0] = [_Pending(0, group) for group in split(repair)]
        if revision < self.revision:
            self.revision = max((kv.mod_revision for kv in found), default=0)
        return list(repair)

    def looked(self, check: SpotCheck, *, good: bool) -> None:
        """SpotCheck found all as it should be, or not."""
        self._look_due = self._renewed_last = False
        start = self._looked_at if self._looked_at < len(self._desired) else 0
        self._looked_at = start + len(check.expected)
        if not good:
            self._distrust()
        self._backoff = _FIRST_BACKOFF

    def lost(self) -> None:
        """etcd doesn't know the lease: everything is to be put again, on a new one."""
        self.lease = None
        self._doubted = self._unaudited = False
        self._doubt_claim()
        deletions = {key: None for item in self._pending for key in item.changes if key not in self._desired}
        self._pending = [_Pending(0, group) for group in split({**deletions, **self._desired})]

    def failed(self, now: float) -> None:
        """An action failed for another reason, and it isn't known whether it took effect."""
        self._doubted = self.lease is not None
        self._retry_at = now + self._backoff
        self._backoff = min(self._backoff * 2, MAX_BACKOFF)
