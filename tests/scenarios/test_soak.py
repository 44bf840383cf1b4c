"""Random faults, one after the other, under steady load. Seeded, so that a failure can be repeated:

MODELPLANE_SOAK_SECONDS=600 MODELPLANE_SOAK_SEED=7 python -m pytest tests/scenarios/test_soak.py -s
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from registry.keys import ReadyKey
from tests.support import saved_models
from tests.support.load import Load
from tests.support.processes import wait_for_port
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

SECONDS = float(os.environ.get("MODELPLANE_SOAK_SECONDS", "45"))
SEED = int(os.environ.get("MODELPLANE_SOAK_SEED", "1"))


class Faults:
    """Each method breaks one thing and puts it right again as an operator or a supervisor would."""

    def __init__(self, stack: Stack, base: Path, chance: random.Random) -> None:
        self._stack, self._base, self._chance = stack, base, chance
        self.version = 1

    async def server_killed(self, name: str) -> None:
        os.kill(self._stack.instances[name].server_pid, signal.SIGKILL)
        await self._restart(name)

    async def instance_drained(self, name: str) -> None:
        self._stack.instances[name].monitor.send(signal.SIGTERM)
        await self._restart(name)

    async def instance_killed(self, name: str) -> None:
        instance = self._stack.instances[name]
        server = instance.server_pid
        instance.monitor.kill()
        os.kill(server, signal.SIGKILL)
        # An orphan: it is gone, with its port, when init has reaped it.
        await eventually(lambda: not Path(f"/proc/{server}").exists(), "the killed server to be gone")
        await self._restart(name)

    async def etcd_frozen(self, _: str) -> None:
        self._stack.etcd.freeze()
        await asyncio.sleep(self._chance.uniform(1, 6))
        self._stack.etcd.thaw()

    async def etcd_killed(self, _: str) -> None:
        self._stack.etcd.kill()
        await asyncio.to_thread(self._stack.etcd.restart, empty=self._chance.random() < 0.5)

    async def control_plane_killed(self, _: str) -> None:
        self._stack.plane.kill()
        await asyncio.to_thread(self._stack.start_plane)

    async def control_plane_frozen(self, _: str) -> None:
        self._stack.plane.freeze()
        await asyncio.sleep(self._chance.uniform(1, 4))
        self._stack.plane.thaw()

    async def new_version(self, _: str) -> None:
        self.version += 1
        saved_models.half_plus_two(self._base, self.version, b=float(self.version))

    async def _restart(self, name: str) -> None:
        await asyncio.to_thread(self._stack.instances[name].monitor.wait, 60)
        instance = self._stack.start_instance(name, {"m": self._base})
        # The registry may still hold what its predecessor said; the port opens when the models have really loaded.
        await asyncio.to_thread(wait_for_port, instance.grpc_port, instance.monitor, 60)


async def test_random_faults_cost_no_request(stack: Stack, tmp_path: Path) -> None:
    """After each fault, waits until every instance is ready again with the newest version."""
    base = tmp_path / "models" / "m"
    saved_models.half_plus_two(base, 1, b=1.0)
    for name in "abc":
        stack.start_instance(name, {"m": base})
    await stack.until_ready(*(ReadyKey("m", 1, name) for name in "abc"))
    chance = random.Random(SEED)
    faults = Faults(stack, base, chance)
    kinds: list[Callable[[str], Awaitable[None]]] = [
        faults.server_killed,
        faults.instance_drained,
        faults.instance_killed,
        faults.etcd_frozen,
        faults.etcd_killed,
        faults.control_plane_killed,
        faults.control_plane_frozen,
        faults.new_version,
    ]
    pending: list[Callable[[str], Awaitable[None]]] = []
    end = time.monotonic() + SECONDS
    async with Load(stack.grpc, saved_models.predict_request("m", [2.0]), rest=0.01) as load:
        while time.monotonic() < end:
            # Each kind in turn before any comes again, in another order each time.
            pending = pending or chance.sample(kinds, len(kinds))
            fault, name = pending.pop(), chance.choice("abc")
            print(
                f"{SECONDS - (end - time.monotonic()):6.1f} s  {fault.__name__} ({name}), {len(load.outcomes)} requests"
            )
            await fault(name)
            await stack.until_ready(*(ReadyKey("m", faults.version, name) for name in "abc"))
            load.assert_all_ok()
        await load.more(100)
    load.assert_all_ok(at_least=int(SECONDS) * 10)
    load.assert_versions_never_go_back()
    assert all(outcome.values == (1.0 + outcome.version,) for outcome in load.outcomes)
