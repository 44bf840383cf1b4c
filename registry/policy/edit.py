"""Small changes to a document that leave everything else as the operator wrote it. Pure: a new document each time;
whether it is a policy, `read_policy` says."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any


def with_labels(document: Mapping[str, Any], added: Mapping[str, int], removed: Collection[str]) -> dict[str, Any]:
    """Labels set and taken away. Raises KeyError with a label that is to be taken away and is not there."""
    changed, spec = _opened(document)
    labels = dict(spec.get("labels") or {})
    for label in removed:
        del labels[label]
    labels.update(added)
    _put(spec, "labels", labels or None)
    return changed


def with_traffic(document: Mapping[str, Any], weights: Mapping[int, int]) -> dict[str, Any]:
    """Weights for versions; none: requests follow the latest. What decides stickiness stays."""
    changed, spec = _opened(document)
    traffic = {name: value for name, value in (spec.get("traffic") or {}).items() if name not in ("follow", "weights")}
    chosen: dict[str, Any] = {"weights": {str(version): parts for version, parts in weights.items()}}
    _put(spec, "traffic", {**(chosen if weights else {"follow": "latest"}), **traffic})
    return changed


def with_paused(document: Mapping[str, Any], *, paused: bool) -> dict[str, Any]:
    """Rollouts held, or no longer."""
    changed, spec = _opened(document)
    _put(spec, "paused", True if paused else None)
    return changed


def _opened(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    changed = copy.deepcopy(dict(document))
    spec = changed.setdefault("spec", {})
    return changed, spec


def _put(spec: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        spec.pop(name, None)
    else:
        spec[name] = value
