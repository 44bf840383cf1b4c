"""Which lost leases to believe. Pure: takes `now`, does no I/O.

Invariants: an instance is given up for lease loss only once the registry is evidently healthy and a grace time is over,
a longer one if many were lost at once; never while it is seen to answer; and only what is proved not to answer may be
given up as a model's last endpoint (the catalog's decision). What gave the evidence is heard after the loss, so where
it is there the guard ends.

Evidence is what etcd and monitors do, not that time goes by: the watch told of something after the loss (each replica
writes a canary for that, `PlaneRecord.canary`), and monitors are at work: one has written since, or some hold keys on
leases that would have run out since if nobody renewed them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, StrEnum

_LOOK_AGAIN = 1.0


@dataclass(frozen=True, slots=True)
class SuspectPolicy:
    """When lost leases are believed, and how suspects are checked. Times in seconds."""

    grace: float = field(
        default=10.0,
        metadata={
            # As long as one lease: a monitor that lives registers again within that time, and the leases that one
            # outage costs run out within it, so that the first of them is not taken for a single loss.
            "flag": "--lost-lease-grace",
            "help": "how long an instance whose lease was lost is used on before it is left out; not less than the "
            "monitors' --lease-ttl",
            "metavar": "SECONDS",
        },
    )
    return_grace: float = field(
        default=2.0,
        metadata={
            "flag": "--return-grace",
            "help": "how long an instance that registered again has for what it had before (its other transactions)",
            "metavar": "SECONDS",
        },
    )
    bulk_share: float = field(
        default=0.3,
        metadata={
            "flag": "--bulk-loss-share",
            "help": "the share of all instances from which on lost leases are a loss in bulk: the registry's failure "
            "rather than theirs",
            "metavar": "SHARE",
        },
    )
    bulk_minimum: int = field(
        default=2, metadata={"flag": "--bulk-loss-minimum", "help": "the least number of instances that is a bulk"}
    )
    bulk_hold: float = field(
        default=60.0,
        metadata={
            "flag": "--bulk-loss-hold",
            "help": "the grace time for instances that were lost in bulk",
            "metavar": "SECONDS",
        },
    )
    checks: bool = field(
        default=True,
        metadata={
            "flag": "--suspect-checks",
            "help": "ask suspects (gRPC health, then a model's status) whether they live; the control plane must reach "
            "the instances' gRPC ports for it",
        },
    )
    check_interval: float = field(
        default=1.0,
        metadata={"flag": "--suspect-check-interval", "help": "between two checks of a suspect", "metavar": "SECONDS"},
    )
    check_timeout: float = field(
        default=3.0,
        metadata={
            "flag": "--suspect-check-timeout",
            "help": "after which a suspect that has not answered a check has failed it",
            "metavar": "SECONDS",
        },
    )

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field and the mend."""
        for name, low, high in (
            ("grace", 0.0, 86400.0),
            ("return_grace", 0.0, 86400.0),
            ("bulk_share", 0.0, 1.0),
            ("bulk_minimum", 1, 2**31 - 1),
            ("bulk_hold", 0.0, 86400.0),
            ("check_interval", 0.05, 3600.0),
            ("check_timeout", 0.05, 3600.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: {getattr(self, name)} is not between {low:g} and {high:g}")


class Verdict(Enum):
    """What the checks of one suspect say."""

    UNKNOWN = "unknown"
    """Not checked yet, or it can't be reached from here, which says nothing of the server."""
    ANSWERS = "answers"
    DEAD = "does not answer"


class Hold(StrEnum):
    """Why an instance without a lease is used on."""

    AWAY = "the registry is away"
    NOT_EVIDENT = "the registry is not evidently healthy yet"
    BULK = "lost in bulk"
    GRACE = "its grace time"
    ANSWERS = "it answers its checks"
    LAST = "last endpoint"
    """The catalog's reason: without it a model would have none, and nothing proves that it is dead."""


class Belief(Enum):
    """What may be done with an instance whose grace time is over."""

    OVER = 1
    """Only what it drains may go: it was kept for the sake of requests in flight, and that is over."""
    UNPROVEN = 2
    """It may go unless it is a model's last endpoint."""
    PROVED = 3
    """It may go."""


@dataclass(slots=True)
class _Doubt:
    since: float
    verdict: Verdict = Verdict.UNKNOWN
    detail: str = ""
    returned: float | None = None
    """When what it has not registered again is given up; None while it has not come back."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One suspect, for people. `until`: when it will be looked at again; None if only something new can end it."""

    instance: str
    since: float
    hold: Hold | None
    until: float | None
    verdict: Verdict
    detail: str


@dataclass(slots=True)
class Suspects:
    """The instances whose leases are lost."""

    policy: SuspectPolicy
    asked: int = 0
    """How often evidence was needed anew; written as the canary."""
    _doubts: dict[str, _Doubt] = field(default_factory=dict)
    _connected: bool = True
    _connected_at: float = float("-inf")
    _heard_at: float = float("-inf")
    _monitor_at: float = float("-inf")

    def lost(self, instance: str, now: float) -> None:
        """Its lease is gone."""
        if instance not in self._doubts:
            self._doubts[instance] = _Doubt(now)
            self.asked += 1

    def returned(self, instance: str, now: float) -> None:
        """It registered again; what it does not register with that is believed to be gone soon."""
        doubt = self._doubts.get(instance)
        if doubt is not None and doubt.returned is None:
            doubt.returned = now + self.policy.return_grace

    def left(self, instance: str, now: float) -> None:
        """It had come back, and its lease is lost again."""
        doubt = self._doubts.get(instance)
        if doubt is not None and doubt.returned is not None:
            self._doubts[instance] = _Doubt(now, doubt.verdict, doubt.detail)
            self.asked += 1

    def forget(self, instance: str) -> None:
        """None of its endpoints is in doubt any more."""
        self._doubts.pop(instance, None)

    def checked(self, instance: str, verdict: Verdict, detail: str = "") -> bool:
        """What its checks say now; whether that is another verdict than before."""
        doubt = self._doubts.get(instance)
        if doubt is None:
            return False
        changed = doubt.verdict is not verdict
        doubt.verdict, doubt.detail = verdict, detail
        return changed

    def dead(self, instance: str) -> bool:
        """Whether it fails its checks."""
        doubt = self._doubts.get(instance)
        return doubt is not None and doubt.verdict is Verdict.DEAD

    def heard(self, now: float, *, monitor: bool) -> None:
        """The watch told of something; `monitor`: that a monitor wrote."""
        self._heard_at = now
        if monitor:
            self._monitor_at = now

    def connection(self, *, connected: bool, now: float) -> None:
        """The registry went away or came back; on its return every grace time starts anew."""
        if connected and not self._connected:
            self._connected_at = now
            self.asked += bool(self._doubts)
        self._connected = connected

    def believed(self, now: float, *, present: int) -> dict[str, Belief]:
        """What may be believed now of which instance. `present`: how many instances hold their leases."""
        beliefs, bulk = {}, self._bulk(present)
        for instance, doubt in self._doubts.items():
            hold, _ = self._hold(doubt, now, present, bulk)
            if hold in (Hold.ANSWERS, Hold.NOT_EVIDENT):
                beliefs[instance] = Belief.OVER
            elif hold is None:
                proved = doubt.verdict is Verdict.DEAD or doubt.returned is not None
                beliefs[instance] = Belief.PROVED if proved else Belief.UNPROVEN
        return beliefs

    def suspicions(self, now: float, *, present: int) -> Iterator[Suspicion]:
        """All of them, for people."""
        bulk = self._bulk(present)
        for instance, doubt in self._doubts.items():
            hold, until = self._hold(doubt, now, present, bulk)
            yield Suspicion(instance, doubt.since, hold, until, doubt.verdict, doubt.detail)

    def next_deadline(self, now: float, *, present: int) -> float | None:
        """When to ask `believed` again; None while nothing is in doubt or the registry is away."""
        if not self._doubts or not self._connected:
            return None
        bulk = self._bulk(present)
        untils = (self._hold(doubt, now, present, bulk)[1] for doubt in self._doubts.values())
        # Where only something new can end it, that may come at any time.
        return min(until if until is not None and until > now else now + _LOOK_AGAIN for until in untils)

    def _bulk(self, present: int) -> float | None:
        """If so many are lost that the registry is the likelier culprit, since when: a bulk comes in a wave, and its
        newest loss counts for all."""
        lost = [doubt.since for doubt in self._doubts.values() if doubt.returned is None]
        enough = max(self.policy.bulk_minimum, self.policy.bulk_share * (len(lost) + present))
        return max(lost) if lost and len(lost) >= enough else None

    def _hold(self, doubt: _Doubt, now: float, present: int, bulk: float | None) -> tuple[Hold | None, float | None]:
        """Why it is still held, and until when if that is known; (None, None) if it isn't."""
        if not self._connected:
            return Hold.AWAY, None
        if doubt.returned is not None:
            # It has given its word, which needs no further evidence.
            due = max(doubt.returned, self._connected_at + self.policy.return_grace)
            return (Hold.GRACE, due) if now < due else (None, None)
        base = max(doubt.since, self._connected_at)
        hold, due = Hold.GRACE, base + self.policy.grace
        if bulk is not None:
            base = max(base, bulk)
            hold, due = Hold.BULK, base + self.policy.bulk_hold
        if now < due:
            return hold, due
        if not self._evident(base, now, present):
            return Hold.NOT_EVIDENT, None
        return (Hold.ANSWERS if doubt.verdict is Verdict.ANSWERS else None), None

    def _evident(self, since: float, now: float, present: int) -> bool:
        renewed = present > 0 and now >= since + self.policy.grace
        return self._heard_at > since and (renewed or self._monitor_at > since)
