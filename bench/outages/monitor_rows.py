"""Rows in which etcd is well and a monitor is not: it stands still, or a second one claims its instance."""

from __future__ import annotations

import asyncio
import os
import signal

from bench.outages.fleet import Instance
from bench.outages.rows import Row
from bench.outages.world import World
from tests.support.processes import ChildProcess, children_of
from tests.support.waiting import eventually


def _monitor(instance: Instance) -> ChildProcess:
    assert instance.monitor is not None
    return instance.monitor


async def _monitor_frozen(world: World) -> None:
    """A version comes meanwhile, which the frozen monitor can't tell of; its server serves on."""
    one = world.chance.choice(world.fleet.living)
    _monitor(one).freeze()
    world.gone()
    world.fleet.next_version()
    world.changes.append(f"{one.name}'s monitor frozen, version {world.fleet.version} came")
    await world.lasting(world.long)
    await world.back()
    _monitor(one).thaw()


async def _monitor_frozen_server_dead(world: World) -> None:
    """The server of the frozen monitor dies, and is thought to be there when the monitor goes on."""
    one = world.chance.choice(world.fleet.living)
    monitor = _monitor(one)
    monitor.freeze()
    world.gone()
    await world.lasting(world.long)
    os.kill(children_of(monitor.pid)[0], signal.SIGKILL)
    one.monitor = None
    world.changes.append(f"{one.name}'s monitor frozen, its server killed")
    await world.back()
    monitor.thaw()
    await eventually(lambda: not monitor.alive(), "the thawed monitor to end")
    await asyncio.to_thread(monitor.stop)


async def _two_monitors(world: World) -> None:
    """A second monitor with a server of its own claims an instance that serves."""
    one = world.chance.choice(world.fleet.living)
    older = _monitor(one)
    world.changes.append(f"{one.name} claimed by a second monitor")
    world.gone()
    await world.back()
    world.fleet.claim_again(one)
    await eventually(lambda: not older.alive(), "the older one to end", 12 * world.ttl + 60)
    code = await asyncio.to_thread(older.stop)
    assert code == 4, f"the older one ended with {code}"


MONITOR_ROWS: dict[str, Row] = {
    "monitor-frozen": Row("SIGSTOP of a monitor for {long:g} leases", _monitor_frozen),
    "monitor-frozen-server-dead": Row("the same, its server killed meanwhile", _monitor_frozen_server_dead),
    "two-monitors": Row("a second monitor, with another server, claims an instance", _two_monitors),
}
