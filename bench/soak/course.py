"""One fault after the other, and after each the wait until all is right. The n-th step of a seed does the same each
time, however long the steps before it took."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.soak.clients import Clients
from bench.soak.faults import FAULTS, Scene
from bench.soak.fleet import NAMES, Fleet
from bench.soak.memory import Memory
from bench.soak.verdict import Verdict, Version, judge

TWICE = 0.2
"""How often two faults happen at once."""
_LIMIT = 120.0
_LOOK = 0.1
_STAYS = 1.0


@dataclass
class Step:
    """One fault, or two at once. `registry`, `envoy`: seconds from when all had been put right that is not modelplane's
    own, until they were right."""

    faults: tuple[str, ...]
    victim: str
    began: float
    lasted: float = 0.0
    registry: float = 0.0
    envoy: float = 0.0


@dataclass
class Result:
    """Of a whole run."""

    seconds: float
    steps: list[Step]
    verdict: Verdict
    memory: Memory
    trouble: str = ""
    """What ended it early: a fleet that never was right again, or a fault that could not be done."""

    @property
    def good(self) -> bool:
        return not (self.trouble or self.verdict.wrong or self.memory.growing)


def plan(seed: int, kinds: Sequence[str], number: int) -> tuple[tuple[str, ...], random.Random]:
    """The faults of a step, and the chance for all that is left to it. Each kind comes once before any comes again."""
    turn, place = divmod(number, len(kinds))
    order = random.Random(f"{seed} turn {turn}").sample(list(kinds), len(kinds))
    chance, first = random.Random(f"{seed} step {number}"), FAULTS[order[place]]
    others = [name for name in kinds if not FAULTS[name].alone and FAULTS[name].part is not first.part]
    if first.alone or not others or chance.random() >= TWICE:
        return (order[place],), chance
    return (order[place], chance.choice(others)), chance


@dataclass
class Course:
    """`say` is told of each step once it is over."""

    fleet: Fleet
    clients: Clients
    seed: int
    kinds: Sequence[str]
    say: Callable[[str], None]
    steps: list[Step] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        """Begin no step once `seconds` are over. AssertionError: the fleet never was right again."""
        started = time.monotonic()
        await self._settle(time.monotonic(), None)
        while time.monotonic() - started < seconds:
            faults, chance = plan(self.seed, self.kinds, len(self.steps))
            step = Step(faults, chance.choice(NAMES), time.monotonic())
            self.steps.append(step)
            scene = Scene(self.fleet, chance, step.victim)
            await asyncio.gather(*(FAULTS[name].act(scene) for name in faults))
            done = time.monotonic()
            step.lasted = done - step.began
            await self._settle(done, step)
            self.say(
                f"{step.began - started:6.1f} s  {' + '.join(faults)} ({step.victim}): {step.lasted:.1f} s, then"
                f" registry {step.registry:.1f} s, Envoy {step.envoy:.1f} s; {self.clients.requests:,} requests"
            )

    async def _settle(self, since: float, step: Step | None) -> None:
        """Wait until registry and Envoy are right, and stay so for a moment."""
        wrong, wrong_registry, wrong_envoy = "never looked", since, since
        while (now := time.monotonic()) - max(wrong_registry, wrong_envoy) < _STAYS or wrong:
            assert now - since < _LIMIT, f"not right {_LIMIT:g} s later: {wrong}"
            registry = await self.fleet.registry_fault()
            envoy = await asyncio.to_thread(self.fleet.envoy_fault)
            now = time.monotonic()
            wrong_registry, wrong_envoy = now if registry else wrong_registry, now if envoy else wrong_envoy
            wrong = registry or envoy
            await asyncio.sleep(_LOOK)
        if step is not None:
            step.registry, step.envoy = wrong_registry - since, wrong_envoy - since
        self.fleet.record.versions.append(Version(self.fleet.version, time.monotonic()))
        await self.clients.more(10)


async def soak(fleet: Fleet, *, seconds: float, seed: int, kinds: Sequence[str], say: Callable[[str], None]) -> Result:
    """Run it on a fleet that has just started."""
    await fleet.envoy.ready(60)
    memory, trouble = Memory(fleet.processes), ""
    started = time.monotonic()
    sampling = asyncio.create_task(memory.run())
    clients = Clients(fleet.address)
    course = Course(fleet, clients, seed, kinds, say)
    try:
        # Before the first settling the models may not be there yet.
        await _first(fleet)
        async with clients:
            try:
                await course.run(seconds)
            except AssertionError as error:
                trouble = f"{course.steps[-1].faults if course.steps else 'at the start'}: {error}"
    finally:
        sampling.cancel()
        await asyncio.wait({sampling})
    steady, switched, unsafe = (load.outcomes for load in clients.all)
    verdict = judge(steady, switched, unsafe, fleet.record)
    return Result(time.monotonic() - started, course.steps, verdict, memory, trouble)


async def _first(fleet: Fleet) -> None:
    deadline = time.monotonic() + 90
    while fault := await fleet.registry_fault() or await asyncio.to_thread(fleet.envoy_fault):
        assert time.monotonic() < deadline, fault
        await asyncio.sleep(_LOOK)
