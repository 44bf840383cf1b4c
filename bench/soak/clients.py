"""The load: unmodified TensorFlow Serving clients through Envoy, of three kinds that are judged apart."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import grpc

from model_server.messages import bare_tensorflow
from tests.support import saved_models
from tests.support.load import Load, Outcome

with bare_tensorflow():
    from tensorflow_serving.apis import session_service_pb2

STEADY, SWITCHED = "m", "s"
"""A model whose versions come and go; and one that each instance can be told to fail with, or to hang."""

_TIMEOUT = 90.0
_SESSION_RUN = "/tensorflow.serving.SessionService/SessionRun"


class Unsafe(Load):
    """SessionRun, which Envoy may not send twice. TensorFlow Serving's model server has no such service and says
    UNIMPLEMENTED: that a server has answered is all that is asked for here."""

    async def _once(self, stub: Any, number: int) -> Outcome:
        started = time.monotonic()
        try:
            await stub(self.request, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            answered = error.code() is grpc.StatusCode.UNIMPLEMENTED
            code = grpc.StatusCode.OK if answered else error.code()
            return Outcome(number, started, time.monotonic() - started, code, error.details() or "")
        return Outcome(number, started, time.monotonic() - started, grpc.StatusCode.OK)

    def _stub(self, channel: Any) -> Any:
        # No stub of this service is in the official package.
        serialize = session_service_pb2.SessionRunRequest.SerializeToString
        return channel.unary_unary(_SESSION_RUN, request_serializer=serialize)


class Clients:
    """All of them. `async with` starts them and ends them after the requests in flight."""

    def __init__(self, target: str) -> None:
        session = session_service_pb2.SessionRunRequest()
        session.model_spec.name = STEADY
        predict = saved_models.predict_request
        self.steady = Load(target, predict(STEADY, [2.0]), clients=4, rest=0.03, timeout=_TIMEOUT)
        self.switched = Load(target, predict(SWITCHED, [2.0]), clients=2, rest=0.05, timeout=_TIMEOUT)
        self.unsafe = Unsafe(target, session, clients=2, rest=0.03, timeout=_TIMEOUT)
        self._stack = AsyncExitStack()

    @property
    def all(self) -> tuple[Load, ...]:
        return self.steady, self.switched, self.unsafe

    @property
    def requests(self) -> int:
        """That have ended so far."""
        return sum(len(load.outcomes) for load in self.all)

    async def more(self, count: int) -> None:
        """Wait until so many more of each kind have ended."""
        await asyncio.gather(*(load.more(count) for load in self.all))

    async def __aenter__(self) -> Clients:
        async with AsyncExitStack() as stack:
            for load in self.all:
                await stack.enter_async_context(load)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
