"""What /metrics says of requests by model and version. Pure: totals in, metric families out.

Invariant: it never has more than `most` versions of models, whatever the fleet holds: those asked most of late. The
others are summed as model="". Counters only grow: what a version counts while it is in the rest stays in the rest, and
it begins from 0 when it gets lines of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import nlargest

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from registry.plane_traffic import LATENCY_BOUNDS, Servable, VersionTotals, added, grown

REST: Servable = ("", None)
_FADES = 0.9
"""What remains of a version's score at each look."""
_BETTER = 2.0
"""How much busier a newcomer has to be than the one that it takes the place of."""
_STEP = 2
"""Every so many of the counted latency bounds become a bucket here: five per decade."""
_NONE = VersionTotals()


class TrafficMetrics(Collector):
    """`look` from the event loop, `collect` from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._before: dict[Servable, VersionTotals] = {}
        self._scores: dict[Servable, float] = {}
        self._own: dict[Servable, VersionTotals] = {}
        self._rest = _NONE
        self._now: tuple[tuple[Servable, VersionTotals], ...] = ()

    def look(self, totals: Mapping[Servable, VersionTotals]) -> None:
        """Take in what was counted since the start, by version; what is in progress is as of now."""
        # Of thousands of versions most are summed: plain numbers, for this runs on the event loop.
        changed = [
            (one, now, then)
            for one, now in totals.items()
            if (then := self._before.get(one, _NONE)) is not now
            and (now.requests, now.errors, now.observed) != (then.requests, then.errors, then.observed)
        ]
        self._before = dict(totals)
        scores = {one: kept for one, score in self._scores.items() if (kept := score * _FADES) > 0.01}
        for one, now, then in changed:
            more = max(0, now.requests - then.requests) + max(0, now.observed - then.observed)
            scores[one] = scores.get(one, 0.0) + more
        self._scores = scores
        self._choose([one for one, _, _ in changed])
        requests = errors = 0
        for one, now, then in changed:
            if one in self._own:
                self._own[one] = added(self._own[one], grown(now, then))
            elif now.observed != then.observed:
                self._rest = added(self._rest, grown(now, then))
            else:
                requests += max(0, now.requests - then.requests)
                errors += max(0, now.errors - then.errors)
        self._rest = replace(self._rest, requests=self._rest.requests + requests, errors=self._rest.errors + errors)
        # `grown` leaves out what is in progress, for it is no counter.
        own = {one: replace(sums, in_progress=totals.get(one, _NONE).in_progress) for one, sums in self._own.items()}
        others = sum(now.in_progress for one, now in totals.items() if one not in own)
        self._now = (*sorted(own.items(), key=_order), (REST, replace(self._rest, in_progress=others)))

    def _choose(self, new: Iterable[Servable]) -> None:
        def score(one: Servable) -> float:
            return self._scores.get(one, 0.0)

        rivals = nlargest(self._most, (one for one in new if one not in self._own), key=score)
        least = sorted(self._own, key=score, reverse=True)
        for rival in rivals:
            if len(self._own) >= self._most:
                if not least or score(rival) <= _BETTER * score(least[-1]):
                    return
                self._rest_takes(least.pop())
            self._own[rival] = _NONE

    def _rest_takes(self, one: Servable) -> None:
        # Its lines end; what they counted was told there, and is not told again in the rest.
        del self._own[one]

    def collect(self) -> Iterator[Metric]:
        """The families, as of the last look."""
        labels = ["model", "version"]
        requests = CounterMetricFamily("modelplane_model_requests", "requests sent to instances", labels=labels)
        errors = CounterMetricFamily("modelplane_model_errors", "of these, such as Envoy calls errors", labels=labels)
        flight = GaugeMetricFamily("modelplane_model_in_flight", "requests in flight", labels=labels)
        latency = HistogramMetricFamily(
            "modelplane_model_latency_seconds", "latency of observed requests, for observed models only", labels=labels
        )
        for (model, version), totals in self._now:
            values = [model, "" if version is None else str(version)]
            requests.add_metric(values, totals.requests)
            errors.add_metric(values, totals.errors)
            flight.add_metric(values, totals.in_progress)
            if totals.latency:
                latency.add_metric(values, _buckets(totals.latency), None)
        yield from (requests, errors, flight, latency)


def _buckets(latency: tuple[int, ...]) -> list[tuple[str, float]]:
    bounds = range(0, len(LATENCY_BOUNDS), _STEP)
    return [*((f"{LATENCY_BOUNDS[i]:.4g}", sum(latency[: i + 1])) for i in bounds), ("+Inf", sum(latency))]


def _order(item: tuple[Servable, VersionTotals]) -> tuple[str, int]:
    (model, version), _ = item
    return model, -1 if version is None else version
