"""Requests for many models, as an unmodified client sends them, and what came of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from bench.churn.verdict import Outcome
from bench.messages import METHOD, predict_request
from tests.support.waiting import eventually


@cache
def _request(model: str) -> bytes:
    return predict_request(model, 200)


class Probes:
    """`connections` to one address, each with `streams` requests in flight; `choose` names the model of the next one.

    `async with` starts them and ends them after the requests in flight; `outcomes` grows meanwhile.
    """

    def __init__(
        self,
        target: str,
        choose: Callable[[], str],
        *,
        connections: int = 4,
        streams: int = 1,
        timeout: float = 20.0,
        rest: float = 0.0,
    ) -> None:
        self._target, self.choose, self._timeout, self._rest = target, choose, timeout, rest
        self._connections, self._streams = connections, streams
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.outcomes: list[Outcome] = []

    async def __aenter__(self) -> Probes:
        self._tasks = [asyncio.create_task(self._connection(number)) for number in range(self._connections)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _connection(self, number: int) -> None:
        # A pool of its own, else gRPC would share one connection among all.
        async with grpc.aio.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary(METHOD)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._streams):
                    tasks.create_task(self._stream(call, number))

    async def _stream(self, call: Any, number: int) -> None:
        while not self._stopping:
            self.outcomes.append(await ask(call, self.choose(), number, self._timeout))
            if self._rest:
                await asyncio.sleep(self._rest)

    async def more(self, count: int) -> None:
        """Wait until `count` more requests have ended."""
        goal = len(self.outcomes) + count
        await eventually(lambda: len(self.outcomes) >= goal, f"{count} more requests", 60)


async def ask(call: Any, model: str, number: int = 0, timeout: float = 20.0) -> Outcome:
    """One request."""
    started = time.monotonic()
    try:
        answer = await call(_request(model), timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return Outcome(number, model, started, time.monotonic(), error.code(), error.details() or "")
    return Outcome(number, model, started, time.monotonic(), grpc.StatusCode.OK, "", answer)
