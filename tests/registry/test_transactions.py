"""Changes cut into transactions: nothing lost, nothing reordered, etcd's limits kept, sets kept together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.transactions import MAX_BYTES, MAX_OPERATIONS, Group, merge, size, split

_KEYS = st.integers(0, 300).map(lambda number: f"/k/{number}")
# A few of the values are large enough that bytes, not operations, fill a transaction.
_VALUES = st.one_of(st.none(), st.just(b"v"), st.sampled_from([500_000, 900_000, 1_400_000]).map(bytes))
_GROUPS = st.lists(st.dictionaries(_KEYS, _VALUES, max_size=200), max_size=12)


def _transactions(groups: list[Group]) -> list[dict[str, bytes | None]]:
    waiting = list(groups)
    transactions = []
    while waiting:
        changes, taken = merge(waiting)
        assert taken > 0
        transactions.append(changes)
        del waiting[:taken]
    return transactions


def _apply(groups: list[Group]) -> dict[str, bytes | None]:
    state: dict[str, bytes | None] = {}
    for group in groups:
        state.update(group)
    return state


def _fits(changes: Group) -> bool:
    return len(changes) <= MAX_OPERATIONS and sum(size(*change) for change in changes.items()) <= MAX_BYTES


@given(_GROUPS)
def test_transactions_leave_what_the_changes_leave_within_the_limits(sets: list[Group]) -> None:
    groups = [group for changes in sets for group in split(changes)]
    transactions = _transactions(groups)
    assert _apply(transactions) == _apply(sets)
    assert all(map(_fits, transactions))


@given(_GROUPS)
def test_a_set_that_fits_is_never_torn(sets: list[Group]) -> None:
    for changes in sets:
        if changes and _fits(changes):
            assert split(changes) == [changes]


@given(st.lists(st.dictionaries(_KEYS, st.just(b"v"), max_size=5), max_size=10))
def test_small_sets_travel_together(sets: list[Group]) -> None:
    assert len(_transactions(list(sets))) == (1 if sets else 0)


def test_129_keys_of_one_set_are_two_transactions() -> None:
    groups = split({f"/k/{number}": b"v" for number in range(MAX_OPERATIONS + 1)})
    assert [len(group) for group in groups] == [MAX_OPERATIONS, 1]


def test_a_value_that_etcd_would_refuse_is_refused_before() -> None:
    with pytest.raises(ValueError, match="/k/1: a value of 2000000 bytes"):
        split({"/k/0": b"v", "/k/1": bytes(2_000_000)})


_MODELS = st.dictionaries(st.integers(0, 200), st.integers(1, 6), max_size=120)


@given(_MODELS)
def test_a_models_keys_stay_together_where_all_do_not_fit(models: dict[int, int]) -> None:
    # By version first, so that a model's keys are far from each other.
    keys = [
        f"/ready/m{model}/{version}/i" for version in range(6) for model, count in models.items() if version < count
    ]
    transactions = _transactions([*split(dict.fromkeys(keys, b"v"))])
    for model in models:
        holding = [changes for changes in transactions if any(key.startswith(f"/ready/m{model}/") for key in changes)]
        assert len(holding) == 1


def test_a_model_with_more_keys_than_a_transaction_holds_is_cut_all_the_same() -> None:
    keys = [f"/ready/m/{version}/i" for version in range(300)]
    groups = split({"/ready/a/1/i": b"v", **dict.fromkeys(keys, b"v"), "/ready/z/1/i": b"v"})
    assert [len(group) for group in groups] == [1, 128, 128, 45]
