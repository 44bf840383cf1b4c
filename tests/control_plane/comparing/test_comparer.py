"""The comparer on a real gRPC server, between two real ones that answer as versions do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from control_plane.comparing.comparer import HEADER, Comparer
from control_plane.comparing.results import Result, Results
from control_plane.model import Endpoint, Health, Model, Traffic
from control_plane.pb import predict_pb2
from registry.policy.model import Difference
from tests.support.waiting import eventually

PREDICT = "/tensorflow.serving.PredictionService/Predict"


@dataclass
class Versions:
    """A server that holds versions: it answers `y` of the version that a request names at last, or its error."""

    answers: Mapping[int, float | tuple[grpc.StatusCode, str]]
    delay: float = 0.0
    asked: list[int] = field(default_factory=list)
    port: int = 0

    async def __aenter__(self) -> Versions:
        self._server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(self._predict)
        service, method = PREDICT[1:].split("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def _predict(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        # The last bytes are the version that the comparer appended, below 128.
        version = request[-1]
        self.asked.append(version)
        await asyncio.sleep(self.delay)
        answer = self.answers[version]
        if isinstance(answer, tuple):
            await context.abort(*answer)
        response = predict_pb2.PredictResponse()
        response.outputs["y"].dtype = 1
        response.outputs["y"].float_val.append(answer)
        return response.SerializeToString()


@dataclass
class Known:
    """What the catalog says."""

    models: Mapping[str, Model]
    wanted: Difference | None = field(default_factory=Difference)

    def difference(self, model: str) -> Difference | None:
        return self.wanted


def known(old: int, new: int, *, compare: float = 0.5, health: Health = Health.READY) -> Known:
    versions = tuple(
        (version, (Endpoint(f"i-{port}", "127.0.0.1", port, health=health),)) for version, port in ((3, old), (4, new))
    )
    traffic = Traffic(((3, 95), (4, 5)), compare=compare, between=(3, 4))
    return Known({"a/b": Model("a/b", versions, 3, pinned=True, traffic=traffic)})


@dataclass
class Bench:
    """A comparer at work."""

    results: Results
    outcomes: Counter[str]
    copy: Any

    async def send(self, header: str = "a/b 3 4", times: int = 1) -> None:
        answers = await asyncio.gather(*(self.copy(b"", metadata=((HEADER, header),)) for _ in range(times)))
        assert set(answers) == {b""}

    async def became(self, **outcomes: int) -> Mapping[tuple[str, int], Result]:
        async def same() -> bool:
            assert dict(self.outcomes) == outcomes
            return True

        await eventually(same, f"the copies to become {outcomes}", 10)
        return self.results.by_version


@asynccontextmanager
async def comparing(picture: Known, **settings: Any) -> AsyncIterator[Bench]:
    results, outcomes = Results(), Counter[str]()
    comparer = Comparer(picture, results, lambda outcome: outcomes.update((outcome,)), **settings)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(comparer.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    running = asyncio.create_task(comparer.run())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Bench(results, outcomes, channel.unary_unary(PREDICT))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await server.stop(None)


async def test_equal_and_different_answers_are_counted_for_both_versions() -> None:
    async with Versions({3: 1.0, 4: 1.001}) as old, comparing(known(old.port, old.port)) as bench:
        await bench.send()
        found = await bench.became(compared=1)
        assert found == {("a/b", 3): Result(1), ("a/b", 4): Result(1)}
        assert old.asked == [3, 4]
        old.answers = {3: 1.0, 4: 2.0}
        await bench.send()
        found = await bench.became(compared=1, differed=1)
        assert found["a/b", 4] == Result(2, 1, "y[0] is 2 instead of 1 by version 3")


async def test_versions_on_different_instances_are_each_asked_where_they_are() -> None:
    async with Versions({3: 1.0}) as old, Versions({4: 5.0}) as new, comparing(known(old.port, new.port)) as bench:
        await bench.send()
        await bench.became(differed=1)
        assert (old.asked, new.asked) == ([3], [4])


async def test_an_error_where_the_other_answers_is_a_difference_of_that_version_alone() -> None:
    bad = (grpc.StatusCode.INVALID_ARGUMENT, "no such input")
    async with Versions({3: 1.0, 4: bad}) as server, comparing(known(server.port, server.port)) as bench:
        await bench.send()
        found = await bench.became(differed=1)
        assert found == {("a/b", 4): Result(1, 1, "INVALID_ARGUMENT: no such input")}
        server.answers = {3: bad, 4: bad}
        await bench.send()
        await bench.became(differed=1, skipped=1)


@pytest.mark.parametrize(
    "error",
    [
        (grpc.StatusCode.UNAVAILABLE, "going away"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy"),
        (grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(a/b, 4)"),
    ],
)
async def test_what_says_nothing_of_the_model_counts_for_nobody(error: tuple[grpc.StatusCode, str]) -> None:
    async with Versions({3: 1.0, 4: error}) as server, comparing(known(server.port, server.port)) as bench:
        await bench.send()
        assert not await bench.became(skipped=1)


async def test_nobody_makes_it_ask_what_it_was_not_told_to_compare() -> None:
    async with Versions({3: 1.0, 4: 1.0}) as server:
        for picture, header in (
            (known(server.port, server.port), "a/b 3 5"),
            (known(server.port, server.port), "other 3 4"),
            (known(server.port, server.port, compare=0.0), "a/b 3 4"),
            (Known(known(server.port, server.port).models, None), "a/b 3 4"),
            (known(server.port, server.port, health=Health.DRAINING), "a/b 3 4"),
        ):
            async with comparing(picture) as bench:
                await bench.send(header)
                await bench.became(skipped=1)
        assert server.asked == []


async def test_a_request_that_is_no_copy_is_refused() -> None:
    async with comparing(known(1, 1)) as bench:
        for header in ("", "a/b", "a/b 3 x", " 3 4"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await bench.send(header)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_more_than_it_may_have_under_way_is_dropped_and_answered_at_once() -> None:
    both = Versions({3: 1.0, 4: 1.0}, delay=0.2)
    async with both as server, comparing(known(server.port, server.port), at_once=2) as bench:
        await bench.send(times=10)
        assert bench.outcomes["dropped"] == 8
        await bench.became(dropped=8, compared=2)


async def test_more_than_so_many_a_second_are_dropped() -> None:
    both = Versions({3: 1.0, 4: 1.0})
    async with both as server, comparing(known(server.port, server.port), per_second=0.001, at_once=3) as bench:
        for sent in range(5):
            await bench.send()
            # One at a time, for more than three would be dropped for that.
            await bench.became(**({"compared": sent + 1} if sent < 3 else {"compared": 3, "dropped": sent - 2}))
