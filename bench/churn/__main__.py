"""`python -m bench.churn`: the figures of docs/benchmarks.md, section Churn."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.churn import memory, scenarios
from bench.churn.direct import DirectProbes
from bench.churn.fleet import Fleet
from bench.churn.probes import Probes
from bench.churn.scenarios import Course
from bench.churn.verdict import codes, violations
from bench.errors import BenchError
from bench.machine import envoy_version, this_machine
from bench.report import table
from control_plane.config import ControlPlaneConfig
from tests.support.processes import binary

SCENARIOS = ("add", "move", "remove", "memory")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="python -m bench.churn", description=__doc__)
    flags.add_argument("--models", type=int, default=3000, metavar="N")
    flags.add_argument("--rate", type=float, default=300.0, metavar="PER_SECOND", help="models changed per second")
    flags.add_argument("--replicas", type=int, default=3, metavar="N", help="control planes")
    flags.add_argument("--instances", type=int, default=6, metavar="N")
    flags.add_argument("--connections", type=int, default=4, metavar="N", help="clients' connections to Envoy")
    flags.add_argument("--grpc-clients", type=int, default=1, metavar="N", help="processes of gRPC without a proxy")
    flags.add_argument(
        "--kept", type=int, default=12, metavar="N", help="models that each of these asks for over one channel"
    )
    flags.add_argument(
        "--visits", type=int, default=4, metavar="N", help="channels at once for the models of the moment, each's"
    )
    flags.add_argument("--kill", action="store_true", help="kill -9 every control plane in turn, then all at once")
    flags.add_argument(
        "--settle-time",
        type=float,
        default=ControlPlaneConfig().settle_time,
        metavar="SECONDS",
        help="the control planes' own",
    )
    flags.add_argument("--pause", type=float, default=1.0, metavar="SECONDS", help="between kill and return, and back")
    flags.add_argument(
        "--on-demand-clusters", action="store_true", help="Envoy asks for clusters as requests need them"
    )
    flags.add_argument("--used", type=int, default=100, metavar="N", help="memory: how many models are asked for")
    flags.add_argument(
        "scenarios", nargs="*", default=["add", "move", "remove"], metavar="SCENARIO", help=", ".join(SCENARIOS)
    )
    return flags


async def _churn(fleet: Fleet, args: argparse.Namespace) -> tuple[list[list[str]], int]:
    """Run the scenarios one after the other; the table's rows, and how many answers should not have been."""
    rows = [["", "changes", "seconds", "kills", "until all clients have it", "asked", "answers", "wrong"]]
    course, total_wrong = Course(args.models), 0
    steps: dict[str, Callable[[], Awaitable[float]]] = {
        "add": lambda: scenarios.add(fleet, course, args.rate),
        "move": lambda: scenarios.move(fleet, course, args.rate),
        "remove": lambda: scenarios.remove(fleet, course, args.rate, args.models // 2),
    }
    async with AsyncExitStack() as stack:
        envoy = Probes(fleet.address, course.choose, connections=args.connections, streams=2)
        clients = [_direct(fleet, course, number, args) for number in range(args.grpc_clients)]
        for probes in (envoy, *clients):
            await stack.enter_async_context(probes)
        for name in args.scenarios:
            for probes in (envoy, *clients):
                probes.outcomes.clear()
            started = time.monotonic()
            killing = asyncio.create_task(scenarios.kill_each(fleet, args.pause)) if args.kill else None
            last = await steps[name]()
            ended = time.monotonic()
            kills = await killing if killing else 0
            await asyncio.gather(envoy.more(500), *(client.more(200) for client in clients))
            changes = args.models // 2 if name == "remove" else args.models
            figures = [f"{changes:,}", f"{ended - started - last:.1f}", str(kills), f"{last:.2f} s"]
            for who, asked in (("Envoy", [envoy]), ("gRPC", clients)):
                outcomes = [outcome for probes in asked for outcome in probes.outcomes]
                wrong = violations(outcomes, served=course.served, removed=course.removed)
                total_wrong += len(wrong)
                for outcome in wrong[:5]:
                    print(f"{name}, {who}: {outcome}", file=sys.stderr)
                seen = ", ".join(f"{code} {count:,}" for code, count in sorted(codes(outcomes).items()))
                rows.append([name, *figures, who, seen, str(len(wrong))])
        waited = sum(client.waited for client in clients)
        print(f"requests on new channels while no control plane could be reached: {waited:,}\n")
    return rows, total_wrong


def _direct(fleet: Fleet, course: Course, number: int, args: argparse.Namespace) -> DirectProbes:
    kept = [scenarios.name(place * course.total // args.kept) for place in range(args.kept)]
    addresses = [replica.address for replica in fleet.replicas]
    return DirectProbes(fleet.folder, addresses, course.choose, kept, number=number, visits=args.visits)


def _streams(fleet: Fleet) -> tuple[list[list[str]], int]:
    """What Envoy was sent; the table's rows, and how many resources that it had already."""
    rows = [["Envoy's discovery stream", "held at its start", "sent", "removed", "refused", "sent again"]]
    again = 0
    for place, (_, _, one) in enumerate(fleet.audits(), 1):
        figures = one.held_at_start, one.sent, one.removed, one.refused, one.again + one.after_cluster
        rows.append([f"{place}", *(f"{figure:,}" for figure in figures)])
        again += one.again + one.after_cluster
    return rows, again


async def _run(args: argparse.Namespace, folder: Path) -> int:
    demand = ("--on-demand-clusters",) if args.on_demand_clusters else ()
    flags = "--settle-time", f"{args.settle_time:g}", *demand
    bootstrap: dict[str, Any] = {"on_demand_clusters": args.on_demand_clusters}
    async with Fleet(
        folder, replicas=args.replicas, instances=args.instances, flags=flags, bootstrap=bootstrap
    ) as fleet:
        await fleet.start_envoy()
        rows, wrong = await _churn(fleet, args)
        streams, again = _streams(fleet)
    print(table(rows), table(streams), sep="\n\n")
    print(f"\n  wrong answers: {wrong}; resources sent again: {again}")
    return 1 if wrong or again else 0


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing was wrong and nothing was sent again."""
    args = parser().parse_args(argv)
    unknown = set(args.scenarios) - set(SCENARIOS)
    if unknown or ("memory" in args.scenarios and len(args.scenarios) > 1):
        parser().error(f"{', '.join(sorted(unknown)) or 'memory'}: give some of add, move, remove, or memory alone")
    machine = this_machine()
    print(
        f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Python {machine.python}, load {machine.load_average}"
    )
    print(f"Envoy {envoy_version(binary('envoy'))}\n")
    with tempfile.TemporaryDirectory(prefix="modelplane-churn-") as folder:
        try:
            if args.scenarios == ["memory"]:
                return asyncio.run(memory.run(Path(folder), args.models, args.used))
            return asyncio.run(_run(args, Path(folder)))
        except (BenchError, AssertionError) as error:
            print(f"bench.churn: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
