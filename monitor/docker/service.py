"""The monitor of one Docker host from start to end: its signals and what it is made of."""

from __future__ import annotations

import asyncio

from monitor.config import MonitorConfig
from monitor.docker.config import DockerConfig
from monitor.docker.engine import Engine
from monitor.docker.host import HostMonitor
from monitor.errors import MonitorError
from monitor.metrics import MonitorMetrics, served
from monitor.signals import StopSignals
from registry.etcd import EtcdClient


async def run(config: MonitorConfig, docker: DockerConfig) -> int:
    """Watch all containers of the host that are meant for it until SIGTERM or SIGINT. Returns the exit code. Raises
    MonitorError for what a user can mend, EtcdError if etcd's TLS files can't be read."""
    _check(config)
    signals = StopSignals()
    async with Engine(docker.docker_url) as engine, EtcdClient(config.etcd) as etcd:
        metrics = MonitorMetrics()
        with served(config.metrics_listen, metrics), signals.installed():
            host = HostMonitor(config, docker, engine, etcd, signals, metrics)
            following = asyncio.create_task(host.follow(), name="engine")
            stopping = asyncio.create_task(signals.stop.wait(), name="stop")
            try:
                await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                following.cancel()
                await asyncio.wait({following, stopping})
                await host.end()
            if not following.cancelled():
                following.result()
    return 0


def _check(config: MonitorConfig) -> None:
    for name in ("target", "model", "model_config_file", "rest_port", "instance"):
        if getattr(config, name):
            flag = "--" + name.replace("_", "-")
            raise MonitorError(
                f"{flag} is for one server; with --docker each container's labels say it (docs/docker.md)"
            )
