"""An upstream that tells what reached it: a real gRPC server that answers any unary method with what it received."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field

import grpc
import grpc.aio


@dataclass
class EchoServer:
    """Answers every method with `IDENTITY` in the trailing metadata and the request's bytes unchanged as the message.

    All of an answer is one write, so that one which is killed leaves no half of it: no proxy could retry that.

    `delay`: seconds to think first. `fail_with`: answer this status instead. `seen` keeps what arrived; `active` counts
    what is being thought about.
    """

    identity: str
    port: int = 0
    delay: float = 0.0
    fail_with: grpc.StatusCode | None = None
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    keep: bool = True
    active: int = 0

    async def __aenter__(self) -> EchoServer:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((_AnyMethod(self),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def answer(self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if self.keep:
            self.seen.append((method, request))
            self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata() or ()})
        if self.delay:
            self.active += 1
            try:
                await asyncio.sleep(self.delay)
            finally:
                self.active -= 1
        if self.fail_with is not None:
            await context.abort(self.fail_with, f"{self.identity} was told to fail")
        context.set_trailing_metadata((("identity", self.identity),))
        return request


class _AnyMethod(grpc.GenericRpcHandler):
    def __init__(self, server: EchoServer) -> None:
        self._server = server

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        async def handle(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return await self._server.answer(method, request, context)

        return grpc.unary_unary_rpc_method_handler(handle)  # type: ignore[arg-type]


class EchoRest:
    """The same over HTTP/1.1: answers with a JSON object of its identity, the method, the path and the length."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.port = 0
        self.paths: list[str] = []
        self.status = 200

    async def __aenter__(self) -> EchoRest:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                length = 0
                while (header := (await reader.readline()).decode().strip().lower()) != "":
                    name, _, value = header.partition(":")
                    length = int(value) if name == "content-length" else length
                await reader.readexactly(length)
                self.paths.append(path)
                document = {"identity": self.identity, "method": method, "path": path, "length": length}
                body = json.dumps(document).encode()
                head = (
                    f"HTTP/1.1 {self.status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _main(identity: str, port: int, delay: float) -> None:
    async with EchoServer(identity, port, delay, keep=False):
        await asyncio.Event().wait()


if __name__ == "__main__":  # a process of its own, for a test that kills it: IDENTITY PORT DELAY
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
