"""All that is done for one instance, from its registration to its end. Several of these may run in one process: they
share the etcd client, and each has a core, a watch and a lease of its own.

Invariant: when it ends in good order its keys are gone, and its server was stopped, if that is asked for, only after
every Envoy had turned away from it, or after a deadline or an order said not to wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from typing import Any

from monitor.address import advertised_address
from monitor.client import ServerClient
from monitor.config import MonitorConfig
from monitor.core import MonitorCore, Timing
from monitor.drain import Drain
from monitor.load_watch import LoadWatch
from monitor.model_config import ModelConfigFile
from monitor.plan import Plan
from monitor.predecessor import stale_keys
from monitor.proof_course import ReproofPolicy
from monitor.signals import StopOrders
from monitor.watch import Watch
from monitor.wished_drain import WishedDrain
from registry.addresses import join_address
from registry.etcd import EtcdClient
from registry.keys import Keyspace, LoadKey
from registry.leased import LeasedKeys
from registry.records import Condition, ReadyRecord, ReadyState

log = logging.getLogger(__name__)

_LAST_WORD = 2.0
"""Seconds that the news of a dead server may take to etcd before the monitor ends all the same."""
_PROGRESS = 5.0


class InstanceMonitor:
    """One instance. `run` it once; `orders` and `server_ended` say when it is to end."""

    def __init__(
        self,
        config: MonitorConfig,
        plan: Plan,
        file: ModelConfigFile | None,
        etcd: EtcdClient,
        orders: StopOrders,
        *,
        new_server: bool = False,
        stop_server: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`new_server`: the server was started just now, so keys of an earlier run can't be true. `stop_server` ends
        the server; it is awaited between the drain and the end of the keys, and not if the server ended by itself."""
        self._config = config
        self._plan = plan
        self._file = file
        self._etcd = etcd
        self._orders = orders
        self._new_server = new_server
        self._stop_server = stop_server
        self._keyspace = Keyspace(config.prefix)
        self._ended = asyncio.Event()
        self._end_reason = ""
        self._leaving = False
        self._held = self._distrusted = ""
        self._conditions: dict[str, tuple[Condition, ...]] = {}
        self._watch: Watch | None = None

    def server_ended(self, reason: str) -> None:
        """The server's process is known to have ended, as `reason` says: the keys go at once, and `run` returns."""
        self._end_reason = reason
        self._ended.set()

    def leave(self) -> None:
        """End at once and leave the keys, for as long as their lease lasts, to the monitor that follows."""
        self._leaving = True
        self._ended.set()

    def hold(self, reason: str) -> None:
        """The server is known not to answer, as `reason` says, until this is called again with an empty one: it counts
        as unreachable at once, without being asked."""
        self._held = reason
        if self._watch is not None:
            self._watch.hold(reason)

    def distrust(self, why: str) -> None:
        """The server is said to be unwell, as `why` says: a last resort, until this is called with an empty text."""
        self._distrusted = why
        if self._watch is not None:
            self._watch.distrust(why)

    def report(self, source: str, conditions: Iterable[Condition]) -> None:
        """Troubles of the instance that `source` sees now, in place of those that it saw before."""
        self._conditions[source] = tuple(conditions)
        if self._watch is not None:
            self._watch.report(source, self._conditions[source])

    async def run(self) -> None:
        """Watch until an order or the server's end. Cancelled, it gives up its lease, and so its keys, at once."""
        async with ServerClient(self._plan.host, self._plan.port) as client:
            await self._run(client)

    async def _run(self, client: ServerClient) -> None:
        config, plan = self._config, self._plan
        resolving = asyncio.create_task(
            advertised_address(config.advertise_address, plan.host, config.etcd.addresses), name="address"
        )
        if not await self._until_told_to_end(resolving):
            return await self._stop()
        address = resolving.result()
        name = config.instance or join_address(address, plan.port)
        endpoint = ReadyRecord(
            ReadyState.READY, address, plan.port, plan.rest_port, zone=config.zone, capacity=config.capacity
        )
        reproof = ReproofPolicy(config.reprove_interval, config.reprove_rate, config.probe_deadline)
        timing = Timing(config.poll_interval, slow_for=2 * config.poll_deadline, reproof=reproof)
        core = MonitorCore(name, endpoint, version("modelplane"), timing, patient=self._new_server)
        leased = LeasedKeys(self._etcd, config.lease_ttl)
        inheriting = asyncio.create_task(
            stale_keys(self._etcd, self._keyspace, name, endpoint, new_server=self._new_server), name="inherit"
        )
        if not await self._until_told_to_end(inheriting):
            return await self._stop()
        leased.set(dict.fromkeys(inheriting.result()))
        log.info("instance %s: watching the server at %s, registry %s", name, client.target, config.prefix)
        async with asyncio.TaskGroup() as group:
            watch = Watch(core, client, leased, config, plan.models, self._file, group, plan.flags)
            self._watch = watch
            watch.hold(self._held)
            watch.distrust(self._distrusted)
            for source, conditions in self._conditions.items():
                watch.report(source, conditions)
            stop = self._orders.stop.set if self._stop_server is not None else None
            wished = WishedDrain(self._etcd, leased, self._keyspace, core, stop)
            draining = group.create_task(wished.run(watch), name="wished drain")
            registration = group.create_task(_register(leased, wished), name="registration")
            loads = group.create_task(self._tell_load(name, leased), name="load")
            try:
                await self._until_told_to_end()
                draining.cancel()
                await self._end(core, watch, leased)
            finally:
                self._watch = None
                draining.cancel()
                loads.cancel()
                watch.stop()
                if not self._leaving:
                    await leased.close()
                registration.cancel()

    async def _tell_load(self, name: str, leased: LeasedKeys) -> None:
        plan, interval = self._plan, self._config.load_interval
        if plan.rest_port and interval:
            key = self._keyspace.make(LoadKey(name))
            await LoadWatch(name, plan.host, plan.rest_port, interval, lambda record: leased.set({key: record})).run()

    async def _until_told_to_end(self, work: asyncio.Task[Any] | None = None) -> bool:
        """Wait for a stop order, the server's end, or `work`; whether `work` is done. If not it has been cancelled."""
        try:
            await self._first(self._orders.stop, work)
            return work is not None and work.done()
        finally:
            if work is not None and not work.done():
                work.cancel()
                await asyncio.wait({work})

    async def _first(
        self, event: asyncio.Event, work: asyncio.Task[Any] | None = None, timeout: float | None = None
    ) -> None:
        """Wait until the event is set, the server has ended, `work` is done, or time is up."""
        events = {asyncio.create_task(event.wait()), asyncio.create_task(self._ended.wait())}
        tasks: set[asyncio.Task[Any]] = {*events, work} if work is not None else {*events}
        try:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in events:
                task.cancel()

    async def _end(self, core: MonitorCore, watch: Watch, leased: LeasedKeys) -> None:
        if self._leaving:
            log.info("instance %s: left as it is, its keys last for %g s", core.instance, self._config.lease_ttl)
        elif self._ended.is_set():
            log.error("instance %s: %s", core.instance, self._end_reason)
            watch.stop()
            core.ended(self._end_reason)
            await self._last_word(core, watch, leased)
        else:
            await self._drain(core, watch, leased)
            if self._leaving:
                return
            await self._stop()
            watch.stop()
            core.left()
            await self._last_word(core, watch, leased)

    async def _last_word(self, core: MonitorCore, watch: Watch, leased: LeasedKeys) -> None:
        watch.publish()
        try:
            async with asyncio.timeout(_LAST_WORD):
                await leased.flush()
        except TimeoutError:
            log.warning("instance %s: etcd could not be told; its keys expire by themselves", core.instance)

    async def _stop(self) -> None:
        if self._stop_server is not None and not self._ended.is_set():
            await self._stop_server()

    async def _drain(self, core: MonitorCore, watch: Watch, leased: LeasedKeys) -> None:
        busy = core.drain()
        watch.publish()
        if not busy:
            log.info("instance %s: nothing of it was ready, so there is nothing to drain", core.instance)
            return
        limit = self._config.drain_deadline
        log.info("instance %s: draining, for at most %g s", core.instance, limit)
        clock = asyncio.get_running_loop().time
        started = clock()
        drain = Drain(self._etcd, leased, core.instance, self._keyspace)
        work = asyncio.create_task(drain.run(), name="drain")
        try:
            pause = 1.0
            while not work.done() and not self._over(clock() - started):
                await self._first(self._orders.hasten, work, min(pause, limit - (clock() - started)))
                pause = _PROGRESS
                if not work.done():
                    log.info("instance %s: draining, waiting for %s", core.instance, "; ".join(drain.waiting()))
        finally:
            work.cancel()
            await asyncio.wait({work})
        if work.cancelled():
            why = "asked not to wait" if self._orders.hasten.is_set() else f"not drained after {limit:g} s"
            log.warning("instance %s: %s; still waited for: %s", core.instance, why, "; ".join(drain.waiting()))
        else:
            work.result()
            log.info("instance %s: drained in %.1f s", core.instance, clock() - started)

    def _over(self, elapsed: float) -> bool:
        return self._ended.is_set() or self._orders.hasten.is_set() or elapsed >= self._config.drain_deadline


async def _register(leased: LeasedKeys, wished: WishedDrain) -> None:
    # What an operator wants kept drained must not be READY first.
    await wished.known.wait()
    await leased.run()
