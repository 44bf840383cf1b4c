"""`modelplane get instances`, of a picture of the registry."""

from __future__ import annotations

from modelplane.fleet import Fleet
from modelplane.instances import documents, instances
from registry.follow import Changes, Snapshot
from registry.keys import InstanceKey, Keyspace, LoadKey, PlaneKey, PlaneTrafficKey, ReadyKey
from registry.loads import LoadRecord, encode_load
from registry.plane_traffic import PlaneTraffic, encode_plane_traffic
from registry.records import (
    Condition,
    InstanceRecord,
    InstanceState,
    PlaneRecord,
    Proof,
    ReadyRecord,
    ReadyState,
    Servable,
    ServableState,
    encode_instance,
    encode_plane,
    encode_ready,
)

KEYS = Keyspace()
GOOD = Servable("m", 1, ServableState.AVAILABLE, "", Proof.PROVED)
BAD = Servable("n", 1, ServableState.END, "DATA_LOSS: broken")


def fleet() -> Fleet:
    one = InstanceRecord(
        *("10.0.0.1", 8500, 8501, "eu-1", 4),
        state=InstanceState.SERVING,
        servables=(GOOD, BAD),
        conditions=(Condition("ReloadBlocked", "since long"), Condition("ReloadBlocked", "and another")),
        managed=True,
        labels={"gpu": "a100"},
        memory=2**30,
    )
    two = InstanceRecord("10.0.0.2", 8500, state=InstanceState.DRAINING, servables=(GOOD,))
    entries = {
        KEYS.make(InstanceKey("one")): encode_instance(one),
        KEYS.make(InstanceKey("two")): encode_instance(two),
        KEYS.make(ReadyKey("m", 1, "one")): encode_ready(ReadyRecord(ReadyState.READY, "10.0.0.1", 8500)),
        KEYS.make(ReadyKey("m", 1, "two")): encode_ready(ReadyRecord(ReadyState.DRAINING, "10.0.0.2", 8500)),
        KEYS.make(LoadKey("one")): encode_load(LoadRecord(0.000457, 120.0, 0.5, 0.027)),
        KEYS.make(PlaneKey("a")): encode_plane(PlaneRecord(7, draining={"two": 2})),
        KEYS.make(PlaneKey("b")): encode_plane(PlaneRecord(7, draining={"two": 1})),
    }
    told = Fleet(KEYS)
    told.apply(Snapshot(7, entries), 0.0)
    return told


def test_a_line_for_each() -> None:
    lines = [line.text for line in instances(fleet().picture(0.0))]
    assert max(map(len, lines)) <= 80
    assert lines[3:] == ["", "CONDITIONS", "one: ReloadBlocked"]
    head, one, two = (line.split() for line in lines[:3])
    assert head[:5] == ["INSTANCE", "STATE", "MODELS", "ZONE", "CAPACITY"]
    assert one == ["one", "serving", "1", "of", "2", "eu-1", "4", "0", "120", "27", "ms", "-"]
    assert two == ["two", "draining", "0", "of", "1", "-", "1", "3", "to", "end", "-", "-", "-"]


def test_wide_and_json_tell_more() -> None:
    wide = instances(fleet().picture(0.0), wide=True)
    assert "10.0.0.1:8501" in wide[1].text
    assert "ReloadBlocked" in wide[1].text
    assert "yes      1,024 MiB  gpu=a100" in wide[1].text
    assert len(wide) == 3
    first, second = documents(fleet().picture(0.0))
    assert first["models"] == {"ready": 1, "known": 2}
    assert first["load"]["latencySeconds"] == 0.027
    assert first["load"]["queued"] is None
    assert (first["managed"], first["labels"], first["memory"]) == (True, {"gpu": "a100"}, 2**30)
    assert (second["load"], second["drainingInFlight"]) == (None, 3)


def test_a_load_that_is_gone_and_one_that_is_nonsense() -> None:
    told, key = fleet(), KEYS.make(LoadKey("one"))
    told.apply(Changes(8, {key: b"?"}, frozenset()), 1.0)
    assert told.picture(1.0).loads["one"].requests == 120.0
    told.apply(Changes(9, {}, frozenset({key})), 1.0)
    assert told.picture(1.0).loads == {}
    assert told.picture(1.0).revision == 7, "no resource depends on it"


def test_an_empty_registry() -> None:
    told = Fleet(KEYS)
    told.apply(Snapshot(1, {}), 0.0)
    assert [line.text for line in instances(told.picture(0.0))] == ["The registry knows no instance."]


def test_what_envoys_say_is_in_flight_is_summed_and_stands_in_where_the_server_tells_nothing() -> None:
    told = fleet()
    assert documents(told.picture(0.0))[0]["inFlightByEnvoys"] is None
    for replica, counts in (("a", {"one": 2, "two": 1}), ("b", {"one": 3})):
        key = KEYS.make(PlaneTrafficKey(replica))
        told.apply(Changes(8, {key: encode_plane_traffic(PlaneTraffic("e", 0.0, {}, counts))}, frozenset()), 1.0)
    told.apply(Changes(9, {}, frozenset({KEYS.make(LoadKey("one"))})), 1.0)
    assert [row["inFlightByEnvoys"] for row in documents(told.picture(1.0))] == [5, 1]
    assert instances(told.picture(1.0))[1].text.split()[7] == "5"
    assert told.picture(1.0).revision == 7, "no resource depends on it"
    told.apply(Changes(10, {}, frozenset({KEYS.make(PlaneTrafficKey("b"))})), 2.0)
    assert documents(told.picture(2.0))[0]["inFlightByEnvoys"] == 2
