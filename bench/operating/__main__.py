"""`python -m bench.operating rolling|canary|restarts`: the figures of docs/benchmarks.md, section Operating models."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.figures import percentile
from bench.machine import envoy_version, this_machine
from bench.operating.canaries import FAULTS, Canary, canaries
from bench.operating.restarts import KINDS, Restart, restarts
from bench.operating.rolling import Rolling, rolling
from bench.report import table
from tests.support.processes import binary, show_logs
from tests.support.stack import Stack


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="python -m bench.operating", description=__doc__)
    flags.add_argument("what", choices=("rolling", "canary", "restarts"))
    flags.add_argument("--instances", type=int, metavar="N", help="default: 4 for rolling, else 2")
    flags.add_argument("--models", type=int, default=3, metavar="N", help="of a rolling upgrade")
    flags.add_argument("--moves", type=int, default=100, metavar="N", help="of all models, there and back again")
    flags.add_argument("--times", type=int, default=5, metavar="N", help="canaries of each kind, restarts of each")
    flags.add_argument("--clients", type=int, default=2, metavar="N", help="per model, each with one request at a time")
    flags.add_argument("--keep", type=Path, metavar="FOLDER", help="put the logs here and leave them")
    kinds = f"of canaries: {', '.join(FAULTS)}; of restarts: {', '.join(KINDS)}; default: all"
    flags.add_argument("faults", nargs="*", metavar="FAULT", help=kinds)
    return flags


def rolling_report(result: Rolling) -> str:
    """A row per model."""
    rows = [["model", "requests", "failed", "wrong answer", "outside the policy", "went back"]]
    for name, one in result.verdicts.items():
        bad = one.failed.total(), len(one.wrong_answer), len(one.outside), len(one.back)
        rows.append([name, f"{one.requests:,}", *map(str, bad)])
    took = sorted(move.done - move.ordered for moves in result.moves.values() for move in moves)
    figures = ", ".join(f"{percentile(took, percent):.1f} s" for percent in (50, 90, 100))
    lines = [table(rows), "", f"  a move of all models: p50, p90, longest: {figures}"]
    for name, one in result.verdicts.items():
        lines += [f"  {name}: {count} times {what}" for what, count in one.failed.most_common(5)]
        lines += [f"  {name}: {outcome}" for outcome in (*one.wrong_answer[:3], *one.outside[:3], *one.back[:3])]
    return "\n".join(lines)


def canary_report(found: Sequence[Canary]) -> str:
    """A row per kind."""
    rows = [["new version", "canaries", "as it should", "seconds", "requests to it, most", "failed, most"]]
    for fault in dict.fromkeys(one.fault for one in found):
        mine = [one for one in found if one.fault == fault]
        seconds = sorted(one.seconds for one in mine)
        span = f"{seconds[0]:.1f} … {seconds[-1]:.1f}"
        most = [str(max(one.asked for one in mine)), str(max(one.failed for one in mine))]
        rows.append([fault, str(len(mine)), str(sum(one.right for one in mine)), span, *most])
    wrong = [f"  {one.fault}: {one.phase}: {one.text}" for one in found if not one.right]
    return "\n".join([table(rows), *wrong])


def restart_report(found: Sequence[Restart]) -> str:
    """A row per kind."""
    rows = [
        ["killed", "canaries", "as it should", "another led after, s", "requests", "failed", "on their way", "seconds"]
    ]
    for kind in dict.fromkeys(one.kind for one in found):
        mine = [one for one in found if one.kind == kind]
        after = [one.took_over for one in mine if one.took_over is not None]
        counts = [sum(one.requests for one in mine), sum(one.failed.total() for one in mine)]
        rows.append([kind, str(len(mine)), str(sum(one.right for one in mine)), f"{max(after):.1f}" if after else ""])
        rows[-1] += [f"{count:,}" for count in (*counts, sum(one.on_their_way for one in mine))]
        rows[-1].append(f"{min(one.seconds for one in mine):.1f} … {max(one.seconds for one in mine):.1f}")
    wrong = [f"  {one.kind}: {one.course}, {one.failed}: {one.text}" for one in found if not one.right]
    return "\n".join([table(rows), *wrong])


async def _run(args: argparse.Namespace, stack: Stack, say: Callable[[str], None]) -> tuple[str, bool]:
    hosts = [f"i{number}" for number in range(args.instances or (4 if args.what == "rolling" else 2))]
    for host in hosts:
        stack.start_managed(host)
    if args.what == "rolling":
        upgrade = await rolling(stack, hosts, models=args.models, moves=args.moves, clients=args.clients, say=say)
        return rolling_report(upgrade), not upgrade.faults
    if args.what == "restarts":
        through = await restarts(stack, hosts, times=args.times, kinds=args.faults, clients=args.clients, say=say)
        return restart_report(through), all(one.right for one in through)
    faults = tuple(args.faults)
    found = await canaries(stack, hosts, times=args.times, clients=args.clients, faults=faults, say=say)
    return canary_report(found), all(one.right for one in found)


def main(argv: Sequence[str] | None = None) -> int:
    """0: everything was as it should be."""
    args = parser().parse_args(argv)
    known = KINDS if args.what == "restarts" else FAULTS
    args.faults = args.faults or list(known)
    if unknown := set(args.faults) - set(known):
        parser().error(f"{', '.join(sorted(unknown))}: give some of {', '.join(known)}")
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, load average {machine.load_average}")
    print(f"Envoy {envoy_version(binary('envoy'))}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="modelplane-operating-") as scratch:
        folder = args.keep or Path(scratch)
        stack = Stack(folder, replicas=2 if args.what == "restarts" else 1)
        try:
            text, good = asyncio.run(_run(args, stack, lambda line: print(line, flush=True)))
        except BaseException:
            show_logs(folder)
            raise
        finally:
            stack.close()
    print("", text, sep="\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
