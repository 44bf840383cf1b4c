"""The model server that a monitor starts and owns. Invariant: nobody but the monitor stops it.

It leads a process group of its own, so that Ctrl-C in a terminal reaches the monitor alone, which drains first. It
inherits stdout and stderr, which therefore pass unchanged. Its stdin is /dev/null: a process in a terminal's background
is stopped when it reads.

It is deliberately not tied to the monitor's life (Linux could: PR_SET_PDEATHSIG). A monitor that crashes or is killed
must cost its clients nothing, and a server that goes on is what makes that true. Where the monitor is a container's
entrypoint, its death ends the container and the server with it; under systemd the unit's control group does that.
Started by hand, a server whose monitor was killed with -9 is left running: its process id is in the monitor's log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence

from monitor.errors import MonitorError

log = logging.getLogger(__name__)


class OwnedServer:
    """A started child. Make one with `start`."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self.name = name

    @classmethod
    async def start(cls, command: Sequence[str]) -> OwnedServer:
        """Start it. Raises MonitorError with the shell's exit codes: 127 not found, 126 not to be executed."""
        name = command[0]
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, process_group=0)
        except FileNotFoundError as error:
            raise MonitorError(f"{name}: command not found; is it on PATH?", exit_code=127) from error
        except OSError as error:
            raise MonitorError(f"{name}: can't be executed: {error.strerror or error}", exit_code=126) from error
        log.info("started %s, process %d", name, process.pid)
        return cls(process, name)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet, as far as is known."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for its end; its exit code as a shell tells it, 128 + N for signal N."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def describe_end(self) -> str:
        """How it ended, for logs and for the registry."""
        code = self._process.returncode
        if code is None:
            return f"{self.name} runs"
        if code < 0:
            return f"{self.name} was ended by {signal.Signals(-code).name}"
        return f"{self.name} exited with code {code}"

    async def stop(self, grace: float, hasten: asyncio.Event) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds or as soon as `hasten` is set. Returns when it has ended."""
        self._send(signal.SIGTERM)
        ended = asyncio.create_task(self._process.wait())
        hastened = asyncio.create_task(hasten.wait())
        try:
            await asyncio.wait({ended, hastened}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                log.warning("%s did not end on SIGTERM; killing it", self.name)
                self._send(signal.SIGKILL)
            await ended
        finally:
            for task in (ended, hastened):
                task.cancel()
        log.info("%s", self.describe_end())

    def kill(self) -> None:
        """End it now, if it still runs; for when the monitor itself fails."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        # The whole group: a server started through a wrapper script ends with it. The leader has not been reaped while
        # it counts as running, so the group's number can't have become somebody else's.
        if self.running:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                log.debug("%s had ended already", self.name)
