"""`python -m bench.outages [ROW…]`: the table of docs/outages.md. A row with a seed repeats the same choices."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.machine import envoy_version, this_machine
from bench.outages.fleet import Fleet
from bench.outages.monitor_rows import MONITOR_ROWS
from bench.outages.rows import ROWS as ETCD_ROWS
from bench.outages.world import Seen, World
from bench.report import table
from tests.support.processes import binary

ROWS = ETCD_ROWS | MONITOR_ROWS
_HEAD = ["row", "etcd away", "requests", "errors", "registry right after", "Envoys right after"]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="python -m bench.outages", description=__doc__)
    flags.add_argument("--seed", type=int, default=1, metavar="N", help="who dies, and how")
    flags.add_argument("--lease-ttl", type=float, default=10.0, metavar="SECONDS")
    flags.add_argument(
        "--lost-lease-grace", type=float, default=10.0, metavar="SECONDS", help="the control planes' own"
    )
    flags.add_argument("--long", type=float, default=3.0, metavar="LEASES", help="how long an outage lasts")
    flags.add_argument("--keep", type=Path, metavar="FOLDER", help="put the logs here and leave them")
    flags.add_argument("rows", nargs="*", default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    return flags


async def _run(args: argparse.Namespace, folder: Path) -> list[Seen]:
    seen: list[Seen] = []
    for cluster in (False, True):
        names = [name for name in args.rows if ROWS[name].cluster is cluster]
        if not names:
            continue
        place = folder / ("three" if cluster else "one")
        async with Fleet(place, cluster=cluster, ttl=args.lease_ttl, grace=args.lost_lease_grace) as fleet:
            for name in names:
                one = await World(fleet, f"{args.seed} {name}", args.long).run(name, ROWS[name].fault)
                seen.append(one)
                print(f"{name}: {one.changed}; registry {one.registry:.2f} s, Envoys {one.envoys:.2f} s", flush=True)
                if one.last:
                    print(f"  last: {one.last}", flush=True)
                if one.errors:
                    print(f"  errors: {one.said}", flush=True)
    return seen


def main(argv: Sequence[str] | None = None) -> int:
    """0: no client saw an error."""
    args = parser().parse_args(argv)
    unknown = set(args.rows) - set(ROWS)
    if unknown:
        parser().error(f"{', '.join(sorted(unknown))}: give some of {', '.join(ROWS)}")
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Envoy {envoy_version(binary('envoy'))}")
    print(f"seed {args.seed}, leases of {args.lease_ttl:g} s, grace of {args.lost_lease_grace:g} s\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="modelplane-outages-") as scratch:
        try:
            seen = asyncio.run(_run(args, args.keep or Path(scratch)))
        except AssertionError as error:
            print(f"bench.outages: {error}", file=sys.stderr)
            return 1
    rows = [_HEAD]
    for one in seen:
        figures = [f"{one.away:.1f} s", f"{one.requests:,}", str(len(one.errors))]
        rows.append(
            [ROWS[one.row].text.format(long=args.long), *figures, f"{one.registry:.2f} s", f"{one.envoys:.2f} s"]
        )
    print("", table(rows), sep="\n")
    return 1 if any(one.errors for one in seen) else 0


if __name__ == "__main__":
    sys.exit(main())
