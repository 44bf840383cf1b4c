"""Candidates against a model of etcd that is slow, loses answers and leases, is wiped, and comes back from backups."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from control_plane.election import Candidate, Grant, Look, Renew, Stand, Wait
from registry.etcd import Compare, Header, KeyValue, Lease, Target

KEY, TTL = "/leader", 3.0
WHO = st.integers(0, 2)


@dataclass(slots=True)
class Store:
    """etcd, as far as an election sees it."""

    revision: int = 1
    entry: KeyValue | None = None
    leases: dict[int, float] = field(default_factory=dict)

    def expire(self, now: float) -> None:
        self.leases = {lease: until for lease, until in self.leases.items() if until > now}
        if self.entry is not None and self.entry.lease not in self.leases:
            self.revision += 1
            self.entry = None

    def holds(self, compares: tuple[Compare, ...]) -> bool:
        if self.entry is None:
            return False
        there = {Target.CREATE_REVISION: self.entry.create_revision, Target.VALUE: self.entry.value}
        return all(there[one.target] == one.value for one in compares)


class Elections(RuleBasedStateMachine):
    """Three candidates, whose actions are carried out one at a time, with or without an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.store = Store()
        self.candidates = [Candidate(KEY, TTL) for _ in range(3)]
        self.backup: Store | None = None
        self.granted = self.stood = 0

    def act(self, who: int, *, answered: bool = True) -> bool:
        """Let one do what it would do; whether it did anything."""
        candidate, store = self.candidates[who], self.store
        store.expire(self.now)
        match candidate.decide(self.now):
            case Wait():
                return False
            case Grant():
                self.granted += 1
                store.leases[self.granted] = self.now + TTL
                if answered:
                    candidate.granted(self.lease(self.granted), self.now)
            case Renew(lease) | Stand(lease) if lease not in store.leases:
                if answered:
                    candidate.lost()
            case Renew(lease):
                store.leases[lease] = self.now + TTL
                if answered:
                    candidate.renewed(self.lease(lease), self.now)
            case Stand(lease):
                self.stand(who, lease, answered=answered)
            case Look() if answered:
                candidate.found(store.entry, self.now)
        if not answered:
            candidate.failed(self.now)
        return True

    def lease(self, number: int) -> Lease:
        return Lease(number, int(TTL), Header(1, 1, self.store.revision))

    def stand(self, who: int, lease: int, *, answered: bool) -> None:
        candidate, store = self.candidates[who], self.store
        self.stood += 1
        value, free = f"{who} {self.stood}".encode(), store.entry is None
        if free:
            store.revision += 1
            store.entry = KeyValue(KEY, value, store.revision, store.revision, 1, lease)
        if answered and free:
            candidate.elected(value, store.revision)
        elif answered:
            candidate.found(store.entry, self.now)

    @rule(who=WHO, answered=st.sampled_from([True, True, False]))
    def move(self, who: int, answered: bool) -> None:
        self.act(who, answered=answered)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 4.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.store.expire(self.now)

    @rule(who=WHO)
    def hear(self, who: int) -> None:
        self.candidates[who].doubt()

    @rule()
    def delete(self) -> None:
        self.store.revision += 1
        self.store.entry = None

    @rule()
    def wipe(self) -> None:
        self.store = Store()

    @rule()
    def save(self) -> None:
        self.backup = Store(self.store.revision, self.store.entry, dict(self.store.leases))

    @rule()
    def restore(self) -> None:
        if self.backup is not None:
            leases = dict.fromkeys(self.backup.leases, self.now + TTL)
            self.store = Store(self.backup.revision, self.backup.entry, leases)

    @invariant()
    def one_at_most_can_write(self) -> None:
        terms = [one.term for one in self.candidates if one.term is not None]
        assert sum(self.store.holds(term.compares) for term in terms) <= 1

    def teardown(self) -> None:
        """Left alone, one of them leads within a lease and what a retry takes, and all know it."""
        until = self.now + 2 * TTL + 1
        while self.now < until:
            for who in range(3):
                for _ in range(5):
                    self.act(who)
            self.now += 0.1
        (leader,) = [one for one in self.candidates if one.leads(self.now)]
        assert leader.term is not None
        assert self.store.holds(leader.term.compares)
        assert [one.other for one in self.candidates if one is not leader] == [leader.term.value] * 2


Elections.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestElections = Elections.TestCase
