"""Steady Predict load from unmodified clients: the official stubs, one connection per client, every outcome kept."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc

from tests.support.saved_models import prediction_service_pb2_grpc
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Outcome:
    """One request: when it started (monotonic seconds), what came of it, and which version answered."""

    client: int
    started: float
    seconds: float
    code: grpc.StatusCode
    details: str = ""
    version: int = 0
    values: tuple[float, ...] = ()


def floats(tensor: Any) -> tuple[float, ...]:
    """A float32 TensorProto's values, in either of the two ways in which they may travel."""
    if tensor.tensor_content:
        return struct.unpack(f"<{len(tensor.tensor_content) // 4}f", tensor.tensor_content)
    return tuple(tensor.float_val)


@dataclass
class Load:
    """`clients` connections, each sending a request, waiting for its answer, resting `rest` seconds, and again.

    `async with` starts it and ends it after the requests in flight; `outcomes` grows meanwhile.
    """

    target: str
    request: Any
    clients: int = 4
    rest: float = 0.015
    timeout: float = 20.0
    outcomes: list[Outcome] = field(default_factory=list)

    async def __aenter__(self) -> Load:
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self.clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        # A pool of its own, else gRPC would share one connection among all clients.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self.target, options=options) as channel:
            stub = self._stub(channel)
            while not self._stop.is_set():
                self.outcomes.append(await self._once(stub, number))
                if self.rest:
                    await asyncio.sleep(self.rest)

    def _stub(self, channel: Any) -> Any:
        return prediction_service_pb2_grpc.PredictionServiceStub(channel)

    async def _once(self, stub: Any, number: int) -> Outcome:
        started = time.monotonic()
        try:
            answer = await stub.Predict(self.request, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            return Outcome(number, started, time.monotonic() - started, error.code(), error.details() or "")
        values = floats(answer.outputs["y"])
        version = answer.model_spec.version.value
        return Outcome(number, started, time.monotonic() - started, grpc.StatusCode.OK, "", version, values)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.code is not grpc.StatusCode.OK]

    def assert_all_ok(self, at_least: int = 1) -> None:
        counts = Counter((outcome.code.name, outcome.details) for outcome in self.failures)
        assert not counts, f"{counts.most_common(5)} of {len(self.outcomes)}"
        assert len(self.outcomes) >= at_least, f"only {len(self.outcomes)} requests were made"

    def assert_versions_never_go_back(self) -> None:
        """Per client, in the order of its answers: once a newer version answered, an older one never does again."""
        newest: Counter[int] = Counter()
        for outcome in self.outcomes:
            if outcome.code is grpc.StatusCode.OK:
                assert outcome.version >= newest[outcome.client], f"client {outcome.client} went back: {outcome}"
                newest[outcome.client] = outcome.version

    async def more(self, count: int, timeout: float = 60.0) -> None:
        """Wait until `count` more requests have ended."""
        goal = len(self.outcomes) + count
        await eventually(lambda: len(self.outcomes) >= goal, f"{count} more requests", timeout)
