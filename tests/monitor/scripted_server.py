"""A real gRPC server with TF Serving's methods that answers what a test tells it to: for faults and timings that a real
model can't be made to show on demand. Not a test of TF Serving's behaviour; tests/monitor/test_scenarios.py is.

As a program it stands in for a server to own: `python -m tests.monitor.scripted_server --port=P --model_name=NAME`;
all of its models are AVAILABLE, and it ends by SIGTERM at once, as TF Serving does. `--host` is where it listens.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2

from monitor.pb import tfs_pb2 as tfs
from registry.records import ServableState

Reply = bytes | grpc.StatusCode | tuple[grpc.StatusCode, str]
Handler = Callable[[bytes], Awaitable[Reply]]


class ScriptedServer:
    """`models`: name -> {version: state}; `predict`, `status` replace what is answered by default (OK)."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self.models: dict[str, dict[int, ServableState]] = {}
        self.signatures: dict[str, tfs.SignatureDef] = {"serving_default": predict_signature(x=(1, [-1]))}
        self.predict: Handler | None = None
        self.status: Handler | None = None
        self.metadata: Reply | None = None
        self.calls: list[tuple[str, bytes]] = []
        self.port = 0
        self._server: grpc.aio.Server | None = None

    def requests(self, method: str) -> list[bytes]:
        return [body for name, body in self.calls if name == method]

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self.port = self._server.add_insecure_port(f"{self._host}:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def __aenter__(self) -> ScriptedServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def answer(self, method: str, body: bytes) -> Reply:
        self.calls.append((method, body))
        if method == "GetModelStatus":
            return await self.status(body) if self.status else self._status(body)
        if method == "GetModelMetadata":
            return self.metadata or self._metadata()
        return await self.predict(body) if self.predict else b""

    def _status(self, body: bytes) -> Reply:
        name = tfs.GetModelStatusRequest.FromString(body).model_spec.name
        if name not in self.models:
            return grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}"
        response = tfs.GetModelStatusResponse()
        for version, state in sorted(self.models[name].items(), reverse=True):
            number = tfs.ModelVersionStatus.State.Value(state)
            response.model_version_status.add(version=version, state=number, status=tfs.StatusProto())
        return response.SerializeToString()

    def _metadata(self) -> Reply:
        response = tfs.GetModelMetadataResponse()
        value = tfs.SignatureDefMap(signature_def=self.signatures).SerializeToString()
        url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
        response.metadata["signature_def"].CopyFrom(any_pb2.Any(type_url=url, value=value))
        return response.SerializeToString()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method.rpartition("/")[2]

        async def handle(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            reply = await self._server.answer(method, body)
            if isinstance(reply, bytes):
                return reply
            code, text = reply if isinstance(reply, tuple) else (reply, "scripted")
            return await context.abort(code, text)

        return grpc.unary_unary_rpc_method_handler(handle)


async def hang(_: bytes) -> Reply:
    await asyncio.sleep(3600)
    return b""


def predict_signature(
    method: str = "tensorflow/serving/predict", **inputs: tuple[int, list[int] | None]
) -> tfs.SignatureDef:
    """A signature; each input is (dtype, dimensions), with None for an unknown rank."""
    signature = tfs.SignatureDef(method_name=method)
    for name, (dtype, dims) in inputs.items():
        info = signature.inputs[name]
        info.name, info.dtype = f"{name}:0", dtype
        info.tensor_shape.unknown_rank = dims is None
        for size in dims or ():
            info.tensor_shape.dim.add(size=size)
    return signature


async def _main(host: str, port: int, names: list[str]) -> None:
    async with ScriptedServer(host) as server:
        await server.stop()
        server.port = port
        server.models = {name: {1: ServableState.AVAILABLE} for name in names}
        await server.start()
        sys.stdout.write("scripted server is up\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:])
    asyncio.run(_main(flags.get("host", "127.0.0.1"), int(flags["port"]), flags["model_name"].split(",")))
