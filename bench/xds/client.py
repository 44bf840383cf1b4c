"""A simulated Envoy: a delta stream that subscribes as Envoy does and acknowledges whatever it is sent.

Invariant: it never looks into a resource, so that what a thousand of them cost beside the control plane is small.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.resources.names import GRPC_ROUTER, REST_ROUTER
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG, LISTENER
from tests.support.waiting import eventually

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
RESOURCES_PER_MODEL = 4
"""Clusters, and as many assignments: gRPC and REST, each for the model and for its one version."""
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 20),
)
_LATER: Mapping[str, Sequence[str]] = {LISTENER: (), EXTENSION_CONFIG: (GRPC_ROUTER, REST_ROUTER)}

Held = dict[str, dict[str, str]]
"""type URL -> name -> version."""
Request, Response = discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse


def channel(address: str) -> grpc.aio.Channel:
    """A connection of its own to a control plane."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def first_request(node: str, held: Held) -> bytes:
    """The request that an Envoy which holds this begins with."""
    request = Request(type_url=CLUSTER, initial_resource_versions=held.get(CLUSTER, {}))
    request.node.id, request.node.cluster = node, "bench"
    return bytes(request.SerializeToString())


def later_requests(held: Held) -> list[bytes]:
    """The requests after that of an Envoy that comes back with all of this: one per type."""
    requests = []
    for type_url in (CLUSTER_LOAD_ASSIGNMENT, LISTENER, EXTENSION_CONFIG):
        versions = held.get(type_url, {})
        names = () if type_url == LISTENER else tuple(versions)
        request = Request(type_url=type_url, resource_names_subscribe=names, initial_resource_versions=versions)
        requests.append(bytes(request.SerializeToString()))
    return requests


@dataclass
class Envoy:
    """One stream. `held` is what it got, `assignments` counts EDS responses, `received` bytes of all responses."""

    node: str
    held: Held = field(default_factory=dict)
    assignments: int = 0
    received: int = 0
    began: float | None = None
    """When the first response came (time.monotonic)."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    on_assignments: Callable[[], None] = lambda: None

    async def run(self, channel: grpc.aio.Channel, requests: Sequence[bytes] = ()) -> None:
        """Subscribe, and acknowledge until cancelled. `requests`: what one that comes back begins with, and it
        remembers nothing. Raises ConnectionError or grpc.aio.AioRpcError when the stream ends."""
        call: Any = channel.stream_stream(METHOD)(wait_for_ready=True)
        try:
            for request in requests or (first_request(self.node, {}),):
                await call.write(request)
            while (raw := await call.read()) is not grpc.aio.EOF:
                for request in self._answer(raw, new=not requests):
                    await call.write(request)
            raise ConnectionError(f"the control plane ended the stream of {self.node}: {await call.details()}")
        finally:
            call.cancel()

    def _answer(self, raw: bytes, *, new: bool) -> list[bytes]:
        response = Response.FromString(raw)
        requests = [Request(type_url=response.type_url, response_nonce=response.nonce)]
        if new:
            requests += self._remember(response)
        if self.began is None:
            self.began = time.monotonic()
            self.answered.set()
        self.received += len(raw)
        if response.type_url == CLUSTER_LOAD_ASSIGNMENT:
            self.assignments += 1
            self.on_assignments()
        return [request.SerializeToString() for request in requests]

    def _remember(self, response: Response) -> list[Request]:
        type_url = response.type_url
        known = self.held.setdefault(type_url, {})
        fresh = [resource.name for resource in response.resources if resource.name not in known]
        known.update((resource.name, resource.version) for resource in response.resources)
        if type_url != CLUSTER:
            return []
        # Envoy asks for the endpoints of the clusters that it has just learned of.
        requests = [Request(type_url=CLUSTER_LOAD_ASSIGNMENT, resource_names_subscribe=fresh)] if fresh else []
        if self.began is None:
            requests += (Request(type_url=later, resource_names_subscribe=names) for later, names in _LATER.items())
        return requests

    async def until_everything(self, models: int, timeout: float) -> None:
        """Wait until it holds every assignment of so many models."""
        wanted = RESOURCES_PER_MODEL * models
        got = self.held.setdefault(CLUSTER_LOAD_ASSIGNMENT, {})
        await eventually(lambda: len(got) == wanted, f"{wanted} assignments", timeout)


@asynccontextmanager
async def connected(address: str, timeout: float) -> AsyncIterator[Envoy]:
    """An Envoy that has tried again and again until a control plane answered. Raises TimeoutError."""
    envoy = Envoy("envoy-0")

    async def insist() -> None:
        while True:
            async with channel(address) as connection:
                with suppress(ConnectionError, grpc.aio.AioRpcError):
                    await envoy.run(connection)
            if envoy.began is not None:
                raise ConnectionError("the control plane ended the stream")

    task = asyncio.create_task(insist())
    try:
        async with asyncio.timeout(timeout):
            await envoy.answered.wait()
        yield envoy
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
