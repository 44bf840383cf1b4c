"""Runs in a process of its own, since gRPC reads GRPC_XDS_BOOTSTRAP once: requests over channels to `xds:///MODEL`.

Lines of JSON come in, each a visit: `{"visit": 7, "model": "m", "seconds": 0.5}` opens a channel, asks over it for so
long (null: until the input ends) and closes it. Lines go out: an outcome each, and `{"visit": 7}` when a visit is over.
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
from bench.messages import METHOD


async def _visit(visit: int, model: str, seconds: float | None, rest: float, ended: asyncio.Event) -> None:
    until = time.monotonic() + (float("inf") if seconds is None else seconds)
    async with grpc.aio.insecure_channel(f"xds:///{quote(model)}") as channel:
        call: Any = channel.unary_unary(METHOD)
        first = True
        while first or (time.monotonic() < until and not ended.is_set()):
            # A channel that has only just been made knows of no instance while no control plane can be reached, as an
            # Envoy that has only just been started does not listen: it is waited for, once.
            outcome = await ask(call, model, wait_for_ready=first)
            first = False
            _say(
                model=model,
                started=outcome.started,
                ended=outcome.ended,
                code=outcome.code.name,
                details=outcome.details,
            )
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
