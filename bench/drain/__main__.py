"""`python -m bench.drain`: the figures of docs/benchmarks.md, section Draining."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from bench.drain.instances import DRAINED, WAYS, Drained
from bench.errors import BenchError
from bench.figures import percentile
from bench.machine import envoy_version, this_machine
from bench.messages import METHOD, predict_request
from bench.report import table
from control_plane.envoy_files import render_bootstrap
from tests.support.envoy import Envoy
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess, binary, free_port
from tests.support.waiting import eventually

_TOLD = 100
"""Drains between two lines that tell how far it is."""
_MODELPLANE = (sys.executable, "-m", "modelplane")


@dataclass
class Load:
    """`clients` requests at a time, of mixed length, at most `longest` seconds; `idle`: seldom, and short. `codes`
    counts what came of them."""

    target: str
    clients: int
    seed: int
    idle: bool = False
    longest: float = 2.0
    codes: Counter[str] = field(default_factory=Counter)

    async def __aenter__(self) -> Load:
        self._stopping = False
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self.clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        choose = random.Random(self.seed + number)
        body = predict_request(DRAINED, 200)
        async with grpc.aio.insecure_channel(self.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary(METHOD)
            while not self._stopping:
                delay = 2 if self.idle else self._delay(choose)
                try:
                    # Until there is an instance, requests wait: the first ones are no drain's fault.
                    await call(body, timeout=30, metadata=(("delay-ms", str(delay)),), wait_for_ready=True)
                    self.codes["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    if self.codes["OK"]:
                        self.codes[f"{error.code().name} {error.details()}"] += 1
                await asyncio.sleep(0.05 if self.idle else 0.01)

    def _delay(self, choose: random.Random) -> int:
        kind = choose.random()
        if kind < 0.8:
            return choose.randint(1, 10)
        longest = int(1000 * self.longest)
        return choose.randint(50, 200) if kind < 0.97 else choose.randint(longest * 2 // 5, longest)


@dataclass
class Fleet:
    """etcd, a control plane and Envoys, started by `async with`."""

    folder: Path
    envoys: int = 1

    async def __aenter__(self) -> Fleet:
        async with AsyncExitStack() as stack:
            self.etcd = await asyncio.to_thread(Etcd, self.folder)
            stack.push_async_callback(asyncio.to_thread, self.etcd.close)
            self.port = free_port()
            xds, http = free_port(), free_port()
            flags = (
                *("control-plane", "--etcd", self.etcd.endpoint, "--replica", "plane-0"),
                *("--xds-listen", f"127.0.0.1:{xds}", "--http-listen", f"127.0.0.1:{http}"),
                *("--listen-address", "127.0.0.1", "--grpc-port", str(self.port), "--rest-port", str(free_port())),
                *("--empty-registry-grace", "0"),
            )
            plane = ChildProcess([*_MODELPLANE, *flags], self.folder / "control-plane.log")
            stack.push_async_callback(asyncio.to_thread, plane.stop)
            # An Envoy that finds nobody to report its load to tries again only after five seconds.
            await eventually(lambda: "xDS on" in plane.output, "the control plane to listen", 60)
            self._envoys = []
            for number in range(self.envoys):
                admin = free_port()
                text = render_bootstrap([f"127.0.0.1:{xds}"], admin=f"127.0.0.1:{admin}", node_id=f"envoy-{number}")
                envoy = await asyncio.to_thread(Envoy, self.folder, text, admin, name=f"envoy-{number}", workers=2)
                stack.push_async_callback(asyncio.to_thread, envoy.close)
                await envoy.ready(60)
                self._envoys.append(envoy)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def retries(self) -> int:
        """How many requests any Envoy has sent a second time."""
        counts = [envoy.stats(f"cluster.{DRAINED}.upstream_rq_retry") for envoy in self._envoys]
        return sum(count for one in counts for name, count in one.items() if name.endswith("upstream_rq_retry"))


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="python -m bench.drain", description=__doc__)
    flags.add_argument("--way", choices=WAYS, default="stop", help="as by SIGTERM, or as by `modelplane drain --model`")
    flags.add_argument("--drains", type=int, default=1000, metavar="N")
    flags.add_argument("--instances", type=int, default=6, metavar="N")
    flags.add_argument("--together", type=int, default=2, metavar="N", help="drains at one time, at most")
    flags.add_argument("--clients", type=int, default=12, metavar="N", help="requests at one time")
    flags.add_argument("--envoys", type=int, default=1, metavar="N")
    flags.add_argument("--idle", action="store_true", help="seldom and short requests: most instances are idle")
    flags.add_argument("--longest", type=float, default=2.0, metavar="S", help="of a request; a run's time goes by it")
    flags.add_argument("--seed", type=int, default=1, metavar="N")
    return flags


@dataclass
class Result:
    """One run."""

    rows: list[Drained]
    codes: Counter[str]
    late: list[float]
    retries: int
    seconds: float

    @property
    def faults(self) -> int:
        """Failed requests, those sent twice, and those that a drain cut off."""
        failed = sum(count for code, count in self.codes.items() if code != "OK")
        return failed + self.retries + len(self.late) + sum(row.cut for row in self.rows)


async def measure(folder: Path, args: argparse.Namespace) -> Result:
    """One run. Raises BenchError if it does not come to its end."""
    async with Fleet(folder, args.envoys) as fleet:
        flags = {name: getattr(args, name) for name in ("way", "drains", "instances", "together", "seed")}
        command = [sys.executable, "-m", "bench.drain.instances", "--etcd", fleet.etcd.endpoint]
        command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        log = folder / "instances.log"
        child = ChildProcess(command, log)
        started = time.monotonic()
        try:
            clients = 3 if args.idle else args.clients
            async with Load(f"127.0.0.1:{fleet.port}", clients, args.seed, args.idle, args.longest) as load:
                told = 0
                while (drained := child.output.count('{"instance"')) < args.drains:
                    if drained >= told + _TOLD:
                        told = drained
                        print(f"  {drained} drains in {time.monotonic() - started:.0f} s", file=sys.stderr)
                    if not child.alive():
                        raise BenchError(f"the instances have ended:\n{child.output[-3000:]}")
                    if time.monotonic() - started > 60 + 3 * args.drains:
                        raise BenchError(f"not done after {time.monotonic() - started:.0f} s; see {log}")
                    await asyncio.sleep(0.25)
            said = [json.loads(line) for line in child.output.splitlines() if line.startswith("{")]
            rows = [Drained(**one) for one in said if "late" not in one]
            late = [one["late"] for one in said if "late" in one]
            seconds = time.monotonic() - started
            return Result(rows, load.codes, late, await asyncio.to_thread(fleet.retries), seconds)
        finally:
            await asyncio.to_thread(child.stop)


def report(result: Result) -> str:
    """The figures as text."""
    lines = [["", "drains", "p50", "p90", "p99", "longest"]]

    def add(title: str, values: list[float]) -> None:
        if values:
            ordered = sorted(values)
            figures = [percentile(ordered, percent) for percent in (50, 90, 99, 100)]
            lines.append([title, f"{len(ordered):,}", *(f"{figure * 1000:.0f} ms" for figure in figures)])

    add("beyond the last request", [row.beyond for row in result.rows])
    add("whole, nothing in flight", [row.seconds for row in result.rows if not row.in_flight])
    add("whole, with requests in flight", [row.seconds for row in result.rows if row.in_flight])
    answers = ", ".join(f"{code} {count:,}" for code, count in sorted(result.codes.items()))
    cut = sum(row.cut for row in result.rows)
    outcome = f"requests: {answers}; sent twice: {result.retries}; cut off: {cut}; {result.seconds:.0f} s"
    if result.late:
        outcome += f"; too late: {', '.join(f'{late * 1000:.0f} ms' for late in result.late)}"
    return f"{table(lines)}\n\n  {outcome}"


def main(argv: Sequence[str] | None = None) -> int:
    """0: no request was touched by any drain."""
    args = parser().parse_args(argv)
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, load {machine.load_average}")
    print(f"Envoy {envoy_version(binary('envoy'))}\n")
    with tempfile.TemporaryDirectory(prefix="modelplane-drain-") as folder:
        try:
            result = asyncio.run(measure(Path(folder), args))
        except (BenchError, AssertionError) as error:
            print(f"bench.drain: {error}", file=sys.stderr)
            return 1
    print(report(result))
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
