"""The arithmetic of a benchmark. Pure; all times in seconds.

Invariant: figures of different targets are only ever compared within one round, so what slowed the machine down for a
while slowed both sides down alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from bench.errors import BenchError

PERCENTILES = (10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Run:
    """What a load generator saw in one measurement of one target."""

    requests: int
    seconds: float
    average: float
    fastest: float
    slowest: float
    percentiles: Mapping[int, float]
    codes: Mapping[str, int]
    """gRPC status code by name -> requests."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


@dataclass(frozen=True)
class Measurement:
    """A Run, and what it cost the measured Envoy: CPU seconds, None where no Envoy of ours was in the way."""

    run: Run
    cpu: float | None = None

    @property
    def cpu_per_request(self) -> float | None:
        """Envoy's CPU seconds per request."""
        return None if self.cpu is None else self.cpu / self.run.requests


@dataclass(frozen=True)
class Summary:
    """Several rounds of one target: medians, but the true extremes, and all requests counted."""

    rounds: int
    requests: int
    seconds: float
    rate: float
    average: float
    fastest: float
    slowest: float
    percentiles: Mapping[int, float]
    codes: Mapping[str, int]
    cpu_per_request: float | None = None


@dataclass(frozen=True)
class Ratio:
    """A figure of one target over another's, per round: the median, and the quartiles, between which half of the rounds
    lie. The extremes only tell what else the machine was doing."""

    median: float
    low: float
    high: float
    rounds: Sequence[float] = field(default=())

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the (sorted, non-empty) values do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def run_of(latencies: Iterable[float], seconds: float, codes: Mapping[str, int]) -> Run:
    """A Run from every single request's latency. Raises ValueError if there is none."""
    ordered = sorted(latencies)
    if not ordered:
        raise ValueError("not one request was made")
    return Run(
        requests=len(ordered),
        seconds=seconds,
        average=fmean(ordered),
        fastest=ordered[0],
        slowest=ordered[-1],
        percentiles={percent: percentile(ordered, percent) for percent in PERCENTILES},
        codes=dict(codes),
    )


def summarise(measurements: Sequence[Measurement]) -> Summary:
    """Fold the rounds of one target. Raises ValueError if there is none."""
    if not measurements:
        raise ValueError("not one round was measured")
    runs = [measurement.run for measurement in measurements]
    costs = [cost for measurement in measurements if (cost := measurement.cpu_per_request) is not None]
    codes: Counter[str] = Counter()
    for run in runs:
        codes.update(run.codes)
    return Summary(
        rounds=len(runs),
        requests=sum(run.requests for run in runs),
        seconds=sum(run.seconds for run in runs),
        rate=median(run.rate for run in runs),
        average=median(run.average for run in runs),
        fastest=min(run.fastest for run in runs),
        slowest=max(run.slowest for run in runs),
        percentiles={percent: median(run.percentiles[percent] for run in runs) for percent in PERCENTILES},
        codes=dict(codes),
        cpu_per_request=median(costs) if costs else None,
    )


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Divide round by round. Raises ValueError unless both have the same rounds, at least one, and BenchError
    for a zero below."""
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(f"{len(numerators)} rounds can't be compared with {len(denominators)}")
    if not all(denominators):
        raise BenchError("a round cost no CPU time that could be measured; measure for longer (--seconds, --requests)")
    rounds = tuple(a / b for a, b in zip(numerators, denominators, strict=True))
    ordered = sorted(rounds)
    return Ratio(median(rounds), percentile(ordered, 25), percentile(ordered, 75), rounds)
