"""Who runs, who is restarted when, and in which order all of it stops. Pure: events and `now` in, actions out.

Invariants: a child is never started while it runs or once stopping has begun; a stage is told to end only when nothing
of the stages before it runs; every wait has a deadline, so stopping ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Start:
    """Start the child now."""

    name: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the child to end (SIGTERM); it may take its time."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the child (SIGKILL)."""

    name: str


Action: TypeAlias = Start | Terminate | Kill


class Phase(Enum):
    """Where a child is in its life."""

    RUNNING = "running"
    BACKOFF = "waiting to be restarted"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a restart, in seconds: `first`, doubled each time up to `longest`, and `first` again
    after a life of `healthy`."""

    first: float = 0.5
    longest: float = 30.0
    healthy: float = 60.0


@dataclass(slots=True)
class _Child:
    stage: int
    grace: float
    phase: Phase = Phase.RUNNING
    since: float = 0.0
    failures: int = 0
    deadline: float = field(default=float("inf"))


class Supervisor:
    """The children's lives. Times are seconds of one monotonic clock."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._children: dict[str, _Child] = {}
        self.stopping = False

    @property
    def phases(self) -> Mapping[str, Phase]:
        """Every child's phase."""
        return {name: child.phase for name, child in self._children.items()}

    @property
    def done(self) -> bool:
        """Whether stopping was asked for and nothing runs any more."""
        return self.stopping and not self._alive()

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The children that have been told to end and haven't."""
        return tuple(name for name, child in self._children.items() if child.phase is Phase.ENDING)

    def add(self, name: str, *, stage: int, grace: float, now: float) -> list[Action]:
        """Take a child in and start it. Stages end in ascending order; `grace` is the time from SIGTERM to SIGKILL."""
        if self.stopping:
            return []
        if name in self._children:
            raise ValueError(f"there is a child {name!r} already")
        self._children[name] = _Child(stage, grace, since=now)
        return [Start(name)]

    def ended(self, name: str, now: float) -> list[Action]:
        """A child's process is gone, whoever wanted that."""
        child = self._children[name]
        if self.stopping:
            child.phase, child.deadline = Phase.ENDED, float("inf")
            return self.tick(now)
        child.failures = 1 if now - child.since >= self._backoff.healthy else child.failures + 1
        child.phase = Phase.BACKOFF
        wait: float = min(self._backoff.first * 2.0 ** min(child.failures - 1, 30), self._backoff.longest)
        child.deadline = now + wait
        return []

    def restart_in(self, name: str, now: float) -> float | None:
        """Seconds until a child is started again; None if it isn't waiting for that."""
        child = self._children[name]
        return max(0.0, child.deadline - now) if child.phase is Phase.BACKOFF else None

    def stop(self, now: float) -> list[Action]:
        """End everything, stage by stage. Asked for a second time: everything left at once, with little patience."""
        if self.stopping:
            return self._hasten(now)
        self.stopping = True
        for child in self._children.values():
            if child.phase is Phase.BACKOFF:
                child.phase, child.deadline = Phase.ENDED, float("inf")
        return self.tick(now)

    def _hasten(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for name, child in self._alive().items():
            child.phase, child.deadline = Phase.ENDING, min(child.deadline, now + 2.0)
            actions.append(Terminate(name))
        return actions

    def tick(self, now: float) -> list[Action]:
        """What is due at `now`."""
        if not self.stopping:
            return [self._restart(name, now) for name in self._due(Phase.BACKOFF, now)]
        actions: list[Action] = []
        for name in self._due(Phase.ENDING, now):
            # Once is enough, but a kernel that can't end it at once mustn't make us spin.
            self._children[name].deadline = now + 5.0
            actions.append(Kill(name))
        alive = self._alive()
        first = min((child.stage for child in alive.values()), default=0)
        for name, child in alive.items():
            if child.stage == first and child.phase is Phase.RUNNING:
                child.phase, child.deadline = Phase.ENDING, now + child.grace
                actions.append(Terminate(name))
        return actions

    def next_deadline(self) -> float | None:
        """When to call `tick` next; None if only events matter."""
        nearest = min((child.deadline for child in self._children.values()), default=float("inf"))
        return None if nearest == float("inf") else nearest

    def _restart(self, name: str, now: float) -> Start:
        child = self._children[name]
        child.phase, child.since, child.deadline = Phase.RUNNING, now, float("inf")
        return Start(name)

    def _due(self, phase: Phase, now: float) -> list[str]:
        return [name for name, child in self._children.items() if child.phase is phase and child.deadline <= now]

    def _alive(self) -> dict[str, _Child]:
        return {name: child for name, child in self._children.items() if child.phase in (Phase.RUNNING, Phase.ENDING)}
