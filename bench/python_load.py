"""A load generator on grpc.aio, for a machine that has neither ghz nor h2load: `python -m bench.python_load`.

It sends one request again and again and leaves its figures in a file: `seconds`, `latencies` (seconds, one a request),
`codes` (gRPC status -> requests) and `details` (of the last error).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

from bench.messages import METHOD


class _Load:
    """Tasks that share one count of requests still to be sent."""

    def __init__(self, message: bytes, metadata: dict[str, str], requests: int, timeout: float) -> None:
        self._message, self._metadata, self._left, self._timeout = message, tuple(metadata.items()), requests, timeout
        self.latencies: list[float] = []
        self.codes: Counter[str] = Counter()
        self.details = ""

    async def run(self, address: str, connections: int, streams: int) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # else all channels would share one connection
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
        ]
        async with asyncio.TaskGroup() as tasks:
            for _ in range(connections):
                tasks.create_task(self._connection(grpc.aio.insecure_channel(address, options), streams))

    async def _connection(self, channel: grpc.aio.Channel, streams: int) -> None:
        async with channel, asyncio.TaskGroup() as tasks:
            call: Any = channel.unary_unary(METHOD)  # no serialisers: bytes out, bytes in
            for _ in range(streams):
                tasks.create_task(self._stream(call))

    async def _stream(self, call: Any) -> None:
        while self._left > 0:
            self._left -= 1
            started = time.perf_counter()
            try:
                await call(self._message, metadata=self._metadata, timeout=self._timeout, wait_for_ready=True)
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code, self.details = error.code(), error.details() or ""
            self.latencies.append(time.perf_counter() - started)
            self.codes[code.name] += 1


def main() -> None:
    """Run one job."""
    parser = argparse.ArgumentParser(prog="python -m bench.python_load", description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--message", type=Path, required=True, help="file with the serialised PredictRequest")
    parser.add_argument("--output", type=Path, required=True, help="file for the figures, JSON")
    parser.add_argument("--metadata", type=json.loads, default={}, help="request headers as a JSON object")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=1, help="requests in flight per connection")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds per request")
    args = parser.parse_args()
    load = _Load(args.message.read_bytes(), args.metadata, args.requests, args.timeout)
    started = time.perf_counter()
    asyncio.run(load.run(args.address, args.connections, args.streams))
    seconds = time.perf_counter() - started
    report = {"seconds": seconds, "codes": load.codes, "details": load.details, "latencies": load.latencies}
    args.output.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
