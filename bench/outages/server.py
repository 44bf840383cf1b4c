"""A cheap stand-in for one model server, strict about what it holds:
`python -m bench.outages.server --port=P --holds=FILE`.

The file is JSON, `{model: {"versions": [1, 2], "delay": SECONDS}}`, and is read again whenever it changes. A request
for what is not held is INTERNAL: it should never have come here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench.churn.instances import answer
from monitor.pb import tfs_pb2 as tfs


class Holdings:
    """What the file says now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = (0, 0)
        self._held: dict[str, Any] = {}

    def get(self, model: str) -> tuple[list[int], float]:
        """The versions of a model, and how long an answer takes."""
        stat = self._path.stat()
        if (stat.st_mtime_ns, stat.st_ino) != self._seen:
            self._seen = (stat.st_mtime_ns, stat.st_ino)
            self._held = json.loads(self._path.read_text())
        held = self._held.get(model, {})
        return held.get("versions", []), held.get("delay", 0.0)


class Server(grpc.GenericRpcHandler):
    """GetModelStatus and Predict; TF Serving's other methods are refused."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        match handler_call_details.method.rpartition("/")[2]:
            case "GetModelStatus":
                return grpc.unary_unary_rpc_method_handler(self._status)  # type: ignore[arg-type]
            case "Predict":
                return grpc.unary_unary_rpc_method_handler(self._predict)  # type: ignore[arg-type]
        return None

    async def _status(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        name = tfs.GetModelStatusRequest.FromString(request).model_spec.name
        versions, _ = self._holdings.get(name)
        if not versions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        response = tfs.GetModelStatusResponse()
        for version in sorted(versions, reverse=True):
            response.model_version_status.add(version=version, state=tfs.ModelVersionStatus.AVAILABLE)
        return response.SerializeToString()

    async def _predict(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        spec = tfs.PredictRequest.FromString(request).model_spec
        versions, delay = self._holdings.get(spec.name)
        wanted = spec.version.value if spec.HasField("version") else max(versions, default=0)
        if wanted not in versions:
            await context.abort(grpc.StatusCode.INTERNAL, f"{spec.name} {wanted} is not here")
        if delay:
            await asyncio.sleep(delay)
        return answer(spec.name, wanted)


async def _main(port: int, holds: Path) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Server(Holdings(holds)),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    flags = argparse.ArgumentParser()
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--holds", type=Path, required=True)
    args = flags.parse_args()
    asyncio.run(_main(args.port, args.holds))
