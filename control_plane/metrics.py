"""What a control plane counts, in a collector registry of its own: nothing global, so a process may hold several."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from control_plane.comparing.comparer import OUTCOMES
from control_plane.extent import Extent
from control_plane.leader import Figures
from control_plane.model import Health
from control_plane.traffic_metrics import TrafficMetrics
from control_plane.xds.events import short_type
from control_plane.xds.subscription import Counters
from registry.rollouts import Phase

_TOTALS = {
    "responses": "responses sent to Envoys",
    "sent": "resources sent to Envoys",
    "removed": "removals sent to Envoys",
    "acked": "responses that Envoys acknowledged",
    "nacked": "responses that Envoys refused",
}


class _Totals(Collector):
    """The streams' totals, as the event loop left them last: a scrape comes from another thread."""

    def __init__(self) -> None:
        self.now: Mapping[str, Counters] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        now = self.now
        for name, text in _TOTALS.items():
            family = CounterMetricFamily(f"modelplane_xds_{name}", f"{text}, by type", labels=["type"])
            for type_url, counters in sorted(now.items()):
                family.add_metric([short_type(type_url)], getattr(counters, name))
            yield family


class _Rollouts(Collector):
    """Models by the phase of their rollouts, where this control plane leads. A scrape comes from another thread."""

    def __init__(self) -> None:
        self.figures = Figures()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        phases = collections.Counter(record.phase for record in list(self.figures.rollouts.values()))
        family = GaugeMetricFamily("modelplane_rollouts", "models by the phase of their rollout", labels=["phase"])
        for phase in Phase:
            family.add_metric([phase.value], phases[phase])
        yield family


class Metrics:
    """One replica's metrics; read by /metrics."""

    def __init__(self, models: int = 200) -> None:
        """`models`: how many versions of models have lines of their own."""
        self.registry = CollectorRegistry()
        self.traffic = TrafficMetrics(models)
        self.registry.register(self.traffic)
        self._totals = _Totals()
        self.registry.register(self._totals)
        self._rollouts = _Rollouts()
        self.registry.register(self._rollouts)
        gauge = self._gauge
        self.registry_connected = gauge("registry_connected", "1 while etcd answers")
        self.registry_revision = gauge("registry_revision", "newest etcd revision with a consequence for Envoy")
        self.converged_revision = gauge("converged_revision", "newest revision that every connected Envoy acknowledged")
        self.models = gauge("models", "models known")
        self._versions = gauge("versions", "versions of models known")
        self._endpoints = gauge("endpoints", "endpoints known, by state", "state")
        self.convergence = Histogram(
            "modelplane_convergence_seconds",
            "from the receipt of a registry revision to the last connected Envoy's acknowledgement",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self.instances = gauge("instances", "instances that hold their leases")
        self.suspects = gauge("suspect_instances", "instances whose leases are lost and that are used all the same")
        self.dead_suspects = gauge("dead_suspect_instances", "suspects that fail their checks")
        self.guard = gauge("guard_active", "1 while instances are used whose leases were lost in bulk or for too long")
        self._leads = gauge("leads", "1 while this control plane is the one that carries out policies")
        self._planned = gauge("planned_models", "models planned since the start, each time they were")
        self._plan_writes = gauge("plan_writes", "transactions written as the leader")
        self._plan_seconds = gauge("plan_seconds", "seconds spent in planning")
        self._waiting = gauge("waiting_models", "models that find no instance with the room and the files")
        self.draining = gauge("draining_instances", "instances that drain, as a whole or one of their versions")
        self.envoys = gauge("envoys", "connected xDS streams")
        self.away = gauge("away_envoys", "Envoys that no control plane has and that drains wait for")
        self.resources = gauge("resources", "resources held, by type", "type")
        self.comparisons = Counter(
            "modelplane_comparisons",
            "requests copied here to compare answers, by outcome",
            ("outcome",),
            registry=self.registry,
        )
        # A rate is known from the second reading on: the first must not be that of the first comparison.
        for outcome in OUTCOMES:
            self.comparisons.labels(outcome)
        self.quarantined = gauge("quarantined_resources", "resources that Envoys refuse, by type", "type")

    def streams(self, totals: Mapping[str, Counters]) -> None:
        """What the streams have counted so far, by type URL."""
        self._totals.now = totals

    def extent(self, extent: Extent) -> None:
        """How large the catalog is."""
        self._versions.set(extent.versions)
        for health in Health:
            self._endpoints.labels(health.value).set(extent.endpoints[health])

    def leading(self, figures: Figures) -> None:
        """What this replica does as the leader, read anew by each scrape."""
        self._rollouts.figures = figures
        self._leads.set_function(lambda: figures.leads)
        self._planned.set_function(lambda: figures.planned)
        self._plan_writes.set_function(lambda: figures.writes)
        self._plan_seconds.set_function(lambda: figures.seconds)
        self._waiting.set_function(lambda: figures.waiting)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"modelplane_{name}", text, labels, registry=self.registry)
