"""One instance name of a Docker host: an InstanceMonitor for the container that has it at present.

Invariant: at most one InstanceMonitor runs under the name, and the next one starts only when the last one's keys are
given up, or left to it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from dataclasses import replace

from monitor.config import MonitorConfig
from monitor.consent import Consent, own_models
from monitor.docker.core import Target
from monitor.docker.engine import Engine, EngineError
from monitor.docker.files import ContainerConfigFile
from monitor.docker.wishes import MANAGE
from monitor.errors import InstanceSupersededError, MonitorError
from monitor.instance import InstanceMonitor
from monitor.metrics import MonitorMetrics
from monitor.model_config import ModelConfigFile
from monitor.plan import Plan
from monitor.signals import StopOrders
from monitor.threads import in_daemon_thread
from registry.etcd import EtcdClient
from registry.records import Condition

log = logging.getLogger(__name__)

_AGAIN = 5.0


class Attachment:
    """`want` says what is to be watched; `run` does it until nothing is wanted any more, or `leave`."""

    def __init__(
        self,
        target: Target,
        config: MonitorConfig,
        engine: Engine,
        etcd: EtcdClient,
        metrics: MonitorMetrics,
        *,
        new: bool,
    ) -> None:
        """`new`: the container was seen starting, so an earlier run's keys can't be true."""
        self.name = target.name
        """The container's name."""
        self._target: Target | None = target
        self._config = config
        self._engine = engine
        self._etcd = etcd
        self._metrics = metrics
        self._orders = StopOrders()
        self._new = new
        self._monitor: InstanceMonitor | None = None
        self._watched: Target | None = None
        self._over = False
        self._changed = asyncio.Event()

    def want(self, target: Target | None, why: str = "") -> None:
        """Watch this; None: nothing, for the reason `why`."""
        self._target = target
        self._changed.set()
        if self._monitor is None or self._watched is None:
            return
        if target is None:
            self._monitor.server_ended(why)
        elif target.identity != self._watched.identity:
            self._monitor.server_ended(_difference(self._watched, target))
        elif target != self._watched:
            self._watched = target
            self._tell(self._monitor, target)

    def leave(self) -> None:
        """End, and leave the keys to the next monitor of this host."""
        self._over = True
        self._changed.set()
        if self._monitor is not None:
            self._monitor.leave()

    def drain(self, *, hasten: bool = False) -> None:
        """Drain it and end; `hasten`: no more waiting. The container runs on."""
        self._over = True
        self._changed.set()
        self._orders.stop.set()
        if hasten:
            self._orders.hasten.set()

    async def run(self) -> None:
        """Returns when nothing is wanted any more."""
        while self._target is not None and not self._over:
            self._changed.clear()
            target = self._target
            try:
                await self._watch(target)
            except InstanceSupersededError as error:
                # Claimed once more it would go to and fro for ever.
                log.error("%s; it is left alone until its container changes", error)
                await self._until_another(target)
                continue
            except Exception:
                # One instance's trouble must not end the others.
                log.exception("instance %s: its monitor failed; once more in %g s", target.instance, _AGAIN)
                await self._until_changed(_AGAIN)
                continue
            finally:
                self._monitor = self._watched = None
            self._new = True
            self._orders = self._orders if self._over else StopOrders()
            if not self._over and self._target is not None and self._target.identity == target.identity:
                # It ended by an order: what is still there was meant to be left alone.
                await self._until_changed(None)

    async def _watch(self, target: Target) -> None:
        place = target.place
        file = None
        if target.config_file:
            file = ContainerConfigFile(
                target.config_file, lambda: self._engine.read_file(target.container, target.config_file)
            )
            await in_daemon_thread(file.refresh, "model config file")
        config = replace(
            self._config,
            instance=target.instance,
            advertise_address=place.advertise,
            zone=target.zone or self._config.zone,
            capacity=target.capacity,
            label=(*self._config.label, *target.labels),
            memory=str(target.memory) if target.memory else self._config.memory,
        )
        consent, why_not = self._consent(target, file)
        plan = Plan(place.host, place.port, place.rest_port, target.models, None)
        monitor = InstanceMonitor(
            config,
            plan,
            file,
            self._etcd,
            self._orders,
            new_server=self._new,
            stop_server=functools.partial(self._stop_container, target),
            consent=consent,
            metrics=self._metrics,
        )
        monitor.report("manage", [Condition("NotManaged", why_not)] if why_not else [])
        if self._target is None or self._target.identity != target.identity or self._over:
            return
        self._monitor, self._watched = monitor, self._target
        self._tell(monitor, self._target)
        await monitor.run()

    def _consent(self, target: Target, file: ModelConfigFile | None) -> tuple[Consent | None, str]:
        """Whether it is managed; else why not, where its container's label wants it."""
        if target.managed is None:
            return None, ""
        if not self._config.manage:
            return None, f"its label {MANAGE} says so, but this monitor was not started with --manage"
        try:
            own = own_models(target.managed, file.whole() if file else None)
        except MonitorError as error:
            return None, str(error)
        return Consent(own, sees_disk=not self._config.disk_elsewhere), ""

    async def _stop_container(self, target: Target) -> None:
        if self._over or not self._orders.stop.is_set():
            return  # it is the monitor that ends, or gives way to another one; nobody wants the server stopped
        log.info("instance %s: stopping container %s", target.instance, target.name)
        try:
            await self._engine.stop(target.container, self._config.stop_grace)
        except EngineError as error:
            log.error("instance %s: container %s could not be stopped: %s", target.instance, target.name, error)

    def _tell(self, monitor: InstanceMonitor, target: Target) -> None:
        monitor.hold(target.held)
        monitor.distrust(target.unhealthy)
        conditions: Mapping[str, str] = {"ContainerUnhealthy": target.unhealthy, "UnknownLabels": target.remarks}
        monitor.report("docker", [Condition(name, text) for name, text in conditions.items() if text])

    async def _until_another(self, target: Target) -> None:
        while not self._over and self._target is not None and self._target.identity == target.identity:
            self._changed.clear()
            await self._changed.wait()

    async def _until_changed(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return


def _difference(old: Target, new: Target) -> str:
    if (old.container, old.run) != (new.container, new.run):
        return f"container {new.name} was started anew"
    if old.place != new.place:
        return f"container {new.name} has moved from {old.place.host} to {new.place.host}"
    return f"container {new.name} is another one now"
