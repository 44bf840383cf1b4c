"""Requests per second, and how long they took, from what the control planes write of them. Pure: `now` is monotonic
seconds.

A control plane writes counters, only when they have changed, with the times between which they did. So a rate needs two
records of one run of it; the first that is seen tells none.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.plane_traffic import (
    MOST_SERVABLES,
    PlaneTraffic,
    Servable,
    TrafficSum,
    VersionTotals,
    added,
    grown,
    quantile,
)

WINDOW = 10.0
"""Seconds that are looked back."""
_SLACK = 3.0
"""Seconds that a record may come late before nothing is taken to happen any more."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one servable. `requests`, `errors`: per second; `p50`, `p99`: seconds, of those that were observed; None:
    nobody was. `totals`: since the control planes began to count."""

    requests: float
    errors: float
    p50: float | None
    p99: float | None
    totals: VersionTotals


@dataclass(slots=True)
class _Plane:
    newest: PlaneTraffic
    steps: deque[tuple[float, float, dict[Servable, VersionTotals]]] = field(default_factory=deque)
    """The time of a record, the seconds that it tells of, and what happened in them."""
    heard: float = 0.0

    def took(self) -> float:
        return sum(seconds for _, seconds, _ in self.steps)

    def silent(self, now: float) -> bool:
        # As long as the last step again, and nothing has changed.
        return not self.steps or now - self.heard > 2 * self.steps[-1][1] + _SLACK


class Rates:
    """Takes the records in, as they come."""

    def __init__(self) -> None:
        self._sum = TrafficSum()
        self._planes: dict[str, _Plane] = {}

    def apply(self, replica: str, record: PlaneTraffic | None, now: float) -> None:
        """What a control plane says now; None: it has gone."""
        self._sum.apply(replica, record)
        plane = self._planes.get(replica)
        if record is None:
            self._planes.pop(replica, None)
        elif plane is None or plane.newest.epoch != record.epoch:
            self._planes[replica] = _Plane(record, heard=now)
        elif record.at > plane.newest.at:
            before = plane.newest
            # Of a full record something was left out, whose counters are no news when they are there again.
            full = len(before.servables) >= MOST_SERVABLES
            happened = {
                one: grown(totals, before.servables.get(one, VersionTotals()))
                for one, totals in record.servables.items()
                if totals != before.servables.get(one) and (one in before.servables or not full)
            }
            plane.steps.append((record.at, record.at - max(before.at, record.since), happened))
            while plane.steps[0][0] <= record.at - WINDOW:
                plane.steps.popleft()
            plane.newest, plane.heard = record, now

    @property
    def known(self) -> bool:
        """Whether any control plane tells of requests."""
        return bool(self._planes)

    @property
    def longest_step(self) -> float:
        """Seconds between two looks of the control plane that looks most seldom; 0: not known."""
        records = [plane.newest for plane in self._planes.values()]
        return max((record.at - record.since for record in records if record.since), default=0.0)

    def usage(self, now: float) -> Mapping[Servable, Usage]:
        """Of all that the control planes tell of, the busiest first."""
        rates: defaultdict[Servable, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        seen: defaultdict[Servable, VersionTotals] = defaultdict(VersionTotals)
        for plane in self._planes.values():
            seconds = plane.took()
            if plane.silent(now) or seconds <= 0:
                continue
            for _, _, happened in plane.steps:
                for servable, more in happened.items():
                    requests, errors = rates[servable]
                    rates[servable] = requests + more.requests / seconds, errors + more.errors / seconds
                    seen[servable] = added(seen[servable], more)
        shown = {one: totals for one, totals in self._sum.all().items() if self._told_of(one)}
        found = {
            one: Usage(*rates[one], quantile(seen[one].latency, 0.5), quantile(seen[one].latency, 0.99), totals)
            for one, totals in shown.items()
        }
        return dict(sorted(found.items(), key=lambda row: (-row[1].requests, row[0][0], -(row[0][1] or 0))))

    def _told_of(self, servable: Servable) -> bool:
        return any(servable in plane.newest.servables for plane in self._planes.values())
