"""What the control plane costs: `python -m bench.xds` (from a checkout).

Everything is real, in processes of their own: etcd, the control plane, Envoy where requests are made, and as many
simulated Envoys as are asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.errors import BenchError
from bench.machine import envoy_version, this_machine
from bench.report import machine_lines
from bench.xds import cold_start, fan_out, first_request, one_change
from bench.xds.figures import Figure, figures_table, rows
from tests.support.processes import binary

PARTS = ("cold-start", "change", "fan-out", "first-request")

_DESCRIPTION = """\
Measure what the control plane costs and compare it with the budgets of the design:

  cold-start     from exec to an Envoy's first answer, and memory
  change         CPU and bytes for one endpoint's change, in fleets of different size
  fan-out        one change to many streams of simulated Envoys; memory per stream
  first-request  from the registry write of a new model to the first request that Envoy routes to it
"""
_EPILOG = """\
examples:
  python -m bench.xds                                        everything, some ten minutes
  python -m bench.xds --rounds 2 --only cold-start
  python -m bench.xds --only change --sizes 10,100000
  python -m bench.xds --only fan-out --crowds 10:5000        5,000 streams with 10 models each

Times depend on the machine, and a control plane shares it here with etcd, Envoy and a thousand clients. CPU time and
ratios say more; the load average before the run is printed.
"""


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 10,1000") from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: not above 0")
    return numbers


def _number(text: str) -> int:
    numbers = _numbers(text)
    if len(numbers) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one number")
    return numbers[0]


def _crowds(text: str) -> tuple[tuple[int, int], ...]:
    crowds = []
    for part in text.split(","):
        models, _, streams = part.partition(":")
        if not (models.isdecimal() and streams.isdecimal() and int(models) and int(streams) > 1):
            raise argparse.ArgumentTypeError(f"{part!r} is not MODELS:STREAMS, with two streams at least")
        crowds.append((int(models), int(streams)))
    return tuple(crowds)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(PARTS)}")
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.xds",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", type=_parts, default=PARTS, metavar="PART,…", help="which of the above (default: all)"
    )
    parser.add_argument("--rounds", type=_number, default=5, help="of each part but the last (default: 5)")
    parser.add_argument("--models", type=_number, default=10_000, help="in the cold start (default: 10000)")
    parser.add_argument(
        "--sizes", type=_numbers, default=(10, 1000, 10_000), help="fleets that a change is compared in, in models"
    )
    parser.add_argument("--changes", type=_number, default=100, help="in each round (default: 100)")
    parser.add_argument(
        "--crowds",
        type=_crowds,
        default=((10, 1000), (1000, 200), (10_000, 20)),
        metavar="MODELS:STREAMS,…",
        help="for the fan-out (default: 10:1000,1000:200,10000:20)",
    )
    parser.add_argument("--fleet", type=_number, default=1000, help="models that a new one is added to (default: 1000)")
    parser.add_argument("--requests", type=_number, default=300, help="models that are added (default: 300)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures to FILE too")
    return parser


async def _measure(args: argparse.Namespace, folder: Path) -> list[Figure]:
    figures: list[Figure] = []
    for part in args.only:
        match part:
            case "cold-start":
                figures += await cold_start.measure(_sub(folder, part), args.models, args.rounds, _progress)
            case "change":
                sub = _sub(folder, part)
                figures += await one_change.measure(sub, args.sizes, args.rounds, args.changes, _progress)
            case "fan-out":
                for models, streams in args.crowds:
                    sub = _sub(folder, f"{part}-{models}-{streams}")
                    figures += await fan_out.measure(sub, models, streams, args.rounds, _progress)
            case "first-request":
                figures += await first_request.measure(_sub(folder, part), args.fleet, args.requests, _progress)
    return figures


def _sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _terminated(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0, 1 failure, 2 wrong usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    if args.json and not args.json.parent.is_dir():
        _parser().error(f"--json: there is no folder {args.json.parent}")
    machine = this_machine()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        tools = {"envoy": envoy_version(binary("envoy"))}
        with tempfile.TemporaryDirectory(prefix="modelplane-bench-") as folder:
            figures = asyncio.run(_measure(args, Path(folder)))
    except (BenchError, AssertionError, FileNotFoundError) as error:  # tests/support says what did not start
        _progress(f"bench.xds: error: {error}")
        return 1
    except KeyboardInterrupt:
        _progress("bench.xds: interrupted; everything that was started is stopped")
        return 130
    print(machine_lines(machine, tools))
    print(f"\n{figures_table(figures)}")
    if args.json:
        args.json.write_text(json.dumps({"machine": asdict(machine), "figures": rows(figures)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
