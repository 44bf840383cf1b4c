"""A figure beside its budget. Pure.

Invariant: a figure is the median of all its rounds, and is shown with the two extremes; the budget is held against the
median, except for percentiles, which are of all rounds together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.report import table

_FORMATS = {
    "s": "{:.2f} s",
    "ms": "{:.2f} ms",
    "MiB": "{:.0f} MiB",
    "KiB": "{:,.0f} KiB",
    "B": "{:,.0f} B",
    "": "{:.2f}",
}


@dataclass(frozen=True)
class Figure:
    """`rounds`: what each round gave, in `unit`; `limit`: the budget in the same unit, None where there is none.
    `between`: what to say instead of the extremes."""

    what: str
    rounds: Sequence[float]
    unit: str
    limit: float | None = None
    between: str = ""

    @property
    def seen(self) -> float:
        """The median."""
        return median(self.rounds)

    @property
    def over(self) -> bool:
        """Whether the budget is exceeded."""
        return self.limit is not None and self.seen > self.limit

    def row(self) -> list[str]:
        """Cells of `figures_table`."""
        spell = _FORMATS[self.unit].format
        extremes = f"{spell(min(self.rounds))} – {spell(max(self.rounds))}" if len(self.rounds) > 1 else ""
        budget = "none" if self.limit is None else f"≤ {spell(self.limit)}"
        verdict = "" if self.limit is None else "OVER" if self.over else "under"
        return [self.what, spell(self.seen), self.between or extremes, budget, verdict]


def figures_table(figures: Sequence[Figure]) -> str:
    """A row per figure."""
    return table([["", "median", "between", "budget", ""], *(figure.row() for figure in figures)])


def rows(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [{**asdict(figure), "seen": figure.seen, "over": figure.over} for figure in figures]
