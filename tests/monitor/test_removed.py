"""Versions that are removed while a server tries to load them."""

from __future__ import annotations

from monitor.disk import Look
from monitor.removed import Removed
from monitor.servables import VersionStatus, WatchedModel
from registry.keys import ReadyKey
from registry.records import ReadyState
from tests.monitor.core_harness import AVAILABLE, END, LOADING, PROVED, START, Harness

M = WatchedModel("m", "/m")


def found(removed: Removed, look: Look | None, **states: object) -> frozenset[int]:
    answer = tuple(VersionStatus(int(name[1:]), state) for name, state in states.items())  # type: ignore[arg-type]
    return removed.find({M: answer}, {"/m": look} if look else {}).get("m", frozenset())


def on_disk(*versions: int) -> Look:
    return Look(True, frozenset(versions))


def test_only_what_was_there_while_it_was_loading_has_been_removed() -> None:
    removed = Removed()
    assert found(removed, on_disk(1), v1=AVAILABLE, v2=START) == set(), "the look may be older than the folder"
    assert found(removed, on_disk(1, 2), v1=AVAILABLE, v2=LOADING) == set()
    assert found(removed, None, v1=AVAILABLE, v2=LOADING) == set(), "a disk that hangs says nothing"
    assert found(removed, Look(), v1=AVAILABLE, v2=LOADING) == set()
    assert found(removed, on_disk(), v1=AVAILABLE, v2=LOADING) == {2}, "what is AVAILABLE is the server's to unload"
    assert found(removed, on_disk(1), v1=AVAILABLE, v2=LOADING) == {2}
    assert found(removed, on_disk(1, 2), v1=AVAILABLE, v2=LOADING) == set(), "it was put back"
    assert found(removed, Look(there=False), v1=AVAILABLE, v2=LOADING) == {2}
    assert found(removed, on_disk(1), v1=AVAILABLE, v2=END) == set()
    assert found(removed, on_disk(1), v1=AVAILABLE, v2=START) == set(), "a new load"


def test_it_is_announced_no_longer() -> None:
    harness = Harness()
    key = ReadyKey("m", 2, "i")
    harness.status((1, AVAILABLE), (2, LOADING))
    harness.probe(PROVED)
    assert harness.keys[key].state is ReadyState.LOADING
    harness.core.removed({"m": frozenset({2})})
    assert harness.apply()[key] is None
    assert harness.keys[ReadyKey("m", 1, "i")].state is ReadyState.READY
    harness.core.removed({"m": frozenset({2})})
    assert not harness.core.touched
    harness.core.removed({})
    assert harness.apply()[key].state is ReadyState.LOADING
    harness.core.removed({"m": frozenset({2})})
    harness.status((1, AVAILABLE), (2, AVAILABLE))
    assert harness.keys[key].state is ReadyState.LOADING, "it had been read: it is proved like any other"
