"""What a control plane counts, in a collector registry of its own: nothing global, so a process may hold several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """One replica's metrics; read by /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        gauge, counter = self._gauge, self._counter
        self.registry_connected = gauge("registry_connected", "1 while etcd answers")
        self.registry_revision = gauge("registry_revision", "newest etcd revision with a consequence for Envoy")
        self.converged_revision = gauge("converged_revision", "newest revision that every connected Envoy acknowledged")
        self.models = gauge("models", "models known")
        self.instances = gauge("instances", "instances that hold their leases")
        self.suspects = gauge("suspect_instances", "instances whose leases are lost and that are used all the same")
        self.draining = gauge("draining_instances", "instances that take no new requests")
        self.envoys = gauge("envoys", "connected xDS streams")
        self.resources = gauge("resources", "resources held, by type", "type")
        self.responses = counter("xds_responses", "responses sent to Envoys, by type", "type")
        self.resources_sent = counter("xds_resources_sent", "resources and removals sent to Envoys, by type", "type")
        self.acks = counter("xds_acks", "responses acknowledged, by type", "type")
        self.nacks = counter("xds_nacks", "responses refused, by type", "type")

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"modelplane_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"modelplane_{name}", text, labels, registry=self.registry)
