"""What a gRPC client without a proxy waits for: `python -m bench.proxyless`. Real etcd, control plane, Envoy, grpcio.

How long after a registry write a new model answers, and how much longer a drain takes because C-core is silent when
idle. Not among the budgets of design.md, which are Envoy's.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from bench.figures import percentile
from registry.records import ReadyState
from tests.support import requests
from tests.support.registered import Registered, registered_in
from tests.support.stack import Stack
from tests.support.waiting import eventually

BODY = requests.request("m", payload=b"x")


async def first_answers(fleet: Registered, models: int) -> list[float]:
    """Milliseconds from the write of each of so many new models to the first answer of a client that waits for it."""
    seen = []
    async with fleet.client("xds:///m") as client:
        for number in range(models + 3):
            await client.do("open", target=f"xds:///new-{number}")
            await client.do("requests", body=BODY, count=1, timeout=20)
            answered = asyncio.create_task(client.do("until_ok", body=BODY))
            await asyncio.sleep(0.05)
            began = time.monotonic()
            await fleet.register("a", 1, model=f"new-{number}")
            if number >= 3:  # the first ones only warm up
                seen.append((await answered - began) * 1e3)
            else:
                await answered
    return sorted(seen)


async def drain(fleet: Registered) -> float:
    """Seconds until the control plane says that an idle instance that drains has nothing in flight."""
    await fleet.converged(await fleet.register("b", 1))
    await asyncio.sleep(4)  # a stream that has just begun is left alone for some seconds
    began = time.monotonic()
    await fleet.register("b", 1, state=ReadyState.DRAINING)

    async def done() -> bool:
        return all(plane.draining.get("b") == 0 for plane in (await fleet.stack.registry()).planes.values())

    await eventually(done, "the drain")
    return time.monotonic() - began


async def measure(folder: Path, models: int) -> None:
    stack = await asyncio.to_thread(Stack, folder)
    try:
        async with registered_in(stack, "a", "b") as fleet, AsyncExitStack() as clients:
            await fleet.converged(await fleet.register("a", 1))
            ordered = await first_answers(fleet, models)
            print(
                f"registry write to the first answer, {models} models: p50 {percentile(ordered, 50):.1f} ms, "
                f"p99 {percentile(ordered, 99):.1f} ms, {ordered[0]:.1f} – {ordered[-1]:.1f} ms"
            )
            await asyncio.sleep(4)
            print(f"drain of an idle instance, Envoy only: {await drain(fleet):.2f} s")
            client = await clients.enter_async_context(fleet.client("xds:///m@1"))
            await client.do("requests", body=BODY, count=5, timeout=20)
            print(f"… and a gRPC client that is idle: {await drain(fleet):.2f} s")
            await client.do("start", body=BODY, threads=1)
            print(f"… and busy: {await drain(fleet):.2f} s")
            await client.do("stop")
    finally:
        await asyncio.to_thread(stack.close)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.proxyless", description=__doc__)
    parser.add_argument("--models", type=int, default=50, help="new models to wait for (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelplane-bench-") as folder:
        asyncio.run(measure(Path(folder), arguments.models))


if __name__ == "__main__":
    main()
