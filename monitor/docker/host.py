"""Follows one Docker engine, and keeps a monitor for each container that is meant for us.

Invariant: an instance ends only because its container was seen to have ended, to have moved, or to be no longer meant
for us: never because the engine can't be asked. Its server answers all the same, and that is asked directly.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monitor.config import MonitorConfig
from monitor.docker.attachment import Attachment
from monitor.docker.config import DockerConfig
from monitor.docker.container import read_container
from monitor.docker.core import Decision, DockerCore
from monitor.docker.engine import Engine, EngineError
from monitor.docker.events import to_look_at
from monitor.docker.refusal import QUIET, Refusal
from monitor.errors import MonitorError
from monitor.metrics import MonitorMetrics
from monitor.signals import StopSignals
from registry.etcd import EtcdClient

log = logging.getLogger(__name__)

RESYNC = 30.0
"""Seconds without an event after which everything is listed anew: an engine that hangs sends none either."""
_FIRST_RETRY, _LAST_RETRY = 0.1, 3.0
_OVERLAP = 2.0
"""Seconds before the latest known moment from which events are asked for; one that comes twice costs one look more."""
_OWN_FILE = re.compile(
    r"/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf) /etc/(?:hostname|hosts|resolv\.conf) "
)


class HostMonitor:
    """`follow` until told to stop, then `end`."""

    def __init__(
        self,
        config: MonitorConfig,
        docker: DockerConfig,
        engine: Engine,
        etcd: EtcdClient,
        signals: StopSignals,
        metrics: MonitorMetrics,
    ) -> None:
        self._config = config
        self._docker = docker
        self._engine = engine
        self._etcd = etcd
        self._signals = signals
        self._metrics = metrics
        self._core: DockerCore | None = None
        self._attachments: dict[str, Attachment] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._refusals: Mapping[str, Refusal] = {}
        self._since = time.time()

    async def follow(self) -> None:
        """Never returns. Raises MonitorError for what waiting won't mend (this user may not talk to the engine, a proxy
        refuses, there is no socket), or if none has answered for --docker-wait."""
        pause, away, began = _FIRST_RETRY, False, time.monotonic()
        log.info("asking the Docker engine at %s", self._engine.url)
        while True:
            reason = "its events ended"
            try:
                async with self._engine.events(self._since - _OVERLAP) as queue:
                    never = self._core is None
                    await self._list()
                    if away and not never:
                        log.info("the Docker engine is back")
                    pause, away = _FIRST_RETRY, False
                    await self._take(queue)
            except EngineError as error:
                reason = str(error)
                if self._core is None:
                    self._give_up(error, time.monotonic() - began)
            if not away:
                away = True
                self._say_away(reason)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY)

    def _give_up(self, error: EngineError, waited: float) -> None:
        """Of an engine that has never answered: raise MonitorError if it is no use to wait, or has been long enough."""
        longest = self._docker.docker_wait
        if error.mend:
            mend = error.mend
        elif longest is not None and waited >= longest:
            mend = f"no engine has answered for {longest:g} s (--docker-wait); start it, or name another: --docker-url"
        else:
            return
        raise MonitorError(f"{self._engine.url}: {error}; {mend}") from None

    def _say_away(self, reason: str) -> None:
        if self._core is not None:
            log.warning("the Docker engine at %s is away, its containers stay watched: %s", self._engine.url, reason)
            return
        longest = self._docker.docker_wait
        log.warning(
            "no Docker engine answers at %s, so nothing is watched: %s; trying again %s (another: --docker-url)",
            self._engine.url,
            reason,
            "until one does" if longest is None else f"for {longest:g} s (--docker-wait)",
        )

    async def end(self) -> None:
        """End all instances as --docker-at-exit says."""
        drain = self._docker.docker_at_exit == "drain"
        for attachment in self._attachments.values():
            attachment.drain() if drain else attachment.leave()
        hastened = asyncio.create_task(self._hasten(), name="hasten")
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        hastened.cancel()

    async def _hasten(self) -> None:
        await self._signals.hasten.wait()
        for attachment in self._attachments.values():
            attachment.drain(hasten=True)

    async def _take(self, queue: asyncio.Queue[Mapping[str, Any] | None]) -> None:
        """Look at what events tell of; returns when there are no more."""
        while True:
            try:
                async with asyncio.timeout(RESYNC):
                    events = [await queue.get()]
            except TimeoutError:
                await self._list()
                continue
            while not queue.empty():
                events.append(queue.get_nowait())
            for container_id in dict.fromkeys(to_look_at(event) for event in events if event is not None):
                if container_id:
                    await self._look(container_id)
            self._apply()
            if None in events:
                return
            self._since = time.time()

    async def _list(self) -> None:
        since = time.time()
        bridges = await self._engine.bridges()
        containers = [read_container(one) for one in await self._engine.containers()]
        if self._core is None:
            docker = self._docker
            host = docker.docker_host_name or await self._engine.name()
            own = own_container(_mounts(), socket.gethostname(), (one.id for one in containers))
            seat = f"container {own[:12]}" if own else "the host itself"
            log.info("watching the containers of Docker host %s, from %s", host, seat)
            advertise = self._config.advertise_address or ""
            self._core = DockerCore(host, own, docker.docker_network, advertise)
            first = True
        else:
            first = False
        self._core.listed(containers, bridges)
        self._since = since
        self._apply(first=first)

    async def _look(self, container_id: str) -> None:
        assert self._core is not None, "listed before events are taken"
        inspection = await self._engine.inspect(container_id)
        if inspection is None:
            self._core.gone(container_id)
            return
        container = read_container(inspection)
        if not self._core.knows(container.networks):
            await self._list()
        self._core.seen(container)

    def _apply(self, *, first: bool = False) -> None:
        assert self._core is not None, "there is a core once there was a list"
        decision = self._core.decide()
        self._say(decision)
        for name, attachment in self._attachments.items():
            target = decision.targets.get(name)
            attachment.want(target, "" if target else self._why_not(attachment.name, decision))
        for name, target in decision.targets.items():
            if name not in self._attachments:
                attachment = Attachment(target, self._config, self._engine, self._etcd, self._metrics, new=not first)
                self._attachments[name] = attachment
                task = self._tasks[name] = asyncio.create_task(attachment.run(), name=f"instance {name}")
                task.add_done_callback(functools.partial(self._forget, name))

    def _forget(self, name: str, _: asyncio.Task[None]) -> None:
        del self._attachments[name], self._tasks[name]

    def _why_not(self, container: str, decision: Decision) -> str:
        refusal = decision.refusals.get(container)
        return (
            f"container {container} is not watched any more, {refusal}" if refusal else f"container {container} is gone"
        )

    def _say(self, decision: Decision) -> None:
        watched = {attachment.name for attachment in self._attachments.values()}  # their ends are said by themselves
        for name, refusal in decision.refusals.items():
            if self._refusals.get(name) != refusal and name not in watched:
                level = logging.DEBUG if refusal.reason in QUIET else logging.INFO
                log.log(level, "container %s is not watched, %s", name, refusal)
        self._refusals = decision.refusals


def own_container(mounts: str, hostname: str, ids: Iterable[str]) -> str:
    """The id of the container that this process runs in, as far as `ids` has it; empty: none of them.

    `mounts`: /proc/self/mountinfo, in which a container's own /etc/hostname comes from the engine's folder for it.
    """
    found = _OWN_FILE.search(mounts)
    for container_id in ids:
        if (found and found[1] == container_id) or (len(hostname) == 12 and container_id.startswith(hostname)):
            return container_id
    return ""


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
