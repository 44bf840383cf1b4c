"""Looks at every model's status, again and again, when Pace says so. Invariant: each look is a task of its own with a
deadline of its own, so one model's slow or failing call never delays the next look at another.

An answer equal to the one before is not even parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from monitor.client import CallError, ServerClient, read_status, status_request
from monitor.pace import Pace
from monitor.servables import PollFailure, VersionStatus
from registry.records import ServableState

PING = ""
"""A server without models is asked for the model with the empty name: it knows none, but it answers."""
_ON_THE_WAY = (ServableState.START, ServableState.LOADING, ServableState.UNLOADING)


class StatusSink(Protocol):
    """Where what was seen goes (MonitorCore); times are the event loop's."""

    def status(self, name: str, versions: tuple[VersionStatus, ...], now: float) -> None:
        """An answer."""

    def failed(self, name: str, failure: PollFailure, now: float) -> None:
        """No answer."""


@dataclass(slots=True)
class _Polled:
    """One model: what it is asked with, and what it answered last."""

    request: bytes
    answer: bytes | None = None
    versions: tuple[VersionStatus, ...] = ()

    @property
    def unsettled(self) -> bool:
        return any(version.state in _ON_THE_WAY for version in self.versions)


class StatusPoller:
    """Polls the models last given to `watch`; its tasks belong to the caller's group."""

    def __init__(
        self,
        client: ServerClient,
        sink: StatusSink,
        seen: Callable[[], None],
        group: asyncio.TaskGroup,
        *,
        pace: Pace,
        deadline: float,
    ) -> None:
        """`seen` is called after every observation; `deadline` of one call, in seconds."""
        self._client = client
        self._sink = sink
        self._seen = seen
        self._group = group
        self._pace = pace
        self._deadline = deadline
        self._models: dict[str, _Polled] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._clock = asyncio.get_running_loop().time

    def watch(self, names: Iterable[str]) -> None:
        """Poll these models and no others."""
        wanted = set(names) or {PING}
        self._stopped = False
        for name in self._models.keys() - wanted:
            del self._models[name]
            if look := self._looks.pop(name, None):
                look.cancel()
        for name in wanted - self._models.keys():
            self._models[name] = _Polled(status_request(name))
        self._pace.watch(wanted, self._clock())
        self._go_on()

    def hasten(self, names: Iterable[str]) -> None:
        """Something is likely to change on these models soon."""
        self._pace.hasten(names, self._clock())
        self._go_on()

    def sweep(self) -> None:
        """Something may have changed on any model."""
        self._pace.sweep()
        self._go_on()

    def stop(self) -> None:
        """End all polling, until `watch` is called again."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for look in self._looks.values():
            look.cancel()
        self._looks.clear()
        self._models.clear()
        self._pace.watch((), self._clock())

    def _go_on(self) -> None:
        """Begin the looks that are due, and be called again when the next one is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stopped:
            return
        now = self._clock()
        while (name := self._pace.take(now)) is not None:
            self._looks[name] = self._group.create_task(self._look(name), name=f"status of {name}")
        wake = self._pace.wake(now)
        if wake is not None:
            self._timer = asyncio.get_running_loop().call_at(wake, self._go_on)

    async def _look(self, name: str) -> None:
        model = self._models[name]
        answered = changed = False
        try:
            latest = await self._client.status(model.request, self._deadline)
            answered, changed = True, latest != model.answer
            if changed:
                model.versions = read_status(latest)
                model.answer = latest
        except CallError as error:
            self._sink.failed(name, error.as_failure(), self._clock())
        else:
            self._sink.status(name, model.versions, self._clock())
        del self._looks[name]
        self._pace.ended(name, self._clock(), answered=answered, changed=changed, unsettled=model.unsettled)
        self._go_on()
        self._seen()
