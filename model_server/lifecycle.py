"""Which version to load or unload next: TF Serving's AspiredVersionsManager and AvailabilityPreservingPolicy, no I/O.

Invariant: a version that answers is unloaded only if it is no longer wanted, and then only once a wanted one answers,
or if none is wanted at all.

A shell calls `tick` every 100 ms, carries out the action that it returns, and reports with `loaded` or `unloaded`.
There is no clock in here: one tick is one step, and retries belong to the loading (shell).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import TypeAlias

from model_server.errors import ServingError


class State(IntEnum):
    """get_model_status.proto, ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, slots=True)
class Event:
    """A servable changed its state; `error` only with END."""

    model: str
    version: int
    state: State
    error: ServingError | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Load this servable, and report with `loaded`."""

    model: str
    version: int
    path: Path


@dataclass(frozen=True, slots=True)
class Unload:
    """Take this servable from new requests, wait for those under way, free it, and report with `unloaded`."""

    model: str
    version: int


Action: TypeAlias = Load | Unload


class _Phase(Enum):
    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    DISABLED = "disabled"
    FAILED = "failed"


@dataclass(slots=True)
class _Servable:
    path: Path
    phase: _Phase = _Phase.NEW
    aspired: bool = True


@dataclass(slots=True)
class Lifecycle:
    """All servables of one server. `publish` is called with every change of state, in order."""

    publish: Callable[[Event], None]
    _managed: dict[str, dict[int, _Servable]] = field(default_factory=dict)
    _pending: dict[str, Mapping[int, Path]] = field(default_factory=dict)

    def aspire(self, model: str, versions: Mapping[int, Path]) -> None:
        """Want exactly these versions of a model. Nothing is loaded again because its path has changed."""
        self._pending[model] = dict(versions)

    def is_aspired(self, model: str, version: int) -> bool:
        """Whether a load that keeps failing is still worth a retry."""
        servable = self._managed.get(model, {}).get(version)
        return servable is not None and servable.aspired

    def loaded(self, model: str, version: int, error: ServingError | None = None) -> None:
        """A Load has ended; with an error its retries are used up."""
        self._managed[model][version].phase = _Phase.FAILED if error else _Phase.READY
        self.publish(Event(model, version, State.END if error else State.AVAILABLE, error))

    def unloaded(self, model: str, version: int) -> None:
        """An Unload has ended."""
        self._managed[model][version].phase = _Phase.DISABLED
        self.publish(Event(model, version, State.END))

    def tick(self) -> Action | None:
        """One step: forget what has ended, choose one action, take over new wishes. START thus lasts one tick."""
        self._forget()
        action = self._choose()
        if isinstance(action, Load):
            self._managed[action.model][action.version].phase = _Phase.LOADING
            self.publish(Event(action.model, action.version, State.LOADING))
        elif action is not None:
            self._managed[action.model][action.version].phase = _Phase.UNLOADING
            self.publish(Event(action.model, action.version, State.UNLOADING))
        self._take_over()
        return action

    def _forget(self) -> None:
        ended = (_Phase.NEW, _Phase.DISABLED, _Phase.FAILED)
        for model, servables in list(self._managed.items()):
            for version, servable in list(servables.items()):
                if not servable.aspired and servable.phase in ended:
                    del servables[version]
            if not servables:
                del self._managed[model]

    def _choose(self) -> Action | None:
        load: Load | None = None
        for model, servables in self._managed.items():
            action = _next_action(model, servables)
            if isinstance(action, Unload):
                return action
            load = load or action
        return load

    def _take_over(self) -> None:
        for model, wanted in list(self._pending.items()):
            servables = self._managed.setdefault(model, {})
            if any(version in wanted and not servable.aspired for version, servable in servables.items()):
                continue  # wanted again while it is on its way out: after that
            del self._pending[model]
            for version, servable in servables.items():
                servable.aspired = version in wanted
            for version in sorted(wanted, reverse=True):
                if version not in servables:
                    servables[version] = _Servable(wanted[version])
                    self.publish(Event(model, version, State.START))


def _next_action(model: str, servables: Mapping[int, _Servable]) -> Action | None:
    aspired = [servable for servable in servables.values() if servable.aspired]
    if not aspired or any(servable.phase is _Phase.READY for servable in aspired):
        for version, servable in servables.items():
            if servable.phase is _Phase.READY and not servable.aspired:
                return Unload(model, version)
    new = [version for version, servable in servables.items() if servable.aspired and servable.phase is _Phase.NEW]
    return Load(model, max(new), servables[max(new)].path) if new else None
