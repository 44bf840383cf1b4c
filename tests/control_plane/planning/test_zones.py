"""When a zone comes back the copies are spread over all of them again, with as few moves as it takes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.planning.plan import MOST_BALANCING
from registry.rollouts import Phase
from tests.support.planned_fleet import PlannedFleet, document


def a_fleet(zones: str, models: tuple[str, ...] = ("m",)) -> PlannedFleet:
    fleet = PlannedFleet()
    for number, zone in enumerate(zones):
        fleet.add(f"i{number}", dict.fromkeys(models, (1,)), zone=zone)
    return fleet


def spread(fleet: PlannedFleet, model: str = "m") -> Counter[str]:
    return Counter(fleet.servers[name].zone for name in fleet.assigned(model))


def settle(fleet: PlannedFleet, models: tuple[str, ...], floor: int, bad: set[tuple[str, str, int]]) -> int:
    """Until nothing moves; the most models that were loading at once."""
    most, again = 0, set[str]()
    for _ in range(2000):
        decisions = fleet.step()
        again |= decisions.look_at.keys()
        moved = fleet.obey()
        assert all(len(fleet.ready(model, 1)) >= floor for model in models)
        loading = fleet.loading()
        most = max(most, len({model for _, model, _ in loading}))
        if loading:
            fleet.finish(*loading[0], good=loading[0] not in bad)
        if not (decisions or moved or loading or fleet.state.touched):
            if not again:
                return most
            fleet.now += 10.0
            fleet.state.touched |= again
            again = set()
    raise AssertionError("it does not come to rest")


@settings(max_examples=150, deadline=None)
@given(st.text("abc", min_size=2, max_size=7), st.integers(1, 6), st.sampled_from("abc"), st.data())
def test_a_zone_that_comes_back_gets_its_share(zones: str, replicas: int, away: str, data: st.DataObject) -> None:
    fleet = a_fleet(zones)
    fleet.apply(document("m", instances={"replicas": replicas}))
    lost = [f"i{number}" for number, zone in enumerate(zones) if zone == away]
    for name in lost:
        fleet.lose(name)
    fleet.settle()
    before = set(fleet.assigned("m"))
    bad = {(name, "m", 1) for name in lost if data.draw(st.booleans())}
    for name in lost:
        fleet.come_back(name)
    settle(fleet, ("m",), min(replicas, len(before)), bad)
    after = set(fleet.assigned("m"))
    able = {name for name in before | set(lost) if (name, "m", 1) not in bad}
    found = spread(fleet)
    assert len(fleet.ready("m", 1)) == len(after - {one for one, *_ in bad})
    assert len(fleet.ready("m", 1)) >= min(replicas, len(able))
    for zone in set(zones):
        free = [name for name in set(fleet.servers) - after if fleet.servers[name].zone == zone]
        if any((name, "m", 1) not in bad for name in free):
            assert found[zone] >= max(found.values()) - 1, (zones, found)
    # None but those that had to.
    assert len(before - after) <= found[away]
    assert all(times == 1 for (name, *_), times in fleet.tries.items() if name not in lost)
    assert fleet.state.rollouts["m"].phase is Phase.DONE or not before
    fleet.pass_time(1.0)
    assert not fleet.step()


def test_of_many_models_a_few_move_at_a_time() -> None:
    models = tuple(f"m{number}" for number in range(3 * MOST_BALANCING))
    fleet = a_fleet("aabb", models)
    for model in models:
        fleet.apply(document(model, instances={"replicas": 2}))
    for name in ("i2", "i3"):
        fleet.lose(name)
    fleet.settle()
    assert all(spread(fleet, model) == {"a": 2} for model in models)
    for name in ("i2", "i3"):
        fleet.come_back(name)
    assert 0 < settle(fleet, models, 2, set()) <= MOST_BALANCING
    assert all(spread(fleet, model) == {"a": 1, "b": 1} for model in models)
    assert not fleet.state.balancing


def test_without_zones_and_while_paused_nothing_moves() -> None:
    for zones, spec in (("    ", {}), ("aabb", {"paused": True})):
        fleet = a_fleet(zones.replace(" ", "x") if spec else "xxxx")
        fleet.apply(document("m", instances={"replicas": 2}))
        for name in ("i2", "i3"):
            fleet.lose(name)
        fleet.settle()
        fleet.apply(document("m", instances={"replicas": 2}, **spec))
        for name in ("i2", "i3"):
            fleet.come_back(name)
        fleet.settle()
        assert set(fleet.assigned("m")) == {"i0", "i1"}
