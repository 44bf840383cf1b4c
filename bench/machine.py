"""What was measured on, and the CPU time of a process, both read from /proc (Linux)."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Machine:
    """One line each in the report."""

    cpu: str
    cores: int
    kernel: str
    python: str
    load_average: str


def cpu_model(cpuinfo: str) -> str:
    """The CPU's name out of /proc/cpuinfo; empty where it gives none (many ARM machines)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "cpu model"):
            return " ".join(value.split())
    return ""


def this_machine() -> Machine:
    """Look at it now; the load average is the one before the benchmark adds its own."""
    return Machine(
        cpu=cpu_model(Path("/proc/cpuinfo").read_text()) or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_average=f"{os.getloadavg()[0]:.2f}",
    )


def cpu_ticks(stat: str) -> int:
    """utime + stime of all threads, in clock ticks, out of /proc/PID/stat (proc(5): fields 14 and 15).

    The second field is the command's name in parentheses, which may itself hold spaces and parentheses.
    """
    fields = stat[stat.rindex(")") + 2 :].split()
    return int(fields[11]) + int(fields[12])


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far. Raises BenchError if it is gone."""
    try:
        return cpu_ticks(Path(f"/proc/{pid}/stat").read_text()) / _TICKS
    except (FileNotFoundError, ProcessLookupError):
        raise BenchError(f"process {pid} ended while it was being measured") from None


def envoy_version(envoy: str) -> str:
    """Version and build type from `envoy --version`, for example 1.40.0 RELEASE."""
    # ".../envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL"
    output = subprocess.run([envoy, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    parts = output.rpartition("version:")[2].strip().split("/")
    return f"{parts[1]} {parts[3]}" if len(parts) > 3 else output.strip()
