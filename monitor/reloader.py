"""The shell of monitor/reload.py for one server: asks for statuses, looks at the disk, makes the calls.

Invariant: never more than one reload is in flight, and nothing here waits for one: the statuses are asked for all the
while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from monitor.client import CallError, ServerClient, read_status, status_request
from monitor.model_config import read_model
from monitor.pb import tfs_pb2 as tfs
from monitor.reload import Call, Reload
from monitor.trap_watch import DiskWatch

FAST, SLOW = 0.1, 1.0
"""Seconds between two rounds, while something is to be done and otherwise."""
FAST_PER_MODEL, SLOW_PER_MODEL = 0.002, 0.01
"""Seconds, if that is longer: a status call takes some 0.3 ms of CPU."""
STATUS_DEADLINE = 2.0
AT_ONCE = 32


class Reloader:
    """`run` it in the caller's task group; say with `want` what the server shall have. `disk`: whether this machine's
    disk is the server's. `seen` is called after every round: results and conditions may have changed. No call is made
    while `may` says no."""

    def __init__(
        self,
        machine: Reload,
        client: ServerClient,
        *,
        disk: bool,
        seen: Callable[[], None] = lambda: None,
        may: Callable[[], bool] = lambda: True,
    ) -> None:
        self._machine = machine
        self._client = client
        self._disk = DiskWatch() if disk else None
        self._seen = seen
        self._may = may
        self._soon = asyncio.Event()
        self._paths: tuple[tfs.ModelConfig, ...] = ()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def want(self, config: tfs.ModelServerConfig) -> None:
        """From now on. Raises ValueError for a model that is named twice."""
        self._machine.want(config)
        self._paths = tuple(config.model_config_list.config)
        self._soon.set()

    async def run(self) -> None:
        """Until cancelled. A reload that is in flight then is given up, which the server doesn't mind."""
        clock = asyncio.get_running_loop().time
        reload: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as group:
            while True:
                self._soon.clear()
                await asyncio.gather(*(self._ask(name) for name in sorted(self._machine.names)))
                looked = self._look(clock())
                call = self._machine.next_call(clock()) if looked and self._may() else None
                if call is not None:
                    reload = group.create_task(self._call(call), name="reload")
                self._seen()
                busy = reload is not None and not reload.done()
                models = len(self._machine.names)
                if busy or not self._machine.settled(clock()):
                    pause = max(FAST, FAST_PER_MODEL * models)
                else:
                    pause = max(SLOW, SLOW_PER_MODEL * models)
                try:
                    async with asyncio.timeout(pause):
                        await self._soon.wait()
                except TimeoutError:
                    continue

    def _look(self, now: float) -> bool:
        """Whether nothing is left to look at before a call can be made."""
        if self._disk is None:
            return True
        models = (*self._machine.present.values(), *self._paths)
        looks = self._disk.looks({model.base_path: read_model(model).policy for model in models}, now)
        if looks is None:
            return False
        self._machine.disk(looks)
        return True

    async def _ask(self, name: str) -> None:
        async with self._slots:
            asked = asyncio.get_running_loop().time()
            try:
                answer = await self._client.status(status_request(name), STATUS_DEADLINE)
                self._machine.status(name, read_status(answer), asked)
            except CallError as error:
                # Asked again in the next round.
                if error.as_failure().connection:
                    self._machine.lost()

    async def _call(self, call: Call) -> None:
        code, text = "OK", ""
        try:
            await self._client.reload(call.config, call.deadline)
        except CallError as error:
            code, text = error.code.name, error.detail
        self._machine.answered(code, text, asyncio.get_running_loop().time())
        self._soon.set()
