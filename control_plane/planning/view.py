"""What the planner looks at to decide about one model: immutable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, inf

from control_plane.planning.state import Wish
from registry.policy.model import Canary, Rolling
from registry.rollouts import RolloutRecord
from registry.traffic import TrafficRecord

_ROUNDING = 1e-9
_UNMANAGED_SWITCH_AT = 0.5
"""Servers that load by themselves may drop the old version as they load the new one, so a switch that waited for the
last of them would come when the old version is gone."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One instance as one model sees it. `alive`: it holds its lease (or may be believed to) and is not drained.
    `usable`: it may be assigned more. `told`: what lies on its disk is known, where that matters. `gone`: its copy is
    to be somewhere else. `assigned`: None: the model is not. `ready`: READY versions; `answered`: those that are or
    were, and are not on their way out. `free`: bytes of memory; `held`: versions that take memory here; `load`: models
    that are assigned to it; `given_up`: versions that failed to load here, and are not tried again by themselves."""

    instance: str
    zone: str = ""
    alive: bool = True
    usable: bool = True
    told: bool = True
    gone: bool = False
    assigned: frozenset[int] | None = None
    on_disk: frozenset[int] = frozenset()
    ready: frozenset[int] = frozenset()
    answered: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    held: frozenset[int] = frozenset()
    free: float = inf
    load: int = 0
    given_up: frozenset[int] = frozenset()

    @property
    def has(self) -> frozenset[int]:
        """The versions that are assigned."""
        return self.assigned or frozenset()

    @property
    def loading(self) -> bool:
        """Whether it may be about to load."""
        missing = self.has - self.answered - self.failed
        return self.alive and bool(missing & (self.on_disk | self.held))

    @property
    def emptied(self) -> bool:
        """Whether it was to give up what it held of the model, to make room for the new version."""
        return self.assigned is not None and not self.assigned


@dataclass(frozen=True, slots=True)
class View:
    """One model. `targets`: where it shall be; `leavers`: where it is and shall not. `candidates`: the versions that
    could be loaded or answer already; `wanted`: those that the policy chooses; `goal`: the newest of them, to which
    `follow: latest` goes. `mirrored`: versions to which other models' policies mirror. `size`: bytes by version.
    `stuck`: how many targets can't load what they are to have."""

    name: str
    wish: Wish
    targets: tuple[Copy, ...] = ()
    leavers: tuple[Copy, ...] = ()
    candidates: frozenset[int] = frozenset()
    wanted: frozenset[int] = frozenset()
    goal: int | None = None
    mirrored: frozenset[int] = frozenset()
    traffic: TrafficRecord | None = None
    rollout: RolloutRecord | None = None
    short: int = 0
    size: Callable[[int], float] = field(default=lambda version: 0.0, compare=False)
    stuck: int = 0

    @property
    def managed(self) -> bool:
        """Whether modelplane loads and unloads it."""
        return bool(self.wish.policy.base_path)

    @property
    def rolling(self) -> Rolling:
        """How versions are loaded, and when traffic follows."""
        rollout = self.wish.policy.rollout
        return Rolling() if isinstance(rollout, Canary) else rollout

    @property
    def present(self) -> int | None:
        """The version that answers most at present."""
        return heaviest(self.traffic.weights) if self.traffic is not None else None

    def ready(self, version: int) -> int:
        """How many of the targets are ready for it."""
        return sum(version in copy.ready for copy in self.targets)

    def able(self, version: int) -> int:
        """How many of the targets have it, or its files."""
        return sum(version in copy.on_disk | copy.ready for copy in self.targets)

    def crowded(self, copy: Copy) -> bool:
        """Whether the goal has no room there beside what the instance holds."""
        goal = self.goal
        if goal is None or not copy.usable or goal in copy.has or goal not in copy.on_disk:
            return False
        return goal not in copy.held and copy.free < self.size(goal)

    def tight(self, copy: Copy) -> bool:
        """Whether it would have room in place of what it is to replace."""
        goal = self.goal
        if goal is None or copy.assigned is None or not self.crowded(copy):
            return False
        return self.size(goal) <= copy.free + sum(self.size(version) for version in self.replaceable(copy))

    def replaceable(self, copy: Copy) -> frozenset[int]:
        """What the goal may take the place of."""
        return copy.has - self.wanted - self.wish.policy.named_versions - self.mirrored

    def excepted(self, version: int) -> int:
        """How many targets can't have the version ready: it failed there for good, or has no room."""
        return sum(
            version not in copy.ready and (version in copy.failed or (version == self.goal and self.crowded(copy)))
            for copy in self.targets
        )

    def reachable(self, version: int) -> bool:
        """Whether at least half of the targets can have it ready."""
        return 2 * (len(self.targets) - self.excepted(version)) >= len(self.targets)

    def enough(self, version: int) -> bool:
        """Whether so many targets are ready for the version that traffic may go to it."""
        share = self.rolling.switch_at
        if not self.managed:
            share = min(share, _UNMANAGED_SWITCH_AT)
        ready, rest = self.ready(version), len(self.targets) - self.excepted(version)
        return ready > 0 and self.reachable(version) and ready >= ceil(share * rest - _ROUNDING)

    def hopeless(self, version: int) -> bool:
        """Whether it failed for good wherever it could be."""
        there = [copy for copy in self.targets if copy.usable and version in copy.on_disk | copy.held]
        return not self.ready(version) and bool(there) and all(version in copy.failed for copy in there)

    def lost(self, version: int) -> bool:
        """Whether it is certain that nobody answers for this version, and nobody will soon."""
        copies = (*self.targets, *self.leavers)
        if any(version in copy.answered for copy in copies):
            return False
        return all(
            copy.gone or (copy.told and (version in copy.failed or version not in copy.on_disk | copy.held))
            for copy in copies
        )


def heaviest(weights: Mapping[int, int]) -> int:
    """The version with the largest weight, the newest of several."""
    return max(weights, key=lambda version: (weights[version], version))
