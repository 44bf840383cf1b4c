"""What is done to a fleet: models added, moved and removed at a rate, control planes killed; always under load."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from bench.churn.fleet import Fleet, Replica
from bench.churn.probes import ask
from bench.churn.verdict import Outcome
from bench.churn.writers import Writer

_FRONTIER = 40
"""Half of the probes go to the models that changed last or will change next: that is where order shows."""


def name(number: int) -> str:
    """A model's name."""
    return f"m{number:05d}"


@dataclass
class Course:
    """Where the churn is: `done` of the models in `order`. `served`: models that every Envoy has acknowledged, and when
    that was known; `removed`: when the removal of a model began."""

    total: int
    done: int = 0
    order: list[str] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=dict)
    removed: dict[str, float] = field(default_factory=dict)
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def __post_init__(self) -> None:
        self.order = [name(number) for number in range(self.total)]

    def choose(self) -> str:
        """The model of the next probe."""
        if self.chance.random() < 0.5:
            return self.chance.choice(self.order)
        low = max(0, self.done - _FRONTIER)
        return self.order[self.chance.randrange(low, min(self.total, self.done + _FRONTIER // 2))]


async def _paced(count: int, rate: float, step: Callable[[int], Awaitable[None]], course: Course) -> None:
    """`step` for 0, 1, … at `rate` a second; late ones are caught up with at once."""
    started = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        await step(number)
        course.done = number + 1


async def add(fleet: Fleet, course: Course, rate: float, *, writers: Sequence[Writer] | None = None) -> float:
    """Add all models, each on one instance, in turn; seconds from the last write until every Envoy had everything."""
    writers = writers or fleet.writers
    for place, writer in enumerate(writers):
        await writer.hold(*((name(number), 1) for number in range(place, course.total, len(writers))))

    async def step(number: int) -> None:
        writers[number % len(writers)].ready((name(number), 1))

    await _paced(course.total, rate, step, course)
    return await converge(fleet, course, writers)


async def converge(fleet: Fleet, course: Course, writers: Sequence[Writer]) -> float:
    """Seconds until every Envoy has acknowledged all that these have written."""
    revision = max([await writer.flush() for writer in writers])
    started = time.monotonic()
    await fleet.convergence.until(revision)
    ended = time.monotonic()
    for number in range(course.total):
        if name(number) not in course.removed:
            course.served.setdefault(name(number), ended)
    return ended - started


async def move(fleet: Fleet, course: Course, rate: float) -> float:
    """Move every model from its instance to the next one, instance by instance, as monitors would: registered there,
    and when all of an instance's are, drained here, unloaded once no Envoy has any of them in flight, and deregistered;
    seconds from the last registration until all were unloaded."""
    writers = fleet.writers
    homes = [range(place, course.total, len(writers)) for place in range(len(writers))]
    course.order = [name(number) for home in homes for number in home]
    places = [place for place, home in enumerate(homes) for _ in home]
    course.done = 0
    draining: list[asyncio.Task[None]] = []

    async def drain(place: int) -> None:
        servables = [(name(number), 1) for number in homes[place]]
        await writers[(place + 1) % len(writers)].flush()
        writers[place].draining(*servables)
        await fleet.convergence.until(await writers[place].flush(), drained=writers[place].name)
        await writers[place].drop(*servables)
        writers[place].gone(*servables)

    async def step(number: int) -> None:
        place, new = places[number], writers[(places[number] + 1) % len(writers)]
        servable = course.order[number], 1
        await new.hold(servable)
        new.ready(servable)
        if number + 1 == course.total or places[number + 1] != place:
            draining.append(asyncio.create_task(drain(place)))

    await _paced(course.total, rate, step, course)
    last = time.monotonic()
    await asyncio.gather(*draining)
    await converge(fleet, course, writers)
    return time.monotonic() - last


async def remove(fleet: Fleet, course: Course, rate: float, count: int) -> float:
    """Remove the first `count` models from the fleet, as monitors would; seconds until every Envoy had forgotten."""
    course.done = 0

    course.order.sort()

    async def step(number: int) -> None:
        model = course.order[number]
        course.removed[model] = time.monotonic()
        # Where it is: a move may have come before.
        for writer in fleet.writers:
            writer.gone((model, 1))

    await _paced(count, rate, step, course)
    return await converge(fleet, course, fleet.writers)


async def kill_each(fleet: Fleet, pause: float, on_return: Callable[[Replica], None] = lambda replica: None) -> int:
    """kill -9 every control plane in turn and then all at once, each `pause` seconds after the last was back; how many
    kills that were."""
    groups = [[replica] for replica in fleet.replicas]
    if len(groups) > 1:
        groups.append(list(fleet.replicas))
    for group in groups:
        await asyncio.sleep(pause)
        for replica in group:
            fleet.kill(replica)
        await asyncio.sleep(pause)
        await asyncio.gather(*(fleet.restart(replica) for replica in group))
        for replica in group:
            on_return(replica)
    return sum(map(len, groups))


async def read_own_writes(fleet: Fleet, calls: Sequence[Any], rounds: int, prefix: str = "own") -> list[Outcome]:
    """Write a change, wait until the control planes say that all Envoys have it, and ask each Envoy at once (`calls`):
    what they answered that is older than the change. Each round adds a model, moves it and removes it."""
    stale: list[Outcome] = []
    first, second = fleet.writers[:2]

    async def expect(model: str, code: grpc.StatusCode) -> None:
        for number, call in enumerate(calls):
            outcome = await ask(call, model, number)
            if outcome.code is not code:
                stale.append(outcome)

    for number in range(rounds):
        servable = model, _ = f"{prefix}-{number}", 1
        await first.hold(servable)
        first.ready(servable)
        await fleet.convergence.until(await first.flush())
        await expect(model, grpc.StatusCode.OK)
        # Moved without a drain: the old instance forgets it as soon as no Envoy is said to know it there.
        await second.hold(servable)
        second.ready(servable)
        await second.flush()
        first.gone(servable)
        await fleet.convergence.until(await first.flush())
        await first.drop(servable)
        await expect(model, grpc.StatusCode.OK)
        second.gone(servable)
        await fleet.convergence.until(await second.flush())
        await expect(model, grpc.StatusCode.NOT_FOUND)
        await second.drop(servable)
    return stale
