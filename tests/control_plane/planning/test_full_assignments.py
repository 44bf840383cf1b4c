"""An assignment never gets longer than etcd takes: others get the models, or they wait, and that is told."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from registry.assignments import AssignedModel, Assignment, encode_assignment, spelled
from tests.support.planned_fleet import PlannedFleet, document

MODELS = [f"m{number}" for number in range(12)]
ROW = 100
"""Bytes of one model, about."""


def longest(fleet: PlannedFleet) -> int:
    return max(len(encode_assignment(one)) for one in fleet.state.assignments.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(300, 1500), st.sampled_from([None, 1, 2]))
def test_it_stays_within_its_limit_and_nothing_is_lost(count: int, limit: int, replicas: int | None) -> None:
    fleet = PlannedFleet()
    fleet.state.full_at = limit
    for number in range(count):
        fleet.add(f"i{number}", dict.fromkeys(MODELS, (1,)))
    for model in MODELS:
        fleet.apply(document(model, instances={"replicas": replicas} if replicas else None))
    fleet.settle()
    assert longest(fleet) <= limit + ROW + 30
    copies = sum(len(fleet.assigned(model)) for model in MODELS)
    wanted = len(MODELS) * min(replicas or count, count)
    full = {event.instance for event in fleet.events if event.kind == "AssignmentFull"}
    assert full == {name for name, length in fleet.state.spelled.items() if length >= limit}
    if copies < wanted:
        assert len(full) == count or replicas == 2
        assert fleet.state.waiting
    # New versions are loaded all the same where the model is.
    before = {model: set(fleet.assigned(model)) for model in MODELS}
    for model in MODELS:
        fleet.copy_files(model, 2)
    fleet.settle()
    for model in MODELS:
        assert fleet.ready(model, 2) == before[model]


def test_what_waits_is_placed_when_there_is_room_again() -> None:
    fleet = PlannedFleet()
    fleet.state.full_at = 500
    fleet.add("i0", dict.fromkeys(MODELS, (1,)))
    for model in MODELS:
        fleet.apply(document(model))
    fleet.settle()
    placed = [model for model in MODELS if fleet.assigned(model)]
    assert 3 <= len(placed) < len(MODELS)
    fleet.delete(placed[0])
    fleet.settle()
    assert len([model for model in MODELS if fleet.assigned(model)]) == len(placed)
    assert not fleet.assigned(placed[0])


def test_what_a_model_takes_of_an_assignment() -> None:
    one = AssignedModel("/models/ü", (1, 2), {"stable": 1})
    without, with_it = (len(encode_assignment(Assignment(models))) for models in ({}, {"ü": one}))
    assert spelled("ü", one) == with_it - without + 2
