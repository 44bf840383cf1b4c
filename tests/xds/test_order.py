"""Conversations about order: what waits for what on one stream, and for how long at most."""

from __future__ import annotations

from control_plane.xds.events import HeldTooLong
from control_plane.xds.order import Order
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
    request,
    router,
)

A, B, C = cluster("a"), cluster("b"), cluster("c")
EA, EB, EC = endpoints("a", 1), endpoints("b", 2), endpoints("c", 3)


def kinds(responses):
    return [response.type_url for response in responses]


def test_a_changed_cluster_takes_its_endpoints_with_it():
    talk = envoy_like(A, EA)
    first, second = talk.change(cluster("a", 2))
    assert kinds([first, second]) == [CDS, EDS]
    assert names(second) == ["a"]


def test_endpoints_of_a_new_cluster_are_sent_when_asked_for():
    talk = envoy_like(A, EA)
    (response,) = talk.change(B, EB)
    assert (response.type_url, names(response)) == (CDS, ["b"])
    (response,) = talk.ask(EDS, ["b"])
    assert (response.type_url, names(response)) == (EDS, ["b"])


def test_clusters_are_not_held_back_by_a_cluster_that_warms():
    talk = envoy_like(A, EA)
    talk.change(B, EB)
    (response,) = talk.change(C, EC)
    assert (response.type_url, names(response)) == (CDS, ["c"])


def test_many_clusters_without_an_ack_are_paced_not_stopped():
    talk = envoy_like(A, EA)
    sent = 0
    for number in range(100):
        sent += len(talk.change(cluster(f"m{number}"), endpoints(f"m{number}", 1)))
        talk.now += 0.005
    assert 8 <= sent <= 20
    last = talk.wait(0.2)[-1]
    assert "m99" in names(last)


def test_a_router_waits_for_the_endpoints_of_the_clusters_that_it_requires():
    talk = envoy_like(A, EA, router("a"))
    (clusters,) = talk.change(B, EB, router("a", "b", version=2))
    assert clusters.type_url == CDS
    (endpoint,) = talk.ask(EDS, ["b"])
    assert talk.ack(clusters) == [], "not even a CDS ACK lets it go"
    (policy,) = talk.ack(endpoint)
    assert (policy.type_url, names(policy)) == (ECDS, ["router"])
    assert talk.converged == 1
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_router_waits_for_a_change_of_endpoints_at_the_same_revision():
    talk = envoy_like(A, EA, router("a"))
    (endpoint,) = talk.change(endpoints("a", 5), router("a", version=2))
    (policy,) = talk.ack(endpoint)
    assert policy.type_url == ECDS


def test_a_router_does_not_wait_for_what_it_does_not_require():
    talk = envoy_like(A, EA, router("a"))
    talk.change(B, EB)
    (policy,) = talk.change(router("a", version=2))
    assert policy.type_url == ECDS


def test_a_stream_of_new_requirements_does_not_starve_the_router():
    talk = envoy_like(A, EA, router("a"))
    required = ["a"]
    held = 0
    for number in range(30):
        name = f"m{number}"
        required.append(name)
        talk.change(cluster(name), endpoints(name, 1), router(*required, version=number + 2))
        for response in list(talk.sent):
            if response.type_url != CDS:
                talk.ack(response)
        # One round late: while this one's endpoints are on their way, the next is already there.
        if number:
            talk.ask(EDS, [f"m{number - 1}"])
        talk.wait(0.1)
        held += sum(response.type_url == ECDS for response in talk.sent)
    assert held > 10


def test_a_router_goes_out_at_its_deadline_and_the_next_one_does_not_wait_for_the_same():
    talk = envoy_like(A, EA, router("a"))
    talk.change(B, EB, router("a", "b", version=2))
    assert talk.stream.next_deadline() == talk.now + 10
    (policy,) = talk.wait(10)
    assert policy.type_url == ECDS
    (event,) = talk.stream.events()
    assert event == HeldTooLong("", ECDS, ("router",), ("b",))
    talk.ack(policy)
    (policy,) = talk.change(router("a", "b", version=3))
    assert policy.type_url == ECDS


def test_a_refused_cluster_holds_the_router_for_as_long_as_envoy_takes_to_ask_for_endpoints():
    talk = envoy_like(A, EA, router("a"))
    (clusters,) = talk.change(B, EB, C, EC, router("a", "b", "c", version=2))
    talk.ask(EDS, ["c"])
    first, second = talk.nack(clusters, "b is bad")
    assert (names(first), names(second)) == (["b"], ["c"])
    talk.nack(first, "b is bad")
    talk.ack_all()
    assert not talk.sent
    (policy,) = talk.wait(1)
    assert policy.type_url == ECDS
    assert not [event for event in talk.stream.events() if isinstance(event, HeldTooLong)]


def test_a_listener_waits_at_the_start_for_everything_before_it():
    talk = Talk.about(A, B, EA, EB, listener())
    (clusters,) = talk.ask(CDS)
    assert talk.ask(LDS) == []
    (endpoint,) = talk.ask(EDS, ["a"])
    talk.ack(endpoint)
    (endpoint,) = talk.ask(EDS, ["b"])
    (last,) = talk.ack(endpoint)
    assert last.type_url == LDS
    talk.ack(clusters)


def test_a_listener_asked_for_while_endpoints_are_on_their_way_waits_for_those_only():
    talk = Talk.about(A, EA, listener())
    talk.ask(CDS)
    (endpoint,) = talk.ask(EDS, ["a"])
    assert talk.ask(LDS) == []
    (last,) = talk.ack(endpoint)
    assert last.type_url == LDS


def test_a_listener_is_not_held_for_a_client_without_clusters():
    talk = Talk.about(A, EA, listener())
    (response,) = talk.ask(LDS, ["grpc"])
    assert names(response) == ["grpc"]


def test_a_listener_waits_its_deadline_for_a_client_that_never_asks_for_endpoints():
    talk = Talk.about(A, EA, listener())
    talk.ask(CDS)
    talk.ack_all()
    assert talk.ask(LDS) == []
    (response,) = talk.wait(10)
    assert response.type_url == LDS


def test_a_cluster_is_removed_after_the_router_that_names_it():
    talk = envoy_like(A, B, EA, EB, router("a", "b"))
    (policy,) = talk.change(router("a", version=2), removes=[(CDS, "b"), (EDS, "b")])
    assert policy.type_url == ECDS
    assert talk.converged == 1
    first, second = talk.ack(policy)
    assert (first.type_url, list(first.removed_resources)) == (CDS, ["b"])
    assert (second.type_url, list(second.removed_resources)) == (EDS, ["b"])
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_refused_router_holds_the_removal_to_its_deadline():
    talk = envoy_like(A, B, EA, EB, router("a", "b"))
    (policy,) = talk.change(router("a", version=2), removes=[(CDS, "b"), (EDS, "b")])
    assert talk.nack(policy) == []
    assert talk.stream.next_deadline() == talk.now + 10
    first, second = talk.wait(10)
    assert kinds([first, second]) == [CDS, EDS]
    assert any(isinstance(event, HeldTooLong) and event.names == ("b",) for event in talk.stream.events())


def test_a_cluster_without_a_router_is_removed_at_once():
    talk = envoy_like(A, B, EA, EB, router("a"))
    first, second = talk.change(removes=[(CDS, "b"), (EDS, "b")])
    assert kinds([first, second]) == [CDS, EDS]


def test_a_removal_that_is_taken_back_is_never_sent():
    talk = envoy_like(A, B, EA, EB, router("a", "b"))
    (policy,) = talk.change(router("a", version=2), removes=[(CDS, "b"), (EDS, "b")])
    talk.change(B, EB)
    assert talk.ack(policy) == []
    assert talk.converged == talk.revision


def test_after_a_reconnect_nothing_is_removed_before_the_router_is_known_and_new():
    old = router("a", "gone")
    talk = Talk.about(A, EA, router("a", version=2))
    assert talk.ask(CDS, claimed={"a": A.version, "gone": "1"}) == []
    assert talk.ask(EDS, ["a", "gone"], claimed={"a": EA.version})[0].removed_resources == ["gone"]
    talk.ack_all()
    (policy,) = talk.ask(ECDS, ["router"], claimed={"router": old.version})
    assert policy.type_url == ECDS
    (removal,) = talk.ack(policy)
    assert (removal.type_url, list(removal.removed_resources)) == (CDS, ["gone"])


def test_after_a_reconnect_a_router_waits_for_old_endpoints_to_be_renewed():
    talk = Talk.about(A, EA, router("a", version=2))
    talk.ask(CDS, claimed={"a": A.version})
    assert talk.ask(ECDS, ["router"], claimed={"router": "old"}) == []
    (endpoint,) = talk.ask(EDS, ["a"], claimed={"a": "old"})
    (policy,) = talk.ack(endpoint)
    assert policy.type_url == ECDS


def test_nothing_waits_for_a_change_of_a_cluster_that_was_taken_back():
    talk = envoy_like(A, EA, router("a"))
    talk.stream.notice(talk.table.update([cluster("a", 2)], [], 2), talk.now)
    talk.stream.notice(talk.table.update([cluster("a", 1)], [], 3), talk.now)
    (policy,) = talk.change(router("a", version=2), revision=4)
    assert policy.type_url == ECDS


def test_a_router_that_waits_for_a_cluster_which_is_removed_meanwhile_is_never_sent():
    talk = envoy_like(A, EA, router("a"))
    talk.change(B, EB, router("a", "b", version=2))
    sent = talk.change(router("a", version=3), removes=[(CDS, "b"), (EDS, "b")])
    (policy,) = (response for response in sent if response.type_url == ECDS)
    assert policy.resources[0].version == router("a", version=3).version


def test_a_router_waits_for_a_cluster_that_warms_and_was_taken_away_and_back_meanwhile():
    talk = envoy_like(A, EA, router("a"))
    (clusters,) = talk.change(B, EB)
    talk.stream.notice(talk.table.update((), [(CDS, "b"), (EDS, "b")], 3), talk.now)
    assert talk.change(B, EB, router("a", "b", version=2), revision=4) == [], "the client is about to have it"
    (endpoint,) = talk.ask(EDS, ["b"])
    assert talk.ack(clusters) == []
    (policy,) = talk.ack(endpoint)
    assert policy.type_url == ECDS
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_router_does_not_wait_for_a_cluster_that_was_away_while_its_endpoints_were_taken():
    talk = envoy_like(A, EA, router("a"))
    talk.change(B, EB)
    (endpoint,) = talk.ask(EDS, ["b"])
    talk.stream.notice(talk.table.update((), [(CDS, "b")], 3), talk.now)
    talk.stream.receive(request(EDS, nonce=endpoint.nonce), talk.now)
    (policy,) = talk.change(B, router("a", "b", version=2), revision=4)
    assert policy.type_url == ECDS


def test_a_router_waits_for_the_endpoints_of_a_cluster_that_was_removed_and_has_come_back():
    talk = envoy_like(A, EA, router("a"))
    talk.change(B, EB)
    (endpoint,) = talk.ask(EDS, ["b"])
    removed = talk.change(removes=[(CDS, "b"), (EDS, "b")])
    assert [response.type_url for response in removed] == [CDS]
    (again,) = talk.change(B, EB, router("a", "b", version=2))
    assert again.type_url == CDS
    (fresh,) = talk.ack(endpoint)
    assert fresh.type_url == EDS, "the first were of the cluster that was removed"
    (policy,) = talk.ack(fresh)
    assert policy.type_url == ECDS


def test_a_router_that_is_asked_for_while_it_waits_and_then_taken_back_ends_as_it_was():
    talk = envoy_like(A, EA, router("a"))
    talk.change(B, EB, router("a", "b", version=2))
    assert talk.ask(ECDS, ["router"]) == []
    assert talk.change(router("a")) == []
    said = [*talk.ask(EDS, ["b"]), *talk.ack_all()]
    policies = [response.resources[0].version for response in said if response.type_url == ECDS]
    assert policies[-1] == router("a").version
    assert talk.converged == talk.revision


def test_endpoints_sent_before_the_cluster_changed_again_do_not_count():
    talk = envoy_like(A, EA, router("a"))
    (endpoint,) = talk.change(endpoints("a", 7))
    (changed,) = talk.change(cluster("a", 2), router("a", version=2))
    assert changed.type_url == CDS
    (again,) = talk.ack(endpoint)
    assert again.type_url == EDS, "that ACK was for the old cluster's endpoints"
    (policy,) = talk.ack(again)
    assert policy.type_url == ECDS


def test_clusters_wait_for_a_client_that_warms_very_many():
    talk = envoy_like(cluster("a"), endpoints("a", 1), window=1, warming_clusters=2)
    for name in ("b", "c", "d"):
        (response,) = talk.change(cluster(name), endpoints(name, 1)) or talk.wait(0.1)
        assert (response.type_url, names(response)) == (CDS, [name])
    assert talk.change(cluster("e"), endpoints("e", 1)) == []
    assert talk.wait(0.2) == [], "three warm, and not even their EDS was asked for"
    (assignments,) = talk.ask(EDS, ["b", "c", "d"])
    assert assignments.type_url == EDS
    (response,) = talk.ack(assignments)
    assert (response.type_url, names(response)) == (CDS, ["e"])


def test_clusters_do_not_wait_for_ever_for_a_client_that_warms_very_many():
    talk = envoy_like(cluster("a"), endpoints("a", 1), window=1, warming_clusters=1)
    talk.change(cluster("b"), endpoints("b", 1), cluster("c"), endpoints("c", 1))
    assert names(talk.sent[-1]) == ["b"]
    talk.wait(0.1)
    assert names(talk.sent[-1]) == ["c"]
    assert talk.change(cluster("d"), endpoints("d", 1)) == []
    (response,) = talk.wait(5.0)
    assert names(response) == ["d"]


def test_a_client_that_never_asks_for_the_endpoints_of_many_clusters_is_waited_for_once():
    talk = Talk.about(cluster("a"), endpoints("a", 1), listener(), window=1, warming_clusters=2)
    for kind in (CDS, LDS):
        talk.ask(kind)
    talk.ack_all()
    talk.wait(3.0)
    late = 0
    for number in range(12):
        if not talk.change(cluster(f"m{number}"), endpoints(f"m{number}", 1)):
            late += 1
            assert talk.wait(5.0)
        talk.ack_all()
    assert talk.stream.status()[CDS].sent == 13
    assert late == 3, "every fourth"


def test_endpoints_of_a_new_cluster_do_not_wait_for_the_answer_to_others():
    talk = envoy_like(A, EA)
    (unanswered,) = talk.change(endpoints("a", 2))
    assert talk.change(endpoints("a", 3)) == [], "what the client has an older state of merges"
    (clusters,) = talk.change(B, EB)
    (response,) = talk.ask(EDS, ["b"])
    assert (response.type_url, names(response)) == (EDS, ["b"])
    assert talk.change(endpoints("b", 5)) == [], "sent since, so it merges too"
    talk.ack(clusters)
    talk.ack(response)
    assert talk.converged == 1, "the first one is still owed an answer"
    (last,) = talk.ack(unanswered)
    assert names(last) == ["a", "b"]
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_client_that_answers_nothing_is_sent_the_endpoints_of_no_more_clusters_than_it_warms():
    talk = envoy_like(A, EA, warming_clusters=3, warming_window=2)
    (first,) = talk.change(endpoints("a", 2))
    talk.change(B, EB, C, EC)
    more = [cluster(f"m{number}") for number in range(4)]
    talk.change(*more, *(endpoints(each.name, 1) for each in more))
    (response,) = talk.ask(EDS, ["b"])
    assert names(response) == ["b"]
    assert talk.ask(EDS, ["c", *(each.name for each in more)]) == [], "two unanswered, of which one is for warming"
    (response,) = talk.ack(first)
    assert names(response) == ["c", "m0"], "three clusters at once"


def test_a_router_waits_for_a_client_that_has_not_asked_for_its_clusters_yet():
    """envoy#36951: one that reconnects while a cluster warms asks for EDS and ECDS, and for CDS only after that."""
    talk = Talk.about(cluster("old"), endpoints("old", 1), cluster("new"), endpoints("new", 1), router("new"))
    talk.ask(EDS, ["old"], claimed={"old": endpoints("old", 1).version})
    assert talk.ask(ECDS, ["router"], claimed={"router": router().version}) == []
    talk.ack_all(EDS)
    (clusters,) = talk.ask(CDS, claimed={"old": cluster("old").version})
    assert names(clusters) == ["new"]
    (assignments,) = talk.ask(EDS, ["new"])
    assert [response.type_url for response in talk.ack(assignments)] == [ECDS]


def test_a_router_is_not_held_for_ever_from_a_client_that_never_asks_for_clusters():
    talk = Talk.about(cluster("a"), router("a"), gate_seconds=10.0)
    talk.ask(EDS, ["a"])
    talk.ack_all()
    assert talk.ask(ECDS, ["router"]) == []
    assert talk.stream.next_deadline() is not None
    assert talk.wait(9.9) == []
    assert [response.type_url for response in talk.wait(0.2)] == [ECDS]


def test_a_client_that_asks_for_endpoints_of_our_clusters_and_never_for_clusters_holds_no_drain_up_for_ever():
    """Envoy with clusters of its own, of these names, that get their endpoints from here."""
    talk = Talk.about(A, EA)
    talk.ask(EDS, ["a"])
    talk.ack_all()
    talk.wait(29.0)
    talk.ack_all()
    assert talk.converged == 0, "envoy#36951: it may be about to come back to its clusters"
    deadline = talk.stream.next_deadline()
    assert deadline is not None
    assert deadline <= talk.now + 1.0
    talk.wait(1.0)
    assert talk.converged == talk.revision
    assert talk.stream.next_deadline() is None
    (response,) = talk.change(endpoints("a", 2))
    assert talk.converged == 1, "its endpoints count"
    talk.ack(response)
    assert talk.converged == talk.revision
    talk.ask(CDS)
    assert talk.converged < talk.revision, "it has come after all"
    talk.ack_all()
    talk.ask(EDS, ["a"])
    talk.ack_all()
    assert talk.converged == talk.revision


def test_a_router_waits_for_the_newest_endpoints_not_for_those_on_their_way():
    talk = envoy_like(A, EA, router("a"))
    (older,) = talk.change(endpoints("a", 5))
    assert talk.change(endpoints("a", 6), router("a", version=2)) == [], "the window is full"
    (newer,) = talk.ack(older)
    assert newer.type_url == EDS
    (policy,) = talk.ack(newer)
    assert policy.type_url == ECDS


def test_an_ack_of_endpoints_that_went_out_before_their_cluster_does_not_end_its_warming():
    order = Order()
    order.cluster_sent("a", 6, has_endpoints=True)
    order.endpoints_acked(["a"], 5)
    assert order.warming == {"a": 6}
    order.endpoints_acked(["a"], 7)
    assert order.warming == {}
    order.cluster_due("a")
    order.endpoints_acked(["a"], 8)
    assert order.warming == {"a": None}, "it has yet to be sent"


def test_nor_does_it_while_the_cluster_is_away():
    for acked, warming in ((5, {"a": 6}), (7, {"a": None})):
        order = Order()
        order.cluster_sent("a", 6, has_endpoints=True)
        order.cluster_removed("a")
        order.endpoints_acked(["a"], acked)
        order.cluster_due("a")
        assert order.warming == warming


def test_after_a_reconnect_a_listener_waits_for_old_endpoints_to_be_renewed():
    talk = Talk.about(A, EA, listener(version=2))
    talk.ask(CDS, claimed={"a": A.version})
    assert talk.ask(LDS, claimed={"grpc": "old"}) == []
    (endpoint,) = talk.ask(EDS, ["a"], claimed={"a": "old"})
    (last,) = talk.ack(endpoint)
    assert last.type_url == LDS


def test_a_cluster_without_endpoints_goes_before_the_router_that_names_it():
    talk = envoy_like(A, EA, router("a"))
    assert kinds(talk.change(B, router("a", "b", version=2))) == [CDS, ECDS]


def test_a_router_that_leaves_a_cluster_goes_before_the_endpoints_that_leave_it():
    talk = envoy_like(A, B, EA, EB, router("a", "b"))
    assert kinds(talk.change(router("a", version=2), endpoints("b", 3))) == [ECDS, EDS]
    talk.ack_all()
    assert kinds(talk.change(router("a", "b", version=3), endpoints("b", 4))) == [EDS], (
        "and back behind those that come"
    )


def test_a_removal_behind_a_full_window_goes_out_when_it_opens():
    talk = envoy_like(A, B, EA, EB, window=1, patience_seconds=60.0)
    (clusters,) = talk.change(C)
    assert talk.change(removes=[(CDS, "b"), (EDS, "b")]) == []
    assert talk.read() == []
    first, second = talk.ack(clusters)
    assert (first.type_url, list(first.removed_resources)) == (CDS, ["b"])
    assert (second.type_url, list(second.removed_resources)) == (EDS, ["b"])


def test_removals_that_do_not_fit_follow_at_once():
    many = [f"m{number}" for number in range(20)]
    talk = envoy_like(*map(cluster, many), response_bytes=60)
    said = talk.change(removes=[(CDS, name) for name in many])
    assert len(said) > 1
    said += talk.ack_all()
    assert sorted(name for response in said for name in response.removed_resources) == sorted(many)


def test_a_listener_does_not_wait_for_endpoints_that_go_after_a_cluster_that_waits_for_the_listener():
    talk = Talk.about(A, EA, listener(version=2))
    talk.ask(CDS, claimed={"a": A.version, "b": B.version})
    talk.ask(EDS, ["a", "b"], claimed={"a": EA.version, "b": EB.version})
    (last,) = talk.ask(LDS, claimed={"grpc": "old"})
    assert last.type_url == LDS
    assert kinds(talk.ack(last)) == [CDS, EDS]
    talk.ack_all()
    assert talk.converged == talk.revision


def test_what_a_client_claimed_and_the_table_has_again_is_known():
    """A removal waits as long as it isn't known what the client holds; then it is."""
    talk = Talk.about(A, EA, router("a", version=2))
    talk.ask(CDS, claimed={"a": "old", "b": B.version})
    assert talk.ask(ECDS, ["router"], claimed={"router": router("a").version}) == []
    said = talk.change(router("a")) + talk.ask(EDS, ["a"]) + talk.ack_all()
    removed = [name for response in said if response.type_url == CDS for name in response.removed_resources]
    assert removed == ["b"]


def test_an_envoy_that_comes_back_with_a_cluster_that_is_gone_has_not_converged():
    """envoy#36951: it warms it, so it asks for its endpoints, and for clusters only after those."""
    talk = Talk.about(A, EA)
    talk.ask(EDS, ["gone"])
    talk.ask(LDS)
    talk.ask(ECDS, ["router"])
    talk.ack_all()
    talk.wait(3)
    assert talk.converged == 0
    (response,) = [each for each in talk.ask(CDS, claimed={"gone": "1", "a": A.version}) if each.type_url == CDS]
    assert response.removed_resources == ["gone"]
    talk.ack_all()
    assert talk.converged == talk.revision
