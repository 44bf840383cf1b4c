"""The Client Status Discovery Service: what each connected client was sent and has acknowledged.

Invariant: the event loop is held for one client's references at a time; the answer is made in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.status.v3 import csds_pb2

from control_plane.inspection.client_status import Client, Offered, response
from control_plane.inspection.inside import Inside
from control_plane.inspection.nodes import MatcherError, matches
from control_plane.xds.table import Moment, ResourceTable

SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"
MAX_RESOURCES = 500_000
"""In one answer; each takes some 200 bytes and 10 µs."""


class TooMuchError(Exception):
    """An answer that would be too large; the message is for the client."""


class ClientStatus:
    """Serves CSDS. Whoever asks gets one ClientConfig for each client that a node matcher fits: an aggregated stream,
    or all streams of separate services of one node id."""

    def __init__(self, inside: Inside, max_resources: int = MAX_RESOURCES) -> None:
        self._inside = inside
        self._max_resources = max_resources
        # More at once would leave the event loop too little of the interpreter.
        self._long = asyncio.Semaphore(2)

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """What to hand to `grpc.aio.Server.add_generic_rpc_handlers`."""
        parse = csds_pb2.ClientStatusRequest.FromString
        # Responses are serialised already: no response_serializer.
        fetch: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._fetch, request_deserializer=parse
        )
        stream: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._stream, request_deserializer=parse
        )
        methods = {"FetchClientStatus": fetch, "StreamClientStatus": stream}
        return (grpc.method_handlers_generic_handler(SERVICE, methods),)

    async def _fetch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            return await self._answer(request)
        except MatcherError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TooMuchError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        raise AssertionError("abort raises")

    async def _stream(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self._fetch(request, context)

    async def _answer(self, request: Any) -> bytes:
        clients: dict[tuple[str, str, int], list[Client]] = {}
        xds, tables = self._inside.xds, _Tables()
        # A matcher that is not served is one also while nobody is connected.
        matches(base_pb2.Node(), request.node_matchers)
        total = 0
        for number in xds.stream_numbers:
            found = xds.client(number)
            if found is None or not matches(found.client, request.node_matchers):
                continue
            types, offered = found.machine.holdings(), tables.read(found.view.table)
            client = Client(found.client, found.peer, types, offered)
            total += sum(
                len(held.names) + (len(offered.named(url)) if held.wildcard else 0) for url, held in types.items()
            )
            if total > self._max_resources:
                raise TooMuchError(
                    f"the answer would hold more than {self._max_resources} resources; choose fewer clients with "
                    "node_matchers"
                )
            separate = found.method.only_type is not None
            clients.setdefault((found.node, found.view.name, 0 if separate else number), []).append(client)
            # Each takes up to some milliseconds with 10,000 models.
            await asyncio.sleep(0)
        contents = not request.exclude_resource_contents
        async with self._long:
            return await asyncio.to_thread(response, list(clients.values()), contents=contents)


class _Tables:
    """Copies of the tables, made anew only when a table has changed since."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Moment, Offered]] = {}

    def read(self, table: ResourceTable) -> Offered:
        known = self._copies.get(id(table))
        if known is None or known[0] != table.moment:
            known = self._copies[id(table)] = table.moment, Offered.of(table)
        return known[1]
