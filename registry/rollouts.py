"""How far the move of a model from one version to the next has come: the value of `rollouts/<model>`.

Invariant: whoever leads next goes on from this record and the fleet alone; nothing of a rollout is in memory only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from registry.fields import read_figure, read_members, read_optional_int64, read_rows
from registry.records import dump_document, read_document, read_field, read_int64, read_text


class Phase(StrEnum):
    """What a rollout does at present."""

    WAITING = "WAITING"
    """Nothing can be done: no instance, no memory, no version on any disk."""
    LOADING = "LOADING"
    """Instances load what is wanted; the old version answers."""
    SWITCHING = "SWITCHING"
    """The traffic's change was written."""
    STEPPING = "STEPPING"
    """A canary is at one of its steps."""
    PAUSED = "PAUSED"
    """An operator holds it."""
    ROLLING_BACK = "ROLLING_BACK"
    """The old version answers again; the new one is about to be unloaded."""
    ROLLED_BACK = "ROLLED_BACK"
    """It ended with the old version."""
    UNLOADING = "UNLOADING"
    """The new version answers; what nobody wants any more is unloaded."""
    DONE = "DONE"
    FAILED = "FAILED"
    """It can't be finished: too few instances can hold the new version. The old one answers."""


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """`step`: from 1 to `steps`; 0: none has begun. `since`: Unix seconds, the start of this phase or step. `text`:
    why, in one line. `generation`: the policy's. `refused`: what was rolled back, and is not tried again
    before the policy's generation changes. `base`: by version, the statistics at the step's start, each as JSON (a
    VersionTotals of registry/plane_traffic.py); `observed`: what the gates saw last, as JSON for people. `tried`: by
    instance, the versions that it could not load, so that its copy went elsewhere; it gets none of them again before
    the policy's generation changes."""

    phase: Phase
    from_version: int | None = None
    to_version: int | None = None
    step: int = 0
    steps: int = 0
    since: float = 0.0
    text: str = ""
    generation: int = 0
    refused: tuple[int, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    observed: Mapping[str, Any] = field(default_factory=dict)
    tried: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def encode_rollout(record: RolloutRecord) -> bytes:
    """Spell it."""
    versions = {"fromVersion": record.from_version, "toVersion": record.to_version}
    return dump_document(
        {"phase": record.phase}
        | {name: version for name, version in versions.items() if version is not None}
        | {
            "step": record.step,
            "steps": record.steps,
            "since": record.since,
            "text": record.text,
            "generation": record.generation,
            "refused": sorted(record.refused),
            "base": dict(sorted(record.base.items())),
            "observed": dict(sorted(record.observed.items())),
        }
        | (
            {"tried": {name: {"versions": sorted(some)} for name, some in sorted(record.tried.items())}}
            if record.tried
            else {}
        )
    )


def decode_rollout(raw: bytes) -> RolloutRecord:
    """Read it back. Raises RecordError."""
    document = read_document(raw)
    return RolloutRecord(
        read_field(document, "phase", Phase),
        read_field(document, "fromVersion", read_optional_int64, None),
        read_field(document, "toVersion", read_optional_int64, None),
        read_field(document, "step", read_int64, 0),
        read_field(document, "steps", read_int64, 0),
        read_field(document, "since", read_figure(), 0.0),
        read_field(document, "text", read_text, ""),
        read_field(document, "generation", read_int64, 0),
        tuple(sorted(read_field(document, "refused", read_rows(read_int64), ()))),
        read_field(document, "base", read_members(read_text, lambda value: value), {}),
        read_field(document, "observed", read_members(read_text, lambda value: value), {}),
        read_field(document, "tried", read_members(read_text, _read_tried), {}),
    )


def _read_tried(row: Any) -> tuple[int, ...]:
    return tuple(sorted(read_rows(read_int64)(row.get("versions", ()))))
