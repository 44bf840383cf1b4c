"""One monitor from start to end: its plan, its signals, and the server that it owns, if any. Invariant: it leaves no
process behind that it started, whatever happened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from monitor.child import OwnedServer
from monitor.config import MonitorConfig
from monitor.consent import Consent, own_models, started_empty
from monitor.free_port import until_free
from monitor.instance import InstanceMonitor
from monitor.metrics import MonitorMetrics, served
from monitor.model_config import ModelConfigFile
from monitor.plan import Plan, make_plan
from monitor.server_flags import read_flags
from monitor.signals import StopSignals
from registry.etcd import EtcdClient


async def run(config: MonitorConfig, command: Sequence[str] = ()) -> int:
    """Watch one server until SIGTERM or SIGINT, or until the owned one ends; `command` starts the one to own.

    Returns the exit code: 0 after a drain, the server's own (128 + N for signal N) if it ended by itself. Raises
    MonitorError for what a user can mend, a port that is taken among them, EtcdError if etcd's TLS files can't be read.
    """
    if config.manage and command:
        with started_empty(command, read_flags(command, os.environ), os.environ) as fit:
            return await _run(config, fit)
    return await _run(config, command)


async def _run(config: MonitorConfig, command: Sequence[str]) -> int:
    plan = make_plan(config, command, os.environ)
    file = ModelConfigFile(plan.config_file) if plan.config_file else None
    if file is not None:
        file.load()
    consent = _consent(config, plan, file) if config.manage else None
    signals = StopSignals()
    metrics = MonitorMetrics()
    async with EtcdClient(config.etcd) as etcd:
        with served(config.metrics_listen, metrics), signals.installed():
            if command:
                if not await until_free(plan.host, plan.port, signals.stop):
                    return 0
                child = await OwnedServer.start(command)
                return await _own(config, plan, file, etcd, signals, child, consent, metrics)
            await InstanceMonitor(config, plan, file, etcd, signals, consent=consent, metrics=metrics).run()
            return 0


def _consent(config: MonitorConfig, plan: Plan, file: ModelConfigFile | None) -> Consent:
    own = own_models(plan.flags, file.whole() if file else None, [model.name for model in plan.models])
    return Consent(own, sees_disk=not config.disk_elsewhere)


async def _own(
    config: MonitorConfig,
    plan: Plan,
    file: ModelConfigFile | None,
    etcd: EtcdClient,
    signals: StopSignals,
    child: OwnedServer,
    consent: Consent | None,
    metrics: MonitorMetrics,
) -> int:
    async def stop() -> None:
        if child.running:
            await child.stop(config.stop_grace, signals.kill)
            stopped.set()

    stopped = asyncio.Event()
    monitor = InstanceMonitor(
        config,
        plan,
        file,
        etcd,
        signals,
        new_server=True,
        stop_server=stop,
        owned=True,
        consent=consent,
        metrics=metrics,
    )
    ended = asyncio.create_task(child.wait(), name="owned server")
    ended.add_done_callback(lambda _: monitor.server_ended(child.describe_end()))
    try:
        await monitor.run()
        return 0 if stopped.is_set() else await ended
    finally:
        child.kill()
        await ended
