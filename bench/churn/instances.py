"""Cheap stand-ins for model servers, strict about what they hold: `python -m bench.churn.instances PORT…`.

Each port is one instance. It answers Predict for a model that it was told to hold, with the version it used, and
INTERNAL for any other: a request that reaches an instance after it gave the model up is a fault, and to be seen as one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable

import grpc
import grpc.aio

from control_plane.resources.wire import bytes_field
from monitor.pb import tfs_pb2

HOLD = "/bench.churn.Instance/Hold"
LISTENING = "all instances listen"


def version_of(answer: bytes) -> int:
    """The version that an instance's answer says it is from."""
    # Our copy of TF Serving's messages has no answers. This one is a model_spec and nothing else, in field 2, which a
    # request has in field 1.
    return int(tfs_pb2.PredictRequest.FromString(b"\x0a" + answer[1:]).model_spec.version.value)


def answer(model: str, version: int) -> bytes:
    """What such an instance answers: which version it used."""
    spec = tfs_pb2.ModelSpec(name=model)
    spec.version.value = version
    return bytes(bytes_field(2, spec.SerializeToString()))


class Instance(grpc.GenericRpcHandler):
    """One instance: model -> versions that it holds."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._held: dict[str, set[int]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        handler = self._hold if handler_call_details.method == HOLD else self._predict
        return grpc.unary_unary_rpc_method_handler(handler)  # type: ignore[arg-type]

    async def _hold(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        document = json.loads(request)
        for model, version in document.get("add", ()):
            self._held.setdefault(model, set()).add(version)
        for model, version in document.get("drop", ()):
            self._held.get(model, set()).discard(version)
        return b""

    async def _predict(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        spec = tfs_pb2.PredictRequest.FromString(request).model_spec
        held = self._held.get(spec.name, set())
        wanted = spec.version.value if spec.HasField("version") else max(held, default=0)
        if wanted not in held:
            await context.abort(grpc.StatusCode.INTERNAL, f"{spec.name} {wanted} is not on the instance {self._port}")
        return answer(spec.name, wanted)


async def _main(ports: Iterable[int]) -> None:
    servers = []
    for port in ports:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((Instance(port),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        servers.append(server)
    print(LISTENING, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(map(int, sys.argv[1:])))
