"""Brings a MonitorCore together with the world: polls and probes the server, follows its config file, and hands what
the core decides to the registry. Invariant: what the core has decided is handed over in the event loop's next round,
with many models at most LONGEST_GATHERING later, and all of it in one transaction, but for a large instance record,
which may follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial

from monitor.client import ServerClient
from monitor.config import MonitorConfig
from monitor.core import MonitorCore
from monitor.folders import VersionFolders
from monitor.instance_record import PacedRecord
from monitor.model_config import ModelConfigFile
from monitor.pace import Pace
from monitor.poller import StatusPoller
from monitor.proof_course import SLOT
from monitor.prove import Prober
from monitor.second_look import look_again
from monitor.servables import Outcome, Probe, WatchedModel
from monitor.server_flags import ServerFlags
from monitor.standstill import TICK, Standstill
from monitor.threads import in_daemon_thread
from monitor.trap_watch import TrapWatch
from registry.keys import InstanceKey, Keyspace
from registry.leased import LeasedKeys
from registry.records import Condition, InstanceRecord, Proof, encode_ready

log = logging.getLogger(__name__)

CONFIG_FILE_INTERVAL = 1.0
FOLDERS_INTERVAL, FOLDERS_PER_MODEL = 0.5, 0.001
"""Seconds, at least, and for each model. A server looks at its folders once a second by default; this is to be there
before it has."""
MOST_PROBES = 32
"""A thousand models that become AVAILABLE together shall not flood the server, and those that hang in their Predict
shall not hold up the rest, so one that takes longer than SLOT no longer counts."""
GATHERING, LONGEST_GATHERING = 0.0001, 0.05
"""Seconds per model, and at most, between two hand-overs: each costs some microseconds per model, and a thousand models
that become READY in two seconds shall be forty transactions, not a thousand."""


class Watch:
    """Runs inside the caller's task group from construction until `stop`."""

    def __init__(
        self,
        core: MonitorCore,
        client: ServerClient,
        leased: LeasedKeys,
        config: MonitorConfig,
        models: tuple[WatchedModel, ...],
        file: ModelConfigFile | None,
        group: asyncio.TaskGroup,
        flags: ServerFlags | None = None,
    ) -> None:
        """`flags`: the server's, where the monitor started it."""
        self._core = core
        self._leased = leased
        self._config = config
        self._models = models
        self._file = file
        self._group = group
        self._keyspace = Keyspace(config.prefix)
        self.published = asyncio.Event()
        """Set whenever something was handed over; whoever waits for it clears it."""
        self._listeners: list[Callable[[], None]] = []
        self._managed: tuple[WatchedModel, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._published_at = 0.0
        self._stopped = False
        self._probe_soon = asyncio.Event()
        self._client = client
        self._prober = Prober(client, config.probe_deadline, group)
        self._probe_slots = asyncio.Semaphore(MOST_PROBES)
        self._polled: frozenset[str] | None = None
        self._held = ""
        self._poller = StatusPoller(
            client,
            core,
            self.publish_soon,
            group,
            pace=Pace(interval=config.poll_interval, slowest=config.poll_slowest, rate=config.poll_rate),
            deadline=config.poll_deadline,
        )
        self._record = PacedRecord()
        self._standstill = Standstill()
        self._stale = False
        self._tasks = [
            group.create_task(self._schedule_probes(), name="probes"),
            group.create_task(self._follow_folders(), name="version folders"),
            group.create_task(TrapWatch(core, flags, self.publish_soon).run(), name="traps"),
            group.create_task(self._watch_clock(), name="clock"),
        ]
        if file is not None:
            self._tasks.append(group.create_task(self._follow_file(file), name="model config file"))
        self._probes: set[asyncio.Task[None]] = set()
        self._take_models()

    def stop(self) -> None:
        """No more calls to the server."""
        self._stopped = True
        self._poller.stop()
        self._cancel_timer()
        for task in (*self._tasks, *self._probes):
            task.cancel()
        self._prober.close()

    def listen(self, published: Callable[[], None]) -> None:
        """`published` is called whenever the core's decisions were handed over."""
        self._listeners.append(published)

    def manage(self, models: tuple[WatchedModel, ...]) -> None:
        """Watch these too, which modelplane has the server hold."""
        if models != self._managed:
            self._managed = models
            self._take_models()

    def hold(self, reason: str) -> None:
        """The server can't answer, as `reason` says: don't ask it. Empty: ask it again."""
        if reason == self._held:
            return
        self._held = reason
        if reason:
            self._poller.stop()
            self._polled = None
            for task in self._probes:
                task.cancel()
            self._core.ended(reason)
        self.publish()

    def distrust(self, why: str) -> None:
        """The server is said to be unwell; empty: well again."""
        self._core.distrust(why)
        self.publish_soon()

    def report(self, source: str, conditions: Iterable[Condition]) -> None:
        """Troubles of the instance that somebody else sees."""
        self._core.report(source, conditions)
        self.publish_soon()

    async def refresh(self) -> None:
        """Returns when what the core knows is no older than this process's last standstill, and has been handed over:
        to be awaited before everything is registered anew."""
        self._check_clock()
        if self._stale and not self._held:
            await look_again(
                self._client, self._core, interval=self._config.poll_interval, deadline=self._config.poll_deadline
            )
            self._stale = False
            self.publish()

    def _check_clock(self) -> None:
        if gap := self._standstill.stood_still():
            log.warning("instance %s: this process stood still for %.1f s; looking anew", self._core.instance, gap)
            self._stale = True
            self._core.stood_still()
            self._poller.sweep()

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._check_clock()

    def publish_soon(self) -> None:
        """Hand the core's decisions over once the observations of this moment are all in."""
        if self._core.touched:
            self._publish_at(self._published_at + min(GATHERING * len(self._polled or ()), LONGEST_GATHERING))

    def publish(self) -> None:
        """Hand the core's decisions over now."""
        self._cancel_timer()
        self._published_at = asyncio.get_running_loop().time()
        changes: dict[str, bytes | None] = {}
        for key, record in self._core.changes().items():
            match record:
                case None:
                    changes[self._keyspace.make(key)] = None
                case InstanceRecord():
                    self._record.offer(record)
                case _:
                    changes[self._keyspace.make(key)] = encode_ready(record)
        if (encoded := self._record.take(self._published_at)) is not None:
            changes[self._keyspace.make(InstanceKey(self._core.instance))] = encoded
        if changes:
            self._leased.set(changes)
            self.published.set()
        for published in self._listeners:
            published()
        if (due := self._record.due()) is not None:
            self._publish_at(due)
        self._probe_soon.set()
        self._poll(model.name for model in self._core.models)

    def _publish_at(self, when: float) -> None:
        if not self._stopped and (self._timer is None or when < self._timer.when()):
            self._cancel_timer()
            self._timer = asyncio.get_running_loop().call_at(when, self.publish)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _poll(self, names: Iterable[str]) -> None:
        polled = frozenset(names)
        if self._held or self._stopped:
            return
        if polled != self._polled:
            self._polled = polled
            self._poller.watch(polled)

    def _take_models(self) -> None:
        named = {model.name: model for model in (*self._managed, *self._models)}
        if self._file is not None:
            for model in self._file.models:
                # The server's own file knows the policy; a --model may know the path where the file's is remote.
                named[model.name] = model
            self._core.notice(self._file.trouble)
        self._core.set_models(named.values())
        self.publish_soon()

    async def _follow_file(self, file: ModelConfigFile) -> None:
        while True:
            await asyncio.sleep(CONFIG_FILE_INTERVAL)
            if await in_daemon_thread(file.refresh, "model config file"):
                if file.trouble:
                    log.error("%s; going on with the last good list", file.trouble)
                else:
                    log.info("%s names %s", file.path, ", ".join(model.name for model in file.models) or "no model")
                self._take_models()
                # The server reads its file too, if it was told to, and then changes what it likes.
                self._poller.sweep()

    async def _follow_folders(self) -> None:
        folders = VersionFolders()
        while True:
            models = self._core.models
            self._poller.hasten(await in_daemon_thread(partial(folders.changed, models), "version folders"))
            await asyncio.sleep(max(FOLDERS_INTERVAL, FOLDERS_PER_MODEL * len(models)))

    async def _schedule_probes(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._probe_soon.clear()
            for probe in self._core.due(clock()):
                task = self._group.create_task(self._probe(probe), name=f"probe of {probe.model.name} {probe.version}")
                self._probes.add(task)
                task.add_done_callback(self._probes.discard)
            due = self._core.next_due()
            try:
                async with asyncio.timeout_at(due):
                    await self._probe_soon.wait()
            except TimeoutError:
                continue

    async def _probe(self, probe: Probe) -> None:
        name = f"proof of {probe.model.name} {probe.version}"
        proving: asyncio.Task[Outcome] | None = None
        try:
            async with self._probe_slots:
                proving = asyncio.create_task(self._prober.prove(probe), name=name)
                await asyncio.wait({proving}, timeout=SLOT)
            outcome = await proving
        finally:
            if proving is not None:
                proving.cancel()
        self._core.probed(probe, outcome, asyncio.get_running_loop().time())
        self._probe_soon.set()
        if outcome.proof is Proof.FAILED:
            # It may be on its way out.
            self._poller.hasten([probe.model.name])
        self.publish_soon()
