"""Conversations with the state-of-the-world machine about refusals, order and pace."""

from __future__ import annotations

from control_plane.xds.events import HeldTooLong, Refused
from control_plane.xds.limits import Limits
from control_plane.xds.sotw import SotwStream
from tests.xds.client import CDS, ECDS, EDS, LDS, cluster, endpoints, listener, ready_table, router
from tests.xds.sotw_client import RDS, SotwTalk, envoy_like, held, names, request, route

A, B, C = cluster("a"), cluster("b"), cluster("c")
EA, EB = endpoints("a", 1), endpoints("b", 2)


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
    assert talk.nack(first, "b is bad") == []
    assert talk.wait(1) == [], "the second one's answer says more"
    (third,) = talk.nack(second, "b is bad")
    assert names(third) == ["a", "c"], "first all but what the message names"
    (fourth,) = talk.ack(third)
    assert names(fourth) == ["a", "b", "c"]
    talk.nack(fourth, "b is bad")
    assert talk.stream.status()[CDS].refused == ("b",)


def test_one_nack_for_two_responses_blames_neither_unheard():
    talk = envoy_like(A, EA, patience_seconds=0.1)
    talk.change(B)
    talk.change(C)
    (second,) = talk.wait(0.2)
    (third,) = talk.nack(second, "b is bad")
    assert names(third) == ["a", "c"], "first all but what the message names"
    (fourth,) = talk.ack(third)
    assert names(fourth) == ["a", "b", "c"]
    talk.nack(fourth, "b is bad")
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
    policy, clusters = talk.change(router("a", version=2), C, removes=[(CDS, "b"), (EDS, "b")])
    assert (policy.type_url, clusters.type_url) == (ECDS, CDS)
    assert talk.ack_all(CDS) == []
    (response,) = talk.ack(policy)
    assert (response.type_url, names(response)) == (CDS, ["a", "c"])


def test_a_removal_that_comes_while_an_answer_is_awaited_goes_out_after_it():
    talk = envoy_like(A, B, EA, EB)
    (clusters,) = talk.change(C)
    assert talk.change(removes=[(CDS, "b"), (EDS, "b")]) == []
    assert talk.read() == []
    (response,) = talk.ack(clusters)
    assert names(response) == ["a", "c"]


def test_a_removal_that_is_held_back_stays_in_every_response():
    talk = envoy_like(A, B, EA, EB, router("a", "b"))
    policy, clusters = talk.change(router("a", version=2), C, removes=[(CDS, "b"), (EDS, "b")])
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


def test_a_nack_that_tells_which_of_two_responses_is_used_blames_the_other():
    talk = envoy_like(A, EA, patience_seconds=0.1)
    (first,) = talk.change(B)
    talk.change(C)
    (second,) = talk.wait(0.2)
    talk.known[CDS].version = first.version_info
    assert talk.nack(second, "c is bad") == []
    assert talk.stream.status()[CDS].refused == ("c",)


def test_a_nack_that_uses_the_very_response_is_about_one_before_and_leaves_the_next_its_own_answer():
    talk = envoy_like(cluster("a"), endpoints("a", 1))
    (first,) = talk.change(cluster("b"))
    talk.change(cluster("c"))
    (second,) = talk.wait(0.2)
    talk.known[CDS].version = first.version_info
    talk.nack(first)
    assert talk.stream.unanswered == 1
    talk.ack(second)
    assert talk.converged == talk.revision
    assert talk.stream.counters()[CDS].nacked == 1
