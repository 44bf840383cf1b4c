"""Conversations with the state-of-the-world machine: the protocol's rules on one stream, without a network."""

from __future__ import annotations

import pytest

from control_plane.xds.events import HeldTooLong, Refused
from control_plane.xds.limits import Limits
from control_plane.xds.sotw import SotwStream, no_endpoints
from control_plane.xds.stream import ProtocolError
from tests.xds.client import CDS, ECDS, EDS, LDS, cluster, endpoints, listener, ready_table, router
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
    talk.ask(LDS, version="old")
    talk.wait(5)
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
    talk = SotwTalk.about(A)
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
    talk = SotwTalk.about(EA, EB)
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


def test_a_refused_cluster_stays_as_it_was_in_every_response():
    talk = envoy_like(A, B, EA, EB)
    bad = talk.change(cluster("a", 2))[0]
    assert talk.nack(bad, "bad cluster a") == []
    talk.ack_all()
    (refused,) = talk.stream.events()
    assert refused == Refused("", CDS, ("a",), ("a",), False, 13, "bad cluster a", cluster("a", 2).version)
    (response,) = talk.change(C)
    assert held(response) == {"a": A.version, "b": B.version, "c": C.version}
    talk.ack_all()
    assert talk.converged == 1
    (response, _) = talk.change(cluster("a", 3))
    assert held(response)["a"] == cluster("a", 3).version
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_new_cluster_that_was_refused_is_left_out():
    talk = envoy_like(A, EA)
    (bad,) = talk.change(B)
    assert talk.nack(bad) == []
    (response,) = talk.change(C)
    assert names(response) == ["a", "c"]


def test_the_one_to_blame_is_found_by_halves_and_all_others_get_through():
    talk = envoy_like(A, EA)
    many = [f"m{number}" for number in range(60)]
    talk.change(*map(cluster, many))
    applied = {"a"}
    for _ in range(100):
        if not talk.sent:
            break
        response = talk.sent[0]
        assert "a" in names(response), "what is good is never taken away"
        assert applied <= set(names(response))
        if "m42" in names(response):
            talk.nack(response, "m42 is bad")
        else:
            applied = set(names(response))
            talk.ack(response)
    assert applied == {"a", *many} - {"m42"}
    events = [event for event in talk.stream.events() if isinstance(event, Refused)]
    assert [event.names for event in events if not event.searching] == [("m42",)]
    assert len(events) <= 8
    assert talk.wait(60) == []
    talk.change(cluster("m42", 2))
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_response_that_repeats_an_unproven_change_is_not_blamed_on_its_own():
    talk = envoy_like(A, EA, patience_seconds=0.1)
    (first,) = talk.change(B)
    assert talk.change(C) == []
    (second,) = talk.wait(0.2)
    assert names(second) == ["a", "b", "c"]
    talk.nack(first, "b is bad")
    (third,) = talk.nack(second, "b is bad")
    assert names(third) == ["a", "c"]
    talk.ack_all()
    assert talk.stream.status()[CDS].refused == ("b",)


def test_one_nack_for_two_responses_blames_neither_unheard():
    talk = envoy_like(A, EA, patience_seconds=0.1)
    talk.change(B)
    talk.change(C)
    (second,) = talk.wait(0.2)
    (third,) = talk.nack(second, "b is bad")
    assert names(third) == ["a", "b"], "what the message names goes first"
    (fourth,) = talk.nack(third)
    assert names(fourth) == ["a", "c"]
    talk.ack(fourth)
    assert talk.stream.status()[CDS].refused == ("b",)


def test_clusters_are_never_split_by_size():
    many = [cluster(f"m{number}") for number in range(100)]
    talk = SotwTalk.about(*many, *[endpoints(f"m{number}", 1) for number in range(100)], response_bytes=1000)
    (response,) = talk.ask(CDS)
    assert len(response.resources) == 100
    (first,) = talk.ask(EDS, [each.name for each in many])
    assert first.ByteSize() <= 1000


def test_a_cluster_is_left_out_only_after_the_router_that_names_it():
    talk = envoy_like(A, B, EA, EB, router("a", "b"))
    (policy,) = talk.change(router("a", version=2), C, removes=[(CDS, "b"), (EDS, "b")])[1:]
    assert policy.type_url == ECDS
    assert talk.ack_all(CDS) == []
    (response,) = talk.ack(policy)
    assert (response.type_url, names(response)) == (CDS, ["a", "c"])


def test_a_removal_that_is_held_back_stays_in_every_response():
    talk = envoy_like(A, B, EA, EB, router("a", "b"))
    clusters, policy = talk.change(router("a", version=2), C, removes=[(CDS, "b"), (EDS, "b")])
    assert (names(clusters), policy.type_url) == (["a", "b", "c"], ECDS)


def test_a_router_waits_for_the_endpoints_of_the_clusters_that_it_requires():
    talk = envoy_like(A, EA, router("a"))
    (clusters,) = talk.change(B, EB, router("a", "b", version=2))
    (endpoint,) = talk.ask(EDS, ["a", "b"])
    assert talk.ack(clusters) == []
    (policy,) = talk.ack(endpoint)
    assert policy.type_url == ECDS
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_client_that_follows_names_is_not_made_to_wait_for_what_it_has_yet_to_ask_for():
    """grpcio asks for a listener, then its route, then the clusters that the route names, then their endpoints."""
    talk = SotwTalk.about(listener("m"), route("m", "a"), A, EA)
    assert [response.type_url for response in talk.ask(LDS, ["m"])] == [LDS]
    assert [response.type_url for response in talk.ask(RDS, ["m"])] == [RDS]
    assert [response.type_url for response in talk.ask(CDS, ["a"])] == [CDS]
    assert [response.type_url for response in talk.ask(EDS, ["a"])] == [EDS]
    talk.ack_all()
    assert talk.converged == talk.revision
    assert [names(response) for response in talk.change(route("m", "b", version=2), B, EB)] == [["m"]]
    assert [names(response) for response in talk.ask(CDS, ["a", "b"])] == [["a", "b"]]


def test_a_grpc_client_s_cluster_goes_when_no_route_that_it_holds_names_it():
    talk = SotwTalk.about(listener("m"), route("m", "a"), A, EA)
    for type_url, name in ((LDS, "m"), (RDS, "m"), (CDS, "a"), (EDS, "a")):
        talk.ask(type_url, [name])
    talk.ack_all()
    (listeners,) = talk.change(removes=[(LDS, "m"), (RDS, "m"), (CDS, "a"), (EDS, "a")])
    assert (listeners.type_url, names(listeners)) == (LDS, [])
    talk.ack_all()
    (clusters,) = talk.ask(RDS, [])
    assert (clusters.type_url, names(clusters)) == (CDS, [])
    talk.ack_all()
    assert not [event for event in talk.stream.events() if isinstance(event, HeldTooLong)]
    assert talk.converged == talk.revision


def test_a_client_that_never_answers_is_remembered_in_bounded_memory():
    talk = envoy_like(A, EA)
    for step in range(200):
        talk.change(cluster("a", step % 50 + 2), endpoints("a", step + 2))
        talk.wait(5)
    assert talk.stream.unanswered <= 2 * 64
    assert talk.converged == 1
    talk.sent = [response for response in talk.sent if response.type_url in (CDS, EDS)][-2:]
    talk.ack_all()
    assert talk.converged == talk.revision


def test_limits_of_the_caller_hold_but_for_the_window():
    stream = SotwStream(ready_table(EA, EB), 0.0, Limits(endpoint_window=8))
    stream.receive(request(EDS, ["a"]), 0.0)
    stream.receive(request(EDS, ["a", "b"]), 0.0)
    assert len(stream.outgoing(0.0)) == 1
    assert len(stream.outgoing(0.0)) == 0
