"""What a load generator is told, and running one."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.errors import BenchError
from bench.figures import Run
from tests.support.processes import ChildProcess

_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Job:
    """`requests` times the same Predict, as fast as `connections` connections with `streams` requests in flight on each
    get their answers (closed loop)."""

    address: str
    """HOST:PORT."""
    message: Path
    """A file with the serialised request, without gRPC's frame."""
    requests: int
    connections: int = 8
    streams: int = 1
    response_bytes: int = 0
    """The right answer's length, without gRPC's frame."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 30.0
    """Seconds per request."""

    @property
    def in_flight(self) -> int:
        """Requests in flight at any time; never more than there are requests."""
        return min(self.connections * self.streams, self.requests)


class Generator(Protocol):
    """One load generator. `prepare` and `parse` do no more than files and text; `run` starts the program."""

    name: str
    note: str
    """What to know when reading its figures; may be empty."""

    def version(self) -> str:
        """As the program says it."""
        ...

    def prepare(self, job: Job, folder: Path) -> list[str]:
        """Write what the program needs into `folder`; return its command line."""
        ...

    def parse(self, job: Job, folder: Path, output: str) -> Run:
        """Read what it left in `folder` and printed. Raises BenchError unless every request was OK."""
        ...


def run(generator: Generator, job: Job, folder: Path, timeout: float = 600.0) -> Run:
    """Start the generator, wait for its end, and read its figures. Raises BenchError; never leaves it running."""
    command = generator.prepare(job, folder)
    log = folder / "generator.log"
    log.unlink(missing_ok=True)
    # Ours is found wherever the benchmark is called from.
    child = ChildProcess(command, log, {"PYTHONPATH": str(_ROOT)})
    try:
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{generator.name} did not end within {timeout:.0f} s; its output:\n{child.output}") from None
    finally:
        child.stop(2)
    if code != 0:
        raise BenchError(f"{generator.name} ended with exit code {code}; its output:\n{child.output[-2000:]}")
    return generator.parse(job, folder, child.output)


def all_ok(name: str, job: Job, codes: Mapping[str, int], details: str = "") -> None:
    """Raise BenchError unless all of the job's requests, no more and no fewer, are OK."""
    if dict(codes) == {"OK": job.requests}:
        return
    counted = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items())) or "nothing"
    said = f": {details}" if details else ""
    raise BenchError(f"{name} sent {job.requests} requests to {job.address} and got {counted}{said}")
