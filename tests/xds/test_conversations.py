"""The conversations that Envoy was measured to have, in both variants: warming, reconnecting while a cluster warms,
answers that come late, responses that are taken in part."""

from __future__ import annotations

import pytest

from control_plane.xds.events import HeldTooLong, Refused
from tests.xds.client import CDS, ECDS, EDS, LDS, cluster, endpoints, listener, ready_table, router
from tests.xds.envoy_model import EnvoyModel

pytestmark = pytest.mark.parametrize("delta", [True, False], ids=["delta", "sotw"])


def envoy(delta: bool) -> EnvoyModel:
    """One that has models a and b, a router that needs a, and has ACKed all of it."""
    table = ready_table(
        cluster("a"), endpoints("a", 1), cluster("b"), endpoints("b", 2), listener(), router("a"), revision=1
    )
    model = EnvoyModel(table, delta=delta)
    assert model.complete
    assert model.converged
    return model


def names_refused(model: EnvoyModel) -> list[tuple[str, ...]]:
    return [event.names for event in model.events if isinstance(event, Refused) and not event.searching]


def test_models_come_one_after_the_other_and_each_is_active_before_a_router_names_it(delta):
    model = envoy(delta)
    needed = ["a"]
    for number in range(20):
        name = f"m{number}"
        needed.append(name)
        model.change(cluster(name), endpoints(name, number + 1), router(*needed, version=number + 2))
        model.read()
    model.settle()
    assert model.complete
    assert model.converged
    assert model.missing == []


def test_a_changed_cluster_is_sent_with_endpoints_that_have_not_changed(delta):
    model = envoy(delta)
    model.heard.clear()
    model.change(cluster("a", 2))
    model.settle()
    assert [(kind, names) for kind, names, _ in model.heard] == [(CDS, ["a"]), (EDS, ["a"])]
    assert model.complete
    assert model.converged


def test_a_changed_cluster_whose_endpoints_do_not_come_warms_for_ever_and_nothing_of_cds_is_answered(delta):
    """That the model is as Envoy is: were the endpoints never sent again, it would not go on."""
    model = envoy(delta)
    model.change(cluster("a", 2))
    assert model.read()
    model.lose_unread()
    model.settle()
    assert model.warming == {"a": cluster("a", 2).version}
    assert model.active["a"] == cluster("a").version, "the old one serves on"
    assert not model.converged


def test_a_cluster_is_removed_while_it_warms(delta):
    model = envoy(delta)
    model.change(cluster("c"), endpoints("c", 3))
    assert model.read()
    assert "c" in model.warming
    model.change(removes=[(CDS, "c"), (EDS, "c")])
    model.settle()
    assert model.complete
    assert model.converged


def test_a_removed_model_leaves_after_the_router_that_names_it(delta):
    model = envoy(delta)
    model.heard.clear()
    model.change(router("b", version=2), removes=[(CDS, "a"), (EDS, "a")])
    model.settle()
    kinds = [kind for kind, _, _ in model.heard]
    assert kinds[:2] == [ECDS, CDS]
    assert model.complete
    assert model.converged


@pytest.mark.parametrize("tells", [True, False], ids=["says-which", "says-nothing"])
def test_the_good_clusters_of_a_refused_response_are_routed_to(delta, tells):
    model = envoy(delta)
    model.tells = tells
    bad = cluster("x", 9)
    model.bad.add(bad.version)
    model.change(bad, endpoints("x", 8), cluster("y"), endpoints("y", 9), router("a", "y", version=2))
    model.settle()
    assert model.active["y"] == cluster("y").version
    assert model.held[ECDS] == {"router": router("a", "y", version=2).version}
    assert model.missing == []
    assert names_refused(model) == [("x",)]
    mended = cluster("x", 2)
    model.change(mended)
    model.settle()
    assert model.complete
    assert model.converged


def test_a_refusal_that_comes_late_does_not_take_back_what_came_after_it(delta):
    model = envoy(delta)
    bad = cluster("x", 9)
    model.bad.add(bad.version)
    model.change(bad, endpoints("x", 8), cluster("y"), endpoints("y", 9))
    assert model.read(), "its NACK is withheld, because y warms"
    model.change(cluster("z"), endpoints("z", 10))
    model.settle()
    assert {"y", "z"} <= model.active.keys()
    assert "x" not in model.active
    assert names_refused(model) == [("x",)]
    model.change(removes=[(CDS, "x"), (EDS, "x")])
    model.settle()
    assert model.complete
    assert model.converged


def test_what_is_refused_and_mended_before_the_refusal_comes_is_not_blamed(delta):
    model = envoy(delta)
    bad = cluster("x", 9)
    model.bad.add(bad.version)
    model.change(bad, endpoints("x", 8), cluster("y"), endpoints("y", 9))
    assert model.read()
    model.change(cluster("x", 2))
    model.settle()
    assert model.complete
    assert model.converged
    assert names_refused(model) == []


def test_a_router_that_needs_a_refused_cluster_does_not_wait_for_its_deadline(delta):
    model = envoy(delta)
    bad = cluster("x", 9)
    model.bad.add(bad.version)
    model.change(bad, endpoints("x", 8), router("a", "x", version=2))
    model.settle(2.0)
    assert model.held[ECDS] == {"router": router("a", "x", version=2).version}
    assert not [event for event in model.events if isinstance(event, HeldTooLong)]


def test_a_stream_that_is_lost_while_a_cluster_warms(delta):
    """envoy#36951: EDS comes first, CDS only when no cluster warms, which takes EDS again."""
    model = envoy(delta)
    model.change(cluster("a", 2))
    assert model.read()
    assert "a" in model.warming
    model.change(cluster("c"), endpoints("c", 3), router("a", "c", version=2))
    model.connect()
    model.settle(3.0)
    assert model.complete
    assert model.missing == []
    assert model.converged


def test_a_stream_that_is_lost_while_a_cluster_warms_that_is_gone_when_it_is_back(delta):
    model = envoy(delta)
    model.change(cluster("c"), endpoints("c", 3))
    assert model.read()
    model.change(removes=[(CDS, "c"), (EDS, "c")])
    model.connect()
    model.settle(15.0)
    assert model.complete
    assert model.converged


def test_a_cluster_that_has_become_bad_while_the_stream_was_lost_takes_no_other_with_it(delta):
    model = envoy(delta)
    model.heard.clear()
    bad = cluster("a", 9)
    model.bad.add(bad.version)
    model.change(bad, cluster("c"), endpoints("c", 3))
    model.connect()
    model.settle(15.0)
    # In the state of the world there is no way to refuse one cluster and go on but to leave it out.
    assert set().union(*(went for _, _, went in model.heard)) <= (set() if delta else {"a"})
    assert model.active.keys() - {"a"} == {"b", "c"}
    assert names_refused(model) == [("a",)]


STEPS = (
    lambda model: model.change(cluster("c"), endpoints("c", 3), router("a", "c", version=2)),
    lambda model: model.change(cluster("a", 2)),
    lambda model: model.change(endpoints("c", 4), listener(version=2)),
    lambda model: model.change(router("a", version=3), removes=[(CDS, "c"), (EDS, "c")]),
    lambda model: model.change(cluster("b", 2), endpoints("b", 5), router("b", version=4)),
)


@pytest.mark.parametrize("reads", [1, 2, 9])
def test_a_stream_may_be_lost_after_any_response(delta, reads):
    """Changes and responses in turn, up to `reads` for each change; the stream is cut after the first, the second, …
    of all, and once in the middle of coming back."""
    for cut in range(40):
        model = envoy(delta)
        taken = 0
        for step in STEPS:
            step(model)
            for _ in range(reads):
                if not model.read():
                    break
                taken += 1
                if taken == cut:
                    model.connect()
                if taken == cut + 1:
                    model.connect()
        model.settle(15.0)
        assert model.complete, cut
        assert model.converged, cut
        assert model.missing == [], cut
        if taken < cut:
            break


def test_coming_back_with_everything_brings_nothing(delta):
    model = envoy(delta)
    model.heard.clear()
    model.connect()
    model.settle(15.0)
    sent_again = [(kind, names) for kind, names, _ in model.heard if names]
    # A state-of-the-world client has no way to say which endpoints and extensions it has.
    assert sent_again == [] if delta else {kind for kind, _ in sent_again} <= {EDS, ECDS}
    assert LDS not in {kind for kind, _, _ in model.heard}
    assert model.complete
    assert model.converged
