"""Which of several monitors may write an instance's keys: the value of `claims/<instance>`, and how a writer decides
whether it still may. Pure.

A monitor that starts claims its instance with a generation that is higher than the one it found and than every one
given before: the store's revision at which it looked, plus one, which etcd never gives twice even if the last claim has
run out with its lease. It takes the claim by compare-and-swap, so of several that start at once each gets a generation
of its own, and every transaction that it writes compares that the claim is still its own. A writer whose claim is not
there looks again:

    nothing, or an older claim   a wiped etcd, an old backup, its own lease lost: it claims again, as what it was
    a newer claim                it writes nothing more, and looks on for `patience` seconds, in which the claim of a
                                 monitor that is dead or a backup's ghost runs out; if it still stands, it is superseded

Invariant: of all writers of one instance whose claims met in one etcd, the newest alone writes in the end, and one
that is superseded stays so. (Generation, monitor) is a total order, so no two can supersede each other. Only an etcd
that has lost its memory can get the order wrong: whoever claims in it before the older one is back counts as older.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from registry.records import RecordError, read_document, read_field, read_int64, read_text

SLACK = 1.0
"""Seconds: etcd looks for leases that have run out twice a second, and removes them through its log."""


@dataclass(frozen=True, slots=True)
class Claim:
    """`monitor`: unique to one run of one monitor. For people alone: `host`, `pid`, `since` (RFC 3339, by that host's
    clock), `address`: HOST:PORT of the server that it watches. `contested`: how many monitors of another address in a
    row took the claim from one that held it."""

    monitor: str
    generation: int = 0
    host: str = ""
    pid: int = 0
    since: str = ""
    address: str = ""
    contested: int = 0

    def __str__(self) -> str:
        watching = f", watching {self.address}" if self.address else ""
        return f"the monitor on {self.host or '?'} (pid {self.pid}, since {self.since or '?'}{watching})"

    @property
    def rank(self) -> tuple[int, str]:
        """The newer of two claims has the higher one."""
        return self.generation, self.monitor


class SupersededError(Exception):
    """A newer monitor has claimed the instance: `by`."""

    def __init__(self, by: Claim) -> None:
        super().__init__(f"superseded by {by}")
        self.by = by


@dataclass(frozen=True, slots=True)
class ReadClaim:
    """Read the claim's key."""

    key: str


@dataclass(frozen=True, slots=True)
class TakeClaim:
    """Put the claim on the lease if its key still has the value `expected` (None: is absent), else read it."""

    lease: int
    key: str
    expected: bytes | None
    value: bytes


def encode_claim(claim: Claim) -> bytes:
    """Spell a claim."""
    document = {
        "monitor": claim.monitor,
        "generation": claim.generation,
        "host": claim.host,
        "pid": claim.pid,
        "since": claim.since,
        "address": claim.address,
        "contested": claim.contested,
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def decode_claim(raw: bytes) -> Claim:
    """Read a claim. Raises RecordError."""
    document = read_document(raw)
    return Claim(
        monitor=read_field(document, "monitor", read_text),
        generation=read_field(document, "generation", read_int64),
        host=read_field(document, "host", read_text, ""),
        pid=read_field(document, "pid", read_int64, 0),
        since=read_field(document, "since", read_text, ""),
        address=read_field(document, "address", read_text, ""),
        contested=read_field(document, "contested", read_int64, 0),
    )


class Claimant:
    """One writer's view of its claim. Report what was read with `found`, a TakeClaim that succeeded with `taken`."""

    def __init__(self, key: str, claim: Claim, patience: float) -> None:
        """`claim` without a generation; `patience`: a lease time and some more, in seconds."""
        self.key = key
        self.claim = claim
        self.rival: Claim | None = None
        """A newer claim that may be a dead monitor's: while it stands nothing is written."""
        self.superseded_by: Claim | None = None
        self._patience = patience
        self._rival_since = 0.0
        self._known = self._held = False
        self._expected: bytes | None = None
        self._proposed = claim

    @property
    def held(self) -> bool:
        """Whether the claim was this writer's when it was last looked at, on its present lease."""
        return self._known and self._held

    @property
    def value(self) -> bytes:
        """What the key holds as long as the claim is this writer's."""
        return encode_claim(self.claim)

    def doubt(self) -> None:
        """It has to be read again before anything is written."""
        self._known = self._held = False

    def next(self, lease: int) -> ReadClaim | TakeClaim:
        """What to do to hold the claim."""
        if not self._known or self.rival is not None:
            return ReadClaim(self.key)
        return TakeClaim(lease, self.key, self._expected, encode_claim(self._proposed))

    def found(self, value: bytes | None, on_lease: int, lease: int, revision: int, now: float) -> None:
        """The key was found to hold `value` on lease `on_lease` (None: to be absent) when the store was at `revision`;
        `lease` is the writer's."""
        self._known, self._held, self._expected = True, False, value
        other = _decoded(value)
        if other is not None and other.monitor == self.claim.monitor:
            # Taken, though the answer was lost; or its own claim, on a lease that may not be the present one.
            self.claim, self.rival = other, None
            self._held = on_lease == lease
            self._proposed = self.claim
        elif self.claim.generation and other is not None and other.rank > self.claim.rank:
            self._see_rival(other, now)
        else:
            self.rival = None
            self._proposed = self.claim if self.claim.generation else self._first(other, revision)

    def taken(self, take: TakeClaim) -> None:
        """The claim is this writer's."""
        self._known = self._held = True
        self.claim, self._expected = decode_claim(take.value), take.value

    def _first(self, other: Claim | None, revision: int) -> Claim:
        if other is None:
            return replace(self.claim, generation=revision + 1)
        moved = other.address != self.claim.address
        generation = max(other.generation, revision) + 1
        return replace(self.claim, generation=generation, contested=other.contested + 1 if moved else 0)

    def _see_rival(self, other: Claim, now: float) -> None:
        if self.rival is None or self.rival.monitor != other.monitor:
            self.rival, self._rival_since = other, now
        elif now - self._rival_since >= self._patience:
            self.superseded_by = other


def _decoded(value: bytes | None) -> Claim | None:
    if value is None:
        return None
    try:
        return decode_claim(value)
    except RecordError:
        # What nobody can read nobody can hold.
        return None
