"""Conversations with the state-of-the-world machine: the protocol's rules on one stream, without a network."""

from __future__ import annotations

import pytest

from control_plane.xds.sotw import SotwStream, no_endpoints
from control_plane.xds.stream import ProtocolError
from tests.xds.client import CDS, EDS, LDS, cluster, endpoints, listener, ready_table, router
from tests.xds.sotw_client import RDS, Response, SotwTalk, envoy_like, held, names, request, route

A, B, C = cluster("a"), cluster("b"), cluster("c")
EA, EB = endpoints("a", 1), endpoints("b", 2)


def test_an_empty_first_request_is_a_wildcard_and_the_bodies_are_the_table_s():
    talk = SotwTalk.about(A, B)
    (response,) = talk.ask(CDS)
    assert held(response) == {"a": A.version, "b": B.version}
    assert {body.SerializeToString(deterministic=True) for body in response.resources} == {A.body, B.body}
    assert (response.type_url, response.nonce, bool(response.version_info)) == (CDS, "1", True)
    assert talk.ack(response) == []
    assert talk.stream.unanswered == 0


def test_a_response_of_clusters_holds_all_of_them_and_one_of_endpoints_what_changed():
    talk = envoy_like(A, B, EA, EB)
    first, second = talk.change(cluster("a", 2))
    assert (first.type_url, names(first)) == (CDS, ["a", "b"])
    assert (second.type_url, names(second)) == (EDS, ["a"]), "its cluster warms until it comes again"
    talk.ack_all()
    (response,) = talk.change(endpoints("b", 7))
    assert (response.type_url, names(response)) == (EDS, ["b"])


def test_a_removed_cluster_is_left_out_and_its_endpoints_are_said_nothing_of():
    talk = envoy_like(A, B, EA, EB)
    (response,) = talk.change(removes=[(CDS, "b"), (EDS, "b")])
    assert held(response) == {"a": A.version}
    talk.ask(EDS, ["a"])
    talk.ack_all()
    assert talk.converged == talk.revision


def test_removing_the_last_cluster_is_an_empty_response():
    talk = envoy_like(A, EA)
    (response,) = talk.change(removes=[(CDS, "a"), (EDS, "a")])
    assert (response.type_url, list(response.resources)) == (CDS, [])


def test_an_empty_wildcard_is_answered():
    talk = SotwTalk.about()
    (response,) = talk.ask(CDS)
    assert not response.resources
    assert response.version_info
    assert talk.ack(response) == []


def test_version_info_depends_on_content_alone():
    talk, other = envoy_like(A, B, EA), envoy_like(B, EA)
    one = other.change(A)[0]
    (two,) = SotwTalk.about(B, A).ask(CDS)
    assert one.version_info == two.version_info == talk.known[CDS].version
    (changed, _) = talk.change(cluster("a", 2))
    assert changed.version_info != one.version_info


def test_a_wildcard_client_that_reconnects_with_all_that_we_have_is_sent_nothing():
    first = envoy_like(A, B, EA, EB, listener(), router("a"))
    talk = SotwTalk.about(table=first.table)
    assert talk.ask(CDS, version=first.known[CDS].version) == []
    assert talk.ask(LDS, version=first.known[LDS].version) == []
    (response,) = talk.change(C)
    assert names(response) == ["a", "b", "c"], "what it has stays in"


def test_endpoints_are_sent_again_after_a_reconnect_since_the_version_tells_of_the_last_response_only():
    first = envoy_like(A, EA)
    talk = SotwTalk.about(table=first.table)
    (response,) = talk.ask(EDS, ["a"], version=first.known[EDS].version)
    assert names(response) == ["a"]


def test_named_clusters_are_sent_again_after_a_reconnect_since_a_name_may_be_new():
    talk = SotwTalk.about(A)
    (response,) = talk.ask(CDS, ["a"])
    again = SotwTalk.about(A)
    assert [names(each) for each in again.ask(CDS, ["a"], version=response.version_info)] == [["a"]]


def test_a_client_that_reconnects_with_something_older_is_not_converged_before_it_has_acked():
    talk = SotwTalk.about(listener())
    (response,) = talk.ask(CDS, version="old")
    assert not response.resources
    talk.ask(LDS)
    talk.wait(10)
    talk.ack_all(LDS)
    assert talk.converged == 0, "it may still hold clusters that are long gone"
    talk.ack_all()
    assert talk.converged == talk.revision


def test_listeners_of_before_stay_until_all_that_we_have_are_ready():
    """Otherwise the first of two would take the other one away."""
    talk = SotwTalk.about(A, EA, listener("grpc"), listener("rest"))
    talk.ask(CDS, version="old")
    assert talk.ask(LDS, version="old") == []
    (assignment,) = talk.ask(EDS, ["a"], version="old")
    (response,) = talk.ack(assignment)
    assert names(response) == ["grpc", "rest"]


def test_both_forms_of_the_wildcard_and_the_way_between_them():
    """The example of "How the client specifies what resources to return", line by line."""
    talk = SotwTalk.about(A, B)
    assert [names(response) for response in talk.ask(CDS)] == [["a", "b"]]
    talk.ack_all()
    assert talk.ask(CDS, ["*", "a"]) == [], "it has got what it asks for"
    assert talk.ask(CDS, ["a"]) == [], "the wildcard is given up"
    assert talk.change(cluster("b", 2)) == []
    assert [names(response) for response in talk.change(cluster("a", 2))] == [["a"]]
    talk.ack_all()
    assert talk.ask(CDS, []) == [], "all is given up: there were names"
    assert talk.change(cluster("a", 3)) == []
    assert talk.converged == talk.revision
    assert [names(response) for response in talk.ask(CDS, ["*"])] == [["a", "b"]]


def test_names_that_are_added_are_sent_and_those_that_are_dropped_are_not():
    talk = SotwTalk.about(EA, EB)
    assert [names(response) for response in talk.ask(EDS, ["a"])] == [["a"]]
    talk.ack_all()
    assert [names(response) for response in talk.ask(EDS, ["a", "b"])] == [["b"]]
    talk.ack_all()
    assert talk.ask(EDS, ["b"]) == []
    assert talk.change(endpoints("a", 9)) == []
    assert [names(response) for response in talk.ask(EDS, ["b", "a"])] == [["a"]], "dropped and asked for again"
    talk.ack_all()
    assert talk.ask(EDS, ["a", "b"]) == [], "the order says nothing"


def test_a_request_before_any_nonce_supersedes_the_one_before():
    """grpcio's client asks for m1, and for m1 and m2 before it has seen an answer."""
    talk = SotwTalk.about(listener("m1"), listener("m2"))
    talk.stream.receive(request(LDS, ["m1"]), talk.now)
    talk.stream.receive(request(LDS, ["m1", "m2"]), talk.now)
    (response,) = talk.read()
    assert names(response) == ["m1", "m2"]


def test_a_request_without_a_nonce_that_crosses_the_first_response_is_taken():
    talk = SotwTalk.about(listener("m1"), listener("m2"))
    (first,) = talk.ask(LDS, ["m1"])
    assert talk.ask(LDS, ["m1", "m2"]) == [], "one at a time"
    (second,) = talk.ack(first)
    assert (names(first), names(second)) == (["m1"], ["m1", "m2"])
    assert talk.ack(second) == []


def test_a_stale_nonce_neither_subscribes_nor_acknowledges():
    talk = envoy_like(A, EA, EB, patience_seconds=1, endpoint_patience_seconds=1)
    (first,) = talk.change(endpoints("a", 2))
    talk.change(endpoints("a", 3))
    (second,) = talk.wait(1)
    assert talk.ask(EDS, ["a"], nonce="999") == []
    talk.stream.receive(request(EDS, [], nonce=first.nonce), talk.now)
    assert talk.read() == []
    assert talk.stream.status()[EDS].subscribed == 2, "its names come again with the answer to the newest"
    assert talk.converged == 2, "the ACK itself still says that the first was applied"
    talk.sent.remove(first)
    assert talk.ack(second) == []
    assert talk.converged == talk.revision == 3


def test_an_ack_counts_for_what_was_sent_before_it_too():
    talk = envoy_like(A, EA, EB, endpoint_patience_seconds=1)
    (first,) = talk.change(endpoints("a", 2))
    talk.change(endpoints("b", 3))
    (second,) = talk.wait(1)
    talk.sent.remove(first)
    talk.ack(second)
    assert talk.converged == talk.revision
    assert talk.stream.unanswered == 0


def test_a_nonce_in_the_first_request_is_another_stream_s():
    talk = SotwTalk.about(A)
    (response,) = talk.ask(CDS, nonce="17")
    assert names(response) == ["a"]


def test_unknown_clusters_and_listeners_are_answered_by_leaving_them_out():
    talk = SotwTalk.about(A)
    (response,) = talk.ask(CDS, ["a", "nowhere"])
    assert names(response) == ["a"]
    (response,) = talk.ask(LDS, ["nowhere"])
    assert names(response) == []
    talk.ack_all()
    (response,) = talk.change(listener("nowhere"))
    assert names(response) == ["nowhere"]


def test_unknown_endpoints_are_answered_by_an_empty_assignment_and_sent_when_they_come():
    talk = SotwTalk.about(B, away_seconds=0)
    (response,) = talk.ask(EDS, ["a"])
    assert held(response) == {"a": no_endpoints("a").version}
    talk.ack_all()
    assert talk.ask(EDS, ["a"]) == []
    (response,) = talk.change(EA)
    assert held(response) == {"a": EA.version}
    talk.ack_all()
    assert talk.change(removes=[(EDS, "a")]) == [], "it can't be said, and an empty one would break"
    talk.wait(3)
    assert talk.converged == talk.revision
    (response,) = talk.change(EA)
    assert held(response) == {"a": EA.version}


def test_endpoints_that_are_gone_before_their_first_answer_are_answered_as_empty():
    talk = SotwTalk.about(A, EA)
    talk.stream.receive(request(EDS, ["a"]), talk.now)
    (response,) = talk.change(removes=[(EDS, "a")])
    assert held(response) == {"a": no_endpoints("a").version}


def test_unknown_routes_are_sent_when_they_come():
    talk = SotwTalk.about(A)
    assert talk.ask(RDS, ["r"]) == [], "the client's timeout is all that there is"
    (response,) = talk.change(route("r"))
    assert names(response) == ["r"]
    talk.ack_all()
    assert talk.change(removes=[(RDS, "r")]) == []
    talk.wait(3)
    assert talk.converged == talk.revision


def test_what_was_removed_while_its_response_was_refused_is_settled():
    talk = SotwTalk.about(EA, EB, away_seconds=0)
    (response,) = talk.ask(EDS, ["a", "b"])
    talk.change(removes=[(EDS, "a")])
    (again,) = talk.nack(response)
    assert names(again) == ["b"]
    talk.ack_all()
    talk.wait(3)
    assert talk.converged == talk.revision


def test_the_type_must_be_given_on_an_aggregated_stream_only():
    table = ready_table(A)
    with pytest.raises(ProtocolError, match="type_url"):
        SotwStream(table, 0.0).receive(request(""), 0.0)
    alone = SotwStream(table, 0.0, only_type=CDS)
    alone.receive(request(""), 0.0)
    (raw,) = alone.outgoing(0.0)
    alone.receive(request("", nonce=Response.FromString(raw).nonce), 0.0)
    assert alone.converged_revision(0.0) == 1, "there is nothing else to be asked for here"
    with pytest.raises(ProtocolError, match="serves"):
        alone.receive(request(EDS, ["a"]), 0.0)


def test_what_is_pending_for_a_slow_client_merges():
    talk = envoy_like(A, EA)
    (first,) = talk.change(endpoints("a", 2))
    for port in range(3, 9):
        assert talk.change(endpoints("a", port)) == []
    assert talk.converged == 1
    (second,) = talk.ack(first)
    assert held(second) == {"a": endpoints("a", 8).version}
    talk.ack_all()
    assert talk.converged == 8


def test_a_client_that_asks_for_endpoints_before_clusters_does_not_show_that_it_takes_those():
    talk = SotwTalk.about(cluster("a"), cluster("b"), cluster("c"))
    talk.ask(EDS, ["a", "b", "c"])
    talk.ack_all()
    talk.ask(CDS)
    accepted: set[str] = set()
    for _ in range(10):
        for response in list(talk.sent):
            if "a" in names(response) and response.type_url == CDS:
                talk.nack(response, "one is bad")
            else:
                accepted = set(names(response)) if response.type_url == CDS else accepted
                talk.ack(response)
    assert accepted == {"b", "c"}
    assert talk.stream.status()[CDS].refused == ("a",)
