"""Questions whose answers come late or never, against a real gRPC server that answers as it is told to."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from monitor.client import PREDICT, ServerClient
from monitor.numbers import strange_numbers
from monitor.open_calls import OpenCalls
from monitor.pb import tfs_pb2 as tfs
from monitor.prove import Prober
from monitor.servables import Outcome, Probe, Question, WatchedModel
from registry.records import Proof
from tests.monitor.scripted_server import Reply, ScriptedServer, hang
from tests.support.waiting import eventually

MOST = 2
QUESTION = Question(PREDICT, tfs.PredictRequest(model_spec=tfs.ModelSpec(name="m")).SerializeToString(), "zeros")


@asynccontextmanager
async def probing(server: ScriptedServer) -> AsyncIterator[Prober]:
    async with ServerClient("127.0.0.1", server.port) as client, asyncio.TaskGroup() as group:
        prober = Prober(client, 30.0, group)
        try:
            yield prober
        finally:
            prober.close()


def again(patience: float, question: Question = QUESTION) -> Probe:
    return Probe(WatchedModel("m"), 1, 1, question, patience)


async def test_what_hangs_holds_no_more_than_two_calls_and_a_late_answer_counts() -> None:
    released = asyncio.Event()

    async def predict(_: bytes) -> Reply:
        await released.wait()
        return b""

    async with ScriptedServer() as server, probing(server) as prober:
        server.predict = predict
        for _ in range(4):
            assert await prober.prove(again(0.2)) == Outcome(Proof.FAILED, "no answer within 0.2 s", silent=True)
        assert len(server.requests("Predict")) == MOST
        waiting = asyncio.create_task(prober.prove(again(20.0)))
        released.set()
        found = await waiting
        assert (found.proof, len(server.requests("Predict"))) == (Proof.PROVED, MOST)
        assert found.seconds >= 0.4, "since it was asked at first, not since this probe began"

        async def asked_anew() -> bool:
            assert (await prober.prove(again(20.0))).proof is Proof.PROVED
            return len(server.requests("Predict")) > MOST

        await eventually(asked_anew, "a call that is not one of the first two")


async def test_a_call_that_was_never_answered_is_followed_by_a_rest_that_doubles() -> None:
    async with (
        ScriptedServer() as server,
        ServerClient("127.0.0.1", server.port) as client,
        asyncio.TaskGroup() as group,
    ):
        server.predict = hang
        calls, clock, times = OpenCalls(client, group), asyncio.get_running_loop().time, []

        async def asked(count: int) -> bool:
            return len(server.requests("Predict")) >= count

        waiting = asyncio.create_task(calls.ask(("m", 1, 1), PREDICT, b"", most=1, deadline=0.1))
        for count in range(1, 5):
            await eventually(lambda count=count: asked(count), f"call {count}")
            times.append(clock())
        waiting.cancel()
        calls.close()
    # The call itself takes 0.1 s, the rests are 0.1, 0.2 and 0.4 s.
    assert times[2] - times[1] >= 0.25
    assert times[3] - times[2] >= 0.45


@pytest.mark.parametrize(
    ("code", "refused", "proof"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, True, Proof.TRUSTED),
        (grpc.StatusCode.INVALID_ARGUMENT, False, Proof.FAILED),
        (grpc.StatusCode.INTERNAL, True, Proof.FAILED),
        (grpc.StatusCode.UNAVAILABLE, False, Proof.PENDING),
    ],
)
async def test_what_an_error_means_to_the_same_request_again(
    code: grpc.StatusCode, refused: bool, proof: Proof
) -> None:
    async def predict(_: bytes) -> Reply:
        return code, "said"

    async with ScriptedServer() as server, probing(server) as prober:
        server.predict = predict
        found = await prober.prove(again(20.0, Question(PREDICT, QUESTION.request, "zeros", refused=refused)))
    assert found.proof is proof


async def test_the_calls_are_given_up_with_the_prober() -> None:
    cancelled = asyncio.Event()

    async def predict(_: bytes) -> Reply:
        try:
            return await asyncio.sleep(3600, b"")
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with ScriptedServer() as server:
        server.predict = predict
        async with probing(server) as prober:
            assert (await prober.prove(again(0.1))).silent
        await eventually(cancelled.is_set, "the call's end")


@pytest.mark.parametrize(
    ("dtype", "fields", "word"),
    [
        (1, {"float_val": [0.0, math.nan]}, "NaN in y"),
        (1, {"tensor_content": struct.pack("<3f", 1, math.inf, math.nan)}, "NaN and Inf in y"),
        (2, {"tensor_content": struct.pack("<d", -math.inf)}, "Inf in y"),
        (19, {"half_val": [0x7E00]}, "NaN in y"),
        (14, {"tensor_content": struct.pack("<2H", 0x3F80, 0xFF80)}, "Inf in y"),
        (1, {"float_val": [3.4e38, -1.0]}, ""),
        (3, {"int_val": [0x7FC00000]}, ""),
        (1, {"tensor_content": b"\x01"}, ""),
    ],
)
def test_numbers_that_are_none_are_found(dtype: int, fields: dict[str, object], word: str) -> None:
    response = tfs.PredictResponse()
    response.outputs["y"].CopyFrom(tfs.TensorProto(dtype=dtype, **fields))  # type: ignore[arg-type]
    response.outputs["other"].CopyFrom(tfs.TensorProto(dtype=1, float_val=[1.0]))
    assert strange_numbers(response.SerializeToString()) == word


def test_what_is_no_answer_holds_no_numbers() -> None:
    assert strange_numbers(b"\xff\xff") == ""
