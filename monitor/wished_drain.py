"""Carries out what an operator wants drained of an instance (`drains/<instance>`), for as long as that is wanted.

Invariant: nothing of it becomes READY before it is known what is wanted, so a drained instance stays so when its
monitor starts again; and what is called DRAINED has nothing in flight on any Envoy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import cast

from monitor.core import MonitorCore
from monitor.drain import Drain
from monitor.drain_course import see_through
from monitor.watch import Watch
from registry.drains import UNHEARD, DrainRecord, decode_drain, told_drain
from registry.etcd import Compare, Delete, EtcdClient, EtcdError, Operation, Put, Target, absent
from registry.follow import Changes, Connection, Snapshot, Update, follow
from registry.keys import DrainKey, Keyspace, ReadyKey
from registry.leased import LeasedKeys
from registry.records import Condition, RecordError

log = logging.getLogger(__name__)

_RETRY = 1.0
_UNHEARD = "drained unheard"


class WishedDrain:
    """One instance's. `run` follows the key until cancelled; `known` is set once it has been read. `stop` is called
    when the operator wants the server stopped and the instance is drained; None: this monitor can't stop it."""

    def __init__(
        self,
        etcd: EtcdClient,
        leased: LeasedKeys,
        keyspace: Keyspace,
        core: MonitorCore,
        stop: Callable[[], None] | None,
    ) -> None:
        self.known = asyncio.Event()
        self._etcd = etcd
        self._leased = leased
        self._keyspace = keyspace
        self._core = core
        self._stop = stop
        self._key = keyspace.make(DrainKey(core.instance))
        self._value: bytes | None = None
        self._wish: DrainRecord | None = None
        self._moved = asyncio.Event()
        self._stopping = False
        self._unheard = ""

    async def run(self, watch: Watch) -> None:
        """Drain whatever is wanted drained, until cancelled. Started before the registration, which waits for
        `known`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(watch), name="drain wishes")
            while True:
                self._moved.clear()
                watch.published.clear()
                if keys := self._core.undrained():
                    await self._drain(keys, watch)
                    continue
                if self._is_to_stop() and self.known.is_set():
                    await self._end(watch)
                await self._change(watch)

    def _is_to_stop(self) -> bool:
        wish = self._wish
        # The server may be in the middle of requests that nobody knows of.
        return wish is not None and wish.stop and wish.whole and (wish.force or not self._unheard)

    async def _change(self, watch: Watch) -> None:
        """Wait until something else is wanted or was published."""
        waiting = [asyncio.create_task(event.wait()) for event in (self._moved, watch.published)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _drain(self, keys: frozenset[ReadyKey], watch: Watch) -> None:
        """Wait until nothing is in flight there, or until it is something else that drains."""
        core = self._core
        whole = self._wish is not None and self._wish.whole
        what = "all of it" if whole else ", ".join(sorted(f"{key.model} version {key.version}" for key in keys))
        drain = Drain(self._etcd, self._leased, core.instance, self._keyspace, () if whole else keys)

        async def something_else() -> None:
            while core.undrained() == keys:
                self._moved.clear()
                watch.published.clear()
                await self._change(watch)

        if not await see_through(drain, core.instance, what, something_else()):
            return
        self._unheard = drain.unheard()
        told = [Condition(UNHEARD, f"drained {what}, but {self._unheard}")] if self._unheard else ()
        core.report(_UNHEARD, told)
        core.drained(keys)
        watch.publish()

    async def _follow(self, watch: Watch) -> None:
        seen = 0
        following = cast("AsyncGenerator[Update, None]", follow(self._etcd, self._key))
        async with aclosing(following) as updates:
            async for update in updates:
                match update:
                    case Snapshot(revision=seen, entries=entries):
                        self._take(entries.get(self._key), watch)
                        self.known.set()
                    case Changes(revision=revision, puts=puts, deletes=deletes, relisted=relisted):
                        if self._key in puts:
                            self._take(puts[self._key], watch)
                        elif self._key in deletes and relisted and revision < seen:
                            await self._restore()
                        elif self._key in deletes:
                            self._take(None, watch)
                        seen = revision
                    case Connection():
                        pass

    def _take(self, value: bytes | None, watch: Watch) -> None:
        if self._stopping:
            return
        try:
            wish = None if value is None else decode_drain(value)
        except RecordError as error:
            log.error("instance %s: %s; going on with what was wanted before", self._core.instance, error)
            return
        if wish != self._wish:
            told = "nothing any longer" if wish is None else told_drain(wish, self._core.instance)
            log.info("instance %s: what an operator wants drained: %s", self._core.instance, told)
        self._value, self._wish = value, wish
        self._core.wish(wish)
        self._core.report("stop", ())
        if wish is None:
            self._unheard = ""
            self._core.report(_UNHEARD, ())
        watch.publish()
        self._moved.set()

    async def _restore(self) -> None:
        """etcd was wiped: nobody has taken the wish back, so it is written again, as the instance's own keys are."""
        log.warning("instance %s: etcd has lost what is wanted drained; writing it again", self._core.instance)
        if self._value is not None:
            await self._write(absent(self._key), Put(self._key, self._value))

    async def _end(self, watch: Watch) -> None:
        """The operator wants the server stopped. The wish goes first: a server that is started again shall serve."""
        if self._stop is None:
            text = "the server can't be stopped from here: this monitor has not started it"
            self._core.report("stop", [Condition("StopNotPossible", text)])
            watch.publish()
            return
        self._stopping = True
        log.info("instance %s: drained, and now to be stopped as an operator wants", self._core.instance)
        if self._value is not None:
            await self._write(Compare(self._key, Target.VALUE, self._value), Delete(self._key))
        self._stop()
        await asyncio.Event().wait()

    async def _write(self, condition: Compare, operation: Operation) -> None:
        while True:
            with contextlib.suppress(EtcdError):
                await self._etcd.transact([condition], [operation])
                return
            await asyncio.sleep(_RETRY)
