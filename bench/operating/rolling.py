"""Models moved between two versions, back and forth, under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.operating.verdict import Move, Verdict, judge
from registry.keys import ReadyKey
from tests.support import saved_models
from tests.support.load import Load
from tests.support.operating import Operator, policy
from tests.support.stack import Stack

ANSWERS = {1: 2.0, 2: 3.0}
"""What each version says to 2.0: 0.5 * 2 + b, with its own number as b."""


@dataclass
class Rolling:
    """One run."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    moves: dict[str, list[Move]] = field(default_factory=dict)

    @property
    def faults(self) -> int:
        """Requests that were not as they should be, of all models."""
        return sum(verdict.faults for verdict in self.verdicts.values())


async def rolling(
    stack: Stack,
    hosts: Sequence[str],
    *,
    models: int,
    moves: int,
    clients: int = 2,
    say: Callable[[str], None] = print,
) -> Rolling:
    """`moves` changes of all models at once, each waited for, on managed instances that were started."""
    names = [f"m{number}" for number in range(models)]
    bases = {name: stack.folder / "models" / name for name in names}
    for base in bases.values():
        for version in (1, 2):
            saved_models.half_plus_two(base, version, b=float(version))
    operator = Operator(stack.etcd.endpoint, stack.folder)
    await _apply(operator, bases, 1)
    await stack.until_ready(*(ReadyKey(name, 1, host) for name in names for host in hosts))
    result = Rolling(moves={name: [] for name in names})
    async with AsyncExitStack() as loads:
        running = {name: await loads.enter_async_context(_load(stack, name, clients)) for name in names}
        await _more(running.values(), 20)
        for number in range(moves):
            version = 2 - number % 2
            ordered = time.monotonic()
            await _apply(operator, bases, version)
            done = time.monotonic()
            for name in names:
                result.moves[name].append(Move(name, version, ordered, done))
            await _more(running.values(), 20)
            say(f"move {number + 1} of {moves}, to version {version}: {done - ordered:.1f} s")
            for name, load in running.items():
                for one in load.failures:
                    if one.started + one.seconds >= ordered:
                        when = one.started + one.seconds - ordered
                        say(f"  {name}: {one.code.name} after {one.seconds:.3f} s, {when:.2f} s into it: {one.details}")
    for name, load in running.items():
        result.verdicts[name] = judge(load.outcomes, result.moves[name], 1, ANSWERS)
    return result


def _load(stack: Stack, model: str, clients: int) -> Load:
    return Load(stack.grpc, saved_models.predict_request(model, [2.0]), clients=clients, rest=0.02, timeout=30)


async def _apply(operator: Operator, bases: dict[str, Path], version: int) -> None:
    wanted = [policy(name, base, versions={"specific": [version]}) for name, base in bases.items()]
    await operator.apply(*wanted, wait=True, timeout=300)


async def _more(loads: Iterable[Load], count: int) -> None:
    await asyncio.gather(*(load.more(count) for load in loads))
