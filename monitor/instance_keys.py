"""What one instance's registry keys say of what a MonitorCore knows. Pure; the core marks what has changed.

Invariant: all that was handed over by `changes`, together, is what the instance's keys shall be; and a call costs what
was marked, never the number of models, but for the instance's own record, which names them all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from monitor.inherited import Inherited
from monitor.known import KnownModel, KnownVersion, bridges_a_swap, cut, told_servables
from monitor.proof_course import Reproofs, Standing
from monitor.wished import Wished
from registry.keys import InstanceKey, Key, ReadyKey
from registry.records import Condition, InstanceRecord, InstanceState, ReadyRecord, ReadyState, ServableState

log = logging.getLogger(__name__)

_ANNOUNCED = (ServableState.START, ServableState.LOADING)


@dataclass(frozen=True, slots=True)
class About:
    """What the instance's record says of it for whoever places models."""

    managed: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    memory: int = 0


class InstanceKeys:
    """Of one instance. `endpoint` is what a ready key says, with any state; `models`, `wished` and `reproofs` are the
    core's own, live views."""

    def __init__(
        self,
        instance: str,
        endpoint: ReadyRecord,
        monitor_version: str,
        models: Mapping[str, KnownModel],
        wished: Wished,
        reproofs: Reproofs,
        about: About,
    ) -> None:
        self._instance = instance
        self._endpoint = endpoint
        self._monitor_version = monitor_version
        self._models = models
        self._wished = wished
        self._reproofs = reproofs
        self._about = about
        self.state = InstanceState.STARTING
        self.trouble = "no answer from the server yet"
        self.draining = False
        """It is left for good; its state is another one if the server ends before that is over."""
        self.inherited = Inherited()
        self._notice = ""
        self._conditions: dict[str, tuple[Condition, ...]] = {}
        self._distrusted = ""
        self._removed: Mapping[str, frozenset[int]] = {}
        self.touched = True
        """`changes` is worth a call."""
        self._dirty: set[str] = set()
        self._dropped: set[ReadyKey] = set()
        self._published: InstanceRecord | None = None

    @property
    def handed_over(self) -> frozenset[ReadyKey]:
        """All readiness keys that were handed over and not taken back."""
        return frozenset(key for model in self._models.values() for key in model.published)

    # --- what has changed ---------------------------------------------------------------------------------------

    def touch(self, *models: str) -> None:
        """Something of the instance has changed, and of these models; one that is not known any more is no matter."""
        self.touched = True
        self._dirty.update(models)

    def touch_all(self) -> None:
        """Any model's keys may be others now."""
        self.touch(*self._models)

    def stands(self, state: InstanceState, trouble: str = "") -> None:
        """What the instance's record says of the server from now on."""
        self.state, self.trouble, self.touched = state, trouble, True

    def drop(self, model: KnownModel) -> None:
        """The core forgets this model: whatever was handed over of it goes."""
        self._dropped.update(model.published)
        self.touched = True

    def notice(self, text: str) -> None:
        """See MonitorCore."""
        self._notice, self.touched = text, True

    def report(self, source: str, conditions: Iterable[Condition]) -> None:
        """See MonitorCore."""
        found = tuple(conditions)
        if found != self._conditions.get(source, ()):
            self._conditions[source], self.touched = found, True

    def conditions(self) -> Counter[str]:
        """How many there are of each name. From any thread."""
        return Counter(one.name for several in list(self._conditions.values()) for one in several)

    def unannounce(self, versions: Mapping[str, frozenset[int]]) -> None:
        """See MonitorCore.removed."""
        before, self._removed = self._removed, dict(versions)
        for name in before.keys() | versions.keys():
            if before.get(name) != versions.get(name):
                self.touch(name)
        for name, gone in versions.items():
            for version in sorted(gone - before.get(name, frozenset())):
                log.info(
                    "model %s version %d on %s: gone from disk while the server was loading it",
                    name,
                    version,
                    self._instance,
                )

    def distrust(self, why: str) -> None:
        """See MonitorCore."""
        if why != self._distrusted:
            log.warning("instance %s: %s", self._instance, why or "it is said to be well again")
            self._distrusted = why
            self.touch_all()

    def release(self) -> None:
        """No inherited endpoint of another server is true any more."""
        self.touch(*self.inherited.models)
        self.inherited.release()

    # --- what they say ------------------------------------------------------------------------------------------

    def changes(self) -> Mapping[Key, ReadyRecord | InstanceRecord | None]:
        """See MonitorCore."""
        self.touched = False
        changes: dict[Key, ReadyRecord | InstanceRecord | None] = dict.fromkeys(sorted(self._dropped, key=str))
        self._dropped.clear()
        for name in sorted(self._dirty & self._models.keys()):
            model = self._models[name]
            wanted = self._ready_keys(model)
            for key in model.published.keys() - wanted.keys():
                changes[key] = None
            changes.update({key: record for key, record in wanted.items() if model.published.get(key) != record})
            model.published, model.servables = wanted, told_servables(name, model)
        self._dirty.clear()
        instance = self._instance_record()
        if instance != self._published:
            self._published = instance
            changes[InstanceKey(self._instance)] = instance
        return changes

    def _ready_keys(self, model: KnownModel) -> dict[ReadyKey, ReadyRecord]:
        several = model.several
        keys = {}
        for number, version in sorted(model.versions.items()):
            state = self._ready_state(version)
            if held := self._wished.ready_state(model.watched.name, number, version):
                state = held
            elif state is ReadyState.LOADING and self._will_not_come(model.watched.name, number, version):
                state = None
            elif state is None and not self.draining and bridges_a_swap(model, version):
                state = ReadyState.READY
            if state is not None:
                key = ReadyKey(model.watched.name, number, self._instance)
                keys[key] = replace(self._endpoint, state=state, several_versions=several)
        if not self.draining:
            standing = self.inherited.standing(model).items()
            keys |= {key: record for key, record in standing if not self._wished.covers(key.model, key.version)}
        return keys

    def _will_not_come(self, model: str, number: int, version: KnownVersion) -> bool:
        removed = version.state in _ANNOUNCED and number in self._removed.get(model, ())
        return removed or self._wished.leaves(model, number)

    def _ready_state(self, version: KnownVersion) -> ReadyState | None:
        if version.ready and self.draining:
            return ReadyState.DRAINING
        if version.ready:
            failing = self._distrusted or self._reproofs.hung or version.course.standing is Standing.FAILING
            return ReadyState.FAILING if failing else ReadyState.READY
        if self.draining:
            return None
        known = version.state is ServableState.AVAILABLE or version.state in _ANNOUNCED
        return ReadyState.LOADING if known else None

    def _instance_record(self) -> InstanceRecord:
        models = [self._models[name] for name in sorted(self._models)]
        troubles = [text for text in (self.trouble, self._notice, self.inherited.text) if text]
        if not self.trouble:
            troubles += [f"model {model.watched.name}: {model.trouble}" for model in models if model.trouble]
        endpoint = self._endpoint
        return InstanceRecord(
            address=endpoint.address,
            grpc_port=endpoint.grpc_port,
            rest_port=endpoint.rest_port,
            zone=endpoint.zone,
            capacity=endpoint.capacity,
            monitor_version=self._monitor_version,
            state=self._wished.instance_state(self.state),
            detail=cut("; ".join(troubles)),
            servables=tuple(chain.from_iterable(model.servables for model in models)),
            conditions=tuple(chain.from_iterable(self._conditions.values())),
            managed=self._about.managed,
            labels=self._about.labels,
            memory=self._about.memory,
        )
