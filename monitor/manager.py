"""Carries out what is assigned to an instance (`assignments/<instance>`): the shell of monitor/manage.py.

Invariant: nothing is loaded or unloaded before it is known what is assigned and what the server holds; while the lease
is not held (etcd is away, or this process stood still and may be superseded) no reload is sent, and what is loaded
stays. An assignment that is gone is no order to unload: an etcd that was wiped lost it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import cast

from monitor.client import ServerClient
from monitor.consent import Consent
from monitor.core import MonitorCore
from monitor.found_watch import FoundWatch
from monitor.manage import Manage, Target
from monitor.pb import tfs_pb2 as tfs
from monitor.predecessor import Remains
from monitor.reload import Reload
from monitor.reloader import Reloader
from monitor.retire import Retirements
from monitor.told import Told
from monitor.watch import Watch
from registry.assignments import Assignment, decode_assignment
from registry.etcd import EtcdClient
from registry.follow import Changes, Connection, Snapshot, Update, follow
from registry.found import Found, encode_found
from registry.keys import AssignmentKey, DiskKey, Keyspace, PolicyKey
from registry.leased import LeasedKeys
from registry.policy.stored import read_stored
from registry.records import Condition, RecordError

log = logging.getLogger(__name__)

PAUSE, PER_MODEL = 0.02, 0.0004
"""Seconds between two decisions, at least, and for each model."""
IDLE, IDLE_PER_MODEL = 1.0, 0.005
"""Seconds, or more with many models, after which it is looked anew whether a deadline has passed."""


class Manager:
    """One instance. `run` it in the caller's task group. `left`: what an earlier monitor left."""

    def __init__(
        self,
        consent: Consent,
        etcd: EtcdClient,
        leased: LeasedKeys,
        keyspace: Keyspace,
        core: MonitorCore,
        client: ServerClient,
        watch: Watch,
        drain_deadline: float,
        left: Remains,
    ) -> None:
        self._etcd = etcd
        self._leased = leased
        self._keyspace = keyspace
        self._core = core
        self._watch = watch
        self._left = left
        self._own = consent.own
        self._machine = Manage(frozenset(consent.own))
        self._told = Told(core.instance)
        self._reload = Reload(Told(core.instance), consent.own)
        self._soon = asyncio.Event()
        self._reloader = Reloader(self._reload, client, disk=consent.sees_disk, seen=self._soon.set, may=self._may)
        self._retirements = Retirements(etcd, leased, keyspace, core, drain_deadline, self._drained)
        self._disk = FoundWatch(self._found, sees=consent.sees_disk)
        self._assignment: Assignment | None = None
        self._unreadable = ""
        self._policies: dict[str, str] | None = None
        self._targets: Mapping[str, Target] | None = None
        self._told_disk: Found | None = None
        self._started = False

    async def run(self) -> None:
        """Until cancelled."""
        self._watch.listen(self._published)
        async with asyncio.TaskGroup() as group:
            key = self._keyspace.make(AssignmentKey(self._core.instance))
            group.create_task(self._follow(key, self._take_assignment), name="assignment")
            group.create_task(self._follow(self._keyspace.models, self._take_policies), name="policies")
            group.create_task(self._reloader.run(), name="reloader")
            group.create_task(self._retirements.run(), name="retirements")
            group.create_task(self._disk.run(), name="found versions")
            while True:
                self._soon.clear()
                self._step(asyncio.get_running_loop().time())
                await asyncio.sleep(PAUSE + PER_MODEL * len(self._machine.models))
                try:
                    async with asyncio.timeout(max(IDLE, IDLE_PER_MODEL * len(self._machine.models))):
                        await self._soon.wait()
                except TimeoutError:
                    continue

    def _may(self) -> bool:
        return self._leased.held and self._core.reachable

    # --- what happens -------------------------------------------------------------------------------------------

    def _published(self) -> None:
        self._soon.set()
        self._retirements.look()

    def _drained(self) -> None:
        self._watch.publish_soon()
        self._soon.set()

    def _found(self) -> None:
        found = self._disk.found
        if found is not None and found != self._told_disk:
            self._told_disk = found
            self._leased.set({self._keyspace.make(DiskKey(self._core.instance)): encode_found(found)})
        self._soon.set()

    async def _follow(self, prefix: str, take: Callable[[Mapping[str, bytes], frozenset[str], bool], None]) -> None:
        following = cast("AsyncGenerator[Update, None]", follow(self._etcd, prefix))
        async with aclosing(following) as updates:
            async for update in updates:
                match update:
                    case Snapshot(entries=entries):
                        take(entries, frozenset(), True)
                    case Changes(puts=puts, deletes=deletes):
                        take(puts, deletes, False)
                    case Connection():
                        pass
                self._soon.set()

    def _take_assignment(self, puts: Mapping[str, bytes], deletes: frozenset[str], first: bool) -> None:
        instance, key = self._core.instance, self._keyspace.make(AssignmentKey(self._core.instance))
        if key in deletes:
            log.warning("instance %s: its assignment is gone; what is loaded stays", instance)
        if key not in puts:
            return
        try:
            assignment = decode_assignment(puts[key])
        except RecordError as error:
            log.error("instance %s: its assignment can't be read: %s; the one before holds", instance, error)
            self._unreadable = f"the assignment can't be read, so the one before holds: {error}"
            return
        self._unreadable = ""
        if self._assignment is None or assignment.models != self._assignment.models:
            models = ", ".join(f"{name} {list(one.versions)}" for name, one in sorted(assignment.models.items()))
            log.info("instance %s: assigned: %s", instance, models or "nothing")
            self._assignment = assignment
            if self._started:
                self._machine.assign(assignment, asyncio.get_running_loop().time())

    def _take_policies(self, puts: Mapping[str, bytes], deletes: frozenset[str], first: bool) -> None:
        known = self._policies if self._policies is not None else {}
        for raw in deletes:
            if isinstance(key := self._keyspace.parse(raw), PolicyKey):
                known.pop(key.model, None)
        for raw, value in puts.items():
            if not isinstance(key := self._keyspace.parse(raw), PolicyKey):
                continue
            try:
                path = read_stored(value, key.model)[1].base_path
            except RecordError as error:
                log.warning("policy of model %s can't be read: %s", key.model, error)
                continue
            known.pop(key.model, None)
            if path:
                known[key.model] = path
        self._policies = known

    # --- what follows -------------------------------------------------------------------------------------------

    def _step(self, now: float) -> None:
        if self._policies is None or self._core.draining:
            return
        assigned = {name: one.base_path for name, one in (self._assignment or Assignment()).models.items()}
        self._disk.want({**assigned, **self._policies})
        if self._assignment is None:
            return
        machine = self._machine
        if not self._started:
            self._started = True
            names = {name: self._policies.get(name, "") for name in self._left.models | self._policies.keys()}
            machine.found(names, frozenset((key.model, key.version) for key in self._left.here), now)
            machine.assign(self._assignment, now)
        if not self._core.reachable:
            machine.restarted()
        self._watch.manage(machine.watched())
        held = {name: self._core.held(name) for name in machine.models}
        machine.step(held, self._reload.certain(), self._reload.possible(), self._disk.stamps, now)
        self._core.retire(machine.retired)
        targets = machine.targets(now)
        if targets is not None and targets != self._targets:
            self._targets = targets
            self._reloader.want(configuration(self._own, targets))
        found = self._told.update({**machine.conditions(held, now), **self._retirements.conditions()})
        unreadable = [Condition("AssignmentUnreadable", self._unreadable)] if self._unreadable else []
        reload = self._reload.conditions(now, but=("LoadFailed",))
        self._core.report("manage", (*found, *reload, *unreadable))
        self._watch.publish_soon()


def configuration(own: Mapping[str, tfs.ModelConfig], targets: Mapping[str, Target]) -> tfs.ModelServerConfig:
    """All that the server is to have, its own models as they are."""
    config = tfs.ModelServerConfig()
    config.model_config_list.config.extend(own.values())
    for name, target in sorted(targets.items()):
        model = config.model_config_list.config.add()
        model.name, model.base_path, model.model_platform = name, target.base_path, target.platform
        model.model_version_policy.specific.versions.extend(sorted(target.versions))
        for label, version in target.labels.items():
            model.version_labels[label] = version
    config.model_config_list.SetInParent()
    return config
