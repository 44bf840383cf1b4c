"""Looks at every model's status, again and again. Invariant: each model has a task of its own and each call a deadline
of its own, so one model's slow or failing call never delays the next look at another.

An answer equal to the one before is not even parsed. The pause between two looks at a model grows with the number of
models so that all of them together stay below a rate: 1,000 models at 100 ms would take two cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from monitor.client import CallError, ServerClient, read_status, status_request
from monitor.servables import PollFailure, VersionStatus

PING = ""
"""A server without models is asked for the model with the empty name: it knows none, but it answers."""


class StatusSink(Protocol):
    """Where what was seen goes (MonitorCore); times are the event loop's."""

    def status(self, name: str, versions: tuple[VersionStatus, ...], now: float) -> None:
        """An answer."""

    def failed(self, name: str, failure: PollFailure, now: float) -> None:
        """No answer."""


class StatusPoller:
    """Polls the models last given to `watch`; its tasks belong to the caller's group."""

    def __init__(
        self,
        client: ServerClient,
        sink: StatusSink,
        seen: Callable[[], None],
        group: asyncio.TaskGroup,
        *,
        interval: float,
        rate: float,
        deadline: float,
    ) -> None:
        """`seen` is called after every observation; interval and deadline in seconds, rate in calls per second."""
        self._client = client
        self._sink = sink
        self._seen = seen
        self._group = group
        self._interval = interval
        self._rate = rate
        self._deadline = deadline
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, names: Iterable[str]) -> None:
        """Poll these models and no others."""
        wanted = set(names) or {PING}
        for name in self._tasks.keys() - wanted:
            self._tasks.pop(name).cancel()
        for name in wanted - self._tasks.keys():
            self._tasks[name] = self._group.create_task(self._watch(name), name=f"status of {name}")

    def stop(self) -> None:
        """End all polling."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    @property
    def pause(self) -> float:
        """Seconds between two looks at one model."""
        return max(self._interval, len(self._tasks) / self._rate)

    async def _watch(self, name: str) -> None:
        clock = asyncio.get_running_loop().time
        request = status_request(name)
        answer = b""
        versions: tuple[VersionStatus, ...] = ()
        while True:
            try:
                latest = await self._client.status(request, self._deadline)
                if latest != answer:
                    versions = read_status(latest)
                    answer = latest
            except CallError as error:
                self._sink.failed(name, error.as_failure(), clock())
            else:
                self._sink.status(name, versions, clock())
            self._seen()
            await asyncio.sleep(self.pause)
