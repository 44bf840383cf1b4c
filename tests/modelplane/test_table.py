"""The registry's updates as a picture, and the picture as lines."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from modelplane.fleet import Fleet, Holding, Picture, State
from modelplane.table import changes, clean, describe, fit, table
from registry.follow import Changes, Connection, Snapshot
from registry.keys import InstanceKey, Keyspace, PlaneKey, ReadyKey
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


def instance(name: str, *servables: Servable, detail: str = "", rest: int = 0) -> dict[str, bytes]:
    record = InstanceRecord("127.0.0.1", 21000, rest, state=InstanceState.SERVING, detail=detail, servables=servables)
    return {KEYS.make(InstanceKey(name)): encode_instance(record)}


def ready(model: str, version: int, name: str, state: ReadyState = ReadyState.READY) -> dict[str, bytes]:
    return {
        KEYS.make(ReadyKey(model, version, name)): encode_ready(ReadyRecord(state, "127.0.0.1", 21000 + ord(name[-1])))
    }


def available(model: str, version: int) -> Servable:
    return Servable(model, version, ServableState.AVAILABLE, proof=Proof.PROVED)


def fleet(*parts: dict[str, bytes]) -> Fleet:
    made = Fleet(KEYS)
    made.apply(Snapshot(7, {key: value for part in parts for key, value in part.items()}), 0.0)
    return made


def test_a_fleet_that_serves() -> None:
    picture = fleet(
        instance("tfs-0", available("digits", 1), available("digits", 2), rest=21001),
        instance("tfs-1", available("digits", 1), Servable("digits", 2, ServableState.LOADING)),
        ready("digits", 1, "tfs-0"),
        ready("digits", 2, "tfs-0"),
        ready("digits", 1, "tfs-1"),
    ).picture(5.0)
    assert table(picture) == [
        "MODEL   VERSION  SERVED  STATE",
        "digits  2        yes     ready on tfs-0; loading on tfs-1",
        "digits  1                ready on tfs-0, tfs-1",
        "",
        "INSTANCE  STATE    GRPC             REST             READY",
        "tfs-0     serving  127.0.0.1:21000  127.0.0.1:21001  2 of 2",
        "tfs-1     serving  127.0.0.1:21000  -                1 of 2",
    ]


def test_it_says_why_something_is_not_ready() -> None:
    broken = Servable("broken", 1, ServableState.END, error="Can't parse\n/m/saved_model.pb")
    no_variables = Servable("bare", 3, ServableState.AVAILABLE, proof=Proof.FAILED, proof_detail="no variable b")
    picture = fleet(
        instance("tfs-0", broken, no_variables), instance("tfs-1", broken, detail="the server restarts")
    ).picture(5.0)
    lines = table(picture)
    assert lines[lines.index("NOT READY") + 1 :] == [
        "tfs-1: the server restarts",
        "bare version 3 on tfs-0: it is AVAILABLE, but doesn't answer a Predict: no variable b",
        "broken version 1 on tfs-0, tfs-1: Can't parse /m/saved_model.pb",
    ]
    assert "broken  1                failed on tfs-0, tfs-1" in lines


def test_conditions_are_shown_by_name_and_told_once_when_they_begin_and_end() -> None:
    missing = Condition("BasePathMissing", "model m: /m is not there", "m")
    frozen = Condition("OtherModelsFrozen", "new versions are not seen")
    record = InstanceRecord("127.0.0.1", 21000, conditions=(missing, frozen))
    made = fleet({KEYS.make(InstanceKey("tfs-0")): encode_instance(record)})
    before = made.picture(5.0)
    assert table(before)[-3:] == [
        "CONDITIONS",
        "tfs-0: BasePathMissing: model m: /m is not there",
        "tfs-0: OtherModelsFrozen: new versions are not seen",
    ]
    left = encode_instance(replace(record, conditions=(frozen,)))
    made.apply(Changes(8, {KEYS.make(InstanceKey("tfs-0")): left}, frozenset()), 6.0)
    assert changes(before, made.picture(6.0)) == ["tfs-0: no longer BasePathMissing: model m: /m is not there"]
    assert changes(Picture(), made.picture(6.0)) == [
        "tfs-0: starting",
        "tfs-0: OtherModelsFrozen: new versions are not seen",
    ]


def test_what_fails_is_said_whether_or_not_it_is_asked_as_the_last_resort() -> None:
    hangs = Servable("m", 1, ServableState.AVAILABLE, proof=Proof.FAILED, proof_detail="no answer within 5 s")
    told = "it is AVAILABLE, but doesn't answer a Predict: no answer within 5 s"
    parts = (instance("a", hangs), instance("b", available("m", 1)), ready("m", 1, "a", ReadyState.FAILING))
    made = fleet(*parts, ready("m", 1, "b"))
    assert "m      1        yes     ready on b; failing on a" in table(made.picture(5.0))
    assert f"m version 1 on a: {told}" in table(made.picture(5.0))
    made = fleet(*parts)
    assert made.picture(5.0).versions[0].holdings["a"] == Holding(State.FAILING, told)
    made.apply(Changes(8, ready("m", 1, "a"), frozenset(), relisted=False), 6.0)
    assert made.picture(7.0).versions[0].holdings["a"] == Holding(State.READY)


def test_what_was_unloaded_is_not_shown() -> None:
    assert fleet(instance("tfs-0", Servable("old", 1, ServableState.END))).picture(5.0).versions == ()


def test_an_empty_registry() -> None:
    assert table(fleet().picture(5.0)) == ["No models.", "", "No instances."]


def test_a_lost_registry_is_said_and_the_last_picture_stays() -> None:
    made = fleet(instance("tfs-0", available("digits", 1)), ready("digits", 1, "tfs-0"))
    made.apply(Connection(connected=False, detail="down"), 1.0)
    lines = table(made.picture(5.0))
    assert lines[0].startswith("The registry (etcd) can't be reached")
    assert "digits  1        yes     ready on tfs-0" in lines


def test_a_condition_that_several_instances_have_is_told_once() -> None:
    record = InstanceRecord(
        "127.0.0.1", 1, conditions=(Condition("LoadFailed", "model m version 2: no variables", "m"),)
    )
    made = fleet({KEYS.make(InstanceKey(name)): encode_instance(record) for name in ("tfs-0", "tfs-1")})
    assert table(made.picture(5.0))[-2:] == ["CONDITIONS", "tfs-0, tfs-1: LoadFailed: model m version 2: no variables"]


def test_changes_are_told_in_the_order_of_names() -> None:
    names = [f"tfs-{number}" for number in range(10)]
    picture = fleet(*(instance(name) for name in reversed(names))).picture(5.0)
    assert changes(Picture(), picture) == [f"{name}: serving" for name in names]


def test_changes_are_told_one_by_one() -> None:
    made = fleet(
        instance("tfs-0", Servable("digits", 2, ServableState.LOADING)), ready("digits", 2, "tfs-0", ReadyState.LOADING)
    )
    before = made.picture(5.0)
    assert changes(Picture(), before) == ["tfs-0: serving", "digits version 2 on tfs-0: loading"]
    made.apply(Changes(8, instance("tfs-0", available("digits", 2)) | ready("digits", 2, "tfs-0"), frozenset()), 1.0)
    served = made.picture(5.0)
    assert changes(before, served) == [
        "digits version 2 on tfs-0: ready",
        "digits: requests that name no version get version 2",
    ]
    assert changes(served, served) == []
    gone = frozenset({KEYS.make(InstanceKey("tfs-0"))})
    made.apply(Changes(9, ready("digits", 2, "tfs-0", ReadyState.DRAINING), frozenset()), 2.0)
    made.apply(Changes(10, {}, frozenset({KEYS.make(ReadyKey("digits", 2, "tfs-0"))})), 3.0)
    made.apply(Changes(11, {}, gone), 3.0)
    assert changes(served, made.picture(5.0)) == ["tfs-0: gone from the registry", "digits version 2 on tfs-0: gone"]


def test_an_instance_whose_lease_was_lost_is_given_up_in_time() -> None:
    made = fleet(instance("tfs-0"), instance("tfs-1"), ready("digits", 1, "tfs-0"), ready("digits", 1, "tfs-1"))
    lost = frozenset({KEYS.make(InstanceKey("tfs-0")), KEYS.make(ReadyKey("digits", 1, "tfs-0"))})
    made.apply(Changes(8, {}, lost), 10.0)
    made.apply(Changes(9, {KEYS.make(PlaneKey("p")): encode_plane(PlaneRecord(8))}, frozenset()), 11.0)
    assert "digits  1        yes     ready on tfs-1; lease lost on tfs-0" in table(made.picture(10.0))
    assert "digits  1        yes     ready on tfs-1" in table(made.picture(1000.0))


def test_converged_needs_an_envoy_and_every_plane() -> None:
    def plane(name: str, revision: int, envoys: int) -> dict[str, bytes]:
        return {KEYS.make(PlaneKey(name)): encode_plane(PlaneRecord(revision, envoys))}

    assert not fleet().picture(5.0).converged
    assert not fleet(plane("a", 7, 0)).picture(5.0).converged
    assert not fleet(plane("a", 6, 1)).picture(5.0).converged
    assert not fleet(plane("a", 7, 1), plane("b", 6, 0)).picture(5.0).converged
    assert fleet(plane("a", 7, 1), plane("b", 8, 0)).picture(5.0).converged


def test_nonsense_in_the_registry_is_passed_over() -> None:
    picture = fleet({KEYS.make(InstanceKey("tfs-0")): b"{", "/modelplane/other": b"x"}).picture(5.0)
    assert picture.instances == {}


def test_many_instances_are_counted() -> None:
    holdings = {f"tfs-{number}": Holding(State.READY) for number in range(9)}
    assert describe(holdings) == "ready on tfs-0, tfs-1, tfs-2, tfs-3 and 5 more"


@given(st.text(), st.integers(1, 40))
def test_a_line_never_moves_the_cursor_and_never_gets_too_wide(text: str, width: int) -> None:
    line = fit(clean(text), width)
    assert line.isprintable()
    assert len(line) <= width
