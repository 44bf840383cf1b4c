"""`python -m bench.soak [--seconds 600] [--seed N]`: random faults under load, the table of docs/outages.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.machine import envoy_version, this_machine
from bench.report import table
from bench.soak.course import Result, soak
from bench.soak.faults import FAULTS
from bench.soak.fleet import Fleet
from bench.soak.memory import Series
from tests.support.processes import binary


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    flags.add_argument("--seconds", type=float, default=600.0, help="no new fault after that")
    flags.add_argument("--seed", type=int, default=1, metavar="N", help="which faults, in which order, and how")
    flags.add_argument("--lease-ttl", type=float, default=4.0, metavar="SECONDS")
    flags.add_argument("--keep", type=Path, metavar="FOLDER", help="put the logs here and leave them")
    flags.add_argument("faults", nargs="*", default=list(FAULTS), metavar="FAULT", help=", ".join(FAULTS))
    return flags


def fault_table(result: Result) -> str:
    """A row per kind of fault; a step of two counts for both."""
    rows = [["fault", "times", "with another", "registry right after, worst", "Envoy right after, worst"]]
    for name, fault in FAULTS.items():
        if mine := [step for step in result.steps if name in step.faults]:
            both = sum(len(step.faults) > 1 for step in mine)
            worst = max(step.registry for step in mine), max(step.envoy for step in mine)
            rows.append([fault.text, str(len(mine)), str(both), *(f"{seconds:.1f} s" for seconds in worst)])
    return table(rows)


def memory_table(result: Result) -> str:
    """A row per process, of the longest series that it had."""
    rows = [["process", "started", "longest life", "at a third", "at the end", "MiB a minute", ""]]
    for name, series in result.memory.by_name().items():
        longest = max(series, key=lambda one: one.seconds)
        ends = [f"{longest.settled[place][1]:.0f} MiB" for place in (0, -1)]
        rows.append([name, str(len(series)), f"{longest.seconds:.0f} s", *ends, f"{longest.slope:+.2f}", _word(series)])
    return table(rows)


def _word(series: Sequence[Series]) -> str:
    if not any(one.judged for one in series):
        return "not judged"
    return "flat" if all(one.flat for one in series) else "GROWS"


def report(result: Result) -> str:
    """Everything."""
    verdict = result.verdict
    kills = ", ".join(f"{count} of {name}" for name, count in sorted(verdict.by_kill.items()))
    said = "; ".join(f"{count} {text}" for text, count in verdict.said.most_common())
    lines = [
        fault_table(result),
        "",
        memory_table(result),
        "",
        f"  {result.seconds:.0f} s, {len(result.steps)} steps, {verdict.requests:,} requests",
        *(f"  {count:,} {why.value}" for why, count in verdict.excused.items()),
        *([f"    by killed instance: {kills}; the errors: {said}"] if kills else []),
        f"  {len(verdict.wrong)} wrong",
        *(f"    {what}: {outcome}" for what, outcome in verdict.wrong[:20]),
        *([f"  ended early: {result.trouble}"] if result.trouble else []),
        *(f"  {one.name} (pid {one.pid}) grows by {one.slope:.2f} MiB a minute" for one in result.memory.growing),
    ]
    return "\n".join(lines)


async def _run(args: argparse.Namespace, folder: Path) -> Result:
    async with Fleet(folder, ttl=args.lease_ttl) as fleet:
        return await soak(
            fleet,
            seconds=args.seconds,
            seed=args.seed,
            kinds=args.faults,
            say=lambda line: print(line, flush=True),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing was wrong, and nothing grows."""
    args = parser().parse_args(argv)
    if unknown := set(args.faults) - set(FAULTS):
        parser().error(f"{', '.join(sorted(unknown))}: give some of {', '.join(FAULTS)}")
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Envoy {envoy_version(binary('envoy'))}")
    print(f"load average {machine.load_average}; seed {args.seed}, leases of {args.lease_ttl:g} s\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="modelplane-soak-") as scratch:
        result = asyncio.run(_run(args, args.keep or Path(scratch)))
    print("", report(result), sep="\n")
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
