"""What a MonitorCore knows of one model and its versions, and what it tells of them in the instance record."""

from __future__ import annotations

from dataclasses import dataclass, field

from monitor.servables import VersionStatus, WatchedModel
from registry.keys import ReadyKey
from registry.records import Proof, ReadyRecord, Servable, ServableState

KEPT_ENDED = 3
"""Versions per model that ended without an error and are still told of: the server lists them for ever."""
MAX_TEXT = 1000


@dataclass(slots=True)
class KnownVersion:
    """One version. `incarnation` tells this load of it from others; `ready`: its key is READY, in a drain DRAINING."""

    state: ServableState
    error: str
    incarnation: int
    proof: Proof = Proof.PENDING
    detail: str = ""
    ready: bool = False
    was_ready: bool = False
    """It was READY when the server let go of it."""
    probing: bool = False
    probe_at: float | None = None
    attempts: int = 0


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


def bridges_a_swap(model: KnownModel, version: KnownVersion) -> bool:
    """Whether it is still READY though the server let go of it: another version has taken over, and its first probe has
    not ended."""
    return (
        version.was_ready
        and not version.ready
        and not model.several
        and any(
            other.state is ServableState.AVAILABLE and other.proof is Proof.PENDING for other in model.versions.values()
        )
    )


def told_servables(name: str, model: KnownModel) -> tuple[Servable, ...]:
    """A model's part of the instance record, newest version first; of those that ended only what is worth a line."""
    told: list[Servable] = []
    ended = 0
    for number, version in sorted(model.versions.items(), reverse=True):
        if version.state is ServableState.END and not version.error:
            ended += 1
            if ended > KEPT_ENDED:
                continue
        told.append(Servable(name, number, version.state, cut(version.error), version.proof, cut(version.detail)))
    return tuple(told)


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """At most `limit` characters, and a sign that it was more."""
    return text if len(text) <= limit else text[:limit] + "…"
