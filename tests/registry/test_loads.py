"""The record of an instance's load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.keys import InstanceKey, Keyspace, LoadKey
from registry.loads import LoadRecord, decode_load, encode_load
from registry.records import RecordError

_FIGURES = st.floats(0, 1e9, allow_nan=False)


@given(_FIGURES, _FIGURES, _FIGURES, _FIGURES, st.none() | _FIGURES)
def test_three_digits_come_back(
    in_flight: float, requests: float, errors: float, latency: float, queued: float | None
) -> None:
    once = decode_load(encode_load(LoadRecord(in_flight, requests, errors, latency, queued)))
    assert decode_load(encode_load(once)) == once
    assert once.in_flight == pytest.approx(in_flight, rel=0.006)
    assert (once.queued is None) == (queued is None)


@pytest.mark.parametrize("raw", [b"[]", b'{"inFlight": "many"}', b'{"queued": -1}', b'{"latencySeconds": true}'])
def test_nonsense_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordError):
        decode_load(raw)


@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_its_key_is_below_the_instances_own(name: str) -> None:
    keys = Keyspace()
    key = keys.make(LoadKey(name))
    assert key.startswith(keys.make(InstanceKey(name)) + "/")
    assert keys.parse(key) == LoadKey(name)
