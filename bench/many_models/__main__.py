"""`python -m bench.many_models`: the figures of docs/benchmarks.md, section Many models."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.errors import BenchError
from bench.machine import cpu_seconds, this_machine
from bench.many_models.fleet import Fleet
from bench.many_models.server import name
from bench.report import table

CHANGES = ("surprise", "folder", "load", "reload")
_CALM = 5.0
"""Seconds after which nothing that was changed keeps the monitor busy any more."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="python -m bench.many_models", description=__doc__)
    flags.add_argument("--models", default="1,100,1000", metavar="N,…", help="sizes of the instance, one after another")
    flags.add_argument("--seconds", type=float, default=15.0, metavar="S", help="how long idle polling is measured")
    flags.add_argument("--changes", type=int, default=20, metavar="N", help="of each kind, in the largest instance")
    flags.add_argument("--load-time", type=float, default=8.0, metavar="S", help="how long the kind `load` takes")
    flags.add_argument("--kinds", default=",".join(CHANGES), metavar="KIND,…", help=", ".join(CHANGES))
    flags.add_argument("--monitor", action="append", default=[], metavar="FLAG", help="one more flag of the monitor")
    return flags


async def _registration(fleet: Fleet) -> list[str]:
    began = time.monotonic()
    pid = fleet.start_monitor().pid
    written = fleet.written
    await fleet.until(lambda: len(written.ready_at) == fleet.models, "all models to be READY")
    seconds = max(written.ready_at.values()) - began
    cpu = cpu_seconds(pid)
    await asyncio.sleep(2.0)
    return [
        f"{fleet.models:,} models",
        f"{seconds:.2f} s",
        f"{cpu:.2f} s",
        f"{len(written.operations):,}",
        f"{max(written.operations)}",
        f"{written.instance_records}",
        f"{written.size / 1e6:.2f} MB",
    ]


async def _idle(fleet: Fleet, seconds: float) -> list[float]:
    """Share of a core of the monitor and of the server, and status calls per second."""
    await asyncio.sleep(_CALM)
    pids = fleet.monitor.pid, fleet.server.pid
    calls, cpu, began = await fleet.calls(), [cpu_seconds(pid) for pid in pids], time.monotonic()
    await asyncio.sleep(seconds)
    used = [cpu_seconds(pid) - before for pid, before in zip(pids, cpu, strict=True)]
    made, took = await fleet.calls() - calls, time.monotonic() - began
    return [used[0] / took, used[1] / took, made / took]


def _idle_rows(seen: dict[int, list[float]]) -> list[list[str]]:
    rows = [["", "monitor", "against the smallest", "stand-in", "status calls/s", "monitor's CPU per call"]]
    smallest = next(iter(seen.values()))[0]
    for models, (monitor, server, calls) in seen.items():
        cells = [f"{monitor:.1%}", f"{monitor / max(smallest, 1e-4):.1f}", f"{server:.1%}", f"{calls:.0f}"]
        rows.append([f"{models:,} models", *cells, f"{monitor / calls * 1e6:.0f} µs"])
    return rows


async def _change(fleet: Fleet, kind: str, numbers: Sequence[int], version: int, load_time: float) -> list[float]:
    """Bring a new version of these models; seconds from AVAILABLE to the READY key, of each."""
    names, old = [name(number) for number in numbers], version - 1
    if kind == "folder":
        for number in numbers:
            fleet.base_path(number).joinpath(str(version)).mkdir()
        # A server looks at its file system once a second.
        await asyncio.sleep(random.uniform(0.1, 1.1))
    for state, pause in {"START": 0.1, "LOADING": load_time if kind == "load" else 0.1}.items():
        await fleet.set({one: {version: state, old: "AVAILABLE"} for one in names})
        await asyncio.sleep(pause)
    available = await fleet.set({one: {version: "AVAILABLE", old: "AVAILABLE"} for one in names})
    await asyncio.sleep(0.1)
    await fleet.set({one: {version: "AVAILABLE", old: "END"} for one in names})
    ready = fleet.written.ready_at
    await fleet.until(lambda: all((one, version) in ready for one in names), f"version {version} to be READY")
    return [ready[one, version] - available for one in names]


async def _changes(fleet: Fleet, kind: str, count: int, load_time: float) -> list[str]:
    delays: list[float] = []
    version = 2 + CHANGES.index(kind)
    groups = [list(range(count))] if kind == "reload" else [[number] for number in range(count)]
    # Versions are numbered by kind, and every model goes through all kinds in turn.
    for number in range(count):
        await fleet.set({name(number): {version - 1: "AVAILABLE"}})
    await asyncio.sleep(2 * _CALM if fleet.models > 100 else _CALM)
    for number, group in enumerate(groups):
        if number:
            await asyncio.sleep(_CALM + random.uniform(0.0, 1.0))
        delays += await _change(fleet, kind, group, version, load_time)
    delays.sort()
    ninety_nine = delays[min(len(delays) - 1, int(len(delays) * 0.99))]
    return [kind, str(len(delays)), f"{median(delays):.3f} s", f"{ninety_nine:.3f} s", f"{delays[-1]:.3f} s"]


async def _run(args: argparse.Namespace, folder: Path) -> None:
    sizes = [int(size) for size in args.models.split(",")]
    registration = [["", "until all are READY", "monitor's CPU", "transactions", "largest", "records", "written"]]
    idle: dict[int, list[float]] = {}
    changes = [["", "changes", "p50", "p99", "slowest"]]
    for size in sizes:
        path = folder / str(size)
        path.mkdir()
        async with Fleet(path, size, *args.monitor) as fleet:
            registration.append(await _registration(fleet))
            if args.seconds:
                idle[size] = await _idle(fleet, args.seconds)
            if size == max(sizes) and args.changes:
                kinds = filter(None, args.kinds.split(","))
                changes += [await _changes(fleet, kind, min(size, args.changes), args.load_time) for kind in kinds]
    print(f"From the monitor's start to the last READY key\n\n{table(registration)}\n")
    if idle:
        print(f"Polling while nothing changes, as a share of one core\n\n{table(_idle_rows(idle))}\n")
    if len(changes) > 1:
        print(f"From a new version's AVAILABLE to its READY key, {max(sizes):,} models\n\n{table(changes)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit code."""
    args = parser().parse_args(arguments)
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} cores, load average {machine.load_average}\n", flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_run(args, Path(folder)))
    except BenchError as error:
        print(f"bench.many_models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
