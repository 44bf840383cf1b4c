"""An instance with very many or very talkative models still has a record."""

from __future__ import annotations

from dataclasses import replace

from monitor.instance_record import BYTES_PER_SECOND, LIMIT, PacedRecord, encode_bounded
from registry.records import (
    Condition,
    InstanceRecord,
    InstanceState,
    Proof,
    Servable,
    ServableState,
    decode_instance,
    encode_instance,
)

GOOD = Servable("m", 1, ServableState.AVAILABLE, "", Proof.PROVED, "answered zeros for serving_default")
BAD = Servable("m", 1, ServableState.AVAILABLE, "", Proof.FAILED, "x" * 1000)


def record(*servables: Servable) -> InstanceRecord:
    numbered = tuple(
        Servable(f"model-{n:06d}", 1, s.state, s.error, s.proof, s.proof_detail) for n, s in enumerate(servables)
    )
    return InstanceRecord("10.0.0.1", 8500, servables=numbered)


def test_what_fits_is_not_touched() -> None:
    original = record(*[GOOD] * 1000, *[BAD] * 100)
    assert encode_bounded(original) == encode_instance(original)


def test_long_texts_are_cut_first() -> None:
    encoded = encode_bounded(record(*[BAD] * 2000))
    assert len(encoded) <= LIMIT
    found = decode_instance(encoded)
    assert [len(servable.proof_detail) for servable in found.servables] == [80] * 2000
    assert found.detail == ""


def test_what_is_served_is_left_out_first_and_said_so() -> None:
    encoded = encode_bounded(record(*[GOOD] * 20_000, *[BAD] * 500))
    assert len(encoded) <= LIMIT
    found = decode_instance(encoded)
    assert sum(servable.proof is Proof.FAILED for servable in found.servables) == 500
    assert found.detail == f"{20_500 - len(found.servables)} servables are not listed here, there are too many"
    assert [s.model for s in found.servables] == sorted(s.model for s in found.servables)


def test_of_many_conditions_the_first_are_told_and_the_rest_counted() -> None:
    missing = tuple(Condition("BasePathMissing", f"model m{number}") for number in range(60))
    found = decode_instance(encode_bounded(InstanceRecord("10.0.0.1", 8500, conditions=missing)))
    assert found.conditions == (*missing[:50], Condition("More", "10 conditions are not listed here"))


def test_there_is_always_a_record() -> None:
    assert decode_instance(encode_bounded(record(*[BAD] * 10), limit=300)).servables == ()


def test_a_small_record_is_written_whenever_it_changes() -> None:
    paced = PacedRecord()
    for number in range(1, 10):
        paced.offer(record(*[GOOD] * number))
        assert decode_instance(paced.take(5.0) or b"").servables[number - 1].model == f"model-{number - 1:06d}"
        assert paced.take(5.0) is None
        assert paced.due() is None


def test_a_large_record_is_written_at_a_rate_but_a_new_state_at_once() -> None:
    paced, now = PacedRecord(), 100.0
    paced.offer(record(*[GOOD] * 1000))
    first = paced.take(now)
    assert first is not None
    paced.offer(record(*[GOOD] * 1001))
    assert paced.take(now + 0.1) is None
    paced.offer(newest := record(*[GOOD] * 1002))
    due = paced.due()
    assert due == now + len(first) / BYTES_PER_SECOND
    assert decode_instance(paced.take(due) or b"") == newest
    draining = replace(newest, state=InstanceState.DRAINING)
    paced.offer(draining)
    assert decode_instance(paced.take(due) or b"") == draining
    paced.offer(troubled := replace(draining, conditions=(Condition("ReloadBlocked", "it blocks"),)))
    assert decode_instance(paced.take(due) or b"") == troubled
