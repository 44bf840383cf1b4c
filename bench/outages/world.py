"""What a row of the matrix works with: the fleet, chance, and the clock that says since when etcd is back."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.churn.probes import Probes
from bench.churn.verdict import Outcome
from bench.outages.fleet import MODELS, Fleet
from registry.etcd import EtcdError
from tests.support.processes import wait_for_port
from tests.support.waiting import eventually

_REST = 0.01
_LOOK = 0.05


@dataclass(frozen=True)
class Seen:
    """What came of one row. Times in seconds from etcd's return, or from the change where it never was away: until the
    registry, and the Envoys, were right and stayed so."""

    row: str
    changed: str
    away: float
    requests: int
    errors: tuple[Outcome, ...]
    registry: float
    envoys: float
    last: str
    """What was wrong last."""

    @property
    def said(self) -> str:
        """The errors, counted."""
        counts = Counter((one.code.name, one.details) for one in self.errors)
        return "; ".join(f"{count} {code} {details}" for (code, details), count in counts.most_common(3))


class World:
    """A fleet for one row. `seed`: of the row's own chance, so that it does the same with or without others before."""

    def __init__(self, fleet: Fleet, seed: str, long: float = 3.0) -> None:
        """`long`: how many leases a long outage lasts."""
        self.fleet, self.long = fleet, long
        self.chance = random.Random(seed)
        self.changes: list[str] = []
        self.extra: list[Outcome] = []
        """Outcomes of requests that a row makes itself."""
        self.mend: Callable[[], object] | None = None
        """What is left to be put right when the row is over."""
        self._gone = self._back = 0.0
        self._wrong = Wrong(0.0, 0.0)
        self._watching: asyncio.Task[None] | None = None

    @property
    def ttl(self) -> float:
        """Of every lease of the fleet."""
        return self.fleet.ttl

    async def lasting(self, leases: float) -> None:
        """Let time pass, in lease times: how long an outage takes is what a row is about."""
        await asyncio.sleep(leases * self.ttl)

    async def do(self, fault: Callable[[], object]) -> None:
        """Something that blocks, off the loop: the load goes on."""
        await asyncio.to_thread(fault)

    def gone(self) -> None:
        """From here on etcd is away, or broken."""
        self._gone = time.monotonic()

    async def change(self) -> None:
        """Something happens that the registry should know of: an instance dies, one comes, a version comes."""
        fleet = self.fleet
        victim, comer = self.chance.choice(fleet.living), fleet.dead[0]
        silent = self.chance.random() < 0.5
        await (fleet.kill_instance if silent else fleet.kill_server)(victim)
        fleet.start(comer)
        fleet.next_version()
        # How long a process takes to start is not the registry's affair.
        assert comer.monitor is not None
        await asyncio.to_thread(wait_for_port, comer.port, comer.monitor)
        what = "with its monitor" if silent else "alone"
        self.changes.append(f"{victim.name} killed {what}, {comer.name} and version {fleet.version} came")

    async def back(self) -> None:
        """etcd has been put right, or is there all the time: the clock starts here; wait until it answers."""
        self._back = time.monotonic()
        self._wrong = Wrong(self._back, self._back)
        self._watching = asyncio.create_task(self._watch())
        await eventually(self._answers, "etcd to answer", 60)

    async def _answers(self) -> bool:
        try:
            await self.fleet.client.get("/")
        except EtcdError:
            return False
        return True

    # -- watching

    async def settle(self, timeout: float = 90.0) -> None:
        """Wait until registry and Envoys are right."""

        async def right() -> bool:
            fault = await self.fleet.registry_fault() or await asyncio.to_thread(self.fleet.envoy_fault)
            assert not fault, fault
            return True

        await eventually(right, "the fleet to be as it should", timeout)

    async def run(self, name: str, fault: Callable[[World], Awaitable[None]]) -> Seen:
        """One row from a fleet that is right to one that is right and stays so for a lease's time."""
        await self.settle()
        self.changes.clear()
        # The load's chance is its own: how often it is asked depends on time.
        asked = random.Random(name)
        async with Probes(self.fleet.address, lambda: asked.choice(MODELS), rest=_REST) as load:
            await load.more(50)
            try:
                await fault(self)
                wrong = await self._until_right()
            finally:
                await self._stop_watching()
            await load.more(50)
        self.fleet.drop_old_versions()
        if self.mend is not None:
            await self.do(self.mend)
        outcomes = load.outcomes + self.extra
        errors = tuple(one for one in outcomes if one.code.name != "OK")
        changed, away = "; ".join(self.changes), self._back - self._gone
        registry, envoys = wrong.registry - self._back, wrong.envoys - self._back
        return Seen(name, changed, away, len(outcomes), errors, registry, envoys, wrong.last)

    async def _until_right(self) -> Wrong:
        """What was wrong last after etcd's return, and when. Watched until a lease's time has passed without, and no
        less than that after all is over: what was written before an outage may stand for that long, and then go."""
        over = time.monotonic()
        limit = over + 6 * self.ttl + self.fleet.grace + 60
        while time.monotonic() - max(over, self._wrong.registry, self._wrong.envoys) <= self.ttl + 0.5:
            assert time.monotonic() < limit, f"never right: {self._wrong.last}"
            assert self._watching is not None, "the row never said when etcd was back"
            assert not self._watching.done(), "the watch has ended"
            await asyncio.sleep(_LOOK)
        return self._wrong

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            registry, envoys = await asyncio.gather(
                self.fleet.registry_fault(), asyncio.to_thread(self.fleet.envoy_fault)
            )
            self._wrong.note(time.monotonic(), registry, envoys)
            await asyncio.sleep(max(0.0, began + _LOOK - time.monotonic()))


@dataclass
class Wrong:
    """When something was last found wrong (monotonic seconds), and what."""

    registry: float
    envoys: float
    last: str = ""

    def note(self, now: float, registry: str, envoys: str) -> None:
        """One look."""
        if registry:
            self.registry = now
        if envoys:
            self.envoys = now
        self.last = registry or envoys or self.last
