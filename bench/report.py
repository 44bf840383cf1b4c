"""What a benchmark prints and writes. Pure: figures in, text or JSON-able values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.figures import Measurement, Ratio, Summary, ratio, summarise
from bench.machine import Machine
from bench.messages import size_text

SHOWN_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Budget:
    """One row of the budget table: the most that `target` may cost at each size, as a ratio to the baseline."""

    title: str
    target: str
    limits: Mapping[int, float]


@dataclass
class Results:
    """All rounds: size in bytes -> target -> measurements in the order of the rounds."""

    titles: Mapping[str, str]
    """Target -> what it is, in the order of the tables."""
    measured: dict[int, dict[str, list[Measurement]]] = field(default_factory=dict)

    def add(self, size: int, target: str, measurement: Measurement) -> None:
        """One more round of one target."""
        self.measured.setdefault(size, {}).setdefault(target, []).append(measurement)

    def summary(self, size: int, target: str) -> Summary:
        """The rounds of one target."""
        return summarise(self.measured[size][target])

    def rate_ratio(self, size: int, target: str, baseline: str) -> Ratio | None:
        """Requests per second against the baseline's; None where either wasn't measured."""
        mine, other = self._rounds(size, target, baseline)
        return ratio([one.run.rate for one in mine], [one.run.rate for one in other]) if mine and other else None

    def cost_ratio(self, size: int, target: str, baseline: str) -> Ratio | None:
        """Envoy's CPU per request against the baseline's; None where either has none."""
        mine, other = self._rounds(size, target, baseline)
        costs = [one.cpu_per_request for one in mine], [one.cpu_per_request for one in other]
        known = [[cost for cost in side if cost is not None] for side in costs]
        return ratio(*known) if all(known) else None

    def _rounds(self, size: int, target: str, baseline: str) -> tuple[list[Measurement], list[Measurement]]:
        rounds = self.measured[size]
        return rounds.get(target, []), rounds.get(baseline, [])


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Columns as wide as their widest cell: the first, which is text, to the left, the figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def latency_table(results: Results, size: int) -> str:
    """What the client saw, as ghz sums it up; latencies in milliseconds."""
    percentiles = [f"p{percent}" for percent in SHOWN_PERCENTILES]
    rows = [["", "count", "req/s", "average", "fastest", "slowest", *percentiles, "status"]]
    for target in results.measured[size]:
        one = results.summary(size, target)
        latencies = [one.average, one.fastest, one.slowest, *(one.percentiles[p] for p in SHOWN_PERCENTILES)]
        status = ", ".join(f"{code} {count:,}" for code, count in sorted(one.codes.items()))
        figures = [f"{one.requests:,}", f"{one.rate:,.0f}", *map(_ms, latencies), status]
        rows.append([results.titles[target], *figures])
    return table(rows)


def cost_table(results: Results, size: int, baseline: str, direct: str) -> str:
    """Envoy's CPU and the throughput, against the baseline and the instance itself: median (quartiles)."""
    rates = [f"req/s against {other}" for other in (baseline, direct)]
    rows = [["", "Envoy's CPU per request", f"… against {baseline}", *rates]]
    for target in results.measured[size]:
        cost = results.summary(size, target).cpu_per_request
        ratios = [results.cost_ratio(size, target, baseline)]
        ratios += [results.rate_ratio(size, target, other) for other in (baseline, direct)]
        cells = ["-" if cost is None else f"{cost * 1e6:.0f} µs", *("-" if one is None else str(one) for one in ratios)]
        rows.append([results.titles[target], *cells])
    return table(rows)


def rate_table(results: Results, size: int, baseline: str) -> str:
    """The throughput alone, for Envoys whose CPU can't be seen."""
    targets = results.measured[size]
    rows = [[results.titles[target], str(results.rate_ratio(size, target, baseline))] for target in targets]
    return table([["", f"req/s against {baseline}"], *rows])


def budget_rows(results: Results, budgets: Sequence[Budget], baseline: str) -> list[dict[str, Any]]:
    """Each budget beside what was seen; `seen` is None where it wasn't measured, `limit` where there is no budget."""
    rows = []
    for budget in budgets:
        for size in results.measured:
            seen = results.cost_ratio(size, budget.target, baseline)
            rows.append(
                {
                    "what": budget.title,
                    "target": budget.target,
                    "size": size,
                    "limit": budget.limits.get(size),
                    "seen": None if seen is None else asdict(seen),
                }
            )
    return rows


def budget_table(results: Results, budgets: Sequence[Budget], baseline: str) -> str:
    """The same as text: a row per budget, two columns per size."""
    sizes = list(results.measured)
    rows = [["", *(f"{size_text(size)}{column}" for size in sizes for column in (": budget", ": seen"))]]
    for budget in budgets:
        cells = []
        for size in sizes:
            limit, seen = budget.limits.get(size), results.cost_ratio(size, budget.target, baseline)
            over = limit is not None and seen is not None and seen.median > limit
            cells.append("none" if limit is None else f"≤ {limit:.2f}")
            cells.append("-" if seen is None else f"{seen}{' OVER' if over else ''}")
        rows.append([budget.title, *cells])
    return table(rows)


def machine_lines(machine: Machine, tools: Mapping[str, str]) -> str:
    """What it ran on."""
    facts = {
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.kernel}",
        "load before": f"{machine.load_average} (anything near the number of cores spoils absolute figures)",
        **tools,
        "python": machine.python,
    }
    width = max(map(len, facts))
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in facts.items())


def document(results: Results, baseline: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for machines: each round of each target, the summaries, and the ratios. Times in seconds."""
    targets = [
        {
            "size": size,
            "target": target,
            "title": results.titles[target],
            "summary": asdict(results.summary(size, target)),
            "cpu_against_baseline": _plain(results.cost_ratio(size, target, baseline)),
            "rate_against_baseline": _plain(results.rate_ratio(size, target, baseline)),
            "rounds": [asdict(one) for one in rounds],
        }
        for size, by_target in results.measured.items()
        for target, rounds in by_target.items()
    ]
    return {**extra, "baseline": baseline, "targets": targets}


def _plain(value: Ratio | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
