"""The faults. Each breaks something and puts it right again as an operator or a supervisor would; when it returns, what
is left to be done is modelplane's own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from bench.soak.fleet import MODELPLANE, Fleet
from bench.soak.verdict import Trouble
from registry.keys import Keyspace
from registry.records import InstanceState
from tests.support.waiting import eventually

_PREFIX = Keyspace().prefix


class Part(Enum):
    """What a fault breaks. Two at once are of different parts."""

    INSTANCE = "instance"
    ETCD = "etcd"
    PLANE = "control plane"
    VERSION = "version"


@dataclass
class Scene:
    """What a fault has to work with: `victim` is the instance that it is about, if it is about one."""

    fleet: Fleet
    chance: random.Random
    victim: str

    async def lasting(self, least: float, most: float) -> None:
        """Let a while pass, in lease times: how long a fault lasts is part of it."""
        await asyncio.sleep(self.chance.uniform(least, most) * self.fleet.ttl)


Act = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """`alone`: it waits for something that another fault may hold up, or an operator would not do it meanwhile."""

    text: str
    part: Part
    act: Act
    alone: bool = False


async def _server_killed(scene: Scene) -> None:
    await scene.fleet.kill_server(scene.victim)
    await scene.fleet.restart(scene.victim)


async def _drained_by_sigterm(scene: Scene) -> None:
    scene.fleet.instances[scene.victim].monitor.send(signal.SIGTERM)
    await scene.fleet.restart(scene.victim)


async def _instance_killed(scene: Scene) -> None:
    await scene.fleet.kill_instance(scene.victim)
    # Back at once or long after the lease.
    await scene.lasting(0, 2.5)
    await scene.fleet.restart(scene.victim)


async def _monitor_killed(scene: Scene) -> None:
    scene.fleet.instances[scene.victim].monitor.kill()
    # Its server is used on meanwhile; then the supervisor ends that too.
    await scene.lasting(1.5, 3)
    await scene.fleet.kill_instance(scene.victim)
    await scene.fleet.restart(scene.victim)


async def _monitor_frozen(scene: Scene) -> None:
    monitor = scene.fleet.instances[scene.victim].monitor
    await asyncio.to_thread(monitor.freeze)
    await scene.lasting(1.3, 2.5)
    monitor.thaw()


async def _second_monitor(scene: Scene) -> None:
    old = scene.fleet.instances[scene.victim]
    scene.fleet.start(scene.victim, moved=True)
    await scene.fleet.started(scene.victim)
    await eventually(lambda: not old.monitor.alive(), "the older monitor to stop", 60)
    code = old.monitor.stop()
    assert code == 4, f"the older monitor ended with {code}"


async def _drained_by_command(scene: Scene) -> None:
    await _command(scene, "drain", scene.victim, "--deadline", "60", "--message", "soak")
    assert await scene.fleet.state(scene.victim) is InstanceState.DRAINED
    await scene.lasting(0, 1)
    await _command(scene, "undrain", scene.victim)


async def _command(scene: Scene, *words: str) -> None:
    command = [*MODELPLANE, *words, "--etcd", scene.fleet.endpoints]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, f"modelplane {' '.join(words)}: {done.stdout}{done.stderr}"


async def _server_hangs(scene: Scene) -> None:
    server = scene.fleet.instances[scene.victim].server
    os.kill(server, signal.SIGSTOP)
    try:
        await scene.lasting(0.5, 2)
    finally:
        os.kill(server, signal.SIGCONT)


async def _model_fails(scene: Scene) -> None:
    await _trouble(scene, hangs=False)


async def _model_hangs(scene: Scene) -> None:
    await _trouble(scene, hangs=True)


async def _trouble(scene: Scene, *, hangs: bool) -> None:
    switch = scene.fleet.switches[scene.victim]
    trouble = Trouble(scene.victim, str(switch.file), hangs, time.monotonic())
    scene.fleet.record.troubles.append(trouble)
    (switch.block if hangs else switch.fail)()
    try:
        await scene.fleet.until_failing(scene.victim)
        trouble.out = time.monotonic()
    finally:
        trouble.released = time.monotonic()
        switch.answer()


async def _new_version(scene: Scene) -> None:
    scene.fleet.next_version()


async def _broken_version(scene: Scene) -> None:
    folder = scene.fleet.broken_version(unreadable=scene.chance.random() < 0.5)
    await scene.lasting(0.5, 1.5)
    scene.fleet.remove(folder)


async def _etcd_frozen(scene: Scene) -> None:
    etcd = scene.fleet.etcd
    for index in range(3):
        await asyncio.to_thread(etcd.freeze, index)
    await scene.lasting(0.3, 2.5)
    for index in range(3):
        etcd.thaw(index)


async def _etcd_killed(scene: Scene) -> None:
    await asyncio.to_thread(scene.fleet.etcd.kill_all)
    await asyncio.to_thread(scene.fleet.etcd.restart_all)


async def _etcd_emptied(scene: Scene) -> None:
    await asyncio.to_thread(scene.fleet.etcd.kill_all)
    await asyncio.to_thread(lambda: scene.fleet.etcd.restart_all(empty=True))


async def _etcd_restored(scene: Scene) -> None:
    backup = scene.fleet.folder / "backup.db"
    backup.unlink(missing_ok=True)
    await asyncio.to_thread(scene.fleet.etcd.backup, backup)
    # So that the snapshot is of another time.
    scene.fleet.next_version()
    await scene.lasting(0.5, 1)
    await asyncio.to_thread(scene.fleet.etcd.kill_all)
    await asyncio.to_thread(scene.fleet.etcd.restart_all_from, backup)


async def _leader_killed(scene: Scene) -> None:
    leader = await asyncio.to_thread(scene.fleet.etcd.leader)
    await asyncio.to_thread(scene.fleet.etcd.kill, leader)
    await scene.lasting(0.5, 1.5)
    await asyncio.to_thread(scene.fleet.etcd.restart, leader)


async def _leader_frozen(scene: Scene) -> None:
    leader = await asyncio.to_thread(scene.fleet.etcd.leader)
    await asyncio.to_thread(scene.fleet.etcd.freeze, leader)
    await scene.lasting(0.5, 2)
    scene.fleet.etcd.thaw(leader)


async def _quorum_lost(scene: Scene) -> None:
    etcd, pair = scene.fleet.etcd, scene.chance.sample(range(3), 2)
    for index in pair:
        await asyncio.to_thread(etcd.kill, index)
    await scene.lasting(0.5, 2)
    for index in pair:
        etcd.launch(index)
    for index in pair:
        await asyncio.to_thread(etcd.wait, index)


async def _leases_revoked(scene: Scene) -> None:
    await asyncio.to_thread(scene.fleet.etcd.revoke_leases)


async def _keys_deleted(scene: Scene) -> None:
    await asyncio.to_thread(scene.fleet.etcd.delete_all, _PREFIX)


async def _compacted(scene: Scene) -> None:
    planes = [replica.child for replica in scene.fleet.replicas]
    for plane in planes:
        await asyncio.to_thread(plane.freeze)
    # Their connections break, and nobody sees it but the monitors; what these write then is forgotten.
    await asyncio.to_thread(scene.fleet.etcd.kill_all)
    await asyncio.to_thread(scene.fleet.etcd.restart_all)
    scene.fleet.next_version()
    await scene.lasting(0.5, 1)
    await asyncio.to_thread(scene.fleet.etcd.compact)
    for plane in planes:
        plane.thaw()


async def _plane_killed(scene: Scene) -> None:
    number = scene.chance.randrange(2)
    scene.fleet.replicas[number].child.kill()
    await scene.lasting(0, 1.5)
    await scene.fleet.restart_planes(number)


async def _planes_restarted(scene: Scene) -> None:
    for replica in scene.fleet.replicas:
        replica.child.kill()
    await scene.fleet.restart_planes(0, 1)


async def _plane_frozen(scene: Scene) -> None:
    plane = scene.chance.choice(scene.fleet.replicas).child
    await asyncio.to_thread(plane.freeze)
    await scene.lasting(0.5, 2)
    plane.thaw()


async def _discovery_cut(scene: Scene) -> None:
    for relay in scene.fleet.relays:
        await relay.close()
    await scene.lasting(0.3, 1.5)
    for relay in scene.fleet.relays:
        await relay.open()


FAULTS: dict[str, Fault] = {
    "server-killed": Fault("server: kill -9", Part.INSTANCE, _server_killed),
    "instance-killed": Fault("server and monitor: kill -9", Part.INSTANCE, _instance_killed),
    "monitor-killed": Fault("monitor: kill -9, its server later", Part.INSTANCE, _monitor_killed),
    "monitor-frozen": Fault("monitor: SIGSTOP for longer than its lease", Part.INSTANCE, _monitor_frozen),
    "second-monitor": Fault("a second monitor claims the instance", Part.INSTANCE, _second_monitor, alone=True),
    "sigterm": Fault("SIGTERM to a monitor", Part.INSTANCE, _drained_by_sigterm),
    "drain": Fault("modelplane drain, undrain", Part.INSTANCE, _drained_by_command, alone=True),
    "server-hangs": Fault("server: SIGSTOP for up to two leases", Part.INSTANCE, _server_hangs),
    "model-fails": Fault("a model fails on one instance", Part.INSTANCE, _model_fails, alone=True),
    "model-hangs": Fault("a model hangs on one instance", Part.INSTANCE, _model_hangs, alone=True),
    "new-version": Fault("a new version appears", Part.VERSION, _new_version),
    "broken-version": Fault("a broken version appears, and is removed", Part.VERSION, _broken_version),
    "etcd-frozen": Fault("etcd: SIGSTOP of all members", Part.ETCD, _etcd_frozen),
    "etcd-killed": Fault("etcd: kill -9 of all members", Part.ETCD, _etcd_killed),
    "etcd-emptied": Fault("etcd: restarted empty", Part.ETCD, _etcd_emptied),
    "etcd-restored": Fault("etcd: restored from an old snapshot", Part.ETCD, _etcd_restored, alone=True),
    "leader-killed": Fault("etcd: leader killed", Part.ETCD, _leader_killed),
    "leader-frozen": Fault("etcd: SIGSTOP of the leader", Part.ETCD, _leader_frozen),
    "quorum-lost": Fault("etcd: two of three killed", Part.ETCD, _quorum_lost),
    "leases-revoked": Fault("etcd: every lease revoked", Part.ETCD, _leases_revoked),
    "keys-deleted": Fault("etcd: every key deleted", Part.ETCD, _keys_deleted),
    "compacted": Fault("etcd: compacted while control planes are away", Part.ETCD, _compacted, alone=True),
    "plane-killed": Fault("one control plane: kill -9", Part.PLANE, _plane_killed),
    "planes-restarted": Fault("all control planes: kill -9", Part.PLANE, _planes_restarted),
    "plane-frozen": Fault("one control plane: SIGSTOP", Part.PLANE, _plane_frozen),
    "discovery-cut": Fault("Envoy's connection for xDS cut", Part.PLANE, _discovery_cut),
}
