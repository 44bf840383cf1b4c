"""h2load, nghttp2's HTTP/2 load generator (Debian: nghttp2-client).

It knows nothing of gRPC: an error is HTTP 200 with grpc-status in the trailers, which it counts as success and doesn't
show. But an error carries no message, so the bytes of DATA that came back tell how many answers were real ones.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from bench.errors import BenchError
from bench.figures import Run, run_of
from bench.generators.job import Job, all_ok
from bench.messages import METHOD, frame

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FINISHED = re.compile(r"^finished in ([\d.]+)(us|ms|s),", re.MULTILINE)
_REQUESTS = re.compile(r"^requests: .*?(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", re.MULTILINE)
_DATA = re.compile(r"^traffic: .*\((\d+)\) data", re.MULTILINE)
_FRAME_HEAD = len(frame(b""))


class H2load:
    """One thread: it is never the bottleneck."""

    name = "h2load"
    note = "h2load doesn't see grpc-status; answers were counted by their bytes"

    def __init__(self, path: Path) -> None:
        self._path = path

    def version(self) -> str:
        """As `h2load --version` says it."""
        done = subprocess.run([self._path, "--version"], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip()

    def prepare(self, job: Job, folder: Path) -> list[str]:
        """See Generator."""
        body, log = folder / "h2load.body", folder / "h2load.log"
        body.write_bytes(frame(job.message.read_bytes()))
        log.unlink(missing_ok=True)  # h2load appends
        headers = {"content-type": "application/grpc", "te": "trailers", **job.metadata}
        return [
            str(self._path),
            *("--requests", str(job.requests), "--clients", str(min(job.connections, job.in_flight))),
            *("--max-concurrent-streams", str(job.streams), "--threads", "1"),
            *("--data", str(body), "--log-file", str(log), "--connection-active-timeout", f"{_patience(job)}s"),
            *(part for name, value in headers.items() for part in ("--header", f"{name}: {value}")),
            f"http://{job.address}{METHOD}",
        ]

    def parse(self, job: Job, folder: Path, output: str) -> Run:
        """See Generator."""
        finished, requests, data = _FINISHED.search(output), _REQUESTS.search(output), _DATA.search(output)
        if not (finished and requests and data):
            raise BenchError(f"h2load's output can't be read:\n{output[-2000:]}")
        succeeded, failed, errored, timed_out = map(int, requests.groups())
        answer = _FRAME_HEAD + job.response_bytes
        right, rest = divmod(int(data[1]), answer)
        if rest or right > succeeded:
            raise BenchError(f"{job.address} gave {data[1]} bytes, which is no multiple of a right answer's {answer}")
        counted = {"OK": right, "a gRPC error": succeeded - right, "an HTTP error": failed - errored - timed_out}
        counted |= {"a broken connection": errored, "a timeout": timed_out}
        codes = {code: count for code, count in counted.items() if count}
        all_ok("h2load", job, codes)
        seconds = float(finished[1]) * _UNITS[finished[2]]
        return run_of(read_log((folder / "h2load.log").read_text()), seconds, codes)


def read_log(text: str) -> list[float]:
    """Seconds per request: the third column of the log, in microseconds, after start time and HTTP status."""
    return [int(line.split("\t")[2]) / 1e6 for line in text.splitlines()]


def _patience(job: Job) -> int:
    # h2load has no timeout per request, only for a connection's whole life.
    return max(60, int(job.timeout * job.requests / job.in_flight))
