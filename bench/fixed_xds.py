"""A delta ADS server that says one thing for ever, in the benchmark's own process.

What Envoy gets are the resources of control_plane/resources, as the control plane would send them; only that nothing
changes, so nothing but requests costs Envoy CPU while they are counted.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.load_stats.v3 import lrs_pb2_grpc

from control_plane.resources.resource import Resource

_END = object()


class FixedXds(ads_pb2_grpc.AggregatedDiscoveryServiceServicer, lrs_pb2_grpc.LoadReportingServiceServicer):
    """A context manager; `address` is where it listens."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        self._resources = resources
        # A stream occupies a thread: two per Envoy, and room for a reconnect.
        self._server = grpc.server(ThreadPoolExecutor(8))
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, self._server)
        lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.rejected: str = ""
        """What Envoy refused, if it did."""

    def __enter__(self) -> FixedXds:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait(5)

    def DeltaAggregatedResources(  # noqa: N802
        self, request_iterator: Iterator[discovery_pb2.DeltaDiscoveryRequest], context: grpc.ServicerContext
    ) -> Iterator[discovery_pb2.DeltaDiscoveryResponse]:
        """Answer every subscription at once and in full."""
        for number, request in enumerate(request_iterator):
            if request.HasField("error_detail"):
                self.rejected = request.error_detail.message
            names = set(request.resource_names_subscribe)
            if request.response_nonce and not names:
                continue  # an ACK
            yield _response(request.type_url, self._wanted(request.type_url, names), str(number + 1))

    def _wanted(self, type_url: str, names: set[str]) -> Iterable[Resource]:
        every = not names or "*" in names  # listeners and clusters are asked for without names
        return [r for r in self._resources if r.type_url == type_url and (every or r.name in names)]

    def StreamLoadStats(self, request_iterator: Iterator[object], context: grpc.ServicerContext) -> Iterator[object]:  # noqa: N802
        """Take the stream and never ask for a report, else Envoy would try again and again."""
        ended: queue.SimpleQueue[object] = queue.SimpleQueue()
        context.add_callback(lambda: ended.put(_END))
        ended.get()
        yield from ()


def _response(type_url: str, resources: Iterable[Resource], nonce: str) -> discovery_pb2.DeltaDiscoveryResponse:
    response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce)
    for resource in resources:
        entry = response.resources.add(name=resource.name, version=resource.version)
        entry.resource.ParseFromString(resource.body)
    return response
