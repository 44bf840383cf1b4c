"""Conversations with the machine: the protocol's rules on one stream, without a network."""

from __future__ import annotations

import sys

import pytest

from control_plane.xds.delta import DeltaStream
from control_plane.xds.events import Refused
from control_plane.xds.stream import ProtocolError
from tests.xds.client import (
    CDS,
    ECDS,
    EDS,
    LDS,
    Response,
    Talk,
    cluster,
    endpoints,
    envoy_like,
    listener,
    names,
    request,
    router,
)

A, B = cluster("a"), cluster("b")
EA, EB = endpoints("a", 1), endpoints("b", 2)


def versions(*resources):
    return {resource.name: resource.version for resource in resources}


def test_an_empty_first_request_for_clusters_is_a_wildcard():
    talk = Talk.about(A, B)
    (response,) = talk.ask(CDS)
    assert names(response) == ["a", "b"]
    assert response.nonce
    assert response.resources[0].version == A.version
    assert response.resources[0].resource.SerializeToString(deterministic=True) == A.body


def test_a_wildcard_by_name_and_one_name_of_it():
    talk = Talk.about(A, B)
    (response,) = talk.ask(CDS, ["*", "a"])
    assert names(response) == ["a", "b"]
    talk.ack_all()
    (again,) = talk.ask(CDS, unsubscribe=["a"])
    assert names(again) == ["a"], "a name that the wildcard still covers is sent when it is unsubscribed"
    talk.ack_all()
    assert talk.ask(CDS, unsubscribe=["*"]) == []
    assert talk.change(cluster("a", 2)) == []


def test_unsubscribing_a_name_that_the_wildcard_does_not_cover_is_answered_as_removed():
    talk = Talk.about(A)
    talk.ask(CDS, ["*", "nowhere"])
    talk.ack_all()
    (response,) = talk.ask(CDS, unsubscribe=["nowhere"])
    assert list(response.removed_resources) == ["nowhere"]


def test_the_old_wildcard_goes_on_when_a_name_is_added_and_never_comes_back():
    talk = Talk.about(A, B)
    talk.ask(CDS)
    talk.ack_all()
    (response,) = talk.ask(CDS, ["a"])
    assert names(response) == ["a"], "asked for by name: answered though nothing changed"
    talk.ack_all()
    (response,) = talk.change(cluster("b", 2))
    assert names(response) == ["b"]
    talk.ack_all()
    talk.ask(CDS, unsubscribe=["*", "a"])
    talk.ack_all()
    assert talk.ask(CDS) == []
    assert talk.change(cluster("a", 3), cluster("b", 3)) == []


def test_an_empty_first_request_for_endpoints_asks_for_nothing():
    talk = Talk.about(EA)
    assert talk.ask(EDS) == []


def test_an_empty_wildcard_is_answered_when_the_client_has_nothing():
    talk = Talk.about()
    (response,) = talk.ask(CDS)
    assert not response.resources
    assert not response.removed_resources
    assert talk.ack(response) == []


def test_names_that_do_not_exist_are_answered_and_sent_when_they_come():
    talk = Talk.about(away_seconds=0)
    (response,) = talk.ask(EDS, ["a"])
    assert list(response.removed_resources) == ["a"]
    talk.ack_all()
    (response,) = talk.change(EA)
    assert names(response) == ["a"]
    talk.ack_all()
    (response,) = talk.change(removes=[(EDS, "a")])
    assert list(response.removed_resources) == ["a"]
    talk.ack_all()
    assert talk.converged == talk.revision


def test_subscribing_again_is_answered_even_if_nothing_changed():
    talk = Talk.about(EA)
    talk.ask(EDS, ["a"])
    talk.ack_all()
    (response,) = talk.ask(EDS, ["a"])
    assert names(response) == ["a"]


def test_superfluous_unsubscriptions_are_ignored():
    talk = Talk.about(EA)
    talk.ask(EDS, ["a"])
    talk.ack_all()
    assert talk.ask(EDS, unsubscribe=["never", "a"]) == []
    assert talk.change(endpoints("a", 9)) == []
    assert talk.converged == talk.revision


def test_a_reconnect_is_sent_only_what_changed():
    changed = endpoints("b", 7)
    talk = Talk.about(A, B, EA, changed, listener(), router("a"))
    assert talk.ask(CDS, claimed=versions(A, B) | {"gone": "1"}) == []
    (response,) = talk.ask(EDS, ["a", "b"], claimed=versions(EA, EB))
    assert names(response) == ["b"]
    talk.ack_all()
    assert talk.ask(LDS, claimed=versions(listener())) == []
    assert talk.converged == 0
    (response,) = talk.ask(ECDS, ["router"], claimed=versions(router("a")))
    assert (response.type_url, list(response.removed_resources)) == (CDS, ["gone"]), "no router that it holds names it"
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_reconnect_with_nothing_changed_is_sent_nothing():
    talk = Talk.about(A, B, EA, EB, listener(), router("a"))
    assert talk.ask(CDS, claimed=versions(A, B)) == []
    assert talk.ask(EDS, ["a", "b"], claimed=versions(EA, EB)) == []
    assert talk.ask(LDS, claimed=versions(listener())) == []
    assert talk.ask(ECDS, ["router"], claimed=versions(router("a"))) == []
    assert talk.converged == talk.revision


def test_a_reconnect_while_a_changed_cluster_warms_gets_its_endpoints_again():
    """envoy#36951: EDS is subscribed first and CDS withheld until the cluster, which needs EDS again, is active."""
    talk = Talk.about(A, EA)
    (response,) = talk.ask(EDS, ["a", "nowhere"], claimed=versions(EA))
    assert (names(response), list(response.removed_resources)) == ([], ["nowhere"])
    talk.ack_all()
    (response,) = talk.wait(1.0)
    assert names(response) == ["a"]
    talk.ack_all()
    assert talk.ask(CDS, claimed=versions(A)) == []
    assert talk.converged == talk.revision


def test_nothing_is_claimed_of_an_envoy_that_has_not_come_back_to_its_clusters():
    """It warms one for longer than the time in which others have said all that they hold; it lacks what came since."""
    talk = Talk.about(A, EA, B, EB)
    talk.ask(EDS, ["a"], claimed=versions(EA))
    talk.ask(LDS)
    talk.wait(29.0)
    talk.ack_all()
    assert talk.converged == 0
    talk.ask(CDS, claimed=versions(A))
    talk.ask(EDS, ["b"])
    assert talk.converged < talk.revision
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_reconnect_for_endpoints_of_clusters_that_are_not_ours_is_sent_nothing():
    talk = Talk.about(EA)
    assert talk.ask(EDS, ["a"], claimed=versions(EA)) == []
    assert talk.wait(30.0) == []
    assert talk.converged == talk.revision


def test_a_reconnect_while_a_new_cluster_warms_gets_what_it_lacks_and_nothing_else():
    """It says that it has no EDS of the new one; with that, the cluster is active, and CDS is asked for."""
    talk = Talk.about(A, EA, B, EB)
    (response,) = talk.ask(EDS, ["a", "b"], claimed=versions(EA))
    assert names(response) == ["b"]
    assert talk.wait(4.0) == [], "a slow one"
    talk.ack_all()
    assert talk.ask(CDS, claimed=versions(A, B)) == []
    assert talk.wait(30.0) == []
    assert talk.converged == talk.revision


def test_a_reconnect_while_a_cluster_warms_is_not_sent_twice_what_it_has_taken_since():
    talk = Talk.about(A, EA, B)
    talk.ask(EDS, ["a", "b"], claimed=versions(EA))
    talk.change(EB)
    talk.ack_all()
    (response,) = talk.wait(1.0)
    assert names(response) == ["a"]
    talk.ack_all()
    assert talk.wait(30.0) == []


def test_a_client_that_is_not_back_from_anywhere_is_sent_endpoints_once():
    talk = Talk.about(A, EA)
    (response,) = talk.ask(EDS, ["a"])
    assert names(response) == ["a"]
    talk.ack_all()
    assert talk.wait(60) == []


def test_endpoints_that_the_client_has_are_sent_again_after_their_cluster_was():
    talk = Talk.about(A, EA)
    talk.ask(CDS, claimed={"a": "old"})
    (response,) = talk.ask(EDS, ["a"], claimed=versions(EA))
    assert names(response) == ["a"]


def test_a_name_that_is_gone_before_its_first_answer_is_answered_as_removed():
    talk = Talk.about(A, EA)
    talk.stream.receive(request(EDS, ["a"]), talk.now)
    (response,) = talk.change(removes=[(EDS, "a")])
    assert list(response.removed_resources) == ["a"]


def test_an_equal_version_is_no_change():
    talk = envoy_like(A, EA)
    assert talk.change(cluster("a"), endpoints("a", 1)) == []
    assert talk.converged == talk.revision == 2


def test_what_is_pending_for_a_slow_client_merges():
    talk = envoy_like(A, EA)
    (first,) = talk.change(endpoints("a", 2))
    for port in range(3, 9):
        assert talk.change(endpoints("a", port)) == []
    assert talk.converged == 1
    (second,) = talk.ack(first)
    assert second.resources[0].version == endpoints("a", 8).version
    assert talk.converged == 2, "revision 2 is acknowledged, 3 to 8 are not"
    talk.ack_all()
    assert talk.converged == 8


def test_a_change_that_is_taken_back_before_it_was_sent_is_not_sent():
    talk = envoy_like(A, B, EA, EB)
    (first,) = talk.change(endpoints("b", 5))
    talk.change(endpoints("a", 5))
    talk.change(endpoints("a", 1))
    assert talk.ack(first) == []
    assert talk.converged == talk.revision


def test_convergence_under_churn_goes_on():
    talk = envoy_like(A, B, EA, EB)
    in_flight = talk.change(endpoints("a", 10))
    for step in range(11, 40):
        talk.change(endpoints("a" if step % 2 else "b", step))
        before = talk.revision - 1
        in_flight = talk.ack(in_flight[0])
        assert in_flight
        assert talk.converged >= before - 1
    talk.ack_all()
    assert talk.converged == talk.revision


def test_only_what_is_subscribed_counts():
    talk = Talk.about(A, B, EA, EB)
    talk.ask(CDS, ["a"])
    talk.ask(EDS, ["a"])
    talk.ack_all()
    talk.change(cluster("b", 9), endpoints("b", 9))
    assert talk.converged == talk.revision


def test_a_client_that_has_not_subscribed_to_everything_yet_is_not_converged():
    talk = Talk.about(A, EA, listener())
    talk.ask(CDS)
    talk.ask(EDS, ["a"])
    talk.ack_all()
    assert talk.converged == 0, "it may hold an old listener that it has not told of yet"
    talk.wait(3)
    assert talk.converged == talk.revision


def test_a_nack_is_reported_and_not_sent_again_until_something_newer_comes():
    talk = envoy_like(A, B, EA, EB)
    (bad,) = [response for response in talk.change(cluster("a", 2)) if response.type_url == CDS]
    assert talk.nack(bad, "bad cluster a") == []
    talk.ack_all()
    (refused,) = talk.stream.events()
    assert refused == Refused("", CDS, ("a",), ("a",), False, 13, "bad cluster a", cluster("a", 2).version)
    assert talk.stream.status()[CDS].refused == ("a",)
    assert talk.wait(60) == []
    talk.change(endpoints("b", 3))
    talk.ack_all()
    assert talk.converged == 1, "what was refused at revision 2 is still outstanding; everything else went on"
    talk.change(cluster("a", 3))
    talk.ack_all()
    assert talk.converged == talk.revision


def test_what_was_refused_is_not_sent_again_when_the_table_comes_back_to_it():
    talk = envoy_like(A, EA)
    (bad,) = talk.change(endpoints("a", 2))
    talk.nack(bad)
    talk.stream.notice(talk.table.update([endpoints("a", 3)], [], 3), talk.now)
    assert talk.change(endpoints("a", 2), revision=4) == []
    assert talk.converged == 1
    talk.change(endpoints("a", 4))
    talk.ack_all()
    assert talk.converged == talk.revision


def test_the_one_to_blame_is_found_by_halves_and_all_others_get_through():
    talk = envoy_like()
    many = [f"m{number}" for number in range(100)]
    talk.change(*map(cluster, many))
    applied: set[str] = set()
    for _ in range(100):
        if not talk.sent:
            break
        response = talk.sent[0]
        if "m42" in names(response):
            talk.nack(response, "m42 is bad")
        else:
            applied |= set(names(response))
            talk.ack(response)
    assert applied == set(many) - {"m42"}
    assert not talk.sent
    events = [event for event in talk.stream.events() if isinstance(event, Refused)]
    assert [event.names for event in events if not event.searching] == [("m42",)]
    assert len(events) <= 8
    assert talk.wait(60) == []
    assert talk.converged == 1
    talk.change(cluster("m42", 2))
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_nack_that_comes_late_is_matched_by_its_nonce():
    talk = envoy_like(A, B, EA, EB)
    first = talk.change(cluster("a", 2))[0]
    second = talk.change(cluster("b", 2))[0]
    assert (first.type_url, second.type_url) == (CDS, CDS), "a CDS ACK is never waited for"
    talk.ack(second)
    talk.nack(first)
    talk.ack_all()
    assert talk.stream.status()[CDS].refused == ("a",)
    assert talk.converged == 1


def test_what_was_refused_goes_out_again_if_the_client_asks_for_it():
    talk = Talk.about(EA)
    (response,) = talk.ask(EDS, ["a"])
    assert talk.nack(response) == []
    (again,) = talk.ask(EDS, ["a"])
    assert names(again) == ["a"]


def test_going_back_to_what_was_before_the_nack_is_sent_since_nobody_knows_what_was_applied():
    talk = envoy_like(A, EA)
    (bad,) = talk.change(endpoints("a", 2))
    talk.nack(bad)
    (response,) = talk.change(endpoints("a", 1))
    assert names(response) == ["a"]
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_stale_nonce_does_not_hide_a_subscription():
    talk = Talk.about(EA, EB)
    talk.ask(EDS, ["a"])
    talk.ack_all()
    (response,) = talk.ask(EDS, ["b"], nonce="999")
    assert names(response) == ["b"]


def test_the_type_must_be_given_on_an_aggregated_stream_only():
    talk = Talk.about(A)
    with pytest.raises(ProtocolError, match="type_url"):
        talk.ask("")
    alone = DeltaStream(talk.table, 0.0, only_type=CDS)
    alone.receive(request(""), 0.0)
    assert len(alone.outgoing(0.0)) == 1
    with pytest.raises(ProtocolError, match="serves"):
        alone.receive(request(EDS, ["a"]), 0.0)


def test_a_type_that_we_have_nothing_of_is_answered():
    talk = Talk.about(A)
    (response,) = talk.ask("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", ["s"])
    assert list(response.removed_resources) == ["s"]


def test_large_answers_are_split_and_small_windows_respected():
    many = [endpoints(f"m{number}", number + 1) for number in range(100)]
    talk = Talk.about(*many, response_bytes=1000)
    (first,) = talk.ask(EDS, [resource.name for resource in many])
    assert 1 < len(first.resources) < 20
    assert first.ByteSize() <= 1000
    got = names(first) + [name for response in talk.ack_all() for name in names(response)]
    assert sorted(got) == sorted(resource.name for resource in many)
    assert len(got) == len(set(got))


def test_a_client_that_never_answers_is_sent_something_now_and_then_and_remembered_in_bounded_memory():
    talk = envoy_like(A, EA)
    for step in range(300):
        talk.change(endpoints("a", step % 60_000 + 2))
        talk.wait(5)
    status = talk.stream.status()[EDS]
    assert status.unanswered <= 64
    assert status.outstanding == 1
    assert talk.converged == 1
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_registry_that_goes_back_starts_again():
    talk = envoy_like(A, EA, table=None)
    talk.change(endpoints("a", 2), revision=1000)
    assert talk.converged == 1 or talk.converged == 999
    talk.change(endpoints("a", 3), revision=50)
    assert talk.converged == 0, "what is outstanding from before proves nothing about revision 50"
    talk.ack_all()
    assert talk.converged == 50


def calls_of_one_change(models: int) -> int:
    """How many Python and C functions one endpoint's change takes, from the table to its ACK."""
    known = [each for number in range(models) for each in (cluster(f"m{number}"), endpoints(f"m{number}", 1))]
    talk = envoy_like(*known, listener(), router("m1"))
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    changed = endpoints("m1", 2)
    sys.setprofile(count)
    change = talk.table.update([changed], [], 2)
    talk.stream.notice(change, talk.now)
    raw = talk.stream.outgoing(talk.now)
    sys.setprofile(None)
    (response,) = (Response.FromString(one) for one in raw)
    answer = request(EDS, nonce=response.nonce)
    sys.setprofile(count)
    talk.stream.receive(answer, talk.now)
    talk.stream.outgoing(talk.now)
    converged = talk.stream.converged_revision(talk.now)
    sys.setprofile(None)
    assert converged == 2
    return calls


def test_a_change_costs_the_same_at_any_number_of_models():
    assert calls_of_one_change(10) == calls_of_one_change(2000)
