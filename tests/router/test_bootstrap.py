"""What the bootstrap promises about the control plane, with the real Envoy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio

from control_plane.envoy_files import render_bootstrap
from tests.support.envoy import Envoy
from tests.support.processes import free_port
from tests.support.waiting import eventually

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


class Plane(grpc.GenericRpcHandler):
    """Takes every stream, notes its method and keeps it open without a word."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def listen(requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await context.read()
            self.asked.append(handler_call_details.method)
            await asyncio.Event().wait()

        return grpc.stream_stream_rpc_method_handler(listen)  # type: ignore[arg-type]


async def test_a_hung_control_plane_is_noticed_and_the_next_one_asked(tmp_path: Path) -> None:
    """Waits until the one that accepts connections and says nothing was left again, and the other one was asked."""
    left = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        left.set()
        writer.close()

    plane, server = Plane(), grpc.aio.server(options=[("grpc.http2.max_ping_strikes", 0)])
    server.add_generic_rpc_handlers((plane,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    hung = await asyncio.start_server(hang, "127.0.0.1", 0)
    hung_port, admin_port = hung.sockets[0].getsockname()[1], free_port()
    # Load reports and configuration are two streams, each with its own turn: each of the two is tried.
    addresses = [f"127.0.0.1:{hung_port}", f"127.0.0.1:{port}"]
    envoy = Envoy(tmp_path, render_bootstrap(addresses, admin=f"127.0.0.1:{admin_port}"), admin_port)
    try:
        await asyncio.wait_for(left.wait(), 20)
        await eventually(lambda: ADS in plane.asked, "Envoy to ask the control plane that lives", 20)
        assert envoy.admin("/ready").strip() == "PRE_INITIALIZING"  # nothing was answered, so nothing is open
    finally:
        envoy.close()
        hung.close()
        await server.stop(None)
