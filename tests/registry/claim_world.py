"""A model of etcd, and several writers of the same keys in it, on a clock that only moves when told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from registry.claims import SLACK, Claim, Claimant, ReadClaim, TakeClaim, decode_claim
from registry.etcd import Header, KeyValue, Lease
from registry.lease_machine import Action, Audit, Grant, Idle, LeaseMachine, Renew, SpotCheck, Write

TTL = 9.0
CLAIM = "/claims/i"
ROUND_TRIP = 0.01
QUIET = TTL * 3


@dataclass
class Store:
    """etcd: keys with their lease, and the leases' ends."""

    revision: int = 1
    term: int = 2
    keys: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    leases: dict[int, float] = field(default_factory=dict)

    def header(self) -> Header:
        return Header(7, self.term, self.revision)

    def expire(self, now: float) -> None:
        for lease in [lease for lease, end in self.leases.items() if end <= now]:
            del self.leases[lease]
            gone = [key for key, (_, owner) in self.keys.items() if owner == lease]
            for key in gone:
                del self.keys[key]
            self.revision += bool(gone)

    def entry(self, key: str) -> KeyValue | None:
        found = self.keys.get(key)
        return KeyValue(key, found[0], self.revision, lease=found[1]) if found else None

    def claim(self) -> Claim | None:
        found = self.keys.get(CLAIM)
        return decode_claim(found[0]) if found else None

    def put(self, changes: dict[str, bytes | None], lease: int) -> None:
        self.revision += 1
        for key, value in changes.items():
            if value is None:
                self.keys.pop(key, None)
            else:
                self.keys[key] = (value, lease)


class LeaseGoneError(Exception):
    pass


class LostError(Exception):
    """The answer, or the request, was lost."""


class Writer:
    """A machine with its claim, as LeasedKeys would run it."""

    def __init__(self, name: str, keys: dict[str, bytes], address: str = "a:1") -> None:
        self.name = name
        self.claimant = Claimant(CLAIM, Claim(name, address=address), TTL + SLACK)
        self.machine = LeaseMachine(TTL, self.claimant)
        self.machine.set(dict(keys))
        self.keys = keys
        self.awake_at = 0.0
        self.faults: list[str] = []

    def __repr__(self) -> str:
        return f"Writer({self.name})"


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.store = Store()
        self.backup = copy.deepcopy(self.store)
        self.living: list[Writer] = []
        self.leases = 0
        self.started = 0
        self.order: list[Writer] = []
        """In the order of their newest claims' generations."""
        self._generations: dict[str, int] = {}

    def start(self, address: str = "a:1") -> Writer:
        self.started += 1
        # A key of its own, and one that all of them have.
        # The later it starts, the lower its name: what decides is the generation.
        writer = Writer(f"w{100 - self.started}", {"/k/all": b"%d" % self.started, f"/k/{self.started}": b"1"}, address)
        self.living.append(writer)
        return writer

    def step(self, writer: Writer) -> bool:
        """One action of one writer; false if it has none now."""
        self.store.expire(self.now)
        if self.now < writer.awake_at:
            return False
        action = writer.machine.decide(self.now)
        if isinstance(action, Idle):
            return False
        assert writer.claimant.superseded_by is None, "it acts although it is superseded"
        fault = writer.faults.pop(0) if writer.faults else ""
        try:
            if fault == "before":
                raise LostError
            report = self.perform(writer, action)
            if fault == "after":
                raise LostError
            report()
        except LeaseGoneError:
            writer.machine.lost()
        except LostError:
            writer.machine.failed(self.now)
        self.now += ROUND_TRIP
        return True

    def perform(self, writer: Writer, action: Action) -> Callable[[], object]:
        store, machine, sent = self.store, writer.machine, self.now
        match action:
            case Grant(ttl):
                self.leases += 1
                lease = self.leases
                store.leases[lease] = sent + ttl
                return lambda: machine.granted(sent, Lease(lease, int(ttl), store.header()))
            case Renew(lease):
                if lease not in store.leases:
                    raise LeaseGoneError
                store.leases[lease] = sent + TTL
                header = store.header()
                return lambda: machine.renewed(sent, Lease(lease, int(TTL), header))
            case ReadClaim():
                return self.found(writer)
            case TakeClaim():
                return self.take(writer, action)
            case Write():
                return self.write(writer, action)
            case SpotCheck(lease, expected):
                wanted = {**expected, CLAIM: writer.claimant.value}
                good = all(store.keys.get(key) == (value, lease) for key, value in wanted.items())
                return lambda: machine.looked(action, good=good)
            case Audit(lease, keys):
                if lease not in store.leases:
                    raise LeaseGoneError
                found = [entry for key in keys if (entry := store.entry(key)) is not None]
                attached = [key for key, (_, owner) in store.keys.items() if owner == lease]
                revision = store.revision
                return lambda: machine.audited(action, found, attached, revision)
            case _:
                raise AssertionError(action)

    def found(self, writer: Writer) -> Callable[[], object]:
        entry, revision, header = self.store.entry(CLAIM), self.store.revision, self.store.header()
        return lambda: writer.machine.claim_found(entry, revision, header, self.now)

    def take(self, writer: Writer, take: TakeClaim) -> Callable[[], object]:
        store, entry = self.store, self.store.entry(CLAIM)
        if (entry.value if entry else None) != take.expected:
            return self.found(writer)
        if take.lease not in store.leases:
            raise LeaseGoneError
        generation = decode_claim(take.value).generation
        if self._generations.get(writer.claimant.claim.monitor) != generation:
            # It may have claimed before, been told of it too late, and then it begins as one that never has.
            self._generations[writer.claimant.claim.monitor] = generation
            self.order = [*(one for one in self.order if one is not writer), writer]
        store.put({CLAIM: take.value}, take.lease)
        header = store.header()
        return lambda: writer.machine.claim_taken(take, header)

    def write(self, writer: Writer, write: Write) -> Callable[[], object]:
        store = self.store
        if store.keys.get(CLAIM, (b"",))[0] != writer.claimant.value:
            return self.found(writer)
        if write.lease not in store.leases and any(value is not None for value in write.changes.values()):
            raise LeaseGoneError
        store.put(dict(write.changes), write.lease)
        header = store.header()
        return lambda: writer.machine.written(write, header, effective=True)

    def stop(self, writer: Writer) -> None:
        """What LeasedKeys.close does, if it gets through."""
        self.store.expire(self.now)
        self.living.remove(writer)
        held = self.store.claim()
        if held is not None and held.monitor == writer.name:
            self.store.put(dict.fromkeys([*writer.machine.keys, CLAIM]), 0)
        elif held is not None:
            return
        if writer.machine.lease is not None:
            self.store.leases[writer.machine.lease] = 0.0
            self.store.expire(self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            acted = [self.step(writer) for writer in list(self.living)]
            self.store.expire(self.now)
            if not any(acted):
                times = [self.wake(writer, end) for writer in self.living]
                self.now = min(end, max(min(times, default=end), self.now + 0.001))
        self.store.expire(self.now)

    def wake(self, writer: Writer, end: float) -> float:
        if self.now < writer.awake_at:
            return writer.awake_at
        action = writer.machine.decide(self.now)
        assert isinstance(action, Idle)
        return end if action.until is None else action.until

    def restore(self) -> None:
        # A member that comes back gives each lease its whole time again.
        self.store = copy.deepcopy(self.backup)
        self.store.leases = dict.fromkeys(self.store.leases, self.now + TTL)
        self.store.term += 1

    def settle(self) -> None:
        for writer in self.living:
            writer.faults.clear()
            writer.awake_at = min(writer.awake_at, self.now + TTL)
        self.run(TTL + QUIET)

    def holders(self) -> list[Writer]:
        return [writer for writer in self.living if writer.claimant.superseded_by is None]
