"""What /metrics says of requests by model and version. Pure: totals in, metric families out.

Invariant: it never has more than `most` versions of models, whatever the fleet holds: those asked most of late. The
others are summed as model="". Counters only grow: what a version counts while it is in the rest stays in the rest, and
it begins from 0 when it gets lines of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

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
        before = self._before
        changed = (one for one, now in totals.items() if now != before.get(one))
        new = {one: grown(totals[one], before.get(one, _NONE)) for one in changed}
        self._before = dict(totals)
        scores = {one: kept for one, score in self._scores.items() if (kept := score * _FADES) > 0.01}
        for one, more in new.items():
            scores[one] = scores.get(one, 0.0) + more.requests + more.observed
        self._scores = scores
        self._choose(new)
        for one, more in new.items():
            if one in self._own:
                self._own[one] = added(self._own[one], more)
            else:
                self._rest = added(self._rest, more)
        # `grown` leaves out what is in progress, for it is no counter.
        own = {one: replace(sums, in_progress=totals.get(one, _NONE).in_progress) for one, sums in self._own.items()}
        others = sum(now.in_progress for one, now in totals.items() if one not in own)
        self._now = (*sorted(own.items(), key=_order), (REST, replace(self._rest, in_progress=others)))

    def _choose(self, new: Iterable[Servable]) -> None:
        def score(one: Servable) -> float:
            return self._scores.get(one, 0.0)

        rivals = sorted((one for one in new if one not in self._own), key=score, reverse=True)
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
