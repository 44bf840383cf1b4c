"""A MonitorCore in a test: what it is told, its clock, and what its changes add up to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monitor.core import MonitorCore, Timing
from monitor.inherited import Inherited
from monitor.servables import Outcome, PollFailure, Probe, Question, VersionStatus, WatchedModel
from registry.keys import InstanceKey, ReadyKey
from registry.records import InstanceRecord, Proof, ReadyRecord, ReadyState, ServableState

START, LOADING, AVAILABLE, UNLOADING, END = ServableState
PROVED = Outcome(Proof.PROVED, "zeros")
ASKABLE = Outcome(Proof.PROVED, "zeros", question=Question("Predict", b"x", "zeros"))
"""What is proved by it is asked again and again."""
TRUSTED = Outcome(Proof.TRUSTED, "unknown rank")
FAILED = Outcome(Proof.FAILED, "FAILED_PRECONDITION: Could not find variable b")
REFUSED = PollFailure(connection=True, detail="Connection refused")
SLOW = PollFailure(connection=False, detail="DEADLINE_EXCEEDED")
ENDPOINT = ReadyRecord(ReadyState.READY, "10.0.0.1", 8500, 8501, "zone-a", 2)


class Harness:
    """A core, its clock, and the keys that its changes add up to."""

    def __init__(self, *models: WatchedModel, patient: bool = False, inherited: Inherited | None = None) -> None:
        self.core = MonitorCore("i", ENDPOINT, "test", Timing(), patient=patient)
        self.now = 100.0
        self.keys: dict[Any, Any] = {}
        if inherited is not None:
            self.core.inherit(inherited)
        self.core.set_models(models or (WatchedModel("m"),))
        self.apply()

    def apply(self) -> Mapping[Any, Any]:
        changes = self.core.changes()
        for key, record in changes.items():
            if record is None:
                del self.keys[key]
            else:
                self.keys[key] = record
        return changes

    def status(self, *versions: tuple[Any, ...], model: str = "m", after: float = 0.1) -> Mapping[Any, Any]:
        self.now += after
        self.core.status(model, tuple(VersionStatus(*version) for version in versions), self.now)
        return self.apply()

    def probe(self, outcome: Outcome, after: float = 0.0) -> Probe:
        self.now += after
        (probe,) = self.core.due(self.now)
        self.core.probed(probe, outcome, self.now)
        self.apply()
        return probe

    def fail(self, failure: PollFailure, model: str = "m", after: float = 0.1) -> None:
        self.now += after
        self.core.failed(model, failure, self.now)
        self.apply()

    def ready(self, version: int, model: str = "m") -> ReadyState | None:
        record = self.keys.get(ReadyKey(model, version, "i"))
        return record.state if record else None

    @property
    def instance(self) -> InstanceRecord:
        record = self.keys[InstanceKey("i")]
        assert isinstance(record, InstanceRecord)
        return record

    def serving(self, *versions: int) -> Harness:
        self.status(*((version, AVAILABLE) for version in versions))
        for probe in self.core.due(self.now):
            self.core.probed(probe, PROVED, self.now)
        self.apply()
        return self
