"""Requests shared out among the versions of a model, changed live: `python -m bench.split` (from a checkout).

Instances hold both versions, clients are the official ones and name no version, and each version says another number to
the same question, so the answers prove which one it was. Every phase's weights are changed under load; a phase is
counted once every Envoy has acknowledged them.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import envoy_version, this_machine
from bench.report import table
from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import Keyspace, ReadyKey, TrafficKey
from registry.traffic import TrafficRecord, encode_traffic
from tests.support import saved_models
from tests.support.load import Load, Outcome
from tests.support.processes import binary, show_logs
from tests.support.stack import Stack
from tests.support.waiting import eventually

PHASES = ({1: 90, 2: 10}, {1: 80, 2: 20}, {1: 50, 2: 50}, {1: 0, 2: 1}, {1: 90, 2: 10})
SETTLED = 0.3
"""Seconds after the acknowledgement until Envoy's workers have surely taken a change over."""
BOUND = 5
"""Standard deviations: by chance once in two million phases."""


@dataclass(frozen=True)
class Phase:
    """What came of the requests that began under these weights."""

    weights: Mapping[int, int]
    versions: Counter[int]
    took: float
    """Seconds from writing the weights to their acknowledgement by Envoy."""

    @property
    def deviations(self) -> float:
        """Of version 2, how many standard deviations off its share."""
        total, share = self.versions.total(), self.weights[2] / sum(self.weights.values())
        spread = math.sqrt(total * share * (1 - share))
        off = abs(self.versions[2] - total * share)
        return off / spread if spread else math.inf if off else 0.0


@dataclass(frozen=True)
class Split:
    """One run."""

    phases: list[Phase]
    requests: int
    failed: Counter[str]
    wrong: int
    """Answers whose number is not the one of the version that they name."""
    seconds: float

    @property
    def good(self) -> bool:
        """Whether all is as it should be."""
        return not self.failed and not self.wrong and all(phase.deviations < BOUND for phase in self.phases)


async def split(stack: Stack, *, instances: int, clients: int, requests: int) -> Split:
    """`requests` in the first phase, a fourth of it in each other one."""
    base = stack.folder / "models" / "m"
    for version in (1, 2):
        saved_models.half_plus_two(base, version, b=float(version))
    names = [f"i{number}" for number in range(instances)]
    for name in names:
        stack.start_instance(name, {"m": base}, versions=2)
    await stack.until_ready(*(ReadyKey("m", version, name) for version in (1, 2) for name in names))
    load = Load(stack.grpc, saved_models.predict_request("m", [2.0]), clients, rest=0.0)
    phases, failed, began = [], Counter[str](), time.monotonic()
    wrong = total = 0
    async with EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as etcd, load:
        for number, weights in enumerate(PHASES):
            took = await _share(stack, etcd, weights)
            settled = time.monotonic() + SETTLED
            wanted = requests if number == 0 else requests // 4
            await eventually(lambda: len(_since(load, settled)) >= wanted, f"{wanted} requests", 600)  # noqa: B023
            outcomes, load.outcomes = load.outcomes, []
            total += len(outcomes)
            failed.update(f"{one.code.name} {one.details}" for one in outcomes if one.code.name != "OK")
            wrong += sum(one.values != (1.0 + one.version,) for one in outcomes if one.code.name == "OK")
            phases.append(Phase(weights, Counter(one.version for one in outcomes if one.started >= settled), took))
    return Split(phases, total, failed, wrong, time.monotonic() - began)


def _since(load: Load, moment: float) -> list[Outcome]:
    return [one for one in load.outcomes if one.started >= moment]


async def _share(stack: Stack, etcd: EtcdClient, weights: Mapping[int, int]) -> float:
    began = time.monotonic()
    revision = await etcd.put(Keyspace().make(TrafficKey("m")), encode_traffic(TrafficRecord(weights)))

    async def acknowledged() -> bool:
        planes = (await stack.registry()).planes.values()
        return all(plane.converged_revision >= revision for plane in planes)

    await eventually(acknowledged, "Envoy to acknowledge the weights", 60)
    return time.monotonic() - began


def report(result: Split) -> str:
    """A row per phase."""
    rows = [["weights", "requests", "version 1", "version 2", "deviations", "acknowledged after"]]
    for one in result.phases:
        weights = "/".join(map(str, one.weights.values()))
        counts = [f"{one.versions.total():,}", f"{one.versions[1]:,}", f"{one.versions[2]:,}"]
        rows.append([weights, *counts, f"{one.deviations:.2f}", f"{one.took * 1000:.0f} ms"])
    rate = result.requests / result.seconds
    lines = [
        table(rows),
        "",
        f"  {result.requests:,} requests, {rate:,.0f}/s, changes of weights included: {result.failed.total()} failed, "
        f"{result.wrong} with the wrong number for their version",
    ]
    return "\n".join([*lines, *(f"  {count} times {what}" for what, count in result.failed.most_common(5))])


def main(argv: Sequence[str] | None = None) -> int:
    """0: every request was answered, by the version that it names, in shares within the bounds."""
    flags = argparse.ArgumentParser(prog="python -m bench.split", description=__doc__)
    flags.add_argument("--instances", type=int, default=2, metavar="N", help="default: 2")
    flags.add_argument(
        "--clients", type=int, default=4, metavar="N", help="each with one request at a time (default: 4)"
    )
    flags.add_argument("--requests", type=int, default=10_000, metavar="N", help="of the first phase (default: 10000)")
    flags.add_argument("--keep", type=Path, metavar="FOLDER", help="put the logs here and leave them")
    args = flags.parse_args(argv)
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, load average {machine.load_average}")
    print(f"Envoy {envoy_version(binary('envoy'))}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="modelplane-split-") as scratch:
        folder = args.keep or Path(scratch)
        stack = Stack(folder, ("--no-leader",))  # the weights are what is written here
        try:
            result = asyncio.run(split(stack, instances=args.instances, clients=args.clients, requests=args.requests))
        except BaseException:
            show_logs(folder)
            raise
        finally:
            stack.close()
    print(report(result))
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
