"""ghz (https://ghz.sh), a gRPC load generator in Go."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from bench.errors import BenchError
from bench.figures import Run, run_of
from bench.generators.job import Job, all_ok

# ghz wants a schema. To an empty message every field is unknown, so what it sends is the file, byte for byte, and it
# spends no time on tensors.
_SCHEMA = """\
syntax = "proto3";
package tensorflow.serving;
message Opaque {}
service PredictionService { rpc Predict(Opaque) returns (Opaque); }
"""


class Ghz:
    """ghz counts gRPC statuses itself."""

    name = "ghz"
    note = ""

    def __init__(self, path: Path) -> None:
        self._path = path

    def version(self) -> str:
        """As `ghz --version` says it, which may be on stderr; a build by `go install` calls itself dev."""
        done = subprocess.run([self._path, "--version"], capture_output=True, text=True, timeout=10, check=False)
        return f"ghz {(done.stdout + done.stderr).strip()}"

    def prepare(self, job: Job, folder: Path) -> list[str]:
        """See Generator."""
        schema = folder / "predict.proto"
        schema.write_text(_SCHEMA)
        (folder / "ghz.json").unlink(missing_ok=True)
        return [
            str(self._path),
            *("--insecure", "--proto", str(schema), "--call", "tensorflow.serving.PredictionService.Predict"),
            *("--binary-file", str(job.message), "--metadata", json.dumps(dict(job.metadata))),
            *("--total", str(job.requests), "--concurrency", str(job.in_flight)),
            *("--connections", str(min(job.connections, job.in_flight)), "--timeout", f"{job.timeout:g}s"),
            *("--format", "json", "--output", str(folder / "ghz.json"), job.address),
        ]

    def parse(self, job: Job, folder: Path, output: str) -> Run:
        """See Generator. ghz's own percentiles leave failures out; there are none when we get to them."""
        try:
            report = json.loads((folder / "ghz.json").read_text())
        except (OSError, ValueError) as error:
            raise BenchError(f"ghz left no report ({error}); its output:\n{output[-2000:]}") from error
        errors = report.get("errorDistribution") or {}
        all_ok("ghz", job, report.get("statusCodeDistribution") or {}, "; ".join(errors))
        latencies = [one["latency"] / 1e9 for one in report["details"]]
        return run_of(latencies, report["total"] / 1e9, report["statusCodeDistribution"])
