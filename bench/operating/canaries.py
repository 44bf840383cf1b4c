"""Canaries with planted faults, and good ones, under load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from registry.keys import ReadyKey
from registry.rollouts import Phase
from tests.support import saved_models
from tests.support.load import Load
from tests.support.operating import Operator, policy
from tests.support.stack import Stack

FAULTS = ("good", "errors", "slow", "wrong")
_SLOW = 0.15


@dataclass(frozen=True)
class Canary:
    """One rollout. `asked`: requests that the new version answered, well or not, until the end; `seconds`: from the
    version's appearance to the end."""

    fault: str
    phase: Phase
    text: str
    requests: int
    asked: int
    failed: int
    seconds: float

    @property
    def right(self) -> bool:
        """Whether it ended as it should."""
        return (self.phase is Phase.DONE) == (self.fault == "good")


def strategy(fault: str) -> dict[str, Any]:
    """Three steps by requests; answers are compared only where they are what is wrong, for it costs requests."""
    gates: dict[str, Any] = {
        "errorRate": "1%",
        "latency": {"quantile": 0.9, "ratio": 2, "atLeast": "50ms"},
        "minRequests": 20,
    }
    if fault == "wrong":
        gates["difference"] = {"share": "50%", "tolerance": 0.01, "atMost": "1%"}
    steps = [{"percent": percent, "requests": 60} for percent in (10, 30, 60)]
    return {"strategy": "canary", "steps": steps, "gates": gates}


def new_version(fault: str, base: Path) -> None:
    """Version 2, which the proof takes for good."""
    if fault == "slow":
        saved_models.slow(base, 2, seconds=_SLOW)
    elif fault == "errors":
        saved_models.choosy(base, 2)
    else:
        saved_models.half_plus_two(base, 2, b=2.5 if fault == "wrong" else 2.0)


async def canary(
    stack: Stack, operator: Operator, hosts: Sequence[str], name: str, fault: str, *, clients: int
) -> Canary:
    """One model, from its first version to the end of the rollout of its second."""
    base = stack.folder / "models" / name
    saved_models.half_plus_two(base, 1)
    await operator.apply(policy(name, base, rollout=strategy(fault)), wait=True)
    await stack.until_ready(*(ReadyKey(name, 1, host) for host in hosts))
    request = saved_models.predict_request(name, [2.0])
    async with Load(stack.grpc, request, clients=clients, rest=0.01, timeout=30) as load:
        await load.more(20)
        started = time.monotonic()
        new_version(fault, base)
        ended = await operator.until(name, Phase.DONE, Phase.ROLLED_BACK, version=2, timeout=300)
        seconds = time.monotonic() - started
        await load.more(50)
    asked = sum(one.version == 2 or one.code is not grpc.StatusCode.OK for one in load.outcomes)
    return Canary(fault, ended.phase, ended.text, len(load.outcomes), asked, len(load.failures), seconds)


async def canaries(
    stack: Stack,
    hosts: Sequence[str],
    *,
    times: int,
    clients: int,
    faults: tuple[str, ...],
    say: Callable[[str], None] = print,
) -> list[Canary]:
    """Each fault `times` times, each with a model of its own, on managed instances that were started."""
    operator = Operator(stack.etcd.endpoint, stack.folder)
    found = []
    for number in range(times):
        for fault in faults:
            one = await canary(stack, operator, hosts, f"{fault}-{number}", fault, clients=clients)
            say(f"{fault}: {one.phase} after {one.seconds:.1f} s, {one.asked} requests to the new version: {one.text}")
            found.append(one)
            await operator.command("delete", "model", f"{fault}-{number}")
    return found
