"""LeaseMachine against a model of etcd that loses leases, is restored from backups, fails before or after it wrote:
whatever happened, within one TTL of quiet it holds exactly the desired keys on one living lease."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from registry.etcd import Header, KeyValue, Lease
from registry.lease_machine import Audit, Grant, Idle, LeaseMachine, Renew, SpotCheck, Write
from tests.support.examples import examples

TTL = 9.0
ROUND_TRIP = 0.01


@dataclass
class FakeStore:
    """What etcd knows: keys with their lease, and the leases' ends."""

    revision: int = 1
    term: int = 2
    keys: dict[str, tuple[bytes, int, int]] = field(default_factory=dict)
    leases: dict[int, float] = field(default_factory=dict)

    def header(self) -> Header:
        return Header(7, self.term, self.revision)

    def expire(self, now: float) -> None:
        for lease in [lease for lease, end in self.leases.items() if end <= now]:
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        self.leases.pop(lease, None)
        gone = [key for key, (_, owner, _) in self.keys.items() if owner == lease]
        for key in gone:
            del self.keys[key]
        self.revision += bool(gone)


class LeaseGoneError(Exception):
    pass


class LostError(Exception):
    """The answer, or the request, was lost."""


class World:
    """The machine, the store, and a clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.store = FakeStore()
        self.machine = LeaseMachine(TTL)
        self.next_lease = 1
        self.desired: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.backup = copy.deepcopy(self.store)

    def set(self, changes: dict[str, bytes | None]) -> None:
        self.machine.set(changes)
        for key, value in changes.items():
            if value is None:
                self.desired.pop(key, None)
            else:
                self.desired[key] = value

    def step(self) -> bool:
        """One action; false if there is none to do now."""
        self.store.expire(self.now)
        action = self.machine.decide(self.now)
        if isinstance(action, Idle):
            return False
        fault = self.faults.pop(0) if self.faults else ""
        try:
            if fault == "before":
                raise LostError
            report = self._perform(action, self.now)
            if fault == "after":
                raise LostError
            report()
        except LeaseGoneError:
            self.machine.lost()
        except LostError:
            self.machine.failed(self.now)
        self.now += ROUND_TRIP
        return True

    def _perform(self, action: Grant | Renew | Write | Audit | SpotCheck, sent: float) -> Callable[[], object]:
        store, machine = self.store, self.machine
        if isinstance(action, Grant):
            lease, self.next_lease = self.next_lease, self.next_lease + 1
            store.leases[lease] = sent + action.ttl
            return lambda: machine.granted(sent, Lease(lease, int(action.ttl), store.header()))
        if isinstance(action, SpotCheck):
            good = all(store.keys.get(key, ())[:2] == (value, action.lease) for key, value in action.expected.items())
            return lambda: machine.looked(action, good=good)
        if action.lease not in store.leases:
            raise LeaseGoneError
        if isinstance(action, Renew):
            store.leases[action.lease] = sent + TTL
            return lambda: machine.renewed(sent, Lease(action.lease, int(TTL), store.header()))
        if isinstance(action, Audit):
            found = [KeyValue(key, *_fields(store.keys[key])) for key in action.keys if key in store.keys]
            attached = [key for key, (_, owner, _) in store.keys.items() if owner == action.lease]
            return lambda: machine.audited(action, found, attached, store.revision)
        return self._write(action)

    def _write(self, write: Write) -> Callable[[], object]:
        store = self.store
        assert len(write.changes) <= 128
        effective = any(value is not None or key in store.keys for key, value in write.changes.items())
        store.revision += effective
        for key, value in write.changes.items():
            if value is None:
                store.keys.pop(key, None)
            else:
                store.keys[key] = (value, write.lease, store.revision)
        header = store.header()
        return lambda: self.machine.written(write, header, effective=effective)

    def run(self, seconds: float) -> None:
        """Let time pass, acting whenever there is something to do."""
        end = self.now + seconds
        while self.now < end:
            if not self.step():
                action = self.machine.decide(self.now)
                assert isinstance(action, Idle)
                self.now = min(end, max(action.until or end, self.now + 0.001))

    def check(self) -> None:
        assert {key: value for key, (value, _, _) in self.store.keys.items()} == self.desired
        assert {owner for _, owner, _ in self.store.keys.values()} <= {self.machine.lease}
        assert self.machine.held(self.now)
        assert self.machine.settled(self.machine.number)
        assert self.machine.revision <= self.store.revision


def _fields(stored: tuple[bytes, int, int]) -> tuple[bytes, int, int, int, int]:
    value, lease, revision = stored
    return value, revision, 0, 0, lease


_KEYS = st.integers(0, 200).map(lambda number: f"/k/{number}")
_CHANGES = st.dictionaries(_KEYS, st.one_of(st.none(), st.binary(min_size=1, max_size=1)), max_size=6)
_MANY = st.integers(100, 200).map(lambda count: {f"/k/{number}": b"m" for number in range(count)})
_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.one_of(_CHANGES, _MANY)),
        st.tuples(st.just("run"), st.floats(0.01, 2 * TTL)),
        st.tuples(st.just("freeze"), st.floats(0.01, 3 * TTL)),
        st.tuples(st.just("faults"), st.lists(st.sampled_from(["before", "after"]), min_size=1, max_size=4)),
        st.tuples(st.just("wipe"), st.none()),
        st.tuples(st.just("revoke"), st.none()),
        st.tuples(st.just("backup"), st.none()),
        st.tuples(st.just("restore"), st.booleans()),
        st.tuples(st.just("tamper"), st.integers(0, 300)),
    ),
    max_size=12,
)


def _disturb(world: World, kind: str, what: object) -> None:
    match kind, what:
        case "set", dict(changes):
            world.set(changes)
        case "run", float(seconds):
            world.run(seconds)
        case "freeze", float(seconds):
            world.now += seconds
        case "faults", list(faults):
            world.faults.extend(faults)
        case "wipe", _:
            world.store = FakeStore(leases={})
        case "revoke", _:
            world.store.expire(now=float("inf"))
        case "backup", _:
            world.backup = copy.deepcopy(world.store)
        case "restore", bool(new_term):
            # A member that comes back gives each lease its whole time again.
            world.store = copy.deepcopy(world.backup)
            world.store.leases = dict.fromkeys(world.store.leases, world.now + TTL)
            world.store.term += new_term
            # With the term that it had, its connection broke at least.
            world.faults[:0] = [] if new_term else ["before"]
        case "tamper", int(number) if world.store.keys:
            del world.store.keys[sorted(world.store.keys)[number % len(world.store.keys)]]
            world.store.revision += 1


@settings(max_examples=examples(300), deadline=None)
@given(_EVENTS)
def test_whatever_happens_etcd_holds_the_desired_keys_soon_after(events: list[tuple[str, object]]) -> None:
    world = World()
    for kind, what in events:
        _disturb(world, kind, what)
    world.faults.clear()
    # Keys tampered with are found by the looks at 64 of up to 201 keys per renewal; all else within one TTL.
    world.run(TTL * 2 if any(kind == "tamper" for kind, _ in events) else TTL)
    world.check()


def test_nothing_is_written_on_a_lease_past_its_deadline_before_it_was_renewed() -> None:
    world = World()
    world.set({"/k": b"1"})
    world.run(1)
    world.now += TTL * 2
    assert not world.machine.held(world.now)
    world.set({"/k": b"2"})
    assert isinstance(world.machine.decide(world.now), Renew)


def test_a_lease_that_survived_an_outage_is_kept_and_nothing_written_again() -> None:
    world = World()
    world.set({"/k": b"1"})
    world.run(1)
    revision, lease = world.store.revision, world.machine.lease
    world.faults = ["before"] * 20
    world.store.leases = dict.fromkeys(world.store.leases, world.now + 10 * TTL)
    world.run(3 * TTL)
    world.check()
    assert (world.store.revision, world.machine.lease) == (revision, lease)


def test_keys_deleted_since_a_backup_are_deleted_again() -> None:
    world = World()
    world.set({"/old": b"1", "/new": b"1"})
    world.run(1)
    world.backup = copy.deepcopy(world.store)
    world.set({"/old": None, "/new": b"2"})
    world.run(1)
    world.store = copy.deepcopy(world.backup)
    world.store.term += 1
    world.run(TTL / 2)
    world.check()


def test_what_is_set_already_is_not_written_again() -> None:
    world = World()
    world.set({"/k": b"1"})
    world.run(1)
    world.set({"/k": b"1"})
    assert isinstance(world.machine.decide(world.now), Idle)


def test_a_refused_write_is_tried_about_once_a_second() -> None:
    world = World()
    world.run(1)
    world.set({"/k": b"1"})
    attempts = 0
    end = world.now + 20
    while world.now < end:
        action = world.machine.decide(world.now)
        if isinstance(action, Write):
            attempts += 1
            world.machine.failed(world.now)
        elif not world.step():
            world.now += 0.05
    assert 18 <= attempts <= 30


# Whatever one way of noticing misses, another finds within the TTL; so each is also tested for itself, by what it does
# at once.


def _settled(changes: dict[str, bytes | None]) -> World:
    world = World()
    world.set(changes)
    world.run(0.5)
    world.check()
    return world


def _next_actions(world: World, count: int) -> list[type[object]]:
    """What the machine does from its next renewal on."""
    action = world.machine.decide(world.now)
    if isinstance(action, Idle):
        assert action.until is not None
        world.now = action.until
    kinds = []
    for _ in range(count):
        kinds.append(type(world.machine.decide(world.now)))
        world.step()
    return kinds


def test_a_lost_lease_is_followed_by_everything_on_a_new_one() -> None:
    world = _settled({"/a": b"1", "/b": b"1"})
    world.store.revoke(1)
    assert _next_actions(world, 3) == [Renew, Grant, Write]
    world.check()


def test_a_new_term_or_cluster_or_an_older_revision_is_followed_by_an_audit() -> None:
    for change in ("term", "revision"):
        world = _settled({"/a": b"1"})
        setattr(world.store, change, getattr(world.store, change) + (1 if change == "term" else -1))
        assert _next_actions(world, 2) == [Renew, Audit], change
    assert _next_actions(_settled({"/a": b"1"}), 2) == [Renew, SpotCheck]


def test_a_failed_call_is_followed_by_a_renewal_and_an_audit_before_anything_is_written() -> None:
    world = _settled({"/a": b"1"})
    world.set({"/a": b"2"})
    world.faults = ["before"]
    assert _next_actions(world, 1) == [Write]
    assert not world.machine.settled(world.machine.number)
    assert _next_actions(world, 3) == [Renew, Audit, Write]
    world.check()


def test_a_look_that_finds_a_key_on_another_lease_leads_to_its_repair() -> None:
    world = _settled({"/a": b"1"})
    world.store.leases[99] = world.now + 1000
    world.store.keys["/a"] = (b"1", 99, world.store.revision)
    assert _next_actions(world, 4) == [Renew, SpotCheck, Audit, Write]
    world.check()


def test_what_was_seen_to_go_is_put_back_before_the_next_look_is_due() -> None:
    world = _settled({"/a": b"1"})
    del world.store.keys["/a"]
    world.machine.doubt()
    assert not world.machine.settled(world.machine.number)
    assert [type(world.machine.decide(world.now)), *_next_actions(world, 2)] == [Audit, Audit, Write]
    world.check()


def test_a_deletion_not_yet_written_outlives_the_lease() -> None:
    world = World()
    world.store.leases[99] = world.now + 1000
    world.store.keys["/left-behind"] = (b"1", 99, 1)
    world.set({"/left-behind": None, "/a": b"1"})
    assert world.step()
    world.store.revoke(1)
    assert _next_actions(world, 3) == [Write, Grant, Write]
    world.check()


def test_what_is_set_during_an_audit_is_not_torn_by_the_repair() -> None:
    world = _settled({"/a": b"1", "/b": b"1"})
    world.store.term += 1
    del world.store.keys["/a"], world.store.keys["/b"]
    assert _next_actions(world, 1) == [Renew]
    audit = world.machine.decide(world.now)
    assert isinstance(audit, Audit)
    world.set({"/a": b"2", "/c": b"2"})
    repaired = world.machine.audited(audit, [], [], world.store.revision)
    assert repaired == ["/b"]


def test_after_a_restore_the_revision_is_one_that_etcd_has_reached() -> None:
    world = _settled({"/a": b"1"})
    world.backup = copy.deepcopy(world.store)
    world.set({"/b": b"1"})
    world.run(0.5)
    world.set({"/b": None})
    world.run(0.5)
    world.store = copy.deepcopy(world.backup)
    world.store.term += 1
    assert _next_actions(world, 2) == [Renew, Audit]
    world.check()


def test_after_a_wipe_the_revision_is_one_that_etcd_has_reached() -> None:
    world = _settled({"/a": b"1"})
    world.set({"/a": None})
    world.run(0.5)
    world.store = FakeStore()
    assert _next_actions(world, 2) == [Renew, Grant]
    world.check()


def test_renewals_that_take_longer_than_the_time_between_them_leave_room_for_writes() -> None:
    machine = LeaseMachine(TTL)
    machine.set({"a": b"1"})
    now, done = 100.0, list[str]()
    for _ in range(6):
        action = machine.decide(now)
        done.append(type(action).__name__)
        sent, now = now, now + TTL / 2.5
        match action:
            case Grant():
                machine.granted(sent, Lease(5, int(TTL), Header(7, 2, 1)))
            case Renew():
                machine.renewed(sent, Lease(5, int(TTL), Header(7, 2, 1)))
            case Write():
                machine.written(action, Header(7, 2, 1), effective=True)
            case SpotCheck():
                machine.looked(action, good=True)
    assert done == ["Grant", "Write", "Renew", "SpotCheck", "Renew", "SpotCheck"]
