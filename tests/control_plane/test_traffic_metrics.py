"""What /metrics says of requests: bounded, and growing only."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from control_plane.extent import Convergence, Extent
from control_plane.model import Endpoint, Health, Model
from control_plane.traffic_metrics import TrafficMetrics
from registry.plane_traffic import LATENCY_BOUNDS, Servable, VersionTotals


def requests(registry: CollectorRegistry, model: str, version: str) -> float | None:
    return registry.get_sample_value("modelplane_model_requests_total", {"model": model, "version": version})


def test_ten_thousand_models_are_as_many_lines_as_asked_for() -> None:
    metrics, registry = TrafficMetrics(3), CollectorRegistry()
    registry.register(metrics)
    totals: dict[Servable, VersionTotals] = {(f"m{i}", 1): VersionTotals(requests=i) for i in range(10_000)}
    metrics.look(totals)
    (family,) = [one for one in registry.collect() if one.name == "modelplane_model_requests"]
    assert len(family.samples) == 4
    assert requests(registry, "m9999", "1") == 9999
    assert requests(registry, "", "") == sum(range(9997))


def test_a_model_that_gets_busy_gets_lines_and_the_rest_never_shrinks() -> None:
    metrics, registry = TrafficMetrics(1), CollectorRegistry()
    registry.register(metrics)
    metrics.look({("a", 1): VersionTotals(requests=10), ("b", None): VersionTotals(requests=5)})
    assert (requests(registry, "a", "1"), requests(registry, "", "")) == (10, 5)
    metrics.look({("a", 1): VersionTotals(requests=10), ("b", None): VersionTotals(requests=105, in_progress=2)})
    assert (requests(registry, "a", "1"), requests(registry, "b", ""), requests(registry, "", "")) == (None, 100, 5)
    assert registry.get_sample_value("modelplane_model_in_flight", {"model": "b", "version": ""}) == 2


def test_latency_is_cumulative_buckets() -> None:
    metrics, registry = TrafficMetrics(1), CollectorRegistry()
    registry.register(metrics)
    latency = (1,) * (len(LATENCY_BOUNDS) + 1)
    metrics.look({("a", 1): VersionTotals(requests=1, observed=sum(latency), latency=latency)})
    (family,) = [one for one in registry.collect() if one.name == "modelplane_model_latency_seconds"]
    values = [sample.value for sample in family.samples]
    assert values == sorted(values)
    assert values[-1] == sum(latency)
    assert family.samples[-1].labels["le"] == "+Inf"


def test_the_extent_follows_changes() -> None:
    extent = Extent()
    one, two = Endpoint("a", "10.0.0.1", 1), Endpoint("b", "10.0.0.2", 1, health=Health.DRAINING)
    extent.update(["m"], {"m": Model("m", ((1, (one,)), (2, (one, two))), 2, False)})
    assert (extent.versions, extent.endpoints[Health.READY], extent.endpoints[Health.DRAINING]) == (2, 2, 1)
    extent.update(["m"], {})
    assert (extent.versions, sum(extent.endpoints.values())) == (0, 0)


def test_convergence_is_timed_once_and_not_for_what_was_there_before() -> None:
    course = Convergence()
    course.received(5, 0.0)
    course.received(7, 1.0)
    course.received(7, 2.0)
    assert course.converged(6, 3.0) == []
    assert course.converged(7, 3.0) == [2.0]
    assert course.converged(7, 4.0) == []
    course.received(9, 5.0)
    course.received(2, 6.0)
    assert course.converged(9, 7.0) == []


def test_what_came_while_nobody_was_connected_is_not_timed() -> None:
    course = Convergence()
    course.received(5, 0.0, connected=False)
    course.received(6, 1.0, connected=False)
    course.received(7, 30.0)
    assert course.converged(7, 31.0) == [1.0]
