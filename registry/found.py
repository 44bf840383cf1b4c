"""Which versions lie on an instance's disk: the value of `instances/<instance>/disk`, written by its monitor for the
base paths that policies name.

Invariant: a version that is not listed can't be loaded there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry.fields import read_members, read_version_key
from registry.records import dump_document, read_document, read_field, read_int64, read_text


@dataclass(frozen=True, slots=True)
class FoundModel:
    """`versions`: bytes by version. `error`: why the base path could not be looked at; empty if it could."""

    base_path: str
    versions: Mapping[int, int] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """By model."""

    models: Mapping[str, FoundModel] = field(default_factory=dict)


def encode_found(found: Found) -> bytes:
    """Spell it."""
    models = {
        name: {
            "basePath": model.base_path,
            "versions": {str(version): size for version, size in sorted(model.versions.items())},
            "error": model.error,
        }
        for name, model in sorted(found.models.items())
    }
    return dump_document({"models": models})


def decode_found(raw: bytes) -> Found:
    """Read it back. Raises RecordError."""
    return Found(read_field(read_document(raw), "models", read_members(read_text, _model), {}))


def _model(row: Any) -> FoundModel:
    return FoundModel(
        read_field(row, "basePath", read_text),
        read_field(row, "versions", read_members(read_version_key, read_int64), {}),
        read_field(row, "error", read_text, ""),
    )
