"""What an unmodified client sees through Envoy: right answers, a share for every instance, TF Serving's own errors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from registry.keys import ReadyKey
from tests.support import saved_models
from tests.support.load import floats
from tests.support.saved_models import predict_request, prediction_service_pb2_grpc
from tests.support.stack import Stack, rest

pytestmark = pytest.mark.scenario

PREDICT = "/tensorflow.serving.PredictionService/Predict"
MODELS = ("half_plus_two", "echo", "slow")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two instances with three models; shared by this file's tests, none of which changes anything."""
    folder = tmp_path_factory.mktemp("serving")
    models = {name: folder / "models" / name for name in MODELS}
    saved_models.half_plus_two(models["half_plus_two"], 1)
    saved_models.half_plus_two(models["half_plus_two"], 2, b=3.0)
    saved_models.echo(models["echo"], dtype="DT_STRING")
    saved_models.slow(models["slow"], seconds=1.0)
    stack = Stack(folder)
    try:
        for name in "ab":
            stack.start_instance(name, models)
        newest = {"half_plus_two": 2, "echo": 1, "slow": 1}
        wanted = [ReadyKey(model, version, name) for model, version in newest.items() for name in "ab"]
        asyncio.run(stack.until_ready(*wanted, *(ReadyKey("half_plus_two", 1, name) for name in "ab")))
        yield stack
    finally:
        stack.close()


async def call(stack: Stack, request: bytes, timeout: float = 20.0, **options: Any) -> tuple[grpc.StatusCode, str]:
    """Send raw request bytes to Predict; the code and the message that the client gets."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(stack.grpc, options=unlimited) as channel:
        try:
            await channel.unary_unary(PREDICT)(request, timeout=timeout, **options)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def test_both_protocols_answer_from_the_served_version(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        stub: Any = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        newest = await stub.Predict(predict_request("half_plus_two", [1.0, 2.0, 5.0]))
        older = await stub.Predict(predict_request("half_plus_two", [1.0], version=1))
    assert (floats(newest.outputs["y"]), newest.model_spec.version.value) == ((3.5, 4.0, 5.5), 2)
    assert (floats(older.outputs["y"]), older.model_spec.version.value) == ((2.5,), 1)
    asked = {"instances": [1.0, 2.0, 5.0]}
    assert rest(stack, "/v1/models/half_plus_two:predict", asked) == (200, {"predictions": [3.5, 4.0, 5.5]})
    assert rest(stack, "/v1/models/half_plus_two/versions/1:predict", asked)[1] == {"predictions": [2.5, 3.0, 4.5]}
    status, document = rest(stack, "/v1/models/half_plus_two")
    assert (status, {row["version"] for row in document["model_version_status"]}) == (200, {"1", "2"})
    assert rest(stack, "/v1/models/half_plus_two/metadata")[1]["model_spec"]["version"] == "2"


async def test_both_instances_get_a_share(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        stub: Any = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for _ in range(200):
            await stub.Predict(predict_request("half_plus_two", [1.0]))
    rows = [
        line.split("::") for line in stack.envoy.admin("/clusters").splitlines() if line.startswith("half_plus_two@2")
    ]
    shares = {row[1]: int(row[3]) for row in rows if row[2:3] == ["rq_success"]}
    assert set(shares) == {instance.grpc for instance in stack.instances.values()}
    assert min(shares.values()) > 40, shares


NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
GRPC_ERRORS = {
    "unknown model": (predict_request("nope", [1.0]), NOT_FOUND, "Servable not found for request: Latest(nope)"),
    "unknown model and version": (
        predict_request("nope", [1.0], version=3),
        NOT_FOUND,
        "Servable not found for request: Specific(nope, 3)",
    ),
    "unknown version": (
        predict_request("half_plus_two", [1.0], version=9),
        NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, 9)",
    ),
    "no model_spec": (b"", INVALID, "Missing ModelSpec"),
    "empty name": (b"\n\x00", INVALID, "ModelSpec has no name specified."),
}


@pytest.mark.parametrize("case", GRPC_ERRORS)
async def test_grpc_errors_are_tf_servings_own(stack: Stack, case: str) -> None:
    """The same code and words from Envoy as straight from an instance."""
    request, code, message = GRPC_ERRORS[case]
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    assert await call(stack, raw) == (code, message)
    async with grpc.aio.insecure_channel(stack.instances["a"].grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as straight:
            await channel.unary_unary(PREDICT)(raw)
    assert (straight.value.code(), straight.value.details()) == (code, message)


async def test_an_unknown_label(stack: Stack) -> None:
    request = predict_request("half_plus_two", [1.0])
    request.model_spec.version_label = "stable"
    code, message = await call(stack, request.SerializeToString())
    assert (code, message) == (INVALID, "Unrecognized servable version label: stable")
    assert rest(stack, "/v1/models/half_plus_two/labels/stable:predict", {"instances": [1.0]})[0] == 400


async def test_garbage(stack: Stack) -> None:
    code, message = await call(stack, b"\xff" * 40)
    assert code is INVALID
    assert "model_spec" in message


async def test_a_compressed_message_says_the_mend(stack: Stack) -> None:
    request = predict_request("half_plus_two", [1.0] * 500).SerializeToString()
    code, message = await call(stack, request, compression=grpc.Compression.Gzip)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "compression" in message


async def test_a_clients_deadline_on_a_slow_model(stack: Stack) -> None:
    request = predict_request("slow", [1.0]).SerializeToString()
    assert (await call(stack, request, timeout=0.05))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await call(stack, request, timeout=20))[0] is grpc.StatusCode.OK


REST_ERRORS = [
    ("/v1/models/nope:predict", {"instances": [1.0]}, 404, "Servable not found for request: Latest(nope)"),
    ("/v1/models/half_plus_two/versions/9:predict", {"instances": [1.0]}, 404, "Specific(half_plus_two, 9)"),
    ("/v1/models/nope", None, 404, "Could not find any versions of model nope"),
    ("/v1/models/half_plus_two:predict", b"{not json", 400, ""),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), REST_ERRORS)
async def test_rest_errors_are_tf_servings_own(stack: Stack, path: str, body: Any, status: int, message: str) -> None:
    code, document = rest(stack, path, body)
    assert code == status
    assert message in document["error"]


def echo_request(body: bytes) -> Any:
    request = predict_request("echo", [])
    request.inputs["x"].Clear()
    request.inputs["x"].dtype = 7  # DT_STRING, a scalar
    request.inputs["x"].tensor_shape.SetInParent()
    request.inputs["x"].string_val.append(body)
    return request


@pytest.mark.parametrize("size", [200, 600 * 1024, 8 * 1024 * 1024, 100 * 1000 * 1000])
async def test_bodies_arrive_bit_equal(stack: Stack, size: int) -> None:
    """200 B, 600 KiB, 8 MiB and 100 MB of random bytes to a model that answers with its input."""
    body = os.urandom(size)
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(stack.grpc, options=unlimited) as channel:
        stub: Any = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = await stub.Predict(echo_request(body), timeout=60)
    assert list(answer.outputs["y"].string_val) == [body]


async def test_a_body_above_the_limit(stack: Stack) -> None:
    code, message = await call(stack, echo_request(bytes(130 * 1024 * 1024)).SerializeToString(), timeout=60)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert message
