"""The mass-expiry guard: what holds suspects, checks them, and tells people of it.

Invariant: what is told is the catalog's own state; a line is logged where something begins or ends, not in between.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from control_plane.catalog import Catalog
from control_plane.metrics import Metrics
from control_plane.suspect_checks import SuspectChecks, Target
from control_plane.suspects import Hold, SuspectPolicy, Suspicion, Verdict

log = logging.getLogger(__name__)

_SHOWN = 5
_GUARDED = frozenset({Hold.AWAY, Hold.NOT_EVIDENT, Hold.BULK, Hold.LAST})
"""Reasons beyond one instance's own grace time and its own answers."""


def names(found: Sequence[str]) -> str:
    """A few of them."""
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def suspects(catalog: Catalog, now: float, at: float) -> list[dict[str, Any]]:
    """The suspects as JSON, by name. `now`: monotonic; `at`: the same moment in seconds since the epoch."""
    keys = catalog.suspect_keys
    rows = []
    for one in sorted(catalog.suspicions(now), key=lambda one: one.instance):
        address = catalog.address(one.instance)
        held = keys.get(one.instance, frozenset())
        rows.append(
            {
                "instance": one.instance,
                "address": f"{address.address}:{address.grpc_port}" if address else "",
                "servables": len(held),
                "models": sorted({key.model for key in held})[:_SHOWN],
                "since": at - (now - one.since),
                "seconds": round(now - one.since, 3),
                "held": str(one.hold),
                "until": None if one.until is None else at + one.until - now,
                "check": one.verdict.value,
                "detail": one.detail,
            }
        )
    return rows


@dataclass(slots=True)
class GuardLog:
    """Says once that suspects are held, and once that it is over."""

    _since: float | None = None
    _seen: set[str] = field(default_factory=set)
    _dead: frozenset[str] = frozenset()

    def lines(self, found: Sequence[Suspicion], instances: Set[str], now: float) -> list[str]:
        """What to log, given the suspects now and the instances that hold their leases."""
        lines = []
        current = {one.instance for one in found}
        new = sorted(current - self._seen)
        if new:
            lines.append(
                f"{names(new)}: lease lost, used on under suspicion ({len(current)} instances are, "
                f"{len(instances)} hold their leases; {_held(found)})"
            )
            self._since = now if self._since is None else self._since
        dead = frozenset(one.instance for one in found if one.verdict is Verdict.DEAD)
        if lost := sorted(dead - self._dead):
            lines.append(f"{names(lost)}: fails its checks; sent nothing new where another instance answers")
        if back := sorted((self._dead - dead) & current):
            lines.append(f"{names(back)}: answers its checks again")
        self._dead = dead
        self._seen |= current
        if self._since is not None and not current:
            returned = len(self._seen & instances)
            lines.append(
                f"no lease is in doubt any more after {now - self._since:.1f} s: of {len(self._seen)} suspects "
                f"{returned} came back, {len(self._seen) - returned} were given up"
            )
            self._since, self._seen = None, set()
        return lines


def _held(found: Sequence[Suspicion]) -> str:
    counts: Mapping[Hold | None, int] = Counter(one.hold for one in found)
    return ", ".join(f"{count} for: {hold}" for hold, count in counts.items())


class Guard:
    """The checks of suspects, and their state for page, metrics and log. `run` works until cancelled."""

    def __init__(
        self,
        catalog: Catalog,
        policy: SuspectPolicy,
        on_verdicts: Callable[[Mapping[str, tuple[Verdict, str]]], None],
        clock: Callable[[], float],
    ) -> None:
        self._catalog, self._policy, self._clock = catalog, policy, clock
        self._checks = SuspectChecks(policy, self._targets, self._control, on_verdicts)
        self._log = GuardLog()

    async def run(self) -> None:
        """Check suspects, while there are any."""
        if self._policy.checks:
            await self._checks.run()

    def look(self, metrics: Metrics) -> None:
        """The catalog may have changed: log and count it."""
        found = self._catalog.suspicions(self._clock())
        for line in self._log.lines(found, self._catalog.instances, self._clock()):
            log.warning("%s", line)
        if found:
            self._checks.stir()
        metrics.suspects.set(len(found))
        metrics.dead_suspects.set(sum(one.verdict is Verdict.DEAD for one in found))
        metrics.guard.set(any(one.hold in _GUARDED for one in found))

    def page(self) -> dict[str, Any]:
        """What /guard says."""
        now = self._clock()
        rows = suspects(self._catalog, now, time.time())
        return {
            "active": any(one.hold in _GUARDED for one in self._catalog.suspicions(now)),
            "instances": len(self._catalog.instances),
            "suspects": rows,
        }

    def _targets(self) -> list[Target]:
        keys = self._catalog.suspect_keys
        # Who is back has a monitor of its own to tell of it.
        found = (self._target(one, min(keys[one], key=str).model) for one in keys.keys() - self._catalog.instances)
        return [target for target in found if target is not None]

    def _control(self) -> Target | None:
        found = (self._target(one, "") for one in self._catalog.instances - self._catalog.suspects)
        return next((target for target in found if target is not None), None)

    def _target(self, instance: str, model: str) -> Target | None:
        address = self._catalog.address(instance)
        return Target(instance, address.address, address.grpc_port, model) if address else None
