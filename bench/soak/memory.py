"""Physical memory of every long-lived process, and whether it grows. A process that is started again begins a new
series. etcd is shown and not judged: its garbage is collected every half minute at this load, and until the heap has
its size it looks like a leak for longer than a member lives here. Linux: /proc/PID/status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.churn.memory import resident

SETTLED = 1 / 3
"""The share of a series that is left out: caches fill, allocators find their size."""
JUDGED = 100.0
"""Seconds after that which a series must last to be judged."""
SLOPE = 1.0
"""MiB a minute that a process may grow by; and who grows more is still flat if its whole growth is below GROWTH."""
GROWTH = 0.05


@dataclass
class Series:
    """One process: its samples as (seconds, MiB)."""

    name: str
    pid: int
    samples: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.samples[-1][0] - self.samples[0][0] if self.samples else 0.0

    @property
    def settled(self) -> list[tuple[float, float]]:
        """The samples after the first third."""
        return self.samples[int(len(self.samples) * SETTLED) :]

    @property
    def judged(self) -> bool:
        """Whether it is one to judge, and long enough to say anything."""
        return bool(self.samples) and not self.name.startswith("etcd") and self.seconds * (1 - SETTLED) >= JUDGED

    @property
    def slope(self) -> float:
        """MiB a minute, by least squares over the settled samples."""
        points = self.settled
        if len(points) < 2:
            return 0.0
        middle = sum(at for at, _ in points) / len(points), sum(mib for _, mib in points) / len(points)
        spread = sum((at - middle[0]) ** 2 for at, _ in points)
        return 60 * sum((at - middle[0]) * (mib - middle[1]) for at, mib in points) / spread if spread else 0.0

    @property
    def flat(self) -> bool:
        points = self.settled
        if not self.judged or self.slope <= SLOPE:
            return True
        return self.slope * (points[-1][0] - points[0][0]) / 60 <= GROWTH * points[0][1]


class Memory:
    """Samples once a second whatever `processes` names (name -> pid) at that moment."""

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes
        self._series: dict[tuple[str, int], Series] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.sample(time.monotonic())
            await asyncio.sleep(1)

    def sample(self, now: float) -> None:
        for name, pid in self._processes().items():
            try:
                mib = resident(pid)
            except (OSError, ValueError):  # it is dead, or about to be
                continue
            self._series.setdefault((name, pid), Series(name, pid)).samples.append((now, mib))

    def by_name(self) -> dict[str, list[Series]]:
        """The series of each name, oldest first."""
        found: dict[str, list[Series]] = {}
        for series in self._series.values():
            found.setdefault(series.name, []).append(series)
        return dict(sorted(found.items()))

    @property
    def growing(self) -> list[Series]:
        return [series for series in self._series.values() if not series.flat]
