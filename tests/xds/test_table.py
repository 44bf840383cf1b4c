"""The table, the framing, and the moments outstanding."""

from __future__ import annotations

import hypothesis.strategies as st
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from hypothesis import given

from control_plane.resources.resource import Resource
from control_plane.xds.outstanding import Outstanding
from control_plane.xds.table import BEGINNING, Change, Moment, ResourceTable
from control_plane.xds.wire import delta_response, framed_size
from tests.xds.client import CDS, EDS, cluster, endpoints, ready_table


def test_an_update_says_what_it_changed_and_nothing_else():
    table = ResourceTable()
    assert not table.ready
    a, b = cluster("a"), cluster("b")
    assert table.update([a, b], [], 5).changes == (Change(CDS, "a", None, a), Change(CDS, "b", None, b))
    table.mark_ready()
    newer = cluster("a", 2)
    change = table.update([newer, cluster("b")], [(CDS, "unknown"), (EDS, "a")], 7)
    assert change.changes == (Change(CDS, "a", a, newer),)
    assert change.moment == Moment(2, 7)
    assert table.revision == 7
    assert table.update([], [(CDS, "a")], 8).changes == (Change(CDS, "a", newer, None),)
    assert table.get(CDS, "a") is None
    assert list(table.entries(CDS)) == ["b"]


def test_a_put_wins_over_a_remove_of_the_same_name():
    a = cluster("a")
    table = ready_table(a)
    assert table.update([cluster("a")], [(CDS, "a")], 2).changes == ()
    newer = cluster("a", 2)
    assert table.update([newer], [(CDS, "a")], 3).changes == (Change(CDS, "a", a, newer),)


def test_nobody_knows_since_when_the_first_snapshot_s_resources_are_there():
    table = ready_table(cluster("a"), revision=9)
    assert table.entries(CDS)["a"].created == BEGINNING
    table.update([cluster("b")], [], 10)
    table.update([cluster("b", 2)], [], 11)
    assert table.entries(CDS)["b"].created == Moment(2, 10)


def test_a_type_without_resources_is_none():
    table = ready_table(cluster("a"), endpoints("a", 1))
    table.update([], [(CDS, "a")], 2)
    assert set(table.types()) == {EDS}


@given(
    st.lists(
        st.tuples(st.text(max_size=300), st.text("0123456789abcdef", min_size=1, max_size=20), st.binary(max_size=400)),
        max_size=5,
    ),
    st.lists(st.text(min_size=1, max_size=200), max_size=5),
    st.text(max_size=20),
)
def test_the_framing_is_what_protobuf_would_have_written(rows, removed, info):
    resources = [
        Resource(EDS, name, version, any_pb2.Any(type_url=EDS, value=value).SerializeToString())
        for name, version, value in rows
    ]
    expected = discovery_pb2.DeltaDiscoveryResponse(system_version_info=info, type_url=EDS, nonce="7")
    for name, version, value in rows:
        entry = expected.resources.add(name=name, version=version)
        entry.resource.type_url, entry.resource.value = EDS, value
    expected.removed_resources.extend(removed)
    raw = delta_response(EDS, "7", resources, removed, info)
    assert discovery_pb2.DeltaDiscoveryResponse.FromString(raw) == expected
    empty = len(delta_response(EDS, "7", [], removed, info))
    assert len(raw) - empty <= sum(framed_size(resource) for resource in resources)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=200))
def test_the_lowest_moment_is_that_of_a_plain_list(steps):
    outstanding, plain = Outstanding(), []
    for add, number in steps:
        moment = Moment(number, number * 10)
        if add or moment not in plain:
            outstanding.add(moment)
            plain.append(moment)
        else:
            outstanding.discard(moment)
            plain.remove(moment)
        assert outstanding.lowest() == min(plain, default=None)
        assert len(outstanding) == len(plain)
