"""Notices that this process stood still: it was stopped and went on, its machine was suspended, or its loop blocked.

Invariant: whoever asks `stood_still` first after a gap of more than LONGEST seconds is told so, before anything that
was learned before the gap is taken for new. The wall clock has no part in it: it may jump as it likes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TICK = 0.25
LONGEST = 1.0
"""Seconds between two wake-ups that are no gap; a busy machine delays ours by some tenths."""


def running_clock() -> float:
    """Seconds that go on while the machine is suspended, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Standstill:
    """Ask at least every TICK seconds, and before anything old could be taken for new."""

    def __init__(self, clock: Callable[[], float] = running_clock) -> None:
        self._clock = clock
        self._last = clock()

    def stood_still(self) -> float:
        """The length of a gap that ended just now, in seconds; 0: there was none."""
        last, self._last = self._last, self._clock()
        gap = self._last - last
        return gap if gap > LONGEST else 0.0
