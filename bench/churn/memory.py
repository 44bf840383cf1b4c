"""What Envoy's memory costs with every model's clusters, and with those that requests ask for."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import grpc

from bench.churn.fleet import Fleet
from bench.churn.probes import ask
from bench.churn.scenarios import name
from bench.errors import BenchError
from bench.messages import METHOD
from bench.report import table


def resident(pid: int) -> float:
    """MiB of physical memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(kib) / 1024


async def _measure(folder: Path, models: int, used: int, *, on_demand: bool) -> list[str]:
    flags: tuple[str, ...] = ("--on-demand-clusters",) if on_demand else ()
    bootstrap: dict[str, Any] = {"on_demand_clusters": on_demand}
    async with Fleet(folder, replicas=1, flags=flags, bootstrap=bootstrap, tapped=False, workers=1) as fleet:
        writer = fleet.writers[0]
        servables = [(name(number), 1) for number in range(models)]
        await writer.hold(*servables)
        writer.ready(*servables)
        revision = await writer.flush()
        began = time.monotonic()
        envoy = await fleet.start_envoy()
        ready = time.monotonic() - began
        await fleet.convergence.until(revision, timeout=120)
        idle = resident(envoy.child.pid)
        chosen = random.Random(1).sample(servables, used)
        seconds = []
        async with grpc.aio.insecure_channel(fleet.address) as channel:
            call: Any = channel.unary_unary(METHOD)
            for model, _ in [("warm-up", 0), *chosen, *chosen]:
                outcome = await ask(call, model)
                if outcome.code is not grpc.StatusCode.OK and model != "warm-up":
                    raise BenchError(f"{outcome}")
                seconds.append(outcome.ended - outcome.started)
        first, again = sorted(seconds[1 : used + 1]), sorted(seconds[used + 1 :])
        return [
            "on demand" if on_demand else "all clusters",
            f"{ready:.1f} s",
            f"{idle:.0f} MiB",
            f"{resident(envoy.child.pid):.0f} MiB",
            f"{first[used // 2] * 1e3:.1f} ms",
            f"{again[used // 2] * 1e3:.1f} ms",
        ]


async def run(folder: Path, models: int, used: int) -> int:
    """Both ways, one after the other, each with `models` models of which `used` are asked for twice."""
    rows = [["", "start to ready", "then", f"after {used} models", "first request", "second"]]
    rows += [await _measure(folder / str(way), models, used, on_demand=way) for way in (False, True)]
    print(f"{models:,} models\n\n{table(rows)}")
    return 0
