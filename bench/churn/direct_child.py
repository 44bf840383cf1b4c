"""Runs in a process of its own, since gRPC reads GRPC_XDS_BOOTSTRAP once: requests over channels to `xds:///MODEL`.

Lines of JSON come in, each a visit: `{"visit": 7, "model": "m", "seconds": 0.5}` opens a channel, asks over it for so
long (null: until the input ends) and closes it. Lines go out: an outcome each, and `{"visit": 7}` when a visit is over.

A channel that is opened while no control plane can be reached knows of no instance, and says so to its requests until
one can, as an Envoy that is started then does not listen. These go out as `{"waiting": "m"}`, and the first real answer
is waited for. (Not with wait_for_ready: C-core 1.85 leaves such a request waiting when all is well again.)
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio

from bench.churn.probes import ask
from bench.churn.verdict import Outcome
from bench.messages import METHOD

PATIENCE = 20.0
"""Seconds after which a channel that has found no control plane is a failure."""


def _no_control_plane(outcome: Outcome) -> bool:
    return outcome.code is grpc.StatusCode.UNAVAILABLE and "xDS channel for server" in outcome.details


async def _visit(visit: int, model: str, seconds: float | None, rest: float, ended: asyncio.Event) -> None:
    began = time.monotonic()
    until = began + (float("inf") if seconds is None else seconds)
    async with grpc.aio.insecure_channel(f"xds:///{quote(model)}") as channel:
        call: Any = channel.unary_unary(METHOD)
        configured = False
        while not configured or (time.monotonic() < until and not ended.is_set()):
            outcome = await ask(call, model)
            if not configured and _no_control_plane(outcome) and time.monotonic() - began < PATIENCE:
                _say(waiting=model)
                await asyncio.sleep(0.05)
                continue
            configured = True
            figures = {"started": outcome.started, "ended": outcome.ended, "details": outcome.details}
            _say(model=model, code=outcome.code.name, **figures)
            await asyncio.sleep(rest)
    _say(visit=visit)


def _say(**document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def _main(rest: float) -> None:
    ended = asyncio.Event()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as visits:
        while line := await reader.readline():
            visits.create_task(_visit(**json.loads(line), rest=rest, ended=ended))
        ended.set()


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1])))
