"""Quarantine in the table and on streams, without a network: who is offered what once something was refused."""

from __future__ import annotations

from control_plane.xds.events import Refused
from control_plane.xds.quarantine import Blame
from control_plane.xds.table import Change, ResourceTable
from control_plane.xds.warden import judge
from tests.xds.client import (
    CDS,
    ECDS,
    EDS,
    LDS,
    Talk,
    cluster,
    endpoints,
    envoy_like,
    listener,
    names,
    ready_table,
    request,
    router,
)

BLAME = Blame("envoy-1", "ipv4:127.0.0.1:1", "Cluster.name", "no good", 1.0)
A1, A2, A3, B1 = cluster("a", 1), cluster("a", 2), cluster("a", 3), cluster("b", 1)
EA, EB = endpoints("a", 1), endpoints("b", 2)


def refuse(table: ResourceTable, resource):
    return table.quarantine(resource.type_url, resource.name, resource.version, BLAME)


def accept(table: ResourceTable, resource) -> bool:
    return table.acknowledged(resource, table.moment.generation)


# The table


def test_the_last_good_version_is_offered_in_place_of_the_refused_one():
    table = ready_table(A1)
    assert not accept(table, A1)
    table.update([A2], [], 2)
    change = refuse(table, A2)
    assert change.changes == (Change(CDS, "a", A2, A1),)
    assert change.moment > (2, 2)
    assert (table.get(CDS, "a"), table.offered(CDS, "a"), table.revision) == (A1, A2, 2)
    record = table.quarantined[CDS, "a"]
    assert (record.model, record.version, record.last_good_version) == ("a", A2.version, A1.version)
    assert (record.node, record.peer, record.field, record.message) == (BLAME.node, BLAME.peer, BLAME.field, "no good")
    assert (record.since_revision, record.at) == (2, BLAME.at)
    assert table.withheld(CDS, "a") is None


def test_without_a_good_version_the_name_is_withheld():
    table = ready_table(A1, B1)
    change = refuse(table, A1)
    assert change.changes == (Change(CDS, "a", A1, None, withheld=True),)
    assert list(table.entries(CDS)) == ["b"]
    assert table.withheld(CDS, "a") is table.quarantined[CDS, "a"]
    assert table.offered(CDS, "a") == A1


def test_the_same_version_again_changes_nothing_and_a_new_one_ends_it():
    for good in (True, False):
        table = ready_table(A1)
        if good:
            accept(table, A1)
        table.update([A2], [], 2)
        refuse(table, A2)
        assert table.update([cluster("a", 2)], [], 3).changes == ()
        assert table.quarantined
        change = table.update([A3], [], 4).changes
        assert change == (Change(CDS, "a", A1 if good else None, A3, was_withheld=not good, trial=True),)
        assert not table.quarantined
        assert table.get(CDS, "a") == table.offered(CDS, "a") == A3


def test_going_back_to_the_last_good_version_ends_it_and_changes_nothing():
    table = ready_table(A1)
    accept(table, A1)
    table.update([A2], [], 2)
    refuse(table, A2)
    assert table.update([A1], [], 3).changes == ()
    assert not table.quarantined
    # The same bad version, offered again later, is tried again.
    assert table.update([A2], [], 4).changes == (Change(CDS, "a", A1, A2),)
    assert refuse(table, A2).changes == (Change(CDS, "a", A2, A1),)


def test_what_vanishes_while_it_is_quarantined_is_removed():
    table = ready_table(A1, B1)
    accept(table, A1)
    table.update([A2, cluster("b", 2)], [], 2)
    refuse(table, A2)
    refuse(table, cluster("b", 2))
    gone = table.update([], [(CDS, "a"), (CDS, "b")], 3).changes
    assert gone == (Change(CDS, "a", A1, None), Change(CDS, "b", None, None, was_withheld=True))
    assert not table.quarantined
    assert table.offered(CDS, "a") is table.offered(CDS, "b") is None


def test_a_version_that_some_stream_has_acknowledged_is_not_quarantined():
    table = ready_table(A1)
    accept(table, A1)
    assert refuse(table, A1).changes == ()
    assert not table.quarantined


def test_a_version_that_is_not_offered_any_longer_is_not_quarantined():
    table = ready_table(A1)
    table.update([A2], [], 2)
    assert refuse(table, A1).changes == ()
    assert refuse(table, B1).changes == ()
    assert not table.quarantined


def test_an_acknowledgement_that_comes_late_acquits():
    for good in (True, False):
        table = ready_table(A1)
        if good:
            accept(table, A1)
        table.update([A2], [], 2)
        refuse(table, A2)
        assert not accept(table, A1)
        assert accept(table, A2)
        change = table.acquit(CDS, "a", A2.version)
        assert change.changes == (Change(CDS, "a", A1 if good else None, A2, was_withheld=not good),)
        assert not table.quarantined
        assert refuse(table, A2).changes == (), "it has been acknowledged"
        assert table.acquit(CDS, "a", A2.version).changes == ()


def test_the_newest_acknowledged_version_is_the_last_good_one_whatever_order_the_answers_come_in():
    table = ready_table(A1)
    generations = {A1: table.moment.generation}
    for revision, resource in enumerate((A2, A3, cluster("a", 4)), start=2):
        generations[resource] = table.update([resource], [], revision).moment.generation
    table.acknowledged(A3, generations[A3])
    table.acknowledged(A2, generations[A2])
    table.acknowledged(A1, generations[A1])
    refuse(table, cluster("a", 4))
    assert table.get(CDS, "a") == A3


def test_what_is_withheld_can_be_tried_once_more_and_stays_quarantined_until_it_is_acknowledged():
    table = ready_table(A1, B1)
    accept(table, B1)
    refuse(table, A1)
    assert table.retry_withheld().changes == (Change(CDS, "a", None, A1, was_withheld=True, trial=True),)
    assert table.retry_withheld().changes == ()
    assert table.quarantined
    assert table.withheld(CDS, "a") is None
    assert refuse(table, A1).changes == (Change(CDS, "a", A1, None, withheld=True),)
    table.retry_withheld()
    assert accept(table, A1)
    assert table.acquit(CDS, "a", A1.version).changes == ()
    assert not table.quarantined
    assert refuse(table, A1).changes == ()


def test_a_registry_that_goes_back_keeps_what_is_quarantined():
    table = ready_table(A1, revision=9)
    accept(table, A1)
    table.update([A2], [], 10)
    refuse(table, A2)
    table.update([B1], [], 3)
    assert table.get(CDS, "a") == A1
    assert table.revision == 3
    assert table.update([A3], [], 4).changes[0].new == A3


# Streams


def settle(talks: list[Talk], *, bad: frozenset[str]) -> list[Refused]:
    """Each client takes everything but these versions, until nobody has anything to say; what was refused alone."""
    blamed: list[Refused] = []
    for _ in range(200):
        for talk in talks:
            for response in list(talk.sent):
                wrong = {resource.name for resource in response.resources if resource.version in bad}
                if wrong:
                    talk.nack(response, f"Error adding/updating cluster(s) {min(wrong)}: no good")
                else:
                    talk.ack(response)
            for event in talk.stream.events():
                blamed += [event] if isinstance(event, Refused) and event.version else []
                change = judge(talk.table, event, "peer", 0.0)
                if change is not None:
                    publish(talks, change)
        if not any(talk.sent for talk in talks):
            return blamed
    raise AssertionError("they never stop talking")


def publish(talks: list[Talk], change) -> None:
    for talk in talks:
        talk.stream.notice(change, talk.now)
        talk.read()


def update(talks: list[Talk], *puts, removes=()) -> int:
    table = talks[0].table
    publish(talks, table.update(puts, removes, table.revision + 1))
    return table.revision


def two(*resources) -> list[Talk]:
    table = ready_table(*resources)
    return [envoy_like(table=table), envoy_like(table=table)]


def test_both_streams_get_the_last_good_version_back_and_all_is_settled():
    talks = two(A1, B1, EA, EB)
    bad = frozenset({A2.version})
    revision = update(talks, A2, cluster("b", 2))
    blamed = settle(talks, bad=bad)
    assert {event.names for event in blamed} == {("a",)}
    assert talks[0].table.get(CDS, "a") == A1
    assert [talk.converged for talk in talks] == [revision, revision]
    assert talks[0].table.entries(CDS)["b"].resource == cluster("b", 2)
    late = Talk.about(table=talks[0].table)
    (response,) = late.ask(CDS)
    assert {each.name: each.version for each in response.resources} == {
        "a": A1.version,
        "b": cluster("b", 2).version,
    }
    assert settle([*talks, late], bad=bad) == []
    revision = update([*talks, late], A3)
    assert settle([*talks, late], bad=bad) == []
    assert [talk.converged for talk in talks] == [revision, revision]


def test_a_new_resource_that_is_bad_is_withheld_and_its_neighbours_flow():
    talks = two(A1, EA, router("a"))
    revision = update(talks, B1, EB, cluster("c"), endpoints("c", 3), router("a", "b", "c", version=2))
    for talk in talks:
        talk.ask(EDS, ["c"])
    (_, *_) = settle(talks, bad=frozenset({B1.version}))
    assert talks[0].table.withheld(CDS, "b")
    assert [talk.converged for talk in talks] == [revision, revision], "a router does not wait for what is withheld"
    assert [talk.stream.status()[ECDS].acked for talk in talks] == [2, 2]
    assert [talk.wait(60) for talk in talks] == [[], []]
    update(talks, router("a", "c", version=3), removes=[(CDS, "b"), (EDS, "b")])
    for talk in talks:
        removals = [response for response in talk.ack_all() if response.type_url == CDS]
        assert [list(response.removed_resources) for response in removals] == [["b"]], "it may hold something of it"


def test_an_envoy_that_reconnects_keeps_what_is_withheld_and_one_that_has_nothing_is_told_so():
    table = ready_table(A1, B1, EA, EB)
    refuse(table, A1)
    refuse(table, EA)
    talk = Talk.about(table=table)
    assert talk.ask(CDS, claimed={"a": "old", "b": B1.version}) == []
    assert talk.ask(EDS, ["a", "b"], claimed={"a": "older", "b": EB.version}) == []
    talk.ask(LDS)
    talk.ack_all()
    assert talk.converged == table.revision
    fresh = Talk.about(table=table)
    (response,) = fresh.ask(CDS)
    assert (names(response), list(response.removed_resources)) == (["b"], [])
    (response,) = fresh.ask(EDS, ["a", "b"])
    assert (names(response), list(response.removed_resources)) == (["b"], ["a"])
    (response,) = fresh.ask(CDS, ["a"])
    assert list(response.removed_resources) == ["a"], "asked for by name: answered"


def test_what_is_asked_for_and_withheld_before_the_answer_is_answered_as_not_existing():
    table = ready_table(A1, B1)
    talk = Talk.about(table=table)
    talk.stream.receive(request(CDS, ["a"]), talk.now)
    talk.stream.notice(refuse(table, A1), talk.now)
    (response,) = talk.read()
    assert list(response.removed_resources) == ["a"]


def test_a_second_stream_s_refusal_of_what_is_withheld_already_leaves_nothing_outstanding():
    talks = two(B1, EB)
    revision = update(talks, A1)
    first, second = (talk.sent[0] for talk in talks)
    talks[0].nack(first)
    for event in talks[0].stream.events():
        change = judge(talks[0].table, event, "peer", 0.0)
        assert change is not None
        publish(talks, change)
    assert talks[1].converged < revision, "nobody knows yet what it does with what it was sent"
    talks[1].nack(second)
    assert talks[1].converged == revision
    settle(talks, bad=frozenset())
    assert talks[0].table.withheld(CDS, "a")
    assert [talk.converged for talk in talks] == [revision, revision]


def test_the_one_who_refuses_what_another_has_taken_is_alone_with_it():
    talks = two(A1, EA)
    revision = update(talks, A2)
    talks[1].ack(talks[1].sent[0])
    assert talks[1].ack_all() == []
    talks[0].nack(talks[0].sent[0])
    assert len(settle(talks, bad=frozenset())) == 1
    assert not talks[0].table.quarantined
    assert talks[0].stream.status()[CDS].refused == ("a",)
    assert (talks[0].converged, talks[1].converged) == (revision - 1, revision)


def test_the_one_who_takes_what_another_has_refused_gets_it_back():
    talks = two(A1, EA)
    update(talks, A2)
    late = talks[1].sent[0]
    talks[0].nack(talks[0].sent[0])
    for event in talks[0].stream.events():
        change = judge(talks[0].table, event, "peer", 0.0)
        assert change is not None
        publish(talks, change)
    assert talks[0].table.get(CDS, "a") == A1
    talks[1].ack(late)
    settle(talks, bad=frozenset())
    assert talks[0].table.get(CDS, "a") == A2
    assert not talks[0].table.quarantined


def test_what_is_withheld_is_tried_with_who_connects_and_not_again_with_who_refused_it():
    first = envoy_like(B1, EB)
    update([first], A1)
    assert len(settle([first], bad=frozenset({A1.version}))) == 1
    second = envoy_like(table=first.table)
    publish([first, second], first.table.retry_withheld())
    assert first.sent == []
    (response,) = second.sent
    assert names(response) == ["a"], "by itself"
    assert settle([first, second], bad=frozenset()) == []
    assert not first.table.quarantined
    assert first.stream.status()[CDS].refused == ("a",)


def test_a_client_that_reconnects_with_the_version_that_is_quarantined_acquits_it():
    talk = envoy_like(A1, EA)
    update([talk], A2)
    settle([talk], bad=frozenset({A2.version}))
    other = Talk.about(table=talk.table)
    other.ask(CDS, claimed={"a": A2.version})
    settle([talk, other], bad=frozenset())
    assert not talk.table.quarantined
    assert talk.table.get(CDS, "a") == A2


def test_a_listener_and_a_router_can_be_quarantined_too():
    talk = envoy_like(A1, EA, listener(), router("a"))
    revision = update([talk], listener(version=2), router("a", version=2))
    bad = frozenset({listener(version=2).version, router("a", version=2).version})
    assert len(settle([talk], bad=bad)) == 2
    assert talk.table.get(LDS, "grpc") == listener()
    assert talk.table.get(ECDS, "router") == router("a")
    assert talk.converged == revision


# What a withheld resource holds up: nothing


def test_nothing_waits_for_endpoints_that_are_withheld():
    talks = two(A1, EA, router("a"))
    revision = update(talks, B1, EB, router("a", "b", version=2))
    for talk in talks:
        talk.ask(EDS, ["b"])
    assert len(settle(talks, bad=frozenset({EB.version}))) >= 1
    assert talks[0].table.withheld(EDS, "b")
    assert [talk.converged for talk in talks] == [revision, revision]
    assert [talk.stream.status()[ECDS].acked for talk in talks] == [2, 2], "without any deadline"


def test_nothing_waits_for_endpoints_that_one_client_alone_refuses():
    talks = two(A1, EA, router("a"))
    update(talks, B1, EB, router("a", "b", version=2))
    for talk in talks:
        talk.ask(EDS, ["b"])
    talks[1].ack_all()
    settle(talks[:1], bad=frozenset({EB.version}))
    assert not talks[0].table.quarantined
    assert talks[0].stream.status()[ECDS].acked == 2


def test_an_envoy_whose_cluster_warms_for_endpoints_that_are_withheld_is_answered():
    table = ready_table(A1, B1, EA, EB)
    refuse(table, EA)
    talk = Talk.about(table=table)
    assert talk.ask(EDS, ["a", "b"], claimed={"a": "older", "b": EB.version}) == []
    (response,) = talk.wait(1)
    assert (names(response), list(response.removed_resources)) == (["b"], ["a"]), "it never asked for clusters"
