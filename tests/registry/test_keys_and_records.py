"""The registry's contract: names survive the trip, and the JSON is the proto3 JSON of the published schema."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from registry.keys import (
    ClaimKey,
    DrainKey,
    InstanceKey,
    Keyspace,
    NodesKey,
    PlaneKey,
    PolicyKey,
    ReadyKey,
    SuspectsKey,
)
from registry.lost import decode_lost, encode_lost
from registry.pb import records_pb2
from registry.records import (
    Condition,
    InstanceRecord,
    InstanceState,
    PlaneRecord,
    Proof,
    ReadyRecord,
    ReadyState,
    RecordError,
    Roll,
    Servable,
    ServableState,
    decode_instance,
    decode_plane,
    decode_ready,
    decode_roll,
    encode_instance,
    encode_plane,
    encode_ready,
    encode_roll,
)

NAMES = st.text(min_size=1, max_size=40)
VERSIONS = st.integers(0, 2**63 - 1)
PORTS = st.integers(1, 65535)
READY = st.builds(
    ReadyRecord,
    state=st.sampled_from(ReadyState),
    address=NAMES,
    grpc_port=PORTS,
    rest_port=st.integers(0, 65535),
    zone=st.text(max_size=10),
    capacity=st.integers(1, 1000),
    several_versions=st.booleans(),
)
SERVABLES = st.builds(
    Servable,
    model=NAMES,
    version=VERSIONS,
    state=st.sampled_from(ServableState),
    error=st.text(max_size=20),
    proof=st.sampled_from(Proof),
    proof_detail=st.text(max_size=20),
)
CONDITIONS = st.builds(
    Condition,
    NAMES,
    st.text(max_size=20),
    st.text(max_size=5),
    st.none() | st.integers(0, 2**63 - 1),
    st.booleans(),
)
INSTANCES = st.builds(
    InstanceRecord,
    address=NAMES,
    grpc_port=PORTS,
    rest_port=st.integers(0, 65535),
    zone=st.text(max_size=10),
    capacity=st.integers(1, 1000),
    monitor_version=st.text(max_size=10),
    state=st.sampled_from(InstanceState),
    detail=st.text(max_size=20),
    servables=st.lists(SERVABLES, max_size=4).map(tuple),
    conditions=st.lists(CONDITIONS, max_size=3).map(tuple),
    managed=st.booleans(),
    labels=st.dictionaries(NAMES, st.text(max_size=10), max_size=3),
    memory=VERSIONS,
)
PLANES = st.builds(
    PlaneRecord,
    converged_revision=VERSIONS,
    envoys=st.integers(0, 1000),
    version=st.text(max_size=10),
    draining=st.dictionaries(NAMES, st.integers(0, 1000), max_size=4),
    http=st.text(max_size=20),
    away=st.integers(0, 1000),
    servables=st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers(0, 9), max_size=2), max_size=2),
    behind=st.lists(NAMES, max_size=3).map(tuple),
    suspects=st.integers(0, 2**31),
    canary=st.integers(0, 2**31),
    xds=st.text(max_size=20),
)
ROLLS = st.builds(
    Roll,
    connected=st.dictionaries(VERSIONS, NAMES, max_size=5),
    away=st.lists(NAMES, max_size=3).map(sorted).map(tuple),
)


@given(NAMES, VERSIONS, NAMES, st.sampled_from(["/modelplane/", "/a", "x/y/"]))
def test_every_name_survives_its_key(model: str, version: int, instance: str, prefix: str) -> None:
    space = Keyspace(prefix)
    planes = PlaneKey(instance), NodesKey(instance), SuspectsKey(instance)
    for key in (
        *(InstanceKey(instance), ReadyKey(model, version, instance), PolicyKey(model), DrainKey(instance)),
        ClaimKey(instance),
        *planes,
    ):
        spelled = space.make(key)
        assert space.parse(spelled) == key
        assert spelled.isascii()
        assert all(part not in (".", "..") for part in spelled.split("/"))


def test_a_slash_in_a_name_forges_no_other_key() -> None:
    space = Keyspace()
    assert space.make(ReadyKey("a/1/b", 2, "c")) == "/modelplane/ready/a%2F1%2Fb/2/c"


@pytest.mark.parametrize(
    "raw",
    [
        "/other/instances/a",
        "/modelplane/",
        "/modelplane/instances/",
        "/modelplane/ready/m/x/i",
        "/modelplane/ready/m/1",
        "/modelplane/ready/m/9223372036854775808/i",
        f"/modelplane/ready/m/{'1' * 5000}/i",
        "/modelplane/ready/m\udcff/1/i",  # the byte 0xff, as the etcd client reads it
    ],
)
def test_a_foreign_key_is_nobodys(raw: str) -> None:
    assert Keyspace().parse(raw) is None


@given(READY)
def test_ready_records_survive_and_fit_the_schema(record: ReadyRecord) -> None:
    raw = encode_ready(record)
    assert decode_ready(raw) == record
    message = json_format.Parse(raw, records_pb2.Ready())
    assert (message.state, message.grpc_port, message.several_versions) == (
        record.state,
        record.grpc_port,
        record.several_versions,
    )
    assert decode_ready(json_format.MessageToJson(message).encode()) == record


@given(INSTANCES)
def test_instance_records_survive_and_fit_the_schema(record: InstanceRecord) -> None:
    raw = encode_instance(record)
    assert decode_instance(raw) == record
    message = json_format.Parse(raw, records_pb2.Instance())
    assert [(s.model, s.version, s.proof) for s in message.servables] == [
        (s.model, s.version, s.proof) for s in record.servables
    ]
    assert [(c.name, c.text, c.model, c.final) for c in message.conditions] == [
        (c.name, c.text, c.model, c.final) for c in record.conditions
    ]
    always = json_format.MessageToJson(message, always_print_fields_with_no_presence=True)
    assert decode_instance(always.encode()) == record


@given(PLANES)
def test_plane_records_survive_and_fit_the_schema(record: PlaneRecord) -> None:
    raw = encode_plane(record)
    assert decode_plane(raw) == record
    message = json_format.Parse(raw, records_pb2.Plane())
    assert (dict(message.draining), message.http) == (record.draining, record.http)
    always = json_format.MessageToJson(message, always_print_fields_with_no_presence=True)
    assert decode_plane(always.encode()) == record


@given(ROLLS)
def test_lists_of_envoys_survive_and_fit_the_schema(roll: Roll) -> None:
    raw = encode_roll(roll)
    assert decode_roll(raw) == roll
    message = json_format.Parse(raw, records_pb2.Nodes())
    assert (dict(message.connected), tuple(message.away)) == (roll.connected, roll.away)
    assert decode_roll(json_format.MessageToJson(message).encode()) == roll
    assert decode_roll(b"{}") == Roll()


@pytest.mark.parametrize("raw", [b"[]", b'{"connected":{"x":"a"}}', b'{"connected":["a"]}', b'{"away":[1]}'])
def test_what_is_no_list_of_envoys_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordError):
        decode_roll(raw)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"grpcPort": 0}, "grpcPort"),
        ({"grpcPort": True}, "grpcPort"),
        ({"state": "SLEEPING"}, "state"),
        ({"address": 7}, "address"),
        ({"zone": "\ud800"}, "zone"),
        ({"capacity": -1}, "capacity"),
        ({"severalVersions": "no"}, "severalVersions"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], names: str) -> None:
    good = json.loads(encode_ready(ReadyRecord(ReadyState.READY, "a", 1)))
    with pytest.raises(RecordError, match=names):
        decode_ready(json.dumps(good | change).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"{}"])
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordError):
        decode_ready(raw)


def test_fields_of_a_newer_version_are_ignored() -> None:
    record = ReadyRecord(ReadyState.READY, "a", 1)
    assert decode_ready(json.dumps(json.loads(encode_ready(record)) | {"mood": "good"}).encode()) == record


def test_a_plane_record_of_before_it_named_its_http_port_is_read() -> None:
    assert decode_plane(b'{"convergedRevision":7}') == PlaneRecord(7)


@given(st.dictionaries(NAMES, READY.map(encode_ready), max_size=20))
def test_lost_keys_come_back_as_they_were(entries: dict[str, bytes]) -> None:
    assert decode_lost(encode_lost(entries)) == entries


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"records": [1]}', b'{"records": [{"keys": ["a"]}]}'])
def test_a_list_of_lost_keys_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordError):
        decode_lost(raw)
