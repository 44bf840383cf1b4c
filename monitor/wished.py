"""What is to be drained of one instance, because an operator wants it so or because it is not assigned any more
(`retire`), and how far each version of it is. Pure; used by MonitorCore.

Invariant: a version is DRAINED only if `drained` has named it since it is to be drained, and then only for the load
that it was in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from monitor.known import KnownModel, KnownVersion
from registry.drains import DrainRecord, told_drain
from registry.keys import ReadyKey
from registry.records import Condition, InstanceState, ReadyState, ServableState


class Wished:
    """`models`: the core's own, a live view."""

    def __init__(self, instance: str, models: Mapping[str, KnownModel]) -> None:
        self._instance = instance
        self._models = models
        self._wish: DrainRecord | None = None
        self._retired: frozenset[tuple[str, int]] = frozenset()

    def want(self, wish: DrainRecord | None) -> None:
        """An operator wants this drained; None: nothing any longer."""
        self._wish = wish
        self._forget()

    def retire(self, versions: frozenset[tuple[str, int]]) -> set[str]:
        """These, of the models that modelplane manages, are to be unloaded; the names of those that differ now."""
        changed = {name for name, _ in self._retired ^ versions}
        self._retired = versions
        self._forget()
        return changed

    def _forget(self) -> None:
        for name, model in self._models.items():
            for number, version in model.versions.items():
                version.drained = version.drained and self.covers(name, number)

    def conditions(self) -> list[Condition]:
        """What to say of it."""
        return [] if self._wish is None else [Condition("DrainAsked", told_drain(self._wish, self._instance))]

    def undrained(self) -> frozenset[ReadyKey]:
        """What was handed over as DRAINING since an operator wants it so."""
        wish = self._wish
        if wish is None:
            return frozenset()
        return frozenset(key for key in self._draining() if wish.covers(key.model, key.version))

    def retiring(self) -> frozenset[ReadyKey]:
        """What was handed over as DRAINING since it is to be unloaded."""
        if not self._retired:
            return frozenset()
        return frozenset(key for key in self._draining() if (key.model, key.version) in self._retired)

    def _draining(self) -> Iterator[ReadyKey]:
        published = chain.from_iterable(model.published.items() for model in self._models.values())
        return (key for key, record in published if record.state is ReadyState.DRAINING)

    def drained(self, keys: Iterable[ReadyKey]) -> set[str]:
        """Nothing is in flight there; the names of the models that are different now."""
        changed = set()
        for key in keys:
            model = self._models.get(key.model)
            version = model.versions.get(key.version) if model is not None else None
            if version is not None and self.covers(key.model, key.version):
                version.drained = True
                changed.add(key.model)
        return changed

    def ready_state(self, model: str, number: int, version: KnownVersion) -> ReadyState | None:
        """What its key says for the drain's sake; None: what it would say without."""
        if version.state is not ServableState.AVAILABLE or not self.covers(model, number):
            return None
        return ReadyState.DRAINED if version.drained else ReadyState.DRAINING

    def leaves(self, model: str, version: int) -> bool:
        """Whether it is to be unloaded, so that there is nothing to announce."""
        return (model, version) in self._retired

    def instance_state(self, state: InstanceState) -> InstanceState:
        """What the instance's record says, which without a drain is `state`."""
        if state is not InstanceState.SERVING or self._wish is None or not self._wish.whole:
            return state
        return InstanceState.DRAINING if self.undrained() else InstanceState.DRAINED

    def covers(self, model: str, version: int) -> bool:
        """Whether this is to be drained."""
        return (model, version) in self._retired or (self._wish is not None and self._wish.covers(model, version))
