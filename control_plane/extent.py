"""How large the catalog is, and how long it takes until every Envoy has what the registry said. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping

from control_plane.model import Health, Model

_MOST_PENDING = 10_000


class Extent:
    """Versions, and endpoints by state. An update costs what it changes, never the number of models."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[int, Counter[Health]]] = {}
        self.versions = 0
        self.endpoints: Counter[Health] = Counter()

    def update(self, changed: Iterable[str], models: Mapping[str, Model]) -> None:
        """Look at these models anew."""
        for name in changed:
            versions, endpoints = self._parts.pop(name, (0, Counter()))
            self.versions -= versions
            self.endpoints.subtract(endpoints)
            model = models.get(name)
            if model is not None:
                states = Counter(endpoint.health for _, endpoints in model.versions for endpoint in endpoints)
                self._parts[name] = len(model.versions), states
                self.versions += len(model.versions)
                self.endpoints.update(states)


class Convergence:
    """From the receipt of a revision here to the last client's acknowledgement. Times in monotonic seconds."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, float]] = deque(maxlen=_MOST_PENDING)
        self._newest = 0

    def received(self, revision: int, now: float, connected: bool = True) -> None:
        """The registry is at this revision. The first one is what was there before, and isn't timed; nor is what came
        while nobody was `connected`, for it would be the time until somebody was."""
        if revision < self._newest:
            # A wiped etcd counts from the beginning again.
            self._pending.clear()
        elif connected and revision > self._newest > 0:
            self._pending.append((revision, now))
        self._newest = revision

    def converged(self, revision: int, now: float) -> list[float]:
        """Everybody has acknowledged this revision: the seconds that each one took which is over with it."""
        found = []
        while self._pending and self._pending[0][0] <= revision:
            found.append(now - self._pending.popleft()[1])
        return found
