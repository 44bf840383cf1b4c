"""What a monitor counts, for its own small HTTP listener. Invariant: no line is per model, so a scrape is as small with
10,000 models as with one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

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
    """Of one instance. `collect` comes from another thread: it reads numbers, and copies of what may change."""

    def __init__(self) -> None:
        self._core: MonitorCore | None = None
        self._leased: LeasedKeys | None = None
        self.drains: Counter[bool] = Counter()
        """Ends of the drain before the instance's end, by whether nothing was in flight."""

    def follow(self, core: MonitorCore, leased: LeasedKeys) -> None:
        """The instance is claimed: this is what it is made of."""
        self._core, self._leased = core, leased

    def collect(self) -> Iterator[Metric]:
        """All families, of an instance that isn't claimed yet with nothing but zeros."""
        core, leased = self._core, self._leased
        states = core.states() if core is not None else Counter()
        versions = GaugeMetricFamily("modelplane_monitor_versions", "versions of models, by state", labels=["state"])
        for state in sorted({*(one.value for one in ServableState if one is not ServableState.END), *states, "READY"}):
            versions.add_metric([state], states[state])
        probes = CounterMetricFamily("modelplane_monitor_probes", "probes that ended, by result", labels=["result"])
        for proof in Proof:
            probes.add_metric([proof.value], core.probes[proof] if core is not None else 0)
        drains = CounterMetricFamily("modelplane_monitor_drains", "drains at the end, by outcome", labels=["outcome"])
        for drained, outcome in ((True, "drained"), (False, "given_up")):
            drains.add_metric([outcome], self.drains[drained])
        yield from (versions, probes, drains)
        for name, text, value in (
            ("lease_renewals", "renewals of the lease in etcd", leased.renewals if leased is not None else 0),
            ("leases_lost", "leases granted in place of lost ones", leased.regrants if leased is not None else 0),
            ("reconnects", "times that the server answered again", core.reconnects if core is not None else 0),
        ):
            yield CounterMetricFamily(f"modelplane_monitor_{name}", text, value=value)
        held = leased is not None and leased.held
        yield GaugeMetricFamily("modelplane_monitor_lease_held", "1 while the lease is alive", value=float(held))


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
