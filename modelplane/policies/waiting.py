"""Waits for rollouts: the records that the leader writes are watched until each speaks of the policy that was applied.

Pure but for `follow_rollouts`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

from registry.etcd import EtcdClient
from registry.follow import Changes, Snapshot, Update, follow
from registry.keys import Keyspace, PlaneKey, PolicyKey, RolloutKey, TrafficKey
from registry.policy.stored import decode_stored
from registry.records import RecordError
from registry.rollouts import Phase, RolloutRecord, decode_rollout
from registry.traffic import decode_traffic

FOR_LEADER = "waits for the leader of the control planes"
FOR_PLANE = "no control plane is registered; start one: `modelplane control-plane`"


class Verdict(Enum):
    """How far a rollout is."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class Rollouts:
    """What the registry says of some models; `wanted`: the generations that are waited for. `routed`: the models that
    modelplane does not load, of which there is nothing to wait for but their traffic."""

    keyspace: Keyspace
    wanted: Mapping[str, int]
    routed: frozenset[str] = frozenset()
    records: dict[str, RolloutRecord] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    planes: set[str] = field(default_factory=set)
    """The control planes that are registered."""

    def apply(self, update: Update) -> None:
        """Take one update in."""
        match update:
            case Snapshot(entries=puts):
                deletes: frozenset[str] = frozenset()
                self.planes.clear()
            case Changes(puts=puts, deletes=deletes):
                pass
            case _:
                return
        for raw in deletes:
            self._take(raw, None)
        for raw, value in puts.items():
            self._take(raw, value)

    def _take(self, raw: str, value: bytes | None) -> None:
        key = self.keyspace.parse(raw)
        if isinstance(key, PlaneKey):
            (self.planes.discard if value is None else self.planes.add)(key.replica)
        if not isinstance(key, RolloutKey | TrafficKey | PolicyKey) or key.model not in self.wanted:
            return
        model = key.model
        try:
            match key:
                case RolloutKey():
                    self.records.pop(model, None)
                    if value is not None:
                        self.records[model] = decode_rollout(value)
                case TrafficKey():
                    self.traffic[model] = 0 if value is None else decode_traffic(value).generation
                case PolicyKey():
                    self.held[model] = 0 if value is None else decode_stored(value).generation
        except RecordError:
            # Nothing that could be waited for.
            return

    def verdict(self, model: str) -> tuple[Verdict, str]:
        """How far a model is, and why, in a line."""
        generation = self.wanted[model]
        if self.held.get(model, generation) != generation:
            newer = self.held[model]
            said = f"generation {newer} has replaced it" if newer else "the policy was deleted"
            return Verdict.FAILED, f"generation {generation} is no longer wanted: {said}"
        record = self.records.get(model)
        if record is None or record.generation < generation:
            if model in self.routed and self.traffic.get(model, 0) >= generation:
                return Verdict.DONE, "its traffic is as wanted"
            return Verdict.WAITING, FOR_LEADER if self.planes else FOR_PLANE
        verdict, said = _VERDICTS.get(record.phase, Verdict.WAITING), told_rollout(record)
        stands = verdict is Verdict.WAITING and not self.planes
        return verdict, f"{said}; it stands still: {FOR_PLANE}" if stands else said

    @property
    def finished(self) -> bool:
        """Whether nothing is waited for any more."""
        return all(self.verdict(model)[0] is not Verdict.WAITING for model in self.wanted)


_VERDICTS = {
    Phase.DONE: Verdict.DONE,
    Phase.FAILED: Verdict.FAILED,
    Phase.ROLLED_BACK: Verdict.FAILED,
}


def told_rollout(record: RolloutRecord) -> str:
    """`loading 3 -> 4: 2 of 4 are ready`."""
    step = f" {record.step}/{record.steps}" if record.phase is Phase.STEPPING and record.steps else ""
    ends = [str(version) for version in (record.from_version, record.to_version) if version is not None]
    moved = f" {' -> '.join(dict.fromkeys(ends))}" if ends else ""
    why = f": {record.text}" if record.text else ""
    return f"{record.phase.lower().replace('_', ' ')}{step}{moved}{why}"


async def follow_rollouts(client: EtcdClient, rollouts: Rollouts, show: Callable[[], None]) -> None:
    """Return once nothing is waited for; `show` is called after each change. Bound it by cancellation."""
    updates = cast("AsyncGenerator[Update, None]", follow(client, rollouts.keyspace.prefix))
    async with aclosing(updates):
        async for update in updates:
            rollouts.apply(update)
            if isinstance(update, Snapshot | Changes):
                show()
                if rollouts.finished:
                    return
