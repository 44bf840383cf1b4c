"""Rounds of measurements, and the checks that make a figure worth printing.

Invariant: every target takes its turn in every round, each round in another order; a measurement counts only if every
request was OK, the target answered rightly before and after it, and its requests passed where they were meant to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bench import generators
from bench.data_plane import DataPlane
from bench.errors import BenchError
from bench.figures import Measurement
from bench.messages import METHOD, predict_request, size_text
from bench.report import Results

_WARM_UP = 64
_PROBE_TIMEOUT = 10.0


@dataclass(frozen=True)
class Target:
    """Somewhere to send the requests."""

    key: str
    address: str
    model: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    plane: DataPlane | None = None
    """The Envoy whose CPU counts; None where none of ours is in the way."""
    cluster: str = ""
    """The cluster that the requests must take there."""


@dataclass(frozen=True)
class Load:
    """How it is measured. `requests` per measurement, or None for about `seconds` of them."""

    generator: generators.Generator
    connections: int
    streams: int
    rounds: int
    seconds: float
    requests: int | None = None


def measure_all(
    load: Load,
    targets: Sequence[Target],
    sizes: Sequence[int],
    input_name: str,
    folder: Path,
    results: Results,
    progress: Callable[[str], None],
) -> None:
    """Fill `results`. Raises BenchError for the first thing that isn't as it should be."""
    for size in sizes:
        jobs = {}
        progress(f"{size_text(size)}: warming up, and finding out how many requests fill a measurement")
        for target in targets:
            message = folder / f"{target.model}-{size}.bin"
            message.write_bytes(predict_request(target.model, size, input_name))
            jobs[target.key] = _sized_job(load, target, message, folder)
        for number in range(load.rounds):
            shift = number % len(targets)
            for target in (*targets[shift:], *targets[:shift]):
                measurement = measure(load.generator, target, jobs[target.key], folder)
                results.add(size, target.key, measurement)
                cost = measurement.cpu_per_request
                progress(
                    f"{size_text(size)}, round {number + 1}/{load.rounds}, {target.key}: "
                    f"{measurement.run.rate:,.0f} req/s, p99 {measurement.run.percentiles[99] * 1e3:.2f} ms"
                    + ("" if cost is None else f", Envoy {cost * 1e6:.0f} µs of CPU per request")
                )


def measure(generator: generators.Generator, target: Target, job: generators.Job, folder: Path) -> Measurement:
    """One measurement, checked. Raises BenchError."""
    _probe(target, job.message, job.response_bytes)
    if target.plane is None:
        run = generators.run(generator, job, folder)
        _probe(target, job.message, job.response_bytes)
        return Measurement(run)
    answered, retried = target.plane.completed(target.cluster)
    before = target.plane.cpu_seconds()
    run = generators.run(generator, job, folder)
    used = target.plane.cpu_seconds() - before
    answered_now, retried_now = target.plane.completed(target.cluster)
    if answered_now - answered != job.requests or retried_now != retried:
        raise BenchError(
            f"{target.key}: {job.requests} requests were sent, but cluster {target.cluster} answered "
            f"{answered_now - answered} with {retried_now - retried} retries: the figures would mean something else"
        )
    _probe(target, job.message, job.response_bytes)
    return Measurement(run, used)


def _sized_job(load: Load, target: Target, message: Path, folder: Path) -> generators.Job:
    """Warm the path up, and find out how many requests fill the time."""
    answer = _probe(target, message)

    def job(requests: int) -> generators.Job:
        return generators.Job(
            target.address, message, requests, load.connections, load.streams, answer, target.metadata
        )

    # The first handful is slower than what follows, so it says little about the rate.
    rate = generators.run(load.generator, job(max(_WARM_UP, load.connections * load.streams)), folder).rate
    if load.requests:
        return job(load.requests)
    rate = generators.run(load.generator, job(max(_WARM_UP, int(rate * load.seconds / 4))), folder).rate
    return job(max(1, int(rate * load.seconds)))


def _probe(target: Target, message: Path, expected: int | None = None) -> int:
    """One request that is looked at closely. Returns the answer's length in bytes. Raises BenchError."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        with grpc.insecure_channel(target.address, options) as channel:
            call: Any = channel.unary_unary(METHOD)
            metadata = tuple(target.metadata.items())
            answer = call(message.read_bytes(), metadata=metadata, timeout=_PROBE_TIMEOUT)
    except grpc.RpcError as error:
        said = f"{error.code().name}: {error.details()}"
        raise BenchError(f"a probe of model {target.model!r} at {target.address} ({target.key}) got {said}") from None
    if expected is not None and len(answer) != expected:
        raise BenchError(f"{target.key}: {target.address} answered {len(answer)} bytes where it had been {expected}")
    return len(answer)
