"""An Envoy that asks for clusters by name, as requests need them: what it needs first, what it must not wait for."""

from __future__ import annotations

from tests.xds.client import CDS, ECDS, EDS, LDS, Talk, cluster, endpoints, listener, names, router


def fresh() -> Talk:
    """One that has its listener and a router that names clusters which it hasn't asked for."""
    talk = Talk.about(cluster("a"), endpoints("a", 1), listener(), router("a"))
    (response,) = talk.ask(LDS)
    assert names(response) == ["grpc"]
    (response,) = talk.ask(ECDS, ["router"])
    assert names(response) == ["router"], "it waits for no cluster: who asks on demand has none before its listener"
    talk.ack_all()
    return talk


def test_the_first_request_gets_its_cluster_and_no_other() -> None:
    talk = fresh()
    talk.change(cluster("b"), endpoints("b", 2))
    (response,) = talk.ask(CDS, ["a"])
    assert names(response) == ["a"]
    (response,) = talk.ask(EDS, ["a"])
    assert names(response) == ["a"]
    talk.ack_all()
    talk.wait(10.0)
    assert talk.converged == talk.revision


def test_an_unknown_cluster_is_answered_and_sent_when_it_comes() -> None:
    talk = fresh()
    (response,) = talk.ask(CDS, ["new"])
    assert list(response.removed_resources) == ["new"]
    talk.ack_all()
    (response,) = talk.change(cluster("new"), endpoints("new", 1))
    assert (response.type_url, names(response)) == (CDS, ["new"])
    talk.ack_all()
    (response,) = talk.ask(EDS, ["new"])
    assert names(response) == ["new"]


def test_an_unknown_cluster_holds_up_no_router() -> None:
    """It has asked for a cluster and not for EDS, because there is nothing to ask EDS for."""
    talk = fresh()
    talk.ask(CDS, ["nowhere"])
    talk.ack_all()
    (response,) = talk.change(router("a", version=2))
    assert names(response) == ["router"]


def test_a_router_waits_for_a_cluster_that_is_on_its_way() -> None:
    talk = fresh()
    talk.ask(CDS, ["later"])
    talk.ack_all()
    (response,) = talk.change(cluster("later"), endpoints("later", 1), router("later"))
    assert response.type_url == CDS
    (response,) = talk.ask(EDS, ["later"])
    assert response.type_url == EDS
    talk.ack_all(CDS)
    (response,) = talk.ack(response)
    assert (response.type_url, names(response)) == (ECDS, ["router"])


def test_a_cluster_is_removed_once_no_router_names_it() -> None:
    talk = fresh()
    talk.ask(CDS, ["a"])
    talk.ask(EDS, ["a"])
    talk.ack_all()
    talk.wait(3.0)
    (response,) = talk.change(router(), removes=[(CDS, "a"), (EDS, "a")])
    assert response.type_url == ECDS
    (response, *_) = talk.ack(response)
    assert (response.type_url, list(response.removed_resources)) == (CDS, ["a"])
