"""The rows: one way each of breaking etcd and of putting it right. While it is broken the fleet changes (World.change),
so that the registry is wrong when etcd is back and has to become right again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.churn.probes import Probes
from bench.outages.fleet import SLOW, Instance
from bench.outages.world import World
from registry.keys import Keyspace
from tests.support.etcd import Etcd, EtcdCluster
from tests.support.processes import ChildProcess
from tests.support.waiting import eventually

PREFIX = Keyspace().prefix


@dataclass(frozen=True)
class Row:
    """`text` says what is done, with `{long}` for how many leases; `cluster`: it needs an etcd of three members."""

    text: str
    fault: Callable[[World], Awaitable[None]]
    cluster: bool = False


def _etcd(world: World) -> Etcd:
    assert isinstance(world.fleet.etcd, Etcd)
    return world.fleet.etcd


def _cluster(world: World) -> EtcdCluster:
    assert isinstance(world.fleet.etcd, EtcdCluster)
    return world.fleet.etcd


async def _frozen_briefly(world: World) -> None:
    await _frozen_for(world, 0.5)


async def _frozen(world: World) -> None:
    await _frozen_for(world, world.long)


async def _frozen_for(world: World, leases: float) -> None:
    etcd = _etcd(world)
    await world.do(etcd.freeze)
    world.gone()
    await world.change()
    await world.lasting(leases)
    etcd.thaw()
    await world.back()


async def _killed(world: World) -> None:
    etcd = _etcd(world)
    await world.do(etcd.kill)
    world.gone()
    await world.change()
    await world.do(etcd.restart)
    await world.back()


async def _emptied(world: World) -> None:
    etcd = _etcd(world)
    await world.do(etcd.kill)
    world.gone()
    await world.change()
    await world.do(lambda: etcd.restart(empty=True))
    await world.back()


async def _restored(world: World) -> None:
    etcd = _etcd(world)
    backup = world.fleet.folder / "backup.db"
    backup.unlink(missing_ok=True)
    await world.do(lambda: etcd.backup(backup))
    # So the snapshot has an instance that is dead by then, and lacks one that lives.
    await world.change()
    await world.settle()
    await world.do(etcd.kill)
    world.gone()
    await world.change()
    await world.do(lambda: etcd.restart_from(backup))
    await world.back()


async def _compacted(world: World) -> None:
    etcd = _etcd(world)
    planes = [replica.child for replica in world.fleet.replicas]
    for plane in planes:
        await world.do(plane.freeze)
    # Their connections break, and nobody sees it but the monitors.
    await world.do(etcd.kill)
    world.gone()
    await world.do(etcd.restart)
    await world.change()
    await world.lasting(0.5)
    await world.do(etcd.compact)
    for plane in planes:
        plane.thaw()
    await world.back()


async def _revoked(world: World) -> None:
    await world.change()
    world.gone()
    # etcd is there all the time: the clock starts with the fault.
    await world.back()
    await world.do(world.fleet.etcd.revoke_leases)


async def _deleted(world: World) -> None:
    await world.change()
    world.gone()
    await world.back()
    await world.do(lambda: world.fleet.etcd.delete_all(PREFIX))


async def _full(world: World) -> None:
    etcd = _etcd(world)
    await world.do(etcd.fill_up)
    world.gone()
    await world.change()
    await world.lasting(1)
    await world.do(etcd.make_room)
    await world.back()


async def _drained(world: World) -> None:
    """A drain with long requests in flight, through an outage in which every lease is lost. The endpoint has to stay in
    the Envoys for as long, for only of what they have do they report what is in flight."""
    fleet, etcd = world.fleet, _etcd(world)
    fleet.set_delay(world.long * world.ttl + 4)
    async with Probes(fleet.address, lambda: SLOW, connections=8, timeout=10 * world.ttl + 60) as slow:
        leaving = await eventually(lambda: asyncio.to_thread(_busiest, world), "slow requests on some instance")
        comer = fleet.dead[0]
        monitor = fleet.drain(leaving)
        world.changes.append(f"{leaving.name} drained, {comer.name} came")
        await eventually(lambda: "draining, for at most" in _last_run(monitor), "the drain to begin")
        await world.settle()
        await world.do(etcd.freeze)
        world.gone()
        fleet.start(comer)
        await world.lasting(world.long)
        etcd.thaw()
        # A renewal that waited in etcd's socket may come before the lease's end; all are to be lost here.
        await world.do(etcd.revoke_leases)
        await world.back()
        while "drained in" not in _last_run(monitor):
            known = await asyncio.to_thread(fleet.drains, leaving, SLOW)
            assert known or "drained in" in _last_run(monitor), f"an Envoy forgot {leaving.name} too early"
            await asyncio.sleep(0.05)
        await eventually(lambda: not monitor.alive(), "the drained instance to end")
        fleet.leaving.clear()
        fleet.set_delay(0)
    world.extra.extend(slow.outcomes)


def _busiest(world: World) -> Instance | None:
    """Of the instances with a slow request in flight, one with most."""
    active = {one.name: world.fleet.in_flight(one, SLOW) for one in world.fleet.living}
    best = max(world.fleet.living, key=lambda one: active[one.name])
    # All that the probes send are under way, so that none comes after the drain has begun.
    return best if sum(active.values()) == 8 else None


def _last_run(monitor: ChildProcess) -> str:
    return monitor.output.rpartition("watching the server")[2]


async def _member_killed(world: World, index: int) -> None:
    cluster = _cluster(world)
    await world.do(lambda: cluster.kill(index))
    world.gone()
    await world.change()
    await world.back()
    world.mend = lambda: cluster.restart(index)


async def _member_frozen(world: World, index: int) -> None:
    cluster = _cluster(world)
    await world.do(lambda: cluster.freeze(index))
    world.gone()
    await world.change()
    await world.back()
    await world.lasting(world.long)
    # It may take itself for what it was, the leader of old, who ends leases (etcd issue 15247).
    cluster.thaw(index)


async def _first_follower(world: World) -> int:
    leader = await asyncio.to_thread(_cluster(world).leader)
    # Clients begin with the first, and stay while it answers.
    return 1 if leader == 0 else 0


async def _follower_killed(world: World) -> None:
    await _member_killed(world, await _first_follower(world))


async def _leader_killed(world: World) -> None:
    await _member_killed(world, await asyncio.to_thread(_cluster(world).leader))


async def _follower_frozen(world: World) -> None:
    await _member_frozen(world, await _first_follower(world))


async def _leader_frozen(world: World) -> None:
    await _member_frozen(world, await asyncio.to_thread(_cluster(world).leader))


async def _quorum_lost(world: World) -> None:
    cluster = _cluster(world)
    pair = world.chance.sample(range(3), 2)
    for index in pair:
        await world.do(lambda index=index: cluster.kill(index))
    world.gone()
    await world.change()
    await world.lasting(1.5)
    for index in pair:
        await world.do(lambda index=index: cluster.launch(index))
    await world.back()


ROWS: dict[str, Row] = {
    "frozen-briefly": Row("SIGSTOP for half a lease", _frozen_briefly),
    "frozen": Row("SIGSTOP for {long:g} leases", _frozen),
    "killed": Row("kill -9, restarted with its data", _killed),
    "emptied": Row("kill -9, restarted without its data", _emptied),
    "restored": Row("restored from an old snapshot", _restored),
    "compacted": Row("compacted and defragmented while the control planes are away", _compacted),
    "revoked": Row("every lease revoked by an operator", _revoked),
    "deleted": Row("every key deleted by an operator", _deleted),
    "full": Row("quota used up (NOSPACE), then mended", _full),
    "drained": Row("SIGSTOP for {long:g} leases during a drain, all leases lost", _drained),
    "follower-killed": Row("one of three killed, the one that clients use", _follower_killed, cluster=True),
    "leader-killed": Row("the leader of three killed", _leader_killed, cluster=True),
    "follower-frozen": Row("SIGSTOP of one of three for {long:g} leases", _follower_frozen, cluster=True),
    "leader-frozen": Row("SIGSTOP of the leader of three for {long:g} leases", _leader_frozen, cluster=True),
    "quorum-lost": Row("two of three killed for a lease and a half", _quorum_lost, cluster=True),
}
