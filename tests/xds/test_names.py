"""A subscription's names behave as a set, and cost what differs from what there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control_plane.xds.names import Names, Rosters

NAME = st.integers(0, 300).map(str)
STEP = st.one_of(
    st.tuples(st.sampled_from(["add", "discard"]), NAME),
    st.tuples(st.just("update"), st.sets(NAME, max_size=300)),
    st.tuples(st.just("known"), st.sets(NAME, max_size=300)),
)


@given(st.sets(NAME, max_size=300), st.lists(STEP, max_size=40))
def test_it_is_a_set_whatever_there_is_meanwhile(known: set[str], steps: list[tuple[str, object]]) -> None:
    rosters = Rosters(lambda type_url: known)
    names, other, model = Names(rosters, "t"), Names(rosters, "t"), set[str]()
    other.update(known)
    for step, value in steps:
        if step == "known":
            known = set(value)  # type: ignore[call-overload]
        else:
            getattr(names, step)(value)
            getattr(model, step)(value)
        assert set(names) == model
        assert len(names) == len(list(names)) == len(model)
    assert all((name in names) == (name in model) for name in map(str, range(301)))
    assert model - names == set() == names - model


def test_what_a_thousand_envoys_know_is_kept_once() -> None:
    known = {str(number) for number in range(10_000)}
    rosters = Rosters(lambda type_url: known)
    # Some begin with all, some learn of it one by one, and all of them live through changes.
    begun, grown = [Names(rosters, "t") for _ in range(10)], [Names(rosters, "t") for _ in range(10)]
    for names in begun:
        names.update(str(number) for number in range(10_000))
    for names in grown:
        for number in range(10_000):
            names.add(str(number))
    for names in (*begun, *grown):
        for number in range(0, 10_000, 7):
            names.discard(str(number))
            names.add(f"new-{number}")
        assert len(names) == 10_000
    assert max(names.own for names in (*begun, *grown)) < 3000
    fresh = Names(rosters, "t")
    fresh.update(known)
    assert fresh.own < 100
