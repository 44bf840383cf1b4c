"""A stand-in for a server with many models: `python -m bench.many_models.server PORT MODELS`.

It answers GetModelStatus, GetModelMetadata and Predict as TF Serving does for as many small models as are asked for,
and changes their states when told to. TensorFlow Serving spends less on a call than this does: read its CPU as ratios.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2

from monitor.pb import tfs_pb2 as tfs
from registry.records import ServableState

LISTENING = "the stand-in listens"
SET, COUNT = "/bench.many_models/Set", "/bench.many_models/Count"


def name(number: int) -> str:
    """The model with this number."""
    return f"model-{number:04}"


class StandIn(grpc.GenericRpcHandler):
    """`states` of version numbers by model, ready-made answers, and how many status calls there were."""

    def __init__(self, models: int) -> None:
        self._answers = {name(number): _status({1: ServableState.AVAILABLE}) for number in range(models)}
        self._metadata = _metadata()
        self._calls = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        handler = {SET: self._set, COUNT: self._count}.get(method)
        if handler is None:
            handler = {"GetModelStatus": self._get_status, "GetModelMetadata": self._get_metadata}.get(
                method.rpartition("/")[2], self._predict
            )
        return grpc.unary_unary_rpc_method_handler(handler)  # type: ignore[arg-type]

    async def _get_status(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self._calls += 1
        model = tfs.GetModelStatusRequest.FromString(request).model_spec.name
        answer = self._answers.get(model)
        if answer is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {model}")
        return answer or b""

    async def _get_metadata(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return self._metadata

    async def _predict(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return b""

    async def _set(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """JSON: model -> version -> state. The answer is the moment from which it is told, by the machine's clock."""
        for model, versions in json.loads(request).items():
            self._answers[model] = _status({int(number): ServableState(state) for number, state in versions.items()})
        return repr(time.monotonic()).encode()

    async def _count(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return str(self._calls).encode()


def _status(versions: dict[int, ServableState]) -> bytes:
    response = tfs.GetModelStatusResponse()
    for version, state in sorted(versions.items(), reverse=True):
        number = tfs.ModelVersionStatus.State.Value(state)
        response.model_version_status.add(version=version, state=number, status=tfs.StatusProto())
    return response.SerializeToString()


def _metadata() -> bytes:
    signature = tfs.SignatureDef(method_name="tensorflow/serving/predict")
    info = signature.inputs["x"]
    info.name, info.dtype = "x:0", 1
    info.tensor_shape.dim.add(size=-1)
    response = tfs.GetModelMetadataResponse()
    value = tfs.SignatureDefMap(signature_def={"serving_default": signature}).SerializeToString()
    url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    response.metadata["signature_def"].CopyFrom(any_pb2.Any(type_url=url, value=value))
    return response.SerializeToString()


async def _main(port: int, models: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((StandIn(models),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(LISTENING, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*map(int, sys.argv[1:])))
