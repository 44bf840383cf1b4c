"""A control plane as a child process, and what the kernel says that it has used (Linux)."""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from tests.support.processes import ChildProcess, free_port

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Plane:
    """A running control plane; `started` is when it was told to start (time.monotonic)."""

    child: ChildProcess
    xds_port: int
    http_port: int
    grpc_port: int
    started: float

    @property
    def address(self) -> str:
        """Where it serves xDS."""
        return f"127.0.0.1:{self.xds_port}"

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far, to the nanosecond. Raises BenchError if it is gone."""
        try:
            tasks = Path(f"/proc/{self.child.pid}/task").glob("*/schedstat")
            return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            raise BenchError(f"the control plane ended:\n{self.child.output[-2000:]}") from None

    def memory(self) -> float:
        """MiB that it occupies now (resident set)."""
        return self._status("VmRSS")

    def peak_memory(self) -> float:
        """The most MiB that it has occupied."""
        return self._status("VmHWM")

    def metric(self, name: str) -> float:
        """One of its metrics that has no labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def _status(self, name: str) -> float:
        try:
            lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        except FileNotFoundError:
            raise BenchError(f"the control plane ended:\n{self.child.output[-2000:]}") from None
        return next(int(line.split()[1]) * 1024 / _MIB for line in lines if line.startswith(f"{name}:"))


@contextmanager
def start(folder: Path, etcd: str, *flags: str) -> Iterator[Plane]:
    """Start one; it may not listen yet when this is entered."""
    xds, http, grpc_port = free_port(), free_port(), free_port()
    command = [
        *(sys.executable, "-m", "modelplane", "control-plane"),
        *("--etcd", etcd, "--replica", "bench"),
        *("--xds-listen", f"127.0.0.1:{xds}", "--http-listen", f"127.0.0.1:{http}"),
        *("--listen-address", "127.0.0.1", "--grpc-port", str(grpc_port), "--rest-port", str(free_port())),
        "--no-reuse-port",
        *flags,
    ]
    started = time.monotonic()
    child = ChildProcess(command, folder / f"control-plane-{os.urandom(4).hex()}.log")
    try:
        yield Plane(child, xds, http, grpc_port, started)
    finally:
        child.stop()
