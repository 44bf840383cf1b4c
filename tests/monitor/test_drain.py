"""Whether a drain is complete, by what the control planes say of themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.drain import DrainWait
from registry.keys import Keyspace, PlaneKey
from registry.records import PlaneRecord, encode_plane

KEYS = Keyspace()
REVISION = 100


def key(replica: str) -> str:
    return KEYS.make(PlaneKey(replica))


def wait_for(**planes: PlaneRecord) -> DrainWait:
    wait = DrainWait("i", REVISION, KEYS)
    wait.apply({key(replica): encode_plane(record) for replica, record in planes.items()})
    return wait


def test_before_the_list_is_read_nobody_knows() -> None:
    assert DrainWait("i", REVISION, KEYS).waiting() == ("etcd, for the list of control planes",)


def test_no_control_plane_nothing_to_wait_for() -> None:
    assert wait_for().waiting() == ()


@pytest.mark.parametrize(
    ("plane", "reason"),
    [
        (PlaneRecord(99, envoys=2, draining={"i": 0}), "its 2 Envoys are at revision 99 of 100"),
        (PlaneRecord(99), "its 0 Envoys are at revision 99 of 100"),
        (PlaneRecord(100, envoys=1), "its Envoys have not reported their load yet"),
        (PlaneRecord(100, envoys=1, draining={"other": 0}), "its Envoys have not reported their load yet"),
        (PlaneRecord(150, envoys=1, draining={"i": 3}), "3 requests in flight"),
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
    wait.apply({key("b"): encode_plane(PlaneRecord(101))})
    assert [phrase.split(":")[0] for phrase in wait.waiting()] == ["control plane c"]
    wait.apply({}, [key("c")])
    assert wait.waiting() == ()


def test_a_record_that_cannot_be_read_is_not_converged() -> None:
    wait = wait_for()
    wait.apply({key("new"): b"{}", "/modelplane/planes/": b"x", "/elsewhere": b"x"})
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
            wait.apply({}, [key(replica)])
            present.pop(replica, None)
        else:
            wait.apply({key(replica): encode_plane(plane)})
            present[replica] = plane
        pending = {
            replica
            for replica, plane in present.items()
            if plane.converged_revision < REVISION or (plane.envoys and plane.draining.get("i") != 0)
        }
        assert len(wait.waiting()) == len(pending)
        assert {phrase.split(":")[0].split()[-1] for phrase in wait.waiting()} == pending
