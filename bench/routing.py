"""What routing by the model in the request's body costs: `python -m bench.routing` (from a checkout).

The same Predict goes, in turns, straight to one instance, through Envoy with routing by header, and through the same
Envoy with modelplane's model router; throughput and latency are the client's, CPU time per request is Envoy's.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from bench import data_plane, generators, report, upstream
from bench.errors import BenchError
from bench.machine import envoy_version, this_machine
from bench.measuring import Load, Target, measure_all
from bench.messages import parse_size, predict_request, size_text
from tests.support.processes import binary

DIRECT, HEADER, ROUTED, PINNED, NAMED = "direct", "header", "routed", "pinned", "named"
TITLES = {
    DIRECT: "straight to the instance",
    HEADER: "header routing",
    ROUTED: "model router",
    PINNED: "model router, pinned",
    NAMED: "model router, x-model-name",
}
SMALL, LARGE = 200, 600 * 1024
BUDGETS = (
    # The design's first budget. With Lua a pin has none: it has to copy the body.
    report.Budget("model router (Lua)", ROUTED, {SMALL: 1.25, LARGE: 1.07}),
    report.Budget("model router (Lua), pinned", PINNED, {}),
)

_DESCRIPTION = """\
Measure what it costs to route by the model named in the request's body.

Starts an Envoy with modelplane's own bootstrap and resources, and one instance behind it, then sends the same Predict
in turns (A B C A B C …, so that all of them see the same machine) to:

  direct   the instance itself
  header   the same Envoy, a listener that routes by a header: the baseline
  routed   the model router, which reads the model's name from the body
  pinned   the model router for a model whose version it must write into the body
  named    the model router for a client that sends the header x-model-name (nothing to read in the body)
"""
_EPILOG = """\
examples:
  python -m bench.routing                                    everything, about four minutes
  python -m bench.routing --rounds 2 --seconds 0.5           a first look
  python -m bench.routing --sizes 8MiB --targets header,routed,pinned
  python -m bench.routing --upstream model-server            a real server's latency behind it
  python -m bench.routing --target 127.0.0.1:8500            a stack that runs already (modelplane up)
  python -m bench.routing --target 127.0.0.1:8500 --target 127.0.0.1:9000 --model mnist --input image

Read the ratios: they are taken round by round. Rates and latencies depend on the machine, which the load generator and
the instance share with Envoy. A single request that isn't OK ends the benchmark with exit code 1.
"""


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(parse_size(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _targets(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in TITLES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(TITLES)}")
    return names


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.routing",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--sizes", type=_sizes, default=(SMALL, LARGE), help="request bodies (default: 200,600KiB)")
    what.add_argument("--targets", type=_targets, default=tuple(TITLES), help="which of the above (default: all)")
    what.add_argument(
        "--upstream",
        choices=upstream.KINDS,
        default="envoy",
        help="the instance: an Envoy that answers by itself and costs little (default), or a real model server",
    )
    what.add_argument("--envoy-threads", type=_positive(int), default=1, help="Envoy's worker threads (default: 1)")
    running = parser.add_argument_group("a stack that runs already (the client's figures only)")
    running.add_argument(
        "--target", type=_address, action="append", metavar="HOST:PORT", help="measure this; repeat it to compare"
    )
    running.add_argument("--model", default="half_plus_two", help="model to ask for (default: half_plus_two)")
    running.add_argument("--input", default="x", help="its input, a float32 vector (default: x)")
    how = parser.add_argument_group("how")
    how.add_argument("--rounds", type=_positive(int), default=15, help="turns of every target (default: 15)")
    length = how.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=_positive(float), default=1.0, help="length of one measurement, about (default: 1)"
    )
    length.add_argument("--requests", type=_positive(int), help="or its number of requests, exactly")
    how.add_argument("--connections", type=_positive(int), default=8, help="client connections (default: 8)")
    how.add_argument("--streams", type=_positive(int), default=1, help="requests in flight on each (default: 1)")
    how.add_argument(
        "--generator",
        choices=("auto", *generators.NAMES),
        default="auto",
        help="load generator (default: ghz, h2load or our own in Python, the first that is on PATH)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round to FILE too")
    return parser


def _own_targets(stack: ExitStack, args: argparse.Namespace, folder: Path) -> tuple[list[Target], dict[str, str]]:
    """Start the instance and Envoy."""
    try:
        envoy = binary("envoy")
    except FileNotFoundError as error:
        raise BenchError(f"{error}; or measure a stack that runs already with --target HOST:PORT") from None
    models = (data_plane.ROUTED, data_plane.PINNED)
    _progress("starting the instance and Envoy" + ("; training its model" if args.upstream == "model-server" else ""))
    instance = stack.enter_context(upstream.start(args.upstream, folder, models, args.connections * args.streams))
    plane = stack.enter_context(data_plane.start(folder, instance.port, instance.version, args.envoy_threads))
    direct, product = f"127.0.0.1:{instance.port}", f"127.0.0.1:{plane.grpc_port}"
    routed, pinned = data_plane.ROUTED, f"{data_plane.PINNED}@{instance.version}"
    every = [
        Target(DIRECT, direct, data_plane.ROUTED),
        Target(HEADER, f"127.0.0.1:{plane.header_port}", routed, {data_plane.HEADER: data_plane.ROUTED}, plane, routed),
        Target(ROUTED, product, data_plane.ROUTED, {}, plane, routed),
        Target(PINNED, product, data_plane.PINNED, {}, plane, pinned),
        Target(NAMED, product, data_plane.ROUTED, {"x-model-name": data_plane.ROUTED}, plane, routed),
    ]
    tools = {"envoy": f"{envoy_version(envoy)}, {args.envoy_threads} worker", "instance": instance.description}
    return [target for target in every if target.key in args.targets], tools


def _bench(args: argparse.Namespace) -> None:
    machine = this_machine()
    tools: dict[str, str] = {}
    generator = generators.choose(args.generator)
    load = Load(generator, args.connections, args.streams, args.rounds, args.seconds, args.requests)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelplane-bench-")))
        if args.target:
            addresses = list(dict.fromkeys(args.target))
            targets = [Target(address, address, args.model) for address in addresses]
            titles, baseline, name = {address: address for address in addresses}, addresses[0], args.input
        else:
            targets, tools = _own_targets(stack, args, folder)
            titles, baseline, name = TITLES, HEADER, "x"
        for target in targets:
            for size in args.sizes:
                _checked_request(target.model, size, name)
        results = report.Results(titles)
        measure_all(load, targets, args.sizes, name, folder, results, _progress)
        _ignore_signals()
    tools["load"] = f"{generator.version()}, {args.connections} connections with {args.streams} in flight on each"
    if generator.note:
        tools["note"] = generator.note
    _print(results, baseline, machine, tools, own=not args.target)
    if args.json:
        extra: dict[str, Any] = {"machine": asdict(machine), "tools": tools}
        if not args.target:
            extra["budgets"] = report.budget_rows(results, BUDGETS, HEADER)
        args.json.write_text(json.dumps(report.document(results, baseline, extra), indent=1) + "\n")


def _checked_request(model: str, size: int, name: str) -> None:
    try:
        predict_request(model, size, name)
    except ValueError as error:
        raise BenchError(str(error)) from None


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(results: report.Results, baseline: str, machine: Any, tools: dict[str, str], *, own: bool) -> None:
    print(report.machine_lines(machine, tools))
    for size in results.measured:
        print(f"\n{size_text(size)} request bodies; medians of the rounds (quartiles), latency in ms\n")
        print(report.latency_table(results, size))
        print()
        print(report.cost_table(results, size, baseline, DIRECT) if own else report.rate_table(results, size, baseline))
    if own:
        print("\nBudget: Envoy's CPU per request against header routing on the same Envoy, and what was seen")
        print("(median of the rounds, and the quartiles)\n")
        print(report.budget_table(results, BUDGETS, HEADER))


def _ignore_signals() -> None:
    # From here on everything is being stopped; an impatient second Ctrl-C would leave processes behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0, 1 failure, 2 wrong usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    if args.json and not args.json.parent.is_dir():
        _parser().error(f"--json: there is no folder {args.json.parent}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        _bench(args)
    except (BenchError, AssertionError) as error:  # tests/support says with AssertionError what did not start
        _progress(f"bench.routing: error: {error}")
        return 1
    except KeyboardInterrupt:
        _progress("bench.routing: interrupted; everything that was started is stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
