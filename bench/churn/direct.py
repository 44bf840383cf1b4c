"""Requests of a gRPC client without a proxy: what `probes` asks of an Envoy, over channels to `xds:///MODEL`.

A channel is for one model, so there are two kinds. Some are kept: opened before their model exists, and asked from
there to the end. The others visit: opened for the model of the moment, asked for a while and closed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import grpc

from bench.churn.verdict import Outcome
from bench.errors import BenchError
from control_plane.grpc_bootstrap import render_grpc_bootstrap
from tests.support.waiting import eventually


class DirectProbes:
    """One process of grpcio's. `choose` names the model of the next visit, `kept` are asked all the time.

    `async with` starts it and ends it after the requests in flight; `outcomes` grows meanwhile. The client's `number`
    stands for the connection in them: what one of its channels has seen, the others must see. `waited` counts apart
    what was said on channels that were opened while no control plane could be reached, before their first answer.
    """

    def __init__(
        self,
        folder: Path,
        control_planes: Sequence[str],
        choose: Callable[[], str],
        kept: Sequence[str],
        *,
        number: int = 0,
        visits: int = 4,
        stay: float = 0.5,
        rest: float = 0.01,
    ) -> None:
        self._choose, self._kept, self._number = choose, kept, number
        self._visits, self._stay, self._rest = visits, stay, rest
        self._log = folder / f"grpc-{number}.log"
        self._bootstrap = folder / f"grpc-{number}.json"
        first = number % len(control_planes)
        order = [*control_planes[first:], *control_planes[:first]]
        self._bootstrap.write_text(render_grpc_bootstrap(order, node_id=f"grpc-{number}"))
        self._numbers = itertools.count()
        self._over: dict[int, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.outcomes: list[Outcome] = []
        self.waited = 0

    async def __aenter__(self) -> DirectProbes:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.churn.direct_child", str(self._rest)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={"GRPC_VERBOSITY": "ERROR", **os.environ, "GRPC_XDS_BOOTSTRAP": str(self._bootstrap)},
            )
        self._reading = asyncio.create_task(self._read())
        for model in self._kept:
            self._start(model, None)
        self._tasks = [asyncio.create_task(self._visit()) for _ in range(self._visits)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            # A request in flight may take its whole timeout.
            async with asyncio.timeout(30):
                await self._reading
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise BenchError(f"the gRPC client {self._number} did not end:\n{self._said()}") from error
        if error is None and self._process.returncode:
            raise BenchError(f"the gRPC client {self._number} has ended:\n{self._said()}")

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def _start(self, model: str, seconds: float | None) -> asyncio.Event:
        assert self._process.stdin is not None
        visit = next(self._numbers)
        self._over[visit] = over = asyncio.Event()
        line = json.dumps({"visit": visit, "model": model, "seconds": seconds})
        self._process.stdin.write(line.encode() + b"\n")
        return over

    async def _visit(self) -> None:
        while True:
            await self._start(self._choose(), self._stay).wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            document = json.loads(line)
            if "visit" in document:
                self._over.pop(document["visit"]).set()
                continue
            if "waiting" in document:
                self.waited += 1
                continue
            document["code"] = grpc.StatusCode[document["code"]]
            self.outcomes.append(Outcome(self._number, **document))

    async def more(self, count: int) -> None:
        """Wait until `count` more requests have ended."""
        goal = len(self.outcomes) + count
        await eventually(lambda: len(self.outcomes) >= goal, f"{count} more requests without a proxy", 60)
