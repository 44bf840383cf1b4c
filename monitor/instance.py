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

from monitor.address import advertised_address, moved
from monitor.claiming import make_claimant, turned_away, wait_for_turn
from monitor.client import ServerClient
from monitor.config import MonitorConfig
from monitor.consent import Consent
from monitor.core import MonitorCore, Timing
from monitor.drain import Drain
from monitor.drain_course import see_through
from monitor.errors import InstanceSupersededError
from monitor.inherited import Inherited
from monitor.instance_keys import About
from monitor.load_watch import LoadWatch
from monitor.manager import Manager
from monitor.metrics import MonitorMetrics
from monitor.model_config import ModelConfigFile
from monitor.plan import Plan
from monitor.predecessor import Remains, answers, remains
from monitor.proof_course import ReproofPolicy
from monitor.signals import StopOrders
from monitor.watch import Watch
from monitor.wished_drain import WishedDrain
from registry.addresses import join_address
from registry.claims import Claim, Claimant, SupersededError
from registry.etcd import EtcdClient
from registry.keys import Keyspace, LoadKey
from registry.leased import LeasedKeys
from registry.records import Condition, ReadyRecord, ReadyState

log = logging.getLogger(__name__)

_LAST_WORD = 2.0
"""Seconds that the news of a dead server may take to etcd before the monitor ends all the same."""
_LOOK = 1.0
"""Seconds between two looks at a server that an earlier monitor registered."""
_BEFORE_THE_DEADLINE = 5.0
"""Seconds before the end of a drain deadline at which what leads to a superseded monitor's server goes at the latest.
"""


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
        owned: bool = False,
        consent: Consent | None = None,
        metrics: MonitorMetrics | None = None,
    ) -> None:
        """`new_server`: the server was started just now, so keys of an earlier run can't be true. `stop_server` ends
        the server; it is awaited between the drain and the end of the keys, and not if the server ended by itself.
        `owned`: the server ends with this monitor, so one that is superseded has to stop it too. `consent`: it is
        managed; None: only watched."""
        self._config = config
        self._plan = plan
        self._file = file
        self._etcd = etcd
        self._orders = orders
        self._new_server = new_server
        self._stop_server = stop_server
        self._owned = owned
        self._consent = consent
        self._metrics = metrics or MonitorMetrics()
        self._left = Remains()
        self._keyspace = Keyspace(config.prefix)
        self._ended = asyncio.Event()
        self._end_reason = ""
        self._leaving = self._moved = False
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
            while self._moved:
                # What is registered leads nowhere, and has gone. All begins anew, but for the server.
                self._moved = self._new_server = False
                self._left = Remains()
                if not (self._end_reason or self._leaving):
                    self._ended.clear()
                await self._run(client)

    async def _run(self, client: ServerClient) -> None:
        config, plan = self._config, self._plan
        resolving = asyncio.create_task(
            advertised_address(config.advertise_address, plan.host, config.etcd.addresses), name="address"
        )
        if not await self._until_told_to_end(resolving):
            await self._stop()
            return
        following = asyncio.create_task(self._follow(resolving.result()), name="moved")
        try:
            await self._run_at(resolving.result(), client)
        finally:
            following.cancel()
            await asyncio.wait({following})
        if not following.cancelled():
            following.result()

    async def _follow(self, address: str) -> None:
        config, host = self._config, self._plan.host
        now = await moved(address, config.advertise_address, host, config.etcd.addresses)
        log.warning("port %d: the server is no longer at %s but at %s", self._plan.port, address, now)
        self._moved = True
        self._ended.set()

    async def _run_at(self, address: str, client: ServerClient) -> None:
        config, plan = self._config, self._plan
        name = config.instance or join_address(address, plan.port)
        endpoint = ReadyRecord(
            ReadyState.READY, address, plan.port, plan.rest_port, zone=config.zone, capacity=config.capacity
        )
        reproof = ReproofPolicy(config.reprove_interval, config.reprove_rate, config.probe_deadline)
        timing = Timing(config.poll_interval, slow_for=2 * config.poll_deadline, reproof=reproof)
        about = About(self._consent is not None, config.labels, config.memory_bytes(owned=self._owned))
        core = MonitorCore(name, endpoint, version("modelplane"), timing, patient=self._new_server, about=about)
        claimant = make_claimant(self._keyspace, name, join_address(address, plan.port), config.lease_ttl)
        turn = asyncio.create_task(wait_for_turn(self._etcd, claimant), name="turn")
        if await self._until_told_to_end(turn):
            leased = LeasedKeys(self._etcd, config.lease_ttl, claimant, self._refresh)
            with self._metrics.following(core, leased):
                await self._claim_and_run(core, client, endpoint, claimant, leased)
        else:
            await self._stop()

    async def _claim_and_run(
        self, core: MonitorCore, client: ServerClient, endpoint: ReadyRecord, claimant: Claimant, leased: LeasedKeys
    ) -> None:
        config, plan, name = self._config, self._plan, core.instance
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(leased.run(), name="claim")
            inheriting = asyncio.create_task(self._inherit(core, leased, endpoint), name="inherit")
            try:
                if await self._until_told_to_end(inheriting):
                    inheriting.result()
                    log.info("instance %s: watching the server at %s, registry %s", name, client.target, config.prefix)
                    self._watch = Watch(core, client, leased, config, plan.models, self._file, group, plan.flags)
                    self._watch.hold(self._held)
                    self._watch.distrust(self._distrusted)
                    for source, conditions in self._conditions.items():
                        self._watch.report(source, conditions)
                    claiming.cancel()
                    await asyncio.wait({claiming})
                    await self._until_the_end(core, client, self._watch, leased, claimant)
                else:
                    await self._stop()
            finally:
                watch, self._watch = self._watch, None
                if watch is not None:
                    watch.stop()
                if not self._leaving:
                    await leased.close()
                claiming.cancel()
        if leased.superseded_by is not None:
            raise InstanceSupersededError(name, leased.superseded_by)

    async def _refresh(self) -> None:
        if self._watch is not None:
            await self._watch.refresh()

    async def _inherit(self, core: MonitorCore, leased: LeasedKeys, endpoint: ReadyRecord) -> None:
        """Take over what an earlier monitor left. With an etcd that is away, nothing: it runs out by itself."""
        try:
            async with asyncio.timeout(self._config.etcd.timeout):
                await leased.claimed()
        except TimeoutError:
            return
        name, keyspace = core.instance, self._keyspace
        left = await remains(self._etcd, keyspace, name, endpoint, new_server=self._new_server)
        leased.set({keyspace.make(key): None for key in left.stale})
        core.inherit(Inherited(left.here, left.elsewhere))
        self._left = left

    async def _until_the_end(
        self, core: MonitorCore, client: ServerClient, watch: Watch, leased: LeasedKeys, claimant: Claimant
    ) -> None:
        stop = self._orders.stop.set if self._stop_server is not None else None
        wished = WishedDrain(self._etcd, leased, self._keyspace, core, stop)
        async with asyncio.TaskGroup() as group:
            registration = group.create_task(_register(leased, wished), name="registration")
            draining = group.create_task(_drain_as_wished(wished, watch), name="wished drain")
            keeper = group.create_task(self._keep_inherited(core, watch), name="inherited endpoints")
            loads = group.create_task(self._tell_load(core.instance, leased), name="load")
            manager = group.create_task(self._manage(core, client, watch, leased), name="manager")
            try:
                await self._until_told_to_end(asyncio.create_task(leased.superseded(), name="superseded"))
                draining.cancel()
                manager.cancel()
                keeper.cancel()
                if leased.superseded_by is None:
                    await self._end(core, watch, leased)
            except* SupersededError:
                log.debug("instance %s: found out by a write of the end that it is superseded", core.instance)
            finally:
                for task in (draining, manager, keeper, loads, registration):
                    task.cancel()
        if leased.superseded_by is not None:
            watch.stop()
            await self._give_way(core, leased.superseded_by, claimant.claim)

    async def _manage(self, core: MonitorCore, client: ServerClient, watch: Watch, leased: LeasedKeys) -> None:
        if self._consent is None:
            return
        keyspace, deadline, left = self._keyspace, self._config.drain_deadline, self._left
        manager = Manager(self._consent, self._etcd, leased, keyspace, core, client, watch, deadline, left)
        try:
            await manager.run()
        except* SupersededError:
            log.debug("instance %s: no longer managed from here: superseded", core.instance)

    async def _keep_inherited(self, core: MonitorCore, watch: Watch) -> None:
        """Give inherited endpoints of another server up once that is gone; and in the end in any case, before a monitor
        like this one, if it is there, stops its server."""
        clock = asyncio.get_running_loop().time
        began, limit = clock(), max(0.0, self._config.drain_deadline - _BEFORE_THE_DEADLINE)
        while places := core.inherited_places:
            living = [await answers(*place) for place in places]
            if not all(living) or clock() - began >= limit:
                core.release()
                watch.publish()
            await asyncio.sleep(_LOOK)

    async def _give_way(self, core: MonitorCore, by: Claim, own: Claim) -> None:
        """Nothing is written any more. An owned server, which ends with this monitor, runs on until no Envoy sends to
        it; any other is none of this monitor's business now."""
        log.error("instance %s: superseded by %s; this monitor stops", core.instance, by)
        if not self._owned or self._ended.is_set():
            return
        if by.address == own.address:
            log.warning("instance %s: the newer monitor watches this same server, which runs on", core.instance)
            await self._until_told_to_end()
        else:
            limit = self._config.drain_deadline
            log.info("instance %s: the server runs on until Envoy has turned away, at most %g s", core.instance, limit)
            keys = frozenset(self._keyspace.make(key) for key in core.ready_keys)
            waiting = turned_away(self._etcd, self._keyspace, core.instance, keys, own.address)
            work = asyncio.create_task(waiting, name="turned away")
            try:
                await self._first(self._orders.hasten, work, limit)
            finally:
                work.cancel()
                await asyncio.wait({work})
        await self._stop()

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
        if self._moved and not (self._end_reason or self._orders.stop.is_set()):
            log.info("instance %s: given up, for its address is gone", core.instance)
        elif self._leaving:
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
        drain = Drain(self._etcd, leased, core.instance, self._keyspace)
        drained = await see_through(drain, core.instance, "", self._first(self._orders.hasten), limit)
        self._metrics.drains[drained] += 1
        if not drained:
            why = "asked not to wait" if self._orders.hasten.is_set() else f"not drained after {limit:g} s"
            log.warning("instance %s: %s; still waited for: %s", core.instance, why, "; ".join(drain.waiting()))


async def _drain_as_wished(wished: WishedDrain, watch: Watch) -> None:
    try:
        await wished.run(watch)
    except* SupersededError:
        # Nothing can be drained by it any more; the instance's monitor ends for the same reason.
        log.debug("a drain has ended: superseded")


async def _register(leased: LeasedKeys, wished: WishedDrain) -> None:
    # What an operator wants kept drained must not be READY first.
    await wished.known.wait()
    await leased.run()
