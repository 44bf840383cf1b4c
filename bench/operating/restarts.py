"""A canary while what carries it is killed (SIGKILL) and started again: the leading control plane, an instance's
monitor with its server, etcd, and all of them one after the other; and an upgrade whose leader is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from registry.etcd import EtcdClient, EtcdConfig
from registry.follow import Changes, Snapshot, follow
from registry.keys import Keyspace, ReadyKey, RolloutKey
from registry.rollouts import Phase, RolloutRecord, decode_rollout
from tests.support import saved_models
from tests.support.load import Load
from tests.support.operating import Operator, policy
from tests.support.stack import Stack
from tests.support.waiting import eventually

KINDS = ("leader", "instance", "etcd", "all", "bad", "upgrade")
_SINKS = (Phase.DONE, Phase.ROLLED_BACK, Phase.FAILED)


@dataclass
class Restart:
    """One rollout through one fault. `struck_at`: the step at the time; `took_over`: seconds until another control
    plane led; `course`: each phase and step that was written, in order; `killed`: when a server was (monotonic
    seconds); `failed`: what clients saw, but for what was `on_their_way` to such a server, and for the errors `planted`
    in a bad version."""

    kind: str
    struck_at: int = 0
    took_over: float | None = None
    course: list[tuple[Phase, int]] = field(default_factory=list)
    text: str = ""
    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    on_their_way: int = 0
    planted: int = 0
    killed: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steady(self) -> bool:
        """Whether it never went back to an earlier step, nor to a phase from before the first."""
        steps = [step for phase, step in self.course if phase is Phase.STEPPING]
        moved = (Phase.STEPPING, Phase.SWITCHING)
        first = next((at for at, (phase, _) in enumerate(self.course) if phase in moved), len(self.course))
        begun_anew = any(phase in (Phase.LOADING, Phase.WAITING) for phase, _ in self.course[first:])
        return steps == sorted(steps) and not begun_anew

    @property
    def right(self) -> bool:
        """Whether it went on from where it was, ended as it should, and cost nobody anything."""
        end = Phase.ROLLED_BACK if self.kind == "bad" else Phase.DONE
        ended = bool(self.course) and self.course[-1][0] is end
        return self.steady and ended and not self.failed


def strategy(requests: int) -> dict[str, Any]:
    """Three steps, each of which lasts long enough for a fault to be over in it."""
    gates = {"errorRate": "1%", "latency": {"quantile": 0.9, "ratio": 20, "atLeast": "2s"}, "minRequests": 20}
    return {
        "strategy": "canary",
        "steps": [{"percent": percent, "requests": requests} for percent in (20, 40, 60)],
        "gates": gates,
    }


async def restart(stack: Stack, hosts: Sequence[str], kind: str, name: str, *, clients: int, requests: int) -> Restart:
    """One model, from its first version to the end of the rollout of its second, and the fault while it is stepping."""
    base = stack.folder / "models" / name
    saved_models.half_plus_two(base, 1)
    operator = Operator(stack.etcd.endpoint, stack.folder)
    seen = Restart(kind)
    rollout = {"strategy": "rolling"} if kind == "upgrade" else strategy(requests)
    await operator.apply(policy(name, base, rollout=rollout), wait=True)
    await stack.until_ready(*(ReadyKey(name, 1, host) for host in hosts))
    load = Load(stack.grpc, saved_models.predict_request(name, [2.0]), clients=clients, rest=0.02, timeout=30)
    async with _watched(stack, name, seen) as newest, load:
        await load.more(20)
        began = time.monotonic()
        switch = stack.folder / f"{name}-switch"
        _make_version_2(kind, base, switch)
        at = (Phase.LOADING, 0) if kind == "upgrade" else (Phase.STEPPING, 2)
        await eventually(lambda: at in seen.course, f"{name} to be {at[0]}", 120)
        seen.struck_at = newest[0].step
        await _strike(stack, hosts, kind, seen)
        # What it did well was seen by one leader, what it does badly by the next.
        switch.unlink(missing_ok=True)
        await eventually(lambda: newest[0].phase in _SINKS, f"{name}'s end", 300)
        await load.more(50)
        seen.seconds = time.monotonic() - began
    seen.text, seen.requests = newest[0].text, len(load.outcomes)
    _judge(load, seen)
    return seen


def _make_version_2(kind: str, base: Path, switch: Path) -> None:
    if kind == "bad":
        switch.write_text("2.0")
        saved_models.switched(base, switch, 2)
    elif kind == "upgrade":
        # Long enough for the leader to die before it is ready.
        saved_models.slow_to_load(base, 2, seconds=1)
    else:
        saved_models.half_plus_two(base, 2)


def _judge(load: Load, seen: Restart) -> None:
    for one in load.failures:
        if seen.kind == "bad" and one.code is grpc.StatusCode.NOT_FOUND:
            seen.planted += 1
        elif any(one.started <= killed <= one.started + one.seconds for killed in seen.killed):
            seen.on_their_way += 1
        else:
            seen.failed[f"{one.code.name} {one.details}"] += 1
    if seen.kind == "upgrade":
        newest: Counter[int] = Counter()
        for one in load.outcomes:
            if one.version < newest[one.client] and one.code is grpc.StatusCode.OK:
                seen.failed[f"version {one.version} after {newest[one.client]}"] += 1
            newest[one.client] = max(newest[one.client], one.version)


async def restarts(
    stack: Stack,
    hosts: Sequence[str],
    *,
    times: int,
    kinds: Sequence[str] = KINDS,
    clients: int = 4,
    requests: int = 100,
    say: Callable[[str], None] = print,
) -> list[Restart]:
    """Each kind `times` times, each with a model of its own, on managed instances that were started.
    `requests`: what each step of a canary takes."""
    operator = Operator(stack.etcd.endpoint, stack.folder)
    found = []
    for number in range(times):
        for kind in kinds:
            one = await restart(stack, hosts, kind, f"{kind}-{number}", clients=clients, requests=requests)
            course = ", ".join(f"{phase} {step}" if step else phase for phase, step in one.course)
            say(f"{kind}: struck at step {one.struck_at}, {one.seconds:.1f} s: {course}: {one.text}")
            found.append(one)
            await operator.command("delete", "model", f"{kind}-{number}")
    return found


@asynccontextmanager
async def _watched(stack: Stack, name: str, seen: Restart) -> AsyncIterator[list[RolloutRecord]]:
    """The newest record of a rollout, alone in a list; `seen` gets its course. Outlives etcd."""
    key, newest = Keyspace().make(RolloutKey(name)), [RolloutRecord(Phase.WAITING)]

    async def watch(client: EtcdClient) -> None:
        async for update in follow(client, key):
            match update:
                case Snapshot(entries=entries) | Changes(puts=entries) if key in entries:
                    newest[0] = one = decode_rollout(entries[key])
                    if one.to_version == 2 and seen.course[-1:] != [(one.phase, one.step)]:
                        seen.course.append((one.phase, one.step))

    async with EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as client:
        task = asyncio.create_task(watch(client))
        try:
            yield newest
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _strike(stack: Stack, hosts: Sequence[str], kind: str, seen: Restart) -> None:
    if kind in ("leader", "bad", "upgrade", "all"):
        await _kill_the_leader(stack, seen)
    if kind in ("instance", "all"):
        await _kill_an_instance(stack, hosts[0], seen)
    if kind in ("etcd", "all"):
        stack.etcd.kill()
        # Leases that nobody can renew for a while.
        await asyncio.sleep(2)
        await asyncio.to_thread(stack.etcd.restart)
    if kind == "all":
        # Whoever took over dies as well, when the first is back.
        await _kill_the_leader(stack, seen)


async def _kill_the_leader(stack: Stack, seen: Restart) -> None:
    before = await eventually(stack.leader, "a leader")
    killed = time.monotonic()
    stack.planes[before].kill()

    async def another() -> bool:
        return await stack.leader() not in ("", before)

    await eventually(another, "another leader", 60)
    seen.took_over = max(time.monotonic() - killed, seen.took_over or 0.0)
    await asyncio.to_thread(stack.start_plane, number=int(before.rpartition("-")[2]))


async def _kill_an_instance(stack: Stack, host: str, seen: Restart) -> None:
    """Monitor and server at once: nobody is left to say that they are gone."""
    instance = stack.instances[host]
    server = instance.server_pid
    instance.monitor.kill()
    os.kill(server, signal.SIGKILL)
    seen.killed.append(time.monotonic())
    stack.start_managed(host)
