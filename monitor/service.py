"""One monitor from start to end: its plan, its signals, and the server that it owns, if any. Invariant: it leaves no
process behind that it started, whatever happened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from monitor.child import OwnedServer
from monitor.config import MonitorConfig
from monitor.free_port import until_free
from monitor.instance import InstanceMonitor
from monitor.model_config import ModelConfigFile
from monitor.plan import Plan, make_plan
from monitor.signals import StopSignals
from registry.etcd import EtcdClient


async def run(config: MonitorConfig, command: Sequence[str] = ()) -> int:
    """Watch one server until SIGTERM or SIGINT, or until the owned one ends; `command` starts the one to own.

    Returns the exit code: 0 after a drain, the server's own (128 + N for signal N) if it ended by itself. Raises
    MonitorError for what a user can mend, a port that is taken among them, EtcdError if etcd's TLS files can't be read.
    """
    plan = make_plan(config, command, os.environ)
    file = ModelConfigFile(plan.config_file) if plan.config_file else None
    if file is not None:
        file.load()
    signals = StopSignals()
    async with EtcdClient(config.etcd) as etcd:
        with signals.installed():
            if command:
                if not await until_free(plan.host, plan.port, signals.stop):
                    return 0
                child = await OwnedServer.start(command)
                return await _own(config, plan, file, etcd, signals, child)
            await InstanceMonitor(config, plan, file, etcd, signals).run()
            return 0


async def _own(
    config: MonitorConfig,
    plan: Plan,
    file: ModelConfigFile | None,
    etcd: EtcdClient,
    signals: StopSignals,
    child: OwnedServer,
) -> int:
    async def stop() -> None:
        if child.running:
            await child.stop(config.stop_grace, signals.kill)
            stopped.set()

    stopped = asyncio.Event()
    monitor = InstanceMonitor(config, plan, file, etcd, signals, new_server=True, stop_server=stop, owned=True)
    ended = asyncio.create_task(child.wait(), name="owned server")
    ended.add_done_callback(lambda _: monitor.server_ended(child.describe_end()))
    try:
        await monitor.run()
        return 0 if stopped.is_set() else await ended
    finally:
        child.kill()
        await ended
