"""What a MonitorCore knows of one model and its versions, and what it tells of them in the instance record."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from monitor.proof_course import Course, Key, Standing
from monitor.servables import HeldVersion, VersionStatus, WatchedModel
from registry.keys import ReadyKey
from registry.records import Condition, Proof, ReadyRecord, Servable, ServableState

KEPT_ENDED = 3
"""Versions per model that ended without an error and are still told of: the server lists them for ever."""
MAX_TEXT = 1000
SWAP = 2.0
"""Seconds for which two versions are both AVAILABLE at most while a server swaps them (its tick is 0.1 s)."""


@dataclass(slots=True)
class KnownVersion:
    """One version. `incarnation` tells this load of it from others."""

    state: ServableState
    error: str
    incarnation: int
    course: Course = field(default_factory=Course)
    was_ready: bool = False
    """It was READY when the server let go of it."""
    drained: bool = False
    """An operator wants it drained, and nothing is in flight on it."""
    kept: bool = False
    """It bridges a swap that this monitor won't see the end of, since it drains."""

    @property
    def ready(self) -> bool:
        """Whether it has an endpoint: its key is READY or FAILING, in a drain DRAINING."""
        return self.kept or self.course.standing is not Standing.UNPROVED


@dataclass(slots=True)
class KnownModel:
    """One model. `failures` counts calls without an answer in a row; `published` is what was handed over of it."""

    watched: WatchedModel
    listed: bool = True
    """False: no longer in the server's flags or file, and watched on until the server itself has let go of it."""
    versions: dict[int, KnownVersion] = field(default_factory=dict)
    answer: tuple[VersionStatus, ...] | None = None
    """The latest answer that was taken in, to see quickly that the next one says nothing new."""
    failures: int = 0
    trouble: str = ""
    seen_several: bool = False
    several_since: float | None = None
    published: dict[ReadyKey, ReadyRecord] = field(default_factory=dict)
    servables: tuple[Servable, ...] = ()
    """This model's part of the instance record, kept: with 1,000 models one change must not build 1,000 of these."""

    @property
    def several(self) -> bool:
        """Whether the server may hold several versions of it at once."""
        return bool(self.watched.several_versions) or self.seen_several

    def shows_several(self, versions: Iterable[VersionStatus], now: float) -> bool:
        """Whether a server whose policy is unknown is now found to keep several versions: not in the moment in which
        one that keeps a single version swaps."""
        if self.watched.several_versions is not None or self.seen_several:
            return False
        if sum(status.state is ServableState.AVAILABLE for status in versions) < 2:
            self.several_since = None
        elif self.several_since is None:
            self.several_since = now
        else:
            self.seen_several = now - self.several_since >= SWAP
        return self.seen_several


def held_versions(model: KnownModel | None) -> Mapping[int, HeldVersion] | None:
    """What the server holds of it; None: there is no answer that is true at present."""
    if model is None or model.answer is None:
        return None
    return {
        number: HeldVersion(
            one.state,
            one.error,
            one.ready and one.state is ServableState.AVAILABLE,
            one.course.proof,
            one.course.detail,
            one.drained,
        )
        for number, one in model.versions.items()
    }


def bridges_a_swap(model: KnownModel, version: KnownVersion) -> bool:
    """Whether it is still READY though the server let go of it: another version has taken over, and its first probe has
    not ended."""
    return (
        version.was_ready
        and not version.ready
        and not model.several
        and any(
            other.state is ServableState.AVAILABLE and other.course.proof is Proof.PENDING
            for other in model.versions.values()
        )
    )


def told_proof(before: Standing, course: Course) -> tuple[str, int]:
    """What a proof that changed something is worth in the log, and at which level."""
    why = f"({course.proof.lower()}: {course.detail})"
    match before, course.standing:
        case Standing.FAILING, Standing.READY:
            return f"answers again {why}", logging.INFO
        case _, Standing.READY:
            return f"ready {why}", logging.INFO
        case _, Standing.FAILING:
            return f"AVAILABLE, but it answers no more; used only where nothing better is {why}", logging.ERROR
        case _:
            return f"AVAILABLE, but it does not answer; not registered {why}", logging.ERROR


def told_hang(hung: Iterable[Key]) -> Condition:
    """That the server as a whole answers no Predict."""
    names = ", ".join(f"{name} version {version}" for name, version, _ in sorted(hung))
    text = f"the server answers status calls, but no Predict (of {names}); it may have to be restarted"
    return Condition("PredictHangs", text)


def told_servables(name: str, model: KnownModel) -> tuple[Servable, ...]:
    """A model's part of the instance record, newest version first; of those that ended only what is worth a line."""
    told: list[Servable] = []
    ended = 0
    for number, version in sorted(model.versions.items(), reverse=True):
        if version.state is ServableState.END and not version.error:
            ended += 1
            if ended > KEPT_ENDED:
                continue
        course = version.course
        told.append(Servable(name, number, version.state, cut(version.error), course.proof, cut(course.detail)))
    return tuple(told)


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """At most `limit` characters, and a sign that it was more."""
    return text if len(text) <= limit else text[:limit] + "…"
