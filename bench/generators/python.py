"""Our own load generator (bench/python_load.py): it needs nothing but what modelplane needs anyway."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc

from bench.errors import BenchError
from bench.figures import Run, run_of
from bench.generators.job import Job, all_ok


class Python:
    """A few thousand requests per second at most."""

    name = "python"
    note = "the Python generator costs more than Envoy: rates and latencies are mostly its own, CPU per request is not"

    def version(self) -> str:
        """Whose core does the work."""
        return f"grpc.aio {grpc.__version__}"

    def prepare(self, job: Job, folder: Path) -> list[str]:
        """See Generator."""
        out = folder / "python.json"
        out.unlink(missing_ok=True)
        return [
            *(sys.executable, "-m", "bench.python_load", job.address),
            *("--message", str(job.message), "--output", str(out), "--metadata", json.dumps(dict(job.metadata))),
            *("--requests", str(job.requests), "--connections", str(min(job.connections, job.in_flight))),
            *("--streams", str(job.streams), "--timeout", str(job.timeout)),
        ]

    def parse(self, job: Job, folder: Path, output: str) -> Run:
        """See Generator."""
        try:
            report = json.loads((folder / "python.json").read_text())
        except (OSError, ValueError) as error:
            raise BenchError(f"the Python generator left no report ({error}); its output:\n{output[-2000:]}") from error
        all_ok("the Python generator", job, report["codes"], report["details"])
        return run_of(report["latencies"], report["seconds"], report["codes"])
