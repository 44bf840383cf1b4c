"""Quarantine on streams of the state-of-the-world variant, whose CDS responses hold everything."""

from __future__ import annotations

from control_plane.xds.quarantine import Blame
from control_plane.xds.warden import judge
from tests.xds.client import CDS, EDS, LDS, cluster, endpoints, ready_table
from tests.xds.sotw_client import SotwTalk, envoy_like, held

BLAME = Blame("envoy-1", "", "", "", 0.0)
A1, A2, B1, B2 = cluster("a"), cluster("a", 2), cluster("b"), cluster("b", 2)
EA, EB = endpoints("a", 1), endpoints("b", 2)


def pass_on(talk: SotwTalk) -> None:
    """What the shell does with a refusal."""
    for event in talk.stream.events():
        change = judge(talk.table, event, "peer", 0.0)
        if change is not None:
            talk.stream.notice(change, talk.now)
    talk.read()


def test_the_last_good_version_comes_back_and_the_others_flow():
    talk = envoy_like(A1, B1, EA, EB)
    bad = next(response for response in talk.change(A2, B2) if response.type_url == CDS)
    rest = next(response for response in talk.nack(bad, "cluster(s) a: no good") if response.type_url == CDS)
    assert held(rest) == {"a": A1.version, "b": B2.version}, "what is named is left as it was"
    one = next(response for response in talk.ack(rest) if response.type_url == CDS)
    assert held(one) == {"a": A2.version, "b": B2.version}, "and proven by itself"
    said = talk.nack(one, "cluster(s) a: no good")
    pass_on(talk)
    said += [*talk.sent]
    said += talk.ack_all()
    newest = [held(response) for response in said if response.type_url == CDS][-1]
    assert newest == {"a": A1.version, "b": B2.version}
    assert talk.table.quarantined[CDS, "a"].last_good_version == A1.version
    assert talk.converged == talk.revision


def test_what_is_withheld_is_left_out_and_settled():
    talk = envoy_like(A1, EA)
    (bad,) = talk.change(B1)
    talk.nack(bad)
    pass_on(talk)
    talk.ack_all()
    assert talk.table.withheld(CDS, "b")
    assert talk.converged == talk.revision
    said = talk.change(A2) + talk.ack_all()
    assert [held(response) for response in said if response.type_url == CDS] == [{"a": A2.version}]


def test_a_client_that_comes_back_and_refuses_the_only_change_is_settled_by_what_it_takes():
    talk = envoy_like(A1, EA)
    other = SotwTalk.about(table=talk.table)
    talk.table.update([B1], [], 2)
    (bad,) = other.ask(CDS, version="of long ago")
    assert held(bad) == {"a": A1.version, "b": B1.version}
    other.nack(bad)
    while other.sent:
        response = other.sent[0]
        if response.type_url == CDS and "b" in held(response):
            other.nack(response)
            pass_on(other)
        else:
            other.ack(response)
    other.ask(EDS, ["a"])
    other.ack_all()
    assert other.table.withheld(CDS, "b")
    assert other.stream.status()[CDS].outstanding == 1
    assert other.converged == 2


def test_a_client_that_comes_later_gets_all_but_what_is_withheld():
    table = ready_table(A1, B1, EA, EB)
    for resource in (A1, EB):
        table.quarantine(resource.type_url, resource.name, resource.version, BLAME)
    talk = SotwTalk.about(table=table)
    (response,) = talk.ask(CDS)
    assert held(response) == {"b": B1.version}
    told = {name: version for each in talk.ask(EDS, ["a", "b"]) for name, version in held(each).items()}
    assert told == {"a": EA.version, "b": endpoints("b").version}, "of what is withheld, that there is nothing"
    talk.ask(LDS)
    talk.ack_all()
    assert talk.converged == table.revision
