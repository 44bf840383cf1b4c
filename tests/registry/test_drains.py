"""What operators want drained: one record per instance, whoever adds to it or takes back."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from registry.drains import DrainRecord, DrainTarget, added, decode_drain, encode_drain, parse_target, removed
from registry.pb import records_pb2
from registry.records import RecordError

TARGETS = st.builds(DrainTarget, st.sampled_from(["a", "b", "a@1"]), st.none() | st.integers(0, 2))
RECORDS = st.builds(
    DrainRecord,
    st.lists(TARGETS, max_size=3, unique=True).map(tuple),
    by=st.text(max_size=5),
    since=st.text(max_size=5),
    message=st.text(max_size=5),
    stop=st.booleans(),
    force=st.booleans(),
)
SERVABLES = [(model, version) for model in ("a", "b", "a@1") for version in range(4)]


@given(RECORDS)
def test_records_survive_and_fit_the_schema(record: DrainRecord) -> None:
    raw = encode_drain(record)
    assert decode_drain(raw) == record
    message = json_format.Parse(raw, records_pb2.Drain())
    assert decode_drain(json_format.MessageToJson(message).encode()) == record


@pytest.mark.parametrize("raw", [b"x", b"[]", b'{"targets":[3]}', b'{"targets":[{"version":1}]}', b'{"stop":"no"}'])
def test_nonsense_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordError):
        decode_drain(raw)


@given(RECORDS | st.none(), RECORDS)
def test_what_is_added_is_covered_and_so_is_all_that_was(known: DrainRecord | None, wish: DrainRecord) -> None:
    both = added(known, wish)
    for servable in SERVABLES:
        before = known is not None and known.covers(*servable)
        assert both.covers(*servable) == (before or wish.covers(*servable))
    assert both.stop == (wish.stop or (known is not None and known.stop))
    assert both.force == (wish.force or (known is not None and known.force))
    assert set(added(both, wish).targets) == set(both.targets)


@given(RECORDS, st.lists(TARGETS, max_size=2))
def test_what_is_taken_back_goes_and_nothing_else(known: DrainRecord, targets: list[DrainTarget]) -> None:
    try:
        rest = removed(known, targets)
    except ValueError:
        return
    for servable in SERVABLES:
        gone = not targets or any(target.covers(*servable) for target in targets)
        assert (rest is not None and rest.covers(*servable)) == (known.covers(*servable) and not gone)


def test_who_began_stays_named_until_more_is_wanted() -> None:
    first = DrainRecord((DrainTarget("a"),), by="ann@x", since="1", message="new disk")
    assert added(first, DrainRecord((DrainTarget("a", 3),), by="bob@y", since="2")) == first
    more = added(first, DrainRecord((DrainTarget("b", 3),), by="bob@y", since="2"))
    assert more == DrainRecord((DrainTarget("a"), DrainTarget("b", 3)), by="bob@y", since="2", message="new disk")


@pytest.mark.parametrize(
    ("drained", "back", "said"),
    [
        ((), "a", "whole instance"),
        (("a",), "a@1", "all versions of a"),
        (("a@1",), "b", "b is not drained; drained are a@1"),
    ],
)
def test_what_cannot_be_taken_back_is_said(drained: tuple[str, ...], back: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        removed(DrainRecord(tuple(map(parse_target, drained))), [parse_target(back)])


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("m", DrainTarget("m")),
        ("m@7", DrainTarget("m", 7)),
        ("m@stable", DrainTarget("m@stable")),
        ("m@", DrainTarget("m@")),
        ("a@b@1", DrainTarget("a@b", 1)),
    ],
)
def test_targets_are_read(text: str, target: DrainTarget) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "@3", "m@9223372036854775808"])
def test_targets_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"MODEL|9223372036854775807"):
        parse_target(text)
