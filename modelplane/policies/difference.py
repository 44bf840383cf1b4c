"""What a change changes, for people. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from modelplane.policies.documents import write_document
from modelplane.table import clean
from registry.policy.shapes import Path, spell


def unified(model: str, before: Any, after: Any) -> list[str]:
    """Both documents as YAML, as `diff -u` shows them; no lines: they are equal. None: there is none."""
    old, new = (_lines(one) for one in (before, after))
    return [clean(line) for line in difflib.unified_diff(old, new, f"{model} (held)", f"{model} (new)", lineterm="")]


def changed_fields(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    """`spec.traffic.weights` and so on: the fields that differ, without `spec.`."""
    if before is None or after is None:
        return []
    return [spell(path).removeprefix("spec.") for path in _differing(before, after, ())]


def _differing(before: Any, after: Any, path: Path) -> list[Path]:
    if isinstance(before, dict) and isinstance(after, dict) and len(path) < 2:
        names = [*before, *(name for name in after if name not in before)]
        return [
            found
            for name in names
            for found in (
                _differing(before[name], after[name], (*path, name))
                if name in before and name in after
                else [(*path, name)]
            )
        ]
    return [] if before == after else [path]


def _lines(document: Any) -> list[str]:
    return [] if document is None else write_document(document).splitlines()
