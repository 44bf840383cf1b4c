"""Whether a drain is complete, by what the control planes say of themselves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.drain import RETURN, Drain, DrainWait
from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import Keyspace, NodesKey, PlaneKey, ReadyKey
from registry.leased import LeasedKeys
from registry.records import PlaneRecord, ReadyRecord, ReadyState, encode_plane, encode_ready
from tests.support.etcd import Etcd
from tests.support.waiting import eventually

KEYS = Keyspace()
REVISION = 100


def key(replica: str) -> str:
    return KEYS.make(PlaneKey(replica))


def wait_for(**planes: PlaneRecord) -> DrainWait:
    wait = DrainWait("i", REVISION, KEYS)
    wait.apply({key(replica): encode_plane(record) for replica, record in planes.items()}, (), 0.0)
    return wait


def test_before_the_list_is_read_nobody_knows() -> None:
    assert DrainWait("i", REVISION, KEYS).waiting() == ("etcd, for the list of control planes",)


def test_no_control_plane_nothing_to_wait_for() -> None:
    assert wait_for().waiting() == ()


@pytest.mark.parametrize(
    ("listed", "left"),
    [(b'{"connected":{"7":"envoy-a","8":"envoy-b"}}', 2), (b'{"away":["envoy-a"]}', 1), (b"?", 1), (b'{"away":5}', 1)],
)
def test_envoys_of_a_control_plane_that_had_gone_before_are_waited_for(listed: bytes, left: int) -> None:
    nodes = KEYS.make(NodesKey("a"))
    wait = DrainWait("i", REVISION, KEYS)
    wait.apply({nodes: listed}, (), 0.0)
    assert wait.waiting() == (
        f"control plane a: it has gone, and {'1 Envoy of it has' if left == 1 else '2 Envoys of it have'} not found "
        "another one yet",
    )
    wait.apply({key("a"): encode_plane(PlaneRecord(REVISION, envoys=1, draining={"i": 2}))}, (), 1.0)
    assert wait.waiting() == ("control plane a: 2 requests in flight",), "it is back, and says itself"
    back = DrainWait("i", REVISION, KEYS)
    back.apply({nodes: listed}, (), 0.0)
    back.apply({}, [nodes], 2.0)
    assert back.waiting() == (), "they had their time"


def test_a_drain_that_nobody_has_seen_says_so() -> None:
    nodes = KEYS.make(NodesKey("a"))
    assert wait_for().unheard() == "no control plane is registered"
    assert wait_for(a=PlaneRecord(REVISION)).unheard() == ""
    wait = DrainWait("i", REVISION, KEYS)
    wait.apply({nodes: b'{"connected":{"7":"envoy-a"}}'}, (), 0.0)
    wait.apply({}, [nodes], 30.0)
    assert wait.waiting() == ()
    assert "no control plane is registered, and 1 Envoy that" in wait.unheard()


def test_envoys_of_a_lost_control_plane_that_nobody_has_heard_of_again_are_told() -> None:
    done = PlaneRecord(REVISION, envoys=2, draining={"i": 0})
    wait = wait_for(a=PlaneRecord(REVISION, envoys=1), b=done)
    wait.apply({}, [key("a")], 0.0)
    wait.apply({key("b"): encode_plane(replace(done, away=1))}, (), 1.0)
    assert wait.unheard() == "", "they are waited for"
    wait.apply({key("b"): encode_plane(done)}, (), 31.0)
    wait.give_up(31.0)
    assert wait.waiting() == ()
    assert wait.unheard().startswith("1 Envoy that had lost its control plane was not heard of again")
    wait.apply({key("b"): encode_plane(replace(done, envoys=3))}, (), 32.0)
    assert wait.unheard() == ""


def test_a_client_that_ends_its_connection_is_nothing_to_tell() -> None:
    wait = wait_for(a=PlaneRecord(REVISION, envoys=3))
    wait.apply({key("a"): encode_plane(PlaneRecord(REVISION, envoys=2, draining={"i": 0}))}, (), 1.0)
    assert (wait.waiting(), wait.unheard()) == ((), "")


def test_a_list_without_envoys_is_nothing_to_wait_for() -> None:
    wait = DrainWait("i", REVISION, KEYS)
    wait.apply({KEYS.make(NodesKey("a")): b"{}"}, (), 0.0)
    assert wait.waiting() == ()


def test_an_etcd_that_forgot_the_drain_is_not_believed_that_there_is_no_control_plane() -> None:
    wait = DrainWait("i", REVISION, KEYS)
    wait.doubt(5.0)
    wait.apply({}, (), 5.0)
    assert "register again" in wait.waiting()[0]
    assert wait.next_deadline() == 5.0 + RETURN
    wait.apply({key("a"): encode_plane(PlaneRecord(3, envoys=1))}, (), 6.0)
    wait.revision = 2
    assert wait.waiting() == ("control plane a: its Envoys have not reported their load yet",)
    wait.apply({key("a"): encode_plane(PlaneRecord(4, envoys=1, draining={"i": 0}))}, (), 7.0)
    assert wait.waiting() == ()


def test_but_not_for_ever() -> None:
    wait = DrainWait("i", REVISION, KEYS)
    wait.doubt(5.0)
    wait.apply({}, (), 5.0)
    wait.give_up(5.0 + RETURN)
    assert (wait.waiting(), wait.next_deadline()) == ((), None)


@pytest.mark.parametrize(
    ("plane", "reason"),
    [
        (PlaneRecord(99, envoys=2, draining={"i": 0}), "its 2 Envoys are at revision 99 of 100"),
        (PlaneRecord(99), "its 0 Envoys are at revision 99 of 100"),
        (PlaneRecord(100, envoys=1), "its Envoys have not reported their load yet"),
        (PlaneRecord(100, envoys=1, draining={"other": 0}), "its Envoys have not reported their load yet"),
        (PlaneRecord(150, envoys=1, draining={"i": 3}), "3 requests in flight"),
        (PlaneRecord(99, away=1), "its 0 Envoys and 1 that is away are at revision 99 of 100"),
        (PlaneRecord(100, away=1), "its Envoys have not reported their load yet, and 1 is away"),
    ],
)
def test_who_is_waited_for(plane: PlaneRecord, reason: str) -> None:
    assert wait_for(p=plane).waiting() == (f"control plane p: {reason}",)


@pytest.mark.parametrize("plane", [PlaneRecord(100), PlaneRecord(100, envoys=3, draining={"i": 0, "other": 5})])
def test_who_is_done(plane: PlaneRecord) -> None:
    assert wait_for(p=plane).waiting() == ()


def test_every_replica_counts_and_one_that_goes_does_not() -> None:
    wait = wait_for(a=PlaneRecord(100), b=PlaneRecord(1), c=PlaneRecord(2))
    assert len(wait.waiting()) == 2
    wait.apply({key("b"): encode_plane(PlaneRecord(101))}, (), 0.0)
    assert [phrase.split(":")[0] for phrase in wait.waiting()] == ["control plane c"]
    wait.apply({}, [key("c")], 0.0)
    assert wait.waiting() == ()


def test_the_envoys_of_a_control_plane_that_goes_are_waited_for_until_they_are_with_another_one() -> None:
    wait = wait_for(a=PlaneRecord(100, envoys=1, draining={"i": 2}), b=PlaneRecord(100))
    wait.apply({}, [key("a")], 5.0)
    assert wait.waiting() == ("control plane a: it has gone, and 1 Envoy has not found another one yet",)
    wait.apply({key("b"): encode_plane(PlaneRecord(100, envoys=1))}, (), 6.0)
    assert wait.waiting() == ("control plane b: its Envoys have not reported their load yet",)
    wait.apply({key("b"): encode_plane(PlaneRecord(100, envoys=1, draining={"i": 0}))}, (), 6.5)
    assert wait.waiting() == ()


def test_the_envoys_of_a_control_plane_that_goes_are_not_waited_for_for_ever() -> None:
    wait = wait_for(a=PlaneRecord(100, envoys=1, draining={"i": 2}))
    wait.apply({}, [key("a")], 5.0)
    assert wait.next_deadline() == 5.0 + RETURN
    wait.give_up(4.9 + RETURN)
    assert wait.waiting()
    wait.give_up(5.0 + RETURN)
    assert wait.waiting() == ()
    assert wait.next_deadline() is None


def test_an_envoy_that_was_away_when_the_control_plane_that_waited_for_it_went_is_not_forgotten() -> None:
    wait = wait_for(a=PlaneRecord(99, away=1), b=PlaneRecord(100))
    wait.apply({}, [key("a")], 0.0)
    assert wait.waiting() == ("control plane a: it has gone, and 1 Envoy has not found another one yet",)
    wait.apply({key("b"): encode_plane(PlaneRecord(99, away=1))}, (), 1.0)
    assert wait.waiting() == ("control plane b: its 0 Envoys and 1 that is away are at revision 99 of 100",)
    wait.apply({key("b"): encode_plane(PlaneRecord(100, envoys=1, draining={"i": 0}))}, (), 2.0)
    assert wait.waiting() == ()


def test_a_control_plane_that_was_done_may_go() -> None:
    wait = wait_for(a=PlaneRecord(100, envoys=1, draining={"i": 0}))
    wait.apply({}, [key("a")], 5.0)
    assert wait.waiting() == ()


def test_a_record_that_cannot_be_read_is_not_converged() -> None:
    wait = wait_for()
    wait.apply({key("new"): b"{}", "/modelplane/planes/": b"x", "/elsewhere": b"x"}, (), 0.0)
    assert wait.waiting() == ("control plane new: its record can't be read",)


PLANES = st.builds(
    PlaneRecord,
    converged_revision=st.integers(98, 102),
    envoys=st.integers(0, 2),
    draining=st.dictionaries(st.sampled_from(["i", "j"]), st.integers(0, 2)),
)


@given(st.lists(st.tuples(st.sampled_from("abc"), PLANES | st.none())))
def test_done_only_if_every_known_plane_is(history: list[tuple[str, PlaneRecord | None]]) -> None:
    wait, present = wait_for(), {}
    for replica, plane in history:
        if plane is None:
            wait.apply({}, [key(replica)], 0.0)
            present.pop(replica, None)
        else:
            wait.apply({key(replica): encode_plane(plane)}, (), 0.0)
            present[replica] = plane
        # Those that went are given up here, so that only the present ones are left to be waited for.
        wait.give_up(RETURN)
        pending = {
            replica
            for replica, plane in present.items()
            if plane.converged_revision < REVISION or (plane.envoys and plane.draining.get("i") != 0)
        }
        assert len(wait.waiting()) == len(pending)
        assert {phrase.split(":")[0].split()[-1] for phrase in wait.waiting()} == pending


async def test_a_drain_is_completed_in_an_etcd_that_was_wiped_meanwhile(tmp_path: Path) -> None:
    """Waits until the instance is registered again in the wiped etcd, whose revisions are far below that of the drain,
    and until the drain has ended by what a control plane says of the new ones."""
    etcd = Etcd(tmp_path)
    ready = KEYS.make(ReadyKey("m", 1, "i"))
    try:
        async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client, asyncio.TaskGroup() as tasks:
            for _ in range(50):
                await client.put("/elsewhere", b"")
            leased = LeasedKeys(client, 3.0)
            registration = tasks.create_task(leased.run())
            leased.set({ready: encode_ready(ReadyRecord(ReadyState.DRAINING, "10.0.0.1", 8500))})
            before = await leased.flush()
            await client.put(key("p"), encode_plane(PlaneRecord(before, envoys=1)))
            drain = Drain(client, leased, "i", KEYS)
            running = tasks.create_task(drain.run())
            await eventually(
                lambda: "reported their load" in str(drain.waiting()), "the drain to wait for load reports"
            )
            await asyncio.to_thread(etcd.kill)
            await asyncio.to_thread(etcd.restart, empty=True)
            await eventually(lambda: client.get(ready), "the instance to be registered again")
            after = await leased.flush()
            assert after < before
            assert not running.done()
            await client.put(key("p"), encode_plane(PlaneRecord(after - 1, envoys=1, draining={"i": 0})))
            await eventually(lambda: f"of {after}" in str(drain.waiting()), "the drain to go by the new revision")
            await client.put(key("p"), encode_plane(PlaneRecord(after, envoys=1, draining={"i": 0})))
            async with asyncio.timeout(10):
                await running
            registration.cancel()
    finally:
        await asyncio.to_thread(etcd.close)
