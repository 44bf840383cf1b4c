"""Several writers of the same keys against a model of etcd that loses leases, is wiped and restored, and is slow, while
the writers start, freeze, die and stop in any order: in the end the newest alone writes, and nobody older ever deletes
a key once it holds the claim."""

from __future__ import annotations

import copy

import pytest
from google.protobuf import json_format
from hypothesis import example, given, settings
from hypothesis import strategies as st

from registry.claims import SLACK, Claim, decode_claim, encode_claim
from registry.lease_machine import Idle
from registry.pb import records_pb2
from registry.records import RecordError
from tests.registry.claim_world import CLAIM, TTL, Store, World, Writer
from tests.support.examples import examples

_WHO = st.integers(0, 9)
_EVENT = st.one_of(
    st.tuples(st.just("start"), st.integers(1, 2)),
    st.tuples(st.just("run"), st.floats(0.005, 2 * TTL)),
    st.tuples(st.just("steps"), st.lists(_WHO, min_size=1, max_size=12)),
    st.tuples(st.just("freeze"), st.tuples(_WHO, st.floats(TTL / 2, 3 * TTL))),
    st.tuples(st.just("faults"), st.tuples(_WHO, st.lists(st.sampled_from(["before", "after"]), max_size=3))),
    st.tuples(st.sampled_from(["kill", "stop", "revoke"]), st.tuples(_WHO, st.none())),
)
_EVENTS = st.lists(_EVENT, max_size=14)
_FORGETTING = st.lists(
    st.one_of(_EVENT, st.tuples(st.sampled_from(["wipe", "backup", "restore"]), st.none())), max_size=16
)


def _disturb(world: World, kind: str, what: object) -> None:
    match kind, what:
        case "start", int(count):
            for _ in range(count):
                world.start()
        case "run", float(seconds):
            world.run(seconds)
        case "steps", list(numbers) if world.living:
            for number in numbers:
                world.step(world.living[number % len(world.living)])
        case "wipe", _:
            world.store = Store()
        case "backup", _:
            world.backup = copy.deepcopy(world.store)
        case "restore", _:
            world.restore()
        case _, (int(number), rest) if world.living:
            _disturb_one(world, world.living[number % len(world.living)], kind, rest)


def _disturb_one(world: World, writer: Writer, kind: str, what: object) -> None:
    lease = writer.machine.lease
    match kind, what:
        case "freeze", float(seconds):
            writer.awake_at = world.now + seconds
        case "faults", list(faults):
            writer.faults.extend(faults)
        case "kill", _:
            world.living.remove(writer)
        case "stop", _:
            world.stop(writer)
        case "revoke", _ if lease in world.store.leases:
            assert lease is not None
            world.store.leases[lease] = 0.0


def _play(events: list[tuple[str, object]]) -> World:
    world = World()
    # Nothing else has a consequence before somebody has registered.
    world.start()
    world.run(1)
    for kind, what in events:
        _disturb(world, kind, what)
    world.settle()
    return world


def _check_one_writes(world: World) -> None:
    holders = world.holders()
    assert len(holders) <= 1, f"{holders} all go on"
    for writer in holders:
        held = {key: value for key, (value, _) in world.store.keys.items() if key != CLAIM}
        assert held == writer.keys
        assert {owner for _, owner in world.store.keys.values()} == {writer.machine.lease}
        assert world.store.claim() == writer.claimant.claim
        assert writer.machine.settled(writer.machine.number)


@settings(max_examples=examples(300), deadline=None)
@example([("start", 1), ("start", 1), ("run", 1 / 64), ("run", 1 / 64), ("faults", (1, ["after"])), ("run", 1.0)])
@given(_EVENTS)
def test_the_newest_that_lives_writes_alone(events: list[tuple[str, object]]) -> None:
    world = _play(events)
    _check_one_writes(world)
    if world.order and world.order[-1] in world.living:
        assert world.holders() == [world.order[-1]]


@settings(max_examples=examples(300), deadline=None)
@given(_FORGETTING)
def test_one_at_most_writes_even_if_etcd_forgets(events: list[tuple[str, object]]) -> None:
    _check_one_writes(_play(events))


@settings(max_examples=examples(300), deadline=None)
@given(_FORGETTING)
def test_one_that_lives_writes_unless_it_was_told_to_stop(events: list[tuple[str, object]]) -> None:
    """Whoever makes another stop goes on, however etcd forgot, as long as nobody who did so ends."""
    world = _play([event for event in events if event[0] not in ("kill", "stop", "restore")])
    assert len(world.holders()) == bool(world.living)


def _serving(*addresses: str) -> tuple[World, list[Writer]]:
    """Each started a moment after the one before."""
    world, writers = World(), []
    for address in addresses or ("a:1",):
        writers.append(world.start(address))
        world.run(0.5)
    return world, writers


def test_of_several_that_start_at_once_one_goes_on() -> None:
    world = World()
    writers = [world.start() for _ in range(4)]
    for _ in range(8):
        for writer in writers:
            world.step(writer)
    world.settle()
    assert world.holders() == [world.order[-1]]
    _check_one_writes(world)


def test_the_older_writes_nothing_from_the_newers_claim_on_and_stops() -> None:
    world, (older, newer) = _serving("a:1", "b:1")
    older.machine.set({"/k/all": b"late"})
    world.run(0.5)
    assert world.store.keys["/k/all"][0] == newer.keys["/k/all"]
    assert older.claimant.rival == newer.claimant.claim
    assert older.claimant.superseded_by is None
    world.run(TTL + SLACK + TTL / 3 + 0.5)
    assert older.claimant.superseded_by == newer.claimant.claim
    assert older.machine.decide(world.now) == Idle(None)
    assert "/k/1" not in world.store.keys, "its lease has run out"


def test_an_idle_one_learns_of_the_newer_with_its_next_renewal() -> None:
    world, (older, _) = _serving("a:1", "a:1")
    world.run(TTL / 3)
    assert older.claimant.rival is not None


def test_the_older_goes_on_if_the_newer_stops_before_it_is_believed() -> None:
    world, (older, newer) = _serving("a:1", "a:1")
    world.run(TTL / 2)
    world.stop(newer)
    world.run(TTL / 3 + 0.5)
    assert world.holders() == [older]
    _check_one_writes(world)


def test_a_stop_takes_along_nothing_that_a_newer_one_holds_the_claim_of() -> None:
    world, (older, _) = _serving("a:1", "a:1")
    before = dict(world.store.keys)
    world.stop(older)
    assert world.store.keys == before


def test_one_that_thaws_after_its_lease_does_not_take_the_claim_back() -> None:
    world, (older,) = _serving()
    older.awake_at = world.now + 3 * TTL
    world.run(2 * TTL)
    assert world.store.keys == {}
    newer = world.start()
    world.run(2 * TTL)
    assert older.claimant.rival == newer.claimant.claim
    world.settle()
    assert world.holders() == [newer]


def test_one_that_thaws_alone_goes_on_as_what_it_was() -> None:
    world, (older, newer) = _serving("a:1", "a:1")
    newer.awake_at = world.now + 3 * TTL
    older.awake_at = world.now + 2 * TTL
    generation = older.claimant.claim.generation
    world.run(2.5 * TTL)
    assert older.claimant.held
    assert older.claimant.claim.generation == generation, "or the newer one would take itself for the older"
    world.settle()
    assert world.holders() == [newer]


def test_an_old_claim_that_a_backup_brings_back_is_overwritten_at_once() -> None:
    world, (older,) = _serving()
    world.backup = copy.deepcopy(world.store)
    world.stop(older)
    newer = world.start()
    world.run(1)
    world.restore()
    world.run(TTL / 3 + 0.5)
    assert world.store.claim() == newer.claimant.claim
    # What else the backup brought back of the dead one runs out with its lease.
    world.run(TTL)
    _check_one_writes(world)


def test_the_ghost_of_a_newer_claim_makes_nobody_stop() -> None:
    """etcd was wiped, the monitor is started anew in it, and then the backup of before is restored."""
    world, _ = _serving()
    world.store.revision += 1000
    world.living.clear()
    world.run(2 * TTL)
    again = world.start()
    world.run(1)
    world.backup = copy.deepcopy(world.store)
    world.living.clear()
    world.store = Store()
    latest = world.start()
    world.run(1)
    assert latest.claimant.claim.rank < again.claimant.claim.rank
    world.restore()
    world.run(TTL / 2)
    assert latest.claimant.rival == again.claimant.claim
    world.run(TTL)
    assert world.holders() == [latest]
    _check_one_writes(world)


def test_a_wiped_etcd_is_claimed_again_as_before() -> None:
    world, (only,) = _serving()
    claim = only.claimant.claim
    world.store = Store()
    world.run(TTL / 3 + 0.5)
    _check_one_writes(world)
    assert only.claimant.claim == claim


def test_what_is_no_claim_is_overwritten() -> None:
    world, _ = _serving()
    for nonsense in (b"", b"{}", b'{"monitor": "x"}', b'{"monitor": "x", "generation": -1}'):
        world.store.keys[CLAIM] = (nonsense, 0)
        world.run(TTL / 3 + 0.5)
        _check_one_writes(world)


def test_how_often_a_claim_went_to_another_address_is_counted() -> None:
    _, writers = _serving("a:1", "a:1", "b:1", "a:1", "a:1")
    assert [writer.claimant.claim.contested for writer in writers] == [0, 0, 1, 2, 0]


def test_a_claim_survives_its_encoding() -> None:
    claim = Claim("x", 7, "höst", 1, "2026-01-01T00:00:00Z", "10.0.0.1:8500", 2)
    assert decode_claim(encode_claim(claim)) == claim
    message = json_format.Parse(encode_claim(claim), records_pb2.Claim())
    assert (message.monitor, message.generation, message.contested) == ("x", 7, 2)
    assert decode_claim(b'{"monitor": "x", "generation": "7", "new": 1}') == Claim("x", 7)
    with pytest.raises(RecordError):
        decode_claim(b'{"generation": 7}')
