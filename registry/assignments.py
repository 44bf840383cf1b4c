"""What a managed instance shall hold: the value of `assignments/<instance>`, written by the leader, carried out by the
instance's monitor. Not leased: a fleet without a leader goes on with what was last wanted of it.

Invariant: a model that is not listed is none that modelplane loaded there, or one that it shall unload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry.fields import read_members, read_rows
from registry.records import dump_document, read_document, read_field, read_int64, read_text

PLATFORM = "tensorflow"
FULL = 1_300_000
"""Bytes of a spelled assignment beyond which it takes no more models: etcd takes 1.5 MiB at once, and what is there
needs some room for the versions to come."""


@dataclass(frozen=True, slots=True)
class AssignedModel:
    """One model. `versions`: which of those under `base_path` to hold, ascending; `labels`: for the server's own
    `version_labels`, of versions that are held; `warm_up_requests`: Predicts that must succeed before it is READY."""

    base_path: str
    versions: tuple[int, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    platform: str = PLATFORM
    warm_up_requests: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """All of an instance. `generation` counts its changes."""

    models: Mapping[str, AssignedModel] = field(default_factory=dict)
    generation: int = 0


def encode_assignment(assignment: Assignment) -> bytes:
    """Spell it."""
    models = {name: _row(model) for name, model in sorted(assignment.models.items())}
    return dump_document({"generation": assignment.generation, "models": models})


def spelled(name: str, model: AssignedModel) -> int:
    """Bytes that it takes of an assignment."""
    return len(dump_document({name: _row(model)}))


def _row(model: AssignedModel) -> dict[str, Any]:
    return {
        "basePath": model.base_path,
        "versions": sorted(model.versions),
        "labels": dict(sorted(model.labels.items())),
        "platform": model.platform,
        "warmUpRequests": model.warm_up_requests,
    }


def decode_assignment(raw: bytes) -> Assignment:
    """Read it back. Raises RecordError."""
    document = read_document(raw)
    return Assignment(
        read_field(document, "models", read_members(read_text, _model), {}),
        read_field(document, "generation", read_int64, 0),
    )


def _model(row: Any) -> AssignedModel:
    return AssignedModel(
        read_field(row, "basePath", read_text),
        tuple(sorted(read_field(row, "versions", read_rows(read_int64), ()))),
        read_field(row, "labels", read_members(read_text, read_int64), {}),
        read_field(row, "platform", read_text, PLATFORM),
        read_field(row, "warmUpRequests", read_int64, 0),
    )
