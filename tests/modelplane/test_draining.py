"""What the commands decide: what may be drained, what is waited for, and when it is done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelplane.draining import (
    Follower,
    Goal,
    check_known,
    drain_records,
    refuse_last,
    refuse_unheard,
    spares,
    targets_of,
)
from modelplane.errors import OptionError, UserError
from modelplane.fleet import Holding, Picture, State, Version
from registry.drains import UNHEARD, DrainRecord, DrainTarget, encode_drain
from registry.follow import Changes, Snapshot
from registry.keys import DrainKey, InstanceKey, Keyspace, PlaneKey, ReadyKey
from registry.records import (
    Condition,
    InstanceRecord,
    InstanceState,
    PlaneRecord,
    ReadyRecord,
    ReadyState,
    encode_instance,
    encode_plane,
    encode_ready,
)

SPACE = Keyspace()
ALL = DrainRecord()
ASKED = (Condition("DrainAsked", "all of it"),)


def picture(*rows: str) -> Picture:
    """Rows as `m@1: a b=draining`."""
    versions, names = [], set[str]()
    for row in rows:
        name, _, holders = row.partition(": ")
        model, _, version = name.partition("@")
        held = {}
        for holder in holders.split():
            instance, _, state = holder.partition("=")
            held[instance] = Holding(State(state or "ready"))
        names |= held.keys()
        versions.append(Version(model, int(version), False, held))
    return Picture(1, True, tuple(versions), {name: InstanceRecord("10.0.0.1", 8500) for name in names})


def model(text: str) -> DrainRecord:
    return DrainRecord(targets_of([text]))


@pytest.mark.parametrize(
    ("wish", "drains", "left", "without"),
    [
        (ALL, {}, {"b", "c"}, ()),
        (ALL, {"b": ALL}, {"c"}, ("m",)),
        (ALL, {"b": model("m@1")}, {"c"}, ("m",)),
        (ALL, {"b": model("m@2"), "c": model("n")}, {"b"}, ("n",)),
        (model("m"), {"c": ALL}, {"b"}, ()),
        (model("m@1"), {}, set(), ()),
        (model("m@1"), {"b": ALL}, set(), ("version 1 of m",)),
        (DrainRecord(targets_of(["n", "n@1"])), {"c": ALL}, set(), ("n",)),
    ],
)
def test_what_is_left_of_the_models(
    wish: DrainRecord, drains: dict[str, DrainRecord], left: set[str], without: tuple[str, ...]
) -> None:
    fleet = picture("m@2: a b=draining", "m@1: a b", "n@1: a c", "o@1: b", "p@1: a=failed")
    found = spares(fleet, "a", wish, drains)
    assert (found.instances, found.without) == (left, without)
    if without:
        with pytest.raises(UserError, match=f"for {without[0]}.*--force"):
            refuse_last("a", found)
    else:
        refuse_last("a", found)


@pytest.mark.parametrize(
    ("instance", "targets", "said"),
    [
        ("tfs-1", (), "knows no instance 'tfs-1'; did you mean tfs-0?"),
        ("x", (), "knows no instance 'x'; there are tfs-0"),
        ("tfs-0", ("digit",), "instance tfs-0 has no model 'digit'; did you mean digits?"),
        ("tfs-0", ("digits@3",), "instance tfs-0 has no version 3 of digits; it has 1"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(instance: str, targets: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_known(picture("digits@1: tfs-0"), instance, targets_of(targets))
    assert said in str(error.value)


def test_one_whose_lease_is_lost_is_not_called_unknown() -> None:
    known = replace(picture("digits@1: tfs-0=failing"), instances={})
    with pytest.raises(UserError, match="tfs-0 has lost its lease"):
        check_known(known, "tfs-0", ())


def test_a_model_that_can_be_none() -> None:
    with pytest.raises(OptionError, match="--model"):
        targets_of(["@1"])


def test_a_record_that_cannot_be_read_drains_all() -> None:
    entries = {SPACE.make(DrainKey("a")): b"x", SPACE.make(DrainKey("b")): encode_drain(model("m"))}
    assert drain_records(entries, SPACE) == {"a": DrainRecord(), "b": DrainRecord((DrainTarget("m"),))}


class World:
    """One instance's drain as a follower sees it, one revision at a time."""

    def __init__(self, wish: DrainRecord = ALL, goal: Goal = Goal.DRAINED) -> None:
        self.follower = Follower("a", wish, goal, SPACE)
        self.revision = 10
        self.follower.apply(Snapshot(10, {}), 0.0)

    def put(self, key: InstanceKey | ReadyKey | PlaneKey, value: bytes) -> None:
        self.revision += 1
        self.follower.apply(Changes(self.revision, {SPACE.make(key): value}, frozenset()), 0.0)

    def gone(self, key: InstanceKey) -> None:
        self.revision += 1
        self.follower.apply(Changes(self.revision, {}, frozenset({SPACE.make(key)})), 0.0)

    def ready(self, version: int, state: ReadyState) -> None:
        self.put(ReadyKey("m", version, "a"), encode_ready(ReadyRecord(state, "10.0.0.1", 8500)))

    def instance(self, state: InstanceState, conditions: tuple[Condition, ...] = ASKED) -> None:
        record = InstanceRecord("10.0.0.1", 8500, state=state, conditions=conditions)
        self.put(InstanceKey("a"), encode_instance(record))

    def plane(self, converged: int, *, behind: tuple[str, ...] = (), **in_flight: int) -> None:
        servables = {"a": {f"m@{name[1:]}": count for name, count in in_flight.items() if name != "a"}}
        whole = {"a": in_flight["a"]} if "a" in in_flight else {}
        record = PlaneRecord(converged, 1, draining=whole, servables=servables, behind=behind)
        self.put(PlaneKey("p"), encode_plane(record))

    @property
    def waiting(self) -> str:
        progress = self.follower.progress(0.0)
        return "done" if progress.done else "; ".join(progress.waiting)


def test_an_instance_is_drained_when_its_monitor_says_so() -> None:
    world = World()
    assert world.waiting == "instance a, which has gone from the registry, to come back"
    world.instance(InstanceState.SERVING, ())
    world.ready(1, ReadyState.READY)
    assert world.waiting == "its monitor, to take it in"
    world.instance(InstanceState.DRAINING)
    world.ready(1, ReadyState.DRAINING)
    began = world.revision
    world.plane(began - 1, behind=("envoy-a",))
    assert world.waiting == f"control plane p: its 1 Envoy is at revision {began - 1} of {began} (envoy-a)"
    world.plane(began, a=3)
    assert world.waiting == "control plane p: 3 requests in flight"
    world.plane(began, a=0)
    assert world.waiting == "its monitor, to say so"
    world.ready(1, ReadyState.DRAINED)
    assert world.waiting == "instance a, which is draining"
    world.instance(InstanceState.DRAINED)
    assert world.waiting == "done"


def test_one_version_is_drained_while_the_other_goes_on() -> None:
    world = World(model("m@1"))
    world.instance(InstanceState.SERVING)
    world.ready(1, ReadyState.DRAINING)
    began = world.revision
    world.ready(2, ReadyState.READY)
    world.plane(began, a=7, v1=2)
    assert world.waiting == "control plane p: 2 requests in flight"
    world.ready(1, ReadyState.DRAINED)
    assert world.waiting == "done"


def test_stopped_means_that_it_has_gone() -> None:
    world = World(goal=Goal.STOPPED)
    world.instance(InstanceState.DRAINED)
    assert world.waiting == "the server to stop"
    world.gone(InstanceKey("a"))
    assert world.waiting == "done"
    world.instance(InstanceState.DRAINED, (*ASKED, Condition("StopNotPossible", "its monitor has not started it")))
    with pytest.raises(UserError, match="is drained, but its monitor has not started it"):
        world.follower.progress(0.0)


def test_back_means_that_nothing_of_it_is_kept() -> None:
    world = World(goal=Goal.BACK)
    world.instance(InstanceState.DRAINED)
    world.ready(1, ReadyState.DRAINED)
    assert world.waiting == "its monitor, to take it in"
    world.ready(1, ReadyState.LOADING)
    assert world.waiting == "done"


def test_what_is_stopped_is_seen_by_a_control_plane() -> None:
    with pytest.raises(UserError, match=r"no control plane.*--force"):
        refuse_unheard(Picture(), "a")
    refuse_unheard(Picture(planes={"p": PlaneRecord(1)}), "a")


def test_a_drain_that_nobody_has_seen_is_told_even_after_the_server_has_stopped() -> None:
    world = World(goal=Goal.STOPPED)
    world.instance(InstanceState.DRAINED, (*ASKED, Condition(UNHEARD, "no control plane is registered")))
    world.gone(InstanceKey("a"))
    assert world.waiting == "done"
    assert world.follower.unheard == "no control plane is registered"
