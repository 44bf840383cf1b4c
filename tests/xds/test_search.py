"""Who is to blame for a refused response: how a stream finds out, and what that costs."""

from __future__ import annotations

from control_plane.xds.events import Refused
from tests.xds.client import CDS, cluster, envoy_like, names, request


def blame(message: str, bad: set[str], count: int = 100) -> tuple[int, list[tuple[str, ...]]]:
    """How many refusals it takes to find the bad ones among `count` new clusters, and who was blamed."""
    talk = envoy_like()
    talk.change(*(cluster(f"m{number}") for number in range(count)))
    refusals = 0
    blamed = []
    while talk.sent:
        response = talk.sent[0]
        wrong = sorted(bad & set(names(response)))
        if not wrong:
            talk.ack(response)
            continue
        refusals += 1
        talk.nack(response, message.format(first=wrong[0], all=": no good, ".join(wrong)))
        blamed += [event.names for event in talk.stream.events() if isinstance(event, Refused) and event.version]
    assert set(talk.stream.status()[CDS].refused) == bad
    assert talk.stream.status()[CDS].outstanding == len(bad)
    return refusals, blamed


def test_the_names_in_the_message_are_proven_one_by_one():
    bad = {"m7", "m42"}
    assert blame("Error adding/updating cluster(s) {all}: no good", bad) == (3, [("m7",), ("m42",)])


def test_a_message_that_names_the_first_only_takes_one_round_more():
    refusals, blamed = blame('name: "{first}"\n: Proto constraint validation failed', {"m7", "m42"})
    assert sorted(blamed) == [("m42",), ("m7",)]
    assert refusals == 4


def test_a_message_that_names_nobody_or_the_wrong_ones():
    for message in ("no good", "m1 m2 m3 are to blame, it says", "everything is wrong"):
        refusals, blamed = blame(message, {"m42"})
        assert blamed == [("m42",)]
        assert refusals <= 9


def test_when_all_are_bad_and_each_message_names_one_the_search_still_ends_soon():
    everything = {f"m{number}" for number in range(64)}
    refusals, blamed = blame('name: "{first}"\n', everything, 64)
    assert {name for (name,) in blamed} == everything
    assert refusals <= 2 * 64


def test_what_was_refused_beside_something_bad_is_not_blamed_if_something_newer_was_on_its_way():
    talk = envoy_like(cluster("a"))
    (first,) = talk.change(cluster("b"), cluster("bad"))
    (second,) = talk.change(cluster("b", 2), cluster("worse"))
    talk.stream.receive(request(CDS, nonce=first.nonce, error="something is bad"), talk.now)
    talk.stream.receive(request(CDS, nonce=second.nonce, error="something is bad"), talk.now)
    talk.sent.clear()
    talk.change(cluster("b"))
    taken: dict[str, str] = {}
    while talk.sent:
        response = talk.sent[0]
        if {"bad", "worse"}.isdisjoint(names(response)):
            taken |= {each.name: each.version for each in response.resources}
            talk.ack(response)
        else:
            talk.nack(response)
    assert taken == {"b": cluster("b").version}
    assert talk.stream.status()[CDS].refused == ("bad", "worse")


def test_what_was_refused_beside_a_name_that_was_dropped_since_is_not_blamed():
    talk = envoy_like()
    talk.ask(CDS, ["good", "bad"], ["*"])
    talk.ack_all()
    (both,) = talk.change(cluster("good"), cluster("bad"))
    talk.ask(CDS, unsubscribe=["bad"])
    talk.nack(both, "something is bad")
    assert not [event for event in talk.stream.events() if isinstance(event, Refused) and event.version]
    (again,) = talk.sent
    assert names(again) == ["good"]
    talk.ack(again)
    assert talk.converged == talk.revision
    assert talk.stream.status()[CDS].refused == ()
