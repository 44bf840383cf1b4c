"""The access log service (ALS): the grpc.aio shell around what Envoys tell of observed requests (observed.py).

Each of Envoy's workers has a stream of its own per listener, to whichever control plane it finds, so one Envoy's
entries may be spread over several: their sum is what counts (registry/plane_traffic.py). Entries that are on their way
when a control plane ends are lost, and so are those that Envoy has no room for: what is observed is a sample.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
from envoy.service.accesslog.v3 import als_pb2

from control_plane.resources.names import GRPC_LISTENER, REST_LISTENER
from control_plane.xds.observed import Observed
from registry.plane_traffic import Servable, VersionTotals

log = logging.getLogger(__name__)

SERVICE = "envoy.service.accesslog.v3.AccessLogService"


class AccessLogServer:
    """Serves ALS."""

    def __init__(self) -> None:
        self._observed = Observed()

    def totals(self) -> Mapping[Servable, VersionTotals]:
        """What was observed so far, by model and version; the counters only grow."""
        return self._observed.totals()

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """What to hand to `grpc.aio.Server.add_generic_rpc_handlers`."""
        method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(
            self._serve,
            request_deserializer=als_pb2.StreamAccessLogsMessage.FromString,
            response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
        )
        return (grpc.method_handlers_generic_handler(SERVICE, {"StreamAccessLogs": method}),)

    async def _serve(self, messages: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        listener = ""
        async for message in messages:
            # als.proto: only the first message of a stream is sure to carry the identifier.
            if message.HasField("identifier"):
                listener = message.identifier.log_name
                log.debug("%s at %s logs what %s observes", message.identifier.node.id, context.peer(), listener)
            if listener in (GRPC_LISTENER, REST_LISTENER):
                for entry in message.http_logs.log_entry:
                    self._observed.count(listener, entry)
        return als_pb2.StreamAccessLogsResponse()
