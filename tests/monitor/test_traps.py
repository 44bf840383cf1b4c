"""Each trap of TensorFlow Serving by its name: states and disks as its tables have them (3.2 to 3.6), a clock of the
test's own. What is no trouble is told of by no name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from monitor.disk import Look
from monitor.servables import Policy, VersionStatus, WatchedModel
from monitor.server_flags import ServerFlags
from monitor.told import Told
from monitor.traps import Limits, Traps
from registry.records import Condition
from tests.monitor.core_harness import AVAILABLE, END, LOADING, START, UNLOADING

M = WatchedModel("m", "/m", policy=Policy())
OTHER = WatchedModel("other", "/other", policy=Policy())
BROKEN = "DATA_LOSS: Can't parse /m/3/saved_model.pb as binary proto"
GONE = Look(there=False)


def found(*versions: int, empty: int = 0) -> Look:
    return Look(True, frozenset(versions), frozenset({empty} if empty else ()))


class Scene:
    """Models with states `{3: AVAILABLE, 2: (END, "error")}` (None: no answer) and looks, over time."""

    def __init__(self, *, owned: bool = True, flags: ServerFlags | None = None) -> None:
        known = flags or (ServerFlags() if owned else None)
        self.traps = Traps(Told("i"), known, Limits.of(known or ServerFlags()), owned=owned)
        self.now = 0.0
        self.answers: dict[WatchedModel, tuple[VersionStatus, ...] | None] = {}
        self.looks: dict[str, Look] = {}

    def has(self, model: WatchedModel, states: Mapping[int, Any] | None, look: Look | None = None) -> Scene:
        self.answers = {known: answer for known, answer in self.answers.items() if known.name != model.name}
        self.answers[model] = None
        if states is not None:
            rows = ((version, *(state if isinstance(state, tuple) else (state,))) for version, state in states.items())
            self.answers[model] = tuple(VersionStatus(*row) for row in rows)
        if look is not None:
            self.looks[model.base_path] = look
        return self

    def told(self, after: float = 0.0) -> tuple[Condition, ...]:
        self.traps.conditions(self.answers, self.looks, self.now)
        self.now += after
        return self.traps.conditions(self.answers, self.looks, self.now)

    def names(self, after: float = 0.0) -> list[str]:
        return [f"{one.name} {one.model}".strip() for one in self.told(after)]

    def text(self, name: str, after: float = 0.0) -> str:
        return next(one.text for one in self.told(after) if one.name == name)


def test_a_missing_base_path_and_the_models_that_it_freezes() -> None:
    """3.2: the ports stay closed, for ever. 3.6: the poll ends at the first error."""
    scene = Scene().has(M, None, GONE)
    assert scene.names() == ["BasePathMissing m"]
    assert "its base path /m is not there; the server waits for it" in scene.text("BasePathMissing")
    scene.has(OTHER, {2: AVAILABLE}, found(2))
    assert scene.names() == ["BasePathMissing m", "OtherModelsFrozen"]
    assert "waiting" not in scene.text("OtherModelsFrozen")
    scene.has(OTHER, {2: AVAILABLE}, found(2, 3))
    assert "; waiting: other 3; create that path" in scene.text("OtherModelsFrozen")
    scene.has(M, {}, found(1))
    assert scene.names() == []


def test_a_base_path_that_was_taken_away_unloads_nothing_but_freezes_the_others() -> None:
    """3.4: stays AVAILABLE and serves."""
    scene = Scene(owned=False).has(M, {1: AVAILABLE}, found(1)).has(OTHER, {1: AVAILABLE}, found(1))
    assert scene.names() == []
    scene.has(M, {1: AVAILABLE}, GONE)
    assert scene.names() == ["BasePathMissing m", "OtherModelsFrozen"]
    assert "served on" in scene.text("BasePathMissing")


def test_a_disk_that_may_be_another_machines_says_nothing() -> None:
    scene = Scene(owned=False).has(M, {}, GONE)
    assert scene.names(4.0) == []
    assert scene.names(2.0) == ["NotLoaded m"]
    assert "missing or empty where the server runs" in scene.text("NotLoaded")
    # Started by the monitor, but in a container: what it serves is not on this disk.
    assert Scene(owned=True).has(M, {1: AVAILABLE}, GONE).has(OTHER, {1: AVAILABLE}, GONE).names(9.0) == []


@pytest.mark.parametrize(
    ("policy", "look", "name", "words"),
    [
        (Policy(), found(), "NoVersions", "a version is not under /m; a version is a folder with a whole number"),
        (Policy(specific=frozenset({9})), found(1, 2), "NoVersions", "asks for (9) are not under /m (there: 2, 1)"),
        (Policy(specific=frozenset({1, 9})), found(1, 2), "VersionMissing", "version 9 that it asks for is not under"),
    ],
)
def test_versions_that_are_not_on_disk(policy: Policy, look: Look, name: str, words: str) -> None:
    """3.3: a NEW model of this kind blocks its reload for ever; 3.4: an existing one is unloaded."""
    scene = Scene().has(replace(M, policy=policy), {}, look)
    assert name in scene.names()[0]
    assert words in scene.text(name)
    assert scene.has(replace(M, policy=Policy(specific=frozenset())), {}, found(1)).names() == [], "it wants none"


def test_a_load_that_hides_its_error() -> None:
    """3.4: broken, with retries: LOADING(0:) all the time, no error visible."""
    scene = Scene().has(M, {3: LOADING, 2: AVAILABLE}, found(2, 3))
    assert scene.names(74.0) == []
    assert scene.names(2.0) == ["LoadRetrying m"]
    assert "5 times, 60 s apart" in scene.text("LoadRetrying")
    # Where the folder holds no model there is nothing to wait for.
    assert Scene().has(M, {3: LOADING}, found(3, empty=3)).names() == ["LoadRetrying m"]
    never = ServerFlags(load_retries=0)
    assert Scene(flags=never).has(M, {3: LOADING}, found(3, empty=3)).names(1e6) == []
    quick = ServerFlags(load_retry_micros=500_000)
    assert Scene(flags=quick).has(M, {3: LOADING}, found(3)).names(11.0) == ["LoadRetrying m"]


def test_a_start_that_does_not_move_names_what_holds_it_up() -> None:
    """3.6: loads run one at a time with --num_load_threads=0."""
    scene = Scene().has(M, {3: LOADING}, found(3)).has(OTHER, {1: START}, found(1))
    assert scene.names(9.0) == []
    assert scene.names(2.0) == ["LoadDelayed other"]
    assert "it waits for model m version 3; with --num_load_threads=4" in scene.text("LoadDelayed")


def test_a_failed_load_and_the_mend() -> None:
    """3.4: END(15), and it stays so when the files are repaired."""
    scene = Scene().has(M, {3: (END, BROKEN), 2: AVAILABLE}, found(2, 3))
    assert scene.names() == ["LoadFailed m"]
    assert f"model m version 3: {BROKEN}; it is not tried again" in scene.text("LoadFailed")
    assert scene.has(M, {4: AVAILABLE, 3: (END, BROKEN), 2: END}, found(2, 3, 4)).names() == [], "no longer wanted"
    # The same where the disk is not to be seen.
    scene = Scene(owned=False).has(M, {3: (END, BROKEN), 2: AVAILABLE})
    assert scene.names() == ["LoadFailed m"]
    assert scene.has(M, {4: AVAILABLE, 3: (END, BROKEN)}).names() == []


def test_an_end_that_stays_is_no_trouble() -> None:
    """3.4: END stays listed for the process's life."""
    scene = (
        Scene()
        .has(M, {3: AVAILABLE, 2: END, 1: END}, found(1, 2, 3))
        .has(OTHER, {2: UNLOADING, 1: AVAILABLE}, found(1))
    )
    assert scene.names(1e6) == []


def test_a_label_before_its_version() -> None:
    """3.5: FAILED_PRECONDITION, and nothing of the request is carried out."""
    labelled = replace(M, labels=(("canary", 2), ("stable", 1)))
    scene = Scene().has(labelled, {2: LOADING, 1: AVAILABLE}, found(1))
    assert scene.names(3.0) == ["LabelBeforeAvailable m"]
    assert "the label canary is on version 2, which is not AVAILABLE: TensorFlow Serving refuses" in scene.text(
        "LabelBeforeAvailable"
    )
    assert scene.has(labelled, {2: AVAILABLE, 1: AVAILABLE}, found(1, 2)).told(9.0) == ()
    allowed = Scene(flags=ServerFlags(labels_for_unavailable=True)).has(labelled, {1: AVAILABLE}, found(1))
    assert "requests by it get NOT_FOUND" in allowed.text("LabelBeforeAvailable", 3.0)
    assert Scene().has(labelled, None, found(1)).names(9.0) == [], "of a server that doesn't answer nothing is known"


def test_versions_that_the_server_does_not_see() -> None:
    """3.6: --file_system_poll_wait_seconds=0 is one poll only; a repaired and re-added version stays END."""
    scene = Scene(flags=ServerFlags(poll_wait=0)).has(M, {1: AVAILABLE}, found(1, 2))
    assert scene.names(6.0) == ["VersionsNotSeen m"]
    assert "--file_system_poll_wait_seconds=0; leave that out" in scene.text("VersionsNotSeen")
    assert scene.has(M, {2: START, 1: AVAILABLE}).names() == []
    scene = Scene().has(OTHER, {1: AVAILABLE}, found(1)).has(M, {}, found(1))
    assert scene.names(6.0) == ["NotLoaded m"]
    assert "version 1 is under /m, but the server knows none of it" in scene.text("NotLoaded")


def test_a_reload_of_the_servers_own_file_that_blocks() -> None:
    """3.3: it blocks for ever, and the next ones behind it."""
    follows = ServerFlags(config_poll_wait=1)
    scene = Scene(flags=follows).has(OTHER, {1: AVAILABLE}, found(1)).has(M, {}, GONE)
    assert scene.names() == ["BasePathMissing m", "OtherModelsFrozen", "ReloadBlocked m"]
    assert "waits for model m: its base path is missing" in scene.text("ReloadBlocked")
    third = WatchedModel("third", "/third", policy=Policy())
    scene.has(M, {}, found()).has(third, {}, found(1))
    assert scene.names(6.0) == ["NoVersions m", "NotLoaded third", "ReloadBlocked m", "ReloadQueued third"]
    assert Scene().has(OTHER, {1: AVAILABLE}, found(1)).has(M, {}, found()).names(9.0) == ["NoVersions m"]


def test_the_log_says_once_that_it_begins_and_once_that_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene().has(M, None, GONE)
    for _ in range(3):
        scene.told(1.0)
    scene.has(OTHER, {1: AVAILABLE}, found(1))
    scene.told()
    scene.has(OTHER, {1: AVAILABLE}, found(1, 2))
    scene.told()
    scene.has(M, {1: LOADING}, found(1)).told()
    scene.told()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "BasePathMissing on i",
        "OtherModelsFrozen on i",
        "no longer BasePathMissing on i",
        "no longer OtherModelsFrozen on i",
    ]
