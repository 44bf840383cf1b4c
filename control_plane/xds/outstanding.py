"""The moments of which something is still outstanding on a stream, and the lowest of them.

Invariant: `lowest()` is the minimum of what was added and not yet discarded. Logarithmic in the number of different
moments, whatever the number of resources; memory in proportion to the moments that are outstanding now.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from control_plane.xds.table import Moment

_SLACK = 16


class Outstanding:
    """A multiset of moments."""

    def __init__(self) -> None:
        self._counts: dict[Moment, int] = {}
        self._heap: list[Moment] = []
        self._total = 0

    def add(self, moment: Moment) -> None:
        """Something of this moment is outstanding."""
        count = self._counts.get(moment, 0)
        if not count:
            heappush(self._heap, moment)
        self._counts[moment] = count + 1
        self._total += 1

    def discard(self, moment: Moment) -> None:
        """One of what `add` said is done."""
        self._total -= 1
        count = self._counts[moment] - 1
        if count:
            self._counts[moment] = count
            return
        del self._counts[moment]
        # One refused resource can stay the lowest for hours, while others come and go above it in the heap.
        if len(self._heap) > 2 * len(self._counts) + _SLACK:
            self._heap = list(self._counts)
            heapify(self._heap)

    def lowest(self) -> Moment | None:
        """The lowest moment of which something is outstanding, or None."""
        while self._heap and self._heap[0] not in self._counts:
            heappop(self._heap)
        return self._heap[0] if self._heap else None

    def __len__(self) -> int:
        return self._total
