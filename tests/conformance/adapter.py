"""Our xDS server with the adapter in front of it that conformance suites drive a server by (adapter.proto).

`python -m tests.conformance.adapter` serves both until SIGTERM or SIGINT. A table in memory takes the place of the
registry: nothing else of the control plane runs. There is one table, whatever node a call names.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from control_plane.xds.limits import Limits
from control_plane.xds.server import SERVER_OPTIONS, XdsServer
from control_plane.xds.table import ResourceTable, TableChange
from tests.conformance import adapter_pb2
from tests.conformance.state import RequestError, State
from tests.conformance.versions import GivenVersions

SERVICE = "adapter.Adapter"
READY = "ready: adapter on "


class Adapter:
    """The calls. `publish` is told of every change before the call is answered."""

    def __init__(self, state: State, publish: Callable[[TableChange], None]) -> None:
        self._state = state
        self._publish = publish

    def handler(self) -> grpc.GenericRpcHandler:
        """What to hand to `grpc.aio.Server.add_generic_rpc_handlers`."""
        pb = adapter_pb2
        calls: dict[str, tuple[Callable[[Any], TableChange], Any, Any]] = {
            "SetState": (
                lambda request: self._state.set(list(request.resources), request.version),
                pb.SetStateRequest,
                pb.SetStateResponse(success=True),
            ),
            "ClearState": (
                lambda _: self._state.clear(),
                pb.ClearStateRequest,
                pb.ClearStateResponse(response="there are no resources now"),
            ),
            "UpdateResource": (
                lambda request: self._state.change(request.typeUrl, request.resourceName, request.version),
                pb.ResourceRequest,
                pb.UpdateResourceResponse(success=True),
            ),
            "AddResource": (
                lambda request: self._state.add(request.typeUrl, request.resourceName, request.version),
                pb.ResourceRequest,
                pb.AddResourceResponse(success=True),
            ),
            "RemoveResource": (
                lambda request: self._state.remove(request.typeUrl, request.resourceName, request.version),
                pb.ResourceRequest,
                pb.RemoveResourceResponse(success=True),
            ),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: self._method(*call) for name, call in calls.items()}
        )

    def _method(self, act: Callable[[Any], TableChange], request: Any, answer: Any) -> grpc.RpcMethodHandler[Any, Any]:
        async def call(asked: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                self._publish(act(asked))
            except RequestError as error:
                code = grpc.StatusCode.INVALID_ARGUMENT
                if error.missing or error.existing:
                    code = grpc.StatusCode.NOT_FOUND if error.missing else grpc.StatusCode.ALREADY_EXISTS
                await context.abort(code, str(error))
            return answer

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=request.FromString, response_serializer=type(answer).SerializeToString
        )


@dataclass(frozen=True)
class Served:
    """Where the two can be reached, as HOST:PORT."""

    adapter: str
    xds: str


@asynccontextmanager
async def serving(adapter: str, xds: str, limits: Limits | None = None) -> AsyncIterator[Served]:
    """Serve both; port 0 is any free one. Raises OSError for an address that can't be had."""
    table = ResourceTable()
    server = XdsServer(table, limits=limits, settle_seconds=0.0)
    state = State(table)
    servers: list[grpc.aio.Server] = []
    places: list[str] = []
    spoken = tuple(GivenVersions(handler, state.version_of) for handler in server.handlers())
    for address, handlers in ((adapter, (Adapter(state, server.publish).handler(),)), (xds, spoken)):
        grpc_server = grpc.aio.server(options=SERVER_OPTIONS)
        grpc_server.add_generic_rpc_handlers(handlers)
        try:
            port = grpc_server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"can't listen on {address}: {error}") from None
        servers.append(grpc_server)
        places.append(f"{address.rpartition(':')[0]}:{port}")
    server.publish(state.clear())
    for grpc_server in servers:
        await grpc_server.start()
    try:
        yield Served(*places)
    finally:
        await server.close()
        await asyncio.gather(*(each.stop(None) for each in servers))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.adapter",
        description=(
            "Serve modelplane's xDS protocol from resources in memory, and the adapter service by which a conformance "
            "suite sets them: SetState, ClearState, AddResource, UpdateResource, RemoveResource. Prints one line when "
            "both can be called, and serves until it is ended."
        ),
        epilog=(
            "Our own suite: pytest tests/conformance --xds-server 127.0.0.1:18000 --xds-adapter 127.0.0.1:17000. "
            "ii/xds-test-harness: --target :18000 --adapter :17000, with --patience 0.5 here: on an aggregated stream "
            "it acknowledges a second type's responses under the first one's name, so what waits for that "
            "acknowledgement comes at its deadline only."
        ),
    )
    parser.add_argument(
        "--adapter", default="127.0.0.1:17000", metavar="HOST:PORT", help="the adapter's address (default %(default)s)"
    )
    parser.add_argument(
        "--xds", default="127.0.0.1:18000", metavar="HOST:PORT", help="the xDS server's address (default %(default)s)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=Limits().gate_seconds,
        metavar="SECONDS",
        help="how long a resource waits for the acknowledgement of another that it needs (default %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="log what clients do")
    return parser.parse_args(argv)


async def _serve(options: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    limits = Limits(gate_seconds=options.patience, removal_seconds=options.patience)
    async with serving(options.adapter, options.xds, limits) as served:
        print(f"{READY}{served.adapter}, xDS on {served.xds}", flush=True)
        await ended.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    options = _arguments(argv)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, format="%(message)s")
    try:
        asyncio.run(_serve(options))
    except OSError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
