"""Policies as `apply` takes them, with who and when as comments. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from modelplane.policies.documents import write_document
from modelplane.policies.view import Kept
from modelplane.table import clean


def as_yaml(kept: Mapping[str, Kept]) -> str:
    """One YAML document for each; one that can't be read is a comment that says so."""
    parts = []
    for model, one in kept.items():
        if one.stored is None or one.unreadable:
            parts.append(f"# {clean(model)}: can't be read: {clean(one.unreadable)}\n")
            continue
        by = f" by {one.stored.by}" * bool(one.stored.by)
        why = f": {one.stored.message}" * bool(one.stored.message)
        parts.append(
            f"# {clean(f'generation {one.stored.generation}{by}{why}')}\n{write_document(one.stored.document)}"
        )
    return "---\n".join(parts)
