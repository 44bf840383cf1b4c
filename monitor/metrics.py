"""What a monitor counts, for its own small HTTP listener. Invariant: no line is per model, so a scrape is as small with
10,000 models as with one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from monitor.core import MonitorCore
from monitor.errors import MonitorError
from registry.addresses import split_address
from registry.leased import LeasedKeys
from registry.records import Proof, ServableState


class MonitorMetrics(Collector):
    """Of all instances of one monitor together: one, or in discovery mode one for each container. `collect` comes from
    another thread: it reads numbers, and copies of what may change.

    Invariant: no counter goes back when an instance goes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followed: dict[MonitorCore, LeasedKeys] = {}
        self._past = _Counts()
        """What was counted for instances that are not followed any more."""
        self.drains: Counter[bool] = Counter()
        """Ends of the drain before an instance's end, by whether nothing was in flight."""

    @contextmanager
    def following(self, core: MonitorCore, leased: LeasedKeys) -> Iterator[None]:
        """From the instance's claim to its end: what it is made of."""
        with self._lock:
            self._followed[core] = leased
        try:
            yield
        finally:
            with self._lock:
                del self._followed[core]
                self._past.add(core, leased)

    def collect(self) -> Iterator[Metric]:
        """All families; nothing but zeros before any instance is claimed."""
        states, conditions, held = Counter[str](), Counter[str](), 0
        with self._lock:
            counts = replace(self._past, probes=self._past.probes.copy())
            for core, leased in self._followed.items():
                counts.add(core, leased)
                states += core.states()
                conditions += core.conditions()
                held += leased.held
        versions = GaugeMetricFamily("modelplane_monitor_versions", "versions of models, by state", labels=["state"])
        for state in sorted({*(one.value for one in ServableState if one is not ServableState.END), *states, "READY"}):
            versions.add_metric([state], states[state])
        troubles = GaugeMetricFamily(
            "modelplane_monitor_conditions", "troubles of instances that have a name, by name", labels=["condition"]
        )
        for condition, count in sorted(conditions.items()):
            troubles.add_metric([condition], count)
        probes = CounterMetricFamily("modelplane_monitor_probes", "probes that ended, by result", labels=["result"])
        for proof in Proof:
            probes.add_metric([proof.value], counts.probes[proof])
        drains = CounterMetricFamily("modelplane_monitor_drains", "drains at the end, by outcome", labels=["outcome"])
        for drained, outcome in ((True, "drained"), (False, "given_up")):
            drains.add_metric([outcome], self.drains[drained])
        yield from (versions, troubles, probes, drains)
        for name, text, value in (
            ("lease_renewals", "renewals of the leases in etcd", counts.renewals),
            ("leases_lost", "leases granted in place of lost ones", counts.regrants),
            ("reconnects", "times that a server answered again", counts.reconnects),
        ):
            yield CounterMetricFamily(f"modelplane_monitor_{name}", text, value=value)
        yield GaugeMetricFamily("modelplane_monitor_lease_held", "leases that are alive, one per instance", value=held)


@dataclass(slots=True)
class _Counts:
    probes: Counter[Proof] = field(default_factory=Counter)
    renewals: int = 0
    regrants: int = 0
    reconnects: int = 0

    def add(self, core: MonitorCore, leased: LeasedKeys) -> None:
        self.probes += core.probes
        self.renewals += leased.renewals
        self.regrants += leased.regrants
        self.reconnects += core.reconnects


@contextmanager
def served(listen: str, metrics: MonitorMetrics) -> Iterator[None]:
    """Serve /metrics on HOST:PORT; nothing if that is empty. Raises MonitorError if it can't be listened on."""
    if not listen:
        yield
        return
    registry = CollectorRegistry()
    registry.register(metrics)
    host, port = split_address(listen)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise MonitorError(f"--metrics-listen {listen}: can't be listened on: {error.strerror or error}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
