"""Which lost leases to believe. Pure: takes `now`, does no I/O.

Invariant: an instance is given up for lease loss alone only while the registry is connected, after a grace time, and
not while so many instances are lost at once that the registry is the likelier culprit. Whether its endpoints may then
go is the catalog's decision: the last ones of a model stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_LOOK_AGAIN = 1.0


@dataclass(frozen=True, slots=True)
class SuspectPolicy:
    """Times in seconds. `bulk_share`: the share of all instances above which a loss is called a loss in bulk."""

    grace: float = 10.0
    """As long as one lease: a monitor that lives registers again within that time, and the leases that one outage
    costs run out within it, so that the first of them is not taken for a single loss."""
    return_grace: float = 2.0
    """An instance that registered again without a servable that it had before: its other transactions may follow."""
    bulk_share: float = 0.5
    bulk_hold: float = 60.0
    """After this long with the registry connected, even a loss in bulk is believed."""


@dataclass(slots=True)
class Suspects:
    """The instances whose leases are lost, each with the time at which that is believed."""

    policy: SuspectPolicy
    _due: dict[str, float] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    _connected: bool = True

    def lost(self, instance: str, now: float) -> None:
        """Its lease is gone."""
        self._since.setdefault(instance, now)
        self._due.setdefault(instance, now + self.policy.grace)

    def returned(self, instance: str, now: float) -> None:
        """It registered again; what it does not register with that is believed to be gone soon."""
        if instance in self._due:
            self._due[instance] = min(self._due[instance], now + self.policy.return_grace)

    def forget(self, instance: str) -> None:
        """None of its endpoints is in doubt any more."""
        self._due.pop(instance, None)
        self._since.pop(instance, None)

    def connection(self, *, connected: bool, now: float) -> None:
        """The registry went away or came back; on its return every grace time starts anew."""
        if connected and not self._connected:
            for instance, due in self._due.items():
                self._due[instance] = max(due, now + self.policy.grace)
                self._since[instance] = now
        self._connected = connected

    def believed(self, now: float, *, present: int) -> frozenset[str]:
        """The instances to give up now. `present`: how many instances hold their leases."""
        if not self._connected:
            return frozenset()
        in_bulk = len(self._due) > 1 and len(self._due) > self.policy.bulk_share * (len(self._due) + present)
        due = (instance for instance, at in self._due.items() if at <= now)
        return frozenset(i for i in due if not in_bulk or now >= self._since[i] + self.policy.bulk_hold)

    def next_deadline(self, now: float) -> float | None:
        """When to ask `believed` again; None while nothing is in doubt or the registry is away."""
        if not self._due or not self._connected:
            return None
        # What is overdue is held back, in bulk or as a model's last endpoint, until something else changes.
        return min(at if at > now else now + _LOOK_AGAIN for at in self._due.values())
