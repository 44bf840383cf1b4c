"""What follow() delivers, against a model of etcd: after each update, etcd's own state at that revision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from registry.etcd import Event, KeyValue, Listing
from registry.etcd.watch import WatchBatch
from registry.follow import Changes, Picture, Snapshot

_KEYS = st.sampled_from(["/a", "/b", "/c", "/d"])
_TXN = st.dictionaries(_KEYS, st.one_of(st.none(), st.binary(max_size=2)), min_size=1, max_size=4)
_STATE = st.dictionaries(_KEYS, st.binary(max_size=2))


def _listing(revision: int, state: dict[str, bytes]) -> Listing:
    return Listing(revision, tuple(KeyValue(key, value, revision) for key, value in sorted(state.items())))


def _history(first: dict[str, bytes], transactions: list[dict[str, bytes | None]]) -> list[dict[str, bytes]]:
    """The state at each revision, from revision 1 on."""
    states = [dict(first)]
    for transaction in transactions:
        state = {**states[-1], **{key: value for key, value in transaction.items() if value is not None}}
        states.append({key: value for key, value in state.items() if transaction.get(key, b"") is not None})
    return states


def _apply(state: dict[str, bytes], changes: Changes) -> None:
    state.update(changes.puts)
    for key in changes.deletes:
        state.pop(key, None)


@given(_STATE, st.lists(_TXN, max_size=20), st.data())
def test_batches_resent_and_cut_anywhere_give_every_revision_once(
    first: dict[str, bytes], transactions: list[dict[str, bytes | None]], data: st.DataObject
) -> None:
    states = _history(first, transactions)
    picture = Picture()
    snapshot = picture.listed(_listing(1, first))
    assert isinstance(snapshot, Snapshot)
    state = dict(snapshot.entries)
    seen: list[int] = []
    while picture.revision < len(states):
        # A watch resumed too early sends again; it delivers up to anywhere, and its header runs ahead.
        start = data.draw(st.integers(2, picture.revision + 1))
        end = data.draw(st.integers(picture.revision + 1, len(states)))
        events = tuple(
            Event(revision, key, value)
            for revision in range(start, end + 1)
            for key, value in transactions[revision - 2].items()
        )
        for changes in picture.happened(WatchBatch(len(states) + 5, events)):
            seen.append(changes.revision)
            _apply(state, changes)
            assert state == states[changes.revision - 1]
            assert not changes.relisted
    assert seen == list(range(2, len(states) + 1))


@given(_STATE, _STATE, st.integers(1, 100), st.integers(1, 100))
def test_a_list_after_the_first_is_a_difference_that_leads_there(
    before: dict[str, bytes], after: dict[str, bytes], first: int, second: int
) -> None:
    picture = Picture()
    snapshot = picture.listed(_listing(first, before))
    changes = picture.listed(_listing(second, after))
    assert isinstance(snapshot, Snapshot)
    assert isinstance(changes, Changes)
    assert (changes.relisted, changes.revision) == (True, second)
    state = dict(snapshot.entries)
    _apply(state, changes)
    assert state == after
    assert all(before.get(key) != value for key, value in changes.puts.items())
    assert changes.deletes == before.keys() - after.keys()


def test_only_a_progress_notification_moves_the_revision_without_events() -> None:
    picture = Picture()
    picture.listed(_listing(5, {}))
    picture.happened(WatchBatch(9, (Event(6, "/a", b"1"),)))
    assert picture.revision == 6
    picture.happened(WatchBatch(8, ()))
    assert picture.revision == 8


def test_another_past_is_told_by_any_difference() -> None:
    picture = Picture()
    picture.listed(_listing(5, {"/a": b"1"}))
    assert picture.agrees(_listing(5, {"/a": b"1"}))
    assert not picture.agrees(_listing(5, {"/a": b"2"}))
    assert not picture.agrees(_listing(5, {}))
    assert not picture.agrees(_listing(5, {"/a": b"1", "/b": b""}))
