"""The records of operating models: they come back as they were, and are the proto3 JSON of the published schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from registry.assignments import AssignedModel, Assignment, decode_assignment, encode_assignment
from registry.events import Event, decode_event, encode_event, event_id
from registry.found import Found, FoundModel, decode_found, encode_found
from registry.keys import (
    AssignmentKey,
    DiskKey,
    EventKey,
    HistoryKey,
    Key,
    Keyspace,
    LeaderKey,
    PlaneTrafficKey,
    RolloutKey,
    TrafficKey,
)
from registry.leaders import LeaderRecord, decode_leader, encode_leader
from registry.pb import records_pb2
from registry.plane_traffic import PlaneTraffic, VersionTotals, decode_plane_traffic, encode_plane_traffic
from registry.records import RecordError
from registry.rollouts import Phase, RolloutRecord, decode_rollout, encode_rollout
from registry.traffic import Mirror, TrafficRecord, decode_traffic, encode_traffic

NAMES = st.text(min_size=1, max_size=20)
VERSIONS = st.integers(0, 2**63 - 1)
SMALL = st.integers(0, 2**31 - 1)
LABELS = st.dictionaries(NAMES, VERSIONS, max_size=3)
SHARES = st.floats(0, 1)
TIMES = st.floats(0, 1e12)
FIGURES = st.dictionaries(NAMES, st.none() | st.booleans() | TIMES | NAMES, max_size=3)

ASSIGNMENTS = st.builds(
    Assignment,
    st.dictionaries(
        NAMES,
        st.builds(AssignedModel, NAMES, st.lists(VERSIONS, max_size=3).map(sorted).map(tuple), LABELS, NAMES, SMALL),
        max_size=3,
    ),
    SMALL,
)
TRAFFIC = st.builds(
    TrafficRecord,
    st.dictionaries(VERSIONS, SMALL, max_size=3).filter(lambda weights: any(weights.values())),
    LABELS,
    NAMES,
    st.lists(st.builds(Mirror, st.floats(0, 100), NAMES, st.none() | VERSIONS), max_size=2).map(tuple),
    SHARES,
    SHARES,
    SMALL,
)
ROLLOUTS = st.builds(
    RolloutRecord,
    st.sampled_from(Phase),
    st.none() | VERSIONS,
    st.none() | VERSIONS,
    SMALL,
    SMALL,
    TIMES,
    NAMES,
    SMALL,
    st.lists(VERSIONS, max_size=3).map(sorted).map(tuple),
    FIGURES,
    FIGURES,
    st.dictionaries(NAMES, st.lists(VERSIONS, max_size=3).map(sorted).map(tuple), max_size=3),
)
EVENTS = st.builds(Event, TIMES, NAMES, NAMES, NAMES, st.none() | VERSIONS, NAMES, NAMES)
FOUND = st.builds(
    Found,
    st.dictionaries(
        NAMES, st.builds(FoundModel, NAMES, st.dictionaries(VERSIONS, VERSIONS, max_size=3), NAMES), max_size=3
    ),
)
LEADERS = st.builds(LeaderRecord, NAMES, TIMES)
COUNTS = st.lists(SMALL, max_size=3).map(tuple)
PLANE_TRAFFIC = st.builds(
    PlaneTraffic,
    NAMES,
    TIMES,
    st.dictionaries(
        st.tuples(NAMES, st.none() | VERSIONS),
        st.builds(VersionTotals, SMALL, SMALL, SMALL, SMALL, COUNTS, SMALL, SMALL, SMALL, NAMES),
        max_size=3,
    ),
    st.dictionaries(NAMES, SMALL, max_size=3),
    TIMES,
)

KINDS: list[tuple[Any, Callable[[Any], bytes], Callable[[bytes], Any], type[Message]]] = [
    (ASSIGNMENTS, encode_assignment, decode_assignment, records_pb2.Assignment),
    (TRAFFIC, encode_traffic, decode_traffic, records_pb2.Traffic),
    (ROLLOUTS, encode_rollout, decode_rollout, records_pb2.Rollout),
    (EVENTS, encode_event, decode_event, records_pb2.Event),
    (FOUND, encode_found, decode_found, records_pb2.Found),
    (LEADERS, encode_leader, decode_leader, records_pb2.Leader),
    (PLANE_TRAFFIC, encode_plane_traffic, decode_plane_traffic, records_pb2.PlaneTraffic),
]


@pytest.mark.parametrize(("records", "encode", "decode", "schema"), KINDS, ids=lambda one: getattr(one, "__name__", ""))
@given(st.data())
def test_records_survive_and_fit_the_schema(
    records: Any, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], schema: type[Message], data: Any
) -> None:
    record = data.draw(records)
    raw = encode(record)
    assert decode(raw) == record
    assert decode(json.dumps(json.loads(raw) | {"mood": "good"}).encode()) == record
    message = json_format.Parse(raw, schema())
    assert decode(json_format.MessageToJson(message, always_print_fields_with_no_presence=True).encode()) == record


@given(TRAFFIC)
def test_equal_records_are_spelled_with_the_same_bytes(record: TrafficRecord) -> None:
    other = TrafficRecord(dict(reversed(record.weights.items())), dict(reversed(record.labels.items())))
    same = TrafficRecord(record.weights, record.labels)
    assert encode_traffic(other) == encode_traffic(same)


@given(NAMES, VERSIONS)
def test_every_name_survives_its_key(name: str, number: int) -> None:
    space = Keyspace()
    keys: list[Key] = [
        *(HistoryKey(name, number), AssignmentKey(name), TrafficKey(name), RolloutKey(name), EventKey(name)),
        *(DiskKey(name), PlaneTrafficKey(name), LeaderKey()),
    ]
    assert [space.parse(space.make(key)) for key in keys] == keys


@pytest.mark.parametrize(
    "raw", ["leader/x", "traffic/", "events/", "history/m/x", "history/m", "disk/i", "planes//disk"]
)
def test_a_foreign_key_is_nobodys(raw: str) -> None:
    assert Keyspace().parse(f"/modelplane/{raw}") is None


@pytest.mark.parametrize(
    ("decode", "raw", "names"),
    [
        (decode_assignment, b'{"models":{"m":{"versions":[1]}}}', "basePath"),
        (decode_assignment, b'{"models":{"m":{"basePath":"/m","versions":[-1]}}}', "versions"),
        (decode_assignment, b'{"models":["m"]}', "models"),
        (decode_traffic, b"{}", "weights"),
        (decode_traffic, b'{"weights":{"3":0}}', "weights"),
        (decode_traffic, b'{"weights":{"x":1}}', "weights"),
        (decode_traffic, b'{"weights":{"3":1},"observe":2}', "observe"),
        (decode_traffic, b'{"weights":{"3":1},"mirrors":[{"percent":101,"model":"m"}]}', "percent"),
        (decode_rollout, b'{"phase":"NAPPING"}', "phase"),
        (decode_rollout, b'{"phase":"DONE","since":NaN}', "since"),
        (decode_rollout, b'{"phase":"DONE","refused":"3"}', "refused"),
        (decode_event, b'{"at":-1,"kind":"Switched"}', "at"),
        (decode_found, b'{"models":{"m":{"basePath":"/m","versions":{"one":1}}}}', "versions"),
        (decode_leader, b'{"replica":7}', "replica"),
    ],
)
def test_a_wrong_field_is_named(decode: Callable[[bytes], Any], raw: bytes, names: str) -> None:
    with pytest.raises(RecordError, match=names):
        decode(raw)


@given(st.lists(st.tuples(st.integers(0, 2**40), SMALL), min_size=2, max_size=5))
def test_ids_of_events_sort_by_time(events: list[tuple[int, int]]) -> None:
    ids = [event_id(at / 1000, salt) for at, salt in sorted(events)]
    times = [one.partition("-")[0] for one in ids]
    assert times == sorted(times)
    assert {len(one) for one in ids} == {21}
