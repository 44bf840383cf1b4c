"""How long an instance whose models hang stays in service, with the default flags: a real etcd, control plane and
Envoy, and two model servers with their monitors.

    python -m bench.hanging [--models N]

All of the N models of instance a block at once in their Predict while GetModelStatus goes on to answer, as in a
deadlocked runtime, and are released later. Prints the seconds until no Envoy sends to a any more, for the first model
and for the last, and the seconds until all of them are back.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from registry.keys import ReadyKey
from registry.records import ReadyState
from tests.scenarios.test_failing import Switch
from tests.support import saved_models
from tests.support.stack import Stack
from tests.support.waiting import eventually


async def _measure(folder: Path, count: int) -> None:
    names = [f"m{number}" for number in range(count)]
    stack = Stack(folder)
    try:
        switches = {name: Switch(folder / f"switch-{name}") for name in "ab"}
        for name, switch in switches.items():
            for model in names:
                saved_models.switched(folder / name / model, switch.file)
            stack.start_instance(name, {model: folder / name / model for model in names})
        await stack.until_ready(*(ReadyKey(model, 1, name) for name in "ab" for model in names))
        for trial in range(1, 4):
            await asyncio.sleep(15 + 2.7 * trial)
            switches["a"].block()
            first, last = await _seconds_until(stack, count, ReadyState.FAILING)
            print(f"{count} models hang: the first is out after {first:.1f} s, the last after {last:.1f} s", flush=True)
            switches["a"].answer()
            first, last = await _seconds_until(stack, count, ReadyState.READY)
            print(f"released: the first is back after {first:.1f} s, the last after {last:.1f} s", flush=True)
    finally:
        stack.close()


async def _seconds_until(stack: Stack, count: int, state: ReadyState) -> tuple[float, float]:
    """Until the first and until the last key of a is so, and that is acknowledged by the Envoy."""
    started, first = time.monotonic(), None
    while True:
        picture = await stack.registry()
        held = sum(key.instance == "a" and record.state is state for key, record in picture.ready.items())
        if held and first is None:
            await _acknowledged(stack)
            first = time.monotonic() - started
        if held == count:
            await _acknowledged(stack)
            return first or 0.0, time.monotonic() - started
        await asyncio.sleep(0.05)


async def _acknowledged(stack: Stack) -> None:
    revision = max(await stack.revisions(*(await stack.registry()).ready))

    async def done() -> bool:
        return all(plane.converged_revision >= revision for plane in (await stack.registry()).planes.values())

    await eventually(done, f"revision {revision} to be acknowledged")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="how long a hanging instance stays in service")
    parser.add_argument("--models", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hanging-") as folder:
        asyncio.run(_measure(Path(folder), arguments.models))


if __name__ == "__main__":
    main()
