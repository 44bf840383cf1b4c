"""Waits until versions that are to be unloaded are drained, each by itself, while the instance goes on with others.

Invariant: a version is called drained only when every control plane says that all of its Envoys have acknowledged that
it drains; and either nothing is in flight on it, or the deadline has passed. What is in flight then is no reason to
wait: the server answers it before it lets go of the version. Without that acknowledgement no deadline unloads it, and
without any control plane nothing does: Envoys go on with what they were told last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from monitor.core import MonitorCore
from monitor.drain import RETURN, DrainWait
from monitor.told import ConditionKey
from registry.etcd import EtcdClient
from registry.follow import Changes, Connection, Snapshot, Update, follow
from registry.keys import Keyspace, ReadyKey
from registry.leased import LeasedKeys
from registry.records import Condition

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Drain:
    wait: DrainWait
    began: float
    late: str = ""


class Retirements:
    """One instance's. `run` it in the caller's task group, and `look` whenever the core has handed something over;
    `drained` is called when the core knows of a version that it is drained."""

    def __init__(
        self,
        etcd: EtcdClient,
        leased: LeasedKeys,
        keyspace: Keyspace,
        core: MonitorCore,
        deadline: float,
        drained: Callable[[], None],
    ) -> None:
        self._etcd = etcd
        self._leased = leased
        self._keyspace = keyspace
        self._core = core
        self._deadline = deadline
        self._drained = drained
        self._moved = asyncio.Event()
        self._drains: dict[ReadyKey, _Drain] = {}
        self._planes: dict[str, bytes] = {}
        self._listed = False

    def look(self) -> None:
        """Something was handed over."""
        if self._drains or self._core.retiring():
            self._moved.set()

    def conditions(self) -> Mapping[ConditionKey, Condition]:
        """The drains that last."""
        late = [(key, drain.late) for key, drain in self._drains.items() if drain.late]
        return {
            ("DrainDeadline", key.model, str(key.version)): Condition("DrainDeadline", text, key.model)
            for key, text in late
        }

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._moved.clear()
            if not self._core.retiring():
                self._drains.clear()
                await self._moved.wait()
                continue
            async with asyncio.TaskGroup() as group:
                following = group.create_task(self._follow(), name="control planes")
                while keys := self._core.retiring():
                    self._moved.clear()
                    await self._take(keys)
                    self._judge()
                    await self._wait()
                following.cancel()
            self._listed = False

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout_at(min(self._deadlines(), default=None)):
                await self._moved.wait()
        except TimeoutError:
            now = _now()
            for drain in self._drains.values():
                drain.wait.give_up(now)

    def _deadlines(self) -> Iterator[float]:
        for drain in self._drains.values():
            if (until := drain.wait.next_deadline()) is not None:
                yield until
            if not drain.late:
                yield drain.began + self._deadline

    async def _take(self, keys: Collection[ReadyKey]) -> None:
        self._drains = {key: drain for key, drain in self._drains.items() if key in keys}
        new = [key for key in keys if key not in self._drains]
        if not new:
            return
        revision, now = await self._leased.flush(), _now()
        regranted = self._leased.regranted_at
        for key in new:
            log.info("model %s version %d on %s: drains, to be unloaded", key.model, key.version, key.instance)
            wait = DrainWait(self._core.instance, revision, self._keyspace, (key,))
            if regranted is not None and now < regranted + RETURN:
                wait.doubt(now)
            if self._listed:
                wait.apply(self._planes, (), now)
            self._drains[key] = _Drain(wait, now)

    def _judge(self) -> None:
        now, done = _now(), []
        for key, drain in self._drains.items():
            what = f"model {key.model} version {key.version}"
            waiting = drain.wait.waiting()
            if not waiting and drain.wait.nobody:
                waiting = ("a control plane, to say that no Envoy sends there",)
            if not waiting:
                log.info("%s on %s: drained in %.2f s", what, key.instance, now - drain.began)
                if unheard := drain.wait.unheard():
                    log.warning("%s on %s: nobody could say that nothing is in flight: %s", what, key.instance, unheard)
                done.append(key)
            elif now < drain.began + self._deadline:
                continue
            elif drain.wait.turned_away():
                words = "the server answers that before it unloads the version"
                log.warning("%s on %s: %s; %s", what, key.instance, "; ".join(waiting), words)
                done.append(key)
            elif not drain.late:
                drain.late = f"{what}: not drained after {self._deadline:g} s, so it is not unloaded; waiting for "
                drain.late += "; ".join(waiting)
        if done:
            self._core.drained(done)
            for key in done:
                del self._drains[key]
        if done or any(drain.late for drain in self._drains.values()):
            self._drained()

    async def _follow(self) -> None:
        following = cast("AsyncGenerator[Update, None]", follow(self._etcd, self._keyspace.planes))
        async with aclosing(following) as updates:
            async for update in updates:
                match update:
                    case Snapshot(revision=revision, entries=entries):
                        self._planes, self._listed = dict(entries), True
                        await self._anew(revision)
                        self._apply(entries, ())
                    case Changes(revision=revision, puts=puts, deletes=deletes, relisted=relisted):
                        self._planes = {**{key: one for key, one in self._planes.items() if key not in deletes}, **puts}
                        if relisted:
                            await self._anew(revision)
                        self._apply(puts, deletes)
                    case Connection(connected=connected, detail=detail):
                        log.info("etcd %s while draining: %s", "is back" if connected else "is away", detail)
                self._moved.set()

    def _apply(self, puts: Mapping[str, bytes], deletes: Collection[str]) -> None:
        for drain in self._drains.values():
            drain.wait.apply(puts, deletes, _now())

    async def _anew(self, revision: int) -> None:
        """etcd may have lost its data: what was written is written again, at another revision."""
        if not self._drains:
            return
        written = await self._leased.flush()
        for drain in self._drains.values():
            if revision < drain.wait.revision:
                drain.wait.doubt(_now())
            drain.wait.revision = written


def _now() -> float:
    return asyncio.get_running_loop().time()
