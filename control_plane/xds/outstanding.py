"""The registry revisions of which something is still outstanding on a stream, and the lowest of them.

Invariant: `lowest()` is the minimum of what was added and not yet discarded. Logarithmic in the number of different
revisions, whatever the number of resources.
"""

from __future__ import annotations

from heapq import heappop, heappush


class Outstanding:
    """A multiset of revisions."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._heap: list[int] = []
        self._total = 0

    def add(self, revision: int) -> None:
        """Something of this revision is outstanding."""
        count = self._counts.get(revision)
        if count is None:
            heappush(self._heap, revision)
        self._counts[revision] = (count or 0) + 1
        self._total += 1

    def discard(self, revision: int) -> None:
        """One of what `add` said is done."""
        self._counts[revision] -= 1
        self._total -= 1

    def lowest(self) -> int | None:
        """The lowest revision of which something is outstanding, or None."""
        # A count of 0 keeps its place in the heap until it surfaces, so no revision is in there twice.
        while self._heap and not self._counts[self._heap[0]]:
            del self._counts[heappop(self._heap)]
        return self._heap[0] if self._heap else None

    def __len__(self) -> int:
        return self._total
