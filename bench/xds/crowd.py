"""Many simulated Envoys in a process of their own: `python -m bench.xds.crowd HOST:PORT --streams N`.

The first one gets everything; the others come back with all that it holds, as after a control plane's restart, so that
none has to be sent it. Prints a JSON line when all have subscribed, and one for each time that all have got one more
EDS response: when the first of them got it and when the last (seconds of time.monotonic, which is one clock for all
processes of a machine).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from bench.xds.client import Envoy, channel, connected, first_request, later_requests

_AT_MOST = 120.0


class Rounds:
    """Counts how many streams have got their Nth response."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._counts: dict[int, int] = {}
        self._began: dict[int, float] = {}

    def got(self, envoy: Envoy, before: int) -> None:
        """One stream has one more; `before`: how many it had when the rounds began."""
        number = envoy.assignments - before
        now = time.monotonic()
        self._began.setdefault(number, now)
        self._counts[number] = self._counts.get(number, 0) + 1
        if self._counts[number] == self._streams:
            _say({"round": number, "first": self._began[number], "last": now})


def _say(line: dict[str, float]) -> None:
    print(json.dumps(line), flush=True)


async def _run(address: str, streams: int, connections: int, models: int) -> None:
    async with connected(address, _AT_MOST) as learner, AsyncExitStack() as stack:
        await learner.until_everything(models, _AT_MOST)
        _say({"learned": len(learner.held)})
        rounds = Rounds(streams)
        channels = [await stack.enter_async_context(channel(address)) for _ in range(min(connections, streams))]
        later = later_requests(learner.held)
        envoys = [Envoy(f"envoy-{number}") for number in range(1, streams)]
        for envoy in (learner, *envoys):
            envoy.on_assignments = lambda envoy=envoy, before=envoy.assignments: rounds.got(envoy, before)
        held = learner.held
        async with asyncio.TaskGroup() as tasks:
            for number, envoy in enumerate(envoys):
                requests = (first_request(envoy.node, held), *later)
                tasks.create_task(envoy.run(channels[number % len(channels)], requests))
            # What is made so far stays; looking for garbage in it would hold up a round.
            gc.freeze()


def main(argv: Sequence[str] | None = None) -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(prog="python -m bench.xds.crowd", description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=20, help="channels that the streams share")
    parser.add_argument("--models", type=int, required=True, help="how many there are")
    args = parser.parse_args(argv)
    asyncio.run(_run(args.address, args.streams, args.connections, args.models))


if __name__ == "__main__":
    main()
