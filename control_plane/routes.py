"""What the model routers must know of single models, kept up to date with the catalog.

Invariant: `pins` and `routings` are what the present models give; an update costs the models that changed and those
that are mirrored to them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from control_plane.model import Model
from control_plane.resources.traffic import Routing, routing_of

_V = TypeVar("_V")


class Routes:
    """Not for threads."""

    def __init__(self) -> None:
        self.pins: dict[str, int] = {}
        """The version that requests without one are told, of models whose traffic nobody shares out."""
        self.routings: dict[str, Routing] = {}
        self._mirrored: defaultdict[str, set[str]] = defaultdict(set)
        """By model, those that mirror requests to whatever version it serves."""
        self._targets: dict[str, frozenset[str]] = {}

    def update(self, changed: Iterable[str], models: Mapping[str, Model]) -> bool:
        """Take in that these models changed; return whether the routers must be told anything new."""
        stale = False
        names = set(changed)
        for name in names:
            model = models.get(name)
            self._aim(name, model)
            version = model.served if model is not None and model.pinned and model.traffic is None else None
            stale |= _keep(self.pins, name, version)
        for name in names.union(*(self._mirrored.get(name, ()) for name in names)):
            model = models.get(name)
            routing = None if model is None else routing_of(model, lambda target: _served(models, target))
            stale |= _keep(self.routings, name, routing)
        return stale

    def _aim(self, name: str, model: Model | None) -> None:
        mirrors = () if model is None or model.traffic is None else model.traffic.mirrors
        targets = frozenset(one.model for one in mirrors if one.version is None)
        for gone in self._targets.pop(name, frozenset()) - targets:
            self._mirrored[gone].discard(name)
            if not self._mirrored[gone]:
                del self._mirrored[gone]
        if targets:
            self._targets[name] = targets
        for target in targets:
            self._mirrored[target].add(name)


def _served(models: Mapping[str, Model], name: str) -> int | None:
    model = models.get(name)
    return None if model is None else model.served


def _keep(known: dict[str, _V], name: str, value: _V | None) -> bool:
    """Make it so; return whether it was otherwise."""
    if known.get(name) == value:
        return False
    if value is None:
        del known[name]
    else:
        known[name] = value
    return True
