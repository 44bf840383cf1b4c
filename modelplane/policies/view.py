"""What the registry says of policies, their traffic and their rollouts. Pure: updates in.

Invariant: a policy that can't be read is told as such, and never stands for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.follow import Changes, Snapshot, Update
from registry.found import Found, decode_found
from registry.keys import DiskKey, Keyspace, PolicyKey, RolloutKey, TrafficKey
from registry.policy.model import Canary, Policy
from registry.policy.stored import StoredPolicy, decode_stored, read_stored
from registry.records import RecordError
from registry.rollouts import RolloutRecord, decode_rollout
from registry.traffic import TrafficRecord, decode_traffic


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies in `models/<model>`: `unreadable` says why it is no policy, empty: it is one."""

    stored: StoredPolicy | None = None
    policy: Policy | None = None
    unreadable: str = ""


@dataclass(slots=True)
class PolicyView:
    """By model."""

    keyspace: Keyspace
    kept: dict[str, Kept] = field(default_factory=dict)
    traffic: dict[str, TrafficRecord] = field(default_factory=dict)
    rollouts: dict[str, RolloutRecord] = field(default_factory=dict)
    disks: dict[str, Found] = field(default_factory=dict)
    """By instance: what lies under the base paths."""

    def apply(self, update: Update) -> None:
        """Take one update in."""
        match update:
            case Snapshot(entries=puts):
                self._take(puts)
            case Changes(puts=puts, deletes=deletes):
                for raw in deletes:
                    self._drop(raw)
                self._take(puts)

    def _take(self, puts: Mapping[str, bytes]) -> None:
        for raw, value in puts.items():
            key = self.keyspace.parse(raw)
            try:
                match key:
                    case PolicyKey(model):
                        self.kept[model] = keep(value, model)
                    case TrafficKey(model):
                        self.traffic[model] = decode_traffic(value)
                    case RolloutKey(model):
                        self.rollouts[model] = decode_rollout(value)
                    case DiskKey(instance):
                        self.disks[instance] = decode_found(value)
            except RecordError:
                # The leader's own, of another version perhaps: what is known is the better thing to show.
                continue

    def _drop(self, raw: str) -> None:
        match self.keyspace.parse(raw):
            case PolicyKey(model):
                self.kept.pop(model, None)
            case TrafficKey(model):
                self.traffic.pop(model, None)
            case RolloutKey(model):
                self.rollouts.pop(model, None)
            case DiskKey(instance):
                self.disks.pop(instance, None)

    def on_disk(self, model: str) -> dict[int, list[str]]:
        """The versions that lie under the model's base path, newest first, and on which instances' disks."""
        found: dict[int, list[str]] = {}
        for instance, disk in sorted(self.disks.items()):
            for version in disk.models[model].versions if model in disk.models else ():
                found.setdefault(version, []).append(instance)
        return dict(sorted(found.items(), reverse=True))


def keep(raw: bytes, model: str) -> Kept:
    """Read one."""
    stored = None
    try:
        stored = decode_stored(raw)
        stored, policy = read_stored(raw, model)
    except RecordError as error:
        return Kept(stored, unreadable=str(error))
    return Kept(stored, policy)


def told_versions(policy: Policy) -> str:
    """`latest 1`, `all`, `3, 4`."""
    versions = policy.versions
    if versions.all:
        return "all"
    return ", ".join(map(str, versions.specific)) or f"latest {versions.latest}"


def told_instances(policy: Policy) -> str:
    """`2 of gpu=a100`, `all`, or a dash: modelplane does not load it."""
    if not policy.base_path:
        return "-"
    which = ",".join(f"{name}={value}" for name, value in policy.selector.items())
    count = "all" if policy.replicas is None else str(policy.replicas)
    return f"{count} of {which}" if which else count


def told_traffic(policy: Policy) -> str:
    """`latest`, or `3=90 4=10`."""
    return " ".join(f"{version}={parts}" for version, parts in policy.weights.items()) or "latest"


def told_strategy(policy: Policy) -> str:
    """`rolling`, `canary 5% 50%`, and whether it is paused."""
    rollout = policy.rollout
    steps = " ".join(f"{step.percent:g}%" for step in rollout.steps) if isinstance(rollout, Canary) else ""
    said = f"canary {steps}" if steps else "rolling"
    return f"{said}, paused" if policy.paused else said
