"""Child processes: started, watched, restarted and ended as the supervisor says.

Invariants: every child leads a session of its own, so that a Ctrl-C at the terminal reaches only us; it dies with us
(tether.py), even when we are killed; and what it leaves behind when it ends (a monitor that was killed leaves its model
server) is ended before it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelplane.errors import UserError
from modelplane.local.supervisor import Action, Kill, Start, Supervisor, Terminate

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_TETHER = Path(__file__).with_name("tether.py")
_PATIENCE = 10.0  # until the kernel has ended what was killed


@dataclass(frozen=True, slots=True)
class Program:
    """How a child is started. `command` is called for each start, so that a restart may choose other ports; `started`
    runs beside it and is cancelled when it ends."""

    name: str
    command: Callable[[], Sequence[str]]
    log: Path
    stage: int = 0
    grace: float = 10.0
    env: Mapping[str, str] = field(default_factory=dict)
    started: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A child's end that nobody asked for. `code` is negative for a signal; `tail` the last lines of its log."""

    name: str
    code: int
    tail: tuple[str, ...]
    log: Path
    restart_in: float

    @property
    def how(self) -> str:
        """`ended with exit code 1` or `was ended by SIGKILL`."""
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        try:
            return f"was ended by {signal.Signals(-self.code).name}"
        except ValueError:
            return f"was ended by signal {-self.code}"


def become_subreaper() -> None:
    """Have processes whose parents died handed to us instead of to init. For a process that owns all its children."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def tethered(command: Sequence[str]) -> list[str]:
    """The command, made to die with this process."""
    return [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *command]


def last_lines(file: Path, count: int = 5) -> tuple[str, ...]:
    """The last lines of a log that aren't blank; without the stack that etcd's last words (Go's) may be followed by."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - 8192))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ()
    said = itertools.takewhile(lambda line: not line.startswith("goroutine "), lines)
    return tuple(line.rstrip() for line in said if line.strip())[-count:]


class Children:
    """All children of the stack. `run` is to be owned by the caller's TaskGroup; it returns once stopping is done."""

    def __init__(self, on_end: Callable[[Ended], None], supervisor: Supervisor | None = None) -> None:
        self._supervisor = supervisor or Supervisor()
        self._on_end = on_end
        self._programs: dict[str, Program] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._known: set[int] = set()
        self.started: set[int] = set()
        """The numbers of all processes so far, of those that have ended too."""
        self._wake = asyncio.Event()
        # Between fork and registration a child of ours looks like a left-over.
        self._forking = asyncio.Lock()
        self._queue: list[Action] = []

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._supervisor.stopping

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Who has been told to end and hasn't."""
        return self._supervisor.waiting_for

    def add(self, program: Program) -> None:
        """Start a child and keep it running."""
        self._programs[program.name] = program
        self._do(self._supervisor.add(program.name, stage=program.stage, grace=program.grace, now=time.monotonic()))

    def stop(self) -> None:
        """End all children in order; called again, without patience."""
        self._do(self._supervisor.stop(time.monotonic()))

    async def run(self) -> None:
        """Carry out what the supervisor decides until everything has been stopped."""
        async with asyncio.TaskGroup() as group:
            while not self._supervisor.done:
                self._queue += self._supervisor.tick(time.monotonic())
                while self._queue:
                    self._carry_out(self._queue.pop(0), group)
                deadline = self._supervisor.next_deadline()
                wait = None if deadline is None else max(0.0, deadline - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                self._wake.clear()
        await self._end_leftovers()

    async def run_once(self, command: Sequence[str], output: Path, on_line: Callable[[str], None]) -> int:
        """Run a command to its end, its standard output line by line; its standard error goes to a file."""
        with output.open("ab") as errors:
            process = await self._fork(command, {}, asyncio.subprocess.PIPE, errors.fileno())
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                on_line(line.decode(errors="replace").rstrip("\n"))
            return await process.wait()
        finally:
            await self._finish(process)

    def _do(self, actions: list[Action]) -> None:
        self._queue += actions
        self._wake.set()

    def _carry_out(self, action: Action, group: asyncio.TaskGroup) -> None:
        match action:
            case Start(name):
                group.create_task(self._live(self._programs[name]), name=f"child {name}")
            case Terminate(name):
                self._signal(name, signal.SIGTERM)
            case Kill(name):
                log.warning("%s did not end in time, killed", name)
                self._signal(name, signal.SIGKILL)

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _live(self, program: Program) -> None:
        """One life of one child, from its start to its end."""
        began = program.log.stat().st_size if program.log.exists() else 0
        code, failure = 127, ""
        try:
            with program.log.open("ab") as output:
                process = await self._fork(program.command(), program.env, output.fileno(), output.fileno())
        except (OSError, UserError) as error:  # a full disk, no free port: it may pass
            failure = f"can't be started: {error}"
        else:
            self._processes[program.name] = process
            if self.stopping:
                # The order to end came before there was anything to end.
                self._signal(program.name, signal.SIGTERM)
            code = await self._wait(program, process)
        self._report(program, code, began, failure)

    async def _wait(self, program: Program, process: asyncio.subprocess.Process) -> int:
        beside = asyncio.ensure_future(program.started()) if program.started else None
        try:
            return await process.wait()
        finally:
            self._processes.pop(program.name, None)
            if beside is not None:
                beside.cancel()
                done = await asyncio.gather(beside, return_exceptions=True)
                if isinstance(done[0], Exception):
                    log.error("%s: %s", program.name, done[0], exc_info=done[0])
            await self._finish(process)

    def _report(self, program: Program, code: int, began: int, failure: str) -> None:
        now = time.monotonic()
        self._do(self._supervisor.ended(program.name, now))
        wait = self._supervisor.restart_in(program.name, now)
        if wait is not None:
            fresh = program.log.exists() and program.log.stat().st_size > began
            tail = (failure,) if failure else last_lines(program.log) if fresh else ()
            self._on_end(Ended(program.name, code, tail, program.log, wait))

    async def _fork(
        self, command: Sequence[str], env: Mapping[str, str], stdout: int, stderr: int
    ) -> asyncio.subprocess.Process:
        async with self._forking:
            process = await asyncio.create_subprocess_exec(
                *tethered(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **env},
                start_new_session=True,
            )
            self._known.add(process.pid)
            self.started.add(process.pid)
            return process

    async def _finish(self, process: asyncio.subprocess.Process) -> None:
        """End what a child that has ended, or is not wanted any more, leaves behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())
        self._known.discard(process.pid)
        await self._end_leftovers()

    async def _end_leftovers(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            async with self._forking:
                left = [pid for pid in orphans() if pid not in self._known]
                for pid in left:
                    _end(pid)
            if not left:
                return
            await asyncio.sleep(0.01)
        log.error("processes %s can't be ended", left)


def orphans() -> list[int]:
    """Our children that are in another session than ours: they were our children's children once."""
    ours, session = os.getpid(), os.getsid(0)
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # pid (comm) state ppid pgrp session …; comm may hold anything, parentheses too (proc(5))
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == ours and int(fields[3]) != session:
                    found.append(int(process.name))
    return found


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)
