"""What operators and the leader want of each model: its policy and its traffic, as far as they concern the data path.

Invariant: a record that can't be read counts as absent, and is said once in the log: as long as the key holds the same
bytes, or until it can be read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from control_plane.model import FLEETS_OWN, Handling, Tuning
from registry.keys import PolicyKey, TrafficKey
from registry.policy.model import Canary, Difference, Policy
from registry.policy.stored import read_stored
from registry.records import RecordError
from registry.traffic import TrafficRecord, decode_traffic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Intent:
    """What is wanted of one model; by default nothing."""

    handling: Handling = FLEETS_OWN
    traffic: TrafficRecord | None = None


_NOTHING = Intent()


class Intents:
    """Keeps the records that can be read, by model."""

    def __init__(self) -> None:
        self._handling: dict[str, Handling] = {}
        self._traffic: dict[str, TrafficRecord] = {}
        self._differences: dict[str, Difference] = {}
        self._unreadable: dict[PolicyKey | TrafficKey, bytes] = {}

    def of(self, model: str) -> Intent:
        """What is wanted of this model."""
        handling, traffic = self._handling.get(model), self._traffic.get(model)
        if handling is None and traffic is None:
            return _NOTHING
        return Intent(handling or FLEETS_OWN, traffic)

    def difference(self, model: str) -> Difference | None:
        """What the model's policy says of answers that differ; None if nobody compares them."""
        return self._differences.get(model)

    def put(self, key: PolicyKey | TrafficKey, raw: bytes) -> None:
        """Take in what the key holds now."""
        try:
            match key:
                case PolicyKey(model):
                    _, policy = read_stored(raw, model)
                    self._handling[model] = _handling(policy)
                    self._compare(policy)
                case TrafficKey(model):
                    self._traffic[model] = decode_traffic(raw)
        except RecordError as error:
            said = self._unreadable.get(key) == raw
            if isinstance(key, PolicyKey):
                self.remove(key)
            # Traffic that was in force stays so: without it other versions would answer.
            self._unreadable[key] = raw
            if not said:
                kind = "policy" if isinstance(key, PolicyKey) else "traffic"
                log.error("model %s: its %s in the registry is unreadable, ignored: %s", key.model, kind, error)
        else:
            self._unreadable.pop(key, None)

    def remove(self, key: PolicyKey | TrafficKey) -> None:
        """Take in that the key is gone."""
        self._unreadable.pop(key, None)
        match key:
            case PolicyKey(model):
                self._handling.pop(model, None)
                self._differences.pop(model, None)
            case TrafficKey(model):
                self._traffic.pop(model, None)

    def _compare(self, policy: Policy) -> None:
        difference = policy.rollout.gates.difference if isinstance(policy.rollout, Canary) else None
        if difference is None:
            self._differences.pop(policy.name, None)
        else:
            self._differences[policy.name] = difference


def _handling(policy: Policy) -> Handling:
    tuning = Tuning(policy.balancing, policy.circuit_breaking, policy.outlier_detection)
    return Handling(policy.timeout, policy.retries, policy.max_request_bytes, tuning)
