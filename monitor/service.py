"""One monitor from start to end. Invariant: when it ends in good order its keys are gone, and a server that it owns was
stopped only after every Envoy had turned away from it, or after a deadline or a second signal said not to wait."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from monitor.address import advertised_address
from monitor.child import OwnedServer
from monitor.client import ServerClient
from monitor.config import MonitorConfig
from monitor.core import MonitorCore, Timing
from monitor.drain import Drain
from monitor.model_config import ModelConfigFile
from monitor.plan import Plan, make_plan
from monitor.predecessor import stale_keys
from monitor.signals import StopSignals
from monitor.watch import Watch
from registry.addresses import join_address
from registry.etcd import EtcdClient
from registry.keys import Keyspace
from registry.leased import LeasedKeys
from registry.records import ReadyRecord, ReadyState

log = logging.getLogger(__name__)

_LAST_WORD = 2.0
"""Seconds that the news of a dead server may take to etcd before the monitor ends all the same."""
_PROGRESS = 5.0


async def run(config: MonitorConfig, command: Sequence[str] = ()) -> int:
    """Watch one server until SIGTERM or SIGINT, or until the owned one ends; `command` starts the one to own.

    Returns the exit code: 0 after a drain, the server's own (128 + N for signal N) if it ended by itself. Raises
    MonitorError for what a user can mend, EtcdError if etcd's TLS files can't be read.
    """
    plan = make_plan(config, command, os.environ)
    file = ModelConfigFile(plan.config_file) if plan.config_file else None
    if file is not None:
        file.load()
    signals = StopSignals()
    async with EtcdClient(config.etcd) as etcd, ServerClient(plan.host, plan.port) as client:
        with signals.installed():
            child = await OwnedServer.start(command) if command else None
            monitor = _Monitor(config, plan, file, etcd, client, child, signals)
            try:
                return await monitor.run()
            finally:
                await monitor.close()


class _Monitor:
    def __init__(
        self,
        config: MonitorConfig,
        plan: Plan,
        file: ModelConfigFile | None,
        etcd: EtcdClient,
        client: ServerClient,
        child: OwnedServer | None,
        signals: StopSignals,
    ) -> None:
        self._config = config
        self._plan = plan
        self._file = file
        self._etcd = etcd
        self._client = client
        self._child = child
        self._signals = signals
        self._keyspace = Keyspace(config.prefix)

        self._ended = asyncio.create_task(child.wait()) if child else None

    async def run(self) -> int:
        config, plan = self._config, self._plan
        resolving = asyncio.create_task(
            advertised_address(config.advertise_address, plan.host, config.etcd.addresses), name="address"
        )
        if not await self._until_told_to_end(resolving):
            return await self._stop_child()
        address = resolving.result()
        name = config.instance or join_address(address, plan.port)
        endpoint = ReadyRecord(
            ReadyState.READY, address, plan.port, plan.rest_port, zone=config.zone, capacity=config.capacity
        )
        timing = Timing(config.poll_interval, slow_for=2 * config.poll_deadline)
        core = MonitorCore(name, endpoint, version("modelplane"), timing, patient=self._child is not None)
        leased = LeasedKeys(self._etcd, config.lease_ttl)
        inheriting = asyncio.create_task(
            stale_keys(self._etcd, self._keyspace, name, endpoint, new_server=self._child is not None), name="inherit"
        )
        if not await self._until_told_to_end(inheriting):
            return await self._stop_child()
        leased.set(dict.fromkeys(inheriting.result()))
        log.info("instance %s: watching the server at %s, registry %s", name, self._client.target, config.prefix)
        async with asyncio.TaskGroup() as group:
            registration = group.create_task(leased.run(), name="registration")
            watch = Watch(core, self._client, leased, config, plan.models, self._file, group)
            try:
                await self._until_told_to_end()
                code = await self._end(core, watch, leased)
            finally:
                watch.stop()
                await leased.close()
                registration.cancel()
        return code

    async def close(self) -> None:
        """Leave no process behind, whatever happened."""
        if self._child is not None and self._ended is not None:
            self._child.kill()
            await self._ended

    async def _until_told_to_end(self, work: asyncio.Task[Any] | None = None) -> bool:
        """Wait for a stop signal, the child's end, or `work`; whether `work` is done. If not it has been cancelled."""
        try:
            await self._first(self._signals.stop, work)
            return work is not None and work.done()
        finally:
            if work is not None and not work.done():
                work.cancel()
                await asyncio.wait({work})

    async def _first(
        self, event: asyncio.Event, work: asyncio.Task[Any] | None = None, timeout: float | None = None
    ) -> None:
        """Wait until the event is set, the child has ended, `work` is done, or time is up."""
        signalled = asyncio.create_task(event.wait())
        tasks = {task for task in (signalled, self._ended, work) if task is not None}
        try:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            signalled.cancel()

    async def _end(self, core: MonitorCore, watch: Watch, leased: LeasedKeys) -> int:
        if self._child is not None and not self._child.running:
            reason = self._child.describe_end()
            log.error("instance %s: %s", core.instance, reason)
            watch.stop()
            core.ended(reason)
            watch.publish()
            try:
                async with asyncio.timeout(_LAST_WORD):
                    await leased.flush()
            except TimeoutError:
                log.warning("instance %s: etcd could not be told; its keys expire by themselves", core.instance)
        else:
            await self._drain(core, watch, leased)
        return await self._stop_child()

    async def _stop_child(self) -> int:
        """End the owned server, if it runs; the monitor's exit code."""
        if self._child is None:
            return 0
        if self._child.running:
            await self._child.stop(self._config.stop_grace, self._signals.kill)
            return 0
        return await self._child.wait()

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
                await self._first(self._signals.hasten, work, min(pause, limit - (clock() - started)))
                pause = _PROGRESS
                if not work.done():
                    log.info("instance %s: draining, waiting for %s", core.instance, "; ".join(drain.waiting()))
        finally:
            work.cancel()
            await asyncio.wait({work})
        if work.cancelled():
            why = "asked not to wait" if self._signals.hasten.is_set() else f"not drained after {limit:g} s"
            log.warning("instance %s: %s; still waited for: %s", core.instance, why, "; ".join(drain.waiting()))
        else:
            work.result()
            log.info("instance %s: drained in %.1f s", core.instance, clock() - started)

    def _over(self, elapsed: float) -> bool:
        child_gone = self._ended is not None and self._ended.done()
        return child_gone or self._signals.hasten.is_set() or elapsed >= self._config.drain_deadline
