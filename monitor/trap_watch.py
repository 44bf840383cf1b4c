"""Looks for traps once a second (less often with many models) and tells the core.

Invariant: a look at the disk runs in a thread that nobody waits for, so a dead network file system ends the looks at
the disk and nothing else, not even the monitor's own end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from monitor.core import MonitorCore
from monitor.disk import Look, look
from monitor.removed import Removed
from monitor.servables import Policy
from monitor.server_flags import ServerFlags
from monitor.threads import in_daemon_thread
from monitor.told import Told
from monitor.traps import Limits, Traps

INTERVAL, PER_MODEL = 1.0, 0.002
LOOK_INTERVAL, LOOK_PER_MODEL = 2.0, 0.01
"""Seconds, and seconds for each model: 1,000 of them cost 8 ms each time, and a look at the disk more."""
PATIENCE = 5.0


class DiskWatch:
    """Looks at base paths now and then, in a thread of its own. One that takes longer than PATIENCE shows nothing."""

    def __init__(self) -> None:
        self.latest: Mapping[str, Look] = {}
        self._began = 0.0
        self._looking: asyncio.Future[Mapping[str, Look]] | None = None
        self._next = 0.0
        self._paths: Mapping[str, Policy | None] = {}

    def looks(self, paths: Mapping[str, Policy | None], now: float) -> Mapping[str, Look] | None:
        """The latest look at these paths; None until there is one at all of them, empty if that hangs."""
        if self._looking is not None and self._looking.done():
            self.latest, self._looking = self._looking.result(), None
            self._next = now + max(LOOK_INTERVAL, LOOK_PER_MODEL * len(paths))
        if paths != self._paths:
            self._paths, self._next = dict(paths), now
        if self._looking is None and now >= self._next:
            self._looking, self._began = _look_at(paths), now
        if self._looking is not None and now > self._began + PATIENCE:
            self.latest = {}
            return self.latest
        return self.latest if paths.keys() <= self.latest.keys() else None


class TrapWatch:
    """Runs as `run` inside the caller's task group. `seen` is called when the core has something new to say."""

    def __init__(self, core: MonitorCore, flags: ServerFlags | None, seen: Callable[[], None]) -> None:
        self._core = core
        self._seen = seen
        owned = flags is not None
        self._traps = Traps(Told(core.instance), flags, Limits.of(flags or ServerFlags()), owned=owned)
        self._disk = DiskWatch()
        self._removed = Removed()

    async def run(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            self._step(clock())
            await asyncio.sleep(max(INTERVAL, PER_MODEL * len(self._core.models)))

    def _step(self, now: float) -> None:
        if self._core.draining:
            return
        # Those of models that modelplane has it hold are told by monitor/manager.py.
        answers = {model: answer for model, answer in self._core.answers().items() if not model.managed}
        paths = {model.base_path: model.policy for model in answers if model.base_path}
        self._disk.looks(paths, now)
        self._core.report("traps", self._traps.conditions(answers, self._disk.latest, now))
        looks = self._disk.latest if self._traps.one_disk else {}
        self._core.removed(self._removed.find(answers, looks))
        self._seen()


def _look_at(paths: Mapping[str, Policy | None]) -> asyncio.Future[Mapping[str, Look]]:
    return in_daemon_thread(lambda: {path: look(path, policy) for path, policy in paths.items()}, "disk")
