"""What one change costs, counted in calls, bytes and memory, not in seconds: a busy machine changes nothing."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest

from bench.xds.client import Request, Response, first_request, later_requests
from bench.xds.fleet import Fleet
from control_plane.catalog import Catalog
from control_plane.pipeline import Pipeline
from control_plane.resources.settings import DataPlaneSettings
from control_plane.xds.delta import DeltaStream
from control_plane.xds.table import ResourceTable
from registry.follow import Changes, Snapshot
from registry.keys import Keyspace

SIZES = (10, 1000)
STREAMS = 3
_NOW = 100.0


@dataclass(frozen=True)
class Cost:
    """`resources` that the change touched, `sent` bytes to each stream, `calls` of Python and C functions, and the
    most `memory` in bytes that was in use meanwhile beyond what had been: copying something large would show."""

    resources: int
    sent: tuple[int, ...]
    calls: int
    memory: int


class Plane:
    """All of a control plane but its I/O, with streams of Envoys that hold everything."""

    def __init__(self, models: int) -> None:
        self.fleet = Fleet(models)
        self.table = ResourceTable()
        self.pipeline = Pipeline(Catalog(Keyspace()), self.table, DataPlaneSettings())
        # Another one for each size, and with it other values: what one plane has read the next would find in a cache.
        self.revision = 1000 + models
        self.pipeline.apply(Snapshot(self.revision, {put.key: put.value for put in self.fleet.puts()}), _NOW)
        held = {
            type_url: {name: entry.resource.version for name, entry in self.table.entries(type_url).items()}
            for type_url in self.table.types()
        }
        self.streams = [self._connected(f"envoy-{number}", held) for number in range(STREAMS)]

    def _connected(self, node: str, held: dict[str, dict[str, str]]) -> DeltaStream:
        stream = DeltaStream(self.table, _NOW)
        for raw in (first_request(node, held), *later_requests(held)):
            stream.receive(Request.FromString(raw), _NOW)
            assert stream.outgoing(_NOW) == [], "it has everything"
        assert stream.converged_revision(_NOW) == self.table.revision
        return stream

    def change(self, number: int) -> tuple[int, tuple[int, ...]]:
        """One endpoint's weight is another; every stream gets it and acknowledges."""
        self.revision += 1
        put = self.fleet.ready(number, self.fleet.instances_of(number)[0], capacity=100 + self.revision % 900)
        change = self.pipeline.apply(Changes(self.revision, {put.key: put.value}, frozenset()), _NOW)
        sent = []
        for stream in self.streams:
            assert stream.notice(change, _NOW)
            (raw,) = stream.outgoing(_NOW)
            sent.append(len(raw))
            response = Response.FromString(raw)
            stream.receive(Request(type_url=response.type_url, response_nonce=response.nonce), _NOW)
            assert stream.outgoing(_NOW) == []
            assert stream.converged_revision(_NOW) == self.revision
        return len(change.changes), tuple(sent)

    def cost(self, number: int) -> Cost:
        """The same, counted."""
        (resources, sent), calls = counting_calls(lambda: self.change(number))
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        self.change(number)
        memory = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return Cost(resources, sent, calls, memory)


def counting_calls(step: Callable[[], Any]) -> tuple[Any, int]:
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        result = step()
    finally:
        sys.setprofile(None)
    return result, calls


@pytest.fixture(scope="module")
def costs() -> dict[int, Cost]:
    costs = {}
    for size in SIZES:
        plane = Plane(size)
        for _ in range(3):  # what is made once and kept
            plane.change(7)
        costs[size] = plane.cost(7)
    return costs


def test_it_touches_the_assignments_of_one_model(costs: dict[int, Cost]) -> None:
    # gRPC and REST, of the model and of its version.
    assert {cost.resources for cost in costs.values()} == {4}


def test_it_costs_the_same_whatever_the_number_of_models(costs: dict[int, Cost]) -> None:
    small, large = (costs[size] for size in SIZES)
    assert large.sent == small.sent
    assert len(set(small.sent)) == 1, "every stream is sent the same"
    assert large.calls == pytest.approx(small.calls, rel=0.02)
    assert large.memory == pytest.approx(small.memory, rel=0.2)


def test_an_envoy_that_comes_back_leaves_little_behind() -> None:
    """A stream with ten thousand subscriptions keeps no list of its own of them."""
    plane = Plane(1000)
    held = {
        type_url: {name: entry.resource.version for name, entry in plane.table.entries(type_url).items()}
        for type_url in plane.table.types()
    }
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    stream = plane._connected("envoy", held)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert kept < 50_000
    del stream
