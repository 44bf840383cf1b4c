"""What the comparer found since this control plane began. Invariant: the counts only grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Result:
    """Of one version; `example`: the newest difference."""

    compared: int = 0
    differed: int = 0
    example: str = ""


class Results:
    """A Tally (comparer.py) that keeps what it is told, for the statistics."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, int], Result] = {}

    @property
    def by_version(self) -> Mapping[tuple[str, int], Result]:
        """By model and version."""
        return self._results

    def compared(self, model: str, version: int, differed: bool, example: str) -> None:
        """Count one comparison."""
        before = self._results.get((model, version), Result())
        after = replace(before, compared=before.compared + 1, differed=before.differed + differed)
        self._results[model, version] = replace(after, example=example) if differed else after
